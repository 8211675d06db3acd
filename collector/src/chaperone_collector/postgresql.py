"""A PostgreSQL server as the place of a log, which several collectors may share.

One of them writes at a time: a transaction that writes changes the row of `chaperone_log` first, and so waits for those
before it. Its number says whether another collector wrote meanwhile, whose work then has to be read before anything is
added (`Transaction.begin`). Readers see one state of the database, and cannot write.

A connection that is lost is made anew for the next transaction. Whether a COMMIT whose answer did not come was done is
never assumed: senders are told to come again, and find what is there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import psycopg
from psycopg import conninfo, pq, sql
from psycopg.adapt import Buffer
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper, StrDumperUnknown, TextBinaryLoader, TextLoader

from chaperone_collector.database import Rows, ServerBroken, ServerFault, ServerLost
from chaperone_collector.errors import StoreUnusable
from chaperone_collector.schema_server import STEPS

MIN_VERSION: Final = 140000
CONNECT_TIMEOUT_S: Final = 5
TURN_TIMEOUT_S: Final = 10  # longer than other collectors' transactions together should take
IDLE_TIMEOUT_S: Final = 30  # in a transaction: a collector that stands still does not keep the others
READ_TIMEOUT_S: Final = 30
FIRST_PORTION: Final = 64  # rows; later ones are larger
LARGEST_PORTION: Final = 1024
INSTALLING: Final = 0x63686170  # advisory lock while tables are made

# When either side has vanished without a word, the other one hears of it within half a minute; the server's own
# patience of two hours would keep the lead where nobody is.
_DEAD_CLIENT: Final = {"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
_DEAD_PEER: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}
_BUSY: Final = ("08", "40", "53", "55", "57", "58")  # classes of SQLSTATE: not now, as against: not so
_READ_ONLY: Final = "25006"  # the server has become a standby: the next connection may find its successor
_SAFE_COMMITS: Final = ("on", "remote_apply")
_NUL: Final = "\x00"
_ESCAPE: Final = "\x1a"

type _Raw = psycopg.Connection[tuple[Any, ...]]


class _TextDumper(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(_escaped(obj))


class _TextBinaryDumper(StrBinaryDumper):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(_escaped(obj))


class _TextLoader(TextLoader):
    def load(self, data: Buffer) -> str:
        return _unescaped(cast("str", super().load(data)))


class _TextBinaryLoader(TextBinaryLoader):
    def load(self, data: Buffer) -> str:
        return _unescaped(cast("str", super().load(data)))


def _escaped(text: str) -> str:
    """A text without NUL, and no other text's."""
    if _NUL not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, _ESCAPE + "1").replace(_NUL, _ESCAPE + "0")


def _unescaped(text: str) -> str:
    return text if _ESCAPE not in text else text.replace(_ESCAPE + "0", _NUL).replace(_ESCAPE + "1", _ESCAPE)


@functools.lru_cache(maxsize=1024)
def _translated(text: str) -> str:
    return text.replace("%", "%%").replace("?", "%s")


