"""What is fuzzed, and what each promises."""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from play import Play

from chaperone_sidecar.command import Effect
from chaperone_sidecar.effects import Close, SessionEffect, Wait
from chaperone_sidecar.errors import ChaperoneError, ProtocolError, Unmaskable
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import Classified, ColumnClass, MaskRule
from chaperone_sidecar.protocols.postgresql import grammar, textmask
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.classify import classify
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, FrontendCodec, Rows
from chaperone_sidecar.protocols.postgresql.copyform import CopyForm, Lines
from chaperone_sidecar.protocols.postgresql.copymask import CopyMask
from chaperone_sidecar.protocols.postgresql.grammar import INLINE_BYTES
from chaperone_sidecar.protocols.postgresql.kind import ARRAYS, MULTIRANGES, RANGES, TEXT_OIDS
from chaperone_sidecar.protocols.postgresql.lineage import trace
from chaperone_sidecar.protocols.postgresql.rowmask import RowMask
from chaperone_sidecar.protocols.postgresql.scalar import EXTENSIONS, SCALARS
from chaperone_sidecar.protocols.postgresql.schema import Column, NotLookedUp, Relation, Schema, Type
from chaperone_sidecar.protocols.postgresql.shape import Shape

type Target = Callable[[bytes, random.Random], None]

CORPORA = Path(__file__).parents[1] / "corpora"
DECODERS: dict[int, Callable[[bytes], object]] = {
    m.QUERY: m.decode_query,
    m.PARSE: m.decode_parse,
    m.BIND: m.decode_bind,
    m.EXECUTE: m.decode_execute,
    m.DESCRIBE: m.decode_describe,
    m.CLOSE: m.decode_close,
}


