"""What is done once per log, and not by each of its collectors: signing it, stating losses, erasing, its archive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Lead:
    """Whether this collector is the one that does that.

    Losing it late does no harm: each of these things is a transaction that finds out whether it was done already.
    """

    def __init__(self, *, is_held: bool) -> None:
        self._held = asyncio.Event()
        self._lost = asyncio.Event()
        self.set(is_held=is_held)

    def set(self, *, is_held: bool) -> None:
        """It is now, or is not."""
        if is_held:
            self._lost.clear()
            self._held.set()
        else:
            self._held.clear()
            self._lost.set()

    async def keep(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do this whenever this collector is the one, until cancelled; what it raises is raised."""
        while True:
            await self._held.wait()
            doing, losing = asyncio.create_task(work()), asyncio.create_task(self._lost.wait())
            try:
                await asyncio.wait((doing, losing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                losing.cancel()
                if not doing.done():
                    doing.cancel()
                    await asyncio.wait((doing,))
            if not doing.cancelled():
                return doing.result()
