"""SSH: asyncssh has the sockets of both sides; one host key of the gateway stands for every target."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import asyncssh

from chaperone_sidecar.config import Target
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.masking.maskers import Maskers
from chaperone_sidecar.protocols.ssh.conversation import Conversation

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker


# The library would log commands, paths and variables; the gateway logs no content.
asyncssh.set_log_level(logging.CRITICAL)


class SshFrontend:
    """See `frontend.Frontend`.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._host_key = asyncssh.import_private_key(services.ssh_host_key.private)
        self._maskers = Maskers(has_columns=True)

    def begin(self, target: Target) -> Conversation:
        """See `frontend.Frontend`."""
        return Conversation(self._services, target, self._host_key, self._masker(target))

    async def turn_away(self, connection: socket.socket, target: Target, why: ChaperoneError) -> None:
        """See `frontend.Frontend`. Before keys are exchanged there are only lines that clients show (RFC 4253, 4.2)."""
        with connection:
            await asyncio.get_running_loop().sock_sendall(connection, f"chaperone: {why}\r\n".encode())

    def follow(self, targets: tuple[Target, ...]) -> None:
        """See `frontend.Frontend`."""
        self._maskers.clear()

    def close(self) -> None:
        """See `frontend.Frontend`."""

    def _masker(self, target: Target) -> Masker | None:
        made = self._maskers.of(target, self._services.mask_key)
        return None if made is None or made.is_idle else made


frontend = SshFrontend
