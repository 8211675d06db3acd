"""Kubernetes: a conversation a connection, and for each target one way to its API server and one set of masks."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from chaperone_sidecar.config import Target
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.masking.maskers import Maskers
from chaperone_sidecar.protocols.kubernetes.conversation import Conversation
from chaperone_sidecar.protocols.kubernetes.upstream import Upstream

if TYPE_CHECKING:
    pass


class KubernetesFrontend:
    """See `frontend.Frontend`.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._upstreams: dict[str, Upstream] = {}
        self._maskers = Maskers(has_columns=False)

    def begin(self, target: Target) -> Conversation:
        """See `frontend.Frontend`."""
        return Conversation(
            target, self._services, self._upstream(target), self._maskers.of(target, self._services.mask_key)
        )

    async def turn_away(self, connection: socket.socket, target: Target, why: ChaperoneError) -> None:
        """See `frontend.Frontend`."""
        turned_away = Conversation(target, self._services, self._upstream(target), None)
        turned_away.cut(why)
        await turned_away.take(connection)

    def follow(self, targets: tuple[Target, ...]) -> None:
        """See `frontend.Frontend`."""
        self._maskers.clear()
        current = {target.name: target for target in targets}
        for name, upstream in tuple(self._upstreams.items()):
            found = current.get(name)
            if found is None or not found.is_same_place(upstream.target):
                self._upstreams.pop(name).close()

    def close(self) -> None:
        """See `frontend.Frontend`."""
        for upstream in self._upstreams.values():
            upstream.close()
        self._upstreams.clear()

    def _upstream(self, target: Target) -> Upstream:
        found = self._upstreams.get(target.name)
        if found is None:
            found = self._upstreams[target.name] = Upstream(target, self._services.dial, self._services.leases)
        return found


frontend = KubernetesFrontend
