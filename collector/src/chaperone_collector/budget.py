"""How much may be on its way: bytes that were received and not yet answered, in all and per pod."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from chaperone_collector.errors import Refused
from chaperone_collector.metrics import Metrics

MAX_OUTSTANDING_BYTES: Final = 64 << 20  # of all pods: bounds the collector's memory
POD_WINDOW_BYTES: Final = 4 << 20  # of one pod: four full batches, so that nobody starves the others


class Budget:
    """Counts outstanding bytes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._total = 0
        self._pods: Counter[str] = Counter()

    def credit(self, pod_uid: str) -> int:
        """Bytes that the pod may send now."""
        return max(0, min(POD_WINDOW_BYTES - self._pods[pod_uid], MAX_OUTSTANDING_BYTES - self._total))

    @contextmanager
    def take(self, pod_uid: str, size: int) -> Iterator[None]:
        """Hold room for a request while it is worked on.

        Raises:
            Refused: none is left; the sender waits and tries again.
        """
        if size > self.credit(pod_uid):
            raise Refused(429, "Too much at once", "Wait for the answers to what was sent, then send it again.")
        self._pods[pod_uid] += size
        self._total += size
        self._metrics.outstanding.set(self._total)
        try:
            yield
        finally:
            self._total -= size
            self._pods[pod_uid] -= size
            if not self._pods[pod_uid]:
                del self._pods[pod_uid]
            self._metrics.outstanding.set(self._total)
