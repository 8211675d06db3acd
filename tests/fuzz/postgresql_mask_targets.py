"""PostgreSQL: masked rows, COPY and texts of the server."""

from __future__ import annotations

import random
import struct

from material import CANARY, PERSON, Target, bounded, cut, masker, pieces, values

from chaperone_sidecar.errors import ChaperoneError, ProtocolError, Unmaskable
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql import textmask
from chaperone_sidecar.protocols.postgresql.copyform import CopyForm, Lines
from chaperone_sidecar.protocols.postgresql.copymask import CopyMask
from chaperone_sidecar.protocols.postgresql.kind import ARRAYS, MULTIRANGES, RANGES, TEXT_OIDS
from chaperone_sidecar.protocols.postgresql.rowmask import RowMask
from chaperone_sidecar.protocols.postgresql.scalar import EXTENSIONS, SCALARS
from chaperone_sidecar.protocols.postgresql.schema import Type
from chaperone_sidecar.protocols.postgresql.shape import Shape

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
