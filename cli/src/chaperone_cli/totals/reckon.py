"""The reckoning: calls that a server counted, against commands that are recorded, by role. Pure.

Where neither side can know exactly, a number is a pair, the least and the most that it can be:

* a command that failed may have run some of its statements, one that was cut off all of them;
* a command whose time crosses an end of the interval was counted inside or outside of it;
* a session that is inside a transaction owes its last call, which the server counts when the next one begins; only
  sessions that are recorded are given that: one past the gateways explains nothing;
* an `EXPLAIN (FORMAT JSON)` was sent by the gateway, for an estimate, or by the agent.

So a difference that is shown is one in every case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from chaperone_cli.totals.snapshot import Counter, Snapshot, micros

MINTED: Final = "chp_*"  # the roles that are made for one session each, and those that are gone
_MINTED: Final = re.compile(r"chp_[0-7][0-9a-hjkmnp-tv-z]{25}\Z")
_SQLSTATE: Final = re.compile(r"[0-9A-Z]{5}\Z")  # the server's own error; the codes of limits are words
_RUNNING: Final = frozenset({"query", "execute"})  # kinds of commands that run statements
_EXTENDED: Final = frozenset({"parse", "bind", "execute"})

type Verdict = Literal["Agrees", "BackendHasMore", "RecordedHasMore", "NotComparable"]


class Session(msgspec.Struct, frozen=True):
    """What is recorded of a session; `ended` is empty where it has no end."""

    role: str
    started: str
    ended: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded of a command, as far as it is counted."""

    role: str
    kind: str
    decision: str
    statements: int
    status: str
    code: str
    in_transaction: bool
    decided: str
    duration_us: int | None  # None: it has no end


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One role. `difference` is calls of agents without a record; negative: records without a call."""

    role: str
    calls: int
    lookups: int
    estimates: int
    recorded_least: int
    recorded_most: int
    difference_least: int
    difference_most: int
    verdict: Verdict
    why: str = ""


class Interval:
    """From one snapshot to the other; clocks of gateways and server differ by at most `skew_us`."""

    def __init__(self, before: Snapshot, after: Snapshot, skew_us: int) -> None:
        self.outer = (micros(before.began) - skew_us, micros(after.ended) + skew_us)
        self.inner = (micros(before.ended) + skew_us, micros(after.began) - skew_us)

    def holds(self, command: Command) -> bool | None:
        """Whether a command is in it; None when that is not sure."""
        decided = micros(command.decided)
        ended = None if command.duration_us is None else decided + command.duration_us
        if decided > self.outer[1] or (ended is not None and ended < self.outer[0]):
            return False
        is_inside = self.inner[0] <= decided and (decided if ended is None else ended) <= self.inner[1]
        return True if is_inside else None


class _Count:
    """Commands of a role."""

    def __init__(self) -> None:
        self.least = 0
        self.most = 0
        self.is_known = True

    def add(self, command: Command, *, is_sure: bool) -> None:
        least, most = _calls(command)
        if most is None:
            self.is_known = False
            return
        self.most += most
        if is_sure:
            self.least += least
            # A server forgets the portal that is open when its transaction fails, and with it to count what it ran.
            is_failure = command.kind in _EXTENDED and command.status in ("Error", "Aborted")
            self.least -= is_failure and command.in_transaction


def _calls(command: Command) -> tuple[int, int | None]:
    """How many calls of the server a command was, at least and at most; None: not known."""
    if command.decision != "Allow" or command.kind not in _RUNNING:
        return 0, 0
    if command.statements < 0:
        return 0, None
    if command.status == "Ok":
        return command.statements, command.statements
    if command.status == "Error" and _SQLSTATE.match(command.code):
        return 0, max(command.statements - 1, 0)  # the one that failed is not counted
    return 0, command.statements


def reckon(
    before: Snapshot, after: Snapshot, sessions: Iterable[Session], commands: Iterable[Command], named: Iterable[str],
    skew_us: int,
) -> list[Row]:  # fmt: skip
    """One row for each role that sessions or `named` name.

    Raises:
        CannotRead: a time is none.
    """
    interval, counts = Interval(before, after, skew_us), {_group(name): _Count() for name in named}
    owing = (_Owing(before, skew_us), _Owing(after, skew_us))
    for session in sessions:
        counts.setdefault(_group(session.role), _Count())
        for one in owing:
            one.add(session)
    for command in commands:
        is_inside = interval.holds(command)
        count = counts.setdefault(_group(command.role), _Count())
        if is_inside is not False:
            count.add(command, is_sure=bool(is_inside))
    for name, count in counts.items():
        count.most += owing[0].of(name)
        count.least -= owing[1].of(name)
    spent, doubt = _spent(before, after)
    return [_row(name, count, spent.get(name, {}), doubt) for name, count in sorted(counts.items())]


def unnamed(before: Snapshot, after: Snapshot, rows: Iterable[Row]) -> dict[str, int]:
    """Calls of the roles that no row is about: other programs and people."""
    known, (spent, _) = {row.role for row in rows}, _spent(before, after)
    return {name: total for name, own in sorted(spent.items()) if name not in known and (total := sum(own.values()))}


def _row(name: str, count: _Count, spent: Mapping[str, int], doubt: str) -> Row:
    calls, lookups, estimates = sum(spent.values()), spent.get("lookup", 0), spent.get("estimate", 0)
    most = calls - lookups
    recorded_least = max(count.least, 0)
    least_missing, most_missing = most - estimates - count.most, most - recorded_least
    verdict: Verdict = "Agrees"
    why = ""
    if not name:
        verdict, why = "NotComparable", "the gateway that recorded these sessions did not say the role"
    elif not count.is_known:
        verdict, why = "NotComparable", "of a command it is not known how many statements it has"
    elif least_missing > 0:
        verdict = "BackendHasMore"
    elif doubt:
        verdict, why = "NotComparable", doubt
    elif most_missing < 0:
        verdict = "RecordedHasMore"
    return Row(
        role=name, calls=calls, lookups=lookups, estimates=estimates, recorded_least=recorded_least,
        recorded_most=count.most, difference_least=least_missing, difference_most=most_missing, verdict=verdict,
        why=why,
    )  # fmt: skip


def _spent(before: Snapshot, after: Snapshot) -> tuple[dict[str, dict[str, int]], str]:
    """Calls between the two by role and whose they are; and why they may be too few, if they may."""
    old = {_key(one): one for one in before.counters}
    names = {one.user_id: one.user for one in (*before.counters, *after.counters) if one.user}
    spent: dict[str, dict[str, int]] = {}
    doubt = _doubt(before, after)
    for one in after.counters:
        known = old.pop(_key(one), None)
        is_same = known is not None and known.calls <= one.calls and known.since == one.since
        if known is not None and not is_same:
            doubt = doubt or "counters of single statements were reset"
        if one.own == "nothing":
            continue
        calls = one.calls - known.calls if known is not None and is_same else one.calls
        own = spent.setdefault(_group(names.get(one.user_id, ""), is_gone=one.user_id not in names), {})
        own[one.own] = own.get(one.own, 0) + calls
    if old and not doubt:
        doubt = "counters of single statements are gone"
    return spent, doubt


def _doubt(before: Snapshot, after: Snapshot) -> str:
    if before.reset != after.reset:
        return f"the counters were reset at {after.reset}"
    if before.evicted != after.evicted:
        times = after.evicted - before.evicted
        return f"the server forgot kinds of statements {times} times; raise pg_stat_statements.max"
    return ""


def _key(one: Counter) -> tuple[int, int, int]:
    return one.user_id, one.database_id, one.query_id


def _group(name: str, *, is_gone: bool = False) -> str:
    return MINTED if is_gone or _MINTED.match(name) else name


class _Owing:
    """Sessions that may owe a call when a snapshot is taken: at work by the server, and open by the records."""

    def __init__(self, snapshot: Snapshot, skew_us: int) -> None:
        self._busy = snapshot.busy
        self._from, self._until = micros(snapshot.began) - skew_us, micros(snapshot.ended) + skew_us
        self._open: dict[str, int] = {}

    def add(self, session: Session) -> None:
        is_open = micros(session.started) <= self._until and (not session.ended or micros(session.ended) >= self._from)
        group = _group(session.role)
        self._open[group] = self._open.get(group, 0) + is_open

    def of(self, group: str) -> int:
        busy = sum(count for name, count in self._busy.items() if _group(name) == group)
        return min(busy, self._open.get(group, 0))
