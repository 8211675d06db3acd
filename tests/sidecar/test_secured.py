"""TLS under a library's protocol: nothing of what a peer sends before it closes is lost, however slowly it is taken."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from pki import Authority

from chaperone_operator.kubeconfig import verifying
from chaperone_sidecar import secured

SENT_BYTES = 1_000_000
PAUSE_S = 0.05  # in it the peer closes
LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]


class Slow(asyncio.Protocol):
    """Pauses after each piece that it gets."""

    def __init__(self) -> None:
        self.got_bytes = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.got_bytes += len(data)
        self.transport.pause_reading()
        asyncio.get_running_loop().call_later(PAUSE_S, self.transport.resume_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


class Certified:
    """A server's context and a client's."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        key, certificate = authority.server_pair("localhost")
        pair = folder / "pair.pem"
        pair.write_bytes(key + certificate)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(pair)
        self.server.num_tickets = 0  # what a peer leaves unread when it closes would take with it what it said
        self.client = verifying(cadata=authority.pem)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """Made once."""
    return Certified(tmp_path_factory.mktemp("pair"))


def run(loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]) -> None:
    """Run it on that loop."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(work, 30))


def peer(connection: socket.socket, wrap: Callable[[socket.socket], ssl.SSLSocket]) -> threading.Thread:
    """Says a million bytes, and closes at once."""

    def work() -> None:
        with wrap(connection) as wrapped:
            wrapped.sendall(bytes(SENT_BYTES))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("side", ["connect", "accept"])
def test_the_end_of_what_a_peer_says_is_not_lost(
    loop: Callable[[], asyncio.AbstractEventLoop], side: str, certified: Certified
) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        slow = Slow()
        if side == "connect":
            thread = peer(theirs, lambda one: certified.server.wrap_socket(one, server_side=True))
            await secured.connect(slow, ours, certified.client, "localhost")
        else:
            thread = peer(theirs, lambda one: certified.client.wrap_socket(one, server_hostname="localhost"))
            await secured.accept(slow, ours, certified.server)
        await slow.over
        assert slow.got_bytes == SENT_BYTES
        await asyncio.to_thread(thread.join, 10)

    run(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_failed_handshake_closes_the_connection(
    loop: Callable[[], asyncio.AbstractEventLoop], certified: Certified
) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await secured.accept(Slow(), ours, certified.server)
        theirs.settimeout(10)
        while await asyncio.to_thread(theirs.recv, 1 << 12):
            pass
        theirs.close()

    run(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_certificate_of_another_name_is_not_taken(
    loop: Callable[[], asyncio.AbstractEventLoop], certified: Certified
) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def serve() -> None:
            with contextlib.suppress(OSError), certified.server.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ssl.SSLCertVerificationError):
            await secured.connect(Slow(), ours, certified.client, "other")
        await asyncio.to_thread(thread.join, 10)

    run(loop, work())
