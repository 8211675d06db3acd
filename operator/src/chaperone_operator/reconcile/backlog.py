"""What is still to be reconciled: each key once, not before its time."""

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


class Backlog:
    """Keys that wait. Its size is bounded by twice the number of namespaces."""

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
        """Wait for the work that is due first, and take it."""
        loop = asyncio.get_running_loop()
        while True:
            self._added.clear()
            work = min(self._due, key=lambda one: self._due[one], default=None)
            if work is not None and self._due[work] <= loop.time():
                del self._due[work]
                return work
            try:
                async with asyncio.timeout(None if work is None else self._due[work] - loop.time()):
                    await self._added.wait()
            except TimeoutError:
                continue
