"""The gateway as it runs in a pod, against the real broker, API server, OPA, collector and PostgreSQL.

Only the fence is not there, so its way out is an ordinary socket.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import psycopg
import pytest
from fix_broker import Broker, Pod, secret
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import PASSWORD, Postgres
from manifests import identity, policy, rule, target
from psycopg import errors

from chaperone_operator.broker import maskkey
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import CONFIG_MAPS, PODS, SECRETS
from chaperone_sidecar.config import GatewayConfig
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.runtime import Edges, Runtime, Settings

pytestmark = pytest.mark.peer

WAIT_S = 60.0


def compiled(broker: Broker, postgres: Postgres, *effects: str, **spec: object) -> Snapshot:
    """A policy that allows those effects on everything of the real database; `spec` is what else it says."""
    database = target(
        port=postgres.port,
        upstream={"host": "orders-db.data.svc", "port": postgres.port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "real-ca"}},
        credential={"secretRef": {"name": "real-writer"}},
        allowedNamespaces={"names": [broker.agents]},
    )
    snapshot = compile_namespace(
        broker.agents, [identity(namespace=broker.agents)], [database],
        [policy([rule("some", "Allow", list(effects))], namespace=broker.agents, **spec)], [],
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


def connector(context: ssl.SSLContext) -> aiohttp.TCPConnector:
    """No mark."""
    return aiohttp.TCPConnector(ssl=context)


@asynccontextmanager
async def running(
    broker: Broker, collector: Collector, opa: Opa, folder: Path, name: str
) -> AsyncIterator[tuple[Gateway, int, list[GatewayConfig]]]:
    """A gateway of a new pod, and the port on which its one target is served."""
    pod = await broker.pod(name)
    await pod.set_status(restarts=0)
    token = folder / "token"
    token.write_text(await pod.token())
    settings = Settings(
        broker_url=broker.url, collector_url=collector.ingest, cluster=broker.cluster, namespace=broker.agents,
        ca_pem=broker.service_ca.pem + collector.service_ca.pem, pod=name, pod_uid=pod.uid, identity="billing-agent",
        token_path=token, spool=folder / "spool", spool_bytes=64 << 20, bundle=opa.bundle, opa=opa.socket,
    )  # fmt: skip
    seen: list[GatewayConfig] = []
    runtime = Runtime(settings, Edges(dial, connector))
    gateway = await runtime.start()
    runtime.follow(seen.append)
    loops = asyncio.create_task(runtime.run())
    server = await asyncio.get_running_loop().create_server(
        lambda: gateway.accept(gateway.config.targets[0]), "127.0.0.1", 0
    )
    try:
        yield gateway, server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        gateway.close("the test is over")
        loops.cancel()
        await asyncio.gather(loops, return_exceptions=True)


async def connect(port: int) -> psycopg.AsyncConnection:
    """As an agent: no password."""
    return await psycopg.AsyncConnection.connect(f"host=127.0.0.1 port={port} user=me dbname=orders", autocommit=True)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.05)


async def test_a_pods_gateway_serves_refuses_follows_policy_and_ships_its_records(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    first, second = compiled(broker, postgres, "read"), compiled(broker, postgres, "read", "delete")
    await broker.put_snapshot(first)
    async with running(broker, collector, opa_with(first.bundle), tmp_path, "runs") as (gateway, port, seen):
        async with await connect(port) as agent:
            row = await (await agent.execute("SELECT count(*) FROM orders")).fetchone()
            assert row == (1000,)
            with pytest.raises(errors.InsufficientPrivilege):
                await agent.execute("DELETE FROM invoices WHERE id = 90")
        await broker.put_snapshot(second)
        await until(lambda: gateway.config.revision == second.revision)
        async with await connect(port) as agent:
            await agent.execute("DELETE FROM invoices WHERE id = 90")
        gateway.write_head()
        await until(lambda: collector.rows("SELECT count(*) FROM command")[0][0] >= 3)
    assert [config.revision for config in seen] == [first.revision, second.revision]
    for path in (tmp_path / "spool").rglob("*.seg"):
        assert PASSWORD.encode() not in path.read_bytes()
    assert PASSWORD not in collector.log.read_text()


async def test_configuration_that_hashes_counts_only_with_its_key(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    email = {"detectors": ["Email"]}
    hashing = compiled(broker, postgres, "read", masks=[email | {"method": "Hash"}])
    redacting = compiled(broker, postgres, "read", masks=[email | {"method": "Redact"}])
    hashing_more = compiled(broker, postgres, "read", "delete", masks=[email | {"method": "Hash"}])
    plain = compiled(broker, postgres, "read", "delete")
    await broker.put_snapshot(hashing)
    async with running(broker, collector, opa_with(hashing.bundle), tmp_path, "hashes") as (gateway, _, seen):
        async with broker.admin() as client:
            keys = await maskkey.load(client, broker.system)
            uid = (await client.get(PODS, "hashes", broker.agents))["metadata"]["uid"]
        key = base64.b64decode(keys.give(broker.agents).key)
        assert (gateway.config.revision, gateway.mask_key) == (hashing.revision, key)
        await broker.put_snapshot(redacting)
        await until(lambda: gateway.config.revision == redacting.revision)
        assert gateway.mask_key == b""

        # Another exchange takes the certificate out of use for keys, while configurations are still given.
        pod = Pod(broker, broker.agents, "hashes", uid, "agent")
        await pod.set_status(restarts=1)
        assert (await pod.exchange())[0] == 200
        await broker.put_snapshot(hashing_more)
        await until(lambda: "gives no key for masks with method Hash" in caplog.text)
        assert (gateway.config.revision, gateway.mask_key) == (redacting.revision, b"")
        await broker.put_snapshot(plain)  # a later revision does not wait for the key of the one before
        await until(lambda: gateway.config.revision == plain.revision)
    assert [config.revision for config in seen] == [hashing.revision, redacting.revision, plain.revision]
    told = caplog.text + collector.log.read_text() + broker.log.read_text() + repr(gateway) + repr(seen)
    for form in (key.hex(), base64.b64encode(key).decode(), repr(key)):
        assert form not in told
    for path in (tmp_path / "spool").rglob("*.seg"):
        assert key not in path.read_bytes()


async def test_open_sessions_follow_limits_that_change(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    limits = ({"connections": 2}, {"connections": 1, "rowsPerCommand": 100, "commandDuration": "1s"}, None)
    compiled_ = [
        compiled(broker, postgres, "read", "execute_code", **({"limits": one} if one else {})) for one in limits
    ]
    await broker.put_snapshot(compiled_[0])
    async with running(broker, collector, opa_with(compiled_[0].bundle), tmp_path, "follows") as (gateway, port, _):

        async def follow(snapshot: Snapshot) -> None:
            await broker.put_snapshot(snapshot)
            await until(lambda: gateway.config.revision == snapshot.revision)

        async with await connect(port) as agent, await connect(port) as other:
            assert len(await (await agent.execute("SELECT id FROM orders")).fetchall()) == 1000
            await follow(compiled_[1])
            for one in (agent, other):
                with pytest.raises(errors.ConfigurationLimitExceeded):
                    await one.execute("SELECT id FROM orders")
                with pytest.raises(errors.QueryCanceled, match="cut by Chaperone"):
                    await one.execute("SELECT pg_sleep(30)")
            with pytest.raises(psycopg.OperationalError, match="as many connections to the target open"):
                await connect(port)
            await follow(compiled_[2])
            assert len(await (await agent.execute("SELECT id FROM orders")).fetchall()) == 1000
            async with await connect(port) as third:
                assert await (await third.execute("SELECT 1")).fetchone() == (1,)


async def test_a_configuration_of_a_later_version_closes_the_gateway_until_one_comes_that_it_can_read(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    readable = compiled(broker, postgres, "read")
    later = compiled(broker, postgres, "read", "delete")
    configs = {name: config | {"mystery": 1} for name, config in msgspec.json.decode(later.gateway).items()}
    unreadable = msgspec.structs.replace(later, gateway=msgspec.json.encode(configs))
    await broker.put_snapshot(readable)
    async with running(broker, collector, opa_with(readable.bundle), tmp_path, "older") as (gateway, port, seen):
        agent = await connect(port)
        assert await (await agent.execute("SELECT 1")).fetchone() == (1,)
        await broker.put_snapshot(unreadable)
        await until(lambda: not seen[-1].targets)
        with pytest.raises(psycopg.Error, match="no longer as it was"):
            await agent.execute("SELECT 1")
        await broker.put_snapshot(readable)  # the revision that was in force before
        await until(lambda: gateway.config.revision == readable.revision)
        async with await connect(port) as again:
            assert await (await again.execute("SELECT 1")).fetchone() == (1,)
