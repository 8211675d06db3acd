"""What is archived and what comes next, read from and noted in the collector's database.

A segment is decided once: its range, its checkpoint and its hash are in the table `archived` before anything of it is
uploaded, so that whoever goes on after a crash uploads the same objects again, and the bucket refuses them as known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from chaperone_collector import database, datakeys, population
from chaperone_collector.archive import pack
from chaperone_collector.archive.segment import Beside, Segment
from chaperone_collector.database import Connection
from chaperone_collector.errors import KeyDestroyed
from chaperone_collector.retention import received
from chaperone_evidence import canonical, entry, record, statement
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.revision import FILES

OPERATOR: Final = ""  # no identity: bodies that are the operator's or reports, which are not encrypted
REPORTS: Final = "*"  # in place of a namespace: a report is of all
_NO_BODIES: Final = (entry.CLASS_HEAD, statement.CLASS_READ, statement.CLASS_STATEMENT)

type Owner = tuple[str, str, int]  # namespace, identity, day


class Row(msgspec.Struct, frozen=True):
    """A segment that was decided."""

    first: int
    count: int
    note: bytes  # the checkpoint that covers it; empty: the next segments' does
    segment: bytes  # SHA-256 of the object
    pack: bytes | None  # SHA-256 of the object; None: not made yet


class Named(msgspec.Struct, frozen=True, gc=False):
    """A body that an entry names."""

    commit: bytes
    owner: Owner


class Draft(msgspec.Struct, frozen=True):
    """A segment, with the bodies that it names."""

    segment: Segment
    named: list[Named]
    note: bytes  # the checkpoint at its end; empty where there is none


def archived(db: Connection, place: str) -> int:
    """How many entries are decided to be at that place, from the first on."""
    row = db.execute("SELECT max(first + count) FROM archived WHERE place = ?", (place,)).fetchone()
    return int(row[0] or 0)


def pending(db: Connection, place: str) -> Row | None:
    """The first segment that is decided and not known to be there."""
    row = db.execute(
        "SELECT first, count, note, segment, pack FROM archived WHERE place = ? AND done_us IS NULL "
        "ORDER BY first LIMIT 1",
        (place,),
    ).fetchone()
    return Row(row[0], row[1], bytes(row[2]), bytes(row[3]), row[4]) if row else None


def lag(db: Connection, place: str, now_us: int) -> tuple[int, int]:
    """Entries that are not there, and for how long the oldest of them is here, microseconds."""
    row = db.execute(
        "SELECT coalesce(max(first + count), 0) FROM archived WHERE place = ? AND done_us IS NOT NULL", (place,)
    ).fetchone()
    there = int(row[0])
    size = int(db.execute("SELECT coalesce(max(idx) + 1, 0) FROM entry").fetchone()[0])
    if there >= size:
        return 0, 0
    return size - there, max(now_us - received(db, there)[1], 0)


def next_draft(db: Connection, place: str, most_bytes: int, older_than_us: int) -> Draft | None:
    """The next segment, if its oldest entry is older than that, or entries alone have half the bytes; None otherwise.

    It ends where a checkpoint does, one with signatures of witnesses where there is one. Where checkpoints lie too far
    apart it ends before, and is proved once the next one is there.
    """
    first = archived(db, place)
    row = db.execute(
        "SELECT size FROM checkpoint WHERE size > ? ORDER BY witnesses > 0 DESC, size DESC LIMIT 1", (first,)
    ).fetchone()
    if row is None:
        return None
    if received(db, first)[1] > older_than_us:
        waits = "SELECT coalesce(sum(length(bytes)), 0) FROM entry WHERE idx >= ? AND idx < ?"
        if db.execute(waits, (first, row[0])).fetchone()[0] < most_bytes // 2:
            return None
    found = _collect(db, first, int(row[0]), most_bytes)
    found.cut(db)
    end = first + len(found.entries)
    noted = db.execute("SELECT note FROM checkpoint WHERE size = ?", (end,)).fetchone()
    return Draft(found.segment(db), found.named(), bytes(noted[0]) if noted else b"")


def decided(db: Connection, first: int, count: int) -> tuple[Segment, list[Named]]:
    """A segment of before, made again."""
    found = _collect(db, first, first + count, None)
    return found.segment(db), found.named()


def decide(db: Connection, place: str, draft: Draft, digest: bytes, now_us: int) -> None:
    """Note a segment before it is uploaded, and make the keys that its pack needs; in a transaction."""
    for owner in {one.owner for one in draft.named if one.owner[1] != OPERATOR}:
        try:
            datakeys.key_for(db, *owner)
        except KeyDestroyed:
            continue  # the body was erased, and so is not packed
    db.execute(
        "INSERT INTO archived (place, first, count, note, segment, sealed_us) VALUES (?,?,?,?,?,?)",
        (place, draft.segment.first, len(draft.segment.entries), draft.note, digest, now_us),
    )


def note_pack(db: Connection, place: str, first: int, digest: bytes) -> None:
    """Note which pack is uploaded next; in a transaction."""
    db.execute("UPDATE archived SET pack = ? WHERE place = ? AND first = ?", (digest, place, first))


def note_done(db: Connection, place: str, first: int, now_us: int) -> None:
    """Note that all of a segment is there; in a transaction."""
    db.execute("UPDATE archived SET done_us = ? WHERE place = ? AND first = ?", (now_us, place, first))


def sealed_bodies(db: Connection, named: list[Named]) -> Iterator[pack.Sealed]:
    """The bodies that are here and not erased, as they lie in a pack."""
    for one in named:
        row = db.execute("SELECT bytes FROM body WHERE hash = ?", (one.commit,)).fetchone()
        if row is None or not row[0]:
            continue
        if one.owner[1] == OPERATOR:
            yield pack.Sealed(pack.PLAIN, one.commit, bytes(row[0]))
            continue
        key = db.execute(
            "SELECT id, key FROM datakey WHERE namespace = ? AND identity = ? AND day = ? AND key IS NOT NULL",
            one.owner,
        ).fetchone()
        if key is not None:
            yield pack.seal(key[0], bytes(key[1]), one.commit, bytes(row[0]))


class _Range:
    """Entries from `first` on, and of which streams they are."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.entries: list[bytes] = []
        self.streams: list[int] = []
        self._named: list[
            tuple[int, bytes, str]
        ] = []  # index, commitment, namespace of what the operator said, or REPORTS
        self._received: list[tuple[int, int]] = []
        self._owners: dict[int, tuple[str, str]] = {}

    def add(self, stream: int, data: bytes) -> list[bytes]:
        """Take an entry in; gives what it names."""
        commits = []
        for commit, namespace in _commits(data):
            self._named.append((self.first + len(self.entries), commit, namespace))
            commits.append(commit)
        self.entries.append(data)
        self.streams.append(stream)
        return commits

    def cut(self, db: Connection) -> None:
        """Let it end where the last checkpoint in it does."""
        end = self.first + len(self.entries)
        row = db.execute(
            "SELECT size FROM checkpoint WHERE size > ? AND size <= ? ORDER BY witnesses > 0 DESC, size DESC LIMIT 1",
            (self.first, end),
        ).fetchone()
        if row is not None:
            keep = int(row[0]) - self.first
            self.entries, self.streams = self.entries[:keep], self.streams[:keep]
            self._named = [one for one in self._named if one[0] < row[0]]

    def segment(self, db: Connection) -> Segment:
        """The segment."""
        self._received = _times(db, self.first, self.first + len(self.entries))
        runs: list[tuple[int, int]] = []
        for stream in self.streams:
            if runs and runs[-1][0] == stream:
                runs[-1] = (stream, runs[-1][1] + 1)
            else:
                runs.append((stream, 1))
        row = db.execute("SELECT value FROM meta WHERE key = ?", (population.KEY,)).fetchone()
        key = bytes(row[0]).decode() if row else ""
        has_said = any(one[1] in (statement.CLASS_POPULATION, statement.CLASS_POLICY) for one in self.entries)
        # The key is pinned by the first that it signed: a segment without any says none, so that it stays the same.
        return Segment(self.first, self.entries, Beside(runs, self._received, key if has_said else ""))

    def named(self) -> list[Named]:
        """What the entries name; after `segment`, in the thread of the connection."""
        found: dict[bytes, Named] = {}
        position, day = 0, 0
        for idx, commit, namespace in self._named:
            while position < len(self._received) and self._received[position][0] <= idx:
                day = datakeys.day_of(self._received[position][1])
                position += 1
            owner = (namespace, OPERATOR) if namespace else self._owners[self.streams[idx - self.first]]
            found.setdefault(commit, Named(commit, (*owner, day)))
        return list(found.values())

    def know_owners(self, db: Connection) -> None:
        """Read whose streams these are."""
        for stream in set(self.streams):
            row = db.execute("SELECT namespace, identity FROM stream WHERE id = ?", (stream,)).fetchone()
            if row is not None:
                self._owners[stream] = (row[0], row[1])


