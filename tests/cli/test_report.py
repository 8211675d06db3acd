"""`chaperone report`: a package of a real collector behind a real API server, its check, and what that finds."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fix_apiserver import running
from fix_collector import Sender
from fix_crds import establish
from fix_evidence_api import NAMESPACE, EvidenceApi, served
from gateway_stream import Pod, Stream
from manifests import rule
from pki import Authority
from population_speaker import Speaker
from revised import operator, post, revised
from trestle.oscal import OSCAL_VERSION
from trestle.oscal.assessment_results import AssessmentResults

from chaperone_cli.report import build, pdf, shown, tables
from chaperone_cli.report import check as checking
from chaperone_cli.report.model import Report
from chaperone_evidence.population import Covered, Uncovered

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

TODAY = datetime.now(UTC)
SIGNED_WITHIN_S = 60.0
FIRST, LAST = f"{TODAY - timedelta(days=1):%Y-%m-%d}", f"{TODAY + timedelta(days=1):%Y-%m-%d}"
HOSTILE = '=HYPERLINK("https://evil.example","x")'
DECIDED = revised([rule("read-orders", "Allow", ["read"], ["public.orders"])])
SCRIPT = "<script>alert(1)</script>\x1b[31m"


class Scene:
    """Agents of a company: one busy, one silent and heard, one whose pod no gateway holds."""

    def __init__(self, api: EvidenceApi, ca: Authority) -> None:
        self.api, self.ca = api, ca
        self.busy = Pod(ca, identity="billing-agent", pod="billing-0", pod_uid="uid-billing")
        self.idle = Pod(ca, identity="idle-agent", pod="idle-0", pod_uid="uid-idle")
        self.speaker = Speaker(api, "agents")

    async def play(self) -> None:
        """Records of a day."""
        stream = Stream(self.busy, policy_serial=1000, revision=DECIDED.revision)
        for number in range(4):
            session = stream.open_session()
            for step in range(10):
                rule = HOSTILE if (number, step) == (0, 0) else "read-orders"
                stream.conclude(session, stream.intend(session, f"SELECT {number * 10 + step}", rule=rule))
            stream.intend(session, "DROP TABLE orders", decision="Deny", rule=SCRIPT)
            stream.conclude(session, stream.intend(session, "UPDATE invoices SET paid = true", approval="apr-1"))
            stream.close_session(session, 12, 1)
        stream.close()
        idle = Stream(self.idle)
        idle.head()
        for pod, sent in ((self.busy, stream), (self.idle, idle)):
            async with Sender(self.api.collector, pod) as sender:
                await sender.ship(sent)

    def stage(self) -> None:
        """Everything: objects, records, and what the operator says of pods."""
        self.api.kubectl("create", "configmap", "chaperone-trust", "-n", NAMESPACE,
                         f"--from-literal=gateway-ca.crt={self.ca.pem}")  # fmt: skip
        self.api.kubectl(
            "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": OBJECTS + RIGHTS})
        )
        assert post(self.api, DECIDED, operator()).returncode == 0
        now_us = int(TODAY.timestamp() * 1_000_000)
        self.speaker.say(
            Covered("uid-billing", "billing-0", "billing-agent", now_us),
            Covered("uid-idle", "idle-0", "idle-agent", now_us),
            Uncovered("uid-old", "old-0", "old-agent", "ExistedBefore"),
            starts="+",  # a spreadsheet would take the hash for a formula, so it is not written as it is
        )
        asyncio.run(self.play())
        self.wait_signed()

    def wait_signed(self) -> None:
        """Until a checkpoint covers everything that was sent."""
        pause = threading.Event()
        ends = time.monotonic() + SIGNED_WITHIN_S
        (newest,) = self.api.collector.rows("SELECT max(idx) FROM entry")
        while self.api.collector.rows("SELECT ifnull(max(size), 0) FROM checkpoint")[0][0] <= newest[0]:
            assert time.monotonic() < ends, self.api.collector.log.read_text()[-2000:]
            pause.wait(0.1)


def _object(kind: str, name: str, spec: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "chaperone.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


OBJECTS = [
    *(
        _object("AgentIdentity", name, {
            "selector": {"matchLabels": {"app": name}}, "owner": {"name": "Billing on-call"}, "purpose": "-1+1",
        }, "agents")
        for name in ("billing-agent", "idle-agent")
    ),
    _object("AccessTarget", "orders-db", {
        "protocol": "PostgreSQL", "hosts": ["orders-db.data.svc"], "credential": {"secretRef": {"name": "orders"}},
        "allowedNamespaces": {"names": ["agents"]},
    }),
    _object("AccessPolicy", "billing", {
        "subjects": [{"identity": "billing-agent"}], "targets": [{"name": "orders-db"}],
        "rules": [{"name": "read", "action": "Allow", "match": {"effects": ["read"], "objects": ["public.orders"]}}],
    }, "agents"),
]  # fmt: skip


RIGHTS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "checkpoint-reader"},
        "rules": [{
            "apiGroups": ["evidence.chaperone.dev"], "resources": ["checkpoints/checkpoint"], "verbs": ["get"],
        }],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "auditor-2"},
        "subjects": [{"kind": "User", "name": "auditor-2", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "checkpoint-reader"},
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def api(gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvidenceApi]:
    """Its own, for its populations are signed by a key of its own, and its log holds this scene alone."""
    with (
        running(tmp_path_factory.mktemp("api-server")) as server,
        served(server, gateway_ca, tmp_path_factory.mktemp("evidence-api")) as found,
    ):
        establish(server)
        yield found


@pytest.fixture(scope="module")
def scene(api: EvidenceApi, gateway_ca: Authority) -> Scene:
    found = Scene(api, gateway_ca)
    found.stage()
    return found


def chaperone(api: EvidenceApi, folder: Path, *arguments: str, user: str = "") -> subprocess.CompletedProcess[str]:
    command = api.command(user, ("auditors",) if user else ())
    environment = os.environ | {"PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    more = ["--kubeconfig", command[command.index("--kubeconfig") + 1]] if arguments[1] == "soc2" else []
    return subprocess.run(
        [sys.executable, "-m", "chaperone_cli.main", *arguments, *more], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def soc2(api: EvidenceApi, output: Path, *more: str, user: str = "") -> subprocess.CompletedProcess[str]:
    period = ("--from", FIRST, "--to", LAST)
    return chaperone(api, output.parent, "report", "soc2", *period, "-n", "agents", "-o", str(output), *more, user=user)


@pytest.fixture(scope="module")
def package(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the scene, by a nonce of the auditor's."""
    output = tmp_path_factory.mktemp("soc2") / "package"
    done = soc2(scene.api, output, "--nonce", "given by the auditor")
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    """A copy of the package, to be tampered with."""
    return shutil.copytree(package, tmp_path / "package")