def texts() -> list[bytes]:
    """All statements of the corpora."""
    found = []
    for path in sorted(CORPORA.glob("postgresql_*.jsonl")):
        for line in path.read_text().splitlines():
            sql = json.loads(line).get("sql")
            if isinstance(sql, str):
                found.append(sql.encode())
    return found


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The bytes in pieces."""
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def client_dialogues() -> list[bytes]:
    bind = m.frame(m.BIND, b"\0\0" + b"\0\0" + b"\0\1\0\0\0\1x" + b"\0\0")
    asked = m.encode_parse(b"", b"SELECT $1") + bind + m.frame(m.DESCRIBE, b"P\0") + m.frame(m.EXECUTE, bytes(5))
    copied = m.frame(m.COPY_DATA, b"1\t2\n") + m.frame(m.COPY_DONE, b"")
    return [
        m.encode_query(b"SELECT 1"), asked + m.SYNC_FRAME, asked + m.FLUSH_FRAME + asked + m.SYNC_FRAME,
        m.encode_query(b"COPY t FROM STDIN") + copied, m.frame(m.CLOSE, b"Sname\0"), m.TERMINATE_FRAME,
        m.frame(m.FUNCTION_CALL, bytes(8)), m.encode_query(b"BEGIN; SELECT 2; COMMIT") + m.encode_query(b""),
    ]  # fmt: skip


def server_dialogues() -> list[bytes]:
    head = m.frame(m.ROW_DESCRIPTION, b"\0\1a\0" + bytes(18))
    row = m.frame(m.DATA_ROW, b"\0\1\0\0\0\1x")
    done, ready = m.frame(m.COMMAND_COMPLETE, b"SELECT 1\0"), m.frame(m.READY_FOR_QUERY, b"I")
    error = m.frame(m.ERROR_RESPONSE, b"SERROR\0C42601\0Mno\0\0")
    return [
        head + row + row + done + ready, m.frame(m.PARSE_COMPLETE, b"") + m.frame(m.BIND_COMPLETE, b"") + row + done,
        error + ready, m.frame(m.NOTICE_RESPONSE, b"SNOTICE\0C00000\0Mhm\0\0"), m.frame(m.COPY_IN_RESPONSE, bytes(3)),
        m.frame(m.COPY_OUT_RESPONSE, bytes(3)) + m.frame(m.COPY_DATA, b"1\n") + m.frame(m.COPY_DONE, b"") + done,
        m.frame(m.PARAMETER_STATUS, b"a\0b\0"), m.frame(m.DATA_ROW, bytes(100_000)), m.frame(m.PORTAL_SUSPENDED, b""),
        m.frame(m.NOTIFICATION_RESPONSE, bytes(6)), m.frame(m.EMPTY_QUERY_RESPONSE, b"") + ready,
    ]  # fmt: skip


def frontend() -> tuple[Target, list[bytes]]:
    """However the bytes are cut the messages are the same; nothing but ProtocolError is raised."""

    def messages(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
        codec, found = FrontendCodec(), []
        codec.started()
        try:
            for piece in pieces:
                codec.feed(piece)
                while (frame := codec.next()) is not None:
                    found.append((frame.type, bytes(frame.raw)))
        except ProtocolError:
            return found, True
        return found, False

    def target(data: bytes, rng: random.Random) -> None:
        whole, in_pieces = messages([data]), messages(cut(data, rng))
        assert whole == in_pieces
        for kind, raw in whole[0]:
            if kind in DECODERS:
                try:
                    DECODERS[kind](raw[5:])
                except ProtocolError:
                    continue
        try:
            m.decode_startup(data)
        except ProtocolError:
            return

    return target, client_dialogues()


def backend() -> tuple[Target, list[bytes]]:
    """However the bytes are cut the same bytes come out, and as many rows; nothing but ProtocolError is raised."""

    def read(pieces: list[bytes]) -> tuple[bytes, int, bool]:
        codec, found, count = BackendCodec(), b"", 0
        try:
            for piece in pieces:
                codec.feed(piece)
                while (item := codec.next()) is not None:
                    found += bytes(item.data if isinstance(item, Rows) else item.raw)
                    count += item.count if isinstance(item, Rows) else 1
        except ProtocolError:
            return found, count, True
        return found, count, False

    def target(data: bytes, rng: random.Random) -> None:
        whole, in_pieces = read([data]), read(cut(data, rng))
        if whole[2]:  # a long row is passed on in parts, so the last of it depends on the cuts
            assert in_pieces[2]
        else:
            assert data.startswith(whole[0]) and data.startswith(in_pieces[0])
            assert whole[1] == in_pieces[1]

    return target, server_dialogues()


def classifier() -> tuple[Target, list[bytes]]:
    """Never raises, always has an access, and says why when something is unknown."""

    def target(data: bytes, _: random.Random) -> None:
        facts = classify(data[:INLINE_BYTES]).facts
        assert facts.accesses
        if any(access.effect is Effect.UNKNOWN for access in facts.accesses):
            assert facts.why_unknown

    return target, texts()


def detectors() -> tuple[Target, list[bytes]]:
    """Never raises, leaves nothing that it finds, and masking again changes nothing."""
    kinds = ("PaymentCard", "IBAN", "USSocialSecurity", "Email", "Phone", "IPv4", "IPv6", "JWT", "AwsAccessKey",
             "CloudKey", "PrivateKey")  # fmt: skip
    masker = Masker([MaskRule("Redact", detectors=kinds)])

    def target(data: bytes, _: random.Random) -> None:
        once = masker.mask_text(data)
        assert masker.mask_text(once) == once
        if once != data:
            assert masker.may_hit(data)

    values = [
        b"4111-1111-1111-1111", b"DE89 3704 0044 0532 0130 00", b"ssn 612-44-8391", b"jane.roe@example.org",
        b"10.20.30.40",
        b"+49 30 901820", b"2001:db8::8a2e:370:7334", b"AKIAIOSFODNN7EXAMPLE", b'{"a": "j\\u0061ne@example.org"}',
        b"\\x6a616e65406578616d706c652e6f7267", b"amFuZS5yb2VAZXhhbXBsZS5vcmc=", b"-----BEGIN PRIVATE KEY-----\nMIIB\n",
        b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlc2ln",
    ]  # fmt: skip
    return target, values + texts()[:200]


class _Stalled(ChaperoneError):
    """The session waits for its other side, which says nothing more."""


class _Fuzzed(Play):
    """A session that may be asked for anything."""

    def otherwise(self, effect: SessionEffect) -> object:
        if isinstance(effect, Wait) and not effect.is_over():
            raise _Stalled
        if isinstance(effect, Close):
            raise _Stalled
        return None


def session() -> tuple[Target, list[bytes]]:
    """A hostile client and a hostile server: errors of the gateway alone, and whole messages for the client."""
    from_client, from_server = client_dialogues(), server_dialogues()

    def target(data: bytes, rng: random.Random) -> None:
        play = _Fuzzed()
        try:
            for piece in cut(data, rng):
                play.client(rng.choice(from_client))
                (play.client if rng.random() < 0.3 else play.upstream)(piece)
                play.upstream(rng.choice(from_server))
                play.client(m.SYNC_FRAME)
        except ChaperoneError as error:
            play.session.fatal(error)
        play.session.abandoned()
        if play.session.fatal(ProtocolError("")):  # else the client is inside a row
            play.messages()

    return target, from_client + from_server


CANARY = b"Quorbly"
PERSON = ColumnClass("person", "Redact")
CALLS_AT_FIRST, CALLS_A_BYTE = 20_000, 60
TYPES = {
    oid: Type(oid, f"public.{name}", "b") for oid, name in enumerate([*EXTENSIONS, "unknown"], 20_000)
} | {
    20_100: Type(20_100, "public.d", "d", 25), 20_101: Type(20_101, "public.c", "c"),
    20_102: Type(20_102, "public.r", "r", 1700), 20_103: Type(20_103, "public.m", "m", 20_102),
    20_104: Type(20_104, "public.a", "b", 20_101, is_array=True), 20_105: Type(20_105, "public.e", "e"),
}  # fmt: skip
OIDS = sorted({*SCALARS, *ARRAYS, *RANGES, *MULTIRANGES, *TEXT_OIDS, *TYPES, 114, 142, 2249, 2277})


def typed(oid: int) -> Type | None:
    """The types of a database, found by their numbers; there is no other."""
    return TYPES.get(oid)


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """What is called inside is not more than a line over `size` allows."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
    assert calls <= CALLS_AT_FIRST + CALLS_A_BYTE * size, f"{calls} calls for {size} bytes"