class ServerConnection:
    """One connection, made when it is needed, and again when it was lost.

    Args:
        info: libpq's; what it lacks comes from libpq's environment and files.
        is_writer: whether it may write.
    """

    def __init__(self, info: str, *, is_writer: bool) -> None:
        self._info = info
        self._is_writer = is_writer
        self._raw: _Raw | None = None
        self._types: dict[str, list[int]] = {}
        self._cursors = 0

    @property
    def in_transaction(self) -> bool:
        """Whether one has begun and not ended."""
        status = self._raw.info.transaction_status if self._raw is not None and not self._raw.closed else None
        return status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

    @property
    def raw(self) -> _Raw:
        """The connection.

        Raises:
            ServerLost: there is none, and none can be made.
        """
        if self._raw is None or self._raw.closed:
            try:
                self._raw = _connect(self._info, is_writer=self._is_writer)
            except psycopg.Error as error:
                raise ServerLost(f"the server cannot be reached: {error}") from error
        return self._raw

    def execute(self, text: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run a statement.

        Raises:
            ServerFault: it failed. ServerLost: the transaction may be tried again.
        """
        raw = self._open()
        try:
            cursor = raw.cursor(binary=True)
            cursor.execute(_translated(text), parameters)
        except psycopg.Error as error:
            raise self._fault(error) from error
        if text == "COMMIT" and cursor.statusmessage != "COMMIT":
            raise ServerFault("the transaction had failed before it was to be committed")
        return cursor

    def executemany(self, text: str, parameters: Iterable[Sequence[Any]], /) -> None:
        """Run a statement for each of them."""
        try:
            self._open().cursor().executemany(_translated(text), parameters)
        except psycopg.Error as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """End it."""
        if self._raw is not None:
            self._raw.close()

    def begin(self) -> int:
        """Begin to write: wait for those who do; returns the number of the turn.

        Raises:
            ServerLost: try again. StoreUnusable: the tables have another version than this collector.
        """
        raw = self.raw
        try:
            with raw.pipeline():
                raw.execute("BEGIN ISOLATION LEVEL READ COMMITTED")  # a statement sees what came while it waited
                row = raw.execute("UPDATE chaperone_log SET turn = turn + 1 RETURNING turn, version")
            turn, version = row.fetchone() or (0, 0)
        except psycopg.Error as error:
            raise self._fault(error) from error
        if version != len(STEPS):
            raw.close()
            raise StoreUnusable(f"The tables have version {version}, this collector knows {len(STEPS)}: another "
                                "version of the collector has brought them up to date.")  # fmt: skip
        return int(turn)

    def begin_read(self) -> None:
        """Begin to read one state of the database."""
        try:
            self.raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        except psycopg.Error as error:
            raise self._fault(error) from error

    def stream(self, text: str, parameters: Sequence[Any]) -> Iterator[Any]:
        """The rows of a query in portions, from a cursor that ends with the transaction."""
        self._cursors += 1
        name = f"c{self._cursors}"
        self.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {text}", parameters)
        size = FIRST_PORTION
        while True:
            rows = self.execute(f"FETCH {size} FROM {name}").fetchall()
            yield from rows
            if len(rows) < size:
                return
            size = min(4 * size, LARGEST_PORTION)

    def copy(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to a table."""
        raw = self._open()
        try:
            types = self._types.get(table)
            if types is None:
                described = raw.execute(f"SELECT {columns} FROM {table} LIMIT 0".encode()).description or ()  # noqa: S608
                types = self._types[table] = [column.type_code for column in described]
            with raw.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)
        except psycopg.Error as error:
            raise self._fault(error) from error

    def _open(self) -> _Raw:
        """The connection of the transaction; another one would be another transaction."""
        if self._raw is None:
            return self.raw
        if self._raw.closed:
            raise ServerLost("the connection to the server was lost")
        return self._raw

    def _fault(self, error: psycopg.Error) -> ServerFault:
        state = error.sqlstate or ""
        if self._raw is None or self._raw.closed or (isinstance(error, psycopg.OperationalError) and not state):
            return ServerLost(f"the connection to the server was lost: {error}")
        is_standby = self._is_writer and state == _READ_ONLY
        if is_standby or state.startswith("57P"):
            self._raw.close()
        if is_standby or state[:2] in _BUSY:
            return ServerLost(f"the server cannot do it now ({state}): {error}")
        return (ServerBroken if state.startswith("XX") else ServerFault)(f"{error} ({state})")


class Server:
    """The place of a log on a server.

    Args:
        info: libpq's string for a connection: to the server itself, not through a pool that shares sessions.
        key_path: of the log's keys, which all its collectors have.
    """

    is_shared = True
    makes_keys = False

    def __init__(self, info: str, key_path: Path) -> None:
        try:
            given = conninfo.conninfo_to_dict(info)
        except psycopg.Error:
            raise StoreUnusable("The string for the connection to the database cannot be read.") from None
        ours: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, **_DEAD_PEER, **given}
        self.info = conninfo.make_conninfo(**ours)
        self.name = f"{given.get('dbname', '')} at {given.get('host', '')} (PostgreSQL)"
        self.key_path = key_path

    def open_writer(self) -> ServerConnection:
        """The connection that writes; the tables are there afterwards.

        Raises:
            StoreUnusable: the server cannot be reached, or does not keep what it has committed, or has other tables.
        """
        connection = ServerConnection(self.info, is_writer=True)
        try:
            raw = connection.raw
            _check(raw)
            _install(raw)
        except (psycopg.Error, ServerLost) as error:
            connection.close()
            raise StoreUnusable(f"The database {self.name} cannot be used: {error}") from error
        return connection

    def open_reader(self) -> ServerConnection:
        """A connection that reads."""
        return ServerConnection(self.info, is_writer=False)

    def close(self) -> None:
        """There is nothing to let go of."""


