"""A directory as the place of a log: `evidence.db`, `log.key`, and a lock that keeps other collectors away."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from chaperone_collector import checkpoint
from chaperone_collector.errors import StoreUnusable
from chaperone_collector.schema import open_reader, open_writer

FILE: Final = "evidence.db"


class Directory:
    """The database of one collector.

    Args:
        directory: nobody else may use it; made where there is none.
        key_path: of the log's keys; None: they lie in the directory, and are made there.

    Raises:
        StoreUnusable: another collector has it, or it cannot be used.
    """

    is_shared = False

    def __init__(self, directory: Path, key_path: Path | None = None) -> None:
        self.path = directory / FILE
        self.name = f"{self.path} (SQLite {sqlite3.sqlite_version})"
        self.key_path = key_path or directory / checkpoint.FILE
        self.makes_keys = key_path is None
        self._lock_fd = _lock(directory)

    def open_writer(self) -> sqlite3.Connection:
        """The connection that writes."""
        return open_writer(self.path)

    def open_reader(self) -> sqlite3.Connection:
        """A connection that reads."""
        return open_reader(self.path)

    def close(self) -> None:
        """Let others have the directory."""
        os.close(self._lock_fd)


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"The data directory {directory} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StoreUnusable(f"Another collector uses {directory}; one directory has one writer.") from error
    return fd