def model(folder: Path) -> Report:
    return msgspec.json.decode((folder / "controls.json").read_bytes(), type=Report)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(folder: Path, name: str, change: Callable[[list[list[str]]], None]) -> None:
    """Change a table, its first line of columns included."""
    with (folder / name).open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    change(lines)
    out = io.StringIO(newline="")
    csv.writer(out).writerows(lines)
    (folder / name).write_text(out.getvalue(), encoding="utf-8", newline="")


def forge(folder: Path) -> None:
    """Make everything agree again that does not need the evidence: what who tampers does, too."""
    report = model(folder)
    (folder / "manifest.json").unlink()
    build.write(folder, report)
    build.seal(folder, report)


def verdict(folder: Path) -> list[str]:
    return [str(one) for one in checking.check(folder).problems]


def test_a_package_holds(package: Path, scene: Scene) -> None:
    done = chaperone(scene.api, package.parent, "report", "check", str(package))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("report check: OK\n")
    done = chaperone(scene.api, package.parent, "report", "check", str(package), "--json")
    assert json.loads(done.stdout) | {"check": "OK", "problems": []} == json.loads(done.stdout)


def test_every_number_is_what_its_rows_say(package: Path) -> None:
    report = model(package)
    counts = {fact.id: fact.count for fact in report.facts}
    told = {
        "commands": 48, "allowed": 40, "approved": 4, "refused": 4, "sessions": 4, "totals-agree": 4, "pods": 3,
        "heard": 2, "uncovered": 1, "unheard": 1, "epochs": 1, "identities": 2, "policies": 1, "targets": 1,
        "unproved": 0, "totals-differ": 0, "ownerless": 0, "asked-again": 48, "reperformed": 48, "differs": 9,
        "not-repeatable": 0, "attested": 1, "unattested": 0, "approvals": 1, "approvals-gone": 1,
    }  # fmt: skip
    assert counts | told == counts
    strata = {one.name: (one.population, one.size, one.proved) for one in report.strata}
    assert strata == {"allowed": (40, 25, 25), "approved": (4, 4, 4), "refused": (4, 4, 4)}
    assert len(rows(package, "samples.csv")) == counts["samples"] == 33
    assert [one.id for one in report.criteria] == [
        "CC6.1", "CC6.2", "CC6.3", "CC6.6", "CC6.7", "CC6.8", "CC7.1", "CC7.2", "CC7.3", "CC7.4", "CC8.1", "A1.2",
        "C1.1", "C1.2",
    ]  # fmt: skip


