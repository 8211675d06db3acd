"""Durability `Synced`: nothing depends on a record that is not on disk, and a disk that fails ends everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from failing_disk import fail_disk
from fix_broker import Broker
from fix_collector import Collector
from fix_dev import Gateway as DevGateway
from fix_opa import Opa
from fix_postgres import Postgres
from pod_gateway import compiled, connect, install, running, until
from psycopg import errors

from chaperone_evidence import record
from chaperone_sidecar.recording.spool import Spool
from chaperone_sidecar.recording.syncer import Syncer

pytestmark = pytest.mark.peer

STREAM = "01m884w43fqp9f5cs3e1ztjat1"


async def test_who_waits_together_shares_a_sync_and_who_comes_later_waits_for_the_next(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STREAM, 64 << 20)
    spool.is_synced = True
    syncer = Syncer(spool)
    spool.append(b"\0\1a")

    async def reached(seq: int) -> int:
        await syncer.reach(seq)
        return syncer.synced_seq

    first = [asyncio.create_task(reached(0)) for _ in range(8)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    spool.append(b"\0\1b")
    second = asyncio.create_task(reached(1))
    assert await asyncio.gather(*first) == [0] * 8
    assert await second == 1


async def test_segments_that_were_sealed_before_their_sync_are_synced_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STREAM, 64 << 20)
    spool.is_synced = True
    syncer = Syncer(spool)
    frame = b"\x3f\xff" + b"x" * 0x3FFF
    for _ in range(200):  # three segments
        spool.admit(owed=False)
        last = spool.append(frame)
    assert len(spool.unsynced()) > 2
    await syncer.reach(last)
    assert spool.unsynced() == []


async def test_with_a_disk_that_fails_nothing_runs_any_more_and_the_client_hears_why(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot = compiled(broker, postgres, "read", "delete", durability="Synced")
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "sync") as (_, port, _):
        async with await connect(port) as agent:
            await agent.execute("DELETE FROM invoices WHERE id = 91")
            assert fail_disk(tmp_path / "spool") >= 2
            for parameters, prepare in ((None, False), ((92,), False), ((92,), True), (None, False)):
                text = "DELETE FROM invoices WHERE id = " + ("92" if parameters is None else "%s")
                with pytest.raises(errors.IoError, match="spool failed"):
                    await agent.execute(text, parameters, prepare=prepare)  # type: ignore[call-overload]
            with pytest.raises(errors.IoError, match="spool failed"):
                async with agent.pipeline():
                    for number in (92, 93):
                        await agent.execute("DELETE FROM invoices WHERE id = %s", (number,))
        with pytest.raises(psycopg.OperationalError, match="spool failed"):
            await connect(port)
    with postgres.admin() as owner:
        rows = owner.execute("SELECT id FROM invoices WHERE id IN (91, 92, 93) ORDER BY id").fetchall()
    assert rows == [(92,), (93,)]


async def test_an_outcome_that_cannot_be_synced_is_not_told(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot = compiled(broker, postgres, "read", "execute_code", durability="Synced")
    await broker.put_snapshot(snapshot)
    opa = opa_with(snapshot.bundle)
    async with running(broker, collector, opa, tmp_path, "told") as (_, port, _), await connect(port) as agent:
        asked = asyncio.create_task(agent.execute("SELECT pg_sleep(10), 'the answer'"))
        await until(lambda: sleeps(postgres))
        fail_disk(tmp_path / "spool")
        with pytest.raises(psycopg.OperationalError, match="spool failed"):
            await asked


def sleeps(postgres: Postgres) -> bool:
    """Whether the backend has begun to work."""
    with postgres.admin() as owner:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%the answer%'"
        return bool(owner.execute(query).fetchone() == (1,))


def test_dev_serves_synced_to_sessions_side_by_side(gateway_with: Callable[..., DevGateway]) -> None:
    gateway = gateway_with(evidence={"durability": "Synced"})
    with gateway.connect() as one, gateway.connect() as other:
        with one.pipeline():
            cursors = [one.execute("SELECT count(*) FROM orders WHERE id < %s", (n,)) for n in range(20)]
        assert cursors[-1].fetchone() == (18,)
        assert len(other.execute("SELECT * FROM orders").fetchall()) == 1000
        with pytest.raises(errors.InsufficientPrivilege):
            other.execute("DROP TABLE orders")
    assert gateway.stop() == 0
    assert gateway.verify().stdout.endswith("verify: OK\n")
    opened = next(one for one in gateway.records() if isinstance(one, record.StreamOpen))
    assert opened.durability == "Synced"
