"""What bundles are made of: files of a tar, and proofs that the log has an entry."""

from __future__ import annotations

import tarfile

from chaperone_collector.api.status import unavailable
from chaperone_collector.database import Connection
from chaperone_collector.tree import read_proof
from chaperone_evidence.proof import LogProof


def member(name: str, data: bytes) -> bytes:
    """A file of a bundle."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o444
    padding = -len(data) % tarfile.BLOCKSIZE
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(padding)


def prove(db: Connection, index: int) -> bytes:
    """That the log has an entry.

    Raises:
        ApiError: 503, no checkpoint covers it yet.
    """
    # Of those that cover it, the one that most witnesses have signed, and then the newest.
    row = db.execute(
        "SELECT size, note FROM checkpoint WHERE size > ? ORDER BY witnesses DESC, size DESC LIMIT 1", (index,)
    ).fetchone()
    if row is None:
        raise unavailable("The log's checkpoint over what belongs to the session is not signed yet. Ask again.")
    size, note = row
    return LogProof(index, tuple(read_proof(db, index, size)), bytes(note)).encode()
