"""Sessions of a PostgreSQL client, drawn by hypothesis: what is sent, where the bytes are cut, and when it waits.

A session is a tuple of moves. `Send` holds whole messages or pieces of them; `AwaitReady` lets the client read until
so many ReadyForQuery have come in all, as a client that doesn't pipeline would; `AwaitCopy` until the server wants
data or is ready. Names made by SQL (`q1`, `c1`) and through the protocol (`s1`, `p1`) are different ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hypothesis import strategies as st

from chaperone_sidecar.protocols.postgresql import messages as m

# What both databases hold before each session.
CONTENT: Final = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO agent_rw; SET ROLE agent_rw;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, price numeric(10,2), data bytea, mood mood DEFAULT 'ok');
INSERT INTO items
    SELECT i, 'item ' || i, i * 1.25, decode(lpad(to_hex(i), 4, '0'), 'hex') FROM generate_series(1, 20) i;
CREATE TABLE notes (item int REFERENCES items DEFERRABLE INITIALLY DEFERRED, body text CHECK (body <> 'bad'));
CREATE FUNCTION shout(t text) RETURNS text LANGUAGE plpgsql
    AS $$BEGIN RAISE NOTICE 'heard %', t; RETURN upper(t); END$$;
CREATE FUNCTION fail() RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'failed on purpose'; END$$;
RESET ROLE
"""

TEXTS: Final = (
    b"SELECT 1", b"SELECT id, name, price, data, mood FROM items WHERE id < 4 ORDER BY id", b"", b" -- nothing\n",
    b"SELECT count(*), sum(price) FROM items", b"SELECT 1/0", b"SELECT nothing FROM items", b"SELEC 1",
    b"SELECT shout('a')", b"SELECT shout(name) FROM items WHERE id < 3 ORDER BY id", b"SELECT fail()",
    b"DO $$BEGIN RAISE WARNING 'beware'; END$$", b"INSERT INTO items (id, name) VALUES (100, 'new')",
    b"INSERT INTO items (id, name) VALUES (1, 'twice')", b"INSERT INTO items (id) VALUES (101) RETURNING id",
    b"INSERT INTO notes VALUES (1, 'fine')", b"INSERT INTO notes VALUES (999, 'no such item')",
    b"INSERT INTO notes VALUES (1, 'bad')", b"UPDATE items SET price = price + 1 WHERE id <= 5 RETURNING id, price",
    b"DELETE FROM items WHERE id > 15", b"DELETE FROM notes", b"BEGIN", b"COMMIT", b"ROLLBACK", b"START TRANSACTION",
    b"SAVEPOINT a", b"ROLLBACK TO a", b"RELEASE a", b"SAVEPOINT b", b"COMMIT AND CHAIN", b"END",
    b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", b"SET CONSTRAINTS ALL IMMEDIATE",
    b"DECLARE c1 CURSOR FOR SELECT id, name FROM items ORDER BY id",
    b"DECLARE c2 SCROLL CURSOR WITH HOLD FOR SELECT id FROM items ORDER BY id", b"FETCH 2 FROM c1",
    b"FETCH BACKWARD 1 FROM c2", b"FETCH ALL FROM c2", b"MOVE 1 FROM c1", b"CLOSE c1", b"CLOSE c2", b"CLOSE ALL",
    b"DECLARE c3 BINARY CURSOR FOR SELECT id, data FROM items ORDER BY id", b"FETCH 3 FROM c3",
    b"LISTEN news", b"NOTIFY news, 'hello'", b"NOTIFY news", b"UNLISTEN *", b"SELECT pg_notify('news', 'from select')",
    b"SET datestyle TO 'SQL, DMY'", b"SET application_name TO 'other'", b"SET LOCAL timezone TO 'Asia/Tokyo'",
    b"SHOW datestyle", b"RESET ALL", b"SET bytea_output TO escape",
    b"SELECT set_config('intervalstyle', 'iso_8601', false)",
    b"PREPARE q1 AS SELECT name FROM items WHERE id = $1", b"EXECUTE q1(2)", b"DEALLOCATE q1", b"DEALLOCATE ALL",
    b"CREATE TABLE made (a int, b text)", b"INSERT INTO made VALUES (1, 'x') RETURNING *", b"DROP TABLE made",
    b"DROP TABLE IF EXISTS gone", b"CREATE TEMP TABLE temporary (a int) ON COMMIT DROP", b"TRUNCATE notes",
    b"ALTER TABLE items ADD COLUMN more int", b"EXPLAIN (COSTS OFF) SELECT * FROM items WHERE id = 1",
    b"COPY items (id, name) TO STDOUT", b"COPY (SELECT id, name FROM items ORDER BY id) TO STDOUT (FORMAT csv, HEADER)",
    b"COPY (SELECT id, data FROM items ORDER BY id) TO STDOUT (FORMAT binary)", b"COPY nowhere TO STDOUT",
    b"SELECT i, repeat('x', 40) FROM generate_series(1, 1500) i", b"SELECT repeat('y', 400000)", b"SELECT",
    b"TABLE notes", b"SELECT '\xc3\xa9t\xc3\xa9', E'\\\\', 'it''s'", b"SELECT '\xff'",
    b"SELECT NULL, '', true, 1.5::float8, ARRAY[1,2]",
    b"VALUES (1, 'a'), (2, 'b')", b"DISCARD ALL", b"DISCARD PLANS", b"LOCK TABLE items",
    b"SELECT current_setting('timezone')", b"DEALLOCATE s1", b"PREPARE s2 AS SELECT 'by SQL'", b"EXECUTE s1",
    b"DECLARE p1 CURSOR FOR SELECT id FROM items ORDER BY id", b"FETCH 1 FROM p1", b"CLOSE p1",
    b"DECLARE p2 CURSOR WITH HOLD FOR SELECT 1",
)  # fmt: skip

