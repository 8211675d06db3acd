"""The store: one thread that writes, group by group, and a few that read.

Whoever waits for `Store.write` is answered after the commit that holds its job has reached the disk
(`synchronous=FULL`). Jobs that arrive while a commit runs form the next group, so at low load a write waits for one
sync and at high load many share one. A job that raises a `CollectorError` has written nothing and fails alone.

Sad path: when the disk reports an error other than "full", the pages that the kernel gave up on cannot be known. The
store refuses everything from then on and the process ends; the next one reads what is really there.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from chaperone_collector import checkpoint, tree
from chaperone_collector.checkpoint import LogKeys
from chaperone_collector.database import FAULTS, Connection, Database, ServerFault, Verdict, begin, judge
from chaperone_collector.directory import Directory
from chaperone_collector.errors import CollectorError, StoreBusy, StoreUnusable
from chaperone_collector.leading import Lead
from chaperone_collector.metrics import Metrics
from chaperone_collector.readers import Readers
from chaperone_collector.transaction import Transaction, Unnamed
from chaperone_evidence import policyfile
from chaperone_evidence.coverage import LOST_AFTER_US
from chaperone_evidence.policy import Policy
from chaperone_evidence.policyfile import Quorum, Witness
from chaperone_evidence.receipt import Receipt

log = logging.getLogger(__name__)

MAX_QUEUED_JOBS: Final = 4096  # more waiting writes than this are told to come back
MAX_GROUP_JOBS: Final = 512
READER_THREADS: Final = 4  # pages are read whole, so few threads serve many callers
MAX_QUEUED_READS: Final = 64
STOP_TIMEOUT_S: Final = 20.0
LONG_WAIT_S: Final = 3600.0
LOOK_S: Final = 15.0  # between two looks for streams that fell silent
THIN_EVERY_S: Final = 600.0
CLOCK_STEP_US: Final = 5_000_000

_STOP: Final = object()


class Job:
    """One write and who waits for it; or what is done after the commit, in no transaction."""

    __slots__ = ("apply", "future", "is_after")

    def __init__(self, apply: Callable[[Transaction], Any], future: asyncio.Future[Any], *, is_after: bool) -> None:
        self.apply = apply
        self.future = future
        self.is_after = is_after


class Store:
    """The database of one collector.

    Args:
        where: a directory of its own, or another place.
        metrics: where commits are counted.
        now_us: the collector's clock, microseconds since 1970.
        witnesses: who else signs the log.
        quorum: whose signatures receipts need besides the log's own.

    Raises:
        StoreUnusable: the database cannot be used, or another collector holds the directory.
    """

    def __init__(
        self,
        where: Path | Database,
        metrics: Metrics,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        witnesses: tuple[Witness, ...] = (),
        quorum: Quorum = policyfile.NO_QUORUM,
    ) -> None:
        self.database: Database = Directory(where) if isinstance(where, Path) else where
        log.info("database %s", self.database.name)
        self._metrics = metrics
        self._witnesses = tuple(key for one in witnesses for key in one.keys)
        self._quorum = quorum
        self._now_us = now_us
        self._db = self.database.open_writer()
        try:
            self._transaction = self._opened()
            self.signed_size = checkpoint.newest(self._db)
        except FAULTS as error:
            raise StoreUnusable(f"The log of {self.database.name} cannot be read: {error}.") from error
        self.size = self._transaction.size
        self._keys = LogKeys(self.database.key_path, may_make=self.database.makes_keys and self.signed_size == 0)
        if not self.database.makes_keys:  # a file that somebody named may be another one's
            self._keys.check(self._db)
        self.started_us = now_us()
        self.failure: str | None = None
        self._jobs: queue.Queue[Any] = queue.Queue(MAX_QUEUED_JOBS)
        self._loop = asyncio.get_running_loop()
        self._grown = asyncio.Event()
        self.signed = asyncio.Event()
        """Set, and another one made, when a checkpoint or a witness's signature has come."""
        self.lead = Lead(is_held=not self.database.is_shared)
        self._marks = (self.signed_size, 0)
        self._hurried = 0
        self._hurry = asyncio.Event()
        self.failed = asyncio.Event()
        # People who read can never make gateways wait: each side has threads and a queue of its own.
        connect = self.database.open_reader
        self._pages = Readers(connect, "pages", READER_THREADS, MAX_QUEUED_READS)
        self._lookups = Readers(connect, "lookups", 1, MAX_QUEUED_JOBS)
        self.read = self._pages.read
        self.look_up = self._lookups.read
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    async def write[T](self, apply: Callable[[Transaction], T]) -> T:
        """Run a job in the next transaction; returns after its commit is on disk.

        Raises:
            StoreBusy: nothing was written, try again. StoreUnusable: the store has failed. What the job raises.
        """
        return await self._put(apply, is_after=False)

    async def _put[T](self, apply: Callable[[Transaction], T], *, is_after: bool) -> T:
        if self.failure is not None:
            raise StoreUnusable(self.failure)
        future: asyncio.Future[T] = self._loop.create_future()
        try:
            self._jobs.put_nowait(Job(apply, future, is_after=is_after))
        except queue.Full as error:
            raise StoreBusy("Too many writes wait.") from error
        # The job cannot be taken back: who is cancelled here leaves it to run.
        return await asyncio.shield(future)

    async def forget(self) -> bool:
        """Empty the write-ahead log of what was erased; False: a reader still needs it.

        Raises:
            StoreBusy: try again. StoreUnusable: the store has failed.
        """
        return await self._put(lambda tx: tx.forget(), is_after=True)

    async def keep_checkpoints(self) -> None:
        """Sign the log whenever it has grown, until cancelled."""
        thin_at = 0.0
        while True:
            if await self.grown(self.signed_size, LONG_WAIT_S) == self.signed_size:
                continue
            try:
                self.signed_size = await self.write(lambda tx: tx.sign(self._keys))
                self.note_signed()
                if time.monotonic() >= thin_at:
                    thin_at = time.monotonic() + THIN_EVERY_S
                    await self.write(lambda tx: tx.thin_checkpoints())
            except StoreBusy as error:
                log.warning("a checkpoint was not written: %s", error)
            await self.pause(checkpoint.INTERVAL_S)

    @property
    def needs_witnesses(self) -> bool:
        """Whether receipts wait for witnesses."""
        return self._quorum.needed > 0

    def note_signed(self) -> None:
        """A checkpoint, or a signature under one, is stored: tell who waits for it."""
        self.signed.set()
        self.signed = asyncio.Event()

    def tell[**P](self, hear: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call something in the thread of the event loop, from another one."""
        try:
            self._loop.call_soon_threadsafe(lambda: hear(*args, **kwargs))
        except RuntimeError:
            log.info("the collector has stopped")

    def hear(self, size: int, signed: int, signatures: int) -> None:
        """How far the log is, whoever wrote it: its entries, those signed, and how often witnesses signed lately."""
        if (signed, signatures) != self._marks:
            self._marks = (signed, signatures)
            self.signed_size = max(self.signed_size, signed)
            self.note_signed()
        self._grow(size)

    def hurry(self, for_s: float) -> None:
        """Somebody waits for signatures, at another collector."""
        waiting = self.hurried()
        waiting.__enter__()
        self._loop.call_later(for_s, waiting.__exit__, None, None, None)

    @property
    def is_hurried(self) -> bool:
        """Whether somebody waits for signatures."""
        return self._hurried > 0

    async def until(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Whether an event comes in that time."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await event.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Within this, somebody waits for signatures, so `pause` is short."""
        self._hurried += 1
        self._hurry.set()
        try:
            yield
        finally:
            self._hurried -= 1
            if not self._hurried:
                self._hurry.clear()

    async def pause(self, usual_s: float) -> None:
        """Between two signatures: that long, or `HURRIED_INTERVAL_S` when somebody waits."""
        await asyncio.sleep(min(usual_s, checkpoint.HURRIED_INTERVAL_S))
        await self.until(self._hurry, usual_s - checkpoint.HURRIED_INTERVAL_S)

    async def keep_watch(self) -> None:
        """State the streams that fell silent, until cancelled; who could not be heard has not fallen silent."""
        lead_us = self._lead_us()
        while True:
            await asyncio.sleep(LOOK_S)
            if abs(self._lead_us() - lead_us) > CLOCK_STEP_US:  # the clock was set: nobody has been silent by it
                lead_us, self.started_us = self._lead_us(), self._now_us()
            silent_since_us = self._now_us() - LOST_AFTER_US
            if self.started_us > silent_since_us:
                continue
            try:
                lost = await self.write(lambda tx: tx.lose(silent_since_us))  # noqa: B023 it is awaited here
            except StoreBusy as error:
                log.warning("silent streams were not stated: %s", error)
                continue
            if lost:
                log.warning("%d streams fell silent without an end", lost)

    def _lead_us(self) -> int:
        """How far the wall clock is ahead of the monotonic one."""
        return self._now_us() - time.monotonic_ns() // 1000

    def policy(self, connection: Connection) -> bytes:
        """With which keys this log and its witnesses sign, as a C2SP tlog-policy; empty before it has a name."""
        origin = checkpoint.read_origin(connection)
        if not origin:
            return b""
        keys = tuple(one.key for one in self._keys.signers(origin))
        return policyfile.render(Policy(origin, keys, len(keys), self._witnesses)).encode()

    def receipt(self, connection: Connection, index: int) -> Receipt | None:
        """The COSE receipt of an entry at the newest checkpoint; None when that does not cover it."""
        row = connection.execute("SELECT size, root FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
        if row is None or row[0] <= index:
            return None
        size, root = row
        path = tuple(tree.read_proof(connection, index, size))
        return self._keys.receipt(checkpoint.read_origin(connection), index, size, path, bytes(root))

    def receipt_policy(self, connection: Connection) -> Policy | None:
        """The log's keys and the quorum of witnesses that receipts have; None before the log has a name."""
        origin = checkpoint.read_origin(connection)
        if not origin:
            return None
        keys = tuple(one.key for one in self._keys.signers(origin))
        return Policy(origin, keys, len(keys), self._quorum.witnesses, self._quorum.needed)

    async def grown(self, beyond: int, timeout_s: float) -> int:
        """Wait until the log has more than `beyond` entries, at most `timeout_s`; returns its size."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.size <= beyond:
                    await self._grown.wait()
        except TimeoutError:
            pass
        return self.size

    async def close(self) -> None:
        """Write what waits and close; nothing is accepted any more."""
        self.failure = self.failure or "The collector is stopping."
        await asyncio.to_thread(self._jobs.put, _STOP, True, STOP_TIMEOUT_S)
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)
        self._pages.close()
        self._lookups.close()
        self.database.close()

    def _opened(self) -> Transaction:
        """The writer's end of the log, once the log is known to hold what it has signed."""
        hashed = tree.build(self._db)
        if hashed:
            log.info("%d entries of before were hashed", hashed)
        begin(self._db)
        transaction = Transaction(self._db, Unnamed(self._db), self._now_us)
        checkpoint.check(self._db, transaction.size)
        self._db.execute("ROLLBACK")
        if not self.database.is_shared and (adopted := transaction.adopt_reads()):  # servers have no older versions
            log.info("%d reads of before are in the log now", adopted)
        return transaction

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group: list[Job] = []
            job = self._jobs.get()
            while True:
                if job is _STOP:
                    stopping = True
                    break
                group.append(job)
                if len(group) >= MAX_GROUP_JOBS:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)
        self._db.close()

    def _commit(self, group: list[Job]) -> None:
        if self.failure is not None and self.failed.is_set():
            self._answer([(job, None, StoreUnusable(self.failure)) for job in group])
            return
        started = time.monotonic()
        answers: list[tuple[Job, Any, Exception | None]] = []
        try:
            self._transaction.begin()
            for job in group:
                if job.is_after:
                    continue
                try:
                    answers.append((job, job.apply(self._transaction), None))
                except CollectorError as error:
                    answers.append((job, None, error))
            self._transaction.commit()
            answers += [(job, job.apply(self._transaction), None) for job in group if job.is_after]
        except Exception as error:  # whatever happened: it is undone and somebody is told
            self._undo(group, error)
            return
        self._metrics.commit_seconds.observe(time.monotonic() - started)
        self._answer(answers)

    def _undo(self, group: list[Job], error: Exception) -> None:
        """Roll back. A full disk is told to the senders; a job that fails is found by running each alone."""
        verdict = judge(error)
        try:
            self._transaction.roll_back()
        except sqlite3.Error as second:
            error, verdict = second, Verdict.BROKEN
        except ServerFault as second:
            error, verdict = second, Verdict.BUSY  # the next transaction has a connection of its own
        if verdict is Verdict.BUSY:
            log.warning("the database cannot take writes: %s", error)
            self._answer([(job, None, StoreBusy(f"The database cannot take writes: {error}.")) for job in group])
        elif verdict is Verdict.BROKEN:
            self._fail(f"The database failed: {error}", group)
        elif len(group) > 1:
            for job in group:
                self._commit([job])
        else:
            log.error("a write failed and was undone", exc_info=error)
            self._answer([(group[0], None, StoreBusy("The write failed; see the collector's log."))])

    def _fail(self, why: str, group: list[Job]) -> None:
        log.critical("%s", why)
        self.failure = why
        self._loop.call_soon_threadsafe(self.failed.set)
        self._answer([(job, None, StoreUnusable(why)) for job in group])

    def _answer(self, answers: list[tuple[Job, Any, Exception | None]]) -> None:
        size = self._transaction.size
        try:
            self._loop.call_soon_threadsafe(self._resolve, answers, size)
        except RuntimeError:
            log.info("%d writes were not acknowledged: the collector has stopped", len(answers))

    def _resolve(self, answers: list[tuple[Job, Any, Exception | None]], size: int) -> None:
        for job, result, error in answers:
            if job.future.done():
                continue
            if error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        self._grow(size)

    def _grow(self, size: int) -> None:
        if size > self.size:
            self.size = size
            self._grown.set()
            self._grown = asyncio.Event()
