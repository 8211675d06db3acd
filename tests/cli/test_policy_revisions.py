"""Policy in bundles: what the operator signed, found again offline, and every decision made again with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from manifests import rule
from pki import Authority
from revised import Decided, Revised, operator, revised, sealed
from sealed_bundle import Sealed, pack

from chaperone_cli.main import main
from chaperone_evidence import entry, record, statement
from chaperone_evidence.revision import read_entry

pytestmark = pytest.mark.peer

READ = [rule("read-orders", "Allow", ["read"], ["public.orders"])]
STRICT = [*READ, rule("no-deletes", "Deny", ["delete"], ["public.*"])]
ONE, TWO = revised(READ), revised(STRICT, now_ms=2000)


class Auditor:
    """A bundle, and what an auditor has from elsewhere."""

    def __init__(self, folder: Path, ca: Authority, found: Sealed) -> None:
        self.folder, self.files = folder, found.bundles["it"]
        (folder / "ca.pem").write_text(ca.pem)
        (folder / "log.policy").write_text(found.policy)
        (folder / "operator.vkey").write_text(operator().vkey + "\n")

    def write(self, files: dict[str, bytes] | None = None, name: str = "bundle.tar") -> Path:
        (self.folder / name).write_bytes(pack(files or self.files))
        return self.folder / name

    def run(self, command: str, files: dict[str, bytes] | None = None, *more: str) -> Result:
        given = ["--trust", self.folder / "ca.pem", "--log-policy", self.folder / "log.policy"]
        given += ["--operator-key", self.folder / "operator.vkey", *more]
        return CliRunner().invoke(main, [command, str(self.write(files)), *map(str, given)])

    def companion(self, files: dict[str, bytes]) -> str:
        (self.folder / "verify.py").write_bytes(self.files["verify.py"])
        command = [sys.executable, "-P", "verify.py", str(self.write(files)), "--trust", "ca.pem"]
        done = subprocess.run(
            [*command, "--log-policy", "log.policy"], cwd=self.folder, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        return done.stdout

    def reperformed(self, *more: str) -> dict[str, Any]:
        done = self.run("reperform", None, "-o", "json", *more)
        found: dict[str, Any] = json.loads(done.output)
        assert done.exit_code in {0, 1, 2}
        assert found["ok"] is (done.exit_code == 0)
        return found


@pytest.fixture
def auditor(tmp_path: Path) -> Auditor:
    """One command of each of two revisions."""
    ca = Authority("gateway CA")
    made = Decided(ca)
    made.intend(ONE.revision)
    made.intend(TWO.revision, rule="read-orders")
    return Auditor(tmp_path, ca, sealed(tmp_path, ca, made, [ONE, TWO], operator()))


def where(found: Revised) -> str:
    serial = {ONE.revision: 1000, TWO.revision: 2000}[found.revision]
    return f"revisions/agents/{serial:016d}"


# --- verify -----------------------------------------------------------------------------------------


def test_a_bundle_has_the_policy_that_its_commands_name_and_verify_says_so(auditor: Auditor) -> None:
    assert {f"{where(one)}.{ending}" for one in (ONE, TWO) for ending in ("entry", "seg", "tlog-proof")} <= set(
        auditor.files
    )
    assert "revisions/absent.txt" not in auditor.files
    done = auditor.run("verify")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "verify: OK"), done.output
    assert re.search(rf"^policy {ONE.revision} of agents: serial 1000, 1 identities, entry 0 of the log$", done.output,
                     re.M)  # fmt: skip
    assert auditor.companion(auditor.files).endswith("verify: OK\n")
    said = read_entry(auditor.files[f"{where(TWO)}.entry"])
    assert (said.namespace, said.revision, said.serial, said.identities) == ("agents", TWO.revision, 2000, 1)
    bodies = list(entry.body_frames(auditor.files[f"{where(TWO)}.seg"]))
    assert [one[entry.SALT_BYTES :] for one in bodies] == [getattr(TWO.files, one) for one in ("bundle", "gateway",
                                                                                              "notes")]  # fmt: skip
    assert not any(b"secret" in one.lower() for one in bodies)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [40, 60, -400, -20])
def test_a_flipped_byte_of_a_file_is_found_and_the_revision_named(auditor: Auditor, at: int) -> None:
    name = f"{where(TWO)}.seg"
    changed = auditor.files | {name: flipped(auditor.files[name], at % len(auditor.files[name]))}
    done = auditor.run("verify", changed)
    assert done.exit_code == 1, done.output
    found = rf"FAILED at policy {TWO.revision} of agents, serial 2000: The (file \w+ is not the one|body at byte)"
    assert re.search(found, done.output), done.output
    assert f"the policy {where(TWO)}.entry does not hold" in auditor.companion(changed)


def test_a_revision_that_was_dropped_is_named(auditor: Auditor) -> None:
    whole = {name: data for name, data in auditor.files.items() if not name.startswith(where(TWO))}
    done = auditor.run("verify", whole)
    assert done.exit_code == 1
    assert f"FAILED at policy {TWO.revision} of agents: it is not here, and record " in done.output
    none = {name: data for name, data in auditor.files.items() if not name.startswith("revisions/")}
    done = auditor.run("verify", none)
    assert done.exit_code == 1
    assert all(f"policy {one.revision} of agents: it is not here" in done.output for one in (ONE, TWO))
    half = {name: data for name, data in auditor.files.items() if name != f"{where(TWO)}.entry"}
    done = auditor.run("verify", half)
    assert "policy of agents, serial 2000: it is not here whole: seg, tlog-proof alone" in done.output


def test_a_revision_that_another_key_signed_is_named(auditor: Auditor) -> None:
    """Whoever holds the log's key, too, could make entry and proof fit; the operator's note stays what it is."""
    thief = operator(2)
    data = revised(STRICT, now_ms=2000, signer=thief)
    salts = [bytes([number]) * 32 for number in range(3)]
    frames = b"".join(
        entry.body_frame(salt, getattr(data.files, name))
        for salt, name in zip(salts, ("bundle", "gateway", "notes"), strict=True)
    )
    said = data.given(thief).found.statement(salts, 1)
    changed = auditor.files | {
        f"{where(TWO)}.entry": statement.encode(said).encode(), f"{where(TWO)}.seg": frames,
    }  # fmt: skip
    done = auditor.run("verify", changed)
    assert done.exit_code == 1
    where_it_is = f"FAILED at policy {TWO.revision} of agents, serial 2000: "
    assert f"{where_it_is}The note of billing-agent is not signed by {operator().vkey}" in done.output
    (auditor.folder / "operator.vkey").write_text(thief.vkey)
    done = auditor.run("verify", changed)
    assert "nothing shows that the log has it" in done.output
    assert f"FAILED at policy {ONE.revision} of agents, serial 1000: The note of" in done.output


@pytest.mark.parametrize("what", ["serial", "revision", "namespace", "identities", "bundle_sha256"])
def test_an_entry_that_says_another_thing_than_the_operator_is_named(auditor: Auditor, what: str) -> None:
    name = f"{where(TWO)}.entry"
    said = read_entry(auditor.files[name])
    other = {"serial": 2001, "revision": "0" * 16, "namespace": "others", "identities": 2, "bundle_sha256": "0" * 64}
    changed = msgspec.structs.replace(said, **{what: other[what]})
    done = auditor.run("verify", auditor.files | {name: statement.encode(changed).encode()})
    assert done.exit_code == 1
    assert "serial 2000: " in done.output


def test_what_the_log_does_not_have_is_said_and_an_older_gateway_owes_none(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    made = Decided(ca)
    made.intend(ONE.revision)
    made.intend(TWO.revision)
    auditor = Auditor(tmp_path, ca, sealed(tmp_path, ca, made, [ONE], operator()))
    assert auditor.files["revisions/absent.txt"] == f"agents/{TWO.revision}\n".encode()
    done = auditor.run("verify")
    assert done.exit_code == 0
    assert f"note: policy {TWO.revision} of agents is not in the log, says the bundle, and record " in done.output
    assert auditor.reperformed()["not_repeatable"] == {
        "the log does not have the revision of policy that decided it": 1
    }


def test_gateways_of_an_earlier_version_owe_no_policy(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    made = Decided(ca, serial=0)
    made.intend(ONE.revision)
    auditor = Auditor(tmp_path, ca, sealed(tmp_path, ca, made, [], operator()))
    files = {name: data for name, data in auditor.files.items() if not name.startswith("revisions/")}
    done = auditor.run("verify", files)
    assert (done.exit_code, "nobody had to keep them" in done.output) == (0, True)


# --- reperform --------------------------------------------------------------------------------------


def test_every_decision_is_made_again_by_its_own_revision(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    made = Decided(ca)
    delete = (record.AccessEntry("delete", "public.orders"),)
    made.intend(ONE.revision)
    made.intend(ONE.revision, "DELETE FROM orders", accesses=delete, decision="Deny", policy="", rule="uncovered")
    made.intend(TWO.revision, "DELETE FROM orders", accesses=delete, decision="Deny", rule="no-deletes")
    auditor = Auditor(tmp_path, ca, sealed(tmp_path, ca, made, [ONE, TWO], operator()))
    found = auditor.reperformed()
    assert (found["commands"], found["reperformed"], found["differences"]) == (3, 3, 0)
    assert (found["ok"], found["exceptions"], found["not_repeatable"]) == (True, [], {})
    done = auditor.run("reperform")
    assert done.output.splitlines()[-1] == (
        "reperform: 3 of 3 decisions re-performed, 0 differences, 0 not repeatable"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "was", "again"),
    [
        ({"decision": "Deny"}, "Deny by read-orders of agents/billing", "Allow by read-orders of agents/billing"),
        ({"rule": "another"}, "Allow by another of agents/billing", "Allow by read-orders of agents/billing"),
        ({"policy": "agents/other"}, "Allow by read-orders of agents/other", "Allow by read-orders of agents/billing"),
        (
            {"accesses": (record.AccessEntry("modify", "public.orders"),)},
            "Allow by read-orders of agents/billing", "Deny by uncovered",
        ),
    ],
)  # fmt: skip
def test_a_decision_that_policy_did_not_make_is_an_exception_that_names_the_command(
    tmp_path: Path, changed: dict[str, Any], was: str, again: str
) -> None:
    ca = Authority("gateway CA")
    made = Decided(ca)
    made.intend(ONE.revision)
    made.intend(ONE.revision, **changed)
    auditor = Auditor(tmp_path, ca, sealed(tmp_path, ca, made, [ONE], operator()))
    done = auditor.run("reperform")
    assert done.exit_code == 1
    assert f"{was}, re-performed {again}, revision {ONE.revision} of agents" in done.output
    (exception,) = auditor.reperformed()["exceptions"]
    assert (exception["session"], exception["stream"]) == (made.session, made.stream.id)
    assert f"record {exception['seq']} of stream {made.stream.id}" in done.output
    assert "reperform: 2 of 2 decisions re-performed, 1 differences, 0 not repeatable\n" in done.output


LIMITED = [{"name": "few", "action": "Allow", "match": {"effects": ["read"], "require": {"maxEstimatedRows": 10}}}]
ONCE = [{"name": "once", "action": "Allow", "match": {
    "effects": ["read"], "require": {"maxRepeats": {"count": 1, "per": "1d"}}}}]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "name", "around", "decision", "outcome"),
    [
        (LIMITED, "few", None, "Allow", "an estimate of rows decides, and estimates are not recorded"),
        (LIMITED, "few", record.Circumstances(minute=29_000_000, rows=3), "Allow", "agrees"),
        (LIMITED, "few", record.Circumstances(minute=29_000_000, rows=30), "Allow", "differs"),
        (ONCE, "once", None, "Allow", "it depends on how often a rule was used before"),
        (ONCE, "once", record.Circumstances(minute=29_000_000), "Allow", "agrees"),
        (ONCE, "once", record.Circumstances(minute=29_000_000, uses=(record.Use("agents/billing/once", 1),)), "Allow",
         "differs"),
    ],
)  # fmt: skip
def test_what_decided_beside_the_command_is_taken_from_the_record_or_said_to_be_missing(
    tmp_path: Path, rules: list[Any], name: str, around: Any, decision: str, outcome: str
) -> None:
    ca = Authority("gateway CA")
    made, found = Decided(ca), revised(rules)
    more = {} if around is None else {"circumstances": around}
    made.intend(found.revision, rule=name, decision=decision, **more)
    auditor = Auditor(tmp_path, ca, sealed(tmp_path, ca, made, [found], operator()))
    said = auditor.reperformed()
    if outcome in ("agrees", "differs"):
        assert (said["reperformed"], said["differences"]) == (1, int(outcome == "differs")), said
    else:
        assert said["not_repeatable"] == {outcome: 1}
        assert auditor.run("reperform").exit_code == 2  # nothing at all could be told


def test_evidence_that_does_not_hold_is_not_re_performed(auditor: Auditor) -> None:
    name = next(name for name in auditor.files if name.startswith("streams/"))
    changed = auditor.files | {name: auditor.files[name].replace(b'"decision":"Allow"', b'"decision":"Deny"')}
    done = auditor.run("reperform", changed)
    assert done.exit_code == 1
    assert "evidence: stream " in done.output
    whole = {name: data for name, data in auditor.files.items() if not name.startswith(where(TWO))}
    done = auditor.run("reperform", whole)
    assert done.exit_code == 1
    assert "not repeatable: 1 × the revision of policy that decided it is not here, or does not hold" in done.output
    assert f"evidence: policy {TWO.revision} of agents: it is not here" in done.output


def test_a_figure_says_what_it_rests_on_that_nobody_brought(auditor: Auditor) -> None:
    given = ["--trust", str(auditor.folder / "ca.pem")]
    done = CliRunner().invoke(main, ["reperform", str(auditor.write()), *given])
    assert done.exit_code == 0
    assert "note: give the log's keys by --log-policy" in done.output
    assert "note: the operator key lay in the bundle; give --operator-key" in done.output
    assert "note:" not in auditor.run("reperform").output
