"""Approvals in a pod: a request that nobody waits for any more, and an approval that a limit is in the way of."""

from __future__ import annotations

import asyncio
import os
import socket

import psycopg
import pytest
from evidence_directory import read_records
from fix_way import FIX, LONG, Way, ended, held
from pod_gateway import connect, until
from psycopg import errors

from chaperone_evidence import record
from chaperone_operator.kube import ApiError
from chaperone_sidecar.approval.broker_desk import BrokerDesk
from chaperone_sidecar.approval.desk import Request, Ticket

pytestmark = pytest.mark.peer


def hang_up(agent: psycopg.AsyncConnection) -> None:
    """The client's process is gone, and says nothing."""
    with socket.socket(fileno=os.dup(agent.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def outcomes(way: Way) -> list[tuple[str, str]]:
    """Name and state of what came of each request, as the gateway recorded it."""
    found = read_records(way.folder / "spool")
    return [(one.approval, one.state) for one in found if isinstance(one, record.ApprovalOutcome)]


@pytest.mark.parametrize("how", ["goes", "cancels", "is suspended"])
async def test_request_of_a_client_that_waits_no_longer_is_withdrawn(way: Way, how: str) -> None:
    async with way.running(**LONG) as (_, port):
        agent = await connect(port)
        task = held(agent)
        name = await way.asked()
        if how == "goes":
            hang_up(agent)
            with pytest.raises(psycopg.OperationalError):
                await ended(task)
        elif how == "cancels":
            await agent.cancel_safe()
            with pytest.raises(errors.QueryCanceled):
                await ended(task)
        else:
            await way.put(way.policy(is_suspended=True, **LONG))
            with pytest.raises(psycopg.Error, match="is suspended"):
                await ended(task)
        await way.state(name, "Cancelled")
        with pytest.raises(ApiError, match=r"\[decided\]"):
            await way.approve(name)
        assert way.times() == 0
        await agent.close()
    assert outcomes(way) == [(name, "Cancelled")]


async def test_request_of_a_client_that_goes_before_the_broker_answers_is_recorded_and_withdrawn(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asyncio.Event()
    ask = BrokerDesk.ask

    async def ask_slowly(desk: BrokerDesk, request: Request) -> Ticket:
        ticket = await ask(desk, request)
        await answer.wait()
        return ticket

    monkeypatch.setattr(BrokerDesk, "ask", ask_slowly)
    async with way.running(**LONG) as (_, port):
        agent = await connect(port)
        task = held(agent)
        name = await way.made()
        hang_up(agent)
        with pytest.raises(psycopg.OperationalError):
            await ended(task)
        answer.set()
        await way.state(name, "Cancelled")
        assert way.times() == 0
        await agent.close()
    assert (way.recorded(), outcomes(way)) == ([name], [(name, "Cancelled")])


async def test_request_that_another_session_waits_for_is_not_withdrawn(way: Way) -> None:
    async with way.running(**LONG) as (_, port):
        goes, stays = await connect(port), await connect(port)
        first = held(goes)
        name = await way.asked()
        second = held(stays)
        await until(lambda: len(way.recorded()) == 2)
        hang_up(goes)
        with pytest.raises(psycopg.OperationalError):
            await ended(first)
        await until(lambda: outcomes(way) == [(name, "Cancelled")])
        await way.approve(name)
        await ended(second)
        assert way.times() == 1
        await stays.close()
        await goes.close()
    assert outcomes(way) == [(name, "Cancelled"), (name, "Used")]


async def test_approval_is_not_spent_on_a_command_that_a_limit_refuses(way: Way) -> None:
    async with way.running(limits={"bytesPerSession": 300}, **LONG) as (_, port), await connect(port) as agent:
        await agent.execute(f"SELECT 1 /*{'x' * 260}*/")
        task = held(agent)
        name = await way.asked()
        await way.approve(name)
        with pytest.raises(psycopg.Error, match="bytes") as refused:
            await ended(task)
        assert refused.value.sqlstate == "53400"
        assert await way.state(name, "Approved", "Used") == "Approved"
        assert way.times() == 0
        async with await connect(port) as other:  # a session of its own has sent nothing yet
            assert (await other.execute(FIX)).rowcount == 1
        assert await way.state(name, "Used") == "Used"
        assert way.times() == 1
    assert outcomes(way) == [(name, "Approved"), (name, "Used")]
