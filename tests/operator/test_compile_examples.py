"""The example policies: each is sound, says something by its tests, and compiles where its protocols exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from manifests import Object, identity, target

from chaperone_operator.compile import compile_namespace
from chaperone_operator.compile.check import alone

pytestmark = pytest.mark.peer

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
TESTED = {
    f"{path.stem}/{item['metadata']['name']}": item
    for path in sorted(EXAMPLES.glob("*.yaml"))
    for item in yaml.safe_load_all(path.read_text())
    if item["kind"].endswith("AccessPolicy") and item["spec"].get("tests")
}
DEMO = EXAMPLES.parent / "demo"
PROTOCOLS = {"PostgreSQL", "MySQL", "HTTP", "MCP", "SSH", "Kubernetes"}
OF_POSTGRESQL = {"crm", "staging-db"}


def test_there_are_policies_for_six_agents() -> None:
    assert len({name.split("/")[0] for name in TESTED}) == 6


@pytest.mark.parametrize("name", TESTED)
def test_an_example_passes_its_own_tests(name: str) -> None:
    assert alone(TESTED[name]) == ()


@pytest.mark.parametrize("name", TESTED)
def test_a_test_of_an_example_can_fail(name: str) -> None:
    """Whatever a test expects is made its opposite: a test that could not fail would say nothing."""
    spec = TESTED[name]["spec"]
    for index, test in enumerate(spec["tests"]):
        wrong = test | {"expect": {"action": "Deny" if test["expect"]["action"] == "Allow" else "Allow"}}
        tests = [*spec["tests"][:index], wrong, *spec["tests"][index + 1 :]]
        found = alone(TESTED[name] | {"spec": spec | {"tests": tests}})
        assert [one.reason for one in found] == ["TestFails"]


@pytest.mark.parametrize(
    "item",
    [one for one in TESTED.values() if {named["name"] for named in one["spec"]["targets"]} <= OF_POSTGRESQL],
    ids=lambda item: item["metadata"]["name"],
)
def test_an_example_for_a_protocol_that_exists_compiles(item: Object) -> None:
    namespace, spec = item["metadata"]["namespace"], item["spec"]
    snapshot = compile_namespace(
        namespace,
        [identity(one["identity"], namespace) for one in spec["subjects"]],
        [target(one["name"], allowedNamespaces={"names": [namespace]}) for one in spec["targets"]],
        [item],
        [],
        namespace_labels={},
    )
    assert snapshot.is_usable, snapshot.problems


def test_the_demo_compiles_and_grants_its_agent_six_protocols() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBQ3bcNXcm4JlxzqcpAyHPZxB4L4YYBjkZgMYsD9AvoZ"
    text = "---\n".join(path.read_text() for path in sorted(DEMO.glob("*.yaml")))
    items = [item for item in yaml.safe_load_all(text.replace("chaperone-demo/host-key", key)) if item]
    kinds = {
        kind: [one for one in items if one["kind"] == kind]
        for kind in ("AgentIdentity", "AccessTarget", "AccessPolicy")
    }
    snapshot = compile_namespace("agents", *kinds.values(), [], namespace_labels={})
    assert snapshot.is_usable, snapshot.problems
    assert {one["spec"]["protocol"] for one in kinds["AccessTarget"]} == PROTOCOLS
    granted = {one["name"] for policy in kinds["AccessPolicy"] for one in policy["spec"]["targets"]}
    assert granted == {one["metadata"]["name"] for one in kinds["AccessTarget"]}
