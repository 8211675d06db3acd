"""Populations: lists of the cluster into tables, each object once, in the order of the log where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from chaperone_cli.kubectl import CannotAsk
from chaperone_cli.report import rows, silence, tables
from chaperone_cli.report.asking import Asking, Object
from chaperone_cli.report.period import Period
from chaperone_cli.report.rows import part
from chaperone_cli.report.sampling import STRATA, Draw
from chaperone_cli.report.tallying import Tally
from chaperone_evidence import note, population
from chaperone_evidence.errors import EvidenceError

_NUL: Final = "\0"  # no name holds it
_EXACT: Final = frozenset({"commands", "reads", "populations"})  # the API gives these as of any size of the log


class Gathered(msgspec.Struct):
    """What the tables do not say."""

    draws: dict[str, Draw]
    notes: list[str] = []
    unlisted: set[str] = set()  # tables of which the cluster did not give everything


class Gathering:
    """Writes the tables of a package.

    Args:
        asking: where from.
        folder: where to.
        period: which records.
        size: of the log at the checkpoint.
        draws: by the class of commands.
    """

    def __init__(self, asking: Asking, folder: Path, period: Period, size: int, draws: dict[str, Draw]) -> None:
        self.found = Gathered(draws, [], set())
        self._asking, self._folder, self._period, self._size = asking, folder, period, size
        self._names: dict[str, str] = {}  # of pods: what populations say of them
        self._attested = silence.Attested()

    def run(self) -> Gathered:
        """Write all of them.

        Raises:
            CannotAsk: commands or sessions are not given. What else is not given is noted.
        """
        self._epochs()
        self._pods()
        with closing(Tally()) as by_session, closing(Tally()) as by_approval, closing(Tally()) as by_revision:
            self._commands(by_session, by_approval, by_revision)
            self._sessions(by_session)
            self._approvals(by_approval)
            self._revisions(by_revision)
        self._identities()
        self._objects()
        self._reads()
        with tables.table(self._folder, tables.SILENCE) as table:
            for row in self._attested.rows(self._period):
                table.add(row)
        return self.found

    def _optional(self, resource: str, listing: Callable[[], Iterator[Object]]) -> Iterator[Object]:
        """Objects that a report can do without, and says so."""
        try:
            yield from listing()
        except CannotAsk as error:
            self.found.notes.append(f"{resource} could not be listed, so nothing is said of them: {error}")
            self.found.unlisted.update(tables.LISTED_AS[resource])
            self._attested.unasked.add(resource)

    def _evidence(self, resource: str) -> Iterator[Object]:
        return self._asking.evidence(resource, self._size if resource in _EXACT else 0)

    def _epochs(self) -> None:
        last: dict[str, str] = {}
        with tables.table(self._folder, tables.EPOCHS) as table:
            for one in self._optional("populations", lambda: self._evidence("populations")):
                namespace, epoch = str(part(one, "metadata", "namespace")), part(one, "spec", "epoch")
                digest, at = part(one, "status", "hash"), str(part(one, "status", "receivedAt"))
                follows = epoch == 1 or last.get(namespace) == part(one, "spec", "previous")
                last[namespace] = str(digest)
                if at >= self._period.until:
                    continue
                self._attested.spoke(namespace, at, follows=follows)
                self._name(str(part(one, "spec", "note")), is_in_period=self._period.holds(at))
                if self._period.holds(at):
                    table.add({
                        "namespace": namespace, "epoch": epoch, "index": part(one, "status", "index"), "hash": digest,
                        "pods": part(one, "status", "pods"), "received_at": at, "follows": follows,
                    })  # fmt: skip

    def _name(self, text: str, *, is_in_period: bool) -> None:
        """Take in what a population says of pods; before the period, only its last word before it counts."""
        try:
            said = population.parse(note.parse(text.encode(), most_bytes=population.MAX_NOTE_BYTES).body)
        except EvidenceError as error:
            self.found.notes.append(f"a population cannot be read: {error}")
            return
        for covered in said.covered:
            self._names[covered.pod_uid] = "covered"
        for uncovered in said.uncovered:
            self._names[uncovered.pod_uid] = f"uncovered {uncovered.reason}"
        for ended in said.ended:
            if is_in_period:
                self._names[ended.pod_uid] = f"ended {ended.reason}"
            else:
                self._names.pop(ended.pod_uid, None)

    def _pods(self) -> None:
        folder, period = self._folder, self._period
        with tables.table(folder, tables.PODS) as pods, tables.table(folder, tables.GAPS) as gaps:
            seen = set()
            for one in self._optional("coverages", lambda: self._evidence("coverages")):
                ended = part(one, "status", "endedAt")
                if not period.overlaps(part(one, "metadata", "creationTimestamp"), ended):
                    continue
                uid = str(part(one, "metadata", "name"))
                seen.add(uid)
                pods.add(rows.coverage(one, self._names.get(uid, "")))
                spans = [gap for gap in rows.gaps(one) if period.overlaps(gap["from"], gap["until"])]
                for gap in spans:
                    gaps.add(gap)
                self._attested.pod(
                    str(part(one, "metadata", "namespace")), str(part(one, "spec", "identity")),
                    str(part(one, "status", "state")), is_named=uid in self._names, gaps=len(spans),
                )  # fmt: skip
        unheard = len(self._names.keys() - seen)
        if unheard and "coverages" not in self._attested.unasked:
            self.found.notes.append(f"{unheard} pods that populations name have no coverage of this period")

    def _commands(self, by_session: Tally, by_approval: Tally, by_revision: Tally) -> None:
        folder = self._folder
        with tables.table(folder, tables.COMMANDS) as table, tables.table(folder, tables.REFUSED) as refused:
            for one in self._evidence("commands"):
                row = rows.command(one)
                at = str(row["decided_at"])
                if not self._period.holds(at):
                    continue
                table.add(row)
                if row["class"] == "refused":
                    refused.add(row)
                name, namespace = str(row["name"]), str(row["namespace"])
                by_session.add(f"{namespace}{_NUL}{row['session']}")
                by_approval.add(f"{namespace}{_NUL}{row['approval'] or ''}")
                by_revision.add(f"{namespace}{_NUL}{row['revision'] or ''}", name, at)
                self._attested.command(namespace, str(row["identity"]))
                self.found.draws[str(row["class"])].add(int(str(row["index"])))

    def _sessions(self, by_session: Tally) -> None:
        with tables.table(self._folder, tables.SESSIONS) as table:
            for one in self._evidence("sessions"):
                started, ended = part(one, "status", "startedAt"), part(one, "status", "endedAt")
                if not self._period.overlaps(started, ended):
                    continue
                namespace, name = str(part(one, "metadata", "namespace")), str(part(one, "metadata", "name"))
                counted = by_session.count(f"{namespace}{_NUL}{name}")
                table.add(rows.session(one, counted, self._total(one, counted)))
                self._attested.session(namespace, str(part(one, "spec", "identity")))

    def _total(self, one: Object, counted: int) -> str:
        """Whether the session's own count is that of its commands here, where the two can be compared."""
        version = str(part(one, "metadata", "resourceVersion"))
        is_settled = version.isdecimal() and int(version) <= self._size
        if not is_settled or not self._period.is_whole(part(one, "status", "startedAt"),
                                                       part(one, "status", "endedAt")):  # fmt: skip
            return "not comparable"
        return "agrees" if counted == part(one, "status", "commands") else "differs"

    def _approvals(self, by_approval: Tally) -> None:
        seen = set()
        with tables.table(self._folder, tables.APPROVALS) as table:
            for one in self._optional("approvalrequests", lambda: self._asking.control("approvalrequests")):
                key = f"{part(one, 'metadata', 'namespace')}{_NUL}{part(one, 'metadata', 'name')}"
                seen.add(key)
                commands = by_approval.count(key)
                if commands or self._period.holds(part(one, "spec", "createdAt")):
                    table.add(rows.approval(one, commands))
            if "approvalrequests" in self._attested.unasked:
                return
            for key, count, *_ in by_approval.all():
                namespace, _, name = key.partition(_NUL)
                if name and key not in seen:
                    table.add(rows.gone(namespace, name, count))

    def _revisions(self, by_revision: Tally) -> None:
        with tables.table(self._folder, tables.REVISIONS) as table:
            for key, count, first, first_at, last, last_at in by_revision.all():
                namespace, _, revision = key.partition(_NUL)
                table.add({
                    "namespace": namespace, "revision": revision, "commands": count, "first_command": first,
                    "first_at": first_at, "last_command": last, "last_at": last_at,
                })  # fmt: skip

    def _identities(self) -> None:
        with tables.table(self._folder, tables.IDENTITIES) as table:
            for one in self._optional("agentidentities", lambda: self._asking.control("agentidentities")):
                row = rows.identity(one)
                table.add(row)
                self._attested.identity(str(row["namespace"]), str(row["name"]), str(row["created_at"]))

    def _objects(self) -> None:
        with tables.table(self._folder, tables.OBJECTS) as table:
            for kind, resource in rows.CONTROLS.items():
                listing = self._control(resource, is_clustered=kind in rows.CLUSTERED)
                for one in self._optional(resource, listing):
                    table.add(rows.control(one, kind))

    def _control(self, resource: str, *, is_clustered: bool) -> Callable[[], Iterator[Object]]:
        return lambda: self._asking.control(resource, is_clustered=is_clustered)

    def _reads(self) -> None:
        with tables.table(self._folder, tables.READS) as table, closing(Tally()) as readers, closing(Tally()) as given:
            for one in self._optional("reads", lambda: self._evidence("reads")):
                row = rows.read(one)
                at = str(row["read_at"])
                if self._period.holds(at):
                    table.add(row)
                    readers.add(str(row["user"]), at=at)
                    given.add(str(row["user"]), by=int(str(row["given"] or 0)))
            with tables.table(self._folder, tables.READERS) as summary:
                for user, count, _, first_at, _, last_at in readers.all():
                    summary.add({
                        "user": user, "reads": count, "objects_given": given.count(user), "first_at": first_at,
                        "last_at": last_at,
                    })  # fmt: skip


def draws(nonce: str, root: bytes, asked: int) -> dict[str, Draw]:
    """One draw for each class of commands."""
    return {name: Draw(nonce, root, asked) for name in STRATA}