def frames(data: bytes, kind: int) -> list[bytes]:
    """The bodies of whole frames of one type, which `data` has to be."""
    out, place = [], 0
    while place < len(data):
        after = place + 1 + int.from_bytes(data[place + 1 : place + 5], "big")
        assert data[place] == kind
        assert place + 5 <= after <= len(data)
        out.append(data[place + 5 : after])
        place = after
    return out


def cells(body: bytes) -> list[bytes | None]:
    """The values of a row, or of a tuple of COPY."""
    out: list[bytes | None] = []
    place = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        (size,) = struct.unpack_from(">i", body, place)
        place += 4 + max(size, 0)
        assert size >= -1
        assert place <= len(body)
        out.append(None if size < 0 else body[place - size : place])
    assert place == len(body)
    return out


def packed(values: list[bytes | None]) -> bytes:
    """Values as a row has them."""
    parts = [b"\xff\xff\xff\xff" if value is None else struct.pack(">i", len(value)) + value for value in values]
    return struct.pack(">h", len(values)) + b"".join(parts)


def pieces(data: bytes, count: int, rng: random.Random) -> list[bytes | None]:
    """As many values as are asked for, some of them NULL; the second holds the canary."""
    places = sorted(rng.randrange(len(data) + 1) for _ in range(count - 1))
    found = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return [
        CANARY + value if index == 1 else None if not value and rng.random() < 0.5 else value
        for index, value in enumerate(found)
    ]


def masker() -> Masker:
    """Detectors, and a class for columns."""
    return Masker([MaskRule("Redact", detectors=("PaymentCard", "Email"))], [Classified(("public.c.email",), "person")])


