"""What can be written: batches of a stream, bodies, quarantined bytes, statements. Runs in the writer's thread only."""

from __future__ import annotations

import base64
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_collector import checkpoint, population, reporting, retention, revision
from chaperone_collector.checkpoint import LogKeys
from chaperone_collector.database import Connection, add, begin
from chaperone_collector.errors import ChainBroken, Refused, StoreUnusable
from chaperone_collector.project import Projection, named_bodies
from chaperone_collector.schema import BUSY_TIMEOUT_S
from chaperone_collector.stream import Extension, Stored
from chaperone_collector.tree import Tree
from chaperone_evidence import canonical, entry, statement
from chaperone_evidence.errors import EvidenceError

MAX_STREAMS_PER_POD: Final = 10_000  # a gateway that restarts every five minutes for a month makes 8 640
MAX_UNNAMED_BYTES_PER_POD: Final = 64 << 20  # bodies sent ahead of the records that name them
MAX_QUARANTINE_PER_POD: Final = 64  # copies kept of batches that broke their chain; later ones are only counted
MAX_QUARANTINE_BYTES: Final = 256 << 10  # of one batch; the first bytes show what broke
MAX_LOST_AT_ONCE: Final = 1000  # streams whose loss one transaction states; a node that dies takes a few hundred
OWN_STREAM: Final = 0  # of the collector; those of gateways count from 1


