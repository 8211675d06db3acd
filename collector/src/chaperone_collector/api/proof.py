"""`sessions/proof`: the session's stream as a bundle that `chaperone verify` checks offline.

The bundle is an evidence directory as a tar: `streams/<id>/<first seq>.seg`, `bodies/<id>/<n>.seg`, and
`log/<id>.tlog-proof`. It holds all records of the stream (a chain has no parts) but only the bodies of the session
asked for. The proof shows that the last record here is in the log that the checkpoint in it signs; that record's link
speaks for all before it. The CA and the log's keys that all this is checked against are not in it: an auditor brings
them along. `certificates/` holds the entries of the log that say that texts of the session were erased, if any were,
and `revisions/` the policy by which its commands were decided, as the operator signed it (`revisions.py`).
`README.txt` and a verifier of its own, `verify.py`, are for who has the bundle and nothing else.

Where it ends: a stream that lives ends with its last signed head, because the records after it are proved by the next
one, seconds later; until that head has come, a session that ended after the last one has no proof. One that has gone
silent or was succeeded is given whole; with the successor's beginning, which signs the end of its predecessor.
"""

from __future__ import annotations

import importlib.resources
import tarfile
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from chaperone_collector.api import revisions
from chaperone_collector.api.pieces import member, prove
from chaperone_collector.api.status import unavailable
from chaperone_collector.database import Connection, stream
from chaperone_collector.retention import commits
from chaperone_collector.store import Store
from chaperone_evidence import entry
from chaperone_evidence.coverage import LOST_AFTER_US

SEGMENT_ENTRIES: Final = 2000  # entries in one file of the bundle: at most 32 MiB, usually 1
SEGMENT_BODY_BYTES: Final = 8 << 20
COMPANIONS: Final = ("README.txt", "verify.py")  # of the evidence library, as they are

_COMPANION: Final = importlib.resources.files("chaperone_evidence") / "companion"


class Part(msgspec.Struct, frozen=True):
    """A stream and how many of its records belong to the bundle."""

    id: int
    name: str
    count: int
    index: int  # of the last of them in the log
    proof: bytes


async def bundle(store: Store, namespace: str, session: str, now_us: int) -> AsyncIterator[bytes] | None:
    """The bundle's bytes, piece by piece; None when there is no such session.

    Raises:
        ApiError: 503, the head that proves the session has not come yet.
    """
    parts = await store.read(lambda db: _parts(db, namespace, session, now_us))
    if not parts:
        return None
    size = await store.read(lambda db: revisions.signed_size(db, namespace))
    return _stream(store, parts, namespace, session, size)


async def receipt(store: Store, namespace: str, session: str, now_us: int) -> bytes | None:
    """The COSE receipt of the last record that a bundle of the session has now; None when there is no such session.

    Raises:
        ApiError: 503, as for the bundle.
    """

    def find(db: Connection) -> bytes | None:
        parts = _parts(db, namespace, session, now_us)
        if not parts:
            return None
        made = store.receipt(db, parts[0].index)
        return made.encode() if made is not None else None

    return await store.read(find)


async def _stream(
    store: Store, parts: list[Part], namespace: str, session: str, size: int
) -> AsyncIterator[bytes]:  # fmt: skip
    named: set[str] = set()
    for name in COMPANIONS:
        yield member(name, _COMPANION.joinpath(name).read_bytes())
    for part in parts:
        for first in range(0, part.count, SEGMENT_ENTRIES):
            last = min(first + SEGMENT_ENTRIES, part.count) - 1
            data = await store.read(lambda db, p=part, a=first, z=last: read_frames(db, p.id, a, z))  # type: ignore[misc]
            named.update(revisions.named(data))
            yield member(f"streams/{part.name}/{first:016d}.seg", data)
        yield member(f"log/{part.name}.tlog-proof", part.proof)
    after, number = -1, 0
    while True:
        after, data = await store.read(lambda db, a=after: _bodies(db, parts[0], namespace, session, a))  # type: ignore[misc]
        if not data:
            break
        yield member(f"bodies/{parts[0].name}/{number:08d}.seg", data)
        number += 1
    for idx, data, proof in await store.read(lambda db: _certificates(db, namespace, session)):
        yield member(f"certificates/{idx:016d}.entry", data)
        yield member(f"certificates/{idx:016d}.tlog-proof", proof)
    for one in await store.read(lambda db: list(revisions.members(db, namespace, named, size))):
        yield one
    yield bytes(2 * tarfile.BLOCKSIZE)


