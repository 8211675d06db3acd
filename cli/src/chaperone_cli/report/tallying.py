"""Counts by name while a population streams by, in a temporary file, so that memory does not grow with them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator


class Tally:
    """Counts of keys, with the first and last thing that was said of each."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("")  # a private file, which is gone when this is closed
        self._db.execute(
            "CREATE TABLE tally (key TEXT PRIMARY KEY, n INTEGER, first TEXT, first_at TEXT, last TEXT, last_at TEXT)"
        )

    def add(self, key: str, what: str = "", at: str = "", by: int = 1) -> None:
        """One more of a key."""
        self._db.execute(
            "INSERT INTO tally VALUES (?1, ?4, ?2, ?3, ?2, ?3) ON CONFLICT (key) DO UPDATE SET n = n + ?4, "
            "first = iif(?3 < first_at, ?2, first), first_at = min(first_at, ?3), "
            "last = iif(?3 >= last_at, ?2, last), last_at = max(last_at, ?3)",
            (key, what, at, by),
        )

    def count(self, key: str) -> int:
        """How many of a key."""
        row = self._db.execute("SELECT n FROM tally WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def all(self) -> Iterator[tuple[str, int, str, str, str, str]]:
        """Each key with its count, its first, when, its last, when; sorted by key."""
        yield from self._db.execute("SELECT * FROM tally ORDER BY key")

    def close(self) -> None:
        """Forget it."""
        self._db.close()
