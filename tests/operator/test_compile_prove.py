"""Tests that a policy brings with it: run when it is written, and what their failures say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from manifests import Object, cluster_policy, policy, rule

from chaperone_operator.compile import facts
from chaperone_operator.compile.check import alone

pytestmark = pytest.mark.peer

WORK = {"days": ["Mon-Fri"], "from": "07:00", "to": "19:00", "timezone": "Europe/Berlin"}
RULES = [
    rule("read", "Allow", ["read"], ["public.*"]),
    {
        "name": "few",
        "action": "Allow",
        "match": {"effects": ["modify"], "require": {"where": True, "maxEstimatedRows": 3}},
        "windows": [WORK],
    },
    {
        "name": "some",
        "action": "Allow",
        "match": {"effects": ["create"], "require": {"maxRepeats": {"count": 2, "per": "1d"}}},
    },
    rule("never", "Deny", ["destroy"], message="Ask the DBA."),
]  # fmt: skip
NOON = "2026-07-03T10:00:00Z"


def case(effect: str, action: str, decides: str | None = None, **facts: Any) -> Object:
    access = {"effect": effect, "object": "public.a"} | {name: facts.pop(name) for name in ("where",) if name in facts}
    expect = {"action": action} | ({"rule": decides} if decides else {})
    return {"name": "case", "at": NOON, "accesses": [access], "expect": expect} | facts


def statement(sql: str, action: str, decides: str | None = None, **more: Any) -> Object:
    made = case("read", action, decides, **more)
    del made["accesses"]
    return made | {"sql": sql}


def problems(*tests: Object, **spec: Any) -> list[tuple[str, str]]:
    return [(one.reason, one.message) for one in alone(policy(RULES, tests=list(tests), **spec))]


@pytest.mark.parametrize(
    "test",
    [
        case("read", "Allow", "read"),
        case("read", "Allow"),
        case("delete", "Deny", "uncovered"),
        case("destroy", "Deny", "never"),
        case("modify", "Allow", "few", where=True, rows=3),
        case("modify", "Deny", "uncovered", where=True, rows=4),
        case("modify", "Deny", "uncovered", rows=3),
        case("modify", "Deny", "uncovered", where=True, rows=3, at="2026-07-03T17:00:00Z"),
        case("modify", "Deny", "uncovered", where=True, rows=3, at="2026-07-03T19:00:00+02:00"),
        case("create", "Allow", "some", repeats={"some": 1}),
        case("create", "Deny", "uncovered", repeats={"some": 2}),
        statement("SELECT count(*) FROM orders o JOIN public.items USING (id)", "Allow", "read"),
        statement("SELECT * FROM other.orders", "Deny", "uncovered"),
        statement("UPDATE orders SET paid = true WHERE id = 7", "Allow", rows=3),
        statement("UPDATE orders SET paid = true", "Deny", "uncovered", rows=3),
        statement("INSERT INTO orders VALUES (1)", "Allow", "some", repeats={"some": 1}),
        statement("SELECT 1; /* x */ DROP TABLE orders", "Deny", "never"),
        statement("DO $$ BEGIN EXECUTE 'DROP TABLE orders'; END $$", "Deny", "uncovered"),
        statement("SELECT 'é' FROM orders", "Allow", "read"),
    ],
    ids=str,
)
def test_what_a_test_expects_is_what_the_policy_says_or_it_is_refused(test: Object) -> None:
    assert problems(test) == []
    wrong = test | {"expect": {"action": "Deny" if test["expect"]["action"] == "Allow" else "Allow"}}
    ((reason, message),) = problems(wrong)
    assert reason == "TestFails"
    assert message.startswith("spec.tests[0] (case): expected ")


def test_a_failure_says_what_the_policy_says_instead() -> None:
    ((_, message),) = problems(case("read", "Allow", "read"), case("destroy", "Allow", "read"))
    assert message == "spec.tests[1] (case): expected Allow by read, but it is Deny by never. Ask the DBA."


def test_an_observed_policy_and_its_rego_are_tested_as_if_in_force() -> None:
    text = 'deny contains "not you" if input.identity == "other"'
    two = [{"identity": "billing-agent"}, {"identity": "other"}]
    tests = (case("read", "Allow"), case("read", "Deny", "rego", identity="other"), case("delete", "Deny"))
    assert problems(*tests, subjects=two, rego=text, mode="Observe") == []


def test_tests_of_a_cluster_policy_are_run_too() -> None:
    made = cluster_policy(RULES, tests=[case("read", "Deny")])
    assert [one.reason for one in alone(made)] == ["TestFails"]


@pytest.mark.parametrize(
    ("test", "fragment"),
    [
        (case("read", "Allow") | {"accesses": []}, "spec.tests[0].accesses: 1 to 20"),
        (case("eat", "Allow"), "spec.tests[0].accesses[0].effect: 'eat' is no effect"),
        (case("read", "Allow", "reed"), "spec.tests[0].expect.rule: the policy has no rule 'reed'"),
        (case("read", "Allow", repeats={"reed": 1}), "spec.tests[0].repeats: the policy has no rule 'reed'"),
        (case("read", "Allow", identity="who"), "spec.tests[0].identity: 'who' is none of the policy's subjects"),
        (case("read", "Allow", target="it"), "spec.tests[0].target: 'it' is none of the policy's targets"),
        (case("read", "Allow", at="noon"), "spec.tests[0].at: 'noon' is no moment"),
        (case("read", "Allow", at="2026-07-03T10:00:00"), "is no moment such as"),
        (case("read", "Allow") | {"sql": "SELECT 1"}, "spec.tests[0]: either sql, a statement, or accesses"),
        ({"name": "case", "expect": {"action": "Deny"}}, "spec.tests[0]: either sql, a statement, or accesses"),
        (statement("", "Allow"), "spec.tests[0].sql: 1 to 4096 characters"),
        (statement("é" * 4097, "Allow"), "spec.tests[0].sql: 1 to 4096 characters"),
    ],
)
def test_tests_that_cannot_be_run_are_refused_in_words(test: Object, fragment: str) -> None:
    ((reason, message),) = problems(test)
    assert reason == "BadTest"
    assert fragment in message


@pytest.mark.parametrize(
    ("sql", "fragment"),
    [
        ("DELET FROM orders", "does not parse as PostgreSQL"),
        ("SELECT 1 \0", "contains a NUL byte"),
        ("SELECT " + "(" * 4000, "does not parse as PostgreSQL"),
        ("SELECT * FROM " + ",".join(f"t{i}" for i in range(51)), "It touches more than 50 objects"),
    ],
)
def test_a_slip_in_a_statement_fails_its_test_although_a_gateway_would_deny_it(sql: str, fragment: str) -> None:
    fine = [case("read", "Allow"), statement("SELECT * FROM orders", "Allow")]
    ((reason, message),) = problems(*fine, statement(sql, "Deny"))
    assert reason == "TestFails"
    assert message.startswith("spec.tests[2] (case): its statement cannot be read: ")
    assert fragment in message


def test_a_failure_says_what_a_gateway_would_not_understand_of_the_statement() -> None:
    ((_, message),) = problems(statement("SELECT frobnicate(1)", "Allow"))
    assert message.startswith("spec.tests[0] (case): expected Allow, but it is Deny by uncovered.")
    assert "frobnicate" in message


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by a signal .Segmentation fault."),
        ("sys.exit(3)", "ended with status 3"),
        ("bytearray(1 << 30)", "ended with status 1"),
        ("open(os.environ['HOME'])", "ended with status 1"),
        ("time.sleep(100)", "takes longer than 15 s"),
        ("print('[]', flush=True)", "no answer that can be read"),
        ("print('{', end='', flush=True), os.abort()", "ended by a signal .Aborted."),
        ("sys.exit(0)", "ended with status 0"),
    ],
)
def test_a_reader_that_is_brought_down_is_told_by_the_statement_that_did_it(
    body: str, fragment: str, tmp_path: Path
) -> None:
    """The program that reads has its limits, and a body in the place of the parser that a hostile text has seized."""
    made = tmp_path / "seized.py"
    made.write_text(
        "import os, signal, sys, time\n"
        "from chaperone_sidecar.protocols.postgresql import facts\n"
        "whole, line = facts.read, facts.msgspec.json.encode(facts.read('SELECT 1')).decode()\n"
        f"def read(text):\n    return whole(text) if text != 'seize' else ({body},)\n"
        "facts.read = read\n"
        "facts.main()\n"
    )
    with pytest.raises(facts.NoFacts, match=fragment) as caught:
        facts.read(["SELECT 1", "seize", "SELECT 2"], [sys.executable, "-I", str(made)], timeout_s=15)
    assert caught.value.index == 1


def test_a_statement_that_cannot_be_read_now_may_be_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad luck is not remembered, nor does it count as passed."""
    test = statement("SELECT * FROM orders WHERE id = 1", "Deny", "never", name="once")
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nowhere/python3")
        ((reason, message),) = problems(test)
    why = "its statement cannot be read: its reader cannot be started (FileNotFoundError)"
    assert (reason, message) == ("TestFails", f"spec.tests[0] (once): {why}")
    assert problems(test)[0][1].startswith("spec.tests[0] (once): expected Deny by never, but it is Allow by read.")


def test_there_is_a_bound_to_tests_and_without_opa_none_counts_as_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [reason for reason, _ in problems(*[case("read", "Allow")] * 51)] == ["TooManyTests"]
    monkeypatch.setenv("CHAPERONE_OPA", "/nowhere/opa")
    assert [reason for reason, _ in problems(case("read", "Allow", name="not remembered"))] == ["TestsNotRun"]
