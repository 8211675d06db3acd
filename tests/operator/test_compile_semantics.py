"""What the compiled policy decides, asked of a real OPA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fix_opa import Opa
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace

pytestmark = pytest.mark.peer

READ_ORDERS = rule("read-orders", "Allow", ["read"], ["public.orders", "public.customers"])
EVERYTHING = rule("everything", "Allow", ["*"])


def compiled(*rules: Object, cluster: list[Object] | None = None, more: list[Object] | None = None) -> Snapshot:
    policies = [policy(list(rules))] if rules else []
    snapshot = compile_namespace(
        "agents", [identity()], [target()], policies + (more or []), cluster or [], namespace_labels={}
    )
    assert snapshot.is_usable, snapshot.problems
    return snapshot


def access_of(effect: str, name: str, through: str = "") -> Object:
    return {"effect": effect, "object": name} | ({"through": through} if through else {})


def question(*accesses: tuple[str, ...], **changed: Any) -> Object:
    return {
        "identity": "billing-agent",
        "target": "orders-db",
        "protocol": "PostgreSQL",
        "resolution": "syntactic",
        "accesses": [access_of(*access) for access in accesses],
    } | changed


@pytest.fixture(scope="module")
def opa(opa_with: Callable[[bytes], Opa]) -> Opa:
    return opa_with(compiled(EVERYTHING).bundle)


@pytest.fixture
def decide(opa: Opa) -> Callable[..., tuple[str, str]]:
    """Action and rule of a question under some rules."""

    def ask(snapshot: Snapshot, *accesses: tuple[str, ...], **changed: Any) -> tuple[str, str]:
        opa.replace(snapshot.bundle, snapshot.revision)
        found = opa.decide(question(*accesses, **changed))
        assert set(found) == {"action", "policy", "rule", "message", "revision"}
        assert found["revision"] == snapshot.revision
        return found["action"], found["rule"]

    return ask


type Decide = Callable[..., tuple[str, str]]


def allow(effect: str, *objects: str) -> Object:
    return rule("a", "Allow", [effect], list(objects) or None)


def deny(effect: str, *objects: str) -> Object:
    return rule("d", "Deny", [effect], list(objects) or None)


ORDERS, TWO = allow("read", "public.orders"), allow("read", "public.orders", "public.customers")
NO_CUSTOMERS = deny("read", "public.customers")
A_ORDERS, B_VIEW = allow("read", "public.orders"), rule("b", "Allow", ["read"], ["a.v"])
DROP = allow("destroy", "public.p")
UNCOVERED, ALL, OF_ORDERS = "Deny uncovered", "Allow everything", ["read public.orders"]
BOTH_READ = ["read public.orders", "read public.customers"]
CASES: list[tuple[str, list[Object], list[str], str]] = [
    ("covered", [ORDERS], ["read public.orders"], "Allow a"),
    ("both covered", [TWO], BOTH_READ, "Allow a"),
    ("object not covered", [ORDERS], ["read public.invoices"], "Deny uncovered"),
    ("effect not covered", [ORDERS], ["modify public.orders"], "Deny uncovered"),
    ("one of two not covered", [ORDERS], ["read public.orders", "modify public.orders"], "Deny uncovered"),
    ("deny beats allow", [TWO, NO_CUSTOMERS], ["read public.customers"], "Deny d"),
    ("one denied denies all", [TWO, NO_CUSTOMERS], BOTH_READ, "Deny d"),
    ("denied goes before uncovered", [TWO, NO_CUSTOMERS], ["modify a", "read public.customers"], "Deny d"),
    ("rule without objects", [allow("*")], ["modify any.thing"], "Allow a"),
    ("star within a part", [allow("read", "public.*")], ["read public.orders"], "Allow a"),
    ("star may be empty", [allow("read", "public.orders*")], ["read public.orders"], "Allow a"),
    ("star stops at a dot", [allow("read", "public.*")], ["read public.a.b"], "Deny uncovered"),
    ("pattern is for the whole name", [allow("read", "*.orders")], ["read public.orders2"], "Deny uncovered"),
    ("star in the middle", [allow("read", "pub*c.o*s")], ["read public.orders"], "Allow a"),
    ("dot means itself", [allow("read", "public.*")], ["read publicXorders"], "Deny uncovered"),
    ("a newline ends nothing", [allow("read", "public.a*")], ["read public.a\nb.c"], "Deny uncovered"),
    ("signs mean themselves", [allow("read", "a+(b)|$^.*")], ["read a+(b)|$^.x"], "Allow a"),
    ("other scripts", [allow("read", "öffentlich.bд *")], ["read öffentlich.bд 7"], "Allow a"),
    ("case matters", [ORDERS], ["read Public.Orders"], "Deny uncovered"),
    ("select 1 under a rule with objects", [ORDERS], ["read "], "Allow a"),
    ("select 1 under a wildcard with objects", [allow("*", "public.x")], ["read "], "Allow a"),
    ("select 1 without leave to read", [allow("modify")], ["read "], "Deny uncovered"),
    ("deny with objects spares select 1", [TWO, NO_CUSTOMERS], ["read "], "Allow a"),
    ("deny without objects does not", [allow("*"), deny("read")], ["read "], "Deny d"),
    ("begin by courtesy", [ORDERS], ["transaction "], "Allow a"),
    ("begin denied", [ORDERS, deny("transaction")], ["transaction "], "Deny d"),
    ("begin is not denied for an object", [ORDERS, deny("*", "public.x")], ["transaction "], "Allow a"),
    ("no begin where only denies are", [deny("destroy")], ["transaction "], "Deny uncovered"),
    ("critical by name", [allow("destroy", "tmp.*")], ["destroy tmp.x"], "Allow a"),
    ("unknown by name", [allow("unknown")], ["unknown "], "Allow a"),
    ("unknown needs the whole target", [allow("unknown", "public.*")], ["unknown "], "Deny uncovered"),
    ("delete of nothing needs the whole target", [allow("delete", "*")], ["delete "], "Deny uncovered"),
    ("implied needs no leave", [ORDERS], ["read public.orders", "read public.x < public.orders"], "Allow a"),
    ("implied is no leave for what is named", [ORDERS], ["read public.v", "read public.orders < public.v"], UNCOVERED),
    ("implied and denied", [EVERYTHING, NO_CUSTOMERS], ["read public.v", "read public.customers < public.v"], "Deny d"),
    ("implied, denied whatever it is", [ORDERS, deny("modify")], [*OF_ORDERS, "modify a.x < public.orders"], "Deny d"),
    ("implied and allowed is not reported", [A_ORDERS, B_VIEW], ["read a.v", "read public.orders < a.v"], "Allow b"),
    ("implied, denied for another", [EVERYTHING, NO_CUSTOMERS], ["read public.v", "read public.x < public.v"], ALL),
    ("implied, denied by wildcard", [ORDERS, deny("*", "a.x")], [*OF_ORDERS, "read a.x < public.orders"], "Deny d"),
    ("implied loss needs no leave", [DROP], ["destroy public.p", "destroy public.child < public.p"], "Allow a"),
    ("implied loss, denied", [DROP, deny("destroy", "*.c")], ["destroy public.p", "destroy a.c < public.p"], "Deny d"),
    ("nothing but implied", [EVERYTHING], ["read public.x < public.v"], "Deny malformed"),
    ("implied without object", [EVERYTHING], ["read public.v", "read  < public.v"], "Deny malformed"),
    ("implied and unknown", [EVERYTHING, allow("unknown")], ["read a.v", "unknown x < a.v"], "Deny malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "asked", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_policy_decides(decide: Decide, rules: list[Object], asked: list[str], expected: str) -> None:
    accesses = []
    for access in asked:
        effect, _, rest = access.partition(" ")
        name, _, through = rest.partition(" < ")
        accesses.append((effect, name, through))
    assert " ".join(decide(compiled(*rules), *accesses)) == expected


@pytest.mark.parametrize("effect", ["destroy", "privilege", "execute_code", "external_io", "tunnel", "unknown"])
def test_wildcard_never_means_a_critical_effect(decide: Decide, effect: str) -> None:
    assert decide(compiled(EVERYTHING), (effect, "public.orders")) == ("Deny", "uncovered")


def test_masks_alone_allow_nothing_and_beside_rules_change_no_decision(decide: Decide) -> None:
    masks: list[Object] = [{"detectors": ["Email"], "method": "Redact"}]
    alone = compiled(more=[policy([], "masks", masks=masks)])
    assert decide(alone, ("read", "public.orders")) == ("Deny", "uncovered")
    both = compiled(READ_ORDERS, more=[policy([], "masks", masks=masks)])
    assert decide(both, ("read", "public.orders")) == ("Allow", "read-orders")


def test_wildcard_deny_does_not_hide_a_named_critical_allow(decide: Decide) -> None:
    rules = (rule("d", "Deny", ["*"]), rule("a", "Allow", ["destroy"], ["tmp.*"]))
    assert decide(compiled(*rules), ("destroy", "tmp.x")) == ("Allow", "a")


def test_guardrail_denies_what_a_namespace_allows_and_is_the_one_reported(decide: Decide, opa: Opa) -> None:
    guardrail = cluster_policy([rule("no-drop", "Deny", ["destroy"], message="Ask the DBA on call.")])
    own = [policy([rule("no-drop-here", "Deny", ["destroy"], ["tmp.x"])], name="aaa")]
    snapshot = compiled(rule("drop", "Allow", ["destroy"]), cluster=[guardrail], more=own)
    assert decide(snapshot, ("destroy", "tmp.x")) == ("Deny", "no-drop")
    found = opa.decide(question(("destroy", "tmp.x")))
    assert (found["policy"], found["message"]) == ("guardrail", "Ask the DBA on call.")


def test_cluster_policy_allows_its_subjects_and_nobody_else(decide: Decide) -> None:
    granting = cluster_policy([rule("peek", "Allow", ["read"])], subjects=[{"identity": "billing-agent"}])
    assert decide(compiled(cluster=[granting]), ("read", "a.b")) == ("Allow", "peek")
    elsewhere = cluster_policy([rule("peek", "Allow", ["read"])], subjects=[{"identity": "*", "namespace": "other"}])
    assert decide(compiled(cluster=[elsewhere]), ("read", "a.b")) == ("Deny", "uncovered")


@pytest.mark.parametrize(
    "changed",
    [
        {"identity": "somebody-else"},
        {"target": "other-db"},
        {"protocol": "MySQL"},
        {"resolution": "guessed"},
        {"accesses": []},
        {"accesses": None},
        {"accesses": {"0": {"effect": "read", "object": "a.b"}}},
        {"accesses": ["read"]},
        {"accesses": [{"effect": "read"}]},
        {"accesses": [{"object": "a.b"}]},
        {"accesses": [{"effect": "read", "object": 7}]},
        {"accesses": [{"effect": "READ", "object": "a.b"}]},
        {"accesses": [{"effect": "*", "object": "a.b"}]},
        {"accesses": [{"effect": "read", "object": "a.b"}, {"effect": "sing", "object": "a.b"}]},
        {"accesses": [{"effect": "read", "object": "a.b"}, {"effect": "read", "object": "a.c", "through": 7}]},
        {"accesses": [{"effect": "read", "object": "a.b"}, {"effect": "read", "object": "a.c", "through": None}]},
        {"identity": None},
        {"target": ["orders-db"]},
    ],
    ids=str,
)
def test_missing_or_malformed_input_is_denied(decide: Decide, changed: Object) -> None:
    action, reason = decide(compiled(EVERYTHING), ("read", "a.b"), **changed)
    assert action == "Deny"
    assert reason in {"malformed", "uncovered"}


@pytest.mark.parametrize("missing", ["identity", "target", "protocol", "resolution", "accesses"])
def test_each_field_of_the_question_is_needed(decide: Decide, opa: Opa, missing: str) -> None:
    assert decide(compiled(EVERYTHING), ("read", "a.b")) == ("Allow", "everything")
    asked = question(("read", "a.b"))
    del asked[missing]
    assert opa.decide(asked)["rule"] == "malformed"


@pytest.mark.parametrize("asked", [None, 7, "read", [], {}, [[]], {"accesses": {}}])
def test_no_input_at_all_has_a_decision_too(opa: Opa, asked: object) -> None:
    assert opa.decide(asked)["action"] == "Deny"


def test_suspended_identity_is_denied_everything_and_has_no_targets_and_no_leases(opa: Opa) -> None:
    snapshot = compile_namespace(
        "agents", [identity(suspended=True)], [target()], [policy([EVERYTHING])], [], namespace_labels={}
    )
    opa.replace(snapshot.bundle, snapshot.revision)
    found = opa.decide(question(("read", "a.b")))
    assert (found["action"], found["rule"]) == ("Deny", "suspended")
    assert "billing-agent" in found["message"]
    assert snapshot.leases == b"{}"
    assert b'"targets":[]' in snapshot.gateway


def test_uncovered_message_names_effect_object_and_how_to_get_it(opa: Opa) -> None:
    snapshot = compiled(READ_ORDERS)
    opa.replace(snapshot.bundle, snapshot.revision)
    found = opa.decide(question(("read", "public.orders"), ("delete", "public.invoices")))
    assert found["policy"] == ""
    assert found["message"] == (
        "No rule allows billing-agent to delete on public.invoices at orders-db. Ask for a rule with effects [delete] "
        "and objects [public.invoices] in an AccessPolicy for this identity and target."
    )


def test_name_of_an_object_cannot_break_the_message(opa: Opa) -> None:
    snapshot = compiled(READ_ORDERS)
    opa.replace(snapshot.bundle, snapshot.revision)
    found = opa.decide(question(("delete", "a\r\nb\u202e\x00" + "x" * 5000)))
    assert found["message"].isprintable()
    assert len(found["message"]) < 700


def test_uncovered_access_that_is_reported_does_not_depend_on_the_order(opa: Opa) -> None:
    snapshot = compiled(READ_ORDERS)
    opa.replace(snapshot.bundle, snapshot.revision)
    accesses = [("delete", "public.b"), ("modify", "public.a")]
    assert opa.decide(question(*accesses)) == opa.decide(question(*reversed(accesses)))


def test_message_of_what_is_implied_says_through_what(opa: Opa) -> None:
    snapshot = compiled(EVERYTHING, NO_CUSTOMERS)
    opa.replace(snapshot.bundle, snapshot.revision)
    found = opa.decide(question(("read", "public.v"), ("read", "public.customers", "public.v")))
    assert found["message"] == "read on public.customers (reached through public.v) is denied."
