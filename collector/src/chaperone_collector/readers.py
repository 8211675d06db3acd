"""Threads that read the database: whole pages at a time, each query in one read transaction."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from chaperone_collector.database import FAULTS, Connection, begin_read
from chaperone_collector.errors import StoreBusy

log = logging.getLogger(__name__)

READ_TIMEOUT_S: Final = 30.0  # no page takes this long; a caller is told instead of kept


class Readers:
    """A few threads with a connection each.

    Args:
        connect: makes a connection that reads.
        name: of the threads.
        threads: how many.
        max_queued: callers that may wait; more are told to come back.
    """

    def __init__(self, connect: Callable[[], Connection], name: str, threads: int, max_queued: int) -> None:
        self._connect = connect
        self._max_queued = max_queued
        self._queued = 0
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, name, self._open)

    async def read[T](self, query: Callable[[Connection], T]) -> T:
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
        except FAULTS as error:
            log.exception("a query failed")
            raise StoreBusy("The database cannot be read.") from error
        finally:
            self._queued -= 1

    def close(self) -> None:
        """Wait for running queries; those that wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _open(self) -> None:
        self._local.connection = self._connect()

    def _query[T](self, query: Callable[[Connection], T]) -> T:
        connection: Connection = self._local.connection
        begin_read(connection)
        try:
            return query(connection)
        finally:
            if connection.in_transaction:  # a server's may be gone
                connection.execute("ROLLBACK")
