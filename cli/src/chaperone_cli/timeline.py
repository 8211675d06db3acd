"""What several watches tell, in the order of its time.

A watch tells its own changes in the order of the log; several watches, and several gateways, do not wait for each
other. So what comes is held for a moment, and goes on when it has settled and every other watch has told as much of
the log, or has nothing to tell. No more than `MAX_HELD` moments are held: then the watch that is ahead is not read.
What comes later than that is told where it comes, with its own time; nothing is left out, and nothing told twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

SETTLE_S: Final = 0.5  # a gateway ships within 0.1 s, and the collector looks every 0.05 s
BEGIN_S: Final = 2.5  # until a watch of which nothing came is taken to have nothing to tell: kubectl starts meanwhile
MAX_HELD: Final = 2000  # moments; each has one line's text


class Moment(msgspec.Struct, frozen=True):
    """One thing that happened. `at` is RFC 3339 in UTC with six digits, so that texts sort as times do.

    `key` names it: what comes of the same key while it is held takes its place.
    """

    key: tuple[str, str]
    at: str
    is_end: bool  # of what began before it, if both are of one time
    who: str
    target: str
    protocol: str
    lines: tuple[tuple[str, str], ...]  # sign and text of each
    is_refused: bool = False
    is_failed: bool = False
    is_whole_second: bool = False  # what told it knows no more of its time


class _Held(msgspec.Struct):
    moment: Moment
    resource: str
    version: int
    since_s: float


class Timeline:
    """Moments on their way from watches to people.

    Args:
        resources: of the watches.
        now_s: by a monotonic clock.
    """

    def __init__(self, resources: Iterable[str], now_s: float) -> None:
        self._versions = dict.fromkeys(resources, 0)  # what each watch has told
        self._heard_s: dict[str, float] = {}
        self._held: dict[tuple[str, str], _Held] = {}
        for resource in self._versions:
            self.begins(resource, now_s)

    def begins(self, resource: str, at_s: float) -> None:
        """A watch begins then, the first time or again; it is waited for until it has had time to tell something."""
        self._heard_s[resource] = at_s + BEGIN_S

    def reached(self, resource: str, version: int, now_s: float) -> None:
        """A watch has told everything below a version of the log."""
        self._versions[resource] = max(version, self._versions[resource])
        self._heard_s[resource] = now_s

    def add(self, resource: str, version: int, moments: Iterable[Moment], now_s: float) -> None:
        """A watch has told moments, at a version of the log."""
        self.reached(resource, version, now_s)
        self._hold(resource, version, moments, now_s)

    def add_apart(self, moments: Iterable[Moment], now_s: float) -> None:
        """Something has told moments that are not of the log: they settle, and no watch of the log is waited for."""
        self._hold("", 0, moments, now_s)

    def _hold(self, resource: str, version: int, moments: Iterable[Moment], now_s: float) -> None:
        for moment in moments:
            before = self._held.get(moment.key)
            self._held[moment.key] = _Held(moment, resource, version, now_s if before is None else before.since_s)

    def is_held(self, key: tuple[str, str]) -> bool:
        """Whether a moment is not told yet."""
        return key in self._held

    def due(self, now_s: float) -> Iterator[Moment]:
        """Take what may be told now."""
        for one in self._sorted():
            if not self._is_due(one, now_s):
                return
            del self._held[one.moment.key]
            yield one.moment

    def all(self) -> Iterator[Moment]:
        """Take everything: nothing is heard for a while."""
        held = self._sorted()
        self._held = {}
        return (one.moment for one in held)

    def wait_s(self) -> float | None:
        """How long to wait for more before `due` is asked again; None: for as long as it takes."""
        return SETTLE_S / 2 if self._held else None

    def wanted(self) -> frozenset[str]:
        """The resources whose watches are to be read."""
        if len(self._held) < MAX_HELD or len(set(self._versions.values())) == 1:
            return frozenset(self._versions)
        ahead = max(self._versions, key=lambda name: self._versions[name])
        return frozenset(self._versions) - {ahead}

    def _is_due(self, one: _Held, now_s: float) -> bool:
        is_settled = now_s - one.since_s >= SETTLE_S or len(self._held) >= MAX_HELD
        return is_settled and all(
            version >= one.version or now_s - self._heard_s[name] >= SETTLE_S
            for name, version in self._versions.items()
            if name != one.resource
        )

    def _sorted(self) -> list[_Held]:
        return sorted(self._held.values(), key=lambda one: (one.moment.at, one.moment.is_end))
