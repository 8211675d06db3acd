"""How much may be on its way: bytes that were received and not yet answered, in all and per pod.

Who sends more than its own part is refused. Where all of it is taken, a request waits, unread, for those before it: a
refusal would cost both sides a new connection and a second sending, and with a thousand gateways nothing else happened.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from chaperone_collector.errors import Refused
from chaperone_collector.metrics import Metrics

MAX_OUTSTANDING_BYTES: Final = 16 << 20  # of all pods; decoded they take many times as much memory
POD_WINDOW_BYTES: Final = 4 << 20  # of one pod: four full batches, so that nobody starves the others
WAIT_S: Final = 20.0  # for room; gateways give an answer half a minute


class Budget:
    """Counts outstanding bytes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._total = 0
        self._pods: Counter[str] = Counter()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def credit(self, pod_uid: str) -> int:
        """Bytes that the pod may send now."""
        return max(0, min(POD_WINDOW_BYTES - self._pods[pod_uid], MAX_OUTSTANDING_BYTES - self._total))

    @asynccontextmanager
    async def take(self, pod_uid: str, size: int) -> AsyncIterator[None]:
        """Hold room for a request while it is worked on, once there is some.

        Raises:
            Refused: the pod has too much on its way, or there was no room in time; the sender tries again.
        """
        if size > POD_WINDOW_BYTES - self._pods[pod_uid]:
            raise _refused()
        self._pods[pod_uid] += size
        try:
            await self._room(size)
            try:
                yield
            finally:
                self._release(size)
        finally:
            self._pods[pod_uid] -= size
            if not self._pods[pod_uid]:
                del self._pods[pod_uid]

    async def _room(self, size: int) -> None:
        if not self._waiting and self._total + size <= MAX_OUTSTANDING_BYTES:
            self._hold(size)
            return
        place = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        try:
            async with asyncio.timeout(WAIT_S):
                await place[1]
        except BaseException as error:
            if place[1].done() and not place[1].cancelled():
                self._release(size)  # it was given room in the same moment
            else:
                if place in self._waiting:
                    self._waiting.remove(place)
                self._admit()  # those behind it may be smaller
            if isinstance(error, TimeoutError):
                raise _refused() from error
            raise

    def _hold(self, size: int) -> None:
        self._total += size
        self._metrics.outstanding.set(self._total)

    def _release(self, size: int) -> None:
        self._hold(-size)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._total + self._waiting[0][0] <= MAX_OUTSTANDING_BYTES:
            size, future = self._waiting.popleft()
            if not future.cancelled():
                self._hold(size)
                future.set_result(None)


def _refused() -> Refused:
    return Refused(429, "Too much at once", "Wait for the answers to what was sent, then send it again.")
