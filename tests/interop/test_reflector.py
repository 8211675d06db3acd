"""Evidence followed by client-go's reflector, as controllers and dashboards follow it: real API server in between."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]  # the first test builds the program

LIMIT_S = 180.0  # a reflector pauses for half a minute and more after failures in a row
IS_LIST = {"list, then watch": "false", "watch that lists": "true"}


class Follower:
    """A reflector at work: what its store holds, and every call that led there."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.calls: list[dict[str, Any]] = []
        self.held: dict[str, str] = {}

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Read on until something holds."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while not is_so():
                line = await self._process.stdout.readline()
                assert line, "the reflector ended"
                self._take(json.loads(line))

    def _take(self, call: dict[str, Any]) -> None:
        self.calls.append(call)
        match call["op"]:
            case "replace":
                self.held = dict.fromkeys(call.get("names", ()), "")
            case "delete":
                del self.held[call["name"]]
            case "add":
                assert call["name"] not in self.held
                self.held[call["name"]] = call["state"]
            case "update":
                assert call["name"] in self.held
                self.held[call["name"]] = call["state"]


@asynccontextmanager
async def following(program: Path, api: EvidenceApi, way: str, *arguments: str) -> AsyncIterator[Follower]:
    """Run a reflector."""
    process = await asyncio.create_subprocess_exec(
        program, f"-kubeconfig={api.server.kubeconfig}", "-namespace=agents", *arguments, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "KUBE_FEATURE_WatchListClient": IS_LIST[way]},
    )  # fmt: skip
    try:
        yield Follower(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(LIMIT_S):
            await process.wait()


@pytest.mark.parametrize("way", IS_LIST)
async def test_sessions_come_and_change(
    evidence_api: EvidenceApi, gateway_ca: Authority, reflector: Path, way: str
) -> None:
    identity = f"followed-{IS_LIST[way]}"
    stream = Stream(Pod(gateway_ca, identity=identity, pod_uid=f"uid-{identity}"))
    first = [stream.open_session() for _ in range(5)]
    async with (
        Sender(evidence_api.collector, stream.pod) as sender,
        following(
            reflector, evidence_api, way, "-resource=sessions", f"-fields=spec.identity={identity}", "-page=2"
        ) as follower,
    ):
        await sender.ship(stream)
        await follower.until(lambda: follower.held.keys() == {*first})
        second = stream.open_session()
        stream.conclude(second, stream.intend(second))
        stream.close_session(first[0], 0)
        await sender.ship(stream)
        await follower.until(lambda: follower.held.keys() == {*first, second})
        await follower.until(lambda: follower.held[first[0]] == "Closed")
        stream.close_session(second, 1)
        await sender.ship(stream)
        await follower.until(lambda: follower.held[second] == "Closed")
    assert sum(call["op"] == "replace" for call in follower.calls) == 1  # it never had to begin again
    versions = [int(call["version"]) for call in follower.calls if call["op"] != "replace"]
    assert versions == sorted(versions)


@pytest.mark.parametrize("way", IS_LIST)
async def test_open_sessions_go_when_they_end(
    evidence_api: EvidenceApi, gateway_ca: Authority, reflector: Path, way: str
) -> None:
    identity = f"open-{IS_LIST[way]}"
    stream = Stream(Pod(gateway_ca, identity=identity, pod_uid=f"uid-{identity}"))
    sessions = [stream.open_session() for _ in range(3)]
    fields = f"-fields=spec.identity={identity},status.state=Open"
    async with (
        Sender(evidence_api.collector, stream.pod) as sender,
        following(reflector, evidence_api, way, "-resource=sessions", fields) as follower,
    ):
        await sender.ship(stream)
        await follower.until(lambda: follower.held.keys() == {*sessions})
        stream.close_session(sessions[1], 0)
        await sender.ship(stream)
        await follower.until(lambda: follower.held.keys() == {sessions[0], sessions[2]})


@pytest.mark.parametrize("way", IS_LIST)
async def test_a_collector_that_died_is_followed_on_without_loss(
    evidence_api: EvidenceApi, gateway_ca: Authority, reflector: Path, way: str
) -> None:
    identity = f"outlived-{IS_LIST[way]}"
    stream = Stream(Pod(gateway_ca, identity=identity, pod_uid=f"uid-{identity}"))
    session = stream.open_session()

    async def ship(count: int) -> None:
        for number in range(count):
            stream.conclude(session, stream.intend(session, f"SELECT {number}"))
        async with Sender(evidence_api.collector, stream.pod) as sender:
            await sender.ship(stream)

    async with following(
        reflector, evidence_api, way, "-resource=commands", f"-fields=spec.identity={identity},spec.effect=read"
    ) as follower:
        await ship(20)
        await follower.until(lambda: len(follower.held) == 20)
        await asyncio.to_thread(evidence_api.collector.kill)
        await asyncio.to_thread(evidence_api.collector.start)
        await asyncio.to_thread(evidence_api.register)
        await ship(30)
        await follower.until(lambda: len(follower.held) == 50)
    listed = json.loads(
        await asyncio.to_thread(
            evidence_api.kubectl, "get", "commands", "-n", "agents", "--field-selector", f"spec.identity={identity}",
            "-o", "json",
        )
    )  # fmt: skip
    assert follower.held.keys() == {one["metadata"]["name"] for one in listed["items"]}
