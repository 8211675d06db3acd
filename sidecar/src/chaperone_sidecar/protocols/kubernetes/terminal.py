"""The client's side of a program's streams: WebSocket v4 and v5, and SPDY/3.1, behind one shape.

`read` gives what the client wrote: a stream's number and bytes, CLOSE where standard input ends, None where the client
is gone. `write` suspends while the client does not take what it gets.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Protocol

from aiohttp import WSMsgType, web

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import channels, spdy

STREAMS_TIMEOUT_S: Final = 30.0  # the API server gives clients as long to open their streams
MAX_WAITING_BYTES: Final = 1 << 20  # of input that the program has not taken; then nothing more is read
CLOSE_TIMEOUT_S: Final = 5.0

type Given = tuple[int, bytes] | None


class Terminal(Protocol):
    """What both are."""

    async def begin(self) -> None:
        """Upgrade the connection, and wait until the client has its streams open."""
        ...

    async def read(self) -> Given:
        """What the client wrote next.

        Raises:
            ProtocolError: what it must not.
        """
        ...

    async def write(self, stream: int, data: bytes) -> None:
        """Give it something."""
        ...

    async def end(self, status: bytes) -> None:
        """Say how the program ended, and close."""
        ...


class WebSocketTerminal:
    """Over WebSocket.

    Args:
        http: the request.
        protocol: the one of the client's that was chosen.
        streams: those that the request asks for.
    """

    def __init__(self, http: web.BaseRequest, protocol: str, streams: frozenset[int]) -> None:
        self._http = http
        self._protocol = protocol
        self._streams = streams
        self.response = web.WebSocketResponse(
            protocols=(protocol,), max_msg_size=channels.MAX_MESSAGE_BYTES, compress=False, timeout=CLOSE_TIMEOUT_S
        )

    async def begin(self) -> None:
        """See `Terminal`."""
        self.response.headers["Server"] = "chaperone"
        await self.response.prepare(self._http)

    async def read(self) -> Given:
        """See `Terminal`."""
        while True:
            message = await self.response.receive()
            if message.type is WSMsgType.BINARY:
                raw = message.data
            elif message.type is WSMsgType.TEXT:  # what the Python client writes text as
                raw = message.data.encode()
            else:
                return None
            found = channels.from_client(raw, self._streams, self._protocol)
            if found is not None:
                return found

    async def write(self, stream: int, data: bytes) -> None:
        """See `Terminal`."""
        await self.response.send_bytes(bytes([stream]) + data)

    async def end(self, status: bytes) -> None:
        """See `Terminal`."""
        if status:
            await self.write(channels.ERROR, status)
        await self.response.close()


class SpdyTerminal(asyncio.Protocol):
    """Over SPDY/3.1: takes the connection over from the server of HTTP.

    Args:
        http: the request.
        streams: those that the request asks for.
    """

    def __init__(self, http: web.BaseRequest, streams: frozenset[int]) -> None:
        transport = http.transport
        if transport is None:
            raise ProtocolError("The client is gone.")
        self._transport: Any = transport
        self._server = http.protocol
        self._wanted = streams
        self._codec = spdy.Codec()
        self._numbers: dict[int, int] = {}  # of streams, by what the client calls them
        self._ids: dict[int, int] = {}
        self._given: asyncio.Queue[Given | ProtocolError] = asyncio.Queue()
        self._waiting_bytes = 0
        self._is_open = asyncio.Event()
        self._is_writable = asyncio.Event()
        self._is_writable.set()
        self._is_ended = False
        self._is_gone = asyncio.Event()
        self.response = web.Response()  # nobody sends it: the connection is no HTTP any more

    async def begin(self) -> None:
        """See `Terminal`."""
        self._transport.set_protocol(self)
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: " + channels.SPDY_PROTOCOL.encode() + b"\r\n\r\n"
        )
        try:
            async with asyncio.timeout(STREAMS_TIMEOUT_S):
                await self._is_open.wait()
        except TimeoutError as error:
            self._transport.abort()
            raise ProtocolError("The client did not open its streams in time.") from error

    async def read(self) -> Given:
        """See `Terminal`."""
        found = await self._given.get()
        if isinstance(found, ProtocolError):
            raise found
        if found is not None:
            self._waiting_bytes -= len(found[1])
            if self._waiting_bytes <= MAX_WAITING_BYTES:
                self._transport.resume_reading()
        return found

    async def write(self, stream: int, data: bytes) -> None:
        """See `Terminal`."""
        self._transport.write(self._codec.data(self._ids[stream], data))
        await self._is_writable.wait()

    async def end(self, status: bytes) -> None:
        """See `Terminal`."""
        for stream in (channels.STDOUT, channels.STDERR, channels.ERROR):
            if stream in self._ids:
                last = status if stream == channels.ERROR else b""
                self._transport.write(self._codec.data(self._ids[stream], last, is_fin=True))
        self._transport.write(self._codec.go_away())
        # What the client still writes would be answered with a reset, and that takes from it what it has not read yet.
        self._is_ended = True
        self._transport.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._is_gone.wait()
        self._transport.close()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._is_ended:
            return
        self._codec.feed(data)
        try:
            while not isinstance(frame := self._codec.next(), spdy.NeedData):
                self._take(frame)
        except ProtocolError as error:
            self._given.put_nowait(error)
            self._is_open.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._is_gone.set()
        self._given.put_nowait(None)
        self._is_open.set()
        self._is_writable.set()
        self._server.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing."""
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._is_writable.set()

    def _take(self, frame: spdy.Frame) -> None:
        match frame:
            case spdy.SynStream():
                self._open(frame)
            case spdy.Data():
                self._give(self._numbers[frame.stream], frame.data, is_fin=frame.is_fin)
            case spdy.Ping():
                self._transport.write(self._codec.ping(frame.id))
            case spdy.Reset() if self._numbers.get(frame.stream) == channels.STDIN:
                self._give(channels.STDIN, b"", is_fin=True)
            case _:
                pass

    def _open(self, frame: spdy.SynStream) -> None:
        named = next((value for name, value in frame.headers if name.lower() == "streamtype"), "")
        number = channels.NAMES.get(named, -1)
        if number not in self._wanted or number in self._ids:
            raise ProtocolError("The client opens a stream that the request does not ask for.")
        self._numbers[frame.stream], self._ids[number] = number, frame.stream
        self._transport.write(self._codec.reply(frame.stream))
        if frame.is_fin:
            self._give(number, b"", is_fin=True)
        if self._ids.keys() == self._wanted:
            self._is_open.set()

    def _give(self, number: int, data: bytes, *, is_fin: bool) -> None:
        if data and number not in (channels.STDIN, channels.RESIZE):
            raise ProtocolError("The client writes to a stream that is not its own.")
        if data:
            self._given.put_nowait((number, data))
            self._waiting_bytes += len(data)
            if self._waiting_bytes > MAX_WAITING_BYTES:
                self._transport.pause_reading()
        if is_fin and number == channels.STDIN:
            self._given.put_nowait((channels.CLOSE, bytes([channels.STDIN])))
