"""HTTP: a conversation a connection, and one set of masks a target."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from chaperone_sidecar.config import Target
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.masking.maskers import Maskers
from chaperone_sidecar.protocols.http.conversation import Conversation

if TYPE_CHECKING:
    pass


class HttpFrontend:
    """See `frontend.Frontend`.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._maskers = Maskers(has_columns=False)

    def begin(self, target: Target) -> Conversation:
        """See `frontend.Frontend`."""
        return Conversation(target, self._services, self._maskers.of(target, self._services.mask_key))

    async def turn_away(self, connection: socket.socket, target: Target, why: ChaperoneError) -> None:
        """See `frontend.Frontend`."""
        turned_away = Conversation(target, self._services, None)
        turned_away.cut(why)
        await turned_away.take(connection)

    def follow(self, targets: tuple[Target, ...]) -> None:
        """See `frontend.Frontend`."""
        self._maskers.clear()

    def close(self) -> None:
        """See `frontend.Frontend`: conversations hold what there is to close."""


frontend = HttpFrontend
