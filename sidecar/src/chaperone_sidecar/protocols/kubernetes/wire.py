"""The client's connection of a port-forward, once it is no HTTP any more: bytes of SPDY, or messages of WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Protocol

from aiohttp import WSMsgType, web

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes.pairs import MAX_MESSAGE_BYTES, PROTOCOL

MAX_UNREAD_BYTES: Final = 256 << 10  # then nothing more is taken off the socket
CLOSE_TIMEOUT_S: Final = 2.0  # for the client to read the last words; it may be gone


class Wire(Protocol):
    """What both are."""

    response: web.StreamResponse

    async def begin(self) -> None:
        """Upgrade the connection."""
        ...

    async def read(self) -> bytes:
        """What came next, over WebSocket a message; b"" at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send something; suspends while the client does not take what it gets."""
        ...

    async def close(self) -> None:
        """Close once what was written is sent, or after `CLOSE_TIMEOUT_S`."""
        ...


class WebSocketWire:
    """Over WebSocket.

    Args:
        http: the request.
        protocol: the one of the client's that was chosen.
    """

    def __init__(self, http: web.BaseRequest, protocol: str) -> None:
        self._http = http
        self._socket = web.WebSocketResponse(
            protocols=(protocol,), max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=CLOSE_TIMEOUT_S
        )
        self.response: web.StreamResponse = self._socket

    async def begin(self) -> None:
        """See `Wire`."""
        self.response.headers["Server"] = "chaperone"
        await self.response.prepare(self._http)

    async def read(self) -> bytes:
        """See `Wire`."""
        while True:
            message = await self._socket.receive()
            if message.type is not WSMsgType.BINARY:
                return b""
            if message.data:
                found: bytes = message.data
                return found

    async def write(self, data: bytes) -> None:
        """See `Wire`."""
        with contextlib.suppress(ConnectionError):  # it is closing: `read` says so
            await self._socket.send_bytes(data)

    async def close(self) -> None:
        """See `Wire`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._socket.close()


class SpdyWire(asyncio.Protocol):
    """Without WebSocket: takes the connection over from the server of HTTP.

    Args:
        http: the request.

    Raises:
        ProtocolError: the client is gone.
    """

    def __init__(self, http: web.BaseRequest) -> None:
        transport = http.transport
        if transport is None:
            raise ProtocolError("The client is gone.")
        self._transport: Any = transport
        self._server = http.protocol
        self._unread = bytearray()
        self._came = asyncio.Event()
        self._is_writable = asyncio.Event()
        self._is_writable.set()
        self._is_gone = asyncio.Event()
        self.response = web.StreamResponse()  # nobody sends it: the connection is no HTTP any more

    async def begin(self) -> None:
        """See `Wire`."""
        self._transport.set_protocol(self)
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: " + PROTOCOL.encode() + b"\r\n\r\n"
        )

    async def read(self) -> bytes:
        """See `Wire`."""
        await self._came.wait()
        found = bytes(self._unread)
        self._unread.clear()
        if not self._is_gone.is_set():
            self._came.clear()
            self._transport.resume_reading()
        return found

    async def write(self, data: bytes) -> None:
        """See `Wire`."""
        if not self._is_gone.is_set():
            self._transport.write(data)
        await self._is_writable.wait()

    async def close(self) -> None:
        """See `Wire`."""
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._is_gone.wait()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._unread += data
        self._came.set()
        if len(self._unread) > MAX_UNREAD_BYTES:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._is_gone.set()
        self._came.set()
        self._is_writable.set()
        self._server.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing."""
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._is_writable.set()
