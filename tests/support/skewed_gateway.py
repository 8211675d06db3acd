"""A pod's gateway in a process whose wall clock is wrong: `skewed_gateway.py SETTINGS SECONDS`; says its port."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec
from pod_gateway import connector, dial

from chaperone_sidecar.runtime import Edges, Runtime, Settings


async def _serve(settings: Settings) -> None:
    runtime = Runtime(settings, Edges(dial, connector))
    gateway = await runtime.start()
    server = await asyncio.get_running_loop().create_server(
        lambda: gateway.accept(gateway.config.targets[0]), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await runtime.run()


right, skew_s = time.time, float(sys.argv[2])
time.time = lambda: right() + skew_s
told = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Settings, dec_hook=lambda kind, value: kind(value))
asyncio.run(_serve(told))
