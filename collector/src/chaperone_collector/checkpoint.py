"""Checkpoints: what this log says of itself, signed with keys that lie beside the database.

A database that does not hold what its newest checkpoint says was changed, or brought back from a backup: the collector
does not go on with it, for gateways have let go of what it once acknowledged. What a checkpoint proves to others begins
when somebody else keeps it, too.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from chaperone_collector.database import Connection
from chaperone_collector.errors import StoreUnusable
from chaperone_collector.tree import Tree, read_root
from chaperone_evidence import receipt
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.cosignature import ED25519, MLDSA44, CheckpointSigner, sign_checkpoint
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.policy import Policy, open_checkpoint
from chaperone_evidence.receipt import Receipt

FILE: Final = "log.key"
INTERVAL_S: Final = 5.0  # between two checkpoints of a log that grows
HURRIED_INTERVAL_S: Final = 0.2  # when gateways wait for one
KEPT_WHOLE_US: Final = 86_400_000_000  # for so long one per interval is kept: 17 000, of 3 KiB each
KEPT_HURRIED_US: Final = 600_000_000  # for so long those between are kept, too
_SECOND_US: Final = 1_000_000
_HOUR_US: Final = 3_600_000_000


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: seeds of 32 bytes, base64. Its repr shows none of them."""

    ed25519: str
    mldsa44: str

    def __repr__(self) -> str:
        return "_Kept()"


