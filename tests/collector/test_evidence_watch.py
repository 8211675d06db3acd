"""Watches of the aggregated API: what happens is told, at any version, without loss."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest
from evidence_scene import BASE, Scene, kubectl
from fix_collector import Collector
from fix_evidence_api import EvidenceApi
from pki import Authority

pytestmark = pytest.mark.peer


async def _watching(api: EvidenceApi, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*api.command(), "get", *arguments, stdout=subprocess.PIPE)


async def _line(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().split()


async def test_a_watch_shows_what_happens(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "watch-agent").ship(evidence_api)
    watching = await _watching(
        evidence_api, "sessions", "-n", "agents", "-l", "chaperone.dev/identity=watch-agent", "--watch"
    )
    try:
        assert (await _line(watching))[0] == "NAME"
        assert {(await _line(watching))[0] for _ in range(2)} == {scene.closed, scene.open}
        scene.stream.intend(scene.open, "DROP TABLE x", decision="Deny", rule="never")
        await scene.ship(evidence_api)
        changed = await _line(watching)
        assert (changed[0], changed[6:]) == (scene.open, ["2", "1", "Open"])
        scene.stream.close_session(scene.open, 2, 1)
        await scene.ship(evidence_api)
        changed = await _line(watching)
        assert (changed[0], changed[8]) == (scene.open, "Closed")
    finally:
        watching.terminate()
        await watching.wait()


async def test_a_watch_of_open_sessions_tells_when_one_no_longer_fits(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = await Scene(gateway_ca, "gone-agent").ship(evidence_api)
    watching = await _watching(
        evidence_api, "sessions", "-n", "agents", "--watch", "--output-watch-events", "-o", "json",
        "--field-selector", "spec.identity=gone-agent,status.state=Open",
    )  # fmt: skip
    decoder, text = json.JSONDecoder(), ""

    async def event() -> tuple[str, str]:
        nonlocal text
        assert watching.stdout is not None
        async with asyncio.timeout(30):
            while True:
                try:
                    found, end = decoder.raw_decode(text.lstrip())
                except json.JSONDecodeError:
                    text += (await watching.stdout.read(65536)).decode()
                    continue
                text = text.lstrip()[end:]
                return found["type"], found["object"]["metadata"]["name"]

    try:
        assert await event() == ("ADDED", scene.open)
        scene.stream.close_session(scene.open, 1, 0)
        other = scene.stream.open_session()
        await scene.ship(evidence_api)
        assert [await event(), await event()] == [("DELETED", scene.open), ("ADDED", other)]
    finally:
        watching.terminate()
        await watching.wait()


async def test_a_watch_resumes_at_any_version_without_loss(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = Scene(gateway_ca, "resume-agent")
    for number in range(40):
        scene.stream.conclude(scene.open, scene.stream.intend(scene.open, f"SELECT {number}"))
    await scene.ship(evidence_api)
    question = "watch=true&timeoutSeconds=1&fieldSelector=spec.identity%3Dresume-agent"

    async def watch(since: int) -> list[tuple[str, str, int]]:
        text = await kubectl(evidence_api, "get", "--raw", f"{BASE}/commands?{question}&resourceVersion={since}")
        events = [json.loads(line) for line in text.splitlines()]
        return [
            (event["type"], event["object"]["metadata"]["name"], int(event["object"]["metadata"]["resourceVersion"]))
            for event in events
        ]

    whole = await watch(0)
    versions = [version for _, _, version in whole]
    assert versions == sorted(versions)
    assert len({name for _, name, _ in whole}) == 44
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        rest = await watch(versions[cut])
        assert {name for _, name, _ in whole[cut + 1 :]} <= {name for _, name, _ in rest}


async def test_a_watch_list_ends_its_initial_events_with_a_bookmark(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    await Scene(gateway_ca, "initial-agent").ship(evidence_api)
    query = (
        "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
        "&timeoutSeconds=1&labelSelector=chaperone.dev%2Fidentity%3Dinitial-agent"
    )
    text = await kubectl(evidence_api, "get", "--raw", f"{BASE}/sessions?{query}")
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["type"] for event in events[:3]] == ["ADDED", "ADDED", "BOOKMARK"]
    assert events[2]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    done = await asyncio.to_thread(
        evidence_api.run, "get", "--raw", f"{BASE}/sessions?watch=true&sendInitialEvents=true"
    )
    assert "allowWatchBookmarks" in done.stderr


async def test_sigterm_ends_open_watches_and_the_process_in_order(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    server, token = evidence_api.server, evidence_api.collector.folder / "token"
    (tmp_path / "ca.crt").write_text(server.authority.pem)
    own = Collector(
        tmp_path, gateway_ca, "--api-port", "0", "--kubernetes", server.url,
        "--kubernetes-ca", str(tmp_path / "ca.crt"), "--kubernetes-token", str(token),
    )  # fmt: skip
    own.start()
    context = ssl.create_default_context(cadata=own.service_ca.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_cert_chain(server.folder / "front-proxy.crt", server.folder / "front-proxy.key")
    url = f"https://127.0.0.1:{own.api_port}{BASE}/sessions?watch=true"
    headers = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.get(url, headers=headers) as answer,
    ):
        assert answer.status == 200
        stopping = asyncio.create_task(asyncio.to_thread(own.stop))
        async with asyncio.timeout(60):
            assert await answer.content.read() == b""  # its end was sent; one that is cut off raises
            assert await stopping == 0
