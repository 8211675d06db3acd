"""A snapshot of a PostgreSQL server's own counters, as a file.

It holds no text of any statement: of each kind of statement the server's number for it, who ran it, and how often.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import msgspec

FORMAT: Final = "chaperone.dev/totals-snapshot/v1"
MAX_BYTES: Final = 64 << 20  # pg_stat_statements keeps 5000 kinds of statements by default, at 150 bytes here
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

type Own = Literal["", "lookup", "estimate", "nothing"]
type Witness = Literal["pg_stat_statements", "pg_stat_database"]


class CannotRead(Exception):
    """A file is no snapshot, or no comparison; the text says why."""


class Counter(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often a role ran one kind of statement in one database, at the top level (not inside a function).

    `own` says whose it is: a look-up is the gateway's, an estimate (`EXPLAIN (FORMAT JSON)`) its or the agent's, and
    what runs nothing (DEALLOCATE) is counted by some versions only.
    """

    user_id: int
    database_id: int
    query_id: int
    calls: int
    user: str = ""  # empty: the role is gone
    own: Own = ""
    since: str = ""  # from 17 on: when the counting of this one began


class Database(msgspec.Struct, frozen=True):
    """What pg_stat_database says of a database."""

    name: str
    transactions: int  # committed and rolled back, of everybody
    sessions: int  # that began
    reset: str = ""


class Server(msgspec.Struct, frozen=True):
    """Which server it is: what initdb drew, its version (as 170004), when it was started."""

    system_identifier: str
    version: int
    started: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Times are RFC 3339 by the server's clock, in UTC: the counters were read between the two."""

    format: str
    program: str  # the version of this program, whose gateway's look-ups are known
    began: str
    ended: str
    server: Server
    witness: Witness
    settings: dict[str, str] = {}
    reset: str = ""  # when all counters began at nothing
    evicted: int = 0  # how often the server made room by forgetting kinds of statements
    counters: list[Counter] = []
    databases: list[Database] = []
    busy: dict[str, int] = {}  # sessions of a role that were at work or inside a transaction


def micros(moment: str) -> int:
    """A time of a record or of a snapshot, in microseconds since 1970.

    Raises:
        CannotRead: it is none.
    """
    try:
        return (datetime.fromisoformat(moment) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, TypeError, OverflowError) as error:
        raise CannotRead(f"{moment[:40]!r} is no time in UTC.") from error


def read(path: Path) -> tuple[Snapshot, str]:
    """The snapshot in a file, and the file's SHA-256.

    Raises:
        CannotRead: it is none.
    """
    data = load(path)
    try:
        found = msgspec.json.decode(data, type=Snapshot)
    except msgspec.DecodeError as error:
        raise CannotRead(f"{path} is no snapshot of `totals take`: {error}") from error
    check(found, str(path))
    return found, hashlib.sha256(data).hexdigest()


def check(found: Snapshot, name: str) -> None:
    """Refuse what this version cannot judge.

    Raises:
        CannotRead: it is of another format, or has no times.
    """
    if found.format != FORMAT:
        raise CannotRead(f"{name} is not of the format {FORMAT}.")
    if not micros(found.began) <= micros(found.ended):
        raise CannotRead(f"{name} ended before it began.")


def load(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        CannotRead: it cannot be read, or is too long.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CannotRead(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise CannotRead(f"{path} is longer than {MAX_BYTES} bytes.")
    return data
