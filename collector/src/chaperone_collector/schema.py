"""The tables, and how a database of another version is treated.

`entry` is the log: the bytes as they came, numbered in the order of storage; those of stream 0 are the collector's own.
Everything else is read off it (streams, sessions, commands, chunks, readings, tallies, populations, producers, reports,
retention and the indexes over them) or stands beside it (bodies and their keys, what was erased of them, quarantine,
findings, what is archived). `access` held reads of evidence before they were entries.

Versions: `PRAGMA user_version` counts the steps of `MIGRATIONS` that were applied. An empty file gets all of them, an
older one those it lacks, each in a transaction of its own; a newer one, or a file of another program, is refused. A
step never changes `entry.bytes`.

One connection writes and checkpoints; readers open the file read-only. SQLite before 3.51.3 can corrupt a database in
WAL mode when two connections write or checkpoint at once, so this is a rule and not a habit.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from chaperone_collector.errors import StoreUnusable

APPLICATION_ID: Final = 0x63686170  # "chap"
CHECKPOINT_PAGES: Final = 4000  # 16 MiB of WAL before the writer copies it into the database
WAL_LIMIT_BYTES: Final = 64 << 20  # what a checkpoint leaves of a WAL that grew under a long reader
CACHE_KIB: Final = 32 << 10
READER_CACHE_KIB: Final = 4 << 10
BUSY_TIMEOUT_S: Final = 5.0  # another collector on the same volume: fail, do not wait for it to end

_V1: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE stream (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    cluster TEXT NOT NULL, namespace TEXT NOT NULL, pod TEXT NOT NULL, pod_uid TEXT NOT NULL,
    identity TEXT NOT NULL, owner TEXT NOT NULL, node TEXT NOT NULL, service_account TEXT NOT NULL,
    vkey TEXT NOT NULL, revision TEXT NOT NULL, previous TEXT NOT NULL,
    opened_us INTEGER NOT NULL,
    count INTEGER NOT NULL,
    link BLOB NOT NULL,
    signed INTEGER NOT NULL DEFAULT 0,
    head_us INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'unsigned',
    superseded INTEGER NOT NULL DEFAULT 0,
    seen_us INTEGER NOT NULL
);
CREATE INDEX stream_pod ON stream (pod_uid);
CREATE INDEX stream_previous ON stream (previous) WHERE previous <> '';

CREATE TABLE entry (
    idx INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL, seq INTEGER NOT NULL, class INTEGER NOT NULL, bytes BLOB NOT NULL
);
CREATE UNIQUE INDEX entry_stream ON entry (stream, seq);

CREATE TABLE received (idx INTEGER PRIMARY KEY, wall_us INTEGER NOT NULL);

CREATE TABLE flow (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL, identity TEXT NOT NULL, target TEXT NOT NULL, protocol TEXT NOT NULL,
    UNIQUE (namespace, identity, target, protocol)
);

CREATE TABLE session (
    idx INTEGER PRIMARY KEY,
    name TEXT NOT NULL, namespace TEXT NOT NULL,
    flow INTEGER NOT NULL, stream INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    started_us INTEGER NOT NULL, ended_us INTEGER,
    commands INTEGER NOT NULL DEFAULT 0, denied INTEGER NOT NULL DEFAULT 0,
    close_idx INTEGER,
    UNIQUE (namespace, name)
);
CREATE INDEX session_flow ON session (flow);
CREATE INDEX session_changed ON session (changed);

CREATE TABLE rule (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

CREATE TABLE command (
    idx INTEGER PRIMARY KEY,
    flow INTEGER NOT NULL, session INTEGER NOT NULL, decision INTEGER NOT NULL, rule INTEGER NOT NULL
);
CREATE INDEX command_flow ON command (flow);
CREATE INDEX command_session ON command (session);
CREATE INDEX command_refused ON command (flow) WHERE decision <> 1;
CREATE INDEX command_decision ON command (decision) WHERE decision <> 1;

CREATE TABLE outcome (idx INTEGER PRIMARY KEY, command INTEGER NOT NULL UNIQUE);

CREATE TABLE body (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, bytes BLOB NOT NULL);
CREATE TABLE unnamed (hash BLOB PRIMARY KEY, pod_uid TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE finding (
    id INTEGER PRIMARY KEY, wall_us INTEGER NOT NULL,
    stream TEXT NOT NULL, seq INTEGER NOT NULL, what TEXT NOT NULL
);
CREATE INDEX finding_stream ON finding (stream);
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY, wall_us INTEGER NOT NULL, pod_uid TEXT NOT NULL,
    stream TEXT NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL, what TEXT NOT NULL, bytes BLOB NOT NULL
);
CREATE INDEX quarantine_pod ON quarantine (pod_uid);
CREATE INDEX quarantine_stream ON quarantine (stream);

CREATE TABLE access (
    id INTEGER PRIMARY KEY, wall_us INTEGER NOT NULL,
    user TEXT NOT NULL, groups TEXT NOT NULL, verb TEXT NOT NULL, resource TEXT NOT NULL,
    namespace TEXT NOT NULL, name TEXT NOT NULL, query TEXT NOT NULL, rows INTEGER NOT NULL
);
"""

