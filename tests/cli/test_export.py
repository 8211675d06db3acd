"""`chaperone export` against a real API server with a real collector behind it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from evidence_directory import pack, write_stream
from fix_collector import Sender
from fix_evidence_api import NAMESPACE, EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority
from population_speaker import Speaker

from chaperone_cli import export
from chaperone_evidence import policyfile, receipt, ulid
from chaperone_evidence.cosignature import ED25519, Key
from chaperone_evidence.policy import Policy
from chaperone_evidence.population import Covered

pytestmark = pytest.mark.peer

OTHER = Key("chaperone.dev/log/other", ED25519, bytes(range(32)))


async def _chaperone(
    api: EvidenceApi, folder: Path, *arguments: str, user: str = ""
) -> subprocess.CompletedProcess[str]:
    command = api.command(user, ("auditors",) if user else ())
    environment = os.environ | {"PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    more = ["--kubeconfig", command[command.index("--kubeconfig") + 1]] if arguments[0] == "export" else []
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", *arguments, *more], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


async def _session(api: EvidenceApi, ca: Authority, identity: str) -> str:
    pod = Pod(ca, identity=identity, pod=f"{identity}-0", pod_uid=f"uid-{identity}")
    stream = Stream(pod)
    session = stream.open_session()
    stream.conclude(session, stream.intend(session, "SELECT * FROM orders"))
    stream.close_session(session, 1)
    stream.close()
    async with Sender(api.collector, pod) as sender:
        await sender.ship(stream)
    return session


def _publish_trust(api: EvidenceApi, pem: str) -> None:
    api.run("delete", "configmap", "chaperone-trust", "-n", NAMESPACE)
    api.kubectl("create", "configmap", "chaperone-trust", "-n", NAMESPACE, f"--from-literal=gateway-ca.crt={pem}")


async def test_an_exported_session_verifies_offline(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    session = await _session(evidence_api, gateway_ca, "exported-agent")
    await asyncio.to_thread(_publish_trust, evidence_api, gateway_ca.pem)
    done = await _chaperone(evidence_api, tmp_path, "export", session, "-n", "agents")
    assert done.returncode == 0, done.stderr
    assert f"bundle: {session}.tar (" in done.stdout
    trust = ("--trust", f"{session}.trust.pem", "--log-policy", f"{session}.log.policy")
    assert f"next: chaperone verify {session}.tar {' '.join(trust)}" in done.stdout
    assert "compare them with copies from elsewhere" in done.stdout
    assert _files(tmp_path) == [f"{session}.log.policy", f"{session}.tar", f"{session}.trust.pem"]
    assert stat.S_IMODE((tmp_path / f"{session}.tar").stat().st_mode) == 0o600
    verified = await _chaperone(evidence_api, tmp_path, "verify", f"{session}.tar", *trust)
    assert verified.stdout.endswith("verify: OK\n"), verified.stdout
    assert re.search(
        r"^log: record \d+ of stream \w+ is entry \d+ of \d+, signed 2\S+Z, 0 witnesses$", verified.stdout, re.M
    )
    fingerprint = next(line for line in done.stdout.splitlines() if line.startswith("trust: ")).split()[-1]
    assert fingerprint in verified.stdout


async def test_an_exported_coverage_verifies_offline(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    speaker = Speaker(evidence_api, "covered")
    pod = Pod(gateway_ca, namespace="covered", pod="billing-0", pod_uid="covered-0")
    stream = Stream(pod)
    stream.head("idle")
    async with Sender(evidence_api.collector, pod) as sender:
        await sender.ship(stream)
    said = Covered("covered-0", "billing-0", pod.identity, stream.now_us)
    await asyncio.to_thread(speaker.say, said)
    done = await _chaperone(evidence_api, tmp_path, "export", "--coverage", "-n", "covered")
    assert done.returncode == 0, done.stderr
    assert "next: chaperone verify coverage.tar --trust" in done.stdout
    (tmp_path / "ca.pem").write_text(gateway_ca.pem)
    (tmp_path / "operator.vkey").write_text(speaker.signer.verifier.vkey)
    given = ("--trust", "ca.pem", "--log-policy", "coverage.log.policy", "--operator-key", "operator.vkey")
    verified = await _chaperone(evidence_api, tmp_path, "verify", "coverage.tar", *given)
    assert verified.stdout.endswith("verify: OK\n"), verified.stdout
    assert f"pod billing-0 covered-0 as {pod.identity}: Covered, stream {stream.id}" in verified.stdout
    absent = await _chaperone(evidence_api, tmp_path, "export", "--coverage", "-n", "nobody")
    assert "NotFound" in absent.stderr
    (read,) = evidence_api.get("/apis/evidence.chaperone.dev/v1alpha1/namespaces/covered/reads")["items"]
    assert (read["spec"]["resource"], read["spec"]["name"]) == ("populations/proof", "newest")


async def test_a_receipt_in_cose_proves_a_record_of_the_bundle_offline(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    session = await _session(evidence_api, gateway_ca, "receipted-agent")
    other = await _session(evidence_api, gateway_ca, "other-agent")
    for name in (session, other):
        done = await _chaperone(
            evidence_api, tmp_path, "export", name, "-n", "agents", "--receipt", f"{name}.cose"
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"receipt: {name}.cose" in done.stdout
    policy = ("--log-policy", f"{session}.log.policy")
    check = ("receipt", "check", f"{session}.cose", "--entry")
    checked = await _chaperone(evidence_api, tmp_path, *check, f"{session}.tar", *policy)
    assert re.match(r"receipt: OK: record \d+ of stream \w+ is entry \d+ of \d+ of chaperone.dev/log/", checked.stdout)
    assert (await _chaperone(evidence_api, tmp_path, *check, f"{other}.tar", *policy)).returncode == 1
    (tmp_path / "keys").write_text(policyfile.render(Policy(OTHER.name, (OTHER,))))
    assert (await _chaperone(evidence_api, tmp_path, *check, f"{session}.tar", "--log-policy", "keys")).returncode == 1
    (tmp_path / f"{session}.cose").write_bytes(b"\xd2")
    assert (await _chaperone(evidence_api, tmp_path, *check, f"{session}.tar", *policy)).returncode == 2
    async with evidence_api.proxy() as url, aiohttp.ClientSession() as http:
        path = f"{url}{export.PATH.format(namespace='agents', what=f'sessions/{session}')}"
        async with http.get(path, headers={"Accept": "application/cose"}) as answer:
            assert answer.headers["Content-Type"] == receipt.MEDIA_TYPE
            receipt.parse(await answer.read())


async def test_an_auditor_who_may_not_read_the_system_namespace_gets_the_bundle_and_is_told(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    session = await _session(evidence_api, gateway_ca, "audited-agent")
    done = await _chaperone(
        evidence_api, tmp_path, "export", session, "-n", "agents", "-o", "out.tar", user="auditor-1"
    )
    assert done.returncode == 0, done.stderr
    for what in ("the gateway CA was not fetched; use the one", "the log's keys were not fetched; use those"):
        assert f"note: {what} that you were given: Error from server (Forbidden)" in done.stdout
    (tmp_path / "own.pem").write_text(gateway_ca.pem)
    verified = await _chaperone(evidence_api, tmp_path, "verify", "out.tar", "--trust", "own.pem")
    assert verified.stdout.endswith("verify: OK\n"), verified.stdout


async def test_what_the_api_refuses_is_told_and_leaves_no_file(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    session = await _session(evidence_api, gateway_ca, "refused-agent")
    absent = ulid.encode(1, bytes(10))
    for arguments, user, reason in (
        (("export", absent, "-n", "agents"), "", "NotFound"),
        (("export", session, "-n", "elsewhere"), "", "NotFound"),
        (("export", session, "-n", "agents", "--context", "absent"), "", "absent"),
        (("export", session), "", "NotFound"),  # the context's namespace is the default one
    ):
        done = await _chaperone(evidence_api, tmp_path, *arguments, user=user)
        assert done.returncode == 1
        assert done.stderr.startswith("export: FAILED: ")
        assert reason in done.stderr
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("../../../secrets",),
        ("not-a-session", "-n", "agents"),
        ("0" * 26, "-n", "a/b"),
        ("0" * 26, "-n", "A"),
        ("-n", "x"),
    ],
)
async def test_names_that_could_lead_elsewhere_are_refused_before_anything_is_asked(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", "export", *arguments], cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PATH": ""},
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "is not the name of a" in done.stderr or "Give a SESSION" in done.stderr


async def test_without_kubectl_the_next_step_is_named(tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", "export", "0" * 26, "-n", "agents"], cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "export: FAILED: kubectl is not installed; put it on the PATH.\n")


async def test_kubectl_runs_it_as_a_plugin(evidence_api: EvidenceApi, tmp_path: Path) -> None:
    command = evidence_api.command()
    program = Path(sys.executable).parent / "kubectl-chaperone"
    assert shutil.which(str(program))
    done = await asyncio.to_thread(
        subprocess.run, [command[0], "chaperone", "--help"], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "export" in done.stdout


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("head -c 1000 {bundle}", "The bundle is cut"),
        ("echo 'no bundle'", "The bundle is cut"),
        ("cat {bundle} {bundle}", "Something follows the end"),
        ("cat {bundle}; echo 'unexpected EOF' >&2; exit 1", "unexpected EOF"),
        ("printf '\\033[31mno\\007' >&2; exit 1", "FAILED: \ufffd[31mno\ufffd\n"),
    ],
)
def test_an_answer_that_is_not_a_whole_bundle_leaves_no_file(tmp_path: Path, answer: str, reason: str) -> None:
    stream = Stream(Pod(Authority("gateway CA")))
    stream.close()
    write_stream(tmp_path / "evidence", stream)
    bundle = tmp_path / "evidence" / "bundle.tar"
    bundle.write_bytes(pack(tmp_path / "evidence"))
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + answer.format(bundle=bundle) + "\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "chaperone_cli.main", "export", "0" * 26, "-n", "agents"], cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert reason in done.stderr
    assert _files(tmp_path) == []
