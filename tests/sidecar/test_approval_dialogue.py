"""Approvals in a pod: what the client's protocol makes of a command that waits; all parts are the real ones."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import psycopg
import pytest
from fix_way import FIX, FREE, LONG, SHORT, Way, ended, held
from pod_gateway import WAIT_S, connect
from psycopg import errors
from raw_client import STARTUP, Client

from chaperone_sidecar.protocols.postgresql.messages import SYNC_FRAME, encode_parse, encode_query

pytestmark = pytest.mark.peer


async def test_refusal_in_a_transaction_lets_its_locks_go(way: Way) -> None:
    async with way.running(**SHORT) as (_, port), await connect(port, autocommit=False) as agent:
        await agent.execute(FREE)
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        with way.postgres.admin() as owner:
            owner.execute("SET lock_timeout = '10s'")
            owner.execute("UPDATE held.free SET times = 40 WHERE id = 1")
        with pytest.raises(errors.InFailedSqlTransaction):
            await agent.execute("SELECT 1")
        await agent.rollback()
        assert (way.times(), way.times(1, "free")) == (0, 40)


async def test_approved_command_of_a_transaction_ends_with_it(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port, autocommit=False) as agent:
        for end, times in ((agent.rollback, 0), (agent.commit, 1)):
            await agent.execute(FREE)
            task = held(agent)
            await way.approve(await way.asked())
            await ended(task)
            await end()
            assert (way.times(), way.times(1, "free")) == (times, times)


AROUND: Final = ("SELECT 1", f"{FREE} RETURNING id", f"{FIX} RETURNING id", "SELECT 2", f"{FREE} RETURNING id")


async def _piped(
    agent: psycopg.AsyncConnection, texts: tuple[str, ...] = AROUND
) -> tuple[list[Any], type[psycopg.Error] | None]:
    """The row that each command of a pipeline gives, None where it gives none; and the first error."""
    cursors, error = [], None
    try:
        async with agent.pipeline():
            for text in texts:
                cursors.append(await agent.execute(text))  # type: ignore[call-overload]
    except psycopg.Error as raised:
        error = type(raised)
    return [await one.fetchone() if one.pgresult is not None else None for one in cursors], error


async def test_pipeline_stays_in_step_around_a_command_that_waited(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        for decision, answers in (
            ("Approve", ([(1,), (1,), (7,), (2,), (1,)], None)),
            ("Deny", ([(1,), (1,), None, None, None], errors.InsufficientPrivilege)),
        ):
            task = asyncio.create_task(_piped(agent))
            await way.approvals.vote("lead-1", await way.asked(), decision)
            assert await ended(task) == answers
            assert await (await agent.execute("SELECT 3")).fetchone() == (3,)
            # What is refused in a pipeline takes back all of it, since it is one transaction.
            assert (way.times(), way.times(1, "free")) == (1, 2)


async def test_pipeline_that_has_run_something_is_held_no_longer_than_a_transaction(way: Way) -> None:
    async with way.running(wait="60s", validFor="2m") as (_, port), await connect(port) as agent:
        task = asyncio.create_task(_piped(agent))
        await way.asked()
        async with asyncio.timeout(40):  # of the 60 s for which the lock on `held.free` would be kept
            assert (await task)[1] is errors.InsufficientPrivilege
        assert (way.times(), way.times(1, "free")) == (0, 0)


async def test_command_behind_one_that_failed_is_asked_of_nobody(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        texts = ("SELECT 1 / (id - 1) FROM held.free WHERE id = 1", FIX)
        assert (await ended(asyncio.create_task(_piped(agent, texts))))[1] is errors.DivisionByZero
        assert await way.requests() == []
        assert way.times() == 0


async def test_query_sent_behind_one_that_begins_a_transaction_is_held_as_in_it(way: Way) -> None:
    def ask(port: int) -> list[tuple[str, bytes]]:
        client = Client(port)
        client.send(STARTUP)
        client.until("Z")
        client.send(encode_parse(b"", FIX.encode()), SYNC_FRAME)  # so that it is known at once what the text means
        client.until("Z")
        client.send(encode_query(f"BEGIN; {FREE}".encode()), encode_query(FIX.encode()))
        client.until("Z")
        try:
            return client.until("Z")  # waits 20 s at most
        finally:
            client.close()

    async with way.running(wait="60s", validFor="2m") as (_, port):
        (kind, message), (_, state) = await asyncio.to_thread(ask, port)
        assert (kind, state) == ("E", b"E")
        assert b"waits for approval" in message
    assert (way.times(), way.times(1, "free")) == (0, 0)


async def test_portal_that_is_resumed_is_one_command(way: Way) -> None:
    text = "UPDATE held.invoices SET times = times + 1 RETURNING id"
    async with way.running(**LONG) as (_, port):
        agent = await asyncpg.connect(host="127.0.0.1", port=port, user="me", database="orders", ssl=False)
        try:
            for answered in (1, 2):
                async with agent.transaction():
                    cursor = await agent.cursor(text)
                    task = asyncio.create_task(cursor.fetch(6))
                    await way.approve(await way.asked())
                    rows = list(await ended(task))
                    while found := await ended(asyncio.create_task(cursor.fetch(6))):
                        rows += found
                    assert len(rows) == 20
                assert len(await way.requests()) == answered  # another portal is another command
                assert {way.times(number) for number in range(1, 21)} == {answered}
        finally:
            await agent.close(timeout=WAIT_S)


async def test_text_of_several_statements_is_approved_as_one(way: Way) -> None:
    text = f"{FREE}; {FIX}; UPDATE held.invoices SET times = times + 1 WHERE id = 8"
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        for decision, times in (("Deny", 0), ("Approve", 1)):
            task = held(agent, text)
            name = await way.asked()
            assert (await way.approvals.stored(name))["spec"]["text"] == text
            assert way.times(1, "free") == 0
            await way.approvals.vote("lead-1", name, decision)
            if decision == "Deny":
                with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
                    await ended(task)
            else:
                await ended(task)
            assert [way.times(), way.times(8), way.times(1, "free")] == [times] * 3


async def _copied_in(agent: psycopg.AsyncConnection) -> None:
    async with agent.cursor() as cursor, cursor.copy("COPY held.invoices (id, times) FROM STDIN") as copy:
        await copy.write_row((21, 0))


async def _copied_out(agent: psycopg.AsyncConnection) -> int:
    async with agent.cursor() as cursor, cursor.copy("COPY held.invoices TO STDOUT") as copy:
        return len([row async for row in copy.rows()])


async def test_copy_is_held_both_ways(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        for work, result in ((_copied_in, None), (_copied_out, 21)):
            task: asyncio.Task[Any] = asyncio.create_task(work(agent))
            await way.approvals.vote("lead-1", await way.asked(), "Deny")
            with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
                await ended(task)
            assert way.times(21) == (-1 if result is None else 0)
            task = asyncio.create_task(work(agent))
            await way.approve(await way.asked())
            assert await ended(task) == result
            assert way.times(21) == 0
            assert await (await agent.execute("SELECT 1")).fetchone() == (1,)
