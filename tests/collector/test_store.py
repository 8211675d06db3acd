"""The store: versions of its tables, group commit, and what a crash may not take."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from fix_collector import Collector, Sender
from gateway_stream import Pod, Stream
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import Authority

from chaperone_collector.errors import ChainBroken, Refused, StoreBusy, StoreUnusable
from chaperone_collector.metrics import Metrics
from chaperone_collector.schema import MIGRATIONS, open_reader, open_writer
from chaperone_collector.store import MAX_QUEUED_READS, Store
from chaperone_collector.stream import extend, unknown
from chaperone_collector.transaction import Transaction
from chaperone_evidence import entry
from chaperone_evidence.statement import EvidenceRead

_AUTHORITY = Authority("gateway CA")
_POD = Pod(_AUTHORITY)


def _long_stream() -> tuple[str, list[bytes]]:
    stream = Stream(_POD)
    session = stream.open_session()
    for number in range(12):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
        if number % 5 == 0:
            stream.head()
    stream.close_session(session, 12)
    stream.close()
    return stream.id, [frame[2:] for frame in stream.frames]


def test_a_new_database_has_the_newest_version(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db")
    assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    database.close()
    open_writer(tmp_path / "evidence.db").close()


def test_an_older_database_gets_only_the_steps_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    database = open_writer(path)
    database.execute("INSERT INTO rule (name) VALUES ('kept')")
    database.close()
    database = open_writer(path, (*MIGRATIONS, "CREATE TABLE added (a);"))
    assert database.execute("SELECT name FROM rule").fetchall() == [("kept",)]
    assert database.execute("SELECT count(*) FROM added").fetchone() == (0,)
    assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    database.close()


def test_a_step_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    open_writer(path).close()
    with pytest.raises(StoreUnusable):
        open_writer(path, (*MIGRATIONS, "CREATE TABLE half (a); CREATE TABLE half (a);"))
    database = open_writer(path)
    assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    database.close()


def test_a_newer_database_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    open_writer(path, (*MIGRATIONS, "CREATE TABLE added (a);")).close()
    with pytest.raises(StoreUnusable, match="newer collector"):
        open_writer(path)
    open_writer(path, (*MIGRATIONS, "CREATE TABLE added (a);")).close()


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (a)")
    other.close()
    with pytest.raises(StoreUnusable, match="not a database of this collector"):
        open_writer(path)
    (tmp_path / "text.db").write_text("no database at all, but long enough to look at" * 30)
    with pytest.raises(StoreUnusable):
        open_writer(tmp_path / "text.db")


def test_readers_cannot_write(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db")
    reader = open_reader(tmp_path / "evidence.db")
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("INSERT INTO rule (name) VALUES ('x')")
    reader.close()
    database.close()


async def test_one_directory_has_one_writer(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    with pytest.raises(StoreUnusable, match="one writer"):
        Store(tmp_path, Metrics())
    await store.close()


async def test_a_job_that_is_refused_or_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())

    def refuse(_tx: Transaction) -> None:
        raise Refused(429, "no", "no")

    def crash(tx: Transaction) -> None:
        read(tx)
        raise ZeroDivisionError

    def read(tx: Transaction) -> int:
        said = EvidenceRead(wall_us=1, user="u", verb="get", resource="sessions", namespace="agents", name="x", rows=1)
        return tx.say(said)

    jobs = [read, refuse, crash, read, crash, read]
    answers = await asyncio.gather(*(store.write(job) for job in jobs), return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, Refused, StoreBusy, int, StoreBusy, int]
    assert [answer for answer in answers if isinstance(answer, int)] == [0, 1, 2]
    assert await store.read(lambda db: db.execute("SELECT count(*) FROM reading").fetchone()) == (3,)
    assert store.size == 3
    await store.close()


async def test_people_who_read_cannot_make_gateways_wait(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    gate = threading.Event()
    reading = [asyncio.create_task(store.read(lambda _db: gate.wait(30))) for _ in range(MAX_QUEUED_READS)]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusy):
        await store.read(lambda _db: None)
    assert await store.look_up(lambda db: db.execute("SELECT 1").fetchone()) == (1,)
    assert await store.write(lambda tx: tx.put_bodies({b"x" * 32: b"y"}, "pod")) == 1
    gate.set()
    assert all(await asyncio.gather(*reading))
    await store.close()


async def test_bodies_that_nothing_names_are_bounded_per_pod(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    body = bytes(entry.MAX_BODY_BYTES)
    with pytest.raises(Refused, match="name"):
        for number in range(100):
            await store.write(lambda tx, n=number: tx.put_bodies({n.to_bytes(32): body}, "pod"))  # type: ignore[misc]
    assert await store.write(lambda tx: tx.put_bodies({b"y" * 32: body}, "another pod")) == len(body)
    await store.close()
    again = Store(tmp_path, Metrics())  # the count outlives a restart
    with pytest.raises(Refused):
        await again.write(lambda tx: tx.put_bodies({b"z" * 32: body}, "pod"))
    await again.close()


async def test_a_stream_that_grew_meanwhile_is_not_extended_twice(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    name, all_entries = _long_stream()
    extension = extend(unknown(name), all_entries[:5], _POD.subject(), [_AUTHORITY.certificate])
    after = await store.write(lambda tx: tx.append(extension))
    following = extend(after, all_entries[5:], _POD.subject(), [_AUTHORITY.certificate])
    await store.write(lambda tx: tx.append(following))
    with pytest.raises(ChainBroken):
        await store.write(lambda tx: tx.append(following))
    assert store.size == len(all_entries)
    await store.close()


async def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    name, all_entries = _long_stream()
    await store.write(lambda tx: tx._db.execute("PRAGMA max_page_count=120"))
    body = bytes(1 << 20)
    with pytest.raises(StoreBusy, match="full"):
        await store.write(lambda tx: tx.put_bodies({b"x" * 32: body}, "pod"))
    extension = extend(unknown(name), all_entries, _POD.subject(), [_AUTHORITY.certificate])
    await store.write(lambda tx: tx.append(extension))
    assert store.size == len(all_entries)
    assert store.failure is None
    await store.close()


@settings(max_examples=200, deadline=None)
@given(number=st.integers(0, 30), at=st.integers(0, 2000), bit=st.integers(0, 7), cut=st.integers(0, 40))
def test_any_changed_entry_breaks_the_chain(number: int, at: int, bit: int, cut: int) -> None:
    """Whatever is flipped or cut off: a refusal, never another error, never a batch that is taken."""
    name, all_entries = _long_stream()
    number %= len(all_entries)
    changed = bytearray(all_entries[number])
    if cut:
        del changed[-cut:]
    else:
        changed[at % len(changed)] ^= 1 << bit
    all_entries[number] = bytes(changed)
    with pytest.raises(ChainBroken):
        extend(unknown(name), all_entries, _POD.subject(), [_AUTHORITY.certificate])


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=12), seed=st.integers())
def test_however_a_stream_is_cut_and_sent_again_it_is_stored_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int
) -> None:
    """Any sequence of overlapping ranges, in any order, ends in the same log once all was sent."""
    name, all_entries = _long_stream()
    order = random.Random(seed)  # noqa: S311 - cuts, not keys

    async def run() -> None:
        store = Store(tmp_path_factory.mktemp("store"), Metrics())
        stored = unknown(name)
        for first in [*sorted(cuts), 0]:
            if first > stored.count:
                continue
            batch = all_entries[first : first + order.randint(1, 12)] if first else all_entries
            fresh = batch[stored.count - first :]
            if fresh:
                extension = extend(stored, fresh, _POD.subject(), [_AUTHORITY.certificate])
                stored = await store.write(lambda tx, e=extension: tx.append(e))  # type: ignore[misc]
        found = await store.read(lambda db: db.execute("SELECT bytes FROM entry ORDER BY idx").fetchall())
        assert [row[0] for row in found] == all_entries
        counts = await store.read(
            lambda db: db.execute("SELECT commands, denied, ended_us > 0 FROM session").fetchall()
        )
        assert counts == [(12, 0, 1)]
        assert await store.read(lambda db: db.execute("SELECT count(*) FROM outcome").fetchone()) == (12,)
        assert await store.read(lambda db: db.execute("SELECT count(*) FROM finding").fetchone()) == (0,)
        await store.close()

    asyncio.run(run())


async def test_kill_9_during_ingest_loses_nothing_that_was_acknowledged(
    collector_with: Callable[..., Collector], gateway_ca: Authority
) -> None:
    collector = collector_with()
    pods = [Pod(gateway_ca, pod_uid=f"uid-{number}") for number in range(4)]
    streams = [Stream(pod) for pod in pods]
    sent: dict[str, list[bytes]] = {stream.id: [] for stream in streams}
    acked: dict[str, int] = {stream.id: -1 for stream in streams}

    async def pour(pod: Pod, stream: Stream, enough: asyncio.Event) -> None:
        session = stream.open_session()
        async with Sender(collector, pod) as sender:
            while True:
                for _ in range(20):
                    stream.conclude(session, stream.intend(session))
                stream.bodies = {}
                sent[stream.id] += stream.frames
                first, data = stream.take()
                try:
                    status, answer = await sender.post(stream.id, first, data)
                except (OSError, TimeoutError, aiohttp.ClientError):
                    return
                assert status == 200, answer
                acked[stream.id] = answer["acked"]
                if sum(acked.values()) > 4000:
                    enough.set()

    for _round in range(3):
        enough = asyncio.Event()
        tasks = [asyncio.create_task(pour(*pair, enough)) for pair in zip(pods, streams, strict=True)]
        async with asyncio.timeout(60):
            await enough.wait()
            collector.kill()
            await asyncio.gather(*tasks)
        collector.start()
        for pod, stream in zip(pods, streams, strict=True):
            async with Sender(collector, pod) as sender:
                stored = await sender.acked(stream.id)
                assert stored >= acked[stream.id]
                # The gateway goes on where the collector says: what was lost unacknowledged is sent again.
                status, answer = await sender.post(stream.id, stored + 1, b"".join(sent[stream.id][stored + 1 :]))
                assert status == 200, answer
                acked[stream.id] = answer["acked"]
        assert collector.rows("PRAGMA integrity_check") == [("ok",)]
    for stream in streams:
        rows = collector.rows(
            "SELECT e.bytes FROM entry e JOIN stream s ON s.id = e.stream WHERE s.name = ? ORDER BY seq", stream.id
        )
        assert [entry.frame(row[0]) for row in rows] == sent[stream.id]
