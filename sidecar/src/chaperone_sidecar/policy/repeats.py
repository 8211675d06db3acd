"""How often rules were used that may be used only so often in a span of time (`match.require.maxRepeats`).

Counted in this process, so for one pod, and from nothing when the gateway starts anew. The time is monotonic: whoever
sets the clock gains no use.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec


class Use(msgspec.Struct, frozen=True, gc=False):
    """A rule that an answer uses: its name, and how often it may be used within how many seconds."""

    rule: str
    count: int
    per_s: int


class Repeats:
    """The uses of one gateway.

    Args:
        now_s: a monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._used: dict[tuple[str, str], tuple[int, deque[float]]] = {}

    def of(self, target: str) -> dict[str, int]:
        """How often each rule was used at a target, within the span that it had then; others were not."""
        found = {}
        for (place, rule), (per_s, moments) in self._used.items():
            if place == target:
                self._forget(moments, per_s)
                if moments:
                    found[rule] = len(moments)
        return found

    def take(self, target: str, uses: Sequence[Use]) -> bool:
        """Count a use of every rule, or none of them: when one has been used as often as it may be."""
        counters = [self._counter(target, use) for use in uses]
        if any(len(moments) >= use.count for use, moments in zip(uses, counters, strict=True)):
            return False
        now_s = self._now_s()
        for moments in counters:
            moments.append(now_s)
        return True

    def _counter(self, target: str, use: Use) -> deque[float]:
        _, moments = self._used.get((target, use.rule), (0, deque()))
        self._used[(target, use.rule)] = (use.per_s, moments)
        self._forget(moments, use.per_s)
        return moments

    def _forget(self, moments: deque[float], per_s: int) -> None:
        begin_s = self._now_s() - per_s
        while moments and moments[0] <= begin_s:
            moments.popleft()
