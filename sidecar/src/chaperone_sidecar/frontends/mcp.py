"""MCP: HTTP's conversations in another dialect, and for each target what is known of its tools."""

from __future__ import annotations

from chaperone_sidecar.config import Target
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.frontends.http import HttpFrontend
from chaperone_sidecar.protocols.http.conversation import Conversation
from chaperone_sidecar.protocols.mcp.dialect import Mcp, Pins
from chaperone_sidecar.protocols.mcp.streams import Streams


class McpFrontend(HttpFrontend):
    """See `frontend.Frontend`.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._pins: dict[str, Pins] = {}
        self._streams: dict[str, Streams] = {}

    def begin(self, target: Target) -> Conversation:
        """See `frontend.Frontend`."""
        pins = self._pins.setdefault(target.name, Pins())
        dialect = Mcp(pins, self._streams.setdefault(target.name, Streams()))
        return Conversation(target, self._services, self._maskers.of(target, self._services.mask_key), dialect)

    def follow(self, targets: tuple[Target, ...]) -> None:
        """See `frontend.Frontend`."""
        super().follow(targets)
        self._pins.clear()


frontend = McpFrontend
