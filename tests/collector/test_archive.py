"""A collector that archives its log to a real bucket: what comes there, over crashes and outages, and comes back."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_collector import Collector, Sender
from fix_objects import Objects
from gateway_stream import Pod, Stream
from holding_relay import HoldingRelay
from pki import Authority

from chaperone_collector import datakeys
from chaperone_collector.archive import options, pack, segment
from chaperone_collector.archive.commands import command
from chaperone_collector.archive.shipping import CHECKPOINTS, PACKS, SEGMENTS
from chaperone_collector.checkpoint import LogKeys
from chaperone_collector.schema import open_writer
from chaperone_evidence import policyfile
from chaperone_evidence.policy import Policy

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(240)]

LIMIT_S = 60.0
# All that answers of the API follow from. Not checkpoints between two segments, nor what never was in the log.
TABLES = (
    "entry", "received", "stream", "flow", "session", "rule", "command", "outcome", "finding", "tally", "tile",
    "reading", "population", "producer",
)  # fmt: skip


def eventually[T](ask: Callable[[], T], is_good: Callable[[T], object], why: Callable[[], str]) -> T:
    pause, ends = threading.Event(), time.monotonic() + LIMIT_S
    while not is_good(found := ask()):
        assert time.monotonic() < ends, f"still {found!r}\n{why()}"
        pause.wait(0.1)
    return found


class Place:
    """A collector with an archive, a gateway that speaks to it, and the archive as an administrator sees it."""

    def __init__(self, collector: Collector, objects: Objects, archive: Path, authority: Authority) -> None:
        self.collector, self.objects, self.archive = collector, objects, archive
        self.pod = Pod(authority)
        self.stream = Stream(self.pod)
        self.origin = f"chaperone.dev/log/{self.pod.cluster}"
        self.options = options.load(archive)

    async def grow(self, commands: int = 3) -> None:
        session = self.stream.open_session()
        for number in range(commands):
            self.stream.conclude(session, self.stream.intend(session, f"SELECT {number}"))
        self.stream.close_session(session, commands)
        self.stream.head()
        async with Sender(self.collector, self.pod) as sender:
            await sender.ship(self.stream)

    def size(self) -> int:
        return int(self.collector.rows("SELECT count(*) FROM entry")[0][0])

    def drills(self) -> int:
        return int(self.collector.rows("SELECT count(*) FROM entry WHERE class = 8")[0][0])

    def archived(self) -> int:
        row = self.collector.rows("SELECT max(first + count) FROM archived WHERE done_us IS NOT NULL")[0]
        return int(row[0] or 0)

    def until_archived(self) -> None:
        """All of the log, with what the drill of each start says in it: nothing comes any more by itself."""
        starts = self.collector.log.read_text().count(" ready, ")
        eventually(self.drills, lambda there: there >= starts, self.collector.log.read_text)
        size = self.size()
        eventually(self.archived, lambda there: there >= size, self.collector.log.read_text)

    def versions(self, folder: str) -> list[str]:
        """Each version in a folder by its name: a name that is there twice was stored twice."""
        bucket = self.objects.client(self.options)
        answer = bucket.call("list_object_versions", Prefix=self.options.key(folder, "x")[:-1])
        assert not answer.get("DeleteMarkers")
        return [one["Key"] for one in answer.get("Versions", ())]

    def read(self, folder: str, name: str) -> bytes:
        return self.objects.client(self.options).get(self.options.key(folder, name))

    def policy_file(self) -> Path:
        keys = tuple(one.key for one in LogKeys(self.collector.data, may_make=False).signers(self.origin))
        path = self.collector.folder / "log.policy"
        path.write_text(policyfile.render(Policy(self.origin, keys, 2)))
        return path

    def restore(self, directory: Path, *more: str) -> int:
        return command(
            ["restore", "--archive", str(self.archive), "--data", str(directory),
             "--log-policy", str(self.policy_file()), *more]
        )  # fmt: skip

    def keys_file(self, path: Path) -> Path:
        assert command(["export-keys", "--data", str(self.collector.data), "--out", str(path)]) == 0
        return path


@pytest.fixture
def place_with(
    collector_with: Callable[..., Collector], objects: Objects, gateway_ca: Authority
) -> Callable[..., Place]:
    """A collector with an archive."""

    def start(**more: Any) -> Place:
        archive = objects.archive("evidence", **{"prefix": "one/log", "segmentSeconds": 1} | more)
        return Place(collector_with("--api-port", "-1", "--archive", str(archive)), objects, archive, gateway_ca)

    return start


def dump(path: Path, table: str, size: int) -> list[tuple[Any, ...]]:
    """What a database says of its first entries."""
    connection = sqlite3.connect(f"file:{path / 'evidence.db'}?mode=ro", uri=True)
    try:
        has_idx = any(row[1] == "idx" for row in connection.execute(f"PRAGMA table_info({table})"))
        where = f" WHERE idx < {size}" if has_idx and table not in ("tile",) else ""
        return sorted(connection.execute(f"SELECT * FROM {table}{where}").fetchall(), key=repr)
    finally:
        connection.close()


def bodies(path: Path) -> list[tuple[bytes, bytes]]:
    return sorted((row[1], row[2]) for row in dump(path, "body", 0))


async def test_segments_bodies_and_checkpoints_come_into_the_archive(place_with: Callable[..., Place]) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    found = segment.decode(place.read(SEGMENTS, segment.name(0)), place.origin)
    assert found.entries == [bytes(row[0]) for row in place.collector.rows(
        "SELECT bytes FROM entry WHERE idx < ? ORDER BY idx", len(found.entries))]  # fmt: skip
    packs = b"".join(place.read(PACKS, name.rsplit("/", 1)[1]) for name in place.versions(PACKS))
    assert b"SELECT" not in packs
    assert len(place.versions(CHECKPOINTS)) == len(place.versions(SEGMENTS))
    bucket = place.objects.client(place.options)
    for folder in (SEGMENTS, PACKS, CHECKPOINTS):
        for name, version in bucket.first_versions(folder).items():
            assert bucket.lock(place.options.key(folder, name), version).mode == "COMPLIANCE"
    drills = place.collector.rows("SELECT bytes FROM entry WHERE class = 8")
    assert len(drills) == 1
    assert b'"enforced":true' in drills[0][0]
    assert "canary-secret" not in place.collector.log.read_text()


async def test_a_restored_log_says_what_the_original_says(place_with: Callable[..., Place], tmp_path: Path) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    await place.grow(5)
    place.stream.close()
    async with Sender(place.collector, place.pod) as sender:
        await sender.ship(place.stream)
    place.until_archived()
    size = place.archived()
    keys = place.keys_file(tmp_path / "keys.json")
    assert place.collector.stop() == 0
    assert place.restore(tmp_path / "back", "--data-keys", str(keys)) == 0
    for table in TABLES:
        assert dump(tmp_path / "back", table, size) == dump(place.collector.data, table, size), table
    assert bodies(tmp_path / "back") == bodies(place.collector.data)
    assert len(bodies(tmp_path / "back")) == 8


async def test_a_restored_log_goes_on_with_its_own_key_only(
    place_with: Callable[..., Place], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    keys = place.keys_file(tmp_path / "keys.json")
    collector, data = place.collector, place.collector.data
    collector.stop()
    back = collector.folder / "back"
    assert place.restore(back, "--data-keys", str(keys)) == 0
    assert "log.key" in capsys.readouterr().out
    collector.data = back
    with pytest.raises(pytest.fail.Exception, match=r"log\.key is gone"):
        collector.start()
    (back / "log.key").write_bytes((data / "log.key").read_bytes())
    collector.start()
    await place.grow()
    place.until_archived()
    assert len(set(place.versions(SEGMENTS))) == len(place.versions(SEGMENTS))
    assert place.restore(tmp_path / "again", "--data-keys", str(place.keys_file(tmp_path / "more.json"))) == 0
    assert bodies(tmp_path / "again") == bodies(back)


async def test_without_keys_the_entries_come_back_and_the_bodies_stay(
    place_with: Callable[..., Place], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    assert place.restore(tmp_path / "back") == 0
    assert "3 bodies stay behind" in capsys.readouterr().out
    assert bodies(tmp_path / "back") == []
    size = len(dump(tmp_path / "back", "entry", 1 << 40))
    assert dump(tmp_path / "back", "command", size) == dump(place.collector.data, "command", size)


async def test_bodies_cannot_be_read_once_their_key_is_destroyed(
    place_with: Callable[..., Place], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    place.collector.stop()
    db = open_writer(place.collector.data / "evidence.db")
    ((day, key),) = db.execute("SELECT day, key FROM datakey").fetchall()
    assert datakeys.destroy(db, "agents", "billing-agent", day - 1, 0) == 0
    assert datakeys.destroy(db, "agents", "another", day, 0) == 0
    assert datakeys.destroy(db, "agents", "billing-agent", day, 7) == 1
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    assert bytes(key) not in (place.collector.data / "evidence.db").read_bytes()
    keys = place.keys_file(tmp_path / "keys.json")
    assert place.restore(tmp_path / "back", "--data-keys", str(keys)) == 0  # entries verify as before
    assert "3 bodies stay behind" in capsys.readouterr().out
    assert bodies(tmp_path / "back") == []
    sealed = next(pack.decode(place.read(PACKS, pack.name(0)), 0, place.origin))
    assert pack.unseal(sealed, bytes(key))  # the key was all that was needed


async def test_a_changed_segment_is_found(place_with: Callable[..., Place], tmp_path: Path) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    place.collector.stop()
    name = segment.name(0)
    found = segment.decode(place.read(SEGMENTS, name), place.origin)
    path = place.objects.folder / "root" / "evidence" / "one" / "log" / SEGMENTS / name
    # Whoever owns the server's disk is not held by it: entries are changed below the lock, in three depths.
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert place.restore(tmp_path / "back") == 1
    other = found.entries[-1][:-1] + b"x"
    for entries in ([*found.entries[:-1], other], found.entries[:-1]):
        beside = segment.Beside([(0, len(entries))], found.beside.received)
        path.write_bytes(segment.encode(segment.Segment(0, entries, beside), place.origin))
        assert place.restore(tmp_path / "back") == 1
        assert not (tmp_path / "back" / "evidence.db").exists()
    path.unlink()
    assert place.restore(tmp_path / "back") == 1


async def test_a_hidden_or_overwritten_segment_is_read_all_the_same(
    place_with: Callable[..., Place], tmp_path: Path
) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    place.collector.stop()
    bucket, key = place.objects.client(place.options), place.options.key(SEGMENTS, segment.name(0))
    bucket.call("put_object", Key=key, Body=b"another")
    bucket.call("delete_object", Key=key)
    assert place.restore(tmp_path / "back") == 0


async def test_a_crash_behind_an_upload_stores_nothing_twice(
    collector_with: Callable[..., Collector], objects: Objects, gateway_ca: Authority
) -> None:
    with HoldingRelay(objects.port) as relay:
        archive = objects.archive("evidence", endpoint=relay.endpoint, segmentSeconds=1)
        collector = collector_with("--api-port", "-1", "--archive", str(archive))
        place = Place(collector, objects, archive, gateway_ca)
        for held in (f"/{PACKS}/", f"/{SEGMENTS}/", f"/{CHECKPOINTS}/"):
            there = place.archived()
            relay.hold("PUT", held)
            await place.grow()
            await asyncio.to_thread(relay.held.wait, LIMIT_S)
            assert relay.held.is_set(), collector.log.read_text()
            collector.kill()
            assert place.archived() == there
            relay.release()
            await asyncio.to_thread(collector.start)
            place.until_archived()
        for folder in (PACKS, SEGMENTS, CHECKPOINTS):
            assert len(place.versions(folder)) == len(set(place.versions(folder))) >= 3


async def test_bodies_that_are_erased_while_their_pack_is_on_its_way_keep_nothing_up(
    collector_with: Callable[..., Collector], objects: Objects, gateway_ca: Authority
) -> None:
    with HoldingRelay(objects.port) as relay:
        archive = objects.archive("evidence", endpoint=relay.endpoint, segmentSeconds=1)
        collector = collector_with("--api-port", "-1", "--archive", str(archive))
        place = Place(collector, objects, archive, gateway_ca)
        relay.hold("PUT", f"/{PACKS}/")
        await place.grow()
        await asyncio.to_thread(relay.held.wait, LIMIT_S)
        collector.kill()
        relay.release()
        db = open_writer(collector.data / "evidence.db")
        assert datakeys.destroy(db, "agents", "billing-agent", 1 << 30, 7) == 1
        db.close()
        collector.start()
        place.until_archived()
        assert len(place.versions(PACKS)) == len(set(place.versions(PACKS)))
        assert len(list(pack.decode(place.read(PACKS, pack.name(0)), 0, place.origin))) == 3


async def test_an_archive_that_is_away_stops_nobody_and_catches_up(place_with: Callable[..., Place]) -> None:
    place = place_with()
    await place.grow()
    place.until_archived()
    there = place.archived()
    place.objects.stop()
    await place.grow(20)
    assert place.size() > there + 40
    eventually(place.collector.log.read_text, lambda text: "has not all of the log" in text, lambda: "")
    place.objects.start()
    await place.grow()
    place.until_archived()


async def test_somebody_elses_object_is_reported_and_not_taken_for_ours(place_with: Callable[..., Place]) -> None:
    place = place_with(segmentSeconds=4)
    bucket = place.objects.client(place.options)
    bucket.call("put_object", Key=place.options.key(SEGMENTS, segment.name(0)), Body=b"another")
    await place.grow()
    eventually(place.collector.log.read_text, lambda text: "with other bytes" in text, lambda: "")
    assert place.archived() == 0


async def test_a_long_log_comes_back_whole_and_its_unproved_end_is_left_out(
    place_with: Callable[..., Place], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_with(segmentBytes=64 << 10)
    for _ in range(3):
        await place.grow(100)
        place.until_archived()
    size = place.archived()
    assert len(place.versions(SEGMENTS)) > len(place.versions(CHECKPOINTS))  # some end where no checkpoint does
    place.collector.stop()
    assert place.restore(tmp_path / "back") == 0
    for table in TABLES:
        assert dump(tmp_path / "back", table, size) == dump(place.collector.data, table, size), table
    folder = place.objects.folder / "root" / "evidence" / "one" / "log" / CHECKPOINTS
    newest = max(folder.iterdir())
    newest.unlink()
    capsys.readouterr()
    assert place.restore(tmp_path / "shorter") == 0
    assert "another prefix" in capsys.readouterr().out
    assert len(dump(tmp_path / "shorter", "entry", size)) == int(max(folder.iterdir()).stem, 16) < size
