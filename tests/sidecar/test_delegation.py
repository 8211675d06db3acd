"""On behalf of a person: a pod's gateway, the broker, OPA, PostgreSQL and an issuer, with nothing made up."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from evidence_directory import read_records
from fix_broker import Broker, secret
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres
from manifests import identity, policy, rule, target
from oidc import AUDIENCE, CANARY, EMAIL, SUBJECT, Issuer, issuing
from pod_gateway import connect, install, running, until
from psycopg import errors

from chaperone_evidence import record
from chaperone_operator.broker.user import LEEWAY_S
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import SECRETS

pytestmark = pytest.mark.peer

RULES = [
    rule("orders", "Allow", ["read"], ["public.orders"]),
    {
        "name": "invoices-of-finance", "action": "Allow",
        "match": {"effects": ["read"], "objects": ["public.invoices"], "require": {"userGroups": ["finance"]}},
    },
]  # fmt: skip
OWN = 'deny contains "not for this person" if input.user.subject == "user-9"'


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    async with issuing(tmp_path) as found:
        yield found


def delegating(broker: Broker, postgres: Postgres, issuer: Issuer, **changed: Any) -> Snapshot:
    """Orders for everybody, invoices for finance; `changed` is what else the delegation says."""
    database = target(
        port=postgres.port,
        upstream={"host": "orders-db.data.svc", "port": postgres.port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "real-ca"}},
        credential={"secretRef": {"name": "real-writer"}},
        allowedNamespaces={"names": [broker.agents]},
    )
    delegation = {"issuer": issuer.url, "audience": AUDIENCE, "jwks": {"caSecretRef": {"name": "issuer-ca"}}}
    snapshot = compile_namespace(
        broker.agents, [identity(namespace=broker.agents, delegation=delegation | changed)], [database],
        [policy(RULES, namespace=broker.agents, rego=OWN)], [], namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    return snapshot


async def prepare(broker: Broker, postgres: Postgres, collector: Collector, issuer: Issuer) -> None:
    await install(broker, postgres, collector)
    async with broker.admin() as client:
        made = secret("issuer-ca", "Opaque", **{"ca.crt": issuer.ca_pem})
        await client.apply(SECRETS, "issuer-ca", made, manager="test", namespace=broker.system)


async def refusal(port: int, password: str) -> str:
    with pytest.raises(psycopg.OperationalError) as refused:
        await connect(port, password)
    return str(refused.value)


async def test_the_person_is_required_checked_recorded_and_asked_about(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path, issuer: Issuer, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    collector = collector_with()
    await prepare(broker, postgres, collector, issuer)
    snapshot = delegating(broker, postgres, issuer)
    await broker.put_snapshot(snapshot)
    good, other = issuer.token(), issuer.token(sub="user-8", groups=["staff"])
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "acts") as (gateway, port, _):
        assert "no password supplied" in await refusal(port, "")
        missing = await refusal(port, "none")
        assert "a user's token is required" in missing
        assert "as the password" in missing
        wrong = issuer.token(aud="other-agent")
        assert "for another audience" in await refusal(port, wrong)
        assert "cannot be read" in await refusal(port, "secret")
        async with await connect(port, good, sslmode="require") as agent, await connect(port, other) as second:
            assert await (await agent.execute("SELECT count(*) FROM invoices")).fetchone()
            with pytest.raises(errors.InsufficientPrivilege, match="only on behalf of a user in finance"):
                await second.execute("SELECT count(*) FROM invoices")  # what another may is no answer for this one
            assert await (await agent.execute("SELECT count(*) FROM invoices")).fetchone()
            assert await (await second.execute("SELECT count(*) FROM orders")).fetchone()
        async with await connect(port, issuer.token(sub="user-9")) as third:
            with pytest.raises(errors.InsufficientPrivilege, match="not for this person"):
                await third.execute("SELECT count(*) FROM orders")

        issuer.is_down = True  # the gateway knows who this is, and the broker its key
        async with await connect(port, good):
            pass
        gateway.write_head()
        await until(lambda: collector.rows("SELECT count(*) FROM session WHERE subject = 'user-7'")[0][0] == 2)

    found = read_records(tmp_path / "spool")
    opened = [one for one in found if isinstance(one, record.SessionOpen)]
    expected = record.Delegated(issuer.url, SUBJECT, EMAIL)
    assert [one.delegated for one in opened if one.delegated == expected] == [expected] * 2
    subjects = {one.session: one.delegated.subject for one in opened if isinstance(one.delegated, record.Delegated)}
    commands = [one for one in found if isinstance(one, record.CommandIntent | record.CommandOutcome)]
    assert len(commands) >= 8
    assert all(one.subject == subjects[one.session] for one in commands)
    refused = [one for one in found if isinstance(one, record.EgressDenied) and one.reason == "no user"]
    assert sum(one.count for one in refused) >= 3  # libpq tries with and without TLS
    said = caplog.text + collector.log.read_text() + broker.log.read_text()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file())
    kept += b"".join(path.read_bytes() for path in collector.folder.rglob("*") if path.is_file())
    for token in (good, other, wrong):
        for form in (*token.split("."), CANARY, base64.b64encode(token.encode()).decode()[:200]):
            assert form not in said
            assert form.encode() not in kept


async def test_a_token_that_is_not_required_may_be_absent_but_not_wrong(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path, issuer: Issuer,
) -> None:  # fmt: skip
    collector = collector_with()
    await prepare(broker, postgres, collector, issuer)
    snapshot = delegating(broker, postgres, issuer, required=False)
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "may-act") as (_, port, _):
        assert "has expired" in await refusal(port, issuer.token(exp=int(time.time()) - 900))
        async with await connect(port, "none") as agent:
            assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone()
            with pytest.raises(errors.InsufficientPrivilege, match="only on behalf of a user in finance"):
                await agent.execute("SELECT count(*) FROM invoices")
        async with await connect(port, issuer.token()) as agent:
            assert await (await agent.execute("SELECT count(*) FROM invoices")).fetchone()
    opened = [one for one in read_records(tmp_path / "spool") if isinstance(one, record.SessionOpen)]
    assert [isinstance(one.delegated, record.Delegated) for one in opened] == [False, True]


async def test_sessions_end_with_the_token_and_with_the_delegation(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path, issuer: Issuer,
) -> None:  # fmt: skip
    collector = collector_with()
    await prepare(broker, postgres, collector, issuer)
    snapshot = delegating(broker, postgres, issuer)
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "token-ends") as (gateway, port, _):
        stays = await connect(port, issuer.token())
        ends = await connect(port, issuer.token(exp=int(time.time()) - LEEWAY_S + 15))
        assert await (await ends.execute("SELECT 1")).fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match=f'The token of user "{SUBJECT}" has expired'):
            async with asyncio.timeout(60):
                while True:
                    await ends.execute("SELECT 1")
                    await asyncio.sleep(0.2)
        assert await (await stays.execute("SELECT 1")).fetchone() == (1,)
        await broker.put_snapshot(delegating(broker, postgres, issuer, audience="another"))
        await until(lambda: gateway.config.delegation is not None and gateway.config.delegation.audience == "another")
        with pytest.raises(psycopg.OperationalError, match="Another delegation"):
            await stays.execute("SELECT 1")
        assert "for another audience" in await refusal(port, issuer.token())
        async with await connect(port, issuer.token(aud=["another", "third"])):
            pass
