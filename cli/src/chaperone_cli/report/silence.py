"""Negative evidence: is it attested that an identity did nothing, or is merely nothing known?

That nothing was recorded proves nothing by itself. It is attested when populations name, for the whole period and
without a break, which pods of the identity there were; each of these was heard throughout;
and no command is in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

import msgspec

from chaperone_cli.report import period as times
from chaperone_cli.report.period import Period

HEARD: Final = frozenset({"Covered", "Ended"})
NAMED_WITHIN: Final = timedelta(minutes=1)
SPOKEN_WITHIN: Final = timedelta(minutes=20)  # the operator names the pods at least every ten minutes


class _Spoken(msgspec.Struct):
    """The populations of a namespace up to the end of the period."""

    first_at: str
    last_at: str
    is_whole: bool


class _Seen(msgspec.Struct):
    """What there is of an identity."""

    created_at: str = ""
    commands: int = 0
    sessions: int = 0
    pods: int = 0
    gaps: int = 0
    unnamed: int = 0
    unheard: int = 0


class Attested:
    """Takes in what is known of identities, and judges it. Memory grows with identities, not with records."""

    def __init__(self) -> None:
        self.unasked: set[str] = set()
        self._spoken: dict[str, _Spoken] = {}
        self._seen: dict[tuple[str, str], _Seen] = {}

    def spoke(self, namespace: str, at: str, *, follows: bool) -> None:
        """The operator named the pods of a namespace."""
        spoken = self._spoken.setdefault(namespace, _Spoken(at, at, True))
        spoken.last_at, spoken.is_whole = at, spoken.is_whole and follows

    def identity(self, namespace: str, name: str, created_at: str) -> None:
        """There is this AgentIdentity."""
        self._of(namespace, name).created_at = created_at

    def pod(self, namespace: str, identity: str, state: str, *, is_named: bool, gaps: int) -> None:
        """A pod of the identity was there."""
        seen = self._of(namespace, identity)
        seen.pods += 1
        seen.gaps += gaps
        seen.unnamed += not is_named
        seen.unheard += state not in HEARD

    def command(self, namespace: str, identity: str) -> None:
        """It did something."""
        self._of(namespace, identity).commands += 1

    def session(self, namespace: str, identity: str) -> None:
        """It was connected."""
        self._of(namespace, identity).sessions += 1

    def rows(self, period: Period) -> Iterator[dict[str, object]]:
        """A row for each identity."""
        for (namespace, identity), seen in sorted(self._seen.items()):
            verdict, why = self._judge(namespace, seen, period)
            yield {
                "namespace": namespace, "identity": identity, "commands": seen.commands, "sessions": seen.sessions,
                "pods": seen.pods, "verdict": verdict, "why": why,
            }  # fmt: skip

    def _of(self, namespace: str, identity: str) -> _Seen:
        return self._seen.setdefault((namespace, identity), _Seen())

    def _judge(self, namespace: str, seen: _Seen, period: Period) -> tuple[str, str]:
        if seen.commands:
            return "active", "it has commands in this period"
        for resource in ("populations", "coverages"):
            if resource in self.unasked:
                return "unknown", f"{resource} could not be listed"
        spoken = self._spoken.get(namespace)
        if spoken is None:
            return "unknown", "no population names the pods of its namespace"
        doubts = (
            (not spoken.is_whole, "a population does not follow the one before it"),
            (_moment(spoken.first_at) > _begin(period, seen), f"populations begin at {spoken.first_at}"),
            (_moment(spoken.last_at) + SPOKEN_WITHIN < _end(period), f"the last population is of {spoken.last_at}"),
            (seen.unnamed > 0, f"{seen.unnamed} of its pods are in no population"),
            (seen.gaps > 0, f"{seen.gaps} times of its pods are without proof"),
            (seen.unheard > 0, f"{seen.unheard} of its pods were not heard to their end"),
        )
        for is_so, why in doubts:
            if is_so:
                return "unknown", why
        if not seen.pods:
            return "attested", "populations name no pod of it, and the log has no command"
        return "attested", f"each of its pods ({seen.pods}) was heard throughout, and the log has no command"


def _begin(period: Period, seen: _Seen) -> datetime:
    """Since when populations have to name its pods: an identity that is new is named within a minute."""
    begin = _moment(period.since)
    return max(begin, _moment(seen.created_at) + NAMED_WITHIN) if seen.created_at else begin


def _end(period: Period) -> datetime:
    return min(_moment(period.until), _moment(times.now()))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
