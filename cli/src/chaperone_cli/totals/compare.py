"""`chaperone totals compare`: two snapshots against what the collector recorded between them, by role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from chaperone_cli.durable import replace
from chaperone_cli.kubectl import CannotAsk, Cluster
from chaperone_cli.report.asking import Asking
from chaperone_cli.report.rows import part
from chaperone_cli.say import say
from chaperone_cli.totals import reckon
from chaperone_cli.totals.reckon import Command, Row, Session
from chaperone_cli.totals.snapshot import CannotRead, Snapshot, check, load, read

FORMAT: Final = "chaperone.dev/totals/v1"
AGREES, DIFFERS, CANNOT = 0, 1, 2


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison: what was compared, and what came of it. Who has the records reckons it again."""

    format: str
    targets: list[str]
    named: list[str]  # roles that were asked for, whether a session names them or not
    skew_us: int
    size: int  # entries of the log that were looked at
    before: Snapshot
    after: Snapshot
    before_sha256: str
    after_sha256: str
    rows: list[Row]


def run(
    cluster: Cluster, before: Path, after: Path, targets: tuple[str, ...], named: tuple[str, ...], skew_s: float,
    output: Path | None, *, as_json: bool,
) -> int:  # fmt: skip
    """Compare and print; returns the exit status: 0 all agree, 1 something differs, 2 it cannot be compared."""
    try:
        (first, first_sha256), (last, last_sha256) = read(before), read(after)
        need_comparable(first, last)
        recorded = Recorded(Asking(cluster, ""), targets)
        skew_us = int(skew_s * 1_000_000)
        is_counted = first.witness == last.witness == "pg_stat_statements"
        rows = []
        if is_counted:
            rows = reckon.reckon(first, last, recorded.sessions, recorded.commands(), named, skew_us)
        found = Totals(
            format=FORMAT, targets=list(targets), named=list(named), skew_us=skew_us, size=recorded.size, before=first,
            after=last, before_sha256=first_sha256, after_sha256=last_sha256, rows=rows,
        )  # fmt: skip
        if output is not None:
            replace(output, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
        if not is_counted:
            return _bound(first, last, recorded)
    except (CannotRead, CannotAsk, OSError) as error:
        say(f"totals: CANNOT COMPARE: {error}", err=True)
        return CANNOT
    if as_json:
        click.echo(msgspec.json.encode([msgspec.structs.asdict(one) for one in rows]))
    else:
        _print(found)
    return DIFFERS if any(one.verdict != "Agrees" for one in rows) else AGREES


def load_totals(path: Path) -> Totals:
    """The comparison in a file of `totals compare -o`.

    Raises:
        CannotRead: it is none.
    """
    try:
        found = msgspec.json.decode(load(path), type=Totals)
    except msgspec.DecodeError as error:
        raise CannotRead(f"{path} is no comparison of `totals compare`: {error}") from error
    if found.format != FORMAT:
        raise CannotRead(f"{path} is not of the format {FORMAT}.")
    for one, name in ((found.before, "before"), (found.after, "after")):
        check(one, f"{path}, {name},")
    need_comparable(found.before, found.after)
    return found


def need_comparable(before: Snapshot, after: Snapshot) -> None:
    """Refuse two snapshots between which nothing can be counted.

    Raises:
        CannotRead: they are of two servers, in the wrong order, or of counters that do not count everything.
    """
    if before.server.system_identifier != after.server.system_identifier:
        raise CannotRead("The snapshots are of two servers.")
    if before.ended >= after.began:
        raise CannotRead("The second snapshot is not later than the first.")
    for one in (before, after):
        if one.witness == "pg_stat_statements":
            track, utility = (one.settings.get(f"pg_stat_statements.{name}", "") for name in ("track", "track_utility"))
            if track not in ("top", "all") or utility != "on":
                what = f"pg_stat_statements.track is {track or 'not known'}, track_utility {utility or 'not known'}"
                raise CannotRead(f"{what}: the server does not count every statement.")


class Recorded:
    """What the collector has of targets, as of one size of the log.

    Raises:
        CannotAsk: it does not give that.
    """

    def __init__(self, asking: Asking, targets: tuple[str, ...]) -> None:
        self._asking = asking
        self._targets = targets
        self._role_of: dict[str, str] = {}
        self.sessions: list[Session] = []
        for target in targets:
            for one in asking.evidence("sessions", fields=f"spec.target={target}"):
                role = str(part(one, "spec", "role") or "")
                self._role_of[str(part(one, "metadata", "name"))] = role
                times = (str(part(one, "status", name) or "") for name in ("startedAt", "endedAt"))
                self.sessions.append(Session(role, *times))
        self.size = int(asking.versions.get("sessions", "0"))

    def commands(self) -> Iterator[Command]:
        """The commands of the targets."""
        for target in self._targets:
            for one in self._asking.evidence("commands", self.size, fields=f"spec.target={target}"):
                yield self._command(one)

    def _command(self, one: dict[str, Any]) -> Command:
        spec, status = part(one, "spec"), part(one, "status")
        duration = part(status, "durationMicroseconds")
        return Command(
            role=self._role_of.get(str(part(spec, "session")), ""), kind=str(part(spec, "kind")),
            decision=str(part(spec, "decision")), statements=_integer(part(spec, "statements"), -1),
            status=str(part(status, "status")), code=str(part(status, "code") or ""),
            in_transaction=part(spec, "inTransaction") is True, decided=str(part(status, "decidedAt")),
            duration_us=duration if isinstance(duration, int) else None,
        )  # fmt: skip


def _integer(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _bound(before: Snapshot, after: Snapshot, recorded: Recorded) -> int:
    """Without counters by role: whether the server has seen at least the sessions that are recorded."""
    old = {one.name: one for one in before.databases}
    sessions = sum(one.sessions - old[one.name].sessions for one in after.databases if one.name in old)
    transactions = sum(one.transactions - old[one.name].transactions for one in after.databases if one.name in old)
    count = sum(before.ended <= one.started <= after.began for one in recorded.sessions)
    say(f"sessions: {sessions} began at the server, of everybody; {count} are recorded")
    say(f"transactions: {transactions} at the server, of everybody")
    if [one.reset for one in before.databases] != [one.reset for one in after.databases]:
        say("totals: NOT COMPARABLE: the counters of a database were reset")
        return DIFFERS
    if sessions < count:
        say("totals: RECORDED HAS MORE: the server counts fewer sessions than are recorded")
        return DIFFERS
    say("totals: NOT COMPARABLE by role: pg_stat_database does not say whose its sessions and transactions are")
    return DIFFERS


def _print(found: Totals) -> None:
    say(f"interval: {found.before.ended} to {found.after.began} by the server's clock")
    if found.before.server.started != found.after.server.started:
        say(f"note: the server was started anew at {found.after.server.started}")
    widths = [max(len(name), *(len(one.role or '<not said>') for one in found.rows), 4) if name == "ROLE" else len(name)
              for name in _HEADINGS] if found.rows else [len(name) for name in _HEADINGS]  # fmt: skip
    say("  ".join(name.ljust(width) for name, width in zip(_HEADINGS, widths, strict=True)).rstrip())
    for one in found.rows:
        cells = (
            one.role or "<not said>", str(one.calls), str(one.lookups), str(one.estimates),
            pair(one.recorded_least, one.recorded_most), pair(one.difference_least, one.difference_most),
            f"{one.verdict}{f': {one.why}' if one.why else ''}",
        )  # fmt: skip
        say("  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip())
    others = reckon.unnamed(found.before, found.after, found.rows)
    if others:
        say("others: " + ", ".join(f"{name} {count}" for name, count in others.items()))


_HEADINGS: Final = ("ROLE", "CALLS", "LOOKUPS", "ESTIMATES", "RECORDED", "DIFFERENCE", "VERDICT")


def pair(least: int, most: int) -> str:
    """A number, or the two between which it lies."""
    return str(least) if least == most else f"{least}..{most}"
