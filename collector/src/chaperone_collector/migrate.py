"""`chaperone-collector migrate` moves a log between SQLite and PostgreSQL; `new-log-key` makes the keys of a new one.

Every row is copied as it is, all of them or none: what is not finished is undone, or lies beside the target and is
thrown away by the next run. The whole log is hashed in the source and again in the target, and both roots have to be
the same, and the one that the newest checkpoint signs. Nobody else writes meanwhile. The source stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import sys
import time
from collections.abc import Sequence
from itertools import batched
from pathlib import Path
from typing import Any, Final

import msgspec

from chaperone_collector import checkpoint, database, tree
from chaperone_collector.database import FAULTS, Connection, Served
from chaperone_collector.directory import FILE, Directory, sync
from chaperone_collector.errors import CollectorError, MigrationRefused
from chaperone_collector.schema import open_writer
from chaperone_collector.schema_server import NUMBERED, TABLES
from chaperone_collector.transaction import Transaction, Unnamed
from chaperone_evidence import merkle

COMMANDS: Final = ("migrate", "new-log-key")
UNFINISHED: Final = "migrate.unfinished"
PORTION: Final = 1000  # rows added at once: 16 MiB of the longest entries
TOLD_ROWS: Final = 100_000


class Log(msgspec.Struct, frozen=True):
    """What has to be the same on both sides."""

    size: int
    root: bytes
    signed: int


def command(arguments: Sequence[str]) -> int:
    """Run one; 0: it is done, 1: not, and nothing has changed."""
    parser = argparse.ArgumentParser("chaperone-collector", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    moved = commands.add_parser("migrate", help="move a log to another database", allow_abbrev=False)
    source, target = (
        moved.add_mutually_exclusive_group(required=True),
        moved.add_mutually_exclusive_group(required=True),
    )
    source.add_argument("--from", dest="source", type=Path, help="directory of the database; no collector runs with it")
    target.add_argument("--to-database-file", type=Path, help="file with the URL of an empty PostgreSQL database")
    source.add_argument("--from-database-file", type=Path, help="file with the URL of a PostgreSQL database")
    target.add_argument("--to", dest="target", type=Path, help="directory without a database")
    moved.set_defaults(run=_migrate)
    made = commands.add_parser("new-log-key", help="make the keys that sign a new log", allow_abbrev=False)
    made.add_argument("path", type=Path, metavar="FILE", help="file to make; keep a copy where the log is not")
    made.set_defaults(run=_new_key)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except (CollectorError, OSError, *FAULTS) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _new_key(given: argparse.Namespace) -> None:
    if given.path.exists():
        raise MigrationRefused(f"{given.path} is there already.")
    checkpoint.make_keys(given.path)


def _migrate(given: argparse.Namespace) -> None:
    if given.source is not None and given.to_database_file is not None:
        done = to_server(given.source, given.to_database_file)
        print(f"Give the collectors {given.source / checkpoint.FILE} with --log-key.")
        print(f"Keep {given.source}, unused, until there is a backup of the new database.")
    elif given.from_database_file is not None and given.target is not None:
        done = to_directory(given.from_database_file, given.target)
        print(f"Put the log's keys into {given.target / checkpoint.FILE} before the collector starts.")
    else:
        raise MigrationRefused("A log is moved from a directory to PostgreSQL, or from there into a directory.")
    print(f"{done.size} entries are there, the same as before; {done.signed} of them are signed.")


def to_server(directory: Path, info: Path) -> Log:
    """Copy the log of a directory to a server.

    Raises:
        MigrationRefused: the target is not empty, or differs in the end. StoreUnusable: one of both cannot be used.
    """
    if not (directory / FILE).exists():
        raise MigrationRefused(f"{directory / FILE} is not there.")
    place = Directory(directory)
    try:
        source = place.open_writer()
        tree.build(source)
        Transaction(source, Unnamed(source), lambda: time.time_ns() // 1000).adopt_reads()
        before = _hashed(source)
        target = _server(info)
        try:
            target.begin()
            _refuse_rows(target)
            _copy_all(source, target, source)
            for table in NUMBERED:
                following = f"(SELECT coalesce(max(id), 0) + 1 FROM {table})"  # noqa: S608 - names of this package
                target.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {following}, false)")
            _compare(before, target)
            target.execute("COMMIT")
            target.execute("ANALYZE")
        finally:
            target.close()
        source.close()
    finally:
        place.close()
    return before


def to_directory(info: Path, directory: Path) -> Log:
    """Copy the log of a server into a directory; its collectors can write nothing meanwhile.

    Raises:
        MigrationRefused: the target is not empty, or differs in the end. StoreUnusable: one of both cannot be used.
    """
    place = Directory(directory)
    scratch = directory / UNFINISHED
    try:
        if place.path.exists():
            raise MigrationRefused(f"{place.path} is there: a log is moved into an empty directory.")
        source = _server(info)
        try:
            source.begin()
            before = _hashed(source)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            target = open_writer(scratch / FILE)
            target.execute("PRAGMA synchronous=OFF")  # nothing is there yet that a crash could take; synced at the end
            database.begin(target)
            _copy_all(source, target, target)
            target.execute("COMMIT")
            _compare(before, target)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            target.close()
            source.execute("ROLLBACK")
        finally:
            source.close()
        sync(scratch / FILE)
        (scratch / FILE).rename(place.path)
        sync(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        place.close()
    return before


def _server(info: Path) -> Served:
    from chaperone_collector import postgresql  # noqa: PLC0415 - its client has a library of its own

    connection = postgresql.Server(postgresql.read_info(info), Path()).open_writer()
    connection.execute("SET idle_in_transaction_session_timeout = 0")  # while the other side is hashed
    return connection


def _refuse_rows(target: Connection) -> None:
    for table in TABLES:
        if target.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:  # noqa: S608
            raise MigrationRefused("The target has a log already: a log is moved into an empty database.")


def _copy_all(source: Connection, target: Connection, either: sqlite3.Connection) -> None:
    for table in TABLES:
        columns = ", ".join(row[1] for row in either.execute(f"PRAGMA table_info({table})"))
        count = 0
        for rows in batched(database.stream(source, f"SELECT {columns} FROM {table}"), PORTION):  # noqa: S608
            database.add(target, table, columns, [_plain(table, row) for row in rows])
            if count // TOLD_ROWS != (count + len(rows)) // TOLD_ROWS:
                print(f"{table}: {count + len(rows)} rows", file=sys.stderr)
            count += len(rows)
        print(f"{table}: all {count} rows", file=sys.stderr)


def _plain(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with the types of its columns; older versions wrote an integer among the bytes of `meta`."""
    if table == "meta" and isinstance(row[1], int):
        return row[0], str(row[1]).encode()
    return row


def _hashed(db: Connection) -> Log:
    """The log, every entry hashed anew.

    Raises:
        MigrationRefused: it is not what its tiles say. StoreUnusable: it is not what it has signed.
    """
    size = int(db.execute("SELECT coalesce(max(idx), -1) + 1 FROM entry").fetchone()[0])
    is_alone = not db.in_transaction
    if is_alone:
        database.begin_read(db)
    rows = database.stream(db, "SELECT bytes FROM entry ORDER BY idx")
    root = merkle.root(merkle.leaf_hash(data) for (data,) in rows)
    if is_alone:
        db.execute("ROLLBACK")
    if root != tree.read_root(db, size):
        raise MigrationRefused("The log's entries are not those that its tree was made of.")
    return Log(size, root, checkpoint.check(db, size))


def _compare(before: Log, target: Connection) -> None:
    if _hashed(target) != before:
        raise MigrationRefused("What is in the target is not what was in the source; it is thrown away.")