COPIES: Final = (
    (b"COPY items (id, name) FROM STDIN", (b"200\tcopied\n", b"201\tmore\n", b"\\.\n")),
    (b"COPY items (id, name) FROM STDIN", (b"1\ttwice\n", b"203\tx\n")),
    (b"COPY items (id, name) FROM STDIN", (b"not a number\tx\n", b"204\tx\n")),
    (b"COPY items (id, name) FROM STDIN", (b"2", b"05\tcut in", b" two\n206\t\\N\n")),
    (b"COPY notes FROM STDIN (FORMAT csv, HEADER)", (b"item,body\n1,\"quo\"\"ted\"\n", b"2,plain\n")),
    (b"COPY items (id, data, name) FROM STDIN (FORMAT binary)", (
        b"PGCOPY\n\xff\r\n\0" + bytes(8),
        struct.pack(">hiiih", 3, 4, 300, 2, 0x0102) + struct.pack(">i", 1) + b"z", b"\xff\xff")),
    (b"COPY items (id, data, name) FROM STDIN (FORMAT binary)", (b"not the header\n",)),
    (b"COPY nowhere FROM STDIN", (b"1\n",)),
    (b"COPY notes FROM STDIN; SELECT 1", (b"3\tthree\n",)),
    (b"SELECT 1; COPY notes FROM STDIN; SELECT shout('x')", (b"4\tfour\n",)),
    (b"COPY items (id, name) FROM STDIN (FREEZE)", (b"207\tx\n",)),
)  # fmt: skip

_EARLY_ERROR: Final = b"FREEZE"  # fails after CopyInResponse and before the server reads on

PREPARED: Final = (
    (b"SELECT id, name, data FROM items WHERE id <= $1 ORDER BY id", (23,), (b"\0\0\0\7", b"7", None, b"x")),
    (b"SELECT $1::int + 1, $2::text", (23, 25), (b"\0\0\0\1", b"41", b"a", None)),
    (b"INSERT INTO items (id, name) VALUES ($1, $2) RETURNING id, mood", (0, 0), (b"\0\0\1\0", b"300", b"n", None)),
    (b"UPDATE items SET price = $1 WHERE id = 3", (1700,), (b"2.50", b"worse", None)),
    (b"SELECT mood FROM items WHERE mood = $1", (), (b"ok", b"none such")),
    (b"SELECT 10 / $1::int", (), (b"0", b"\0\0\0\0", b"\0\0\0\2")),
    (b"SELECT i FROM generate_series(1, 7) i", (), ()),
    (b"SELECT $1::bytea", (17,), (b"\\x00ff", b"\0\xff", b"\\xzz")),
)  # fmt: skip

LONG_NAMES: Final = (b"n" * 63, b"n" * 63 + b"1", b"n" * 63 + b"2")  # one name to the server
NAMES: Final = st.sampled_from((b"", b"s1", b"s2") * 3 + LONG_NAMES)
PORTALS: Final = st.sampled_from((b"", b"", b"p1", b"p2") * 3 + LONG_NAMES)
END: Final = b"the end of the session"
_OVER: Final = m.frame(m.COPY_FAIL, b"over\0")  # out of a COPY that a session may have left open
_LAST: Final = (_OVER, m.SYNC_FRAME, m.encode_query(b"ROLLBACK"), m.encode_query(b"SELECT '" + END + b"'"))


