"""One connection: bytes in, bytes out, with back-pressure both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

HIGH_BYTES: Final = 256 << 10  # received and not yet taken; past it the peer has to wait


class Gone(ConnectionError):
    """The peer is not there any more."""


class Wire(asyncio.Protocol):
    """See the module.

    Args:
        on_lost: told once, when the peer is gone or says no more.
    """

    def __init__(self, on_lost: Callable[[], None] = lambda: None) -> None:
        self._on_lost = on_lost
        self._inbox = bytearray()
        self._arrived = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._is_paused = False
        self.transport: asyncio.Transport | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # noqa: S101 - uvloop's own class
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._inbox += data
        self._arrived.set()
        if len(self._inbox) > HIGH_BYTES and self.transport is not None and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """No peer of HTTP goes on listening after it has ended its side."""
        self._lose()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._lose()

    def pause_writing(self) -> None:
        """The peer is slow."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._may_write.set()

    async def receive(self) -> bytes:
        """What came, b"" once the peer says no more."""
        while not self._inbox and not self.is_lost:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._inbox)
        self._inbox.clear()
        if self._is_paused and self.transport is not None and not self.is_lost:
            self._is_paused = False
            self.transport.resume_reading()
        return data

    async def send(self, data: bytes) -> None:
        """Write, and wait while the peer is slow.

        Raises:
            Gone: it is not there.
        """
        self.write(data)
        if not self._may_write.is_set():
            await self._may_write.wait()
            self.write(b"")

    def write(self, data: bytes) -> None:
        """Write without waiting; raises as `send`."""
        if self.is_lost or self.transport is None:
            raise Gone("the peer has closed the connection")
        if data:
            self.transport.write(data)

    def close(self) -> None:
        """End it once what was written is sent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Break it off."""
        if self.transport is not None:
            self.transport.abort()

    def _lose(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self._arrived.set()
        self._may_write.set()
        self._on_lost()