def test_decisions_are_made_again_and_each_that_differs_is_a_row(package: Path) -> None:
    made = rows(package, "populations/reperformed.csv")
    listed = rows(package, "populations/commands.csv")
    assert [row["name"] for row in made] == [row["name"] for row in listed]
    differs = [row for row in made if row["verdict"] == "differs"]
    assert {(row["was"], row["again"]) for row in differs} == {
        ("Deny", "Allow"), ("RequireApproval", "Allow"), ("Allow", "Allow"),
    }  # fmt: skip
    assert {row["again_rule"] for row in differs} == {"read-orders of agents/billing"}
    texts = [line.text for one in model(package).criteria for line in one.established]
    assert [text for text in texts if text.startswith("Accuracy of decisions: those of the sampled sessions")]


def test_populations_rest_on_the_operators_signature(package: Path, scene: Scene) -> None:
    (row,) = rows(package, "populations/coverage.csv")
    assert row | {"namespace": "agents", "pods": "3", "heard": "2", "proved": "yes", "why": ""} == row
    assert row["operator"] == operator().vkey == (package / "evidence" / "operator.vkey").read_text().strip()
    trust = ("--trust", "evidence/trust.pem", "--log-policy", "evidence/log.policy")
    done = chaperone(scene.api, package, "verify", row["bundle"], *trust, "--operator-key", "evidence/operator.vkey")
    assert "verify: FAILED at pod old-0 uid-old: old-agent is Uncovered" in done.stdout  # and all else holds
    mine = package.parent / "operator.vkey"
    mine.write_text(operator(2).vkey)
    done = chaperone(scene.api, package.parent, "report", "check", str(package), "--operator-key", str(mine))
    assert done.returncode == 1
    assert "populations/coverage.csv row 1: agents: " in done.stdout


def test_a_sampled_row_names_a_bundle_that_verify_believes(package: Path, scene: Scene) -> None:
    (bundle,) = {
        row["bundle"] for row in rows(package, "samples.csv") if row["rank"] == "1" and row["stratum"] == "allowed"
    }
    trust = ("--trust", "evidence/trust.pem", "--log-policy", "evidence/log.policy")
    done = chaperone(scene.api, package, "verify", bundle, *trust)
    assert done.stdout.endswith("verify: OK\n"), done.stdout


def test_trestle_reads_the_assessment_results(package: Path) -> None:
    document = json.loads((package / "oscal" / "assessment-results.json").read_text())["assessment-results"]
    assert document["metadata"]["oscal-version"] == "1.1.3"
    document["metadata"]["oscal-version"] = OSCAL_VERSION  # what its models are of; they say the same of what is here
    found = AssessmentResults.model_validate(document)
    (result,) = found.results
    assert [one.title for one in result.observations] == [f"{one.id} {one.title}" for one in model(package).criteria]
    assert result.findings is None
    links = {one["href"] for seen in document["results"][0]["observations"] for one in seen["relevant-evidence"]}
    named = {f"#{one['uuid']}": one for one in document["back-matter"]["resources"]}
    assert links <= named.keys()
    for resource in named.values():
        for link in resource.get("rlinks", []):
            data = (package / "oscal" / link["href"]).read_bytes()
            assert link["hashes"][0]["value"] == hashlib.sha256(data).hexdigest()


