"""Decisions by exact command.

The key is everything that the decision was made from: target, kind, the exact text, the transaction state and the
policy's revision. A fingerprint or a text without its literals is never a key: two different GRANTs share one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Decision

MAX_CACHE_BYTES: Final = 4 << 20  # keys are statement texts; past this the least recently used go
MAX_TEXT_BYTES: Final = 32 << 10  # longer texts are decided anew each time: rare, and they would push out hundreds
_ENTRY_BYTES: Final = 400  # what a key's tuple, a decision and the table cost beside the text

type Key = tuple[str, str, bytes, bool]


class DecisionCache:
    """Least-recently-used decisions of one revision, bounded by the bytes of their texts."""

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._revision = ""
        self._entries: OrderedDict[Key, Decision] = OrderedDict()

    def find(self, target: str, command: Command) -> Decision | None:
        """The decision made before for exactly this command, if it still stands."""
        key = (target, command.kind, command.text, command.in_transaction)
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def keep(self, target: str, command: Command, decision: Decision) -> None:
        """Remember a decision; one of another revision empties the cache first."""
        if decision.revision != self._revision:
            self.clear(decision.revision)
        if len(command.text) > MAX_TEXT_BYTES:
            return
        key = (target, command.kind, command.text, command.in_transaction)
        if key not in self._entries:
            self._size_bytes += len(command.text) + _ENTRY_BYTES
        self._entries[key] = decision
        while self._size_bytes > self._max_bytes:
            old, _ = self._entries.popitem(last=False)
            self._size_bytes -= len(old[2]) + _ENTRY_BYTES

    def clear(self, revision: str) -> None:
        """Forget everything: decisions of an older revision no longer stand."""
        self._entries.clear()
        self._size_bytes = 0
        self._revision = revision
