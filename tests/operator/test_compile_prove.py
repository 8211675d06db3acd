"""Tests that a policy brings with it: run when it is written, and what their failures say."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import Object, cluster_policy, policy, rule

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
    ],
)
def test_tests_that_cannot_be_run_are_refused_in_words(test: Object, fragment: str) -> None:
    ((reason, message),) = problems(test)
    assert reason == "BadTest"
    assert fragment in message


def test_there_is_a_bound_to_tests_and_without_opa_none_counts_as_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [reason for reason, _ in problems(*[case("read", "Allow")] * 51)] == ["TooManyTests"]
    monkeypatch.setenv("CHAPERONE_OPA", "/nowhere/opa")
    assert [reason for reason, _ in problems(case("read", "Allow", name="not remembered"))] == ["TestsNotRun"]
