"""Fills an empty database with a log's entries, as if they came again: same order, same transactions, same times.

Everything that the tables say follows from that, because a transaction has one time, which the archive knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from chaperone_collector import population, revision
from chaperone_collector.database import Connection
from chaperone_collector.errors import ChainBroken, Refused, RestoreRefused
from chaperone_collector.stream import Stored, extend, unknown
from chaperone_collector.transaction import OWN_STREAM, Transaction, Unnamed
from chaperone_evidence import canonical, entry, note, record, statement
from chaperone_evidence.certificate import Subject
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.population import open_population

type Item = tuple[int, bytes]  # number of the stream, entry


class Replay:
    """One log that comes again.

    Args:
        db: an empty database, opened for writing.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._at_us = 0
        self._transaction = Transaction(db, Unnamed(db), lambda: self._at_us)
        self._ends: dict[int, tuple[Stored, Subject]] = {}
        self.population_key = ""
        self.populations_without_note = 0

    @property
    def size(self) -> int:
        """Entries so far."""
        return self._transaction.size

    def put_bodies(self, bodies: dict[bytes, bytes]) -> None:
        """Keep bodies under their commitments."""
        self._db.executemany("INSERT INTO body (hash, bytes) VALUES (?,?) ON CONFLICT DO NOTHING", bodies.items())

    def store(self, at_us: int, items: Iterable[Item]) -> None:
        """What one transaction stored, at that time.

        Raises:
            RestoreRefused: an entry does not continue its stream.
        """
        self._at_us = at_us
        self._transaction.begin()
        for stream, run in groupby(items, key=lambda item: item[0]):
            entries = [data for _, data in run]
            if stream == OWN_STREAM:
                for data in entries:
                    self._own(data)
            else:
                self._append(stream, entries)
        self._transaction.commit()

    def _append(self, stream: int, entries: list[bytes]) -> None:
        try:
            stored, subject = self._ends.get(stream) or _opened(entries[0])
            extension = extend(stored, entries, subject, None)
            after = self._transaction.append(extension)
        except (ChainBroken, Refused, EvidenceError) as error:
            raise RestoreRefused(f"The log does not go on at {self.size}: {error}") from error
        if after.id != stream:
            raise RestoreRefused(f"Stream {after.name} would get the number {after.id}; it had {stream}.")
        self._ends[stream] = (after, subject)

    def _own(self, data: bytes) -> None:
        try:
            said = statement.decode(entry.decode(data))
        except EvidenceError:
            self._transaction.put_own(data)  # of a later version: it stays what it is, and no table has it
            return
        idx = self._transaction.say(said)
        if isinstance(said, statement.StreamLost):
            self._db.execute("UPDATE stream SET lost_idx = ? WHERE name = ?", (idx, said.stream))
        elif isinstance(said, statement.PopulationEpoch):
            self._populate(said, idx)
        elif isinstance(said, statement.PolicyRevision):
            population.pin_key(self._db, self.population_key)
            revision.keep(self._db, said, idx)

    def _populate(self, said: statement.PopulationEpoch, idx: int) -> None:
        try:
            commit = canonical.decode_base64(said.body.commit)
            row = self._db.execute("SELECT bytes FROM body WHERE hash = ?", (commit,)).fetchone()
            if row is None:
                self.populations_without_note += 1
                return
            salt, signed = bytes(row[0][: entry.SALT_BYTES]), bytes(row[0][entry.SALT_BYTES :])
            found = open_population(signed, note.parse_vkey(self.population_key))
        except (EvidenceError, ValueError) as error:
            raise RestoreRefused(f"The population at {idx} cannot be believed: {error}") from error
        population.pin_key(self._db, self.population_key)
        population.keep(self._db, population.Given(found, signed, self.population_key, salt), idx, said.wall_us)


def _opened(data: bytes) -> tuple[Stored, Subject]:
    """The beginning of the stream that an entry opens, and whose it is."""
    opened = record.decode(data[entry.PREFIX_BYTES :])
    if not isinstance(opened, record.StreamOpen):
        raise RestoreRefused("A stream does not begin with stream.open.")
    subject = Subject(opened.cluster, opened.namespace, opened.pod, opened.pod_uid, opened.identity, opened.vkey)
    return unknown(opened.stream), subject
