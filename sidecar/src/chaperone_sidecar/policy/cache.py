"""Decisions by exact question.

OPA's answer is a function of the question it is asked and of the bundle it holds, and of nothing else. So the key is
the whole question (target, on whose behalf, resolution, every effect on every object and through what, how far it
reaches) under one revision. It is not a fingerprint: two statements share an entry only if OPA would be asked the very
same thing about both. The time is part of the question, too: OPA says of each answer whether it looked at it, and such
an answer stands for the minute that was asked about. What it gave by a count or an estimate is never kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from chaperone_sidecar.command import Access, Command, Extent, Facts, Resolution
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.user import User

MAX_ENTRIES: Final = 8192  # an agent uses some hundred kinds of statements; at about 500 bytes each, 4 MiB
MAX_ACCESSES: Final = 64  # questions about more are asked anew each time: rare, and large as keys

MINUTE_S: Final = 60
ALWAYS: Final = -1  # in place of a minute: the decision stands as long as its revision

type Key = tuple[str, User | None, Resolution, tuple[Access, ...], tuple[Extent, ...]]
type Kept = tuple[Decision, int]


class DecisionCache:
    """Least-recently-used decisions of one revision.

    Args:
        max_entries: how many are kept.
        wall_s: the clock by which policy goes, in Unix seconds.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, wall_s: Callable[[], float] = time.time) -> None:
        self._max_entries = max_entries
        self._wall_s = wall_s
        self._revision = ""
        self._entries: OrderedDict[Key, Kept] = OrderedDict()
        self._by_facts: dict[tuple[int, str, User | None], tuple[Facts, Kept]] = {}

    def minute(self) -> int:
        """The Unix minute that a question asks about."""
        return int(self._wall_s() // MINUTE_S)

    def find(self, target: str, command: Command, user: User | None = None) -> Decision | None:
        """The decision made before on exactly this question, if it still stands."""
        facts = command.facts
        known = self._by_facts.get((id(facts), target, user))
        if known is not None and self._stands(known[1]):  # the very object: no need to hash every access of it
            return known[1][0]
        key = (target, user, facts.resolution, facts.accesses, facts.extents)
        found = self._entries.get(key)
        if found is None or not self._stands(found):
            return None
        self._entries.move_to_end(key)
        self._note(target, user, facts, found)
        return found[0]

    def keep(
        self, target: str, command: Command, decision: Decision, minute: int = ALWAYS, user: User | None = None
    ) -> None:
        """Remember a decision, for the minute that it is about; one of another revision empties the cache first."""
        if decision.revision != self._revision:
            self.clear(decision.revision)
        facts = command.facts
        if len(facts.accesses) > MAX_ACCESSES:
            return
        kept = (decision, minute)
        self._entries[(target, user, facts.resolution, facts.accesses, facts.extents)] = kept
        self._note(target, user, facts, kept)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def clear(self, revision: str) -> None:
        """Forget everything: decisions of an older revision no longer stand."""
        self._entries.clear()
        self._by_facts.clear()
        self._revision = revision

    def _stands(self, kept: Kept) -> bool:
        return kept[1] == ALWAYS or kept[1] == self.minute()

    def _note(self, target: str, user: User | None, facts: Facts, kept: Kept) -> None:
        if len(self._by_facts) >= self._max_entries:
            self._by_facts.clear()
        self._by_facts[(id(facts), target, user)] = (facts, kept)  # holding the facts keeps their id theirs
