"""The Rego engine against what must hold whatever the policies are, and against a second evaluator."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import policy_reference
import pytest
from fix_opa import Opa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from manifests import identity, policy, rule, target
from policy_reference import CRITICAL, ORDINARY, Question

from chaperone_operator.compile import compile_namespace
from chaperone_operator.compile.grants import Bound, grants
from chaperone_operator.compile.model import Match, Rule
from chaperone_operator.compile.vocabulary import Action

pytestmark = pytest.mark.peer

BATCH = """
package batch

decisions := [decision |
    some case in input
    decision := data.chaperone.decision with input as case.question
        with data.chaperone.grants as case.grants
        with data.chaperone.identities as {}
        with data.chaperone.revision as "r"
]
"""
FEW = ["read", "modify", "transaction", "destroy", "unknown"]  # few, so that rules and accesses meet often
NAMES = ["", "a", "ab", "a.b", "a.bb", "a.b.c", "b.a", ".", "a.", "a.*", "A.b", "setting:a.b"]
PATTERNS = ["a", "*", "a.b", "a.*", "*.b", "*.*", "a.b*", "a*.b", "*.*.*", "b.a", "*b", "setting:*.b", "a.*b*"]

type Access = tuple[str, str, str]

effects = st.sampled_from(FEW) | st.sampled_from(ORDINARY + CRITICAL)
bounds = st.builds(
    Bound,
    identity=st.sampled_from(["i", "j"]),
    target=st.sampled_from(["t", "u"]),
    policy=st.sampled_from(["n/p", "n/q", "guardrail"]),
    is_cluster=st.booleans(),
    rule=st.builds(
        Rule,
        name=st.sampled_from(["r1", "r2", "r3"]),
        action=st.sampled_from(list(Action)),
        match=st.builds(
            Match,
            effects=st.lists(effects | st.just("*"), min_size=1, max_size=3).map(tuple),
            objects=st.none() | st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3).map(tuple),
        ),
    ),
)
throughs = st.sampled_from(["", "", "a.view"])
accesses = st.lists(st.tuples(effects, st.sampled_from(NAMES), throughs), min_size=1, max_size=3)
implied = st.lists(st.tuples(effects, st.sampled_from(NAMES), st.just("a.view")), min_size=1, max_size=3)
# Two kinds of cases: anything, and few words and names, so that rules of all actions meet one command.
close = st.builds(
    Bound,
    identity=st.just("i"),
    target=st.just("t"),
    policy=st.sampled_from(["n/p", "n/q"]),
    is_cluster=st.booleans(),
    rule=st.builds(
        Rule,
        name=st.sampled_from(["r1", "r2", "r3"]),
        action=st.sampled_from([Action.ALLOW, Action.ALLOW, Action.REQUIRE_APPROVAL, Action.DENY]),
        match=st.builds(
            Match,
            effects=st.sampled_from([("read",), ("modify",), ("*",)]),
            objects=st.none() | st.sampled_from([("a.b",), ("a.bb",), ("a.*",)]),
        ),
    ),
)
few_accesses = st.lists(
    st.tuples(st.sampled_from(["read", "modify"]), st.sampled_from(["a.b", "a.bb"]), throughs), min_size=1, max_size=3
)
cases = st.tuples(st.lists(bounds, max_size=6), accesses) | st.tuples(st.lists(close, max_size=4), few_accesses)


def reference(bound: list[Bound], accesses: list[Access]) -> str:
    here = [one for one in bound if (one.identity, one.target) == ("i", "t")]
    return policy_reference.decide(here, Question(tuple(policy_reference.Access(*access) for access in accesses)))[0]


def case(bound: list[Bound], accesses: list[Access]) -> dict[str, Any]:
    question = {
        "identity": "i",
        "target": "t",
        "protocol": "PostgreSQL",
        "resolution": "syntactic",
        "accesses": [
            {"effect": effect, "object": name} | ({"through": through} if through else {})
            for effect, name, through in accesses
        ],
    }
    return {"question": question, "grants": grants(bound, {"t": "PostgreSQL", "u": "PostgreSQL"})}


@pytest.fixture(scope="module")
def decisions(opa_with: Callable[[bytes], Opa]) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Decisions on many cases in one call."""
    snapshot = compile_namespace(
        "agents", [identity()], [target()], [policy([rule("a", "Allow", ["read"])])], [], namespace_labels={}
    )
    opa = opa_with(snapshot.bundle)
    opa.add_module("batch", BATCH)

    def decide(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = opa.ask("batch/decisions", asked)
        assert len(found) == len(asked)
        return found

    return decide


type Decisions = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
many = settings(
    max_examples=60,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # a failure names its one case; no need to shrink
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@many
@given(batch=st.lists(cases, min_size=30, max_size=60))
def test_engine_agrees_with_a_second_evaluator(decisions: Decisions, batch: list[tuple[Any, Any]]) -> None:
    found = decisions([case(bound, asked) for bound, asked in batch])
    for (bound, asked), decision in zip(batch, found, strict=True):
        assert decision["action"] == reference(bound, asked), (bound, asked, decision)


@many
@given(batch=st.lists(cases, min_size=10, max_size=30), shuffle=st.randoms(use_true_random=False))
def test_order_of_policies_rules_and_accesses_is_without_meaning(
    decisions: Decisions, batch: list[tuple[Any, Any]], shuffle: random.Random
) -> None:
    turned = [(shuffle.sample(bound, len(bound)), shuffle.sample(asked, len(asked))) for bound, asked in batch]
    here = decisions([case(bound, asked) for bound, asked in batch])
    there = decisions([case(bound, asked) for bound, asked in turned])
    for (bound, _), one, other in zip(batch, here, there, strict=True):
        unique = len({(one.identity, one.target, one.policy, one.rule.name) for one in bound}) == len(bound)
        assert one["action"] == other["action"]
        assert not unique or one == other  # the compiler refuses two rules of one name in a policy


@many
@given(batch=st.lists(st.tuples(cases, bounds), min_size=10, max_size=30))
def test_another_deny_or_approval_never_loosens(decisions: Decisions, batch: list[tuple[Any, Bound]]) -> None:
    order = ["Deny", "RequireApproval", "Allow"]
    stricter = [
        (bound, asked, msgspec.structs.replace(more, rule=msgspec.structs.replace(more.rule, action=action)))
        for (bound, asked), more in batch
        for action in (Action.DENY, Action.REQUIRE_APPROVAL)
    ]
    before = decisions([case(bound, asked) for bound, asked, _ in stricter])
    after = decisions([case([*bound, more], asked) for bound, asked, more in stricter])
    for one, other, (_, asked, more) in zip(before, after, stricter, strict=True):
        if more.rule.action == Action.DENY:
            assert order.index(other["action"]) <= order.index(one["action"]), (asked, more)
        # A rule that asks a human covers what nothing covered before, so there it may turn Deny into a hold.
        elif one["action"] != "Deny":
            assert other["action"] in {one["action"], "RequireApproval"}, (asked, more)
        else:
            assert other["action"] != "Allow", (asked, more)


@many
@given(batch=st.lists(cases, min_size=10, max_size=30))
def test_a_deny_of_an_access_denies_the_command(decisions: Decisions, batch: list[tuple[Any, Any]]) -> None:
    denied = []
    for bound, asked in batch:
        never = Rule("never", Action.DENY, Match((asked[0][0],)))
        denied.append(case([*bound, Bound("i", "t", "guardrail", True, never)], asked))
    assert {decision["action"] for decision in decisions(denied)} == {"Deny"}


@many
@given(batch=st.lists(st.tuples(cases, implied), min_size=10, max_size=30))
def test_what_is_implied_never_loosens_and_changes_nothing_where_nobody_forbids(
    decisions: Decisions, batch: list[tuple[Any, Any]]
) -> None:
    order = ["Deny", "RequireApproval", "Allow"]
    known = [(bound, asked, [one for one in more if one[1] and one[0] != "unknown"]) for (bound, asked), more in batch]
    before = decisions([case(bound, asked) for bound, asked, _ in known])
    after = decisions([case(bound, [*asked, *more]) for bound, asked, more in known])
    for one, other, (bound, asked, more) in zip(before, after, known, strict=True):
        assert order.index(other["action"]) <= order.index(one["action"]), (bound, asked, more)
        if {rule.rule.action for rule in bound} <= {Action.ALLOW}:
            assert other == one, (bound, asked, more)
