"""When a request ends, whatever becomes of the clock on the wall.

A wall clock that jumps forward ends requests early, which only denies. One that jumps back would let an old approval
count again; so each request is also timed by the monotonic clock from when this process saw it first, and the first of
both ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from chaperone_operator.approval import Request

type Clock = Callable[[], float]


class Deadlines:
    """The ends of requests.

    Args:
        wall: seconds since 1970.
        monotonic: seconds since whenever.
    """

    def __init__(self, wall: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ends: dict[str, float] = {}

    def now(self) -> float:
        """Seconds since 1970."""
        return self._wall()

    def is_over(self, request: Request) -> bool:
        """Whether a request has ended; the first question about it starts its time by the monotonic clock."""
        left = request.spec.expires_at.timestamp() - self._wall()
        now = self._monotonic()
        # A clock that stood back when the request was first seen gives it its whole time at most.
        most = min(left, request.spec.approval.valid_for_seconds)
        return left <= 0 or now >= self._ends.setdefault(request.metadata.uid, now + most)

    def keep(self, uids: Iterable[str]) -> None:
        """Forget all requests but these."""
        kept = set(uids)
        self._ends = {uid: end for uid, end in self._ends.items() if uid in kept}