class Unnamed:
    """Bodies that no record names yet, bounded per pod."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._bodies: dict[bytes, tuple[str, int]] = {}
        self._bytes: Counter[str] = Counter()
        self.reload()

    def reload(self) -> None:
        """Read what the database says; after a rollback."""
        self._bodies.clear()
        self._bytes.clear()
        for commit, pod_uid, size in self._db.execute("SELECT hash, pod_uid, size FROM unnamed"):
            self._bodies[commit] = (pod_uid, size)
            self._bytes[pod_uid] += size

    def admit(self, pod_uid: str, size: int) -> None:
        """Raises Refused when the pod has too much outstanding."""
        if self._bytes[pod_uid] + size > MAX_UNNAMED_BYTES_PER_POD:
            raise Refused(
                429, "Too many bodies", f"Send the records that name the bodies already sent; at most "
                f"{MAX_UNNAMED_BYTES_PER_POD} bytes wait for theirs.",
            )  # fmt: skip

    def add(self, commit: bytes, pod_uid: str, size: int) -> None:
        """A body came."""
        self._db.execute("INSERT INTO unnamed (hash, pod_uid, size) VALUES (?,?,?)", (commit, pod_uid, size))
        self._bodies[commit] = (pod_uid, size)
        self._bytes[pod_uid] += size

    def name(self, commits: list[bytes]) -> None:
        """Records name these."""
        found = [commit for commit in dict.fromkeys(commits) if commit in self._bodies]
        for commit in found:
            pod_uid, size = self._bodies.pop(commit)
            self._bytes[pod_uid] -= size
        if found:
            self._db.executemany("DELETE FROM unnamed WHERE hash = ?", [(commit,) for commit in found])


class Transaction:
    """One transaction after another on the writer's connection."""

    def __init__(self, connection: Connection, unnamed: Unnamed, now_us: Callable[[], int]) -> None:
        self._db = connection
        self._unnamed = unnamed
        self._now_us = now_us
        self._has_erased = True  # by a process before this one, perhaps
        self._at_us = now_us()
        self._turn: int | None = None  # on a server, the number of the last transaction here
        self.size = 0
        self._read()
        self._first = self.size

    def _read(self) -> None:
        """Read anew what is remembered between transactions."""
        self._measure()
        self._projection = Projection(self._db)
        self._tree = Tree(self._db)
        self._is_stale = False

    def _follow(self) -> None:
        """Take in what other collectors wrote meanwhile."""
        first = self.size
        self._measure()
        self._tree.follow()
        grown = self._db.execute("SELECT DISTINCT stream FROM entry WHERE idx >= ?", (first,)).fetchall()
        self._projection.forget({stream for (stream,) in grown})

    def _measure(self) -> None:
        """How long the log is, and the collector's own stream."""
        size = int(self._db.execute("SELECT coalesce(max(idx), -1) + 1 FROM entry").fetchone()[0])
        if size < self.size:
            raise StoreUnusable(f"The log has {size} entries and had {self.size}: the server has lost what it had "
                                "committed. Bring back the server that has them.")  # fmt: skip
        self.size, self._own = size, _length(self._db, OWN_STREAM)

    def begin(self) -> None:
        """Start. What a transaction stores has one time, from which a restored log learns what its tables said."""
        turn = begin(self._db)
        if self._is_stale:
            self._unnamed.reload()
            self._read()
            if turn is not None:  # perhaps it is another server by now, which took over from the one before
                checkpoint.check(self._db, self.size)
        elif turn is not None and turn - 1 != self._turn:  # turns between were of others
            self._unnamed.reload()
            self._follow()
        self._turn = turn
        self._first = self.size
        self._at_us = self._now_us()

    def commit(self) -> None:
        """Write what was collected and wait for the disk."""
        self._projection.flush()
        if self.size > self._first:
            self._db.execute("INSERT INTO received (idx, wall_us) VALUES (?,?)", (self._first, self._at_us))
        self._db.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo everything since `begin`; what was remembered is read anew by the next one."""
        self.size, self._is_stale = self._first, True
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def append(self, extension: Extension) -> Stored:
        """Store a checked batch; returns the stream's end as it is then.

        Raises:
            Refused: the pod has too many streams. ChainBroken: the stream grew meanwhile.
        """
        now_us = self._at_us
        after = msgspec.structs.replace(extension.after)
        stream = extension.before.id or self._open(extension, now_us)
        signed = max(
            (extension.before.count + n + 1 for n, checked in enumerate(extension.entries) if checked.head),
            default=None,
        )
        state = next((checked.head.state for checked in reversed(extension.entries) if checked.head), None)
        moved = self._db.execute(
            "UPDATE stream SET count = ?, link = ?, signed = coalesce(?, signed), head_us = ?, "
            "state = coalesce(?, state), seen_us = ?, lost_idx = NULL WHERE id = ? AND count = ?",
            (after.count, after.link, signed, after.head_us, state, now_us, stream, extension.before.count),
        )
        if moved.rowcount != 1:
            raise ChainBroken("gap", "The stream grew by another request meanwhile.")
        first, seq = self.size, extension.before.count
        rows = [(first + n, stream, seq + n, one.cls, one.data) for n, one in enumerate(extension.entries)]
        add(self._db, "entry", "idx, stream, seq, class, bytes", rows)
        self.size += len(extension.entries)
        self._tree.append(one.data for one in extension.entries)
        self._projection.apply(extension, stream, first, now_us)
        self._unnamed.name([commit for text in named_bodies(extension) if (commit := _decode(text))])
        after.id = stream
        return after

    def put_bodies(self, bodies: dict[bytes, bytes], pod_uid: str) -> int:
        """Keep bodies under their commitments; returns the bytes of those that were not there already.

        Raises:
            Refused: the pod has sent too many bodies that no record names.
        """
        known = "SELECT 1 FROM body WHERE hash = ?"
        fresh = {commit: body for commit, body in bodies.items() if not self._db.execute(known, (commit,)).fetchone()}
        size = sum(map(len, fresh.values()))
        self._unnamed.admit(pod_uid, size)
        self._db.executemany("INSERT INTO body (hash, bytes) VALUES (?,?)", fresh.items())
        for commit, body in fresh.items():
            self._unnamed.add(commit, pod_uid, len(body))
        return size

    def quarantine(self, pod_uid: str, stream: str, seq: int, broken: ChainBroken, data: bytes) -> bool:
        """Keep a copy of what was refused; False when the pod's share is used up."""
        kept = self._db.execute("SELECT count(*) FROM quarantine WHERE pod_uid = ?", (pod_uid,)).fetchone()[0]
        if kept >= MAX_QUARANTINE_PER_POD:
            return False
        same = "SELECT 1 FROM quarantine WHERE pod_uid = ? AND stream = ? AND seq = ? AND bytes = ?"
        copy = data[:MAX_QUARANTINE_BYTES]
        if self._db.execute(same, (pod_uid, stream, seq, copy)).fetchone():
            return False  # the same batch, tried again
        self._db.execute(
            "INSERT INTO quarantine (wall_us, pod_uid, stream, seq, reason, what, bytes) VALUES (?,?,?,?,?,?,?)",
            (self._now_us(), pod_uid, stream, seq, broken.reason, str(broken), copy),
        )
        return True

    def say(self, said: statement.Known) -> int:
        """Add a statement of the collector's own to the log; returns its index."""
        idx = self.put_own(statement.encode(said).encode())
        if isinstance(said, statement.EvidenceRead):
            self._db.execute("INSERT INTO reading (idx, namespace) VALUES (?,?)", (idx, said.namespace))
        elif isinstance(said, statement.ReportMade):
            reporting.keep(self._db, said, idx)
        return idx

    def put_own(self, data: bytes) -> int:
        """Add an entry of the collector's own stream, whatever it says; returns its index."""
        idx = self.size
        self._db.execute(
            "INSERT INTO entry (idx, stream, seq, class, bytes) VALUES (?,?,?,?,?)",
            (idx, OWN_STREAM, self._own, data[1], data),
        )
        self.size += 1
        self._own += 1
        self._tree.append([data])
        return idx

    def on[T](self, work: Callable[[Connection], T]) -> T:
        """Let another concern write its own tables in this transaction."""
        return work(self._db)

    def populate(self, given: population.Given) -> int:
        """Store a population; returns the index of its entry.

        Raises:
            Refused: it is not by the operator of this cluster, or not the next one.
        """
        population.admit(self._db, given)
        said, body = given.statement(self._at_us), given.salt + given.note
        self._db.execute("INSERT INTO body (hash, bytes) VALUES (?,?)", (entry.body_commit(body), body))
        idx = self.say(said)
        population.keep(self._db, given, idx, said.wall_us)
        return idx

    def revise(self, given: revision.Given) -> int:
        """Store a revision of policy; returns the index of its entry, also where it is there already.

        Raises:
            Refused: it is not by the operator of this cluster, or its serial has other content.
        """
        known = revision.admit(self._db, given)
        if known is not None:
            return known
        said = given.found.statement(given.salts, self._at_us)
        bodies = given.found.bodies(given.salts)
        self._db.executemany(
            "INSERT INTO body (hash, bytes) VALUES (?,?)", [(entry.body_commit(body), body) for body in bodies]
        )
        idx = self.say(said)
        revision.keep(self._db, said, idx)
        return idx

    def lose(self, silent_since_us: int) -> int:
        """State of each stream without an end that said nothing since then, once; returns how many those are."""
        lost = self._db.execute(
            "SELECT id, name, namespace, pod, pod_uid, count, link, seen_us FROM stream WHERE seen_us < ? "
            "AND state <> 'closed' AND superseded = 0 AND lost_idx IS NULL ORDER BY id LIMIT ?",
            (silent_since_us, MAX_LOST_AT_ONCE),
        ).fetchall()
        for number, name, namespace, pod, pod_uid, count, link, seen_us in lost:
            said = statement.StreamLost(
                wall_us=self._at_us, stream=name, namespace=namespace, pod=pod, pod_uid=pod_uid, count=count,
                link=base64.b64encode(link).decode(), seen_us=seen_us,
            )  # fmt: skip
            self._db.execute("UPDATE stream SET lost_idx = ? WHERE id = ?", (self.say(said), number))
        return len(lost)

    def adopt_reads(self) -> int:
        """Make entries of the reads that an earlier version kept beside the log; returns how many those were."""
        kept = self._db.execute(
            "SELECT wall_us, user, groups, verb, resource, namespace, name, query, rows FROM access ORDER BY id"
        ).fetchall()
        if not kept:
            return 0
        self.begin()
        for wall_us, user, groups, verb, resource, namespace, name, query, rows in kept:
            self.say(statement.EvidenceRead(
                wall_us=wall_us, user=user, groups=groups.split(",") if groups else [], verb=verb, resource=resource,
                namespace=namespace, name=name, query=query, rows=rows,
            ))  # fmt: skip
        self._db.execute("DELETE FROM access")
        self.commit()
        return len(kept)

    def sign(self, keys: LogKeys) -> int:
        """Sign what the log holds, this transaction included; returns the size that is signed."""
        return checkpoint.sign(self._db, self._tree, keys, self._now_us())

    def cosign(self, size: int, lines: str) -> bool:
        """Add a witness's signatures to a checkpoint; False when it has them, or is gone."""
        return checkpoint.cosign(self._db, size, lines)

    def thin_checkpoints(self) -> int:
        """Let go of old checkpoints, but for one an hour; returns how many."""
        return checkpoint.thin(self._db, self._now_us())

    def erase(self, minimum_days: int) -> retention.Step:
        """Erase texts that are due, some of one identity, and certify that in the log."""
        self._projection.flush()  # what came in this transaction is younger, and has to be seen so
        step = retention.erase(self._db, self._at_us, minimum_days)
        if step.said is not None:
            retention.certify(self._db, step, step.said, self.say(step.said))
            self._has_erased = True
        return step

    def forget(self) -> bool:
        """Empty SQLite's write-ahead log, between transactions, of what was erased; False: a reader needs it."""
        if not self._has_erased or not isinstance(self._db, sqlite3.Connection):
            return True
        self._db.execute("PRAGMA busy_timeout=0")  # who reads is not waited for: gateways would wait along
        try:
            busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            self._db.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
        self._has_erased = bool(busy)
        return not busy

    def secret(self, key: str, fresh: bytes) -> bytes:
        """A value that is made once for this database."""
        self._db.execute("INSERT INTO meta (key, value) VALUES (?,?) ON CONFLICT DO NOTHING", (key, fresh))
        return bytes(self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def _open(self, extension: Extension, now_us: int) -> int:
        opened = extension.opened
        if opened is None:
            raise ChainBroken("open", "The stream does not begin with stream.open.")
        streams = self._db.execute("SELECT count(*) FROM stream WHERE pod_uid = ?", (opened.pod_uid,)).fetchone()[0]
        if streams >= MAX_STREAMS_PER_POD:
            raise Refused(429, "Too many streams", f"The pod has {streams} streams already; delete it and see why.")
        self._supersede(opened.previous, opened.pod_uid, extension.before.name, now_us)
        row = self._db.execute(
            "INSERT INTO stream (id, name, cluster, namespace, pod, pod_uid, identity, owner, node, service_account, "
            "vkey, revision, previous, opened_us, count, link, seen_us) VALUES "
            "((SELECT coalesce(max(id), 0) + 1 FROM stream),?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) "
            "ON CONFLICT DO NOTHING RETURNING id",
            (opened.stream, opened.cluster, opened.namespace, opened.pod, opened.pod_uid, opened.identity, opened.owner,
             opened.node, opened.service_account, opened.vkey, opened.revision, opened.previous, opened.wall_us, 0,
             extension.before.link, now_us),
        ).fetchone()  # fmt: skip
        if row is None:
            raise ChainBroken("gap", "The stream was opened by another request meanwhile.")
        population.meet(self._db, opened.namespace, opened.pod_uid, opened.pod, opened.identity, self.size, now_us)
        return int(row[0])

    def _supersede(self, previous: str, pod_uid: str, stream: str, now_us: int) -> None:
        """The gateway restarted: sessions of the stream before this one are gone; two successors are a fork."""
        if not previous:
            return
        forks = self._db.execute(
            "SELECT name FROM stream WHERE previous = ? AND pod_uid = ?", (previous, pod_uid)
        ).fetchall()
        for (other,) in forks:
            what = f"It follows stream {previous}, which stream {other} of the same pod follows too: a fork."
            self._db.execute(
                "INSERT INTO finding (wall_us, stream, seq, what) VALUES (?,?,?,?)", (now_us, stream, 0, what)
            )
        self._db.execute("UPDATE stream SET superseded = 1 WHERE name = ? AND pod_uid = ?", (previous, pod_uid))


def read_stored(connection: Connection, name: str) -> tuple[int, int, bytes, str, str, str, str, int] | None:
    """The end of a stream: id, count, link, pod uid, cluster, vkey, state, time of the last head."""
    row: tuple[int, int, bytes, str, str, str, str, int] | None = connection.execute(
        "SELECT id, count, link, pod_uid, cluster, vkey, state, head_us FROM stream WHERE name = ?", (name,)
    ).fetchone()
    return row


def read_entries(connection: Connection, stream: int, first: int, last: int) -> list[bytes]:
    """The stored entries of a stream from `first` to `last`, both included."""
    rows = connection.execute(
        "SELECT bytes FROM entry WHERE stream = ? AND seq BETWEEN ? AND ? ORDER BY seq", (stream, first, last)
    )
    return [bytes(row[0]) for row in rows]


def _decode(text: str) -> bytes | None:
    try:
        commit = canonical.decode_base64(text)
    except EvidenceError:
        return None  # the offline verifier says so; there is nothing to look up
    return commit if len(commit) == entry.LINK_BYTES else None


def _length(connection: Connection, stream: int) -> int:
    """How many entries of a stream are stored."""
    row = connection.execute("SELECT coalesce(max(seq) + 1, 0) FROM entry WHERE stream = ?", (stream,)).fetchone()
    return int(row[0])
