"""MySQL and MariaDB: the driver runs their sessions; masks are shared by those to the same target."""

from __future__ import annotations

import asyncio
import secrets
import socket
from functools import partial
from importlib import import_module
from typing import Final

import msgspec

from chaperone_sidecar.config import Target
from chaperone_sidecar.connector import Closed
from chaperone_sidecar.driver import Driver
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.link import Link
from chaperone_sidecar.masking.maskers import Maskers
from chaperone_sidecar.mysql_backend import MySqlBackends
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.answers import fatal
from chaperone_sidecar.protocols.mysql.reading import Reader, lowered
from chaperone_sidecar.protocols.mysql.session import Session

NONCE_BYTES: Final = 20
GRAMMAR: Final = "chaperone_sidecar.protocols.mysql.grammar"


class MySqlFrontend:
    """See `frontend.Frontend`.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._backends = MySqlBackends(services.dial, services.leases)
        self._maskers = Maskers(has_columns=True)
        self._readers: dict[str, Reader] = {}

    def begin(self, target: Target) -> Driver:
        """See `frontend.Frontend`."""
        services, backends = self._services, self._backends
        suspended = services.suspended
        conduct = services.conduct(target)
        reader = self._reader(target)
        connection_id = backends.new_id()
        session = Session(
            reader,
            conduct.meter,
            connection_id,
            bytes(secrets.randbelow(127) + 1 for _ in range(NONCE_BYTES)),
            partial(self._version, target) if suspended is None else _no_version,
            partial(backends.is_own, target),
            asyncio.to_thread,
            backends.kills(connection_id),
            asks_user=conduct.asks_user,
        )
        return Driver(
            session,
            conduct,
            backends if suspended is None else Closed(suspended),
            services.recorder,
            lambda: services.server_context(target),
            services.over,
            partial(_shown_client, reader, target),
            session.greet,
        )

    async def turn_away(self, connection: socket.socket, target: Target, why: ChaperoneError) -> None:
        """See `frontend.Frontend`."""

        def tell() -> None:
            link.write(m.packet(0, fatal(why).encode()))
            link.close()

        link = Link(lambda _: None, tell)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, connection)

    def follow(self, targets: tuple[Target, ...]) -> None:
        """See `frontend.Frontend`."""
        self._readers.clear()
        self._maskers.clear()
        self._backends.follow(targets)

    def close(self) -> None:
        """See `frontend.Frontend`."""

    async def _version(self, target: Target) -> bytes:
        """What the server calls itself; meanwhile the second reader is loaded, which takes 0.3 s."""
        loading = asyncio.create_task(asyncio.to_thread(import_module, GRAMMAR))
        found = await self._backends.version(target)
        await loading
        return found

    def _reader(self, target: Target) -> Reader:
        found = self._readers.get(target.name)
        if found is None:
            target = msgspec.structs.replace(target, masks=lowered(target.masks))
            found = self._readers[target.name] = Reader(target.masks, self._maskers.of(target, self._services.mask_key))
        return found


async def _no_version() -> bytes:
    return b""


def _shown_client(reader: Reader, target: Target, name: str) -> str:
    """What records may show of a name that the client gives itself."""
    masker = reader.masker
    if masker is None or name == target.upstream.database:
        return name
    return masker.mask_text(name.encode()).decode("utf-8", "replace")


frontend = MySqlFrontend