_V2: Final = """
CREATE TABLE tally (
    namespace TEXT NOT NULL, what INTEGER NOT NULL, name TEXT NOT NULL, rule TEXT NOT NULL, action TEXT NOT NULL,
    count INTEGER NOT NULL, last_us INTEGER NOT NULL, changed INTEGER NOT NULL,
    PRIMARY KEY (namespace, what, name, rule, action)
) WITHOUT ROWID;
CREATE INDEX tally_changed ON tally (changed);
ALTER TABLE session ADD COLUMN subject TEXT NOT NULL DEFAULT '';
CREATE INDEX session_subject ON session (subject) WHERE subject <> '';
CREATE TABLE tile (level INTEGER NOT NULL, idx INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (level, idx));
CREATE TABLE checkpoint (
    size INTEGER PRIMARY KEY, wall_us INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL,
    witnesses INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX checkpoint_wall ON checkpoint (wall_us);
CREATE TABLE reading (idx INTEGER PRIMARY KEY, namespace TEXT NOT NULL);
CREATE INDEX reading_namespace ON reading (namespace);
ALTER TABLE stream ADD COLUMN lost_idx INTEGER;
"""

_V3: Final = """
CREATE TABLE population (
    idx INTEGER PRIMARY KEY, namespace TEXT NOT NULL, epoch INTEGER NOT NULL, hash BLOB NOT NULL,
    UNIQUE (namespace, epoch)
);
CREATE TABLE producer (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL, pod_uid TEXT NOT NULL, pod TEXT NOT NULL, identity TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'Unnamed', reason TEXT NOT NULL DEFAULT '',
    exit_code INTEGER, finished_us INTEGER NOT NULL DEFAULT 0, expected_us INTEGER NOT NULL DEFAULT 0,
    idx INTEGER NOT NULL, met_us INTEGER NOT NULL, said_us INTEGER NOT NULL,
    UNIQUE (namespace, pod_uid)
);
CREATE INDEX producer_namespace ON producer (namespace);
INSERT INTO producer (namespace, pod_uid, pod, identity, reason, idx, met_us, said_us)
    SELECT namespace, pod_uid, pod, identity, 'BeforePopulations', 0, min(seen_us), min(seen_us) FROM stream
    GROUP BY namespace, pod_uid ORDER BY min(id);
"""

