"""The connections of a port-forward: whatever bytes come, and however they are cut."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import pairs, request, spdy
from chaperone_sidecar.protocols.kubernetes.pairs import ChannelPairs, Dropped, Ended, Excess, Given, Opened, SpdyPairs


class Client:
    """Writes what kubectl writes."""

    def __init__(self) -> None:
        self._writer = zlib.compressobj(zdict=spdy.DICTIONARY)

    def opened(self, stream: int, kind: str, identifier: str = "0", port: str = "5432") -> bytes:
        """A SYN_STREAM."""
        block = spdy.block_of((("streamtype", kind), ("port", port), ("requestid", identifier)))
        packed = self._writer.compress(block) + self._writer.flush(zlib.Z_SYNC_FLUSH)
        return control(spdy.SYN_STREAM, struct.pack(">IIBB", stream, 0, 0, 0) + packed)

    def pair(self, number: int, port: str = "5432") -> bytes:
        """Both streams of the connection of that number, of which the one for errors is not written to."""
        first = 4 * number + 1
        return b"".join(
            [
                self.opened(first, "error", str(number), port), data(first, b"", spdy.FLAG_FIN),
                self.opened(first + 2, "data", str(number), port),
            ]
        )  # fmt: skip


def control(kind: int, body: bytes) -> bytes:
    """A control frame."""
    return struct.pack(">II", 1 << 31 | 3 << 16 | kind, len(body)) + body


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    """A data frame."""
    return struct.pack(">II", stream, flags << 24 | len(payload)) + payload


def reset(stream: int) -> bytes:
    """RST_STREAM."""
    return control(spdy.RST_STREAM, struct.pack(">II", stream, 5))


def dialogue() -> bytes:
    """Two connections, one of which ends and one of which is given up."""
    client = Client()
    return b"".join(
        [
            client.pair(0), data(3, b"one"), client.pair(1, "80"), control(spdy.PING, struct.pack(">I", 7)),
            data(7, b"two"), data(3, b"", spdy.FLAG_FIN), reset(7), data(7, b"late"),
        ]
    )  # fmt: skip


EXPECTED = [
    Opened(1, 5432), Given(1, b"one"), Opened(2, 80), Given(2, b"two"), Ended(1), Dropped(2),
]  # fmt: skip


def test_events_are_the_same_however_bytes_are_cut() -> None:
    whole = dialogue()
    for place in range(len(whole) + 1):
        found = SpdyPairs()
        assert found.feed(whole[:place]) + found.feed(whole[place:]) == EXPECTED
        replies = found.owed()
        assert replies.count(struct.pack(">HH", 0x8003, spdy.SYN_REPLY)) == 4
        assert found.owed() == b""


def test_a_connection_that_is_over_is_forgotten_and_its_place_is_free() -> None:
    client, found = Client(), SpdyPairs()
    for number in range(3 * pairs.MAX_CONNECTIONS):
        assert found.feed(client.pair(number)) == [Opened(number + 1, 5432)]
        last = found.close(number + 1, "no" if number % 2 else "")
        assert (b"no" in last) == bool(number % 2)
        assert found.feed(data(4 * number + 3, b"late") + reset(4 * number + 3)) == []


def test_connections_over_the_limit_are_reset_and_the_others_go_on() -> None:
    client, found = Client(), SpdyPairs()
    for number in range(pairs.MAX_CONNECTIONS):
        found.feed(client.pair(number))
    found.owed()
    number = pairs.MAX_CONNECTIONS
    assert found.feed(client.opened(4 * number + 1, "error", "more")) == [Excess(5432)]
    assert found.owed() == control(spdy.RST_STREAM, struct.pack(">II", 4 * number + 1, spdy.REFUSED_STREAM))
    assert found.feed(data(3, b"goes on")) == [Given(1, b"goes on")]
    found.close(1)
    assert found.feed(client.opened(4 * number + 5, "error", "again")) == []
    assert found.feed(client.opened(4 * number + 7, "data", "again")) == [Opened(number + 1, 5432)]


def written(*frames: bytes) -> None:
    """All of it, to a new one."""
    SpdyPairs().feed(b"".join(frames))


def test_what_no_client_says_is_refused() -> None:
    for kind, identifier, port in (("stdin", "1", "80"), ("data", "", "80"), ("data", "1", "0"), ("data", "1", "+80"),
                                   ("data", "1", "65536"), ("data", "1", ""), ("error", "x" * 65, "80")):  # fmt: skip
        with pytest.raises(ProtocolError):
            written(Client().opened(1, kind, identifier, port))
    for second in (("data", "1", "81"), ("error", "1", "80")):
        client = Client()
        with pytest.raises(ProtocolError):
            written(client.opened(1, "error", "1", "80"), client.opened(3, *second))
    with pytest.raises(ProtocolError):
        written(Client().opened(1, "error"), data(1, b"words on the stream for errors"))
    with pytest.raises(ProtocolError):
        written(Client().opened(1, "data"), data(1, b"before the other stream"))
    with pytest.raises(ProtocolError):
        written(data(1, b"on no stream"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3))
def test_changed_bytes_are_events_or_a_protocol_error(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(dialogue())
    for place, value in changes:
        raw[place % len(raw)] = value
    found = SpdyPairs()
    try:
        events = found.feed(bytes(raw))
    except ProtocolError:
        return
    opened = [one.number for one in events if isinstance(one, Opened)]
    assert len(set(opened)) == len(opened)
    assert {one.number for one in events if isinstance(one, Given | Ended | Dropped)} <= set(opened)


def test_channels_begin_with_their_ports() -> None:
    found = ChannelPairs((5432, 80))
    messages, events = found.begin()
    assert messages == [b"\x00\x38\x15", b"\x01\x38\x15", b"\x02\x50\x00", b"\x03\x50\x00"]
    assert events == [Opened(0, 5432), Opened(1, 80)]
    assert found.feed(b"\x02hello") == [Given(1, b"hello")]
    assert found.feed(b"\x02") == []
    assert found.data(1, b"answer") == b"\x02answer"
    assert found.close(0, "why") == b"\x01why"
    assert not found.is_over
    assert found.feed(b"\x00late") == []
    assert found.close(1) == b""
    assert found.is_over
    for message in (b"", b"\x01x", b"\x03x", b"\x04x", b"\xffx"):
        with pytest.raises(ProtocolError):
            found.feed(message)


def asked(query: str) -> request.Request:
    """A request with that query."""
    return request.read("GET", f"/api/v1/namespaces/a/pods/p/portforward?{query}")


def test_ports_that_a_request_names() -> None:
    assert pairs.ports(asked("ports=80")) == (80,)
    assert pairs.ports(asked("ports=80,5432&ports=81")) == (80, 5432, 81)
    many = ",".join(map(str, range(1, pairs.MAX_CONNECTIONS + 2)))
    for query in ("", "ports=", "ports=80,", "ports=0", "ports=65536", "ports=x", "ports=-1", f"ports={many}"):
        with pytest.raises(ProtocolError):
            pairs.ports(asked(query))
