"""The gateway as it runs in a pod, against the real broker, API server, OPA, collector and PostgreSQL.

Only the fence is not there, so its way out is an ordinary socket.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import psycopg
from fix_broker import Broker, Pod, secret
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import PASSWORD, Postgres
from manifests import Object, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import CONFIG_MAPS, SECRETS
from chaperone_sidecar.config import GatewayConfig, IPAddress
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.listener import Acceptor
from chaperone_sidecar.runtime import Edges, Runtime, Settings

WAIT_S: Final = 60.0
SEVERAL: Final = "several.data.svc"


def compiled(broker: Broker, postgres: Postgres, *effects: str, **spec: object) -> Snapshot:
    """A policy that allows those effects on everything of the real database; `spec` is what else it says."""
    return ruled(broker, postgres, [rule("some", "Allow", list(effects))], **spec)


def ruled(
    broker: Broker, postgres: Postgres, rules: list[Object], *, is_suspended: bool = False,
    delegation: Object | None = None, durability: str = "Written", **spec: object,
) -> Snapshot:  # fmt: skip
    """A policy of those rules for both identities at the real database; the rest is of billing-agent."""
    database = target(
        port=postgres.port,
        upstream={"host": "orders-db.data.svc", "port": postgres.port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "real-ca"}},
        credential={"secretRef": {"name": "real-writer"}},
        allowedNamespaces={"names": [broker.agents]},
    )
    subjects: list[Object] = [{"identity": "billing-agent"}, {"identity": "other-agent"}]
    more: Object = {"evidence": {"durability": durability}}
    more |= {} if delegation is None else {"delegation": delegation}
    billing = identity(namespace=broker.agents, suspended=is_suspended, **more)
    snapshot = compile_namespace(
        broker.agents, [billing, identity("other-agent", namespace=broker.agents)],
        [database], [policy(rules, namespace=broker.agents, **({"subjects": subjects} | spec))], [],
        namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    return snapshot


async def install(broker: Broker, postgres: Postgres, collector: Collector) -> None:
    """Secrets of the real database, and the collector trusts the broker's gateways."""
    async with broker.admin() as client:
        made = (
            secret("real-ca", "Opaque", **{"ca.crt": postgres.ca_pem}),
            secret("real-writer", username="agent_rw", password=PASSWORD),
        )
        for one in made:
            await client.apply(SECRETS, one["metadata"]["name"], one, manager="test", namespace=broker.system)
        trust = await client.get(CONFIG_MAPS, "chaperone-trust", broker.system)
    (collector.folder / "gateway-ca.crt").write_text(trust["data"]["gateway-ca.crt"])


async def dial(_: str, port: int) -> socket.socket:
    """Every host is this machine."""
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def resolve(host: str) -> tuple[IPAddress, ...]:
    """As `dial` has it; one name has an address more."""
    here = ipaddress.ip_address("127.0.0.1")
    return (here, here + 1) if host == SEVERAL else (here,)


def connector(context: ssl.SSLContext) -> aiohttp.TCPConnector:
    """No mark."""
    return aiohttp.TCPConnector(ssl=context)


async def settings_of(
    pod: Pod, collector: Collector, opa: Opa, folder: Path, identity: str = "billing-agent"
) -> Settings:
    """What a pod tells its gateway, with a fresh token."""
    broker = pod.broker
    token = folder / "token"
    token.write_text(await pod.token())
    return Settings(
        policy_key=broker.signer.vkey, broker_url=broker.url,
        collector_url=collector.ingest, cluster=broker.cluster, namespace=broker.agents,
        ca_pem=broker.service_ca.pem + collector.service_ca.pem, pod=pod.name, pod_uid=pod.uid, identity=identity,
        token_path=token, spool=folder / "spool", spool_bytes=64 << 20, bundle=opa.bundle, opa=opa.socket,
    )  # fmt: skip


@asynccontextmanager
async def running(
    broker: Broker, collector: Collector, opa: Opa, folder: Path, name: str
) -> AsyncIterator[tuple[Gateway, int, list[GatewayConfig]]]:
    """A gateway of a new pod, and the port on which its one target is served."""
    pod = await broker.pod(name)
    async with serving(pod, collector, opa, folder) as found:
        yield found


@asynccontextmanager
async def serving(
    pod: Pod, collector: Collector, opa: Opa, folder: Path, *, restarts: int = 0, identity: str = "billing-agent"
) -> AsyncIterator[tuple[Gateway, int, list[GatewayConfig]]]:
    """A gateway of a pod, as of its last start, and the port on which its one target is served."""
    await pod.set_status(restarts=restarts)
    settings = await settings_of(pod, collector, opa, folder, identity)
    seen: list[GatewayConfig] = []
    runtime = Runtime(settings, Edges(dial, resolve, connector))
    gateway = await runtime.start()
    loops = asyncio.create_task(runtime.run())
    server = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(lambda connection: gateway.take(connection, gateway.config.declared[0]))
    try:
        stored = await stored_revision(pod.broker, identity)  # the broker may give the one before it for a moment
        await until(lambda: gateway.config.revision == stored)
        runtime.follow(seen.append)
        acceptor.start(server)
        yield gateway, server.getsockname()[1], seen
    finally:
        acceptor.close()
        gateway.close("the test is over")
        loops.cancel()
        await asyncio.gather(loops, return_exceptions=True)


async def stored_revision(broker: Broker, identity: str) -> str:
    """The revision of policy that is stored for an identity of the agents' namespace."""
    async with broker.admin() as client:
        found = await client.get(CONFIG_MAPS, f"snapshot-{broker.agents}", broker.system)
    configs = json.loads(base64.b64decode(found["binaryData"]["gateway.json"]))
    revision: str = configs[identity]["revision"]
    return revision


async def connect(port: int, password: str = "", *, autocommit: bool = True, **more: str) -> psycopg.AsyncConnection:
    """As an agent: the password is a user's token, or none."""
    return await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=port, user="me", dbname="orders", password=password, autocommit=autocommit, **more
    )


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.05)
