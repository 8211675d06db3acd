"""A connection that is sent no more than its peer takes.

The library sends for as long as the windows of channels last, whatever the network takes, and through the time of a key
exchange it keeps what is to be sent after it. A window is the peer's to choose, up to 4 GiB for each channel: one who
opens it and reads nothing would have all of that kept here. So what writes waits for `taken`, and who has more to
read than that, because of all the answers it asked for, is cut.

The packets kept for after a key exchange are the library's own business. Its version is locked; one that names them
otherwise would end each connection with an error, not let it pass unbounded.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

import asyncssh
from asyncssh.connection import SSHConnection

SENT_BYTES: Final = 1 << 20  # that wait for the network before writers do: enough for a fast one between two turns
MAX_DEFERRED: Final = 64  # packets of 32 KiB that wait for the end of a key exchange before writers do
MAX_UNREAD_BYTES: Final = 32 << 20  # answers of SFTP are 4 MiB at most, and wait one by one on each channel
MAX_UNREAD_DEFERRED: Final = 4096


class Paced(SSHConnection):
    """Either side's connection."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the library's
        super().__init__(*args, **options)
        self._is_full = False
        self._takes = asyncio.Event()
        self._takes.set()

    async def taken(self) -> None:
        """Wait until the peer has taken enough of what it was sent that more may follow, or is gone."""
        await self._takes.wait()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - the library's union
        """See `asyncio.Protocol`."""
        transport.set_write_buffer_limits(high=SENT_BYTES)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None = None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._takes.set()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_full = True
        self._takes.clear()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_full = False
        self._look()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """See `asyncio.Protocol`; who asks on and reads no answer is cut."""
        super().data_received(data, datatype)
        transport: Any = self._transport
        if transport is None or (not self._is_full and len(self._deferred_packets) <= MAX_UNREAD_DEFERRED):
            return
        if transport.get_write_buffer_size() > MAX_UNREAD_BYTES or len(self._deferred_packets) > MAX_UNREAD_DEFERRED:
            self._force_close(asyncssh.ProtocolError("Too much that was sent is not read"))

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:  # noqa: ANN401 - the library's
        """Send, or keep until a key exchange has ended."""
        super().send_packet(pkttype, *args, handler=handler)
        if self._deferred_packets or not self._takes.is_set():
            self._look()

    def _look(self) -> None:
        if self._is_full or len(self._deferred_packets) > MAX_DEFERRED:
            self._takes.clear()
        else:
            self._takes.set()


async def start[Made: SSHConnection](
    connection: socket.socket,
    options: asyncssh.SSHServerConnectionOptions | asyncssh.SSHClientConnectionOptions,
    make: Callable[[asyncio.AbstractEventLoop], Made],
) -> Made:
    """Speak SSH on a connected socket; returns once the log-in is done.

    Args:
        connection: to the peer.
        options: of the library.
        make: the connection, which says with `wait="auth"` what is waited for.

    Raises:
        asyncssh.Error, OSError: it was not done.
    """
    loop = asyncio.get_running_loop()
    options.waiter = loop.create_future()
    _, made = await loop.create_connection(lambda: make(loop), sock=connection)
    try:
        await options.waiter
    except BaseException:
        made.abort()
        raise
    return made
