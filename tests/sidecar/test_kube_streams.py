"""SPDY/3.1 and the channels of exec: whatever bytes come, and however they are cut."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import channels, request, spdy
from chaperone_sidecar.protocols.kubernetes.channels import Ended


class Client:
    """Writes what a client writes."""

    def __init__(self) -> None:
        self._writer = zlib.compressobj(zdict=spdy.DICTIONARY)

    def opened(self, stream: int, *pairs: tuple[str, str], flags: int = 0) -> bytes:
        """A SYN_STREAM."""
        packed = self._writer.compress(spdy.block_of(pairs)) + self._writer.flush(zlib.Z_SYNC_FLUSH)
        return control(spdy.SYN_STREAM, struct.pack(">IIBB", stream, 0, 0, 0) + packed, flags)


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return struct.pack(">II", 1 << 31 | 3 << 16 | kind, flags << 24 | len(body)) + body


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    """A data frame."""
    return struct.pack(">II", stream, flags << 24 | len(payload)) + payload


def frames(codec: spdy.Codec, *parts: bytes) -> list[spdy.Frame]:
    """All frames of what comes in these parts."""
    found: list[spdy.Frame] = []
    for one in parts:
        codec.feed(one)
        while not isinstance(frame := codec.next(), spdy.NeedData):
            found.append(frame)
    return found


def dialogue() -> bytes:
    """What kubectl sends for `exec -i`."""
    client = Client()
    return b"".join(
        [
            client.opened(1, ("streamtype", "error")), client.opened(3, ("streamtype", "stdin")),
            client.opened(5, ("streamtype", "stdout")), data(3, b"hello\n"), control(spdy.PING, struct.pack(">I", 7)),
            data(3, b"", spdy.FLAG_FIN), control(spdy.WINDOW_UPDATE, struct.pack(">II", 5, 99)),
            control(spdy.RST_STREAM, struct.pack(">II", 5, 5)), control(spdy.GOAWAY, struct.pack(">II", 5, 0)),
        ]
    )  # fmt: skip


EXPECTED = [
    spdy.SynStream(1, (("streamtype", "error"),)), spdy.SynStream(3, (("streamtype", "stdin"),)),
    spdy.SynStream(5, (("streamtype", "stdout"),)), spdy.Data(3, b"hello\n"), spdy.Ping(7), spdy.Data(3, b"", True),
    spdy.Ignored(spdy.WINDOW_UPDATE), spdy.Reset(5), spdy.GoAway(),
]  # fmt: skip


def test_frames_are_the_same_however_bytes_are_cut() -> None:
    whole = dialogue()
    for place in range(len(whole) + 1):
        assert frames(spdy.Codec(), whole[:place], whole[place:]) == EXPECTED
    assert frames(spdy.Codec(), *(whole[i : i + 1] for i in range(len(whole)))) == EXPECTED


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_are_frames_or_a_protocol_error(parts: list[bytes]) -> None:
    codec = spdy.Codec()
    try:
        frames(codec, *parts)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            codec.next()


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 255))
def test_a_changed_byte_is_frames_or_a_protocol_error(place: int, value: int) -> None:
    raw = bytearray(dialogue())
    raw[place % len(raw)] = value
    with contextlib.suppress(ProtocolError):
        frames(spdy.Codec(), bytes(raw))


@pytest.mark.parametrize(
    "raw",
    [
        data(1, b"x"), Client().opened(2, ("streamtype", "error")), data(1, b"")[:4] + struct.pack(">I", 0xFFFFFF),
        control(spdy.SYN_STREAM, b"abc"), control(spdy.PING, b"12345"), control(5, b""), control(99, b""),
        struct.pack(">II", 1 << 31 | 2 << 16 | spdy.PING, 4) + b"0000",
        control(spdy.SYN_STREAM, struct.pack(">IIBB", 1, 0, 0, 0) + b"not packed"),
        Client().opened(1, ("a", "1"), ("A", "2")), Client().opened(1, ("a", "b" * 20_000)),
    ],
    ids=lambda raw: raw[:12].hex(),
)  # fmt: skip
def test_frames_that_no_client_sends_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames(spdy.Codec(), raw)


def test_streams_and_memory_are_bounded() -> None:
    client, codec = Client(), spdy.Codec()
    for number in range(spdy.MAX_STREAMS):
        frames(codec, client.opened(2 * number + 1, ("streamtype", "x")))
    with pytest.raises(ProtocolError):
        frames(codec, client.opened(2 * spdy.MAX_STREAMS + 1, ("streamtype", "x")))
    bomb = zlib.compressobj(9, zdict=spdy.DICTIONARY)
    packed = bomb.compress(bytes(8 << 20)) + bomb.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(ProtocolError):
        frames(spdy.Codec(), control(spdy.SYN_STREAM, struct.pack(">IIBB", 1, 0, 0, 0) + packed))


@settings(deadline=None)
@given(st.binary(max_size=100_000))
def test_data_that_is_written_is_read_again(payload: bytes) -> None:
    written = spdy.Codec().data(1, payload, is_fin=True)
    codec = spdy.Codec()
    frames(codec, Client().opened(1, ("streamtype", "stdin")))
    found = frames(codec, written)
    assert b"".join(one.data for one in found if isinstance(one, spdy.Data)) == payload
    assert [one.is_fin for one in found if isinstance(one, spdy.Data)][-1]


def exec_request(query: str) -> request.Request:
    """Of a query."""
    return request.read("GET", f"/api/v1/namespaces/a/pods/p/exec?command=sh&{query}")


def test_streams_that_a_request_asks_for() -> None:
    assert channels.wanted(exec_request("stdin=true&stdout=1&stderr=true")) == {0, 1, 2, 3}
    assert channels.wanted(exec_request("stdin=true&stdout=1&stderr=true&tty=true")) == {0, 1, 3, 4}
    with pytest.raises(ProtocolError):
        channels.wanted(exec_request("stdin=false"))


def test_client_writes_only_to_its_streams() -> None:
    streams = frozenset({0, 1, 3})
    assert channels.from_client(b"\x00hi", streams, channels.V4) == (0, b"hi")
    assert channels.from_client(b"\x00", streams, channels.V4) is None
    assert channels.from_client(b"\xff\x00", streams, channels.V5) == (channels.CLOSE, b"\x00")
    for message, protocol in (
        (b"", "v5"),
        (b"\x01x", "v5"),
        (b"\x03x", "v5"),
        (b"\x04{}", "v5"),
        (b"\xff\x00", "v4"),
        (b"\xff\x01", "v5"),
    ):
        with pytest.raises(ProtocolError):
            channels.from_client(message, streams, f"{protocol}.channel.k8s.io")
    for message in (b"", b"\x00x", b"\x02x", b"\x04x", b"\x09x"):
        with pytest.raises(ProtocolError):
            channels.from_upstream(message, streams)


def test_how_a_program_ended() -> None:
    assert channels.ended(b'{"metadata":{},"status":"Success"}') == Ended(True, 0)
    cause = b'"details":{"causes":[{"reason":"ExitCode","message":"7"}]}'
    failed = b'{"status":"Failure","message":"m","reason":"NonZeroExitCode",' + cause + b"}"
    assert channels.ended(failed) == Ended(False, 7, "m")
    assert channels.ended(b'{"status":"Failure","message":"gone","reason":"InternalError"}') == Ended(
        False, None, "gone"
    )
    assert not channels.ended(b"\xff").is_ok


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_words_are_an_end_and_any_size_is_one_or_none(raw: bytes) -> None:
    channels.ended(raw)
    channels.size(raw)
