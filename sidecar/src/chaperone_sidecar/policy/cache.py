"""Decisions by exact question.

OPA's answer is a function of the question it is asked and of the bundle it holds, and of nothing else. So the key is
the whole question (target, resolution, every effect on every object and through what) under one revision. It is not a
fingerprint: two statements share an entry only if OPA would be asked the very same thing about both. Whatever policy
comes to look at (text, parameters, counts) has to become part of the question, and with that of the key.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from chaperone_sidecar.command import Access, Command, Facts, Resolution
from chaperone_sidecar.decision import Decision

MAX_ENTRIES: Final = 8192  # an agent uses some hundred kinds of statements; at about 500 bytes each, 4 MiB
MAX_ACCESSES: Final = 64  # questions about more are asked anew each time: rare, and large as keys

type Key = tuple[str, Resolution, tuple[Access, ...]]


class DecisionCache:
    """Least-recently-used decisions of one revision."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._revision = ""
        self._entries: OrderedDict[Key, Decision] = OrderedDict()
        self._by_facts: dict[tuple[int, str], tuple[Facts, Decision]] = {}

    def find(self, target: str, command: Command) -> Decision | None:
        """The decision made before on exactly this question, if it still stands."""
        facts = command.facts
        known = self._by_facts.get((id(facts), target))
        if known is not None:  # the very object: the same question, without hashing every access of it
            return known[1]
        key = (target, facts.resolution, facts.accesses)
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            self._note(target, facts, found)
        return found

    def keep(self, target: str, command: Command, decision: Decision) -> None:
        """Remember a decision; one of another revision empties the cache first."""
        if decision.revision != self._revision:
            self.clear(decision.revision)
        facts = command.facts
        if len(facts.accesses) > MAX_ACCESSES:
            return
        self._entries[(target, facts.resolution, facts.accesses)] = decision
        self._note(target, facts, decision)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def clear(self, revision: str) -> None:
        """Forget everything: decisions of an older revision no longer stand."""
        self._entries.clear()
        self._by_facts.clear()
        self._revision = revision

    def _note(self, target: str, facts: Facts, decision: Decision) -> None:
        if len(self._by_facts) >= self._max_entries:
            self._by_facts.clear()
        self._by_facts[(id(facts), target)] = (facts, decision)  # holding the facts keeps their id theirs