@dataclass(frozen=True)
class Send:
    """Bytes, in these pieces."""

    pieces: tuple[bytes, ...]


@dataclass(frozen=True)
class AwaitReady:
    """Read until this many ReadyForQuery came since the beginning."""

    count: int


@dataclass(frozen=True)
class AwaitCopy:
    """Read until one more CopyInResponse came than before, or that many ReadyForQuery."""

    count: int


type Move = Send | AwaitReady | AwaitCopy


def parse(name: bytes, text: bytes, types: tuple[int, ...] = ()) -> bytes:
    """A Parse."""
    return m.frame(m.PARSE, name + b"\0" + text + b"\0" + struct.pack(f">H{len(types)}I", len(types), *types))


def bind(
    portal: bytes,
    statement: bytes,
    values: tuple[bytes | None, ...],
    formats: tuple[int, ...],
    results: tuple[int, ...],
) -> bytes:
    """A Bind."""
    body = portal + b"\0" + statement + b"\0" + struct.pack(f">H{len(formats)}H", len(formats), *formats)
    body += struct.pack(">H", len(values))
    for value in values:
        body += struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
    return m.frame(m.BIND, body + struct.pack(f">H{len(results)}H", len(results), *results))


def execute(portal: bytes, max_rows: int) -> bytes:
    """An Execute."""
    return m.frame(m.EXECUTE, portal + b"\0" + struct.pack(">I", max_rows))


def describe(kind: bytes, name: bytes) -> bytes:
    """A Describe."""
    return m.frame(m.DESCRIBE, kind + name + b"\0")


def close(kind: bytes, name: bytes) -> bytes:
    """A Close."""
    return m.frame(m.CLOSE, kind + name + b"\0")


def sent(moves: tuple[Move, ...]) -> bytes:
    """What a session sends before the messages that all sessions end with."""
    return b"".join(piece for move in moves if isinstance(move, Send) for piece in move.pieces).partition(_OVER)[0]


def written(*frames: bytes) -> tuple[Move, ...]:
    """A session of these messages, sent at once."""
    return (Send((b"".join((*frames, *_LAST)),)),)


class _Script:
    """A session under construction: messages not yet sent, and how many ReadyForQuery they will bring."""

    def __init__(self, draw: Callable[..., object]) -> None:
        self._draw = draw
        self.moves: list[Move] = []
        self._waiting = b""
        self._ready = 0
        self._is_certain = True

    def draw[T](self, strategy: st.SearchStrategy[T]) -> T:
        found: T = self._draw(strategy)  # type: ignore[assignment]
        return found

    def add(self, *frames: bytes, ready: int = 0) -> None:
        self._waiting += b"".join(frames)
        self._ready += ready

    def lose_count(self) -> None:
        """Whether a Sync that was sent is answered depends on how a COPY goes, so nothing can be waited for."""
        self._is_certain = False

    def flush(self) -> None:
        data, self._waiting = self._waiting, b""
        if data:
            cuts = sorted({cut % len(data) for cut in self.draw(st.lists(st.integers(1, 4096), max_size=3))} - {0})
            edges = [0, *cuts, len(data)]
            self.moves.append(Send(tuple(data[a:b] for a, b in pairwise(edges))))

    def await_ready(self) -> None:
        self.flush()
        if self._is_certain:
            self.moves.append(AwaitReady(self._ready))

    def await_copy(self) -> None:
        self.flush()
        if self._is_certain:
            self.moves.append(AwaitCopy(self._ready))


def _simple(script: _Script) -> None:
    texts = script.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
    script.add(m.encode_query(b"; ".join(texts)), ready=1)


def _copy_frames(script: _Script, blocks: tuple[bytes, ...]) -> bytes:
    data = b"".join(m.frame(m.COPY_DATA, block) for block in blocks)
    how = script.draw(st.sampled_from(("done", "done", "done", "fail")))
    return data + (m.frame(m.COPY_DONE, b"") if how == "done" else m.frame(m.COPY_FAIL, b"given up\0"))


def _copy_simple(script: _Script) -> None:
    text, blocks = script.draw(st.sampled_from(COPIES))
    script.add(m.encode_query(text), ready=1)
    if script.draw(st.booleans()):
        script.await_copy()
    if _EARLY_ERROR not in text and script.draw(st.integers(0, 7)) == 0:  # Sync and Flush mean nothing inside COPY
        script.add(m.FLUSH_FRAME, m.SYNC_FRAME)
        script.lose_count()
    script.add(_copy_frames(script, blocks))


def _copy_twice(script: _Script) -> None:
    script.add(m.encode_query(b"COPY notes FROM STDIN; COPY items (id, name) FROM STDIN"), ready=1)
    script.add(_copy_frames(script, (b"5\tfive\n",)))
    script.add(_copy_frames(script, (b"208\tlater\n",)))


