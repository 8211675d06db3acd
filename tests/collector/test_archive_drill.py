"""The drill against a real server that enforces its locks, and against buckets that do not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import aiohttp
import pytest
from fix_collector import Collector
from fix_objects import Objects

from chaperone_collector.archive import drill, options
from chaperone_collector.archive.bucket import Bucket
from chaperone_collector.archive.commands import command
from chaperone_evidence import entry, statement

pytestmark = pytest.mark.peer

COMPLIANCE = {
    "delete-version", "delete-bypass-governance", "shorten-retention", "shorten-bypass-governance", "change-mode",
    "store-again", "suspend-versioning", "delete-under-legal-hold", "overwrite",
}  # fmt: skip


def now_us() -> int:
    return time.time_ns() // 1000


def test_a_bucket_that_enforces_refuses_everything(objects: Objects) -> None:
    said = drill.run(Bucket(options.load(objects.archive("locked"))), now_us())
    assert said.enforced, drill.table(said)
    assert {one.action for one in said.attempts} == COMPLIANCE
    assert statement.decode(entry.decode(statement.encode(said).encode())) == said
    assert statement.encode(said).cls == 8


def test_a_bucket_without_locks_is_reported(objects: Objects) -> None:
    said = drill.run(Bucket(options.load(objects.archive("open", is_locked=False))), now_us())
    assert not said.enforced
    assert [one.action for one in said.attempts] == ["store-locked"]


def test_what_a_governor_may_do_is_reported(objects: Objects) -> None:
    """The server enforces this mode, but for those who have the right to go around it, as this pair has."""
    bucket = Bucket(options.load(objects.archive("governed", mode="GOVERNANCE")))
    everything = {"Effect": "Allow", "Principal": "*", "Action": "s3:*"}
    places = ["arn:aws:s3:::governed", "arn:aws:s3:::governed/*"]
    policy = {"Version": "2012-10-17", "Statement": [everything | {"Resource": places}]}
    bucket.call("put_bucket_policy", Policy=json.dumps(policy))
    said = drill.run(bucket, now_us())
    answers = {one.action: (one.answer, one.refused) for one in said.attempts}
    assert not said.enforced
    assert answers["delete-version"][1]
    assert answers["delete-bypass-governance"] == ("done", False)
    assert answers["overwrite"] == ("lost or changed", False)
    assert "delete-bypass-governance: done" in drill.summary(said)


async def test_a_collector_says_that_its_archive_holds_nothing(
    objects: Objects, collector_with: Callable[..., Collector]
) -> None:
    collector = collector_with("--api-port", "-1", "--archive", str(objects.archive("open", is_locked=False)))
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        while not collector.rows("SELECT 1 FROM entry WHERE class = 8"):  # noqa: ASYNC110 - a process sends no event
            await asyncio.sleep(0.1)
        async with http.get(f"{collector.metrics}/metrics") as answer:
            assert "chaperone_collector_worm_enforced 0.0" in await answer.text()
    assert "does not refuse what it has to: store-locked" in collector.log.read_text()
    ((data,),) = collector.rows("SELECT bytes FROM entry WHERE class = 8")
    said = statement.decode(entry.decode(bytes(data)))
    assert isinstance(said, statement.WormDrill)
    assert not said.enforced


def test_a_drill_by_hand_prints_a_table_and_answers_in_its_status(
    objects: Objects, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["drill", "--archive", str(objects.archive("locked"))]) == 0
    assert "delete-version" in capsys.readouterr().out
    assert command(["drill", "--archive", str(objects.archive("open", is_locked=False))]) == 1
    assert "NO" in capsys.readouterr().out
