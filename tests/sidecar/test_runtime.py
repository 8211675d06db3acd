"""The gateway as it runs in a pod: what it follows, what it keeps to itself, what ends with what."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import psycopg
import pytest
from fix_broker import Broker, Pod, secret
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import PASSWORD, Postgres
from manifests import identity, policy, rule, target
from msgspec.structs import replace
from pod_gateway import compiled, connect, install, running, until
from psycopg import errors

from chaperone_operator.broker import maskkey
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import PODS, SECRETS

pytestmark = pytest.mark.peer


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


async def test_configuration_that_masks_counts_only_with_its_key(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    email = {"detectors": ["Email"]}
    hashing = compiled(broker, postgres, "read", masks=[email | {"method": "Hash"}])
    unmasked = compiled(broker, postgres, "read")
    hashing_more = compiled(broker, postgres, "read", "delete", masks=[email | {"method": "Hash"}])
    plain = compiled(broker, postgres, "read", "delete")
    await broker.put_snapshot(hashing)
    async with running(broker, collector, opa_with(hashing.bundle), tmp_path, "hashes") as (gateway, _, seen):
        async with broker.admin() as client:
            keys = await maskkey.load(client, broker.system)
            uid = (await client.get(PODS, "hashes", broker.agents))["metadata"]["uid"]
        key = base64.b64decode(keys.give(broker.agents).key)
        assert (gateway.config.revision, gateway.mask_key) == (hashing.revision, key)
        await broker.put_snapshot(unmasked)
        await until(lambda: gateway.config.revision == unmasked.revision)
        assert gateway.mask_key == b""

        # Another exchange takes the certificate out of use for keys, while configurations are still given.
        pod = Pod(broker, broker.agents, "hashes", uid, "agent")
        await pod.set_status(restarts=1)
        assert (await pod.exchange())[0] == 200
        await broker.put_snapshot(hashing_more)
        await until(lambda: "gives no key for masks" in caplog.text)
        assert (gateway.config.revision, gateway.mask_key) == (unmasked.revision, b"")
        await broker.put_snapshot(plain)  # a later revision does not wait for the key of the one before
        await until(lambda: gateway.config.revision == plain.revision)
    assert [config.revision for config in seen] == [hashing.revision, unmasked.revision, plain.revision]
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
    limits = ({"connections": 2}, {"connections": 1, "rowsPerCommand": 100, "commandDuration": "3s"}, None)
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


async def set_password(broker: Broker, postgres: Postgres, password: str, *, is_told: bool = True) -> None:
    """Rotate the password at the server, and in the Secret unless it is not told."""
    with postgres.admin() as admin:
        admin.execute(f"ALTER ROLE agent_rw PASSWORD '{password}'")
    if is_told:
        made = secret("real-writer", username="agent_rw", password=password)
        async with broker.admin() as client:
            await client.apply(SECRETS, "real-writer", made, manager="test", namespace=broker.system)


async def test_a_rotated_password_is_taken_over_by_the_next_session_and_open_ones_stay(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot = compiled(broker, postgres, "read")
    await broker.put_snapshot(snapshot)
    try:
        async with (
            running(broker, collector, opa_with(snapshot.bundle), tmp_path, "rotates") as (_, port, _),
            await connect(port) as before,
        ):
            for password in ("canary-rotated-once", "canary-rotated-twice"):
                await set_password(broker, postgres, password)
                async with await connect(port) as agent:  # at once: the gateway still holds the password before
                    assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
            assert await (await before.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
            await set_password(broker, postgres, "canary-nobody-was-told", is_told=False)
            with pytest.raises(psycopg.OperationalError, match="password"):
                await connect(port)
    finally:
        await set_password(broker, postgres, PASSWORD)
    assert "canary-rotated" not in broker.log.read_text() + collector.log.read_text()
    for path in (tmp_path / "spool").rglob("*.seg"):
        assert b"canary-rotated" not in path.read_bytes()


def with_roles(broker: Broker, postgres: Postgres, *, valid_for: str = "15m", is_suspended: bool = False) -> Snapshot:
    """A policy whose target gives each session a role of its own; place and time are written past the compiler."""
    host, admin = "orders-db.data.svc", {"adminSecretRef": {"name": "real-admin"}}
    database = target(
        port=postgres.port,
        upstream={"host": host, "port": postgres.port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "real-ca"}},
        credential={"postgresqlRole": admin | {"grants": ["gateway_reader"], "validFor": "59m"}},
        allowedNamespaces={"names": [broker.agents]},
    )
    snapshot = compile_namespace(
        broker.agents, [identity(namespace=broker.agents, suspended=is_suspended)], [database],
        [policy([rule("some", "Allow", ["read", "execute_code"])], namespace=broker.agents)], [],
        namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    leases = snapshot.leases.replace(f'"{host}"'.encode(), b'"127.0.0.1"').replace(b"59m", valid_for.encode())
    return replace(snapshot, leases=leases)


def working(postgres: Postgres) -> set[str]:
    """The roles of sessions that are connected."""
    with postgres.admin() as admin:
        found = admin.execute(
            "SELECT usename FROM pg_stat_activity WHERE usename LIKE 'chp%' AND application_name <> 'chaperone-catalog'"
        ).fetchall()
    return {name for (name,) in found}


def made(postgres: Postgres) -> set[str]:
    """The roles of sessions that exist."""
    with postgres.admin() as admin:
        return {name for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'chp%'").fetchall()}


@pytest.fixture
async def role_admin(broker: Broker, postgres: Postgres) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """A role that may make others; call it to change what the Secret says of its password."""

    async def tell(password: str) -> None:
        one = secret("real-admin", username="gateway_admin", password=password)
        async with broker.admin() as client:
            await client.apply(SECRETS, "real-admin", one, manager="test", namespace=broker.system)

    with postgres.admin() as admin:
        admin.execute("CREATE ROLE gateway_reader; GRANT SELECT ON orders TO gateway_reader")
        admin.execute(f"CREATE ROLE gateway_admin LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
        admin.execute("GRANT gateway_reader TO gateway_admin WITH ADMIN OPTION")
    await tell(PASSWORD)
    yield tell
    with postgres.admin() as admin:
        admin.execute("DROP OWNED BY gateway_reader; DROP ROLE gateway_reader; DROP ROLE gateway_admin")


@pytest.mark.usefixtures("role_admin")
async def test_each_session_has_a_role_of_its_own_that_ends_with_it_and_with_the_identity(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot, suspended = with_roles(broker, postgres), with_roles(broker, postgres, is_suspended=True)
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "roles") as (gateway, port, _):
        async with await connect(port) as agent, await connect(port):
            assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
            roles = working(postgres)
            assert len(roles) == 2
        await until(lambda: not roles & made(postgres))
        gateway.write_head()
        await until(lambda: collector.rows("SELECT count(*) FROM session")[0][0] >= 2)
        recorded = {f"chp_{session}" for (session,) in collector.rows("SELECT name FROM session")}
        assert roles <= recorded  # the database's own log joins with the records

        late = await connect(port)
        await late.execute("SELECT count(*) FROM orders")
        await broker.put_snapshot(suspended)
        await until(lambda: not made(postgres))
        with pytest.raises(psycopg.Error, match='AgentIdentity "billing-agent" is suspended'):
            await late.execute("SELECT 1")


async def test_a_session_ends_with_a_lease_that_cannot_be_renewed(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path, role_admin: Callable[[str], Awaitable[None]],
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot = with_roles(broker, postgres, valid_for="8s")
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "ends") as (_, port, _):
        agent = await connect(port)
        await role_admin("not the password")  # so that the broker can neither renew a role nor drop it
        await until(lambda: agent.closed or not working(postgres))
        with pytest.raises(psycopg.OperationalError, match="was changed, or could not be renewed; connect again"):
            await agent.execute("SELECT 1")
        assert made(postgres)
        await role_admin(PASSWORD)
        await until(lambda: not made(postgres))
