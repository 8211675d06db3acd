"""Packets and rows of MySQL: however bytes are cut, whatever they are."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.mysql import auth, messages, rows
from chaperone_sidecar.protocols.mysql.classify import classify
from chaperone_sidecar.protocols.mysql.codec import Codec, Packet
from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.messages import Column, packet
from chaperone_sidecar.protocols.mysql.prepared import Statement, bind

payloads = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6)


def _taken(codec: Codec) -> list[bytes]:
    found = []
    while (one := codec.next()) is not None:
        assert isinstance(one, Packet)
        found.append(one.payload)
    return found


@settings(deadline=None, max_examples=60)
@given(payloads, st.lists(st.integers(0, 300), max_size=8))
def test_the_same_payloads_however_bytes_are_cut(wanted: list[bytes], cuts: list[int]) -> None:
    data = b"".join(packet(number, payload) for number, payload in enumerate(wanted))
    codec, found, place = Codec("upstream"), [], 0
    for cut in [*sorted(cuts), len(data)]:
        codec.feed(data[place:cut])
        place = max(place, min(cut, len(data)))
        found += _taken(codec)
    assert found == wanted


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60), st.sampled_from(["client", "upstream"]))
def test_any_bytes_give_payloads_or_an_error_of_the_protocol(data: bytes, side: messages.Side) -> None:
    codec = Codec(side)
    codec.feed(data)
    try:
        _taken(codec)
    except ProtocolError as error:
        assert error.side == side


def test_a_payload_in_several_packets_is_one() -> None:
    long = b"x" * (messages.MAX_PAYLOAD + 5)
    codec = Codec("upstream")
    codec.feed(packet(0, long) + packet(2, b"next"))
    assert [len(one) for one in _taken(codec)] == [len(long), 4]


def test_a_client_may_not_continue_a_packet() -> None:
    codec = Codec("client")
    codec.feed(packet(0, b"x" * messages.MAX_PAYLOAD))
    with pytest.raises(ProtocolError, match="16 MiB"):
        codec.next()


def test_a_packet_out_of_its_order_is_refused() -> None:
    codec = Codec("upstream")
    codec.expect(1)
    codec.feed(packet(2, b"x"))
    with pytest.raises(ProtocolError, match="order"):
        codec.next()


DECODERS: dict[str, Callable[[bytes], object]] = {
    "handshake": messages.decode_handshake,
    "response": messages.decode_handshake_response,
    "column": messages.decode_column,
    "ok": messages.decode_ok,
    "eof": messages.decode_eof,
    "err": messages.decode_err,
    "prepared": messages.decode_prepared,
    "text row": lambda data: rows.text_cells(data, 3),
    "binary row": lambda data: rows.binary_cells(data, COLUMNS),
}

KINDS = (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 15, 16, 245, 246, 249, 252, 253, 254, 255)
COLUMNS = [Column("s", "t", "t", f"c{kind}", f"c{kind}", 45, kind, 0) for kind in KINDS]


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=80))
def test_any_payload_is_read_or_refused(name: str, data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        DECODERS[name](data)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 65535), st.integers(0, 255))
def test_columns_are_what_they_were(name: str, table: str, collation: int, kind: int) -> None:
    column = Column("s", table, "org", name, "org_name", collation, kind, 7)
    assert messages.decode_column(messages.encode_column(column)) == column


_SIZES = {1: 1, 2: 2, 13: 2, 3: 4, 9: 4, 8: 8, 4: 4, 5: 8}


@st.composite
def cells(draw: st.DrawFn) -> list[bytes | None]:
    found: list[bytes | None] = []
    for kind in KINDS:
        if draw(st.booleans()):
            found.append(None)
        elif kind in _SIZES:
            found.append(draw(st.binary(min_size=_SIZES[kind], max_size=_SIZES[kind])))
        elif kind in (7, 10, 12):
            found.append(draw(st.sampled_from([b"", bytes(4), bytes(7), bytes(11)])))
        elif kind == 11:
            found.append(draw(st.sampled_from([b"", bytes(8), bytes(12)])))
        else:
            found.append(draw(st.binary(max_size=300)))
    return found


@settings(deadline=None, max_examples=60)
@given(cells())
def test_binary_rows_are_what_they_were(row: list[bytes | None]) -> None:
    assert rows.binary_cells(rows.binary_row(row, COLUMNS), COLUMNS) == row
    assert all(
        isinstance(rows.shown(one, column), bytes) for one, column in zip(row, COLUMNS, strict=True) if one is not None
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.binary(max_size=300), min_size=1, max_size=5))
def test_text_rows_are_what_they_were(row: list[bytes | None]) -> None:
    assert rows.text_cells(rows.text_row(row), len(row)) == row


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 4))
def test_any_execution_is_read_or_refused(payload: bytes, params: int) -> None:
    statement = Statement(b"", classify(b"select 1", Context("")), params)
    try:
        values, types = bind(statement, payload)
        assert len(values) == len(types) == params
    except ProtocolError as error:
        assert error.side == "client"


def test_ed25519_signs_as_the_standard_does() -> None:
    """With a password of 32 bytes, MariaDB's key is that of RFC 8032."""
    password, nonce = hashlib.sha256(b"seed").digest(), b"n" * 32
    assert auth.ed25519(password, nonce) == Ed25519PrivateKey.from_private_bytes(password).sign(nonce)
