"""The proof of a session: what kubectl gets of the aggregated API, verified offline."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from evidence_scene import BASE, Scene, kubectl
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Stream
from pki import Authority

from chaperone_evidence import entry, verify

pytestmark = pytest.mark.peer


async def test_a_proof_verifies_offline(evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path) -> None:
    scene = await Scene(gateway_ca, "proof-agent").ship(evidence_api)
    scene.stream.intend(scene.open, "SELECT 'after the last head'")
    await scene.ship(evidence_api)
    files = await _proof(evidence_api, scene.closed)
    verdict, checked = _verdict(files, gateway_ca)
    assert verdict.problems == []
    assert [report.end for report in verdict.streams] == ["open"]
    assert verdict.streams[0].entries == scene.stream.chain.count - 1  # up to the last signed head
    assert checked == 3  # of the session asked for, not of its neighbour
    assert "trust.pem" not in files
    (tmp_path / "trust.pem").write_text(gateway_ca.pem)
    (tmp_path / "bundle.tar").write_bytes(await _bundle(evidence_api, scene.closed))
    arguments = ("verify", "bundle.tar", "--trust", "trust.pem")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", *arguments], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify: OK" in done.stdout
    (tmp_path / "verify.py").write_bytes(files["verify.py"])
    policy = await kubectl(evidence_api, "get", "--raw", f"{BASE}/checkpoints/log/policy")
    (tmp_path / "log.policy").write_text(policy)
    own = ("verify.py", *arguments[1:], "--log-policy", "log.policy")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, *own], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "verify: OK"), done.stdout + done.stderr


async def test_what_the_log_said_earlier_is_what_it_continues(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    for number in (1, 2):
        scene = await Scene(gateway_ca, f"earlier-agent-{number}").ship(evidence_api)
        files = await _proof(evidence_api, scene.closed)
        (tmp_path / f"{number}.tlog-proof").write_bytes(files[f"log/{scene.stream.id}.tlog-proof"])
    policy = await kubectl(evidence_api, "get", "--raw", f"{BASE}/checkpoints/log/policy")
    (tmp_path / "log.policy").write_text(policy)
    arguments = ("consistency", "1.tlog-proof", "2.tlog-proof", "--log-policy", "log.policy")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "chaperone_cli.main", *arguments, "--kubeconfig", str(evidence_api.server.kubeconfig)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout[:16]) == (0, "consistency: OK:"), done.stdout + done.stderr


async def test_a_session_has_a_proof_once_a_head_has_signed_its_end(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = await Scene(gateway_ca, "unsigned-agent").ship(evidence_api)
    scene.stream.close_session(scene.open, commands=1)
    await scene.ship(evidence_api)
    path = f"{BASE}/namespaces/agents/sessions/{scene.open}/proof"
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", path)
    assert "(ServiceUnavailable)" in done.stderr
    assert "not signed yet" in done.stderr
    scene.stream.head()
    await scene.ship(evidence_api)
    verdict, _ = _verdict(await _proof(evidence_api, scene.open), gateway_ca)
    assert verdict.problems == []


async def test_a_proof_of_a_stream_that_was_succeeded_ends_with_its_successor(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = Scene(gateway_ca, "succeeded-agent")
    scene.stream.intend(scene.open, "SELECT 'the last before the crash'")
    await scene.ship(evidence_api)
    following = Stream(scene.pod, previous=scene.stream)
    following.head()
    following.open_session()
    async with Sender(evidence_api.collector, scene.pod) as sender:
        await sender.ship(following)
    verdict, _ = _verdict(await _proof(evidence_api, scene.open), gateway_ca)
    assert verdict.problems == []
    ends = {report.stream: report.end for report in verdict.streams}
    assert ends == {scene.stream.id: "continued", following.id: "open"}
    text = await kubectl(evidence_api, "get", "session", "-n", "agents", scene.open)
    assert "Lost" in text


async def test_a_proof_needs_its_own_right_and_a_session(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "right-agent").ship(evidence_api)
    path = f"{BASE}/namespaces/agents/sessions/{scene.closed}/proof"
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", path, user="nobody")
    assert "sessions/proof" in done.stderr
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", path.replace(scene.closed, "x"))
    assert "not found" in done.stderr


async def _bundle(api: EvidenceApi, session: str) -> bytes:
    path = f"{BASE}/namespaces/agents/sessions/{session}/proof"
    raw = await asyncio.to_thread(
        subprocess.run, [*api.command(), "get", "--raw", path], capture_output=True, check=True, timeout=60
    )
    return raw.stdout


async def _proof(api: EvidenceApi, session: str) -> dict[str, bytes]:
    """The files of the proof, once the log has signed over it: at most one checkpoint comes in five seconds."""
    async with asyncio.timeout(60):
        while True:
            try:
                bundle = await _bundle(api, session)
                break
            except subprocess.CalledProcessError as error:
                assert b"not signed yet" in error.stderr
            await asyncio.sleep(0.5)
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def _verdict(files: dict[str, bytes], ca: Authority) -> tuple[verify.Verdict, int]:
    reports = []
    checked = 0
    for stream in sorted({name.split("/")[1] for name in files if name.startswith("streams/")}):
        names = sorted(name for name in files if name.startswith(f"streams/{stream}/"))
        frames = [data for name in names for data in entry.frames(files[name])]
        report = verify.verify_stream(stream, frames, [ca.certificate])
        bodies = verify.BodyVerifier(report)
        for name in sorted(name for name in files if name.startswith(f"bodies/{stream}/")):
            for body in entry.body_frames(files[name]):
                bodies.add(body)
        checked += bodies.checked
        reports.append(report)
    return verify.join(reports), checked
