"""The transparent listener: takes what the fence redirects and gives it to the target that the destination names.

The destination that the agent dialled is the kernel's word, not the agent's: virtual addresses name their target
alone, and a destination that no target declares is reset and recorded.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Final

from chaperone_sidecar.config import IPAddress, Routes, Target
from chaperone_sidecar.dns import loopbacks
from chaperone_sidecar.errors import ConfigError

logger = logging.getLogger(__name__)

BACKLOG: Final = 128
SO_ORIGINAL_DST: Final = 80  # SOL_IP and SOL_IPV6 alike; linux/netfilter_ipv4.h, ip6_tables.h
NO_FILES_PAUSE_S: Final = 0.2  # when the process has no descriptor left for another connection

type Take = Callable[[socket.socket, Target], Coroutine[None, None, None]]
type Deny = Callable[[str, str, int, str], None]


class Listener:
    """Accepts connections on loopback, where the fence redirects them.

    Args:
        take: serves a connection to a target.
        deny: told of each connection to an undeclared destination (network, address, port, reason).
    """

    def __init__(self, take: Take, deny: Deny) -> None:
        self._take_over = take
        self._deny = deny
        self._routes = Routes(())
        self._acceptor = Acceptor(self._take)
        self.probe_port = 0
        """A port that the gateway itself dials now to prove the fence; not the agent's doing, so not recorded."""

    def use(self, targets: tuple[Target, ...]) -> None:
        """From now on connections go to these targets."""
        self._routes = Routes(targets)

    def start(self, port: int) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        for family, address in loopbacks():
            self._acceptor.start(socket.create_server((address, port), family=family, backlog=BACKLOG))

    async def _take(self, connection: socket.socket) -> None:
        try:
            address, port = original_destination(connection)
        except OSError:
            reset(connection)  # it came here without having been redirected, or is gone
            return
        target = self._routes.find(address, port)
        if target is None:
            if port != self.probe_port:
                self._deny("tcp", str(address), port, "undeclared destination")
            reset(connection)
            return
        await self._take_over(connection, target)


class Acceptor:
    """Accepts connections and has each served.

    Args:
        serve: serves one; an OSError or ConfigError of it closes the connection.
    """

    def __init__(self, serve: Callable[[socket.socket], Coroutine[None, None, None]]) -> None:
        self._serve = serve
        self._listening: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, server: socket.socket) -> None:
        """Take over a listening socket."""
        server.setblocking(False)
        self._listening.append(asyncio.get_running_loop().create_task(self._accept(server)))

    def close(self) -> None:
        """Accept no more; what was accepted goes on."""
        for task in self._listening:
            task.cancel()

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with server:
            while True:
                try:
                    connection, _ = await loop.sock_accept(server)
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        continue  # the client was faster in going than we in accepting
                    logger.error("a connection cannot be accepted: %s", error.strerror)
                    await asyncio.sleep(NO_FILES_PAUSE_S)
                else:
                    task = loop.create_task(self._served(connection))
                    self._tasks.add(task)
                    task.add_done_callback(self._done)

    async def _served(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._serve(connection)
        except OSError:
            connection.close()
        except ConfigError as error:
            logger.error("a connection is refused: %s", error)
            reset(connection)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a connection could not be taken: %s", type(error).__name__)


def original_destination(connection: socket.socket) -> tuple[IPAddress, int]:
    """Where the client dialled before the fence's redirect.

    Raises:
        OSError: the connection was not redirected.
    """
    if connection.family == socket.AF_INET6:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)  # struct sockaddr_in6
        return ipaddress.IPv6Address(raw[8:24]), struct.unpack_from("!H", raw, 2)[0]
    raw = connection.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)  # struct sockaddr_in
    return ipaddress.IPv4Address(raw[4:8]), struct.unpack_from("!H", raw, 2)[0]


def reset(connection: socket.socket) -> None:
    """Close with RST, which tells the client at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
