"""How often one caller may call: token buckets, as many as there is memory set aside for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from chaperone_operator.broker.errors import Refused

MAX_CALLERS: Final = 16_384  # buckets kept; past this the one idle for longest is forgotten, which only refills it


class Limit:
    """A budget per caller.

    Args:
        per_minute: calls that come back each minute.
        burst: calls that may be made at once.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller → (left, at)

    def take(self, caller: str) -> None:
        """Count one call.

        Raises:
            Refused: 429, with the time after which the next call is admitted.
        """
        now = self._clock()
        left, at = self._buckets.pop(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_second)
        admitted = left >= 1
        self._buckets[caller] = (left - 1 if admitted else left, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not admitted:
            after_s = int((1 - left) / self._per_second) + 1
            raise Refused(429, "Too many calls", f"Call again in {after_s} s.", retry_after_s=after_s)
