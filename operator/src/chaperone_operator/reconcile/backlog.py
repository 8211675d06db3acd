"""What is still to be reconciled: each key once, not before its time; policy before what is told of it."""

from __future__ import annotations

import asyncio
from typing import Final

from chaperone_operator.reconcile.world import Change

type Work = tuple[Change, str]

SETTLE_S: Final = (
    0.1  # an apply of several files arrives as one round; nobody waits noticeably longer for a kill switch
)
FIRST_RETRY_S: Final = 1.0  # after a failure; doubles up to the next
LAST_RETRY_S: Final = 60.0
LAST_PLACE_S: Final = 5.0  # for which policies go first; who changes his all the time must not silence the others


class Backlog:
    """Keys that wait. Its size is bounded by three times the number of namespaces."""

    def __init__(self) -> None:
        self._due: dict[Work, float] = {}
        self._failures: dict[Work, int] = {}
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, work: Work, delay_s: float = SETTLE_S) -> None:
        """Work that is due after a delay; a key that waits already keeps the earlier time."""
        due = asyncio.get_running_loop().time() + delay_s
        self._due[work] = min(due, self._due.get(work, due))
        self._added.set()

    def failed(self, work: Work) -> float:
        """Put work back after a failure; gives the pause."""
        count = self._failures.get(work, 0)
        self._failures[work] = count + 1
        pause_s: float = min(FIRST_RETRY_S * 2 ** min(count, 16), LAST_RETRY_S)
        self.add(work, pause_s)
        return pause_s

    def done(self, work: Work) -> None:
        """Work has succeeded; its next failure is its first."""
        self._failures.pop(work, None)

    def clear(self) -> None:
        """Forget everything."""
        self._due.clear()
        self._failures.clear()

    async def next(self) -> Work:
        """Wait for work that is due, and take it: what gateways wait for, else what is due for longest."""
        loop = asyncio.get_running_loop()
        while True:
            self._added.clear()
            due = [work for work, at in self._due.items() if at <= loop.time()]
            if due:
                overdue = loop.time() - LAST_PLACE_S
                work = min(due, key=lambda one: (one[0] != Change.POLICY and self._due[one] > overdue, self._due[one]))
                del self._due[work]
                return work
            first = min(self._due.values(), default=None)
            try:
                async with asyncio.timeout(None if first is None else first - loop.time()):
                    await self._added.wait()
            except TimeoutError:
                continue
