"""`populations/proof`: what shows who had to be heard in a namespace, and who was; a bundle for `chaperone verify`.

It holds every population of the namespace as it was signed, the entry of the newest one, and each stream: whole if it
is short, else its first record, its last head and what it ends with. Everything is below one checkpoint of the log, and
so of one time: `log/<stream>.tlog-proof` shows it of the end of each stream, `log/populations.tlog-proof` of the newest
population, which speaks for those before it as it names them by their hash. `operator.vkey` is the key that this
collector believes; an auditor brings a copy. Texts are not in it.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from chaperone_collector import population
from chaperone_collector.api.pieces import member
from chaperone_collector.api.proof import SEGMENT_BODY_BYTES, SEGMENT_ENTRIES, read_frames
from chaperone_collector.api.status import unavailable
from chaperone_collector.database import Connection, stream
from chaperone_collector.store import Store
from chaperone_collector.tree import read_proof
from chaperone_evidence import canonical, entry
from chaperone_evidence.coverage import LOST_AFTER_US
from chaperone_evidence.proof import LogProof
from chaperone_evidence.statement import PopulationEpoch

MAX_WHOLE: Final = 20_000  # entries of a stream that is given whole: two days of heads
RECENT_CHECKPOINTS: Final = 60  # of which the one with most witnesses is taken: witnesses need a moment


class Part(msgspec.Struct, frozen=True):
    """A stream, and how many of its records lie below the checkpoint."""

    id: int
    name: str
    count: int


class Census(msgspec.Struct, frozen=True):
    """What is in the bundle."""

    namespace: str
    newest: int  # index of its newest population's entry
    size: int
    note: bytes  # the checkpoint
    vkey: bytes
    parts: list[Part]


async def bundle(store: Store, namespace: str, now_us: int) -> AsyncIterator[bytes] | None:
    """The bundle's bytes, piece by piece; None when nothing was said of the namespace.

    Raises:
        ApiError: 503, no checkpoint covers its first population yet.
    """
    census = await store.read(lambda db: _census(db, namespace, now_us))
    return _stream(store, census) if census is not None else None


async def _stream(store: Store, census: Census) -> AsyncIterator[bytes]:
    yield member("operator.vkey", census.vkey + b"\n")
    epoch = 1
    while True:
        notes = await store.read(lambda db, a=epoch: _notes(db, census, a))  # type: ignore[misc]
        if not notes:
            break
        yield member(f"populations/{census.namespace}/{epoch:016d}.seg", b"".join(notes))
        epoch += len(notes)
    newest = await store.read(lambda db: _entry(db, census.newest))
    yield member(f"populations/{census.namespace}/newest.entry", newest)
    yield member("log/populations.tlog-proof", await store.read(lambda db: _proof(db, census, census.newest)))
    for part in census.parts:
        async for piece in _of_stream(store, census, part):
            yield piece
    yield bytes(2 * tarfile.BLOCKSIZE)


async def _of_stream(store: Store, census: Census, part: Part) -> AsyncIterator[bytes]:
    if part.count > MAX_WHOLE:
        yield member(f"ends/{part.name}.seg", await store.read(lambda db: _ends(db, part)))
    else:
        for first in range(0, part.count, SEGMENT_ENTRIES):
            last = min(first + SEGMENT_ENTRIES, part.count) - 1
            data = await store.read(lambda db, a=first, z=last: read_frames(db, part.id, a, z))  # type: ignore[misc]
            yield member(f"streams/{part.name}/{first:016d}.seg", data)
    yield member(f"log/{part.name}.tlog-proof", await store.read(lambda db: _proof_of_end(db, census, part)))


def _census(db: Connection, namespace: str, now_us: int) -> Census | None:
    first = db.execute("SELECT min(idx) FROM population WHERE namespace = ?", (namespace,)).fetchone()[0]
    if first is None:
        return None
    checkpoint = db.execute(
        "SELECT size, note FROM (SELECT * FROM checkpoint WHERE size > ? ORDER BY size DESC LIMIT ?) recent "
        "ORDER BY witnesses DESC, size DESC LIMIT 1",
        (first, RECENT_CHECKPOINTS),
    ).fetchone()
    if checkpoint is None:
        raise unavailable("The log's checkpoint over the namespace's populations is not signed yet. Ask again.")
    size, note = checkpoint
    newest = db.execute("SELECT max(idx) FROM population WHERE namespace = ? AND idx < ?", (namespace, size)).fetchone()
    (vkey,) = db.execute("SELECT value FROM meta WHERE key = ?", (population.KEY,)).fetchone()
    return Census(namespace, int(newest[0]), int(size), bytes(note), bytes(vkey), _parts(db, namespace, size, now_us))


def _parts(db: Connection, namespace: str, size: int, now_us: int) -> list[Part]:
    """The streams; one that lives ends with its last head below the checkpoint, another one with its last record."""
    found = []
    rows = db.execute(
        "SELECT id, name, superseded, seen_us FROM stream WHERE namespace = ? ORDER BY id", (namespace,)
    ).fetchall()
    for number, name, superseded, seen_us in rows:
        is_over = bool(superseded) or seen_us < now_us - LOST_AFTER_US
        last = db.execute(
            "SELECT seq FROM entry WHERE stream = ? AND idx < ? AND (? OR class = ?) ORDER BY seq DESC LIMIT 1",
            (number, size, is_over, entry.CLASS_HEAD),
        ).fetchone()
        if last is not None:
            found.append(Part(number, name, last[0] + 1))
    return found


def _notes(db: Connection, census: Census, first: int) -> list[bytes]:
    """Body frames of populations from an epoch on, up to a segment's size."""
    rows = stream(
        db,
        "SELECT e.bytes FROM population p JOIN entry e ON e.idx = p.idx WHERE p.namespace = ? AND p.epoch >= ? "
        "AND p.idx <= ? ORDER BY p.epoch",
        (census.namespace, first, census.newest),
    )
    frames: list[bytes] = []
    for (raw,) in rows:
        said = msgspec.json.decode(bytes(raw)[entry.PREFIX_BYTES :], type=PopulationEpoch)
        kept = db.execute("SELECT bytes FROM body WHERE hash = ?", (canonical.decode_base64(said.body.commit),))
        body = bytes(kept.fetchone()[0])
        frames.append(entry.body_frame(body[: entry.SALT_BYTES], body[entry.SALT_BYTES :]))
        if sum(map(len, frames)) > SEGMENT_BODY_BYTES:
            break
    return frames


def _ends(db: Connection, part: Part) -> bytes:
    head = db.execute(
        "SELECT seq FROM entry WHERE stream = ? AND seq < ? AND class = ? ORDER BY seq DESC LIMIT 1",
        (part.id, part.count, entry.CLASS_HEAD),
    ).fetchone()
    seqs = sorted({0, *(head or ()), part.count - 1})
    return b"".join(read_frames(db, part.id, seq, seq) for seq in seqs)


def _entry(db: Connection, idx: int) -> bytes:
    return bytes(db.execute("SELECT bytes FROM entry WHERE idx = ?", (idx,)).fetchone()[0])


def _proof_of_end(db: Connection, census: Census, part: Part) -> bytes:
    row = db.execute("SELECT idx FROM entry WHERE stream = ? AND seq = ?", (part.id, part.count - 1)).fetchone()
    return _proof(db, census, int(row[0]))


def _proof(db: Connection, census: Census, idx: int) -> bytes:
    return LogProof(idx, tuple(read_proof(db, idx, census.size)), census.note).encode()
