"""One connection of a port-forward between a client and a frontend, either of which may be slow or go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from chaperone_sidecar.config import Target, Tls, Upstream
from chaperone_sidecar.peer import named
from chaperone_sidecar.protocols.kubernetes.tunnel import READ_BYTES, Tunnel

TARGET = Target("orders-db", "PostgreSQL", 5432, (), Upstream("127.0.0.1", 5432), Tls("Disable"))
NAME = "port-forward session/1"


class Frontends:
    """Keeps the connection that a frontend would serve."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[socket.socket] = asyncio.Queue()

    def forward(self, connection: socket.socket, target: Target) -> None:
        assert target is TARGET
        self.given.put_nowait(connection)


class Scene:
    """A tunnel that runs, and what its client got."""

    def __init__(self, deliver: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        services: Any = Frontends()
        self.got = bytearray()
        self.frontends: Frontends = services
        self.tunnel = Tunnel(services, NAME, deliver or self._deliver, lambda: None)
        self.running = asyncio.create_task(self.tunnel.run(TARGET))

    async def _deliver(self, data: bytes) -> None:
        self.got += data

    async def served(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The frontend's side."""
        return await asyncio.open_unix_connection(sock=await self.frontends.given.get())


async def settled(value: Callable[[], int]) -> int:
    """A number once it does not change any more."""
    last = -1
    while (found := value()) != last:
        last = found
        for _ in range(20):
            await asyncio.sleep(0)
    return last


async def test_bytes_pass_both_ways_and_each_end_ends_it() -> None:
    scene = Scene()
    reader, writer = await scene.served()
    assert named(writer.get_extra_info("peername")) == NAME
    scene.tunnel.feed(b"question")
    assert await reader.readexactly(8) == b"question"
    writer.write(b"answer")
    scene.tunnel.feed(b"last")
    scene.tunnel.finish()
    assert await reader.read() == b"last"  # and then its end
    writer.close()
    await scene.running
    assert bytes(scene.got) == b"answer"


async def test_what_a_frontend_does_not_take_waits_and_is_counted() -> None:
    scene = Scene()
    reader, writer = await scene.served()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(64):
        scene.tunnel.feed(bytes(1 << 16))
    waiting = await settled(lambda: scene.tunnel.waiting_bytes)
    assert 0 < waiting <= 4 << 20
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert await reader.readexactly(4 << 20) == bytes(4 << 20)
    assert await settled(lambda: scene.tunnel.waiting_bytes) == 0
    writer.close()
    await scene.running


async def test_what_a_client_does_not_take_is_not_read_from_the_frontend() -> None:
    may_go, taken = asyncio.Event(), bytearray()

    async def deliver(data: bytes) -> None:
        taken.extend(data)
        await may_go.wait()

    scene = Scene(deliver)
    _, writer = await scene.served()
    writer.write(bytes(8 << 20))
    assert await settled(lambda: len(taken)) <= READ_BYTES
    may_go.set()
    await writer.drain()
    writer.close()
    await scene.running
    assert len(taken) == 8 << 20


@pytest.mark.parametrize("is_late", [False, True], ids=["before-it-runs", "while-it-runs"])
async def test_a_connection_that_is_given_up_is_closed_and_nothing_more_is_told(*, is_late: bool) -> None:
    scene = Scene()
    if is_late:
        reader, writer = await scene.served()
        writer.write(b"too late")
        scene.tunnel.drop()
        assert await reader.read() == b""
        writer.close()
    else:
        scene.tunnel.drop()
    await scene.running
    assert scene.got == b""
    assert scene.frontends.given.empty()


async def test_cancelling_closes_the_frontends_side() -> None:
    scene = Scene()
    reader, writer = await scene.served()
    scene.running.cancel()
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(asyncio.CancelledError):
        await scene.running