def values() -> list[bytes]:
    """Values of some types in both formats."""
    card = 4716892311450065
    return [
        b"jane.roe@example.org", b"%d" % card, struct.pack(">q", card), struct.pack(">d", card),
        struct.pack(">hhHh4h", 4, 3, 0, 0, 4716, 8923, 1145, 65), b"\x01{}", b"{1,2}", b"(a,b)", b"\\x6a61",
        b'"a"=>"b"',
        struct.pack(">iiIiii", 1, 0, 25, 1, 1, 3) + b"abc", struct.pack(">iIi", 1, 25, 3) + b"abc",
        struct.pack(">Bi", 2, 8) + struct.pack(">q", card) + struct.pack(">i", 8) + bytes(8),
        struct.pack(">iii", 1, 9, 0), struct.pack(">i", 1) + b"jane\0\0\0",
        struct.pack(">iBBB", 1, 1, 0, 0) + b"jane\0",
        struct.pack(">ii", 1, 1) + b"a" + struct.pack(">i", -1), struct.pack(">i", 72) + b"jane@r.eu",
        b"4,716,892,311,450,065.00", b"0110101001100001" * 9, b"j\\000a\\000", b"<a b=\"jane@example.org\"/>",
    ]  # fmt: skip


def rows() -> tuple[Target, list[bytes]]:
    """Rows stay rows, of as many columns; a classified value is gone; nothing but errors of the gateway is raised."""
    both = masker()

    def target(data: bytes, rng: random.Random) -> None:
        data = data.replace(CANARY, b"")
        count = rng.randrange(2, 5)
        oids = [rng.choice(OIDS) for _ in range(count)]
        formats = [rng.randrange(2) for _ in range(count)]
        described = b"".join(b"c\0" + struct.pack(">IhIhih", 0, 0, oid, -1, -1, 0) for oid in oids)
        shape = Shape(m.frame(m.ROW_DESCRIPTION, struct.pack(">h", count) + described), formats)
        row = m.frame(m.DATA_ROW, packed(pieces(data, count, rng)))
        raw = rng.choice([row * rng.randrange(1, 4), m.frame(m.DATA_ROW, data), data])
        try:
            mask = RowMask(
                both, shape, [None, PERSON, *[None] * (count - 2)], typed, rng.choice(["Deny", "Redact", "Allow"])
            )
            with bounded(len(raw)):
                found = frames(bytes(mask.rows(raw)), m.DATA_ROW)
        except ChaperoneError:
            return
        assert all(len(cells(body)) == count for body in found)
        assert not any(CANARY in body for body in found)

    return target, values()


def copy() -> tuple[Target, list[bytes]]:
    """However COPY's data is cut the same records come out; a classified value is gone."""
    both = masker()
    forms = [
        CopyForm(), CopyForm("text", b"|", b""), CopyForm("csv", b",", b""),
        CopyForm("csv", b";", b"NULL", True, b"'", b"~"),
        CopyForm("binary"),
    ]  # fmt: skip

    def records(form: CopyForm, oids: list[int] | None, parts: list[bytes]) -> tuple[bytes, bool]:
        response = m.frame(m.COPY_OUT_RESPONSE, bytes([form.format == "binary"]) + struct.pack(">h", 3) + bytes(6))
        out = b""
        try:
            mask = CopyMask(both, response, form, [None, PERSON, None], typed, oids)
            for part in parts:
                out += bytes(mask.rows(part))
            out += mask.finish()
        except (ProtocolError, Unmaskable):
            return out, True
        return out, False

    def target(data: bytes, rng: random.Random) -> None:
        form = rng.choice(forms)
        oids = rng.choice([None, [rng.choice(OIDS) for _ in range(3)]])
        raw = m.frame(m.COPY_DATA, data)
        if rng.random() < 0.7:
            data = data.replace(CANARY, b"")
            raw = written(form, pieces(data, 3, rng))
        with bounded(len(raw)):
            whole, failed = records(form, oids, [raw])
        parts, in_parts = records(form, oids, cut(raw, rng))
        assert failed == in_parts
        assert failed or whole == parts
        assert CANARY not in b"".join(frames(whole, m.COPY_DATA)) or CANARY in data
        if not failed:
            assert records(form, oids, [whole]) == (whole, False)

    return target, [*values(), b"a\tb\tc\n", b"a,b,c\n", b'"a""b",,"c\n"\n', b"PGCOPY\n\xff\r\n\0" + bytes(8)]


