"""The PostgreSQL codec: the same messages however bytes are cut, caps, and nothing but ProtocolError for the rest."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError, UpstreamUnavailable
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql import scram, startup
from chaperone_sidecar.protocols.postgresql.codec import LONG_ROW_BYTES, BackendCodec, FrontendCodec, Rows

CLIENT_FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=60).map(lambda text: m.encode_query(text.replace(b"\0", b" "))),
        st.binary(max_size=60).map(lambda text: m.encode_parse(b"s", text.replace(b"\0", b" "))),
        st.just(m.SYNC_FRAME),
        st.binary(max_size=300).map(lambda data: m.frame(m.COPY_DATA, data)),
    ),
    max_size=12,
)
SERVER_FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=300).map(lambda data: m.frame(m.DATA_ROW, data)),
        st.just(m.frame(m.COMMAND_COMPLETE, b"SELECT 1\0")),
        st.just(m.frame(m.READY_FOR_QUERY, b"I")),
        st.binary(max_size=100).map(lambda data: m.frame(m.NOTICE_RESPONSE, data)),
    ),
    max_size=15,
)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def _client(pieces: list[bytes]) -> list[bytes]:
    codec, found = FrontendCodec(), []
    codec.started()
    for piece in pieces:
        codec.feed(piece)
        while (frame := codec.next()) is not None:
            found.append(frame.raw)
    return found


def _server(pieces: list[bytes]) -> tuple[list[bytes], int, bytes]:
    codec, frames, rows, everything = BackendCodec(), [], 0, b""
    for piece in pieces:
        codec.feed(piece)
        while (found := codec.next()) is not None:
            if isinstance(found, Rows):
                rows += found.count
                everything += found.data
            else:
                frames.append(found.raw)
                everything += found.raw
    return frames, rows, everything


@given(CLIENT_FRAMES, st.lists(st.integers(0, 5000), max_size=20))
def test_a_clients_messages_are_the_same_however_bytes_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    assert _client(_pieces(b"".join(frames), cuts)) == frames


@given(CLIENT_FRAMES)
def test_a_clients_messages_are_the_same_byte_by_byte(frames: list[bytes]) -> None:
    data = b"".join(frames)
    assert _client([data[n : n + 1] for n in range(len(data))]) == frames


@given(SERVER_FRAMES, st.lists(st.integers(0, 5000), max_size=20))
def test_a_servers_bytes_come_out_in_order_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    others, rows, everything = _server(_pieces(data, cuts))
    assert everything == data
    assert rows == sum(frame[0] == m.DATA_ROW for frame in frames)
    assert others == [frame for frame in frames if frame[0] != m.DATA_ROW]


def test_a_row_longer_than_memory_allows_passes_in_pieces() -> None:
    size = 5 * LONG_ROW_BYTES
    data = m.frame(m.DATA_ROW, b"x" * size) + m.frame(m.READY_FOR_QUERY, b"I")
    codec, largest, total = BackendCodec(), 0, 0
    for begin in range(0, len(data), 65536):
        codec.feed(data[begin : begin + 65536])
        while (found := codec.next()) is not None:
            if isinstance(found, Rows):
                largest, total = max(largest, len(found.data)), total + len(found.data)
            else:
                last = found
    assert total == size + 5
    assert largest <= LONG_ROW_BYTES + 65536
    assert last.type == m.READY_FOR_QUERY


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_of_a_client_end_in_messages_or_a_protocol_error(data: bytes, is_started: bool) -> None:
    codec = FrontendCodec()
    if is_started:
        codec.started()
    codec.feed(data)
    try:
        while (frame := codec.next()) is not None:
            if not is_started:
                m.decode_startup(frame.body)
            for decode in (m.decode_query, m.decode_parse, m.decode_bind, m.decode_execute, m.decode_describe):
                try:
                    decode(frame.body)
                except ProtocolError as error:
                    assert error.side == "client"
    except ProtocolError as error:
        assert error.side == "client"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_of_a_server_end_in_messages_or_a_protocol_error(data: bytes) -> None:
    try:
        _server([data])
    except ProtocolError as error:
        assert error.side == "upstream"


@pytest.mark.parametrize("size", [0, 3, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [m.QUERY, m.BIND, m.PARSE, m.SYNC, m.EXECUTE])
def test_an_impossible_length_is_refused_before_its_bytes_come(kind: int, size: int) -> None:
    codec = FrontendCodec()
    codec.started()
    codec.feed(bytes((kind,)) + size.to_bytes(4, "big"))
    with pytest.raises(ProtocolError):
        codec.next()


@pytest.mark.parametrize("kind", [m.DATA_ROW, m.ERROR_RESPONSE, m.READY_FOR_QUERY, m.ROW_DESCRIPTION])
def test_a_hostile_servers_length_is_refused(kind: int) -> None:
    codec = BackendCodec()
    codec.feed(bytes((kind,)) + (0xFFFFFFFF).to_bytes(4, "big"))
    with pytest.raises(ProtocolError) as refused:
        codec.next()
    assert refused.value.side == "upstream"


def test_copy_both_and_function_call_responses_are_not_in_the_table() -> None:
    for kind in b"WV":
        codec = BackendCodec()
        codec.feed(m.frame(kind, b"\0\0\0"))
        with pytest.raises(ProtocolError):
            codec.next()


@pytest.mark.parametrize("name", ["options", "replication", "search_path", "role", "session_preload_libraries"])
def test_startup_parameters_outside_the_list_are_refused_by_name(name: str) -> None:
    with pytest.raises(ProtocolError, match=name):
        startup.check(m.StartupMessage(3, 0, (("user", "a"), (name, "b"))))


def test_another_encoding_than_utf8_is_refused() -> None:
    with pytest.raises(ProtocolError, match="client_encoding"):
        startup.check(m.StartupMessage(3, 0, (("user", "a"), ("client_encoding", "SJIS"))))


def test_protocol_3_2_and_unknown_options_are_negotiated_down() -> None:
    wanted = startup.check(m.StartupMessage(3, 2, (("user", "a"), ("_pq_.new", "1"))))
    assert wanted.negotiation[:1] == b"v"
    assert wanted.negotiation.endswith(b"_pq_.new\0")


def test_scram_gives_the_proof_of_rfc_7677() -> None:
    exchange = scram.Scram("pencil", b"", b"", server_can_bind=False)
    exchange._nonce = "rOprNGfwEbeRWgbNEkqO"
    exchange._first = "n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    final = exchange.final(scram.derive(*exchange.challenge(challenge)))
    assert final.endswith(b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    exchange.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    with pytest.raises(UpstreamUnavailable, match="impostor"):
        exchange.check(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize(
    "challenge",
    [b"", b"r=other,s=AAAA,i=4096", b"r=NONCEx,s=AAAA,i=1", b"r=NONCEx,s=AAAA,i=99999999", b"r=NONCEx,s=!,i=4096"],
)
def test_a_hostile_scram_challenge_is_refused(challenge: bytes) -> None:
    exchange = scram.Scram("pencil", b"123456789012345678", b"", server_can_bind=False)
    with pytest.raises(UpstreamUnavailable):
        exchange.challenge(challenge.replace(b"NONCE", exchange._nonce.encode()))
