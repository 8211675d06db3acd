"""PostgreSQL: the driver runs its sessions; what is known of databases is shared by those to the same one."""

from __future__ import annotations

import asyncio
import socket

from chaperone_sidecar.backend import PostgresBackends
from chaperone_sidecar.catalog import Catalogs
from chaperone_sidecar.config import Target
from chaperone_sidecar.connector import Closed
from chaperone_sidecar.driver import Driver
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.link import Link
from chaperone_sidecar.protocols.postgresql.answers import fatal
from chaperone_sidecar.protocols.postgresql.messages import ALPN
from chaperone_sidecar.protocols.postgresql.session import Session
from chaperone_sidecar.readers import Readers


class PostgresFrontend:
    """See `frontend.Frontend`.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._backends = PostgresBackends(services.dial, services.leases)
        self.catalogs = Catalogs(self._backends)
        self._readers = Readers(self.catalogs)

    def begin(self, target: Target) -> Driver:
        """See `frontend.Frontend`."""
        services = self._services
        suspended = services.suspended
        conduct = services.conduct(
            target, lambda database, command: self.catalogs.of(target, database).estimate(command)
        )
        return Driver(
            Session(
                lambda database: self._readers.of(target, database, services.mask_key), conduct.meter,
                asks_user=conduct.asks_user,
            ),
            conduct,
            self._backends if suspended is None else Closed(suspended),
            services.recorder,
            lambda: services.server_context(target, ALPN),
            services.over,
            lambda name: self._readers.shown_client(target, name, services.mask_key),
        )  # fmt: skip

    async def turn_away(self, connection: socket.socket, target: Target, why: ChaperoneError) -> None:
        """See `frontend.Frontend`."""

        def tell() -> None:
            link.write(fatal(why))
            link.close()

        link = Link(lambda _: None, tell)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, connection)

    def follow(self, targets: tuple[Target, ...]) -> None:
        """See `frontend.Frontend`."""
        self.catalogs.follow(targets)
        self._readers.clear()

    def close(self) -> None:
        """See `frontend.Frontend`."""
        self.catalogs.close()


frontend = PostgresFrontend
