"""`chaperone follow`: lines as things happen, through the real API server; and nothing that a terminal would obey."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import record

pytestmark = pytest.mark.peer

LIMIT_S = 60.0
MOMENT = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  agents/")


class Followed:
    """The lines of a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self, count: int) -> list[str]:
        """The next ones, without their time, which has to be there."""
        assert self._process.stdout is not None
        found = []
        async with asyncio.timeout(LIMIT_S):
            for _ in range(count):
                line = (await self._process.stdout.readline()).decode()
                assert MOMENT.match(line), line
                found.append(line.rstrip("\n").split("  agents/", 1)[1])
        return found


@asynccontextmanager
async def following(api: EvidenceApi, *arguments: str) -> AsyncIterator[Followed]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaperone_cli.main", "follow", "-n", "agents", *arguments,
        f"--kubeconfig={api.server.kubeconfig}", stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": f"{Path(api.command()[0]).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    try:
        yield Followed(process)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def test_sessions_commands_and_ends_are_told_as_they_come(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    stream = Stream(Pod(gateway_ca, identity="followed", pod_uid="uid-followed"))
    person = record.Delegated("https://login.example.com", "user-7", "")
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
        async with following(evidence_api, "--identity=followed", "--from-start") as followed:
            session = stream.open_session(delegated=person)
            await sender.ship(stream)
            assert await followed.lines(1) == [
                f"followed  orders-db  {session}  session opened: PostgreSQL, user app, on behalf of user-7"
            ]
            waiting = stream.intend(session, "SELECT 1\n\x1b[2J", approval="billing-7")
            await sender.ship(stream)
            (told,) = await followed.lines(1)
            what = "Allow by agents/billing/read-orders, approval billing-7: SELECT 1 �[2J"
            assert told == f"followed  orders-db  {session}  {what}"
            stream.conclude(session, waiting, rows=7)
            await sender.ship(stream)
            assert await followed.lines(1) == [f"followed  orders-db  {session}  Ok, 7 rows, 1.5 ms: SELECT 1 �[2J"]
            stream.intend(session, "DROP TABLE orders " + "x" * 300, decision="Deny", rule="never")
            await sender.ship(stream)
            (refused,) = await followed.lines(1)
            assert refused.startswith(
                f"followed  orders-db  {session}  Deny by agents/billing/never: DROP TABLE orders x"
            )
            assert refused.endswith("x…")
            stream.close_session(session, 2, 1)
            await sender.ship(stream)
            assert await followed.lines(1) == [
                f"followed  orders-db  {session}  session ended: client closed; 2 commands, 1 refused"
            ]


async def test_only_what_was_refused_of_one_session(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    stream = Stream(Pod(gateway_ca, identity="refused", pod_uid="uid-refused"))
    one, other = stream.open_session(), stream.open_session()
    for session in (one, other):
        stream.conclude(session, stream.intend(session))
        stream.intend(session, "DELETE FROM orders", decision="Deny", rule="never")
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
    async with following(evidence_api, f"--session={other}", "--refused", "--from-start") as followed:
        assert await followed.lines(1) == [
            f"refused  orders-db  {other}  Deny by agents/billing/never: DELETE FROM orders"
        ]


async def test_from_now_on_is_what_is_told_without_more(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    stream = Stream(Pod(gateway_ca, identity="from-now", pod_uid="uid-from-now"))
    stream.open_session("before-db")
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
        count = "SELECT count(*) FROM reading"
        before = evidence_api.collector.rows(count)[0][0]
        async with following(evidence_api, "--identity=from-now") as followed:
            async with asyncio.timeout(LIMIT_S):
                # Two lists, then two watches.
                while evidence_api.collector.rows(count)[0][0] < before + 4:  # noqa: ASYNC110 - another process reads
                    await asyncio.sleep(0.1)
            session = stream.open_session("after-db")
            await sender.ship(stream)
            (line,) = await followed.lines(1)
            assert f"after-db  {session}" in line


async def test_who_may_not_read_is_told(evidence_api: EvidenceApi) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaperone_cli.main", "follow", "-n", "elsewhere",
        f"--kubeconfig={evidence_api.server.kubeconfig_of('nobody-1')}", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 1
    assert b"follow: FAILED: Error from server (Forbidden)" in said
