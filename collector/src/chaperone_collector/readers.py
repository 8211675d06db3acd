"""Threads that read the database: whole pages at a time, each query in one read transaction."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from chaperone_collector.errors import StoreBusy
from chaperone_collector.schema import open_reader

log = logging.getLogger(__name__)

READ_TIMEOUT_S: Final = 30.0  # no page takes this long; a caller is told instead of kept


class Readers:
    """A few threads with a connection each.

    Args:
        path: the database.
        name: of the threads.
        threads: how many.
        max_queued: callers that may wait; more are told to come back.
    """

    def __init__(self, path: Path, name: str, threads: int, max_queued: int) -> None:
        self._path = path
        self._max_queued = max_queued
        self._queued = 0
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, name, self._open)

    async def read[T](self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query.

        Raises:
            StoreBusy: too many wait, the query took too long, or the database cannot be read.
        """
        if self._queued >= self._max_queued:
            raise StoreBusy("Too many reads wait.")
        self._queued += 1
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._query, query)
        except TimeoutError as error:
            raise StoreBusy("The query took too long.") from error
        except sqlite3.Error as error:
            log.exception("a query failed")
            raise StoreBusy("The database cannot be read.") from error
        finally:
            self._queued -= 1

    def close(self) -> None:
        """Wait for running queries; those that wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _open(self) -> None:
        self._local.connection = open_reader(self._path)

    def _query[T](self, query: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection = self._local.connection
        connection.execute("BEGIN")
        try:
            return query(connection)
        finally:
            connection.execute("ROLLBACK")