# The numbers of effects are those of `project.EFFECTS`; a header starts behind version, class and link.
_V4: Final = """
ALTER TABLE command ADD COLUMN effects INTEGER NOT NULL DEFAULT 0;
ALTER TABLE command ADD COLUMN approval TEXT NOT NULL DEFAULT '';
ALTER TABLE command ADD COLUMN subject TEXT NOT NULL DEFAULT '';
CREATE INDEX command_rule ON command (rule);
CREATE INDEX command_approved ON command (idx) WHERE approval <> '';
CREATE INDEX command_subject ON command (subject) WHERE subject <> '';
CREATE TABLE effect (
    effect INTEGER NOT NULL, flow INTEGER NOT NULL, idx INTEGER NOT NULL, PRIMARY KEY (effect, flow, idx)
) WITHOUT ROWID;
CREATE INDEX effect_idx ON effect (effect, idx);

CREATE TEMP TABLE word (number INTEGER PRIMARY KEY, name TEXT NOT NULL);
INSERT INTO word (number, name) VALUES
    (1, 'read'), (2, 'read_sensitive'), (3, 'create'), (4, 'modify'), (5, 'delete'), (6, 'bulk_read'),
    (7, 'bulk_write'), (8, 'schema'), (9, 'destroy'), (10, 'privilege'), (11, 'execute_code'), (12, 'external_io'),
    (13, 'tunnel'), (14, 'session'), (15, 'transaction'), (16, 'maintain'), (17, 'unknown');
CREATE TEMP VIEW header AS
    SELECT c.idx AS idx, c.flow AS flow, CAST(substr(e.bytes, 35) AS TEXT) AS header
    FROM command c JOIN entry e ON e.idx = c.idx;
CREATE TEMP TABLE has AS
    SELECT DISTINCT h.idx AS idx, h.flow AS flow, coalesce(w.number, 0) AS effect
    FROM header h JOIN json_each(h.header, '$.accesses') a
    LEFT JOIN word w ON w.name = json_extract(a.value, '$.effect');
CREATE INDEX temp.has_idx ON has (idx);
UPDATE command SET effects = coalesce((SELECT sum(1 << effect) FROM temp.has WHERE has.idx = command.idx), 0);
INSERT INTO effect (effect, flow, idx) SELECT effect, flow, idx FROM temp.has WHERE effect <> 1;
UPDATE command SET approval = coalesce(json_extract(h.header, '$.approval'), ''),
    subject = coalesce(json_extract(h.header, '$.subject'), '')
    FROM temp.header h WHERE h.idx = command.idx;
DROP VIEW temp.header;
DROP TABLE temp.has;
DROP TABLE temp.word;

CREATE TABLE retention (
    namespace TEXT NOT NULL, identity TEXT NOT NULL, days INTEGER NOT NULL, held INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (namespace, identity)
) WITHOUT ROWID;
CREATE TABLE erased_flow (
    flow INTEGER PRIMARY KEY, changed INTEGER NOT NULL, command INTEGER NOT NULL, stray INTEGER NOT NULL
);
CREATE TABLE erasure (session INTEGER NOT NULL, idx INTEGER NOT NULL, PRIMARY KEY (session, idx)) WITHOUT ROWID;
CREATE INDEX session_flow_changed ON session (flow, changed);

CREATE TABLE chunk (idx INTEGER PRIMARY KEY, session INTEGER NOT NULL);
CREATE INDEX chunk_session ON chunk (session);

CREATE TABLE datakey (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL, identity TEXT NOT NULL, day INTEGER NOT NULL,
    key BLOB, destroyed_idx INTEGER,
    UNIQUE (namespace, identity, day)
);
CREATE TABLE archived (
    place TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
    note BLOB NOT NULL, segment BLOB NOT NULL, pack BLOB,
    sealed_us INTEGER NOT NULL, done_us INTEGER,
    PRIMARY KEY (place, first)
);
"""

_V5: Final = """
CREATE TABLE report (
    idx INTEGER PRIMARY KEY, kind TEXT NOT NULL, period TEXT NOT NULL, first INTEGER NOT NULL, until INTEGER NOT NULL,
    UNIQUE (kind, period)
);
CREATE INDEX finding_wall ON finding (wall_us);
CREATE INDEX quarantine_wall ON quarantine (wall_us);
CREATE TABLE policy_revision (
    idx INTEGER PRIMARY KEY, namespace TEXT NOT NULL, serial INTEGER NOT NULL, revision TEXT NOT NULL,
    UNIQUE (namespace, serial)
);
CREATE INDEX policy_revision_name ON policy_revision (namespace, revision);
"""

MIGRATIONS: Final[tuple[str, ...]] = (_V1, _V2, _V3, _V4, _V5)


def open_writer(path: Path, migrations: tuple[str, ...] = MIGRATIONS) -> sqlite3.Connection:
    """Open the database for its one writer, made or brought up to date.

    Raises:
        StoreUnusable: another program's file, a newer version, a second writer, or the disk.
    """
    try:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StoreUnusable(f"The database {path} cannot be opened: {error}.") from error
    try:
        _check(connection, path, len(migrations))
        _use_wal(connection, path)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA mmap_size=0")
        connection.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten; see retention.py
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        _migrate(connection, migrations)
    except sqlite3.Error as error:
        connection.close()
        raise StoreUnusable(f"The database {path} cannot be used: {error}.") from error
    except StoreUnusable:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the database for reading only; the caller uses it in one thread at a time."""
    connection = sqlite3.connect(
        f"file:{path}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA mmap_size=0")
    connection.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
    return connection


def _check(connection: sqlite3.Connection, path: Path, known: int) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if is_empty and application == 0 and version == 0:
        return
    if application != APPLICATION_ID:
        raise StoreUnusable(f"{path} is not a database of this collector; give it a directory of its own.")
    if version > known:
        raise StoreUnusable(
            f"{path} has version {version}, this collector knows {known}: run the newer collector, or restore a backup "
            "from before the upgrade."
        )


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise StoreUnusable(f"The database {path} cannot have a write-ahead log; is it on a network file system?")


def _migrate(connection: sqlite3.Connection, migrations: tuple[str, ...]) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(migrations[version:], version + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id={APPLICATION_ID};\n"
                f"PRAGMA user_version={number};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
