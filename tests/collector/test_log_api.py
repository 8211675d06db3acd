"""The log as it is served: checkpoints, tiles that others' tools read, and the collector's own words in it."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fix_collector import Collector, Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector.metrics import Metrics
from chaperone_collector.schema import open_writer
from chaperone_collector.store import Store
from chaperone_collector.stream import extend, unknown
from chaperone_evidence import entry, merkle, policyfile, statement
from chaperone_evidence.coverage import LOST_AFTER_US
from chaperone_evidence.policy import open_checkpoint
from chaperone_tools.run import run

BASE = "/apis/evidence.chaperone.dev/v1alpha1"
LOG = f"{BASE}/checkpoints/log"
SIGNED_WITHIN_S = 30.0


async def shipped(collector: Collector, authority: Authority, identity: str, commands: int = 3) -> Stream:
    """A stream of a pod of its own, with its head, as the collector has it."""
    pod = Pod(authority, namespace="agents", identity=identity, pod=f"{identity}-0", pod_uid=f"uid-{identity}")
    stream = Stream(pod)
    session = stream.open_session()
    for number in range(commands):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.head()
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
    return stream


async def raw(api: EvidenceApi, path: str) -> str:
    return await asyncio.to_thread(api.kubectl, "get", "--raw", path)


async def signed(api: EvidenceApi, size: int) -> list[dict[str, Any]]:
    """The checkpoints, once one covers that many entries."""
    async with asyncio.timeout(SIGNED_WITHIN_S):
        while True:
            found = json.loads(await asyncio.to_thread(api.kubectl, "get", "checkpoints", "-o", "json"))["items"]
            if found and found[-1]["spec"]["size"] >= size:
                return list(found)
            await asyncio.sleep(0.5)


@pytest.mark.peer
@pytest.mark.timeout(900)  # the program is built, once
async def test_tools_of_others_read_the_whole_log(
    evidence_api: EvidenceApi, gateway_ca: Authority, interop: Path
) -> None:
    await shipped(evidence_api.collector, gateway_ca, "tiled-agent", 300)
    await signed(evidence_api, evidence_api.collector.rows("SELECT count(*) FROM entry")[0][0])
    policy = policyfile.parse(await raw(evidence_api, f"{LOG}/policy"))
    async with evidence_api.proxy() as url:
        said = json.loads(await asyncio.to_thread(run, interop, "fsck", f"{url}{LOG}/", policy.log[0].vkey))
        assert said["Size"] > 600
    opened = open_checkpoint((await raw(evidence_api, f"{LOG}/checkpoint")).encode(), policy)
    assert [one.key for one in opened.signatures] == list(policy.log)
    reads = evidence_api.get(f"{BASE}/reads?fieldSelector=spec.resource=checkpoints/entries")["items"]
    assert {one["spec"]["name"] for one in reads} >= {"tile/entries/000", "tile/entries/001"}


@pytest.mark.peer
async def test_checkpoints_are_listed_and_found_by_size(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    await shipped(evidence_api.collector, gateway_ca, "sized-agent")
    last = (await signed(evidence_api, evidence_api.collector.rows("SELECT count(*) FROM entry")[0][0]))[-1]
    size, root = last["spec"]["size"], base64.b64decode(last["spec"]["root"])
    leaves = (merkle.leaf_hash(row[0]) for row in evidence_api.collector.rows(
        f"SELECT bytes FROM entry WHERE idx < {size} ORDER BY idx"))  # fmt: skip
    assert merkle.root(leaves) == root
    shown = (await asyncio.to_thread(evidence_api.kubectl, "get", "checkpoint", str(size))).split("\n")
    assert shown[0].split() == ["NAME", "ROOT", "SIGNED", "SIGNATURES", "AGE"]
    assert shown[1].split()[:2] == [str(size), last["spec"]["root"]]
    assert (await asyncio.to_thread(evidence_api.run, "get", "checkpoint", "999999999")).returncode == 1
    watched = await asyncio.to_thread(evidence_api.run, "get", "--raw", f"{BASE}/checkpoints?watch=1")
    assert "cannot be watched" in watched.stderr


@pytest.mark.peer
@pytest.mark.parametrize(
    "path", ["tile/0/999", "tile/0/000.p/0", "tile/8/000", "tile/entries/999", "tile/0/../../x", "other"]
)
async def test_what_is_no_tile_of_the_log_is_not_found(
    evidence_api: EvidenceApi, gateway_ca: Authority, path: str
) -> None:
    await shipped(evidence_api.collector, gateway_ca, "pathless-agent", 1)
    await signed(evidence_api, 1)
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", f"{LOG}/{path}")
    assert done.returncode == 1
    assert "NotFound" in done.stderr or "not find" in done.stderr


@pytest.mark.peer
async def test_an_auditor_of_one_namespace_sees_its_reads_and_nothing_of_the_log(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    await shipped(evidence_api.collector, gateway_ca, "looked-at-agent")
    who: dict[str, Any] = {"user": "auditor-7", "groups": ("auditors",)}
    await asyncio.to_thread(evidence_api.kubectl, "get", "sessions", "-n", "agents", **who)
    seen = await asyncio.to_thread(
        evidence_api.kubectl, "get", "reads", "-n", "agents", "--field-selector", "spec.user=auditor-7", **who
    )
    assert [line.split()[1:4] for line in seen.split("\n")[1:2]] == [["auditor-7", "list", "sessions"]]
    for refused in (("checkpoints",), ("reads", "-A"), ("--raw", f"{LOG}/checkpoint"), ("--raw", f"{LOG}/tile/0/000")):
        done = await asyncio.to_thread(evidence_api.run, "get", *refused, **who)
        assert "Forbidden" in done.stderr, refused
    for verb in (("delete", "reads", "--all", "-n", "agents"), ("create", "--raw", f"{BASE}/checkpoints", "-f", "-")):
        assert (await asyncio.to_thread(evidence_api.run, *verb, given="{}")).returncode == 1


@pytest.mark.peer
async def test_reads_are_watched(evidence_api: EvidenceApi) -> None:
    watching = await asyncio.create_subprocess_exec(
        *evidence_api.command(), "get", "reads", "-n", "watched", "--watch-only", "-o", "name",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert watching.stdout is not None
        async with asyncio.timeout(60):
            asking = asyncio.create_task(_ask_again(evidence_api))
            line = await watching.stdout.readline()
            asking.cancel()
        assert line.startswith(b"read.evidence.chaperone.dev/r-")
    finally:
        watching.terminate()
        await watching.wait()


async def _ask_again(api: EvidenceApi) -> None:
    while True:  # until the watch has begun
        await asyncio.to_thread(api.kubectl, "get", "sessions", "-n", "watched")


async def test_a_stream_that_falls_silent_is_stated_once_and_again_after_it_spoke(tmp_path: Path) -> None:
    now_us = 10**15
    authority = Authority("gateway CA")
    store = Store(tmp_path, Metrics(), lambda: now_us)
    streams = [Stream(Pod(authority, pod_uid=f"uid-{number}")) for number in range(3)]
    for stream in streams:
        await _append(store, authority, stream, lambda one: one.head())
    await _append(store, authority, streams[1], lambda one: one.head("closed"))

    async def lose() -> list[statement.Known]:
        before = store.size
        await store.write(lambda tx: tx.lose(now_us - LOST_AFTER_US))
        found = await store.read(
            lambda db: db.execute("SELECT bytes FROM entry WHERE idx >= ? ORDER BY idx", (before,)).fetchall()
        )
        return [statement.decode(entry.decode(bytes(one))) for (one,) in found]

    assert await lose() == []
    now_us += LOST_AFTER_US + 1
    lost = await lose()
    assert [(one.stream, one.count) for one in lost if isinstance(one, statement.StreamLost)] == [
        (stream.id, stream.chain.count) for stream in (streams[0], streams[2])
    ]  # fmt: skip
    assert await lose() == []
    await _append(store, authority, streams[2], lambda one: one.head())
    now_us += LOST_AFTER_US + 1
    assert [one.stream for one in await lose() if isinstance(one, statement.StreamLost)] == [streams[2].id]
    await store.close()


async def _append(store: Store, authority: Authority, stream: Stream, speak: Any) -> None:
    known = getattr(stream, "stored", None) or unknown(stream.id)
    before = stream.chain.count if known.id else 0
    speak(stream)
    fresh = [frame[2:] for frame in stream.frames[before:]]
    extension = extend(known, fresh, stream.pod.subject(), [authority.certificate])
    stream.stored = await store.write(lambda tx: tx.append(extension))  # type: ignore[attr-defined]


async def test_reads_that_were_kept_beside_the_log_are_in_it_after_an_upgrade(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db")
    database.execute(
        "INSERT INTO access (wall_us, user, groups, verb, resource, namespace, name, query, rows) "
        "VALUES (7, 'anna', 'auditors,all', 'get', 'sessions', 'agents', 'x', 'limit=1', 1)"
    )
    database.close()
    for _ in range(2):
        store = Store(tmp_path, Metrics())
        assert store.size == 1
        await store.close()
    store = Store(tmp_path, Metrics())
    ((data,),) = await store.read(lambda db: db.execute("SELECT bytes FROM entry").fetchall())
    assert statement.decode(entry.decode(bytes(data))) == statement.EvidenceRead(
        wall_us=7, user="anna", groups=["auditors", "all"], verb="get", resource="sessions", namespace="agents",
        name="x", query="limit=1", rows=1,
    )  # fmt: skip
    await store.close()
