"""How far a receiver has everything: a file that outlives the process, and that one process alone may hold."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from chaperone_cli import durable

MAX_STATE_BYTES: Final = 64 << 10


class CannotKeep(Exception):
    """The state cannot be used; the text says why."""


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """The resourceVersion up to which the receiver has everything, by resource; and what is followed."""

    scope: str  # the namespace, empty for all
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class State:
    """The file. It is locked until `close`, and changes as a whole.

    Raises:
        CannotKeep: another process holds it, or it is of another scope, or no state. OSError: as the system says.
    """

    def __init__(self, path: Path, scope: str) -> None:
        self._path = path
        self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.progress = self._read(scope)
        except BlockingIOError:
            os.close(self._lock)
            raise CannotKeep(f"Another process uses {path}; give each its own.") from None
        except BaseException:
            os.close(self._lock)
            raise

    def _read(self, scope: str) -> Progress:
        if not self._path.exists():
            return Progress(scope)
        with self._path.open("rb") as file:
            data = file.read(MAX_STATE_BYTES)
        try:
            found = msgspec.json.decode(data, type=Progress)
        except msgspec.DecodeError as error:
            raise CannotKeep(f"{self._path} is no state of a stream: {error}.") from error
        if found.scope != scope:
            raise CannotKeep(f"{self._path} is the state of namespace {found.scope or '(all)'}; give another file.")
        if not all(version.isascii() and version.isdecimal() for version in found.versions.values()):
            raise CannotKeep(f"{self._path} holds a resourceVersion that is no number.")
        return found

    def reached(self, versions: dict[str, str]) -> None:
        """Keep that the receiver has everything up to here; on the disk when this returns."""
        self.progress.versions.update(versions)
        durable.replace(self._path, msgspec.json.encode(self.progress))

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)
