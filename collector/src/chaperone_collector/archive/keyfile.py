"""The file that `export-keys` writes and `restore` reads: who has it and the archive can read the bodies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from chaperone_collector.database import Connection
from chaperone_collector.datakeys import KEY_BYTES
from chaperone_collector.errors import RestoreRefused

OTHERS = 0o077


class DataKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key of an identity's day. Its repr does not show it."""

    id: int
    namespace: str
    identity: str
    day: int
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]

    def __repr__(self) -> str:
        return f"DataKey({self.id})"


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All keys that were not destroyed when it was written."""

    origin: str
    keys: list[DataKey]


def collect(db: Connection, origin: str) -> KeyFile:
    """The keys of a database."""
    rows = db.execute("SELECT id, namespace, identity, day, key FROM datakey WHERE key IS NOT NULL ORDER BY id")
    return KeyFile(origin, [DataKey(number, where, who, day, bytes(key)) for number, where, who, day, key in rows])


def write(path: Path, keys: KeyFile) -> None:
    """Write the file for its owner alone; one that is there is not written over.

    Raises:
        RestoreRefused: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(keys))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RestoreRefused(f"{path} cannot be written: {error.strerror}.") from error


def read(path: Path, origin: str) -> KeyFile:
    """Read the file.

    Raises:
        RestoreRefused: others may read it, it holds no keys, or those of another log.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & OTHERS:
                raise RestoreRefused(f"Others may read {path}, and who reads it can read the bodies: chmod 600 it.")
            found = msgspec.json.decode(file.read(), type=KeyFile)
    except OSError as error:
        raise RestoreRefused(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError:
        raise RestoreRefused(f"{path} holds no data keys.") from None  # the cause may quote one
    if found.origin != origin:
        raise RestoreRefused(f"{path} holds the keys of {found.origin}, and {origin} is restored.")
    return found
