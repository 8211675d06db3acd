"""Room for what is on its way to the collector: kept in order, given back, and never more than there is."""

from __future__ import annotations

import asyncio
import random

import pytest

from chaperone_collector.budget import MAX_OUTSTANDING_BYTES, POD_WINDOW_BYTES, Budget
from chaperone_collector.errors import Refused
from chaperone_collector.metrics import Metrics

FULL = MAX_OUTSTANDING_BYTES // POD_WINDOW_BYTES


@pytest.fixture
def budget() -> Budget:
    return Budget(Metrics())


async def hold(budget: Budget, pod: str, size: int, until: asyncio.Event, done: list[str]) -> None:
    async with budget.take(pod, size):
        done.append(pod)
        await until.wait()


async def test_a_pod_that_sends_more_than_its_part_is_refused_at_once(budget: Budget):
    async with budget.take("one", POD_WINDOW_BYTES):
        with pytest.raises(Refused):
            async with budget.take("one", 1):
                pass
    assert budget.credit("one") == POD_WINDOW_BYTES


async def test_who_finds_no_room_waits_for_it_in_turn(budget: Budget):
    end, later, done = asyncio.Event(), asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        for number in range(FULL):
            group.create_task(hold(budget, f"full-{number}", POD_WINDOW_BYTES, end, done))
        await asyncio.sleep(0)
        for pod in ("first", "second"):
            group.create_task(hold(budget, pod, POD_WINDOW_BYTES, later, done))
        await asyncio.sleep(0.05)
        assert done == [f"full-{number}" for number in range(FULL)]
        assert budget.credit("third") == 0
        end.set()
        await asyncio.sleep(0.05)
        assert done[FULL:] == ["first", "second"]
        later.set()
    assert budget.credit("third") == POD_WINDOW_BYTES


async def test_who_goes_while_it_waits_leaves_its_place_to_the_next(budget: Budget):
    end, done = asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        for number in range(FULL - 1):
            group.create_task(hold(budget, f"full-{number}", POD_WINDOW_BYTES, end, done))
        group.create_task(hold(budget, "half", POD_WINDOW_BYTES // 2, end, done))
        await asyncio.sleep(0)
        large = group.create_task(hold(budget, "large", POD_WINDOW_BYTES, end, done))
        group.create_task(hold(budget, "small", POD_WINDOW_BYTES // 4, end, done))
        await asyncio.sleep(0.05)
        assert "small" not in done  # the order is kept
        large.cancel()
        await asyncio.sleep(0.05)
        assert done[-1] == "small"
        end.set()
    assert budget.credit("any") == POD_WINDOW_BYTES


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_comes_and_goes_nothing_is_lost_and_never_is_there_more_than_may_be(budget: Budget, seed: int):
    draw, held, most = random.Random(seed), 0, 0  # noqa: S311

    async def one(pod: str) -> None:
        nonlocal held, most
        size = draw.randrange(1, POD_WINDOW_BYTES)
        async with budget.take(pod, size):
            held += size
            most = max(most, held)
            try:
                await asyncio.sleep(draw.random() / 200)
            finally:
                held -= size

    tasks = [asyncio.create_task(one(f"pod-{number}")) for number in range(60)]
    while not all(task.done() for task in tasks):
        draw.choice(tasks).cancel()
        await asyncio.sleep(draw.random() / 500)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert FULL * POD_WINDOW_BYTES >= most > 0
    assert budget.credit("any") == POD_WINDOW_BYTES
    async with asyncio.TaskGroup() as group:  # all of the room is there again
        ends, done = asyncio.Event(), list[str]()
        for number in range(FULL):
            group.create_task(hold(budget, f"again-{number}", POD_WINDOW_BYTES, ends, done))
        await asyncio.sleep(0.02)
        assert len(done) == FULL
        ends.set()
