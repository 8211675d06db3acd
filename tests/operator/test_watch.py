"""A watch whose connection went dead without a word: packets of it are dropped, and nobody says so."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
from fix_apiserver import ApiServer
from fix_crds import kubectl

from chaperone_operator import kubeconfig
from chaperone_operator.kube import NAMESPACES, Object, Resource
from chaperone_operator.reconcile.watch import Watches

pytestmark = pytest.mark.peer

SILENCE_S = 3.0
WAIT_S = 30.0


class Wire:
    """A cable to the API server in which what is plugged in now can be cut without either end noticing."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._cut = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until it is cut; then swallow what comes."""
        cut = self._cut
        self.connections += 1
        there, back = await asyncio.open_connection(self._host, self._port)
        with suppress(ConnectionError):
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, back, cut))
                group.create_task(_carry(there, writer, cut))
        writer.close()
        back.close()

    def cut(self) -> None:
        """Everything that is plugged in now is dead; what is plugged in later works."""
        self._cut.set()
        self._cut = asyncio.Event()


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, cut: asyncio.Event) -> None:
    while data := await source.read(65536):
        if not cut.is_set():
            sink.write(data)
            await sink.drain()
    if not cut.is_set():
        sink.close()


@asynccontextmanager
async def wire(server: ApiServer) -> AsyncIterator[tuple[Wire, int]]:
    """The cable and the port of its near end."""
    far = urlsplit(server.url)
    made = Wire(str(far.hostname), int(far.port or 443))
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    try:
        yield made, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        made.cut()


async def until_seen(seen: set[str], name: str) -> None:
    """Wait for a namespace's event."""
    async with asyncio.timeout(WAIT_S):
        while name not in seen:  # noqa: ASYNC110 - it comes from another thread
            await asyncio.sleep(0.05)


async def test_a_change_is_seen_although_the_watch_went_dead_silently(crds: ApiServer) -> None:
    seen: set[str] = set()

    def take(resource: Resource, item: Object, _: bool) -> None:
        if resource == NAMESPACES:
            seen.add(item["metadata"]["name"])

    async with wire(crds) as (cable, port):
        access = dataclasses.replace(kubeconfig.find(str(crds.kubeconfig)), url=f"https://127.0.0.1:{port}")
        watching = asyncio.create_task(Watches(access, take, SILENCE_S).run())
        try:
            first, second = (f"watched-{secrets.token_hex(4)}" for _ in range(2))
            await asyncio.to_thread(kubectl, crds, "create", "namespace", first)
            await until_seen(seen, first)
            before = cable.connections
            cable.cut()
            await asyncio.to_thread(kubectl, crds, "create", "namespace", second)
            await until_seen(seen, second)
            assert cable.connections > before
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
