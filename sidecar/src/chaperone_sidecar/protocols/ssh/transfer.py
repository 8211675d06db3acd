"""What went through an open file: how much, and which content, where it came in one piece.

Clients keep several requests under way, so pieces come in any order; a few are kept until what is before them has come.
"""

from __future__ import annotations

import hashlib
from typing import Final

MAX_KEPT_BYTES: Final = 4 << 20  # of pieces that came early; clients keep at most 64 of 32 KiB under way


class Transfer:
    """One direction of one open file."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._next = 0
        self._early: dict[int, bytes] = {}
        self._early_bytes = 0
        self._is_whole = True

    def take(self, offset: int, data: bytes) -> None:
        """A piece went through."""
        self.size_bytes += len(data)
        if not self._is_whole or not data:
            return
        if offset < self._next or offset in self._early:  # read or written a second time
            self._drop()
            return
        self._early[offset] = data
        self._early_bytes += len(data)
        while (piece := self._early.pop(self._next, None)) is not None:
            self._digest.update(piece)
            self._next += len(piece)
            self._early_bytes -= len(piece)
        if self._early_bytes > MAX_KEPT_BYTES:
            self._drop()

    @property
    def code(self) -> str:
        """`sha256:` and the digest of all that went through, from the first byte on; "" where that is not one text."""
        return f"sha256:{self._digest.hexdigest()}" if self._is_whole and not self._early and self._next else ""

    def _drop(self) -> None:
        self._is_whole = False
        self._early.clear()
