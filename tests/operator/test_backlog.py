"""The order in which the operator works."""

from __future__ import annotations

import asyncio

from chaperone_operator.reconcile.backlog import LAST_PLACE_S, Backlog
from chaperone_operator.reconcile.world import Change


async def test_policy_of_every_namespace_goes_before_what_is_told_of_any() -> None:
    backlog = Backlog()
    backlog.add((Change.STATUS, "a"), 0.0)
    backlog.add((Change.PODS, "a"), 0.0)
    for namespace in "bcd":
        backlog.add((Change.POLICY, namespace), 0.0)
    taken = [await backlog.next() for _ in range(5)]
    assert [namespace for _, namespace in taken] == ["b", "c", "d", "a", "a"]
    assert [change for change, _ in taken[3:]] == [Change.STATUS, Change.PODS]


async def test_policies_that_never_end_do_not_silence_what_is_told() -> None:
    backlog = Backlog()
    backlog.add((Change.STATUS, "a"), -LAST_PLACE_S)
    backlog.add((Change.POLICY, "b"), 0.0)
    assert await backlog.next() == (Change.STATUS, "a")


async def test_work_is_not_taken_before_its_time() -> None:
    backlog = Backlog()
    backlog.add((Change.POLICY, "much later"), 600.0)
    backlog.add((Change.STATUS, "now"), 0.0)
    assert await backlog.next() == (Change.STATUS, "now")
    waiting = asyncio.create_task(backlog.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    backlog.add((Change.STATUS, "later"), 0.2)
    assert await waiting == (Change.STATUS, "later")
