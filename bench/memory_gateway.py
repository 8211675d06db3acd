"""The gateway of bench/memory.py: what a pod's process imports and holds, without what plays the cluster around it.

It is given a folder with a configuration that is compiled, leases, and the socket of an OPA that runs elsewhere.

Usage: python bench/memory_gateway.py FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from chaperone_cli import compiled

sys.path.insert(0, str(compiled.folder()))

import msgspec
import uvloop

from chaperone_evidence import record
from chaperone_sidecar import pod  # noqa: F401 - what the program of the pod imports before anybody speaks
from chaperone_sidecar.config import IPAddress, decode
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.listener import Acceptor
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.stream import begin_stream, make_signer
from chaperone_sidecar.tls import PodCa

SPOOL_BYTES = 256 << 20


class Leases:
    """Plays the broker."""

    def __init__(self, leases: dict[str, Lease]) -> None:
        self._leases = leases

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        return self._leases[target]

    def forget(self, lease: Lease) -> None: ...

    def use(self, lease: Lease, user: Any) -> None: ...

    def let_go(self, user: Any) -> None: ...


async def resolve(_: str) -> tuple[IPAddress, ...]:
    """See `dial`."""
    return (ipaddress.ip_address("127.0.0.1"),)


async def dial(_: str, port: int) -> socket.socket:
    """Every backend is on this machine."""
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def serve(folder: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config = decode((folder / "config.json").read_bytes())
    leases = msgspec.json.decode((folder / "leases.json").read_bytes(), type=dict[str, Lease])
    ports = msgspec.json.decode((folder / "ports.json").read_bytes(), type=dict[str, int])
    decider = Decider(config.identity.name, folder / "opa.sock")
    await decider.start()
    if not await decider.wait_for_revision(config.revision, 30):
        raise RuntimeError("OPA does not load the policies")
    signer = make_signer("bench", "pod")
    opened = record.StreamOpen(
        seq=0, wall_us=0, mono_us=0, stream="", cluster="bench", namespace="agents", pod="pod", pod_uid="pod",
        identity=config.identity.name, identity_uid=config.identity.uid, vkey="", revision=config.revision,
        owner="", certificate="", durability=config.identity.durability,
    )  # fmt: skip
    recorder, _ = begin_stream(folder / "spool", SPOOL_BYTES, signer, opened, Ids())
    gateway = Gateway(config, recorder, decider, dial, resolve, Leases(leases), PodCa("pod"), bytes(32))
    acceptors = []
    for target in config.targets:
        acceptor = Acceptor(partial(gateway.take, target=target))
        acceptor.start(socket.create_server(("127.0.0.1", ports[target.name])))
        acceptors.append(acceptor)
    heads = asyncio.create_task(gateway.keep_heads())
    print("ready", flush=True)
    await stop.wait()
    heads.cancel()
    for acceptor in acceptors:
        acceptor.close()
    gateway.close("the bench is over")
    await decider.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    uvloop.run(serve(parser.parse_args().folder))
