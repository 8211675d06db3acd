"""A catalog of the test server's database, and a server that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable

from fix_postgres import PASSWORD

from chaperone_sidecar.backend import PostgresBackends
from chaperone_sidecar.catalog import Catalog
from chaperone_sidecar.config import Target, Tls, Upstream
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.credentials.lease import User
from chaperone_sidecar.protocols.postgresql.messages import frame


class Clock:
    """Time as a test says it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Leases:
    """One credential for all targets; counts how often it is asked for and given back."""

    def __init__(self, password: str = PASSWORD, user: str = "agent_rw") -> None:
        self.password = password
        self.user = user
        self.asked = 0
        self.forgotten = 0

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        self.asked += 1
        return Lease(self.user, self.password, "", 2**53)

    def forget(self, lease: Lease) -> None:
        self.forgotten += 1

    def use(self, lease: Lease, user: User) -> None:
        pass

    def let_go(self, user: User) -> None:
        pass


def target_at(port: int, name: str = "orders-db", database: str = "orders") -> Target:
    return Target(name, "PostgreSQL", 5432, (), Upstream("127.0.0.1", port, database), Tls("Disable"))


async def dial(host: str, port: int) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(made, (host, port))
    except OSError:
        made.close()
        raise
    return made


@contextlib.asynccontextmanager
async def catalog_at(
    port: int, leases: Leases | None = None, clock: Clock | None = None, **more: float
) -> AsyncIterator[Catalog]:
    catalog = Catalog(
        target_at(port), "orders", PostgresBackends(dial, leases or Leases()), clock or Clock(), **more
    )  # fmt: skip
    try:
        yield catalog
    finally:
        catalog.close()
        await asyncio.sleep(0)


READY = frame(ord("Z"), b"I")
_WELCOME = (
    frame(ord("R"), struct.pack(">I", 0))
    + b"".join(
        frame(ord("S"), f"{name}\0{value}\0".encode())
        for name, value in (
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
        )
    )
    + frame(ord("K"), struct.pack(">II", 1, 2))
    + READY
)


def row(*values: bytes | None) -> bytes:
    body = struct.pack(">H", len(values))
    for value in values:
        body += struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
    return frame(ord("D"), body)


@contextlib.asynccontextmanager
async def server_saying(*answers: bytes, greeting: bytes = _WELCOME) -> AsyncIterator[tuple[int, Callable[[], int]]]:
    """A server that lets everybody in and gives these answers in turn, then none; its port, and how many came in."""
    left, connections = list(answers), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.read(65536)
        writer.write(greeting)
        while await reader.read(65536):
            if left:
                writer.write(left.pop(0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], lambda: len(connections)
    finally:
        server.close()
        for writer in connections:
            writer.close()
