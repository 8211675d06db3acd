"""The connections of a port-forward: two streams each, over SPDY/3.1 or over WebSocket, behind one shape; no I/O.

Over SPDY (`portforward.k8s.io`, also within WebSocket as `SPDY/3.1+portforward.k8s.io`) a client opens a stream for
errors and one for data, with the headers `port` and `requestID`; data goes both ways on the one, the server's words on
the other. Over WebSocket (`v4.channel.k8s.io`) the request names the ports; each has one connection, with the channels
2n for data and 2n+1 for errors, on both of which the server says the port first (two bytes, little-endian).
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import spdy
from chaperone_sidecar.protocols.kubernetes.channels import V4
from chaperone_sidecar.protocols.kubernetes.request import Request

PROTOCOL: Final = "portforward.k8s.io"
TUNNELLED: Final = f"SPDY/3.1+{PROTOCOL}"
PROTOCOLS: Final = (TUNNELLED, V4)
MAX_CONNECTIONS: Final = 64  # at once; each has two sockets in the gateway, and a session
MAX_REQUEST_ID_CHARACTERS: Final = 64  # clients count
MAX_MESSAGE_BYTES: Final = 2 << 20  # of one WebSocket message; the Python client reads up to 1 MiB for one
MAX_WHY_BYTES: Final = 4 << 10


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A connection is there, to a port."""

    number: int
    port: int


