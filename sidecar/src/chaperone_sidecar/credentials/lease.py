"""Leases in memory: one a target, used by all of its sessions until shortly before it ends.

A lease that the backend refuses is dropped, and the next session asks the broker anew: so a Secret that was rotated is
taken over by the first log-in that fails. Sessions that begin at one moment share one question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from chaperone_sidecar.credentials.broker import Lease

MARGIN_S: Final = 60  # a lease is used no more this long before it ends

type Ask = Callable[[str], Awaitable[Lease]]


class Leases:
    """The leases of one gateway.

    Args:
        ask: asks the broker for a target's.
        now: the clock, in seconds since 1970.
    """

    def __init__(self, ask: Ask, now: Callable[[], float] = time.time) -> None:
        self._ask = ask
        self._now = now
        self._held: dict[str, Lease] = {}
        self._asking: dict[str, asyncio.Task[Lease]] = {}

    async def lease(self, target: str) -> Lease:
        """The credential of a target.

        Raises:
            LeaseRefused: the broker says no, or cannot be reached.
        """
        held = self._held.get(target)
        if held is not None and held.expires_at_unix - MARGIN_S > self._now():
            return held
        asking = self._asking.get(target)
        if asking is None:
            asking = self._asking[target] = asyncio.get_running_loop().create_task(self._ask_broker(target))
            asking.add_done_callback(lambda done: self._keep(target, done))
        return await asyncio.shield(asking)  # a client that goes away takes nobody else's answer with it

    def forget(self, lease: Lease) -> None:
        """The backend refuses it; the next session asks anew."""
        self._held = {target: held for target, held in self._held.items() if held is not lease}

    def clear(self) -> None:
        """Another policy is in force: what it grants, and with which credential, is asked anew."""
        self._held.clear()
        self._asking.clear()  # an answer under way still serves those who wait for it, and is not kept

    async def _ask_broker(self, target: str) -> Lease:
        return await self._ask(target)

    def _keep(self, target: str, done: asyncio.Task[Lease]) -> None:
        if self._asking.get(target) is not done:
            return
        del self._asking[target]
        if not done.cancelled() and done.exception() is None:
            self._held[target] = done.result()