def written(form: CopyForm, row: list[bytes | None]) -> bytes:
    """A row as the server writes it, with what comes before and after, in frames."""
    if form.format == "binary":
        head = b"PGCOPY\n\xff\r\n\0" + bytes(8)
        return m.frame(m.COPY_DATA, head + packed(row)) + m.frame(m.COPY_DATA, b"\xff\xff")
    lines = Lines(form)
    line = form.delimiter.join([lines.field(value) for value in row]) + b"\n"
    return (m.frame(m.COPY_DATA, b"a;b;c\n") if form.has_header else b"") + m.frame(m.COPY_DATA, line)


def server_texts() -> tuple[Target, list[bytes]]:
    """Errors, notices, notifications, settings: well formed, the same when masked again, with nothing of a value."""
    both = masker()

    def shown(raw: bytes) -> bytes:
        if raw[:1] == b"A":
            return textmask.mask_notification(raw, both, "Deny")
        return (textmask.mask_parameter_status if raw[:1] == b"S" else textmask.mask_error)(raw, both)

    def target(data: bytes, rng: random.Random) -> None:
        raw = m.frame(rng.choice(b"ENSA"), data)
        may_show = True
        if rng.random() < 0.5:
            said = [
                (rng.choice(b"SVCMDHPpqWFLRcdnst"), part or b"") for part in pieces(data.replace(b"\0", b""), 5, rng)
            ]
            may_show = any(CANARY in text and key in b"SVPFLR" for key, text in said) or CANARY in data
            may_show |= {ord("P"), ord("F")} <= {key for key, _ in said}
            raw = m.frame(m.ERROR_RESPONSE, b"".join(bytes((key,)) + text + b"\0" for key, text in said) + b"\0")
        try:
            with bounded(len(raw)):
                once = shown(raw)
        except ProtocolError:
            return
        assert frames(once, raw[0])
        assert shown(once) == once
        assert may_show or CANARY not in once

    field = b'SERROR\0VERROR\0C42P01\0Mrelation "x" does not exist\0P15\0Fparse_relation.c\0L1\0RparserOpenTable\0\0'
    return target, [
        field, field.replace(b"P15", b"Wjane.roe@example.org"), "Mein — „Name“\0\0".encode(),
        b"TimeZone\0Europe/Berlin\0",
        b"\0\0\0\1channel\0payload\0", b"SNOTICE\0C00000\0Mjane.roe@example.org\0Rexec_stmt_raise\0\0", b"M\xe9\0\0",
    ]  # fmt: skip


def lineage() -> tuple[Target, list[bytes]]:
    """Never raises but `NotLookedUp`, and says why where something is not resolved."""
    schema = Schema()
    columns = tuple(Column(name, number, 25) for number, name in enumerate(("id", "email", "name", "note"), 1))
    for oid, name in enumerate(("c", "o", "orders", "people"), 1):
        schema.add(f"public.{name}", Relation(oid, f"public.{name}", "r", columns))

    def target(data: bytes, _: random.Random) -> None:
        try:
            statements = grammar.parse(data[:INLINE_BYTES])
        except grammar.ParseError:
            return
        for one in statements:
            try:
                with bounded(50 * len(data)):
                    found = trace(one["stmt"], schema)
            except NotLookedUp:
                continue
            assert found.why or not found.is_opaque
            assert found.why or not any(output.is_opaque for output in found.outputs or ())

    return target, texts()


TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    "frontend": frontend,
    "backend": backend,
    "classifier": classifier,
    "detectors": detectors,
    "session": session,
    "rows": rows,
    "copy": copy,
    "texts": server_texts,
    "lineage": lineage,
}
