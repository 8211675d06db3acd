"""Leases: asked for once, shared, dropped when they end, are refused, or the policy changes."""

from __future__ import annotations

import asyncio

import pytest

from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.credentials.lease import MARGIN_S, Leases
from chaperone_sidecar.errors import LeaseRefused

LIFE_S = 900


class Broker:
    """Gives numbered leases on a clock of the test's own; waits for `go` when there is one."""

    def __init__(self) -> None:
        self.now, self.asked, self.refuses = 1000.0, 0, False
        self.go: asyncio.Event | None = None

    async def lease(self, target: str) -> Lease:
        self.asked += 1
        if self.go is not None:
            await self.go.wait()
        if self.refuses:
            raise LeaseRefused(f"no {target}")
        return Lease(f"{target}-{self.asked}", "secret", "", int(self.now) + LIFE_S)

    def leases(self) -> Leases:
        return Leases(self.lease, lambda: self.now)


async def test_a_lease_serves_all_sessions_until_shortly_before_it_ends() -> None:
    broker = Broker()
    leases = broker.leases()
    assert {(await leases.lease("db")).username for _ in range(100)} == {"db-1"}
    broker.now += LIFE_S - MARGIN_S - 1
    assert (await leases.lease("db")).username == "db-1"
    broker.now += 1
    assert (await leases.lease("db")).username == "db-2"
    assert (await leases.lease("other")).username == "other-3"


async def test_sessions_that_begin_together_share_one_question_and_one_that_leaves_harms_nobody() -> None:
    broker = Broker()
    broker.go = asyncio.Event()
    leases = broker.leases()
    waiting = [asyncio.create_task(leases.lease("db")) for _ in range(10)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    broker.go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.username for one in found[1:] if isinstance(one, Lease)} == {"db-1"}
    assert broker.asked == 1


async def test_what_the_backend_refuses_is_asked_for_anew() -> None:
    leases = Broker().leases()
    leases.forget(await leases.lease("db"))
    assert (await leases.lease("db")).username == "db-2"


async def test_another_policy_keeps_no_lease_not_even_one_under_way() -> None:
    broker = Broker()
    broker.go = asyncio.Event()
    leases = broker.leases()
    early = asyncio.create_task(leases.lease("db"))
    await asyncio.sleep(0)
    leases.clear()
    broker.go.set()
    assert (await early).username == "db-1"
    assert (await leases.lease("db")).username == "db-2"


async def test_a_refusal_is_not_remembered() -> None:
    broker = Broker()
    broker.refuses = True
    leases = broker.leases()
    with pytest.raises(LeaseRefused):
        await leases.lease("db")
    broker.refuses = False
    assert (await leases.lease("db")).username == "db-2"
