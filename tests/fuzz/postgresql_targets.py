"""PostgreSQL: wire, session, statements, and where columns come from."""

from __future__ import annotations

import random
from collections.abc import Callable

from material import Target, bounded, cut, texts
from play import Play

from chaperone_sidecar.command import Effect
from chaperone_sidecar.effects import Close, SessionEffect, Wait
from chaperone_sidecar.errors import ChaperoneError, ProtocolError
from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.classify import classify
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, FrontendCodec, Rows
from chaperone_sidecar.protocols.postgresql.grammar import INLINE_BYTES
from chaperone_sidecar.protocols.postgresql.lineage import trace
from chaperone_sidecar.protocols.postgresql.schema import Column, NotLookedUp, Relation, Schema

DECODERS: dict[int, Callable[[bytes], object]] = {
    m.QUERY: m.decode_query,
    m.PARSE: m.decode_parse,
    m.BIND: m.decode_bind,
    m.EXECUTE: m.decode_execute,
    m.DESCRIBE: m.decode_describe,
    m.CLOSE: m.decode_close,
}


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
