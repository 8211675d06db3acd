"""One connection within a port-forward: a socket that the gateway serves as if the agent had dialled the target.

The gateway's end of a pair of Unix sockets is here, the other end is the target's frontend's, which decides, masks and
records what goes through it and dials the target itself. Bytes wait in the sockets' buffers and in one of `feed`'s,
which its caller bounds by `waiting_bytes`; the other way nothing is read before the client has taken what came before.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from chaperone_sidecar.config import Target
from chaperone_sidecar.frontend import Services

READ_BYTES: Final = 32 << 10  # what clients expect of one frame

type Deliver = Callable[[bytes], Awaitable[None]]


class Tunnel:
    """One.

    Args:
        services: of the gateway.
        name: of the connection, which records of the session within name as its client.
        deliver: gives the client bytes; suspends while it does not take them.
        on_taken: told when something that was fed has gone on.
    """

    def __init__(self, services: Services, name: str, deliver: Deliver, on_taken: Callable[[], None]) -> None:
        self._services = services
        self._name = name
        self._deliver = deliver
        self._on_taken = on_taken
        self._fed = bytearray()
        self._in_hand = 0  # bytes that are being sent
        self._came = asyncio.Event()
        self._ours: socket.socket | None = None
        self._is_finished = self._is_dropped = False

    @property
    def waiting_bytes(self) -> int:
        """What was fed and has not gone on."""
        return len(self._fed) + self._in_hand

    def feed(self, data: bytes) -> None:
        """Bytes of the client."""
        self._fed += data
        self._came.set()

    def finish(self) -> None:
        """The client writes no more."""
        self._is_finished = True
        self._came.set()

    def drop(self) -> None:
        """The client gave it up; `run` returns."""
        self._is_dropped = True
        if self._ours is not None:
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)

    async def run(self, target: Target) -> None:
        """Serve it until one side ends.

        Raises:
            OSError: there is no socket to be had. What `deliver` raises.
        """
        if self._is_dropped:
            return
        ours, theirs = _pair(self._name)
        self._ours = ours
        self._services.forward(theirs, target)
        writing = asyncio.create_task(self._write(ours))
        try:
            await self._read(ours)
        finally:
            writing.cancel()
            try:
                await asyncio.wait([writing])
            finally:
                self._ours = None
                ours.close()
                self._fed.clear()
                self._in_hand = 0
                self._on_taken()

    async def _read(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):  # a session that is broken off
            while data := await loop.sock_recv(ours, READ_BYTES):
                if not self._is_dropped:
                    await self._deliver(data)

    async def _write(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the session has ended: what is read says so
            while True:
                await self._came.wait()
                self._came.clear()
                data = bytes(self._fed)
                self._fed.clear()
                self._in_hand = len(data)
                await loop.sock_sendall(ours, data)
                self._in_hand = 0
                self._on_taken()
                if self._is_finished and not self._fed:
                    ours.shutdown(socket.SHUT_WR)
                    return


def _pair(name: str) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        theirs.setblocking(False)
        ours.bind(b"\0" + name.encode())
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ours, theirs