def _certificates(db: Connection, namespace: str, session: str) -> list[tuple[int, bytes, bytes]]:
    """Entries that state that texts of the session were erased, and that the log has them."""
    rows = db.execute(
        "SELECT e.idx, e.bytes FROM session s JOIN erasure g ON g.session = s.idx JOIN entry e ON e.idx = g.idx "
        "WHERE s.namespace = ? AND s.name = ? ORDER BY e.idx",
        (namespace, session),
    ).fetchall()
    return [(idx, bytes(data), prove(db, idx)) for idx, data in rows]


def _parts(db: Connection, namespace: str, session: str, now_us: int) -> list[Part]:
    row = db.execute(
        "SELECT st.id, st.name, st.count, st.signed, st.superseded, st.seen_us, st.pod_uid, e.seq FROM session s "
        "JOIN stream st ON st.id = s.stream JOIN entry e ON e.idx = coalesce(s.close_idx, s.idx) "
        "WHERE s.namespace = ? AND s.name = ?",
        (namespace, session),
    ).fetchone()
    if row is None:
        return []
    number, name, count, signed, superseded, seen_us, pod_uid, last_seq = row
    is_over = superseded or seen_us < now_us - LOST_AFTER_US
    if not is_over and last_seq >= signed:
        raise unavailable("The session's last records are not signed yet; its gateway signs every 10 s. Ask again.")
    parts = [_part(db, number, name, count if is_over else signed)]
    if superseded:
        for follower, follower_name in db.execute(
            "SELECT id, name FROM stream WHERE previous = ? AND pod_uid = ? ORDER BY id", (name, pod_uid)
        ):
            head = db.execute(
                "SELECT min(seq) FROM entry WHERE stream = ? AND class = ?", (follower, entry.CLASS_HEAD)
            ).fetchone()[0]
            if head is not None:
                parts.append(_part(db, follower, follower_name, head + 1))
    return parts


def _part(db: Connection, stream: int, name: str, count: int) -> Part:
    """A stream's beginning, with the proof that the log has its last record."""
    index = db.execute("SELECT idx FROM entry WHERE stream = ? AND seq = ?", (stream, count - 1)).fetchone()[0]
    return Part(stream, name, count, index, prove(db, index))


def read_frames(db: Connection, stream: int, first: int, last: int) -> bytes:
    """The entries of a stream from `first` to `last`, both included, as they stand in a file of a bundle."""
    rows = db.execute(
        "SELECT bytes FROM entry WHERE stream = ? AND seq BETWEEN ? AND ? ORDER BY seq", (stream, first, last)
    )
    return b"".join(entry.frame(bytes(row[0])) for row in rows)


def _bodies(db: Connection, part: Part, namespace: str, session: str, after: int) -> tuple[int, bytes]:
    """Body frames of the session's commands and recording after an index, up to a segment's size; the last index."""
    rows = stream(
        db,
        "SELECT n.idx, e.bytes FROM (SELECT c.idx FROM session s JOIN command c ON c.session = s.idx "
        "WHERE s.namespace = ? AND s.name = ? AND c.idx > ? UNION ALL SELECT k.idx FROM session s "
        "JOIN chunk k ON k.session = s.idx WHERE s.namespace = ? AND s.name = ? AND k.idx > ?) n "
        "JOIN entry e ON e.idx = n.idx WHERE e.seq < ? ORDER BY n.idx",
        (namespace, session, after, namespace, session, after, part.count),
    )
    frames: dict[bytes, bytes] = {}
    size = 0
    for idx, raw in rows:
        after = idx
        for commit in commits(bytes(raw)):
            if commit in frames:
                continue
            found = db.execute("SELECT bytes FROM body WHERE hash = ?", (commit,)).fetchone()
            if found is not None and found[0]:
                body = bytes(found[0])
                frames[commit] = entry.body_frame(body[: entry.SALT_BYTES], body[entry.SALT_BYTES :])
                size += len(body)
        if size > SEGMENT_BODY_BYTES:
            break
    return after, b"".join(frames.values())
