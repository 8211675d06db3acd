"""Approvals in a pod: what changes while a command waits, and bounds; all parts are the real ones."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from fix_way import FIX, FIX_ONE, LONG, Way, ended, held
from pod_gateway import connect, until
from psycopg import errors

from chaperone_operator.kube import ApiError
from chaperone_sidecar.approval.broker_desk import BrokerDesk
from chaperone_sidecar.approval.desk import Request, Ticket

pytestmark = pytest.mark.peer


async def test_restart_of_the_gateway_loses_the_wait_and_not_the_ticket(way: Way) -> None:
    await way.put(way.policy(**LONG))
    async with way.started() as (gateway, port):
        agent = await connect(port)
        task = held(agent)
        name = await way.asked()
        gateway.close("the container restarts")
        with pytest.raises(psycopg.Error, match="the container restarts"):
            await ended(task)
    await way.approve(name)
    assert way.times() == 0
    async with way.started() as (_, port), await connect(port) as agent:
        await agent.execute(FIX)
        assert way.times() == 1
        task = held(agent)
        second = await way.asked()
        await way.approvals.vote("lead-1", second, "Deny")
        with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
            await ended(task)
        assert way.times() == 1


async def test_restart_of_the_gateway_before_the_broker_answers_loses_no_request(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, answer = asyncio.Event(), asyncio.Event()
    ask = BrokerDesk.ask

    async def ask_slowly(desk: BrokerDesk, request: Request) -> Ticket:
        ticket = await ask(desk, request)
        made.set()
        await answer.wait()
        return ticket

    monkeypatch.setattr(BrokerDesk, "ask", ask_slowly)
    await way.put(way.policy(**LONG))
    async with way.started() as (gateway, port):
        agent = await connect(port)
        task = held(agent)
        await made.wait()
        gateway.close("the container restarts")
        with pytest.raises(psycopg.Error, match="the container restarts"):
            await ended(task)
        answer.set()
        name = await way.made()
        await way.approve(name)
        assert await way.state(name, "Approved", "Cancelled") == "Approved"
    async with way.started() as (_, port), await connect(port) as agent:
        await agent.execute(FIX)
    assert way.times() == 1
    assert way.recorded() == [name]


async def test_restart_of_the_broker_is_waited_for(way: Way) -> None:
    broker = way.approvals.broker
    async with way.running(wait="5m", validFor="5m") as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        place = broker.url.rsplit(":", 1)[1]
        assert await asyncio.to_thread(broker.stop) == 0
        await way.approve(name)
        assert way.times() == 0
        await asyncio.to_thread(broker.start, "--port", place)
        await ended(task)
        assert await way.state(name, "Used") == "Used"
        assert way.times() == 1


async def test_policy_that_changes_meanwhile_releases_nothing(way: Way) -> None:
    async with way.running(**LONG) as (gateway, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        changed = way.policy(wait="1s", validFor="50s")
        await way.put(changed)
        with pytest.raises(errors.InsufficientPrivilege, match=f'request "{name}" is Cancelled'):
            await ended(task)
        await until(lambda: gateway.config.revision == changed.revision)
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        approved = await way.asked()
        await way.approve(approved)
        await way.state(approved, "Approved")
        back = way.policy(**LONG)
        await way.put(back)
        await way.state(approved, "Cancelled")
        await until(lambda: gateway.config.revision == back.revision)
        task = held(agent)
        await way.approvals.vote("lead-1", await way.asked(), "Deny")
        with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
            await ended(task)
        assert way.times() == 0


async def test_suspended_identity_loses_its_session_and_runs_nothing(way: Way) -> None:
    async with way.running(**LONG) as (gateway, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        await way.put(way.policy(is_suspended=True, **LONG))
        with pytest.raises(psycopg.Error, match="is suspended"):
            await ended(task)
        await until(lambda: not gateway.config.targets)
        await way.state(name, "Cancelled")
        with pytest.raises(ApiError, match=r"\[decided\]"):
            await way.approve(name)
        with pytest.raises(psycopg.Error):
            await agent.execute("SELECT 1")
        assert way.times() == 0


@pytest.mark.parametrize("size", [17_000, 600_000])
async def test_text_that_nobody_could_be_shown_is_refused(way: Way, size: int) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        with pytest.raises(errors.InsufficientPrivilege, match="longer than the 16384 bytes") as refused:
            await agent.execute(f"{FIX} /*{'x' * size}*/")
        assert "shorter" in str(refused.value.diag.message_hint)
        assert await way.requests() == []
        assert way.times() == 0
        assert await (await agent.execute("SELECT 1")).fetchone() == (1,)


async def test_more_than_people_can_read_is_refused_at_once(way: Way) -> None:
    async with way.running(**LONG) as (_, port):
        agents = [await connect(port) for _ in range(6)]
        tasks = [held(agent, FIX_ONE, number) for number, agent in enumerate(agents[:5], 1)]
        names = [await way.asked() for _ in tasks]
        with pytest.raises(errors.InsufficientPrivilege, match="5 approval requests of this pod wait"):
            await agents[5].execute(FIX_ONE, (6,))
        assert [way.times(number) for number in range(1, 7)] == [0] * 6
        for name in names:
            await way.approve(name)
        for task in tasks:
            await ended(task)
        assert [way.times(number) for number in range(1, 7)] == [1] * 5 + [0]
        task = held(agents[5], FIX_ONE, 6)
        await way.approve(await way.asked())
        await ended(task)
        assert way.times(6) == 1
        for agent in agents:
            await agent.close()
