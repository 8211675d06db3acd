"""Recordings as auditors fetch them: real kubectl, a real kube-apiserver, a real collector behind it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import tarfile
from typing import Any

import pytest
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import entry, frames, record, verify

pytestmark = pytest.mark.peer

_BASE = "/apis/evidence.chaperone.dev/v1alpha1"
SHOWN: list[frames.Known] = [
    frames.Columns(t_us=1_000_000, columns=(frames.Column("id", "23"), frames.Column("name", "25", True))),
    frames.Rows(t_us=1_000_000, rows=(("1", None), ("2", frames.Bytes("AAE=")))),
]
LATER: list[frames.Known] = [frames.Message(t_us=9_000_000, severity="ERROR", text="division by zero", code="22012")]


class Scene:
    """One session with two commands that show something, and another session beside it that shows something too."""

    def __init__(self, ca: Authority, identity: str) -> None:
        self.pod = Pod(ca, identity=identity, pod=f"{identity}-0", pod_uid=f"uid-{identity}")
        self.stream = Stream(self.pod)
        self.session, self.other = self.stream.open_session(), self.stream.open_session()
        first = self.stream.intend(self.session, "SELECT id, name FROM people")
        self.stream.show(self.session, SHOWN, command=first[1])
        self.stream.show(self.other, [frames.Output(t_us=1, data="of another session")])
        self.stream.conclude(self.session, first, rows=2)
        second = self.stream.intend(self.session, "SELECT 1 / 0")
        self.late = self.stream.show(self.session, LATER, command=second[1], number=1)
        self.stream.conclude(self.session, second, "error", 0)
        self.stream.close_session(self.session, 2)
        self.stream.head()

    async def ship(self, api: EvidenceApi) -> Scene:
        async with Sender(api.collector, self.pod) as sender:
            await sender.ship(self.stream)
        return self

    @property
    def path(self) -> str:
        return f"{_BASE}/namespaces/agents/sessions/{self.session}/recording"


async def _kubectl(api: EvidenceApi, *arguments: str, **more: Any) -> str:
    return await asyncio.to_thread(api.kubectl, *arguments, **more)


async def fetched(api: EvidenceApi, path: str) -> list[dict[str, Any]]:
    text = await _kubectl(api, "get", "--raw", path)
    return [json.loads(line) for line in text.splitlines()]


async def test_a_recording_is_the_session_its_records_and_what_was_shown(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = await Scene(gateway_ca, "recorded-agent").ship(evidence_api)
    head, *lines = await fetched(evidence_api, scene.path)
    assert (head["kind"], head["session"]["metadata"]["name"]) == ("session", scene.session)
    assert head["session"]["status"]["recorded"] is True
    assert [line["record"]["type"] if line["kind"] == "record" else line["kind"] for line in lines] == [
        "session.open", "command.intent", "recording.chunk", "columns", "rows", "command.outcome", "command.intent",
        "recording.chunk", "message", "command.outcome", "session.close",
    ]  # fmt: skip
    assert [base64.b64decode(line["texts"]["text"]) for line in lines if "texts" in line] == [
        b"SELECT id, name FROM people", b"SELECT 1 / 0",
    ]  # fmt: skip
    assert [line for line in lines if line["kind"] == "rows"] == [json.loads(frames.encode(SHOWN[1]))]
    indexes = [line["index"] for line in lines if line["kind"] == "record"]
    assert indexes == sorted(set(indexes))


async def test_a_recording_is_read_from_a_time_on(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "seeking-agent").ship(evidence_api)
    kinds = [line["kind"] for line in await fetched(evidence_api, scene.path + "?from=1.5")]
    assert kinds == ["session", *["record"] * 6, "message", *["record"] * 2]
    for wrong in ("-1", "x", "1e3", "", "1.2.3", "٣"):
        done = await asyncio.to_thread(evidence_api.run, "get", "--raw", f"{scene.path}?from={wrong}")
        assert "from is a number of seconds" in done.stderr, wrong


async def test_a_chunk_that_is_not_there_or_cannot_be_read_is_said(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = Scene(gateway_ca, "holed-agent")
    del scene.stream.bodies[scene.late]
    body = bytes(entry.SALT_BYTES) + b"no frames at all"
    commit = entry.body_commit(body)
    scene.stream.bodies[commit] = body
    session = scene.stream.open_session()
    scene.stream.add(
        record.RecordingChunk(
            seq=0, wall_us=0, mono_us=0, session=session, frames=1, codec="zstd",
            body=record.Commitment(base64.b64encode(commit).decode(), len(body)),
        )
    )  # fmt: skip
    scene.stream.head()
    await scene.ship(evidence_api)
    problems = [line.get("problem", "") for line in await fetched(evidence_api, scene.path)]
    assert [one for one in problems if one] == ["its body is not here"]
    lines = await fetched(evidence_api, scene.path.replace(scene.session, session))
    assert [one["problem"] for one in lines if "problem" in one] == ["A chunk cannot be decompressed."]


async def test_a_recording_needs_its_own_right_and_is_a_recorded_read(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = await Scene(gateway_ca, "watched-agent").ship(evidence_api)
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", scene.path, user="nobody")
    assert "sessions/recording" in done.stderr
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", scene.path.replace(scene.session, "x"))
    assert "not found" in done.stderr
    await _kubectl(evidence_api, "get", "--raw", scene.path, user="ann", groups=("auditors",))
    listed = json.loads(await _kubectl(evidence_api, "get", "reads", "-n", "agents", "-o", "json"))["items"]
    (read,) = [
        one["spec"] for one in listed if one["spec"].get("name") == scene.session and one["spec"]["user"] == "ann"
    ]
    assert (read["resource"], read["verb"]) == ("sessions/recording", "get")


async def test_recordings_are_in_discovery_and_in_the_wide_table(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    await Scene(gateway_ca, "told-agent").ship(evidence_api)
    found = [one["name"] for one in evidence_api.get(_BASE)["resources"]]
    assert "sessions/recording" in found
    merged = ("get", "--raw", "/openapi/v3/apis/evidence.chaperone.dev/v1alpha1")
    paths = json.loads(await asyncio.to_thread(evidence_api.eventually, *merged))["paths"]
    assert f"{_BASE}/namespaces/{{namespace}}/sessions/{{name}}/recording" in paths
    text = await _kubectl(
        evidence_api, "get", "sessions", "-n", "agents", "-l", "chaperone.dev/identity=told-agent", "-o", "wide"
    )
    assert [line.split()[-1] for line in text.splitlines()] == ["RECORDED", "true", "true"]


async def test_a_proof_holds_the_recording_of_its_session(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "shown-agent").ship(evidence_api)
    command = [*evidence_api.command(), "get", "--raw", scene.path.replace("recording", "proof")]
    async with asyncio.timeout(60):
        while (done := await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)).returncode:
            assert b"not signed yet" in done.stderr
            await asyncio.sleep(0.5)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    entries = [one for name in sorted(files) if name.startswith("streams/") for one in entry.frames(files[name])]
    bodies = [one for name in sorted(files) if name.startswith("bodies/") for one in entry.body_frames(files[name])]
    report = verify.verify_stream(scene.stream.id, entries, [gateway_ca.certificate], bodies)
    assert report.problems == []
    assert (report.bodies_checked, report.bodies_missing, report.bodies_unnamed) == (4, 1, 0)  # not the other session's
