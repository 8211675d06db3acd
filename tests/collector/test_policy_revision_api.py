"""Revisions of policy as operators and auditors meet them: kubectl, kube-apiserver and collector, all real."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_apiserver import running
from fix_collector import Sender
from fix_evidence_api import EvidenceApi, served
from manifests import rule
from pki import Authority
from population_speaker import Speaker
from revised import BASE, Decided, Revised, operator, post, revised

from chaperone_evidence import canonical, entry, statement
from chaperone_evidence.population import Covered
from chaperone_evidence.revision import FILES, read_entry

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

READ = [rule("read-orders", "Allow", ["read"], ["public.orders"])]
ONE, TWO = revised(READ), revised([*READ, rule("no", "Deny", ["destroy"])], now_ms=2000)


@pytest.fixture(scope="module")
def api(gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvidenceApi]:
    """Its own: the first key that a collector hears is the one that it believes from then on."""
    with (
        running(tmp_path_factory.mktemp("api-server")) as server,
        served(server, gateway_ca, tmp_path_factory.mktemp("evidence-api")) as found,
    ):
        yield found


def held(api: EvidenceApi, serial: int) -> statement.PolicyRevision:
    one = api.get(f"{BASE}/namespaces/agents/policyrevisions/{serial}")
    (row,) = api.collector.rows("SELECT class, bytes FROM entry WHERE idx = ?", one["status"]["index"])
    assert row[0] == statement.CLASS_POLICY == 5
    return read_entry(bytes(row[1]))


def test_a_revision_is_in_the_log_with_its_files_and_is_kept_once(api: EvidenceApi) -> None:
    for _ in range(2):  # it is sent until it is acknowledged
        assert post(api, ONE, operator()).returncode == 0
    assert post(api, TWO, operator()).returncode == 0
    said = held(api, 1000)
    assert (said.namespace, said.revision, said.serial, said.identities) == ("agents", ONE.revision, 1000, 1)
    for name in FILES:
        commit = canonical.decode_base64(getattr(said, name).commit)
        (row,) = api.collector.rows("SELECT bytes FROM body WHERE hash = ?", commit)
        assert bytes(row[0])[entry.SALT_BYTES :] == getattr(ONE.files, name)
    head, *rows = api.kubectl("get", "policyrevisions", "-n", "agents").splitlines()
    assert head.split() == ["NAME", "REVISION", "IDENTITIES", "RECEIVED", "AGE"]
    assert [row.split()[:3] for row in rows] == [["1000", ONE.revision, "1"], ["2000", TWO.revision, "1"]]
    by_name = ("--field-selector", f"spec.revision={TWO.revision}", "-o", "name")
    assert api.kubectl("get", "policyrevisions", "-n", "agents", *by_name).split() == [
        "policyrevision.evidence.chaperone.dev/2000"
    ]
    assert "NotFound" in api.run("get", "policyrevisions", "-n", "agents", "3000").stderr


def test_the_same_serial_has_no_other_content(api: EvidenceApi) -> None:
    assert post(api, ONE, operator()).returncode == 0
    other = revised([rule("all", "Allow", ["*"])])
    assert other.revision != ONE.revision
    done = post(api, other, operator())
    assert "serial 1000 of agents is stored with other content" in done.stderr.lower()
    assert held(api, 1000).revision == ONE.revision


def test_another_key_is_refused_also_for_populations(api: EvidenceApi) -> None:
    assert post(api, ONE, operator()).returncode == 0
    thief = operator(2)
    stolen = revised(READ, signer=thief, now_ms=5000)
    assert "another key" in post(api, stolen, thief).stderr
    assert "is not signed by" in post(api, stolen, operator()).stderr
    assert f"revision {stolen.revision} of agents is refused" in api.collector.log.read_text()
    Speaker(api, "agents").say(Covered("u1", "pod-u1", "billing-agent", 1))  # one key for both


def _changed(found: Revised, name: str, old: bytes, new: bytes) -> dict[str, str]:
    data = getattr(found.files, name)
    assert old in data
    return {name: base64.b64encode(data.replace(old, new, 1)).decode()}


@pytest.mark.parametrize(
    "changed",
    [
        _changed(ONE, "gateway", b"Billing", b"Killing"),
        _changed(ONE, "notes", b"\\n1000\\n", b"\\n1001\\n"),
        {"bundle": base64.b64encode(TWO.files.bundle).decode()},
        {"gateway": base64.b64encode(TWO.files.gateway).decode()},
        {"notes": base64.b64encode(b"{}").decode(), "gateway": base64.b64encode(b"{}").decode()},
        {"notes": base64.b64encode(ONE.files.notes + b" ").decode()},
        {"bundle": "no base64"},
        {"more": "x"},
        {"bundle": base64.b64encode(bytes(4 << 20)).decode()},
    ],
)
def test_what_the_operator_did_not_sign_is_refused(api: EvidenceApi, changed: dict[str, str]) -> None:
    before = api.collector.rows("SELECT count(*) FROM policy_revision")
    done = post(api, ONE, operator(), **changed)
    assert done.returncode != 0
    assert api.collector.rows("SELECT count(*) FROM policy_revision") == before


def test_it_is_posted_in_its_own_namespace_by_who_may(api: EvidenceApi) -> None:
    elsewhere = Revised("others", ONE.revision, ONE.data)
    assert "is one of the namespace agents, not of others" in post(api, elsewhere, operator()).stderr
    path = f"{BASE}/namespaces/agents/policyrevisions"
    assert "Forbidden" in api.run("create", "--raw", path, "-f", "-", given="{}", user="somebody").stderr
    assert api.run("create", "--raw", f"{path}?dryRun=All", "-f", "-", given="{}").returncode != 0


async def _chaperone(api: EvidenceApi, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = api.command()
    environment = os.environ | {"PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    more = [] if arguments[0] == "verify" else ["--kubeconfig", command[command.index("--kubeconfig") + 1]]
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", *arguments, *more], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


async def test_an_exported_session_has_the_policy_that_decided_and_is_made_again(
    api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    for one in (ONE, TWO):
        assert (await asyncio.to_thread(post, api, one, operator())).returncode == 0
    decided = Decided(gateway_ca)
    decided.intend(ONE.revision)
    decided.intend(TWO.revision, rule="somebody-elses")
    stream = decided.end()
    async with Sender(api.collector, stream.pod) as sender:
        await sender.ship(stream)
    done = await _chaperone(api, tmp_path, "export", decided.session, "-n", "agents")
    assert done.returncode == 0, done.stderr
    (tmp_path / "ca.pem").write_text(gateway_ca.pem)
    (tmp_path / "operator.vkey").write_text(operator().vkey)
    given = ("--trust", "ca.pem", "--log-policy", f"{decided.session}.log.policy", "--operator-key", "operator.vkey")
    verified = await _chaperone(api, tmp_path, "verify", f"{decided.session}.tar", *given)
    assert verified.stdout.endswith("verify: OK\n"), verified.stdout
    assert len(re.findall(r"^policy \w{16} of agents: serial \d+, 1 identities, entry \d+ of the log$",
                          verified.stdout, re.M)) == 2  # fmt: skip
    offline = await _chaperone(api, tmp_path, "reperform", f"{decided.session}.tar", *given)
    assert offline.returncode == 1
    assert "Allow by somebody-elses of agents/billing, re-performed Allow by read-orders" in offline.stdout
    assert "reperform: 2 of 2 decisions re-performed, 1 differences, 0 not repeatable\n" in offline.stdout
    period = ("--from", "2026-01-01", "--to", "2099-01-01", "-n", "agents", *given[:2])
    whole = await _chaperone(api, tmp_path, "reperform", *period)
    assert (whole.returncode, offline.stdout.splitlines()[-1]) == (1, whole.stdout.splitlines()[-1])
    path = f"{BASE}/namespaces/agents/policyrevisions/1000/proof"
    given_alone = await asyncio.to_thread(
        subprocess.run, [*api.command(), "get", "--raw", path], capture_output=True, timeout=60, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(given_alone.stdout)) as tar:
        assert sorted(tar.getnames()) == [
            "revisions/agents/0000000000001000.entry", "revisions/agents/0000000000001000.seg",
            "revisions/agents/0000000000001000.tlog-proof", "revisions/operator.vkey",
        ]  # fmt: skip
    reads = [one["spec"] for one in api.get(f"{BASE}/namespaces/agents/reads")["items"]]
    assert ("policyrevisions/proof", "1000") in {(one["resource"], one.get("name")) for one in reads}