def has_password(info: str) -> bool:
    """Whether a string for a connection holds one; also when nobody can tell."""
    try:
        return "password" in conninfo.conninfo_to_dict(info)
    except psycopg.Error:
        return True


def read_info(path: Path) -> str:
    """The string for a connection in a file.

    Raises:
        StoreUnusable: it cannot be read.
    """
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnusable(f"{path} cannot be read: {error}.") from None


def _connect(info: str, *, is_writer: bool) -> _Raw:
    raw = psycopg.connect(info, autocommit=True, application_name="chaperone-collector")
    raw.adapters.register_dumper(int, Int8BinaryDumper)  # one type, so that a statement is prepared once
    raw.adapters.register_dumper(str, _TextBinaryDumper)
    raw.adapters.register_dumper(str, _TextDumper)
    raw.adapters.register_loader("text", _TextLoader)
    raw.adapters.register_loader("text", _TextBinaryLoader)
    for setting, value in _DEAD_CLIENT.items():
        raw.execute(f"SET {setting} = {value}".encode())
    if is_writer:
        if _shown(raw, "synchronous_commit") not in _SAFE_COMMITS:
            raw.execute("SET synchronous_commit = on")
        raw.execute(f"SET lock_timeout = '{TURN_TIMEOUT_S}s'".encode())
        raw.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'".encode())
    else:
        raw.execute("SET default_transaction_read_only = on")
        raw.execute(f"SET statement_timeout = '{READ_TIMEOUT_S}s'".encode())
    return raw


def _shown(raw: _Raw, setting: str) -> str:
    row = raw.execute(sql.SQL("SHOW {}").format(sql.Identifier(setting))).fetchone()
    return str(row[0]) if row else ""


def _check(raw: _Raw) -> None:
    """Whether the server keeps what it has committed."""
    if raw.info.server_version < MIN_VERSION:
        raise StoreUnusable(f"The server has version {raw.info.server_version}; PostgreSQL 14 or later is needed.")
    for setting in ("fsync", "full_page_writes"):
        if _shown(raw, setting) != "on":
            raise StoreUnusable(f"The server runs with {setting} off, so a crash may take what it has committed.")
    if _shown(raw, "server_encoding") != "UTF8":
        raise StoreUnusable("The database has another encoding than UTF8; make one with ENCODING 'UTF8'.")
    if _shown(raw, "transaction_read_only") == "on":
        raise StoreUnusable("The server takes no writes: is it a standby?")


def _install(raw: _Raw) -> None:
    """Make the tables, or bring them up to date."""
    with raw.transaction():
        raw.execute("SELECT pg_advisory_xact_lock(%s)", (INSTALLING,))
        version = _version(raw)
        if version > len(STEPS):
            raise StoreUnusable(f"The tables have version {version}, this collector knows {len(STEPS)}: run the newer "
                                "collector, or restore a backup from before the upgrade.")  # fmt: skip
        for step in STEPS[version:]:
            raw.execute(step.encode())
        if version < len(STEPS):
            raw.execute("UPDATE chaperone_log SET version = %s", (len(STEPS),))


def _version(raw: _Raw) -> int:
    row = raw.execute("SELECT to_regclass('chaperone_log') IS NOT NULL, current_schema(), "
                      "(SELECT count(*) FROM pg_tables WHERE schemaname = current_schema())").fetchone()  # fmt: skip
    is_there, schema, others = row or (False, None, 0)
    if is_there:
        found = raw.execute("SELECT version FROM chaperone_log").fetchone()
        return int(found[0]) if found else 0
    if schema is None or others:
        raise StoreUnusable("The database has tables of another program; give the collector one of its own.")
    return 0