class Given(msgspec.Struct, frozen=True, gc=False):
    """Bytes of the client on a connection."""

    number: int
    data: bytes


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The client writes no more on a connection."""

    number: int


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """The client gave a connection up."""

    number: int


class Excess(msgspec.Struct, frozen=True, gc=False):
    """A connection to a port was not taken: there are `MAX_CONNECTIONS`."""

    port: int


type Event = Opened | Given | Ended | Dropped | Excess


class Pairs(Protocol):
    """What both are."""

    @property
    def is_over(self) -> bool:
        """No connection is left, and none can come."""
        ...

    def begin(self) -> tuple[list[bytes], list[Event]]:
        """What the client is sent first, message by message, and what is there at once."""
        ...

    def feed(self, data: bytes) -> list[Event]:
        """What came, over WebSocket a message.

        Raises:
            ProtocolError: what the client must not say.
        """
        ...

    def owed(self) -> bytes:
        """What has to be sent for what came."""
        ...

    def data(self, number: int, data: bytes) -> bytes:
        """Bytes for the client on a connection."""
        ...

    def close(self, number: int, why: str = "") -> bytes:
        """A connection is over; `why` it could not be had, b"" where there is no way to say so."""
        ...


class _Pair:
    """The streams of one connection, 0 for what is not open yet."""

    def __init__(self, request: str, port: int) -> None:
        self.request = request
        self.port = port
        self.data = 0
        self.error = 0

    @property
    def is_whole(self) -> bool:
        return bool(self.data and self.error)


class SpdyPairs:
    """Over SPDY."""

    def __init__(self) -> None:
        # One more than pairs have, so that the stream that is too many can be reset instead of ending all of them.
        self._codec = spdy.Codec(2 * MAX_CONNECTIONS + 1)
        self._pairs: dict[int, _Pair] = {}
        self._numbers: dict[int, int] = {}  # of pairs, by stream
        self._last = 0
        self._owed = bytearray()

    @property
    def is_over(self) -> bool:
        """See `Pairs`. As long as the client is there it may open another one."""
        return False

    def begin(self) -> tuple[list[bytes], list[Event]]:
        """See `Pairs`."""
        return [], []

    def feed(self, data: bytes) -> list[Event]:
        """See `Pairs`."""
        self._codec.feed(data)
        found: list[Event] = []
        while not isinstance(frame := self._codec.next(), spdy.NeedData):
            match frame:
                case spdy.SynStream():
                    found += self._open(frame)
                case spdy.Data():
                    found += self._take(frame)
                case spdy.Reset():
                    found += self._drop(frame.stream)
                case spdy.Ping():
                    self._owed += self._codec.ping(frame.id)
                case _:
                    pass
        return found

    def owed(self) -> bytes:
        """See `Pairs`."""
        found = bytes(self._owed)
        self._owed.clear()
        return found

    def data(self, number: int, data: bytes) -> bytes:
        """See `Pairs`."""
        return self._codec.data(self._pairs[number].data, data)

    def close(self, number: int, why: str = "") -> bytes:
        """See `Pairs`."""
        pair = self._pairs.pop(number)
        last = self._codec.data(pair.error, why.encode()[:MAX_WHY_BYTES], is_fin=True)
        last += self._codec.data(pair.data, b"", is_fin=True)
        self._forget(pair)
        return last

    def _open(self, frame: spdy.SynStream) -> list[Event]:
        kind, port, request = _headers(frame)
        number, pair = next(((key, one) for key, one in self._pairs.items() if one.request == request), (0, None))
        if pair is None:
            if len(self._pairs) >= MAX_CONNECTIONS:
                self._owed += self._codec.reset(frame.stream)
                return [Excess(port)]
            self._last = number = self._last + 1
            pair = self._pairs[number] = _Pair(request, port)
        if pair.port != port or getattr(pair, kind):
            raise ProtocolError("The streams of a forwarded connection do not go together.")
        setattr(pair, kind, frame.stream)
        self._numbers[frame.stream] = number
        self._owed += self._codec.reply(frame.stream)
        found: list[Event] = [Opened(number, port)] if pair.is_whole else []
        if frame.is_fin and kind == "data":
            found += self._take(spdy.Data(frame.stream, b"", is_fin=True))
        return found

    def _take(self, frame: spdy.Data) -> list[Event]:
        number = self._numbers[frame.stream]
        pair = self._pairs[number]
        if frame.stream == pair.error:
            if frame.data:
                raise ProtocolError("The client writes to a stream that is not its own.")
            return []
        if not pair.is_whole:
            raise ProtocolError("Data came before both streams of a forwarded connection were there.")
        found: list[Event] = [Given(number, frame.data)] if frame.data else []
        return [*found, Ended(number)] if frame.is_fin else found

    def _drop(self, stream: int) -> list[Event]:
        number = self._numbers.pop(stream, None)
        if number is None:
            return []
        pair = self._pairs[number]
        if pair.is_whole:
            return [Dropped(number)]
        del self._pairs[number]
        return []

    def _forget(self, pair: _Pair) -> None:
        for stream in (pair.data, pair.error):
            self._codec.forget(stream)
            self._numbers.pop(stream, None)


def _headers(frame: spdy.SynStream) -> tuple[str, int, str]:
    """What a stream is for: data or error, the port, and which connection it belongs to."""
    found = {name.lower(): value for name, value in frame.headers}
    kind, request = found.get("streamtype", ""), found.get("requestid", "")
    if kind not in ("data", "error") or not 0 < len(request) <= MAX_REQUEST_ID_CHARACTERS:
        raise ProtocolError("A stream says not for what connection it is, and of what kind.")
    return kind, _port(found.get("port", "")), request


class ChannelPairs:
    """Over WebSocket's channels.

    Args:
        ports: that the request names.
    """

    def __init__(self, ports: tuple[int, ...]) -> None:
        self._ports = ports
        self._open = set(range(len(ports)))

    @property
    def is_over(self) -> bool:
        """See `Pairs`."""
        return not self._open

    def begin(self) -> tuple[list[bytes], list[Event]]:
        """See `Pairs`."""
        messages = [
            bytes([channel]) + port.to_bytes(2, "little")
            for number, port in enumerate(self._ports)
            for channel in (2 * number, 2 * number + 1)
        ]
        return messages, [Opened(number, port) for number, port in enumerate(self._ports)]

    def feed(self, data: bytes) -> list[Event]:
        """See `Pairs`."""
        number, is_error = divmod(data[0], 2) if data else (0, 1)
        if is_error or number >= len(self._ports):
            raise ProtocolError("A message is for a channel that the client does not write to.")
        return [Given(number, data[1:])] if len(data) > 1 and number in self._open else []

    def owed(self) -> bytes:
        """See `Pairs`."""
        return b""

    def data(self, number: int, data: bytes) -> bytes:
        """See `Pairs`."""
        return bytes([2 * number]) + data

    def close(self, number: int, why: str = "") -> bytes:
        """See `Pairs`. The end of one connection beside others has no form here."""
        self._open.discard(number)
        return bytes([2 * number + 1]) + why.encode()[:MAX_WHY_BYTES] if why else b""


def ports(request: Request) -> tuple[int, ...]:
    """The ports that a request names, for `ChannelPairs`.

    Raises:
        ProtocolError: none, too many, or what is no port.
    """
    named = [one for value in request.parameters("ports") for one in value.split(",")]
    if not 0 < len(named) <= MAX_CONNECTIONS:
        raise ProtocolError(f"Port-forward over WebSocket needs ports, at most {MAX_CONNECTIONS}, in the query.")
    return tuple(map(_port, named))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 1 << 16):
        raise ProtocolError("A port is a number from 1 to 65535.")
    return int(text)
