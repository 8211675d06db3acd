"""`chaperone diff`: two sessions, and two revisions of policy over what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from manifests import rule
from pki import Authority
from revised import Decided, operator, revised, sealed
from sealed_bundle import pack

from chaperone_cli.main import main
from chaperone_evidence import record

pytestmark = pytest.mark.peer

READ = [rule("read-orders", "Allow", ["read"], ["public.orders"])]
ONE = revised([*READ, rule("fix", "Allow", ["modify"], ["public.orders"])])
TWO = revised([*READ, rule("ask", "RequireApproval", ["modify"], approval={"groups": ["leads"]})], now_ms=2000)
BOTH = (record.AccessEntry("modify", "public.orders"), record.AccessEntry("read", "public.orders"))
MODIFY = {"accesses": (record.AccessEntry("modify", "public.orders"),), "rule": "fix"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def bundle(folder: Path, *texts: str, **changed: Any) -> tuple[Path, Decided]:
    """A session that sent these texts, the last of them changed."""
    ca = Authority("gateway CA")
    folder.mkdir()
    made = Decided(ca)
    for number, text in enumerate(texts, 1):
        made.intend(ONE.revision, text, **(changed if number == len(texts) else {}))
    found = sealed(folder, ca, made, [ONE, TWO], operator())
    path = folder / f"{made.session}.tar"
    path.write_bytes(pack(found.bundles["it"]))
    return path, made


def test_two_sessions_that_did_the_same_are_the_same(tmp_path: Path) -> None:
    one, _ = bundle(tmp_path / "one", "SELECT 1", "SELECT 2")
    other, _ = bundle(tmp_path / "other", "SELECT 2", "SELECT 1")  # in another order
    done = run(one, other)
    assert (done.exit_code, "diff: same: 2 and 2 commands" in done.output) == (0, True), done.output
    assert json.loads(run(one, other, "--json").output) == {
        "same": True, "first": 2, "second": 2, "rows": [], "texts": [],
    }  # fmt: skip


def test_what_one_session_did_that_the_other_did_not_is_counted_by_what_it_did(tmp_path: Path) -> None:
    one, _ = bundle(tmp_path / "one", "SELECT 1", "SELECT 1")
    other, _ = bundle(tmp_path / "other", "SELECT 1", "UPDATE orders SET paid = true", **MODIFY, decision="Deny")
    done = run(one, other)
    assert done.exit_code == 1
    lines = [line.split() for line in done.output.splitlines()]
    assert lines[:3] == [
        ["1", "2", "TARGET", "KIND", "EFFECTS", "DECISION", "OBJECTS"],
        ["0", "1", "orders-db", "query", "modify", "Deny", "public.orders"],
        ["2", "1", "orders-db", "query", "read", "Allow", "public.orders"],
    ]
    assert "0 × in 1, 1 × in 2 at orders-db: UPDATE orders SET paid = true" in done.output
    assert "diff: different: 2 and 2 commands, 2 kinds and 2 texts differ" in done.output
    found = json.loads(run(one, other, "--json").output)
    assert found["rows"][0]["did"] | {"effects": "modify", "decision": "Deny"} == found["rows"][0]["did"]


def test_decisions_that_two_revisions_make_differently_are_named(tmp_path: Path) -> None:
    path, _ = bundle(tmp_path / "one", "SELECT id FROM orders", "UPDATE orders SET id = 1", **MODIFY)
    key = tmp_path / "operator.vkey"
    key.write_text(operator().vkey)
    assert run("--revision", ONE.revision, "--revision", ONE.revision, path, "--operator-key", key).exit_code == 0
    # The bundle has the revision that its commands name; the other comes from another one.
    other, _ = bundle(tmp_path / "other", "SELECT id FROM orders")
    asked = ("--revision", ONE.revision, "--revision", TWO.revision)
    done = run(*asked, path, other)
    assert done.exit_code == 2
    assert f"Revision {TWO.revision} is not in the evidence" in done.output


def test_two_revisions_that_are_there_are_compared_over_every_command(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    made = Decided(ca)
    made.intend(ONE.revision)
    for _ in range(2):
        made.intend(ONE.revision, "UPDATE orders SET id = 1 WHERE id = 2", accesses=BOTH, rule="fix")
    made.intend(TWO.revision, rule="limit:commandsPerMinute", decision="Deny")
    path = tmp_path / "it.tar"
    path.write_bytes(pack(sealed(tmp_path, ca, made, [ONE, TWO], operator()).bundles["it"]))
    asked = ("--revision", ONE.revision, "--revision", TWO.revision, path)
    done = run(*asked)
    assert done.exit_code == 1, done.output
    assert "change: 2 × Allow by fix of agents/billing → RequireApproval by ask of agents/billing\n" in done.output
    assert "not repeatable: 1 × it was refused by limit:commandsPerMinute" in done.output
    assert "diff: 2 of 3 decisions differ, of 4 commands\n" in done.output
    found = json.loads(run(*asked, "--json").output)
    assert (found["same"], found["differences"], found["changes"][0]["session"]) == (False, 2, made.session)
    (tmp_path / "thief.vkey").write_text(operator(2).vkey)
    done = run(*asked, "--operator-key", tmp_path / "thief.vkey")
    assert (done.exit_code, "is not signed by" in done.output) == (2, True)


@pytest.mark.parametrize("arguments", [(), ("one",), ("one", "two", "three"), ("--revision", "a", "one")])
def test_what_cannot_be_compared_is_said(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_what_is_no_session_is_said() -> None:
    done = run("nobody", "nothing")
    assert (done.exit_code, "nobody is neither the name of a session nor a bundle" in done.output) == (2, True)