def _collect(db: Connection, first: int, end: int, most_bytes: int | None) -> _Range:
    """Entries from `first` to before `end`, as many as have so many bytes with their bodies; one at least."""
    found, size = _Range(first), 0
    for stream, data in database.stream(
        db, "SELECT stream, bytes FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (first, end)
    ):
        if most_bytes is not None and found.entries and size >= most_bytes:
            break
        size += len(data)
        for commit in found.add(stream, bytes(data)):
            row = db.execute("SELECT length(bytes) FROM body WHERE hash = ?", (commit,)).fetchone()
            size += row[0] if row else 0
    found.know_owners(db)
    return found


def _commits(data: bytes) -> Iterator[tuple[bytes, str]]:
    """What an entry names; with the namespace, where the operator said it, or for reports."""
    if data[1] in _NO_BODIES:
        return
    try:
        if data[1] == entry.CLASS_RECORD:
            for one in record.commitments(record.decode(data[entry.PREFIX_BYTES :])):
                yield canonical.decode_base64(one.commit), ""
        else:
            said = statement.decode(entry.decode(data))
            if isinstance(said, statement.PopulationEpoch):
                yield canonical.decode_base64(said.body.commit), said.namespace
            elif isinstance(said, statement.ReportMade):
                yield canonical.decode_base64(said.body.commit), REPORTS
            elif isinstance(said, statement.PolicyRevision):
                for name in FILES:
                    yield canonical.decode_base64(getattr(said, name).commit), said.namespace
    except EvidenceError:
        return  # a header that nobody can read names nothing


def _times(db: Connection, first: int, end: int) -> list[tuple[int, int]]:
    """The transactions that stored these entries; the first may have begun before them."""
    rows = db.execute("SELECT idx, wall_us FROM received WHERE idx > ? AND idx < ? ORDER BY idx", (first, end))
    return [received(db, first), *((int(idx), int(wall_us)) for idx, wall_us in rows)]
