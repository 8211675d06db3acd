"""Identifiers: ULIDs and random bytes."""

from __future__ import annotations

import os
import time

from chaperone_evidence import ulid

_POOL_BYTES = 4096  # random bytes fetched at once: one system call for four hundred ids


class Ids:
    """Makes ids; random bytes come from the kernel's generator."""

    def __init__(self) -> None:
        self._pool = b""
        self._used = 0

    def random(self, size: int) -> bytes:
        """Unpredictable bytes, at most as many as the pool holds."""
        if self._used + size > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES)
            self._used = 0
        self._used += size
        return self._pool[self._used - size : self._used]

    def ulid(self, after: str = "") -> str:
        """A new ULID, which sorts behind another one whatever the clock says."""
        now_ms = time.time_ns() // 1_000_000
        if after:
            now_ms = max(now_ms, ulid.time_ms(after) + 1)
        return ulid.encode(now_ms, self.random(ulid.RANDOM_BYTES))
