"""Everything that can die dies, at random, under load: what ran is recorded, and what was told is so.

Gateway and collector are ended by kill -9, the collector is cut off, and the gateway's clock jumps by a day, while
agents write. As many times as CHAPERONE_CHAOS_KILLS says, 12 by itself; the counts are printed at the end (`-s`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import psycopg
import pytest
from fix_approvals import Approvals
from fix_broker import Pod
from fix_collector import Collector
from fix_faults import Faults, set_clock
from fix_opa import Opa
from fix_postgres import Postgres, holding
from pod_gateway import WAIT_S, compiled, connect, install, settings_of, until

from chaperone_evidence import entry, record
from chaperone_evidence.canonical import decode_base64

KILLS: Final = int(os.environ.get("CHAPERONE_CHAOS_KILLS", "12"))
AGENTS: Final = 4
PAUSE_S: Final = (0.3, 1.5)  # between two blows
CUT_OFF_S: Final = 1.5
DAY_S: Final = 86_400
TOLD_LATE: Final = "The head's time is before that of the head before it."
PROGRAM: Final = Path(__file__).parents[1] / "support" / "skewed_gateway.py"

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120 + 10 * KILLS)]


@pytest.fixture(scope="module")
def table(postgres: Postgres) -> Iterator[Postgres]:
    made = (
        "CREATE SCHEMA chaos; CREATE TABLE chaos.done (id text PRIMARY KEY); GRANT USAGE ON SCHEMA chaos TO agent_rw;"
    )
    with holding(postgres, "chaos", f"{made} GRANT INSERT, SELECT ON chaos.done TO agent_rw;"):
        yield postgres


@dataclass
class Gateway:
    """The gateway of a pod, one process after the other."""

    pod: Pod
    collector: Collector
    opa: Opa
    folder: Path
    env: dict[str, str]
    revision: str
    process: asyncio.subprocess.Process | None = None
    port: int = 0
    starts: int = 0

    async def start(self) -> None:
        await self.pod.set_status(restarts=self.starts)
        self.starts += 1
        settings = self.folder / "settings.json"
        told = await settings_of(self.pod, self.collector, self.opa, self.folder)
        settings.write_bytes(msgspec.json.encode(told, enc_hook=str))
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, str(PROGRAM), str(settings), "0", self.revision, stdout=asyncio.subprocess.PIPE,
                stderr=log, env=self.env,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)
        assert line, (self.folder / "gateway.log").read_text()[-3000:]
        self.port = int(line)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


@dataclass
class Work:
    """What agents asked for, and what they were told."""

    gateway: Gateway
    asked: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    is_over: bool = False

    async def agent(self) -> None:
        """Insert one row after the other; whatever goes wrong, connect again and go on with the next one."""
        while not self.is_over:
            try:
                async with await connect(self.gateway.port) as session:
                    while not self.is_over:
                        name = secrets.token_hex(8)
                        self.asked.add(name)
                        await session.execute(f"INSERT INTO chaos.done VALUES ('{name}')")  # type: ignore[arg-type]
                        self.told.add(name)
                        await asyncio.sleep(0.01)
            except (psycopg.Error, OSError):
                await asyncio.sleep(0.05)


async def test_what_ran_is_recorded_and_what_was_told_is_so(
    approvals: Approvals, table: Postgres, collected: Collector, asked_opa: Opa, faults: Faults, tmp_path: Path
) -> None:
    await install(approvals.broker, table, collected)
    snapshot = compiled(approvals.broker, table, "read", "create")
    await approvals.broker.put_snapshot(snapshot)
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    pod = await approvals.broker.pod(f"chaos-{secrets.token_hex(4)}")
    gateway = Gateway(pod, collected, asked_opa, tmp_path, faults.clocked(clock), snapshot.revision)
    await gateway.start()
    work = Work(gateway)
    agents = [asyncio.create_task(work.agent()) for _ in range(AGENTS)]
    counts = Counter[str]()
    dice = Random(secrets.randbits(32))  # noqa: S311 - when, not what
    blows = ("gateway killed", "collector killed", "collector cut off", "clock a day ahead", "clock a day behind")
    for number in range(KILLS):
        before = len(work.told)
        await asyncio.sleep(dice.uniform(*PAUSE_S))
        await until(lambda before=before: len(work.told) > before)  # a busy machine is slow to start again
        blow = blows[number % 5] if number < 5 else dice.choices(blows, (6, 4, 2, 1, 1))[0]
        counts[blow] += 1
        counts["blows under load"] += len(work.told) > before
        if blow == "gateway killed":
            await gateway.kill()
            await gateway.start()
        elif blow == "collector killed":
            collected.kill()
            await asyncio.to_thread(_start_where_it_was, collected)
        elif blow == "collector cut off":
            assert collected.process is not None
            collected.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(CUT_OFF_S)
            collected.process.send_signal(signal.SIGCONT)
        else:
            set_clock(clock, DAY_S if blow.endswith("ahead") else -DAY_S)
            await asyncio.sleep(dice.uniform(*PAUSE_S))
            set_clock(clock, 0)
    work.is_over = True
    await asyncio.wait_for(asyncio.gather(*agents), WAIT_S)
    await gateway.kill()  # what it leaves is shipped by the one after it
    await gateway.start()
    try:
        with table.admin() as owner:
            ran = {row[0] for row in owner.execute("SELECT id FROM chaos.done").fetchall()}
        intents, concluded = await _recorded(gateway, work.asked & ran, work.told)
    finally:
        await gateway.kill()
    counts.update({
        "asked": len(work.asked), "ran": len(ran), "told that it ran": len(work.told), "streams": gateway.starts,
        "ran and not recorded": len(ran - intents), "told and did not run": len(work.told - ran),
        "told and its outcome not recorded": len(work.told - concluded),
    })  # fmt: skip
    print("", *(f"{count:>8}  {what}" for what, count in counts.items()), sep="\n")
    if ran - intents:
        print((gateway.folder / "gateway.log").read_text()[-8000:])
    assert counts["ran and not recorded"] == counts["told and did not run"] == 0
    assert counts["told and its outcome not recorded"] == 0
    assert counts["blows under load"] == KILLS
    _is_one_chain_of_streams(collected, pod, gateway.starts)


def _start_where_it_was(collector: Collector) -> None:
    """On the same port, for that is all that the gateway knows."""
    port = collector.ports[-2]
    is_given = collector.more
    collector.more = (*is_given, "--ingest-port", str(port))
    try:
        collector.start()
    finally:
        collector.more = is_given


def _records(collector: Collector, pod: Pod) -> Iterator[tuple[str, Any]]:
    """Name of the stream and record, in the order of streams and numbers."""
    query = "SELECT s.name, e.bytes FROM entry e JOIN stream s ON s.id = e.stream WHERE s.pod_uid = ? "
    query += "ORDER BY s.name, e.seq"
    for name, raw in collector.rows(query, pod.uid):
        cls, _, header = entry.split(raw)
        if cls == entry.CLASS_RECORD:
            yield name, record.decode(header)


async def _recorded(gateway: Gateway, ran: set[str], told: set[str]) -> tuple[set[str], set[str]]:
    """Names in recorded statements, and those whose outcome says ok; waits for all that ran and were told, for a while.

    And for the first record of each stream, of which the last one is shipped when all before it are.
    """
    collector = gateway.collector
    ends = time.monotonic() + 2 * WAIT_S  # a request that hangs is given up after 30 s, the pauses between are 10 s
    while True:
        records = list(_records(collector, gateway.pod))
        bodies = collector.rows("SELECT hash, bytes FROM body")  # sent before the records that name them, so read after
        texts = {bytes(commit): bytes(body)[entry.SALT_BYTES :] for commit, body in bodies}
        intents: dict[tuple[str, int], str] = {}
        concluded: set[str] = set()
        for stream, found in records:
            if isinstance(found, record.CommandIntent) and isinstance(found.body, record.Commitment):
                text = texts[decode_base64(found.body.commit)].decode()
                if "chaos.done" in text:
                    intents[stream, found.seq] = text.split("'")[1]
            elif isinstance(found, record.CommandOutcome) and found.status == "ok":
                concluded.add(intents.get((stream, found.ref), ""))
        is_whole = len({stream for stream, _ in records}) == gateway.starts
        if (is_whole and ran <= {*intents.values()} and told <= concluded) or time.monotonic() > ends:
            return {*intents.values()}, concluded
        await asyncio.sleep(0.5)


def _is_one_chain_of_streams(collector: Collector, pod: Pod, starts: int) -> None:
    """Each process's stream names the end of the one before it: no tail is missing, and no killed one is unsigned."""
    streams = collector.rows("SELECT name, count, link, id FROM stream WHERE pod_uid = ? ORDER BY name", pod.uid)
    assert len(streams) == starts
    opened = [found for _, found in _records(collector, pod) if isinstance(found, record.StreamOpen)]
    for (name, _, link, _), after in zip(streams, opened[1:], strict=False):
        assert (after.previous, after.previous_link) == (name, base64.b64encode(link).decode())
    for name, count, _, number in streams:
        numbers = collector.rows("SELECT seq FROM entry WHERE stream = ? ORDER BY seq", number)
        assert [row[0] for row in numbers] == [*range(count)], name
    found = collector.rows(
        "SELECT what FROM finding WHERE stream IN (SELECT name FROM stream WHERE pod_uid = ?)", pod.uid
    )
    assert {row[0] for row in found} <= {TOLD_LATE}
    assert collector.rows("SELECT reason FROM quarantine WHERE pod_uid = ?", pod.uid) == []
