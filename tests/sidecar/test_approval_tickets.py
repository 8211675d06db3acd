"""Approvals in a pod: one command, its ticket and its votes; all parts are the real ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from fix_approvals import OUTSIDERS
from fix_broker import CREATOR
from fix_way import FIX, FIX_ONE, LONG, SHORT, Way, course, ended, held
from pod_gateway import WAIT_S, connect, settings_of, until
from psycopg import errors

from chaperone_operator.kube import ApiError

pytestmark = pytest.mark.peer


async def test_approved_command_runs_once_and_the_next_of_its_kind_is_asked_for_again(way: Way) -> None:
    async with way.running(**LONG) as (gateway, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        assert (await way.approvals.stored(name))["spec"]["text"] == FIX
        assert way.times() == 0
        await way.approve(name)
        assert (await ended(task)).rowcount == 1
        assert await way.state(name, "Used") == "Used"
        assert way.times() == 1
        again = held(agent)
        second = await way.asked()
        await way.approvals.vote("lead-1", second, "Deny", "once is enough")
        with pytest.raises(errors.InsufficientPrivilege, match=r"Denied by lead-1 \(once is enough\)"):
            await ended(again)
        assert way.times() == 1
        assert await (await agent.execute("SELECT 1")).fetchone() == (1,)
        gateway.write_head()
        await until(lambda: len(course(way)) == 6)
    assert course(way) == [
        ("request", name, "fix"), ("outcome", name, "Used"), ("intent", name, "Allow"),
        ("request", second, "fix"), ("outcome", second, "Denied"), ("intent", "", "Deny"),
    ]  # fmt: skip


async def test_command_that_nobody_decides_in_time_does_not_run_however_late_it_is_approved(way: Way) -> None:
    async with way.running(wait="1s", validFor="12s") as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        with pytest.raises(errors.InsufficientPrivilege, match=f'waits for approval as request "{name}"') as refused:
            await ended(task)
        assert "Send the very same command again" in str(refused.value.diag.message_hint)
        await way.state(name, "Expired")
        with pytest.raises(ApiError, match=r"\[decided\]|\[expired\]"):
            await way.approve(name)
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        assert await way.asked() != name
        assert way.times() == 0


async def test_approval_that_was_not_used_in_time_is_worth_nothing(way: Way) -> None:
    async with way.running(wait="1s", validFor="15s") as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await ended(task)
        await way.approve(name)
        await way.state(name, "Expired")
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        assert way.times() == 0


async def test_ticket_is_good_for_the_same_bytes_and_parameters_once(way: Way) -> None:
    async with way.running(**SHORT) as (_, port), await connect(port) as agent:
        for text, params in ((FIX, None), (FIX_ONE, (8,))):
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(text, params)
            name = await way.asked()
            await way.approve(name)
            await way.state(name, "Approved")
            others = (FIX + " ", None) if params is None else (FIX_ONE, (9,))
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(*others)
            assert await way.asked() != name
            assert await way.state(name, "Approved") == "Approved"
            async with await connect(port) as later:  # another session of the same pod
                assert (await later.execute(text, params)).rowcount == 1
            assert await way.state(name, "Used") == "Used"
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(text, params)
            assert await way.asked() != name
        assert [way.times(number) for number in (7, 8, 9)] == [1, 1, 0]


async def test_ticket_of_another_pod_or_identity_is_not_good(way: Way) -> None:
    broker = way.approvals.broker
    twin = way.other(await broker.pod(f"{way.pod.name}-twin"))
    stranger = way.other(
        await broker.pod(
            f"{way.pod.name}-stranger", labels={"chaperone.dev/identity": "other-agent"}, told="other-agent"
        ),
        "other-agent",
    )
    async with (
        way.running(**SHORT) as (_, port), twin.started() as (_, near), stranger.started() as (_, far),
        await connect(port) as agent, await connect(near) as same, await connect(far) as other,
    ):  # fmt: skip
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        name = await way.asked()
        await way.approve(name)
        await way.state(name, "Approved")
        for one in (same, other):
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await one.execute(FIX)
        assert name not in {await twin.asked(), await stranger.asked()}
        assert way.times() == 0
        await agent.execute(FIX)
        assert way.times() == 1


async def test_whoever_asks_does_not_approve_nor_does_an_outsider(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        account = f"system:serviceaccount:{way.approvals.namespace}:agent"
        for user in (CREATOR, "Billing on-call", account):
            with pytest.raises(ApiError, match=r"\[own-request\]"):
                await way.approve(name, user)
        with pytest.raises(ApiError, match=r"\[not-an-approver\]"):
            await way.approvals.vote("outsider-2", name, groups=(OUTSIDERS,))
        assert not task.done()
        assert way.times() == 0
        await way.approvals.vote("lead-1", name, "Deny")
        with pytest.raises(errors.InsufficientPrivilege, match="Denied by lead-1"):
            await ended(task)
        assert way.times() == 0


async def test_two_of_three_have_to_approve(way: Way) -> None:
    async with way.running(count=2, denyCount=2, **LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        await way.approve(name, "lead-1")
        await way.approvals.vote("lead-2", name, "Deny")
        with pytest.raises(ApiError, match=r"\[voted\]"):
            await way.approve(name, "lead-1")
        assert not task.done()
        assert way.times() == 0
        await way.approve(name, "lead-3")
        await ended(task)
        assert way.times() == 1


async def test_two_who_approve_at_once_release_one_command_once(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        votes = await asyncio.gather(
            way.approve(name, "lead-1"), way.approve(name, "lead-2"), return_exceptions=True
        )  # fmt: skip
        late = [one for one in votes if one is not None]
        assert len(late) < 2
        assert all("[decided]" in str(one) for one in late)
        await ended(task)
        assert way.times() == 1
        with pytest.raises(ApiError, match=r"\[decided\]"):
            await way.approve(name, "lead-3")


@asynccontextmanager
async def _skewed(way: Way, skew_s: int) -> AsyncIterator[int]:
    """The port of the pod's gateway, in a process whose clock is wrong by so much."""
    policy = way.policy(wait="1s", validFor="20s")
    await way.put(policy)
    await way.pod.set_status(restarts=0)
    told = await settings_of(way.pod, way.collector, way.opa, way.folder)
    settings = way.folder / "settings.json"
    settings.write_bytes(msgspec.json.encode(told, enc_hook=str))
    program = Path(__file__).parents[1] / "support" / "skewed_gateway.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(settings), str(skew_s), policy.revision, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await asyncio.wait_for(process.stdout.readline(), WAIT_S))
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("skew_s", [-7200, 7200])
async def test_clock_of_the_gateway_neither_ends_an_approval_nor_lengthens_it(way: Way, skew_s: int) -> None:
    async with _skewed(way, skew_s) as port, await connect(port) as agent:
        for ending, times in (("Used", 1), ("Expired", 1)):
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(FIX)
            name = await way.asked()
            await way.approve(name)
            await way.state(name, "Approved")
            if ending == "Used":
                await agent.execute(FIX)
            assert await way.state(name, "Used", "Expired") == ending
            assert way.times() == times
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        assert way.times() == 1
