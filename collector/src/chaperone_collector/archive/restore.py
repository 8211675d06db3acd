"""Builds a collector's database from its archive, and believes nothing that a checkpoint does not prove.

Of each name the version stored first counts. What lies behind the last checkpoint that the policy accepts is left out.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from chaperone_collector import tree
from chaperone_collector.archive import pack, segment
from chaperone_collector.archive.bucket import Bucket
from chaperone_collector.archive.keyfile import KeyFile
from chaperone_collector.archive.replay import Item, Replay
from chaperone_collector.archive.shipping import CHECKPOINTS, PACKS, SEGMENTS
from chaperone_collector.database import Connection
from chaperone_collector.directory import FILE, sync
from chaperone_collector.errors import RestoreRefused
from chaperone_collector.schema import open_writer
from chaperone_evidence import entry
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.policy import Opened, Policy, open_checkpoint

UNFINISHED: Final = "restore.unfinished"
_SECOND_US: Final = 1_000_000


class Restored(msgspec.Struct):
    """What came back, and what did not."""

    entries: int = 0
    bodies: int = 0
    bodies_without_key: int = 0
    populations_without_note: int = 0
    remarks: list[str] = msgspec.field(default_factory=list)


class _Proof(msgspec.Struct, frozen=True):
    """A checkpoint that the policy accepts."""

    opened: Opened
    note: bytes

    @property
    def size(self) -> int:
        return self.opened.checkpoint.size


def restore(bucket: Bucket, directory: Path, policy: Policy, keys: KeyFile | None) -> Restored:
    """Fill an empty directory.

    Args:
        bucket: the archive.
        directory: of the database to come; may hold `log.key`.
        policy: whose checkpoints are believed.
        keys: of the bodies; None: they stay behind.

    Raises:
        RestoreRefused: there is a database, or the archive is not what that log left. ArchiveFailed: the bucket.
    """
    target, scratch = directory / FILE, directory / UNFINISHED
    if target.exists():
        raise RestoreRefused(f"{target} is there: a log is restored into an empty directory.")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, mode=0o700)
    try:
        done = _Restore(bucket, scratch / FILE, policy, keys).run()
        (scratch / FILE).rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync(directory)
    return done


class _Restore:
    """One run."""

    def __init__(self, bucket: Bucket, path: Path, policy: Policy, keys: KeyFile | None) -> None:
        self._bucket = bucket
        self._path = path
        self._policy = policy
        self._keys = {one.id: one.key for one in keys.keys} if keys else {}
        self._key_file = keys
        self._done = Restored()
        self._packs = bucket.first_versions(PACKS)

    def run(self) -> Restored:
        """Fill the file."""
        proofs = self._proofs()
        db = open_writer(self._path)
        try:
            db.execute("PRAGMA synchronous=OFF")  # nothing is there yet that a crash could take; synced at the end
            self._fill(db, proofs)
            self._note_keys(db)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise RestoreRefused(f"The database cannot be written: {error}.") from error
        finally:
            db.close()
        sync(self._path)
        return self._done

    def _proofs(self) -> list[_Proof]:
        """The checkpoints that the policy accepts, the smallest first."""
        found: list[_Proof] = []
        for name, version in self._bucket.first_versions(CHECKPOINTS).items():
            data = self._bucket.get(self._bucket.options.key(CHECKPOINTS, name), version)
            try:
                found.append(_Proof(open_checkpoint(data, self._policy), data))
            except EvidenceError as error:
                self._done.remarks.append(f"checkpoint {name} is not believed: {error}")
        if not found:
            raise RestoreRefused("The archive has no checkpoint that the policy accepts, so nothing in it is proved.")
        return sorted(found, key=lambda one: one.size)

    def _fill(self, db: Connection, proofs: list[_Proof]) -> None:
        replay, last = Replay(db), proofs[-1].size
        began_us, items, size = 0, list[Item](), 0
        for part in self._segments(last):
            replay.population_key = replay.population_key or part.beside.population_key
            replay.put_bodies(self._bodies(part.first))
            times = dict(part.beside.received)
            for stream, data in _items(part):
                if size == last:
                    break
                if size in times and items:
                    replay.store(began_us, items)
                    items = []
                if size in times or size == part.first:
                    began_us = times.get(size, part.beside.received[0][1])
                items.append((stream, data))
                size += 1
            self._note(db, part, min(part.end, last) - part.first)
        if items:
            replay.store(began_us, items)
        for one in proofs:
            self._prove(db, one)
        if any(name >= pack.name(last) for name in self._packs):
            what = (
                f"what the archive has from entry {last} on is left out, for no checkpoint in it proves that; its names"
            )
            self._done.remarks.append(f"{what} are taken, so give the restored log another prefix")
        self._done.entries = size
        self._done.populations_without_note = replay.populations_without_note

    def _segments(self, last: int) -> Iterator[segment.Segment]:
        there, end = self._bucket.first_versions(SEGMENTS), 0
        while end < last:
            name = segment.name(end)
            if name not in there:
                raise RestoreRefused(f"The segment {name} is missing, and a checkpoint proves that there was one.")
            data = self._bucket.get(self._bucket.options.key(SEGMENTS, name), there[name])
            part = segment.decode(data, self._policy.origin)
            if part.first != end:
                raise RestoreRefused(f"{name} holds the segment at {part.first}.")
            yield part
            end = part.end

    def _bodies(self, first: int) -> dict[bytes, bytes]:
        """The bodies of a segment that can be read."""
        name, found = pack.name(first), dict[bytes, bytes]()
        version = self._packs.get(name)
        if version is None:
            raise RestoreRefused(f"The pack {name} is missing.")
        data = self._bucket.get(self._bucket.options.key(PACKS, name), version)
        for one in pack.decode(data, first, self._policy.origin):
            key = self._keys.get(one.key)
            if one.key != pack.PLAIN and key is None:
                self._done.bodies_without_key += 1
                continue
            body = one.data if key is None else pack.unseal(one, key)
            if entry.body_commit(body) != one.commit:
                raise RestoreRefused(f"The body {one.commit.hex()} in {name} is not the one that its name commits to.")
            found[one.commit] = body
        self._done.bodies += len(found)
        return found

    def _prove(self, db: Connection, proof: _Proof) -> None:
        """Hold a checkpoint against what was stored, and keep it."""
        said = proof.opened.checkpoint
        if tree.read_root(db, said.size) != said.root:
            raise RestoreRefused(f"The first {said.size} entries are not those that the log has signed: entries were "
                                 "changed.")  # fmt: skip
        times = [one.time_s for one in proof.opened.signatures if one.time_s]
        witnesses = {one.key.name for one in proof.opened.signatures if one.key in self._policy.witnesses}
        db.execute(
            "INSERT INTO checkpoint (size, wall_us, root, note, witnesses) VALUES (?,?,?,?,?)",
            (said.size, max(times, default=0) * _SECOND_US, said.root, proof.note, len(witnesses)),
        )

    def _note(self, db: Connection, part: segment.Segment, count: int) -> None:
        """That this segment is archived: the restored log goes on behind it."""
        db.execute(
            "INSERT INTO archived (place, first, count, note, segment, sealed_us, done_us) VALUES (?,?,?,?,?,?,?)",
            (self._bucket.options.place, part.first, count, b"", b"", part.beside.received[-1][1],
             part.beside.received[-1][1]),
        )  # fmt: skip

    def _note_keys(self, db: Connection) -> None:
        if self._key_file is None:
            return
        db.executemany(
            "INSERT INTO datakey (id, namespace, identity, day, key) VALUES (?,?,?,?,?)",
            [(one.id, one.namespace, one.identity, one.day, one.key) for one in self._key_file.keys],
        )


def _items(part: segment.Segment) -> Iterator[Item]:
    position = 0
    for stream, count in part.beside.runs:
        for data in part.entries[position : position + count]:
            yield stream, data
        position += count