def _copy_extended(script: _Script) -> None:
    text, blocks = script.draw(st.sampled_from(COPIES))
    script.add(parse(b"", text), bind(b"", b"", (), (), ()), execute(b"", 0))
    if _EARLY_ERROR not in text and script.draw(st.booleans()):  # libpq does it; this Sync is read inside COPY, ignored
        script.add(m.SYNC_FRAME)
        script.lose_count()
    script.add(_copy_frames(script, blocks), m.SYNC_FRAME, ready=1)


def _whole(script: _Script) -> None:
    """Parse, Bind, Describe, Execute as drivers send them, perhaps in several goes."""
    name, portal = script.draw(NAMES), script.draw(PORTALS)
    if script.draw(st.booleans()):
        text, types, values = script.draw(st.sampled_from(PREPARED))
    else:
        text, types, values = script.draw(st.sampled_from(TEXTS)), (), ()
    wanted = (1 + (b"$2" in text)) if values else 0
    given = tuple(script.draw(st.sampled_from(values)) for _ in range(wanted))
    formats = script.draw(st.sampled_from(((), (0,), (1,), (0,) * wanted, (1,) * wanted)))
    results = script.draw(st.sampled_from(((), (0,), (1,))))
    if name and script.draw(st.booleans()):
        script.add(close(b"S", name))
    script.add(parse(name, text, types))
    if script.draw(st.booleans()):
        script.add(describe(b"S", name))
    _maybe_flush(script)
    script.add(bind(portal, name, given, formats, results))
    if script.draw(st.booleans()):
        script.add(describe(b"P", portal))
    for _ in range(script.draw(st.integers(1, 3))):
        script.add(execute(portal, script.draw(st.sampled_from((0, 0, 1, 2, 5)))))
        _maybe_flush(script)
    if script.draw(st.booleans()):
        script.add(close(b"P", portal))


def _maybe_flush(script: _Script) -> None:
    if script.draw(st.integers(0, 4)) == 0:
        script.add(m.FLUSH_FRAME)
        script.flush()


def _loose(script: _Script) -> None:
    """One message of the extended protocol, whether it fits or not."""
    name, portal = script.draw(NAMES), script.draw(PORTALS)
    kind = script.draw(st.sampled_from("pbdDeEcCH"))
    if kind == "p":
        script.add(parse(name, script.draw(st.sampled_from(TEXTS))))
    elif kind == "b":
        script.add(bind(portal, name, (), (), script.draw(st.sampled_from(((), (1,), (0, 1))))))
    elif kind in "dD":
        script.add(describe(b"S", name) if kind == "d" else describe(b"P", portal))
    elif kind in "eE":
        script.add(execute(portal, 2 if kind == "e" else 0))
    elif kind in "cC":
        script.add(close(b"S", name) if kind == "c" else close(b"P", portal))
    else:
        script.add(m.FLUSH_FRAME)


def _extended(script: _Script) -> None:
    for _ in range(script.draw(st.integers(1, 4))):
        script.draw(st.sampled_from((_whole, _whole, _loose)))(script)
    script.add(m.SYNC_FRAME, ready=1)


def _unended(script: _Script) -> None:
    """A simple query in the place of a Sync; it is skipped if one of the messages before it has failed."""
    script.draw(st.sampled_from((_whole, _loose)))(script)
    _maybe_flush(script)
    script.add(m.encode_query(script.draw(st.sampled_from(TEXTS))), m.SYNC_FRAME)
    script.lose_count()


def _stray(script: _Script) -> None:
    """Messages that a server ignores here, or answers with nothing but ReadyForQuery."""
    script.add(
        script.draw(st.sampled_from((m.FLUSH_FRAME, m.frame(m.COPY_DATA, b"late\n"), m.frame(m.COPY_DONE, b""))))
    )
    script.add(m.SYNC_FRAME, ready=1)


_UNITS: Final = (
    (_simple,) * 6 + (_extended,) * 6 + (_copy_simple, _copy_simple, _copy_extended, _copy_twice, _stray, _unended)
)


@st.composite
def sessions(draw: Callable[..., object]) -> tuple[Move, ...]:
    """Any session; it ends where a last question is answered, whatever state the rest has left."""
    script = _Script(draw)
    for _ in range(script.draw(st.integers(1, 7))):
        script.draw(st.sampled_from(_UNITS))(script)
        if script.draw(st.booleans()):
            script.await_ready()
    script.add(*_LAST)
    script.flush()
    return tuple(script.moves)
