"""A connection that is closed: what its peer still hears, and for how long it is waited for."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from chaperone_sidecar import link
from chaperone_sidecar.link import Link

LIMIT_S = 20
LAST_WORDS = b"the last words"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("is_reading", [True, False])
def test_a_peer_that_does_not_read_is_let_go(
    factory: type[asyncio.AbstractEventLoop], is_reading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that a peer who reads is never cut, or so short that the test need not wait.
    monkeypatch.setattr(link, "LINGER_S", LIMIT_S if is_reading else 0.2)
    owed = bytes(16 << 20)  # more than the kernel takes for a peer who does not read

    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        lost = asyncio.Event()
        made = Link(lambda _: lost.set())
        server = await loop.create_server(lambda: made, "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        client.setblocking(False)
        heard = bytearray()
        async with asyncio.timeout(LIMIT_S):
            while made.peer == "":  # noqa: ASYNC110 - the loop accepts meanwhile
                await asyncio.sleep(0.01)
            made.write(owed)
            made.write(LAST_WORDS)
            made.close()
            while is_reading and (data := await loop.sock_recv(client, 1 << 20)):
                heard += data
            await lost.wait()
        client.close()
        server.close()
        return bytes(heard)

    with asyncio.Runner(loop_factory=factory) as runner:
        heard = runner.run(run())
    assert heard == (owed + LAST_WORDS if is_reading else b"")
