"""Rego of a policy's own: what is refused before any gateway sees it, and that it only ever tightens."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from fix_opa import Opa
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace, revoke
from chaperone_operator.compile.check import alone
from chaperone_operator.compile.snapshot import build, engine

pytestmark = pytest.mark.peer

READ = rule("read", "Allow", ["read"])
NO_SECRETS = """
import rego.v1

deny contains message if {
    some access in input.accesses
    startswith(access.object, "public.secret")
    message := sprintf("%s is nobody's business.", [access.object])
}
"""
NEVER = 'deny contains "never" if input.minute < 0'


def compiled(*policies: Object, cluster: tuple[Object, ...] = (), **spec: Any) -> Snapshot:
    return compile_namespace(
        "agents", [identity(**spec)], [target()], list(policies), list(cluster), namespace_labels={}
    )


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('package x\ndeny contains "no" if true', "leave that line out"),
        ('deny contains "no" if {', "spec.rego: line "),
        ('\n\ndeny contains "no" if nothing(1)', "spec.rego: line 3: "),
        ('deny contains "no" if data.chaperone.grants', "a module reads input alone"),
        ('import data.chaperone\ndeny contains "no" if chaperone.revision', "a module reads input alone"),
        ('deny contains "no" if input.x with data.chaperone.revision as "1"', "a module reads input alone"),
        ('deny contains "no" if http.send({"url": "http://x", "method": "GET"})', "undefined function http.send"),
        ('deny contains "no" if opa.runtime().env.HOME', "undefined function opa.runtime"),
        ('deny contains "no" if net.lookup_ip_addr("x")', "undefined function net.lookup_ip_addr"),
        ('deny contains "no" if time.now_ns() > 0', "undefined function time.now_ns"),
        ('deny contains "no" if rand.intn("x", 2) == 1', "undefined function rand.intn"),
        ('deny contains "no" if uuid.rfc4122("x")', "undefined function uuid.rfc4122"),
        ('deny contains "no" if numbers.range(0, 1000000000)', "undefined function numbers.range"),
        ('deny contains "no" if rego.parse_module("a", "package b")', "undefined function rego.parse_module"),
        ("allow := true", "it has no rule deny"),
        ("deny := true", "deny is no set of messages"),
        ('deny := "no" if input.minute', "deny is no set of messages"),
        ('default deny := false\ndeny contains "no" if true', "deny"),
        ('deny["a"] := "b" if true', "deny is no set of messages"),
        (
            'deny contains "no" if true\nrequire_approval contains "ask" if true',
            "require_approval is not supported yet",
        ),
        ('deny contains "no" if true\nis_loaded := false', "is_loaded"),
        ("deny contains deny if true", "recursive"),
        ("# " + "x" * 65536, "more than 64 KiB"),
    ],
)
def test_a_module_that_could_do_more_than_deny_is_refused(text: str, fragment: str) -> None:
    found = alone(policy([READ], rego=text))
    assert [one.reason for one in found] == ["BadRego"]
    assert found[0].message.startswith("spec.rego: ")
    assert fragment in found[0].message
    assert not compiled(policy([READ], rego=text)).is_usable


@pytest.fixture(scope="module")
def opa(opa_with: Callable[[bytes], Opa]) -> Opa:
    return opa_with(compiled(policy([READ])).bundle)


type Ask = Callable[..., Object]


@pytest.fixture
def ask(opa: Opa) -> Ask:
    def ask(snapshot: Snapshot, effect: str, name: str, **facts: Any) -> Object:
        assert snapshot.is_usable, snapshot.problems
        opa.replace(snapshot.bundle, snapshot.revision)
        question = {"identity": "billing-agent", "target": "orders-db", "protocol": "PostgreSQL", "minute": 29_000_000}
        accesses = [{"effect": effect, "object": name}]
        return opa.decide(question | {"resolution": "catalog", "accesses": accesses} | facts)

    return ask


def test_a_module_denies_what_rules_allow_in_its_own_words(ask: Ask) -> None:
    snapshot = compiled(policy([READ], rego=NO_SECRETS))
    denied = ask(snapshot, "read", "public.secrets")
    assert (denied["action"], denied["policy"], denied["rule"]) == ("Deny", "agents/billing", "rego")
    assert denied["message"] == "public.secrets is nobody's business."
    allowed = ask(snapshot, "read", "public.orders")
    assert (allowed["action"], allowed["rule"], allowed["lasts"]) == ("Allow", "read", "minute")


def test_a_module_never_allows(ask: Ask) -> None:
    text = NEVER + '\nallow := true\ndecision := {"action": "Allow"}'
    assert ask(compiled(policy([READ], rego=text)), "modify", "public.orders")["rule"] == "uncovered"
    assert ask(compiled(policy([READ]), cluster=(cluster_policy([], rego=text),)), "modify", "a.b")["action"] == "Deny"


def test_modules_of_all_policies_deny_and_know_nothing_of_each_other(ask: Ask) -> None:
    guard = cluster_policy([], rego=NO_SECRETS)
    snapshot = compiled(policy([READ], rego=NEVER), policy([READ], "more", rego=NEVER), cluster=(guard,))
    assert ask(snapshot, "read", "public.secrets")["policy"] == "guardrail"
    assert ask(snapshot, "read", "public.orders")["action"] == "Allow"


def test_a_module_whose_policy_is_observed_or_closed_denies_nothing(ask: Ask) -> None:
    tried = ask(
        compiled(policy([READ]), policy([READ], "tried", rego=NO_SECRETS, mode="Observe")), "read", "public.secrets"
    )
    assert (tried["action"], tried["would"]) == ("Allow", {"action": "Deny", "policy": "agents/tried", "rule": "rego"})
    window = {"from": "00:00", "to": "00:01", "timezone": "UTC"}
    closed = compiled(policy([READ]), policy([READ], "night", rego=NO_SECRETS, windows=[window]))
    assert ask(closed, "read", "public.secrets", minute=29_000_165)["action"] == "Allow"
    assert ask(closed, "read", "public.secrets", minute=28_998_720)["action"] == "Deny"


def test_a_module_does_not_see_what_changes_within_a_minute(ask: Ask) -> None:
    text = 'deny contains "seen" if input.repeats\ndeny contains "rows" if input.rows'
    assert ask(compiled(policy([READ], rego=text)), "read", "a.b", repeats={"a": 1}, rows=7)["action"] == "Allow"


def test_a_bundle_without_its_modules_denies(ask: Ask) -> None:
    snapshot = compiled(policy([READ], rego=NEVER))
    assert ask(snapshot, "read", "a.b")["action"] == "Allow"
    grants = {
        "billing-agent": {
            "orders-db": {
                "protocol": "PostgreSQL", "exact": {}, "globs": {}, "every": {"read": [0]}, "allows": {}, "leaves": [],
                "rules": [{"action": "Allow", "policy": "p", "rule": "r", "message": ""}],
                "own": [{"policy": "p", "module": "pgone"}],
            }
        }
    }  # fmt: skip
    without = build({"identities": {"billing-agent": {"suspended": False}}, "grants": grants}, {}, {}, engine())
    found = ask(without, "read", "a.b")
    assert (found["action"], found["rule"], found["policy"]) == ("Deny", "malformed", "")


def test_what_is_left_of_a_snapshot_keeps_its_modules(ask: Ask) -> None:
    last = compiled(policy([READ], rego=NO_SECRETS)).binary_data()
    left = revoke(last, "agents", [identity()], [target()], namespace_labels={})
    assert base64.b64encode(left.bundle).decode() == last["bundle.tar.gz"]
    assert ask(left, "read", "public.secrets")["rule"] == "rego"
