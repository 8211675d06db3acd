"""What bundles have of revisions of policy: those that the commands in them name, or one alone.

revisions/<namespace>/<serial, 16 digits>.entry · .seg (body frames of the files) · .tlog-proof
revisions/operator.vkey    the key that this collector believes; an auditor brings a copy
revisions/absent.txt       <namespace>/<revision> that commands name and this log does not have, one a line
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Iterable, Iterator

import msgspec

from chaperone_collector import population, revision
from chaperone_collector.api.pieces import member, prove
from chaperone_collector.api.status import unavailable
from chaperone_collector.database import Connection
from chaperone_collector.store import Store
from chaperone_evidence import entry


class _Named(msgspec.Struct):
    """As much of a record as says which revision decided."""

    type: str = ""
    revision: str = ""


_decoder = msgspec.json.Decoder(_Named)


async def bundle(store: Store, namespace: str, serial: str) -> AsyncIterator[bytes] | None:
    """The bundle of a revision, piece by piece; None when there is none of that serial.

    Raises:
        ApiError: 503, no checkpoint covers it yet.
    """

    def find(db: Connection) -> list[bytes]:
        row = db.execute(
            "SELECT idx FROM policy_revision WHERE namespace = ? AND serial = ?", (namespace, serial_of(serial))
        ).fetchone()
        return [] if row is None else [*_members(db, int(row[0])), *_key(db)]

    made = await store.read(find)
    return _pieces(made) if made else None


async def _pieces(made: list[bytes]) -> AsyncIterator[bytes]:
    for one in made:
        yield one
    yield bytes(2 * tarfile.BLOCKSIZE)


def named(frames: bytes) -> Iterator[str]:
    """The revisions that decided the commands of entry frames."""
    for data in entry.frames(frames):
        if data[1] != entry.CLASS_RECORD:
            continue
        try:
            said = _decoder.decode(data[entry.PREFIX_BYTES :])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # it names nothing that anybody could find
        if said.type == "command.intent" and said.revision:
            yield said.revision


def signed_size(db: Connection, namespace: str) -> int:
    """How much of the log is signed; that has every revision of the namespace.

    Raises:
        ApiError: 503, the newest revision is not covered yet.
    """
    newest = db.execute("SELECT max(idx) FROM policy_revision WHERE namespace = ?", (namespace,)).fetchone()[0]
    size = db.execute("SELECT max(size) FROM checkpoint").fetchone()[0] or 0
    if newest is not None and newest >= size:
        raise unavailable("The log's checkpoint over the newest revision of policy is not signed yet. Ask again.")
    return int(size)


def members(db: Connection, namespace: str, revisions: Iterable[str], size: int) -> Iterator[bytes]:
    """The files of a bundle whose commands name these revisions: of each the highest serial below a size of the log."""
    absent = []
    for name in sorted(revisions):
        row = db.execute(
            "SELECT idx FROM policy_revision WHERE namespace = ? AND revision = ? AND idx < ? "
            "ORDER BY serial DESC LIMIT 1",
            (namespace, name, size),
        ).fetchone()
        if row is None:
            absent.append(f"{namespace}/{name}\n")
        else:
            yield from _members(db, int(row[0]))
    yield from _key(db)
    if absent:
        yield member("revisions/absent.txt", "".join(absent).encode())


def serial_of(text: str) -> int:
    """The serial that a name is; -1 for none."""
    is_number = text.isascii() and text.isdecimal() and len(text) < 17
    return int(text) if is_number and str(int(text)) == text else -1


def _members(db: Connection, idx: int) -> Iterator[bytes]:
    said = revision.read_statement(db, idx)
    data = bytes(db.execute("SELECT bytes FROM entry WHERE idx = ?", (idx,)).fetchone()[0])
    frames = (
        entry.body_frame(body[: entry.SALT_BYTES], body[entry.SALT_BYTES :]) for body in revision.read_bodies(db, said)
    )
    place = f"revisions/{said.namespace}/{said.serial:016d}"
    yield member(f"{place}.entry", data)
    yield member(f"{place}.seg", b"".join(frames))
    yield member(f"{place}.tlog-proof", prove(db, idx))


def _key(db: Connection) -> Iterator[bytes]:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (population.KEY,)).fetchone()
    if row is not None:
        yield member("revisions/operator.vkey", bytes(row[0]) + b"\n")
