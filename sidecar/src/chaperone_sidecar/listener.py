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
from chaperone_sidecar.link import Link

logger = logging.getLogger(__name__)

BACKLOG: Final = 128
SO_ORIGINAL_DST: Final = 80  # SOL_IP and SOL_IPV6 alike; linux/netfilter_ipv4.h, ip6_tables.h
NO_FILES_PAUSE_S: Final = 0.2  # when the process has no descriptor left for another connection

type Accept = Callable[[Target], Link]
type Deny = Callable[[str, str, int, str], None]


class Listener:
    """Accepts connections on loopback, where the fence redirects them.

    Args:
        accept: gives the protocol of a connection to a target.
        deny: told of each connection to an undeclared destination (network, address, port, reason).
    """

    def __init__(self, accept: Accept, deny: Deny) -> None:
        self._accept = accept
        self._deny = deny
        self._routes = Routes(())
        self._tasks: set[asyncio.Task[None]] = set()
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
            server = socket.create_server((address, port), family=family, backlog=BACKLOG)
            server.setblocking(False)
            self._spawn(self._serve(server))

    async def _serve(self, server: socket.socket) -> None:
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
                    self._spawn(self._take(connection))

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
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._accept(target), connection)
        except OSError:
            connection.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

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
