"""`sessions/recording`: what a session did and what its client was shown, as lines of JSON.

The first line is the session (`kind: session`). Then the session's records follow in the order of the log (`kind:
record`), commands with their text and parameters (base64), and each `recording.chunk` with its frames, a line each,
decompressed here. A chunk whose body is not here, or cannot be read, is a record with `problem`. `?from=<seconds>`
leaves out the frames of chunks that end before; the records are there all the same, for the rest means little without
them.

One chunk is in memory at a time. What a stream's other sessions did is not looked into.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from chaperone_collector.api.status import bad_request
from chaperone_collector.database import Connection
from chaperone_collector.store import Store
from chaperone_evidence import canonical, entry, frames, record
from chaperone_evidence.errors import EvidenceError

MEDIA_TYPE: Final = "application/x-ndjson"
PAGE_ENTRIES: Final = 2000  # of the stream, looked through in one reading of the database
PAGE_BYTES: Final = 4 << 20  # of bodies, after which a page ends: they are at most 1 MiB each
MAX_FROM_S: Final = 10**9


class _Session(msgspec.Struct, frozen=True):
    """Where a session's records are."""

    stream: int
    first_seq: int
    last_seq: int
    shown: dict[str, Any]


class _Line(msgspec.Struct, frozen=True, omit_defaults=True, tag="record", tag_field="kind"):
    index: int
    record: msgspec.Raw
    texts: dict[str, bytes] = {}  # of a command, those that are here: `text`, `params`
    problem: str = ""  # why there are no frames


def read_from(query: Mapping[str, str]) -> int:
    """From when on frames are wanted, in microseconds since the session was opened.

    Raises:
        ApiError: 400.
    """
    text = query.get("from", "0")
    whole, _, part = text.partition(".")
    if not (whole + part).isdecimal() or not text.isascii() or not whole or len(text) > 17 or int(whole) > MAX_FROM_S:
        raise bad_request("from is a number of seconds that is not negative, such as 90 or 1.5")
    return int(whole) * 1_000_000 + int(part[:6].ljust(6, "0") or "0")


async def recording(
    store: Store, namespace: str, name: str, shown: dict[str, Any], from_us: int
) -> AsyncIterator[bytes] | None:
    """The recording piece by piece; None when there is no such session. `shown` is the session as an object."""
    session = await store.read(lambda db: _find(db, namespace, name, shown))
    return _pieces(store, name, session, from_us) if session is not None else None


async def _pieces(store: Store, name: str, session: _Session, from_us: int) -> AsyncIterator[bytes]:
    yield msgspec.json.encode({"kind": "session", "session": session.shown}) + b"\n"
    seq = session.first_seq
    while seq <= session.last_seq:
        seq, data = await store.read(lambda db, s=seq: _page(db, session, name, s, from_us))  # type: ignore[misc]
        if data:
            yield data


def _find(db: Connection, namespace: str, name: str, shown: dict[str, Any]) -> _Session | None:
    row = db.execute(
        "SELECT s.stream, o.seq, coalesce(c.seq, st.count - 1) FROM session s JOIN stream st ON st.id = s.stream "
        "JOIN entry o ON o.idx = s.idx LEFT JOIN entry c ON c.idx = s.close_idx WHERE s.namespace = ? AND s.name = ?",
        (namespace, name),
    ).fetchone()
    return None if row is None else _Session(row[0], row[1], row[2], shown)


def _page(db: Connection, session: _Session, name: str, seq: int, from_us: int) -> tuple[int, bytes]:
    """Lines of the session's records from a number on, and the number to go on with."""
    last = min(seq + PAGE_ENTRIES - 1, session.last_seq)
    rows = db.execute(
        "SELECT idx, seq, bytes FROM entry WHERE stream = ? AND seq BETWEEN ? AND ? AND class = ? ORDER BY seq",
        (session.stream, seq, last, entry.CLASS_RECORD),
    )
    lines: list[bytes] = []
    size = 0
    marked = name.encode()
    for idx, at, raw in rows:
        if marked not in raw:
            continue  # of another session, found without taking the record apart
        header = bytes(raw)[entry.PREFIX_BYTES :]
        try:
            found = record.decode(header)
        except EvidenceError:
            continue  # not of the session as far as anybody can tell; it is in the proof
        if getattr(found, "session", "") != name:
            continue
        for line in _lines(db, idx, header, found, from_us):
            lines.append(line)
            size += len(line)
        if size > PAGE_BYTES:
            return at + 1, b"".join(lines)
    return last + 1, b"".join(lines)


def _lines(db: Connection, idx: int, header: bytes, found: record.Known | record.Unknown, from_us: int) -> list[bytes]:
    raw = msgspec.Raw(header)
    if isinstance(found, record.CommandIntent):
        named = (("text", found.body), ("params", found.params))
        return [_encode(_Line(idx, raw, {key: body for key, one in named if (body := _body(db, one)) is not None}))]
    if not isinstance(found, record.RecordingChunk) or found.last_us < from_us:
        return [_encode(_Line(idx, raw))]
    body = _body(db, found.body)
    if body is None:
        return [_encode(_Line(idx, raw, problem="its body is not here"))]
    try:
        shown = frames.read(body, found)
    except EvidenceError as error:
        return [_encode(_Line(idx, raw, problem=str(error)))]
    return [_encode(_Line(idx, raw)), *(frames.encode(frame) for frame in shown)]


def _encode(line: _Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _body(db: Connection, named: record.Commitment | msgspec.UnsetType) -> bytes | None:
    """A body without its salt."""
    if isinstance(named, msgspec.UnsetType):
        return None
    try:
        commit = canonical.decode_base64(named.commit)
    except EvidenceError:
        return None
    row = db.execute("SELECT bytes FROM body WHERE hash = ?", (commit,)).fetchone()
    return bytes(row[0])[entry.SALT_BYTES :] if row is not None and row[0] else None  # an empty one was erased