def test_silence_is_attested_only_where_populations_span_the_period(package: Path) -> None:
    said = {row["identity"]: (row["verdict"], row["why"]) for row in rows(package, "populations/silence.csv")}
    assert said["billing-agent"][0] == "active"
    assert said["idle-agent"][0] == "attested", said
    assert said["old-agent"][0] == "unknown"


def test_no_cell_is_a_formula_and_the_page_holds_no_markup_of_records(package: Path) -> None:
    for path in package.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.reader(file):
                assert not [one for one in line if one.startswith(("=", "+", "-", "@"))], path
        assert "\x1b" not in path.read_text()
    rules = {row["rule"] for row in rows(package, "populations/commands.csv")}
    assert f"'{HOSTILE}" in rules
    assert {row["purpose"] for row in rows(package, "populations/identities.csv")} == {"'-1+1"}
    page = (package / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "\x1b" not in page


def test_the_page_leads_from_each_number_to_its_rows(package: Path) -> None:
    page = (package / "report.html").read_text()
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= anchors
    assert {f"rows-{fact.id}" for fact in model(package).facts if fact.count} <= anchors
    name = rows(package, "populations/refused.csv")[0]["name"]
    assert f"kubectl get command -n agents {name} -o yaml" in page
    assert "http://" not in page
    assert "https://" not in page.replace("https://evil.example", "")


def test_the_pdf_is_there_and_without_its_extra_that_is_said(package: Path, tmp_path: Path) -> None:
    assert (package / "report.pdf").read_bytes().startswith(b"%PDF-1.7")
    assert pdf.render(model(package), package) == (package / "report.pdf").read_bytes()
    program = (
        "import sys; sys.modules['typst'] = None\n"
        "from pathlib import Path; import msgspec; from chaperone_cli.report import build, model\n"
        "folder = Path(sys.argv[1])\n"
        "report = msgspec.json.decode((folder / 'controls.json').read_bytes(), type=model.Report)\n"
        "build.write(folder, report)\n"
    )
    bare = shutil.copytree(package, tmp_path / "bare", ignore=shutil.ignore_patterns("report.*"))
    done = subprocess.run([sys.executable, "-c", program, str(bare)], capture_output=True, text=True, check=True)
    assert done.stdout == "note: report.pdf needs the extra: install chaperone-cli[report]\n"
    assert (bare / "report.html").read_bytes() == (package / "report.html").read_bytes()
    assert not (bare / "report.pdf").exists()


def test_a_command_to_paste_runs_nothing_that_a_record_says() -> None:
    row = dict.fromkeys(tables.COLUMNS[tables.APPROVALS], "") | {"namespace": "agents", "name": "$(reboot); x"}
    assert shown.asked_by(tables.APPROVALS, row) == "kubectl get approvalrequest -n agents '$(reboot); x' -o yaml"


def test_one_nonce_draws_one_sample_and_another_one_another(package: Path, scene: Scene, tmp_path: Path) -> None:
    done = soc2(scene.api, tmp_path / "more", "--nonce", "another", "--sample", "10")
    assert done.returncode == 0, done.stderr
    strata = {one.name: (one.population, one.size) for one in model(tmp_path / "more").strata}
    assert strata == {"allowed": (40, 10), "approved": (4, 4), "refused": (4, 4)}
    drawn = [[row["name"] for row in rows(folder, "samples.csv")][:10] for folder in (package, tmp_path / "more")]
    assert drawn[0] != drawn[1]
    assert verdict(tmp_path / "more") == []


def test_who_may_not_read_everything_is_told_what_is_missing(scene: Scene, tmp_path: Path) -> None:
    done = soc2(scene.api, tmp_path / "less", user="auditor-2")
    assert done.returncode == 0, done.stderr
    for resource in ("agentidentities", "accesspolicies", "coverages", "populations"):
        assert f"note: {resource} could not be listed" in done.stdout
    assert "the gateway CA was not fetched (give --trust)" in done.stdout
    assert "25 of 40 (commands that policy allowed), 0 proved" in done.stdout
    said = {row["identity"]: row["verdict"] for row in rows(tmp_path / "less", "populations/silence.csv")}
    assert said == {"billing-agent": "active"}
    report = model(tmp_path / "less")
    assert {fact.id for fact in report.facts if fact.is_known} >= {"commands", "sessions", "reads"}
    assert not [fact.id for fact in report.facts if fact.file in (tables.PODS, tables.OBJECTS) and fact.is_known]
    assert not report.log.is_verified
    texts = [line.text for one in report.criteria for line in one.established]
    assert not [text for text in texts if text.startswith(("Accuracy", "Completeness of pods", "Completeness of rec"))]
    assert "Completeness of pods: populations or coverages could not be listed." in [
        line.text for one in report.criteria for line in one.not_established
    ]
    assert verdict(tmp_path / "less") == []


def test_a_directory_in_use_and_a_period_that_is_none_are_refused(scene: Scene, package: Path, tmp_path: Path) -> None:
    done = soc2(scene.api, package)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    for first, last, why in (("yesterday", LAST, "A day is written as"), (LAST, FIRST, "before it begins")):
        output = tmp_path / "none"
        done = chaperone(scene.api, tmp_path, "report", "soc2", "--from", first, "--to", last, "-o", str(output))
        assert done.returncode == 1
        assert why in done.stderr
        assert not output.exists()


def _change_row(folder: Path) -> None:
    rewrite(folder, "populations/commands.csv", lambda lines: lines[3].__setitem__(lines[0].index("decision"), "Deny"))


def _drop_row(folder: Path) -> None:
    rewrite(folder, "populations/commands.csv", lambda lines: lines.pop(20))


def _change_nonce(folder: Path) -> None:
    report = model(folder)
    changed = msgspec.structs.replace(report.parameters, nonce="another")
    (folder / "controls.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(report, parameters=changed)))


def _change_number(folder: Path) -> None:
    report = model(folder)
    report.fact("refused").count = 0
    (folder / "controls.json").write_bytes(msgspec.json.encode(report))


def _change_text(folder: Path) -> None:
    report = model(folder)
    report.criteria[0].not_established.clear()
    (folder / "controls.json").write_bytes(msgspec.json.encode(report))


def _cut_bundle(folder: Path) -> None:
    bundle = min((folder / "evidence").glob("*.tar"))
    data = bytearray(bundle.read_bytes())
    place = data.index(b"read-orders")
    data[place : place + 4] = b"READ"
    bundle.write_bytes(data)


def _change_page(folder: Path) -> None:
    page = folder / "report.html"
    page.write_text(page.read_text().replace("Not established", "Established"))


def _hide_difference(folder: Path) -> None:
    def hide(lines: list[list[str]]) -> None:
        columns = lines[0]
        line = next(one for one in lines if one[columns.index("verdict")] == "differs")
        line[columns.index("verdict")] = "agrees"

    rewrite(folder, "populations/reperformed.csv", hide)
    report = model(folder)
    report.fact("differs").count -= 1
    (folder / "controls.json").write_bytes(msgspec.json.encode(report))


def _drop_decision(folder: Path) -> None:
    rewrite(folder, "populations/reperformed.csv", lambda lines: lines.pop())
    report = model(folder)
    for name in ("asked-again", "reperformed"):
        report.fact(name).count -= 1
    (folder / "controls.json").write_bytes(msgspec.json.encode(report))


def _change_epoch(folder: Path) -> None:
    rewrite(folder, "populations/epochs.csv", lambda lines: lines[1].__setitem__(lines[0].index("hash"), "x" * 44))


def _change_policy(folder: Path) -> None:
    """One byte of the policy in each bundle."""
    for bundle in (folder / "evidence").glob("*.tar"):
        data = bytearray(bundle.read_bytes())
        place = data.index(b".seg", data.index(b"revisions/agents/")) // 512 * 512 + 1024
        data[place] ^= 1
        bundle.write_bytes(data)


@pytest.mark.parametrize(
    ("tamper", "file"),
    [
        (_change_row, "populations/commands.csv"), (_drop_row, "populations/commands.csv"),
        (_change_nonce, "controls.json"), (_change_number, "controls.json"), (_change_text, "controls.json"),
        (_cut_bundle, "evidence/"), (_change_page, "report.html"),
    ],
)  # fmt: skip
def test_what_is_changed_is_named_by_its_file(copy: Path, tamper: Callable[[Path], None], file: str) -> None:
    tamper(copy)
    assert verdict(copy)[0].startswith(file)


def test_what_is_missing_and_what_is_added_is_named(copy: Path, scene: Scene) -> None:
    bundle = min((copy / "evidence").glob("*.tar"))
    bundle.unlink()
    (copy / "evidence" / "more.txt").write_text("x")
    problems = verdict(copy)
    assert problems[0] == f"evidence/{bundle.name}: manifest.json names it, and it is not here"
    assert "evidence/more.txt: manifest.json does not name it" in problems
    done = chaperone(scene.api, copy.parent, "report", "check", str(copy))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"report check: FAILED at {problems[0]}"


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_change_row, "populations/commands.csv row 3: c-0"),
        (_drop_row, "populations/sessions.csv row 2: session"),
        (_change_nonce, "is drawn here"),
        (_change_number, "controls.json: it says 0 for “Commands that were refused” (refused)"),
        (_change_text, "controls.json: its criteria do not say what this version says"),
        (_cut_bundle, "samples.csv row"),
        (_hide_difference, "populations/reperformed.csv row "),
        (_drop_decision, "populations/reperformed.csv row 48: "),
        (_change_epoch, "populations/coverage.csv row 1: agents: proved is yes, and should be no (epoch 1 of"),
        (_change_policy, "(the revision of policy that decided it is not here, or does not hold)"),
    ],
)  # fmt: skip
def test_who_makes_hashes_and_page_agree_is_found_by_the_evidence(
    copy: Path, tamper: Callable[[Path], None], said: str
) -> None:
    tamper(copy)
    forge(copy)
    problems = verdict(copy)
    assert said in "\n".join(problems), problems