class LogKeys:
    """The two private keys of a log.

    Args:
        path: their file, or the directory that it lies in.
        may_make: whether a log without keys may get some: one that has signed nothing yet.

    Raises:
        StoreUnusable: the keys cannot be read or written.
    """

    def __init__(self, path: Path, *, may_make: bool) -> None:
        path = path / FILE if path.is_dir() else path
        try:
            if not path.exists():
                if not may_make:
                    raise StoreUnusable(f"{path} is gone, and this log has signed with it; restore it from a backup.")
                make_keys(path)
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            self._ed25519 = Ed25519PrivateKey.from_private_bytes(base64.b64decode(kept.ed25519, validate=True))
            self._mldsa44 = MLDSA44PrivateKey.from_seed_bytes(base64.b64decode(kept.mldsa44, validate=True))
        except (msgspec.DecodeError, binascii.Error, ValueError):
            # The cause is dropped: it may quote a key.
            raise StoreUnusable(f"{path} holds no keys of a log; restore it from a backup.") from None
        except OSError as error:
            raise StoreUnusable(f"{path} cannot be read or written: {error.strerror}.") from error

    def check(self, connection: Connection) -> None:
        """Whether they are those that signed the newest checkpoint.

        Raises:
            StoreUnusable: they are not.
        """
        row = connection.execute("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
        if row is None:
            return
        origin = read_origin(connection)
        keys = tuple(one.key for one in self.signers(origin))
        try:
            open_checkpoint(bytes(row[0]), Policy(origin, keys, len(keys)))
        except EvidenceError as error:
            raise StoreUnusable(
                "The log was signed with other keys than those that are given: give it its own."
            ) from error

    def receipt(self, origin: str, index: int, size: int, hashes: tuple[bytes, ...], root: bytes) -> Receipt:
        """The COSE receipt of an entry in the tree of a checkpoint."""
        key = CheckpointSigner(origin, self._ed25519, ED25519).key
        return receipt.make(index, size, hashes, root, key.id, self._ed25519.sign)

    def signers(self, origin: str) -> tuple[CheckpointSigner, CheckpointSigner]:
        """What signs for the log of that origin, which is the keys' name, too."""
        return (
            CheckpointSigner(origin, self._ed25519, ED25519),
            CheckpointSigner(origin, self._mldsa44, MLDSA44),
        )


def sign(connection: Connection, tree: Tree, keys: LogKeys, now_us: int) -> int:
    """Sign what the log holds now, if that is more than the newest checkpoint says; in a transaction.

    Returns:
        The size that is signed.
    """
    origin = read_origin(connection)
    if tree.size == newest(connection) or not origin:
        return tree.size
    said = Checkpoint(origin, tree.size, tree.root())
    note = sign_checkpoint(said, keys.signers(said.origin), now_us // _SECOND_US)
    connection.execute(
        "INSERT INTO checkpoint (size, wall_us, root, note) VALUES (?,?,?,?)", (said.size, now_us, said.root, note)
    )
    return said.size


def cosign(connection: Connection, size: int, lines: str) -> bool:
    """Add a witness's signatures to a checkpoint, in a transaction; False when it is gone or has them."""
    row = connection.execute("SELECT note FROM checkpoint WHERE size = ?", (size,)).fetchone()
    if row is None or lines.encode() in bytes(row[0]):
        return False
    connection.execute(
        "UPDATE checkpoint SET note = ?, witnesses = witnesses + 1 WHERE size = ?",
        (bytes(row[0]) + lines.encode(), size),
    )
    return True


def thin(connection: Connection, now_us: int) -> int:
    """Of the checkpoints of more than a day ago keep the last one of each hour; returns how many went.

    Of those that were signed in a hurry, after ten minutes the one of each interval that most witnesses have signed.

    They can be made again from the tree, but for their signatures: whoever needs one of a moment keeps it. In a
    transaction.
    """
    hurried_us, interval_us = now_us - KEPT_HURRIED_US, int(INTERVAL_S * _SECOND_US)
    hurried = connection.execute(
        "DELETE FROM checkpoint WHERE size IN (SELECT size FROM (SELECT size, row_number() OVER "
        "(PARTITION BY wall_us / ? ORDER BY witnesses DESC, size DESC) AS place FROM checkpoint "
        "WHERE wall_us < ?) placed WHERE place > 1)",
        (interval_us, hurried_us // interval_us * interval_us),
    ).rowcount
    old_us = (now_us // _HOUR_US) * _HOUR_US - KEPT_WHOLE_US
    return (
        hurried
        + connection.execute(
            "DELETE FROM checkpoint WHERE wall_us < ? AND size NOT IN "
            "(SELECT max(size) FROM checkpoint WHERE wall_us < ? GROUP BY wall_us / ?)",
            (old_us, old_us, _HOUR_US),
        ).rowcount
    )


def read_origin(connection: Connection) -> str:
    """The log's name, which is the cluster's; "" before the first gateway has said which cluster that is."""
    row = connection.execute("SELECT cluster FROM stream ORDER BY id LIMIT 1").fetchone()
    return f"chaperone.dev/log/{row[0]}" if row else ""


def newest(connection: Connection) -> int:
    """The size that was signed last; 0 when none was."""
    return int(connection.execute("SELECT coalesce(max(size), 0) FROM checkpoint").fetchone()[0])


def check(connection: Connection, size: int) -> int:
    """Whether a log of `size` entries holds what its newest checkpoint says; returns how many that are.

    Raises:
        StoreUnusable: it does not.
    """
    signed = newest(connection)
    if signed == 0:
        return 0
    if signed > size:
        raise StoreUnusable(
            f"The log has {size} entries and has signed {signed}: entries are missing. Restore the newest backup."
        )
    root = connection.execute("SELECT root FROM checkpoint WHERE size = ?", (signed,)).fetchone()[0]
    if read_root(connection, signed) != bytes(root):
        raise StoreUnusable(f"The log's first {signed} entries are not those that it has signed; keep a copy for the "
                            "investigation, and restore a backup.")  # fmt: skip
    return signed


def make_keys(path: Path) -> None:
    """Write fresh keys of a log, for the owner alone; durable when this returns."""
    fresh = _Kept(base64.b64encode(os.urandom(32)).decode(), base64.b64encode(os.urandom(32)).decode())
    unfinished = path.with_suffix(".new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(fresh))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
