"""`chaperone explain` with real OPA, from a directory and from a real API server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from fix_apiserver import ApiServer
from fix_crds import kubectl
from fix_opa import Opa
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_cli.main import main
from chaperone_operator.compile import compile_namespace

pytestmark = pytest.mark.peer

WORK = {"days": ["Mon-Fri"], "from": "07:00", "to": "19:00", "timezone": "Europe/Berlin"}
RULES = [
    rule("read-orders", "Allow", ["read"], ["public.orders"]),
    {
        "name": "careful",
        "action": "Allow",
        "match": {"effects": ["read"], "objects": ["public.big"], "require": {"where": True, "maxEstimatedRows": 5}},
        "windows": [WORK],
    },
    rule("fix", "RequireApproval", ["modify"], ["public.orders"], approval={"groups": ["leads"]}),
    rule("never", "Deny", ["destroy"], message="Ask the DBA on call."),
]
MASKS = [
    {"columns": ["public.orders.email"], "method": "Partial"},
    {"columns": ["*.people.*"], "method": "Redact"},
    {"detectors": ["Email"], "method": "Redact"},
]
NOON, NIGHT = "2026-07-03T12:00:00+02:00", "2026-07-03T23:00:00+02:00"


def objects(**spec: Any) -> list[Object]:
    return [identity(), target(), policy(RULES, **spec), cluster_policy([rule("floor", "Deny", ["external_io"])])]


@pytest.fixture
def explain(tmp_path: Path) -> Callable[..., Result]:
    """Run the command over manifests; keyword arguments are those of the policy."""

    def run(text: str, *arguments: str, **spec: Any) -> Result:
        (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects(**spec)))
        fixed = ["explain", "--manifests", str(tmp_path), "--identity", "billing-agent"]
        return CliRunner().invoke(main, [*fixed, *arguments, text])

    return run


type Explain = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "status", "fragments"),
    [
        ("SELECT * FROM orders", 0, ["decision:  Allow by read-orders of agents/billing", "read    public.orders"]),
        ("UPDATE orders SET a = 1", 1, ["no rule speaks of it", "match: {effects: [bulk_write], objects: [public.ord"]),
        ("UPDATE orders SET a = 1 WHERE id = 1", 3, ["decision:  RequireApproval by fix of agents/billing"]),
        ("DROP TABLE orders", 1, ["Deny by never of agents/billing", "message:   Ask the DBA on call."]),
        ("COPY orders TO PROGRAM 'x'", 1, ["Deny by floor of guardrail", "external_io  program:x"]),
        ("SELECT 1; DROP TABLE a", 1, ["2 statements, decided together", "  - DROP TABLE a", "destroy public.a"]),
        ("SELEC 1", 1, ["unknown:   The statement does not parse as PostgreSQL", "rewrite the statement instead"]),
    ],
)  # fmt: skip
def test_what_a_statement_meets_is_told_with_its_rules(
    explain: Explain, text: str, status: int, fragments: list[str]
) -> None:
    done = explain(text)
    assert done.exit_code == status, done.output
    for fragment in (*fragments, "note: names are taken as they are written: no database was asked"):
        assert fragment in done.output


@pytest.mark.parametrize(
    ("text", "arguments", "status", "fragment"),
    [
        ("SELECT * FROM big WHERE id = 1", ("--rows", "5", "--at", NOON), 0, "careful of agents/billing  yes"),
        ("SELECT * FROM big WHERE id = 1", ("--rows", "6", "--at", NOON), 1, "expects at most 5 rows"),
        ("SELECT * FROM big WHERE id = 1", ("--at", NOON), 1, "an estimate of rows decides; give one with --rows"),
        ("SELECT * FROM big", ("--rows", "5", "--at", NOON), 1, "only with a WHERE that is not always true"),
        ("SELECT * FROM big WHERE id = 1", ("--rows", "5", "--at", NIGHT), 1, "not at this time (see its windows)"),
    ],
)
def test_a_rule_that_does_not_fire_says_why(
    explain: Explain, text: str, arguments: tuple[str, ...], status: int, fragment: str
) -> None:
    done = explain(text, *arguments)
    assert done.exit_code == status, done.output
    assert fragment in done.output


def test_masks_are_told_by_policy_and_marked_where_the_statement_is_near(explain: Explain) -> None:
    done = explain("SELECT * FROM orders", masks=MASKS, unmaskable="Redact")
    assert "unmaskable values: Redact" in done.output
    assert "  * Partial public.orders.email (agents/billing)\n" in done.output
    assert "    Redact *.people.* (agents/billing)\n" in done.output
    assert "  * Redact detector Email (agents/billing)\n" in done.output


def test_json_has_all_of_it(explain: Explain) -> None:
    done = explain("DROP TABLE orders; SELECT 1", "-o", "json", masks=MASKS)
    found = json.loads(done.output)
    assert done.exit_code == 1
    assert (found["decision"]["action"], found["decision"]["rule"]) == ("Deny", "never")
    assert [one["text"] for one in found["statements"]] == ["DROP TABLE orders", "SELECT 1"]
    assert [one["effect"] for one in found["trace"]["accesses"]] == ["read", "destroy"]
    assert [one["touched"] for one in found["masks"]] == [True, False, True]


def test_observed_policies_and_own_rego_are_told_apart_from_what_is_in_force(explain: Explain) -> None:
    done = explain("SELECT * FROM other", mode="Observe")
    assert done.exit_code == 0
    assert "would be:  Deny by uncovered, if observed policies were in force" in done.output
    done = explain("SELECT * FROM orders", rego='deny contains "not today" if input.target != ""')
    assert done.exit_code == 1
    assert "rego:      agents/billing denies: not today" in done.output


def test_nothing_of_the_text_reaches_the_terminal_as_control_characters(explain: Explain) -> None:
    done = explain('SELECT 1; SELECT * FROM "a\x1b[2J\u202eb"')
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--target", "other"), "There is no such target; billing-agent has: orders-db."),
        (("--at", "noon"), "write a moment with its offset"),
        (("-n", "elsewhere"), 'There is no AgentIdentity "billing-agent" in namespace elsewhere.'),
    ],
)
def test_what_cannot_be_explained_has_a_status_of_its_own(
    explain: Explain, arguments: tuple[str, ...], why: str
) -> None:
    done = explain("SELECT 1", *arguments)
    assert done.exit_code == 2
    assert why in done.output


def test_policies_that_do_not_compile_explain_nothing(explain: Explain) -> None:
    done = explain("SELECT 1", targets=[{"name": "nowhere"}])
    assert done.exit_code == 2
    assert "UnknownTarget" in done.output


def test_trace_and_decision_say_the_same(opa_with: Callable[[bytes], Opa]) -> None:
    made = compile_namespace("agents", [identity()], [target()], [policy(RULES)], [], namespace_labels={})
    opa = opa_with(made.bundle)
    for effect in ("read", "modify", "destroy", "create", "unknown"):
        for name in ("public.orders", "public.big", ""):
            asked = {
                "identity": "billing-agent", "target": "orders-db", "protocol": "PostgreSQL", "resolution": "syntactic",
                "minute": 29_700_000, "accesses": [{"effect": effect, "object": name}],
            }  # fmt: skip
            decision, ((access,), own) = opa.decide(asked), tuple(opa.ask("chaperone/trace", asked).values())
            firing = [(one["policy"], one["rule"]) for one in access["rules"] if one["fires"]]
            assert own == []
            assert access["covered"] == (decision["rule"] != "uncovered")
            assert (firing or [("", "uncovered")])[0] == (decision["policy"], decision["rule"])
            assert all(one["fires"] != bool(one["why"]) for one in access["rules"])


# --- with a cluster ---------------------------------------------------------------------------------


@pytest.fixture
def agents(crds: ApiServer) -> ApiServer:
    """The objects in the API server, in namespace explained."""
    place = "explained"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place, "labels": {"tier": "agents"}}}
    admits = {"selector": {"matchLabels": {"tier": "agents"}}}
    made = [namespace, identity(namespace=place), target("explained-db", allowedNamespaces=admits)]
    made.append(policy(RULES, namespace=place, targets=[{"name": "explained-db"}]))
    for one in made:
        for field in ("uid", "generation"):
            one["metadata"].pop(field, None)
    kubectl(crds, "apply", "-f", "-", stdin=yaml.safe_dump_all(made))
    return crds


def test_with_a_cluster_its_objects_count_and_the_rights_of_whoever_asks(
    agents: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = os.environ.get("CHAPERONE_BIN", f"{os.environ['HOME']}/.cache/chaperone/bin")
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    fixed = ["explain", "-n", "explained", "--identity", "billing-agent", "SELECT * FROM orders", "--kubeconfig"]
    done = CliRunner().invoke(main, [*fixed, str(agents.kubeconfig)])
    assert done.exit_code == 0, done.output
    assert "Allow by read-orders of explained/billing" in done.output
    done = CliRunner().invoke(main, [*fixed, str(agents.kubeconfig_of("nobody"))])
    assert done.exit_code == 2
    assert "agentidentities.chaperone.dev is forbidden" in done.output