def test_a_changed_row_of_a_sampled_command_is_held_against_its_record(copy: Path) -> None:
    name = rows(copy, "samples.csv")[0]["name"]

    def change(lines: list[list[str]]) -> None:
        for line in lines[1:]:
            if line[0] == name:
                line[lines[0].index("sha256")] = "0" * 64

    rewrite(copy, "populations/commands.csv", change)
    forge(copy)
    (problem, *_) = verdict(copy)
    assert problem.startswith("samples.csv row 1:")
    assert "the record says another sha256" in problem


def test_a_command_that_no_row_names_is_found_in_the_stream_of_a_sampled_one(copy: Path) -> None:
    sampled = {row["name"] for row in rows(copy, "samples.csv")}
    gone = next(row for row in rows(copy, "populations/commands.csv") if row["name"] not in sampled)

    def drop(lines: list[list[str]]) -> None:
        lines[:] = [line for line in lines if line[0] != gone["name"]]

    def count(lines: list[list[str]]) -> None:
        for line in lines[1:]:
            if line[0] == gone["session"]:
                line[lines[0].index("counted")] = line[lines[0].index("commands")] = "11"

    rewrite(copy, "populations/commands.csv", drop)
    rewrite(copy, "populations/sessions.csv", count)
    report = model(copy)
    counts = tables.count(copy, report.facts)
    for fact in report.facts:
        fact.count = counts[fact.id]
    (copy / "controls.json").write_bytes(msgspec.json.encode(report))
    forge(copy)
    problems = "\n".join(verdict(copy))
    assert f"record {gone['seq']} of stream {gone['stream']} is a command of this period" in problems


def test_a_bundle_of_another_session_proves_nothing(copy: Path) -> None:
    one, other = sorted((copy / "evidence").glob("*.tar"))[:2]
    stream = Path(one).read_bytes()
    other.write_bytes(stream[: len(stream) // 2])
    forge(copy)
    problems = verdict(copy)
    assert problems[0].startswith("samples.csv row")
    assert "The bundle is cut" in problems[0]


def test_a_link_is_no_file_of_a_package(copy: Path) -> None:
    (copy / "samples.csv").rename(copy.parent / "samples.csv")
    (copy / "samples.csv").symlink_to(copy.parent / "samples.csv")
    assert verdict(copy)[0] == "samples.csv: it is a link, not a file"


def test_what_is_no_package_cannot_be_checked(scene: Scene, tmp_path: Path) -> None:
    done = chaperone(scene.api, tmp_path, "report", "check", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout.startswith("report check: CANNOT CHECK: manifest.json cannot be read")
