"""The connection that this package's queries run on: SQLite's own, or one to a PostgreSQL server (`postgresql.py`).

Queries are written in what both understand: `?` for values, `ON CONFLICT`, `RETURNING`, names for derived tables, no
function that only one of them has. Where they cannot agree, a function here does it for both; the tables are two texts
(`schema.py`, `schema_server.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from chaperone_collector.errors import StoreUnusable


class ServerFault(Exception):
    """The server refused a statement, and with it the transaction."""


class ServerLost(ServerFault):
    """The connection is gone, or the server cannot work just now: nothing is wrong with what was asked."""


class ServerBroken(ServerFault):
    """The server says that its data are damaged."""


FAULTS: Final = (sqlite3.Error, ServerFault)
_TRANSIENT: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM}
_ERROR_CODE_MASK: Final = 0xFF  # extended result codes carry the primary one in their lowest byte


class Verdict(Enum):
    """What an error in a transaction says."""

    BUSY = 1  # nothing is wrong with what was asked; it may be tried again
    BROKEN = 2  # nothing can be relied on any more
    JOB = 3  # one of the transaction's jobs cannot be done


def judge(error: Exception) -> Verdict:
    """What an error says."""
    if isinstance(error, ServerLost):
        return Verdict.BUSY
    if isinstance(error, (StoreUnusable, ServerBroken)):
        return Verdict.BROKEN
    if not isinstance(error, sqlite3.Error):
        return Verdict.JOB
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & _ERROR_CODE_MASK in _TRANSIENT:
        return Verdict.BUSY
    is_of_a_job = isinstance(error, sqlite3.IntegrityError) or not isinstance(error, sqlite3.DatabaseError)
    return Verdict.JOB if is_of_a_job else Verdict.BROKEN


class Rows(Protocol):
    """What a statement gives."""

    @property
    def rowcount(self) -> int:
        """Rows that it changed."""

    def fetchone(self) -> Any:  # noqa: ANN401 - a row of whatever was asked for
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """The rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Served(Protocol):
    """A connection to a server, with the methods of SQLite's that are used; and what a server has besides."""

    @property
    def in_transaction(self) -> bool:
        """Whether one has begun and not ended."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run a statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Run a statement for each of them."""

    def close(self) -> None:
        """End it."""

    def begin(self) -> int:
        """Begin to write, alone among all writers, on a new connection if the old one was lost; the turn's number."""

    def begin_read(self) -> None:
        """Begin to read one state of the database, on a new connection if the old one was lost."""

    def stream(self, sql: str, parameters: Sequence[Any]) -> Iterator[Any]:
        """The rows of a query in portions."""

    def copy(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to a table."""


type Connection = sqlite3.Connection | Served


class Database(Protocol):
    """Where a log is kept."""

    @property
    def name(self) -> str:
        """What people know it by; nothing secret."""

    @property
    def is_shared(self) -> bool:
        """Whether other collectors may write there at the same time."""

    @property
    def key_path(self) -> Path:
        """The file of the log's keys."""

    @property
    def makes_keys(self) -> bool:
        """Whether the collector makes that file for a log that has signed nothing yet."""

    def open_writer(self) -> Connection:
        """A connection that writes; tables are made or brought up to date.

        Raises:
            StoreUnusable: it cannot be used.
        """

    def open_reader(self) -> Connection:
        """A connection that reads only, for one thread at a time."""

    def close(self) -> None:
        """Let go of it."""


def begin(db: Connection) -> int | None:
    """Begin to write. On a server: which turn this is; turns that are missing in between are of other collectors."""
    if isinstance(db, sqlite3.Connection):
        db.execute("BEGIN IMMEDIATE")
        return None
    return db.begin()


def begin_read(db: Connection) -> None:
    """Begin a transaction that reads one state of the database, until ROLLBACK."""
    if isinstance(db, sqlite3.Connection):
        db.execute("BEGIN")
    else:
        db.begin_read()


def stream(db: Connection, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
    """The rows of a query that the reader may leave off at any time; within a transaction."""
    return db.execute(sql, parameters) if isinstance(db, sqlite3.Connection) else db.stream(sql, parameters)


def add(db: Connection, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
    """Add many rows to a table; `columns` is their names, with commas between."""
    if not isinstance(db, sqlite3.Connection):
        db.copy(table, columns, rows)
        return
    places = ",".join("?" * (columns.count(",") + 1))
    db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)  # noqa: S608 - names of this package
