"""A pod's gateway in a process whose wall clock is wrong: `skewed_gateway.py SETTINGS SECONDS REVISION`; says its port.

It does so once that revision of policy is in force, for the broker may give the one before it for a moment.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path

import msgspec
from pod_gateway import connector, dial, resolve, until

from chaperone_sidecar.listener import Acceptor
from chaperone_sidecar.runtime import Edges, Runtime, Settings


async def _serve(settings: Settings, revision: str) -> None:
    runtime = Runtime(settings, Edges(dial, resolve, connector))
    gateway = await runtime.start()
    server = socket.create_server(("127.0.0.1", 0))
    Acceptor(lambda connection: gateway.take(connection, gateway.config.targets[0])).start(server)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runtime.run())
        await until(lambda: gateway.config.revision == revision)
        print(server.getsockname()[1], flush=True)


right, skew_s = time.time, float(sys.argv[2])
time.time = lambda: right() + skew_s
told = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Settings, dec_hook=lambda kind, value: kind(value))
asyncio.run(_serve(told, sys.argv[3]))
