"""Ships the log into its archive while the collector runs, and never keeps it from running.

Everything that blocks (reading a range, encrypting, the bucket) is done by one thread, one thing after the other; only
notes in the database go to the writer. What fails is tried again, later each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from chaperone_collector import checkpoint
from chaperone_collector.archive import drill, pack, plan, segment
from chaperone_collector.archive.bucket import Bucket
from chaperone_collector.archive.options import ArchiveOptions
from chaperone_collector.database import Connection, begin_read
from chaperone_collector.errors import ArchiveFailed
from chaperone_collector.metrics import Metrics
from chaperone_collector.store import Store

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0  # between two looks for a segment to make
MAX_PAUSE_S: Final = 300.0  # between two tries at a bucket that fails
DRILL_EVERY_S: Final = 86_400.0
SEGMENTS: Final = "segments"
PACKS: Final = "packs"
CHECKPOINTS: Final = "checkpoints"


class _Made(msgspec.Struct, frozen=True):
    """The objects of a segment."""

    segment: bytes
    pack: bytes
    pack_digest: bytes


class Shipping:
    """One archive of one log.

    Args:
        store: whose log.
        options: where to.
        metrics: what is told.
        now_us: the collector's clock.
    """

    def __init__(self, store: Store, options: ArchiveOptions, metrics: Metrics, now_us: Callable[[], int]) -> None:
        self._store = store
        self._options = options
        self._metrics = metrics
        self._now_us = now_us
        self._thread = ThreadPoolExecutor(1, "archive")
        self._db: Connection | None = None
        self._bucket: Bucket | None = None

    async def run(self) -> None:
        """Ship and drill until cancelled, each whether or not the other can."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep(self._drill, DRILL_EVERY_S, "the archive's drill was not possible"))
                group.create_task(self._keep(self._ship_all, LOOK_S, "the archive has not all of the log"))
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _keep(self, work: Callable[[], Awaitable[None]], every_s: float, what: str) -> None:
        failing_s = LOOK_S
        while True:
            try:
                await work()
                pause_s, failing_s = every_s, LOOK_S
            except Exception as error:  # whatever a bucket can bring about: the collector goes on without it
                pause_s = failing_s = min(2 * failing_s, MAX_PAUSE_S)
                log.error("%s, again in %.0f s: %s", what, pause_s, error)
            await asyncio.sleep(pause_s)

    async def _ship_all(self) -> None:
        """Ship what waits, and tell how far that has come."""
        try:
            while await self._ship():
                await self._tell()
        except Exception:  # counted whatever it is, and told by `_keep`
            self._metrics.archive_uploads.labels("failed").inc()
            raise
        finally:
            await self._tell()

    async def _do[T](self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _ship(self) -> bool:
        """Ship one segment; False when there is none."""
        place = self._options.place
        row = await self._read(lambda db: plan.pending(db, place))
        if row is None:
            row = await self._decide()
            if row is None:
                return False
        made = await self._read(lambda db: self._made(db, row))
        until = self._until()
        is_known = row.pack == made.pack_digest
        # What was decided before a crash may be there with other bodies: some came or were erased since.
        if not is_known and not (row.pack is not None and await self._do(lambda: self._has_pack(row))):
            await self._store.write(lambda tx: tx.on(lambda db: plan.note_pack(db, place, row.first, made.pack_digest)))
            is_known = True
        if is_known:
            await self._do(lambda: self._put(PACKS, pack.name(row.first), made.pack, until))
        await self._do(lambda: self._put(SEGMENTS, segment.name(row.first), made.segment, until))
        if row.note:
            name = f"{row.first + row.count:016x}.txt"
            await self._do(lambda: self._put(CHECKPOINTS, name, row.note, until))
        await self._store.write(lambda tx: tx.on(lambda db: plan.note_done(db, place, row.first, self._now_us())))
        self._metrics.archive_uploads.labels("archived").inc()
        log.info("entries %d to %d are archived", row.first, row.first + row.count - 1)
        return True

    async def _decide(self) -> plan.Row | None:
        place, now_us = self._options.place, self._now_us()
        older_us = now_us - self._options.segment_seconds * 1_000_000
        found = await self._read(lambda db: self._draft(db, older_us))
        if found is None:
            return None
        draft, digest = found
        await self._store.write(lambda tx: tx.on(lambda db: plan.decide(db, place, draft, digest, now_us)))
        return plan.Row(draft.segment.first, len(draft.segment.entries), draft.note, digest, None)

    def _draft(self, db: Connection, older_us: int) -> tuple[plan.Draft, bytes] | None:
        """The next segment and its hash."""
        draft = plan.next_draft(db, self._options.place, self._options.segment_bytes, older_us)
        if draft is None:
            return None
        return draft, hashlib.sha256(segment.encode(draft.segment, checkpoint.read_origin(db))).digest()

    def _made(self, db: Connection, row: plan.Row) -> _Made:
        """The objects of a segment that was decided."""
        origin = checkpoint.read_origin(db)
        found, named = plan.decided(db, row.first, row.count)
        data = segment.encode(found, origin)
        if hashlib.sha256(data).digest() != row.segment:
            raise ArchiveFailed(f"The segment at {row.first} is not what it was decided to be: the log was changed.")
        packed = pack.encode(row.first, list(plan.sealed_bodies(db, named)), origin)
        return _Made(data, packed, hashlib.sha256(packed).digest())

    def _has_pack(self, row: plan.Row) -> bool:
        """Whether the pack that was made before is there already: bodies came or were erased since."""
        return hashlib.sha256(self._first(PACKS, pack.name(row.first)) or b"").digest() == row.pack

    def _put(self, folder: str, name: str, data: bytes, until: datetime) -> None:
        """Have an object there; one of that name with other bytes is somebody else's."""
        key = self._options.key(folder, name)
        if not self._opened().put(key, data, until) and self._first(folder, name) != data:
            raise ArchiveFailed(f"{key} is in the archive with other bytes: give this log a prefix of its own, and "
                                "find out who writes there.")  # fmt: skip

    def _first(self, folder: str, name: str) -> bytes | None:
        """The version of an object that was stored first."""
        bucket = self._opened()
        version = bucket.first_versions(folder, name).get(name)
        return bucket.get(self._options.key(folder, name), version) if version else None

    def _opened(self) -> Bucket:
        """The client, made anew when the credentials were replaced: that takes half a second."""
        pair = self._options.pair()
        if self._bucket is None or self._bucket.pair != pair:
            self._bucket = Bucket(self._options)
        return self._bucket

    async def _drill(self) -> None:
        """Does the bucket refuse what it has to?"""
        try:
            said = await self._do(lambda: drill.run(self._opened(), self._now_us()))
        except Exception:  # whatever it is, nothing is known of the lock; told by `_keep`
            self._metrics.worm_enforced.set(0)
            raise
        self._metrics.worm_enforced.set(said.enforced)
        if not said.enforced:
            log.error("the archive does not refuse what it has to: %s", drill.summary(said))
        await self._store.write(lambda tx: tx.say(said))

    async def _tell(self) -> None:
        entries, age_us = await self._read(lambda db: plan.lag(db, self._options.place, self._now_us()))
        self._metrics.archive_lag.set(entries)
        self._metrics.archive_lag_seconds.set(age_us / 1_000_000)

    async def _read[T](self, query: Callable[[Connection], T]) -> T:
        """Run a query in the thread, which opens its connection itself."""

        def work() -> T:
            if self._db is None:
                self._db = self._store.database.open_reader()
            begin_read(self._db)
            try:
                return query(self._db)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

        return await self._do(work)

    def _until(self) -> datetime:
        return datetime.fromtimestamp(self._now_us() // 1_000_000, UTC) + timedelta(days=self._options.retention_days)
