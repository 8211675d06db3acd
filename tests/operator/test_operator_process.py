"""The operator as people meet it: a process with its own rights, a real API server, kubectl."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from fix_operator import Operator
from manifests import cluster_policy, identity, policy, rule, target

from chaperone_evidence.note import open_note, parse_vkey

pytestmark = pytest.mark.peer

type Object = dict[str, Any]


def billing(namespace: str, **spec: Any) -> Object:
    item = identity("billing-agent", namespace, **spec)
    item["metadata"] = {"name": "billing-agent", "namespace": namespace}
    return item


def orders(namespace: str, name: str) -> Object:
    item = target(name, allowedNamespaces={"names": [namespace]})
    item["metadata"] = {"name": name}
    return item


def reads(
    namespace: str, target_name: str, *, name: str = "billing", rules: list[Object] | None = None, **spec: Any
) -> Object:
    usual = [rule("read", "Allow", ["read"], ["public.orders"])]
    item = policy(rules or usual, name, namespace, targets=[{"name": target_name}], **spec)
    item["metadata"] = {"name": name, "namespace": namespace}
    return item


def pod(name: str, namespace: str, app: str = "billing-agent", **spec: Any) -> Object:
    usual: Object = {"containers": [{"name": "agent", "image": "example.com/agent:1"}], "serviceAccountName": "default"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": usual | spec,
    }


@pytest.fixture
def agents(operator: Operator) -> str:
    """A namespace with an identity, a target and a policy in force, whose pods are injected."""
    namespace = operator.namespace("agents")
    operator.apply(orders(namespace, f"db-{namespace}"), billing(namespace), reads(namespace, f"db-{namespace}"))
    wait_in_force(operator, namespace)
    wait_injected(operator, namespace)
    return namespace


def wait_injected(operator: Operator, namespace: str) -> str:
    """What becomes of a pod; the webhooks hear of identities by themselves, not from what reconciles."""
    return operator.eventually(
        lambda: operator.kubectl(
            "create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod("x", namespace))
        ),
        lambda told: "chaperone-gateway" in told,
    )


def wait_in_force(operator: Operator, namespace: str) -> Object:
    return operator.eventually(
        lambda: operator.condition("accesspolicy", "billing", namespace), lambda found: found.get("status") == "True"
    )


def snapshot(operator: Operator, namespace: str) -> Object | None:
    told = operator.kubectl(
        "get", "configmap", f"snapshot-{namespace}", "-n", operator.system_namespace, "-o", "json", is_checked=False
    )
    found: Object | None = json.loads(told) if told.startswith("{") else None
    return found


def gateway_config(operator: Operator, namespace: str) -> Object:
    found = snapshot(operator, namespace)
    assert found is not None
    config: Object = json.loads(base64.b64decode(found["binaryData"]["gateway.json"]))
    return config


def test_what_is_declared_comes_into_force_and_says_so(operator: Operator, agents: str) -> None:
    stored = snapshot(operator, agents)
    assert stored is not None
    assert stored["metadata"]["labels"] == {"chaperone.dev/snapshot": "true"}
    assert set(stored["binaryData"]) == {"bundle.tar.gz", "gateway.json", "leases.json", "notes.json"}
    revision = stored["metadata"]["annotations"]["chaperone.dev/revision"]
    status = operator.get("accesspolicy", "billing", "-n", agents)["status"]
    assert status["revision"] == revision
    assert status["observedGeneration"] == 1
    assert operator.condition("accesspolicy", "billing", agents)["reason"] == "InForce"
    operator.eventually(
        lambda: operator.condition("agentidentity", "billing-agent", agents), lambda one: one.get("status") == "True"
    )
    operator.eventually(
        lambda: operator.condition("accesstarget", f"db-{agents}"), lambda one: one.get("status") == "True"
    )
    assert gateway_config(operator, agents)["billing-agent"]["targets"][0]["name"] == f"db-{agents}"


def test_policy_is_signed_with_the_key_that_pods_get_and_a_snapshot_made_anew_is_later(
    operator: Operator, agents: str
) -> None:
    def serial() -> int:
        found = snapshot(operator, agents)
        if found is None:
            return 0
        (note,) = json.loads(base64.b64decode(found["binaryData"]["notes.json"])).values()
        body = open_note(note.encode(), parse_vkey(told["CHAPERONE_POLICY_KEY"]))
        assert body.splitlines()[1] == f"{agents}/billing-agent"
        return int(body.splitlines()[2])

    made = operator.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod("x", agents)))
    (gateway,) = (one for one in json.loads(made)["spec"]["initContainers"] if one["name"] == "chaperone-gateway")
    told = {one["name"]: one.get("value") for one in gateway["env"]}
    before = serial()
    operator.kubectl("delete", "configmap", f"snapshot-{agents}", "-n", operator.system_namespace)
    operator.apply(billing(agents, purpose="another"))
    operator.eventually(serial, lambda found: found > before)


def test_missing_name_is_a_warning_then_a_reason_then_in_force(operator: Operator) -> None:
    namespace = operator.namespace("order")
    operator.apply(billing(namespace))
    told = operator.kubectl("apply", "-f", "-", stdin=json.dumps(reads(namespace, f"later-{namespace}")))
    assert f"Not in force yet: spec.targets[0].name: there is no AccessTarget 'later-{namespace}'" in told
    # The policy may be heard of before its identity, which is then what lacks.
    found = operator.eventually(
        lambda: operator.condition("accesspolicy", "billing", namespace),
        lambda one: one.get("reason") == "UnknownTarget",
    )
    assert found["status"] == "False"
    operator.apply(orders(namespace, f"later-{namespace}"))
    wait_in_force(operator, namespace)


def test_broken_policy_keeps_the_last_good_revision_and_every_status_tells_it(operator: Operator, agents: str) -> None:
    before = gateway_config(operator, agents)["billing-agent"]["revision"]
    operator.apply(reads(agents, "nowhere", name="broken"))
    found = operator.eventually(lambda: operator.condition("accesspolicy", "broken", agents), bool)
    assert found["reason"] == "UnknownTarget"
    assert f"Revision {before} stays in force" in found["message"]
    other = operator.eventually(
        lambda: operator.condition("accesspolicy", "billing", agents), lambda one: one["status"] == "False"
    )
    assert other["reason"] == "NamespaceDoesNotCompile"
    assert "AccessPolicy broken" in other["message"]
    assert gateway_config(operator, agents)["billing-agent"]["revision"] == before
    operator.eventually(  # the event follows the status
        lambda: operator.get("events.events.k8s.io", "-n", agents)["items"],
        lambda items: any(one["regarding"]["name"] == "broken" and one["reason"] == "UnknownTarget" for one in items),
    )
    operator.kubectl("delete", "accesspolicy", "broken", "-n", agents)
    wait_in_force(operator, agents)


def test_suspension_takes_everything_away_in_seconds_even_while_a_policy_is_broken(
    operator: Operator, agents: str
) -> None:
    operator.apply(reads(agents, "nowhere", name="broken"))
    operator.eventually(lambda: operator.condition("accesspolicy", "broken", agents), bool)
    operator.apply(billing(agents, suspended=True))
    operator.eventually(  # and not with the next whole list, which comes after a minute
        lambda: gateway_config(operator, agents)["billing-agent"]["targets"], lambda targets: targets == []
    )
    operator.kubectl("delete", "accesspolicy", "broken", "-n", agents)
    found = operator.eventually(
        lambda: operator.condition("agentidentity", "billing-agent", agents),
        lambda one: one.get("reason") == "Suspended",
    )
    assert found["status"] == "False"


def test_deleted_identity_is_suspended_for_pods_that_still_run(operator: Operator, agents: str) -> None:
    operator.apply(pod("alive", agents))
    operator.eventually(
        lambda: operator.get("agentidentity", "billing-agent", "-n", agents).get("status", {}).get("pods", {}),
        lambda pods: pods.get("covered") == 1,
    )
    operator.kubectl("delete", "accesspolicy", "billing", "-n", agents)
    operator.kubectl("delete", "agentidentity", "billing-agent", "-n", agents)
    operator.eventually(
        lambda: gateway_config(operator, agents).get("billing-agent", {}).get("targets"), lambda found: found == []
    )
    assert gateway_config(operator, agents)["billing-agent"]["identity"]["owner"]["name"] == "Billing on-call"


def test_snapshot_goes_with_its_namespace(operator: Operator, agents: str) -> None:
    operator.kubectl("delete", "accesspolicy,agentidentity", "--all", "-n", agents)
    operator.eventually(lambda: snapshot(operator, agents), lambda found: found is None)


def test_pods_are_covered_or_shown_with_the_reason(operator: Operator) -> None:
    namespace = operator.namespace("cover")
    operator.apply(pod("old", namespace), billing(namespace))
    found = operator.eventually(
        lambda: operator.condition("agentidentity", "billing-agent", namespace, "Covered"), bool
    )
    assert found["status"] == "False"
    assert found["reason"] == "ExistedBefore"
    assert "old: older than the identity; delete the pod" in found["message"]
    assert "chaperone-fence" in wait_injected(operator, namespace)
    operator.apply(pod("new", namespace))
    status = operator.eventually(
        lambda: operator.get("agentidentity", "billing-agent", "-n", namespace)["status"].get("pods", {}),
        lambda pods: pods.get("covered") == 1,
    )
    assert status == {"covered": 1, "uncovered": 1, "uncoveredNames": ["old"], "cut": 0, "inForce": 0, "behind": 1}
    revision = operator.get("agentidentity", "billing-agent", "-n", namespace)["status"]["revision"]
    said = {"type": "chaperone.dev/PolicyInForce", "status": "True", "message": revision}
    operator.kubectl(
        "patch", "pod", "new", "-n", namespace, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"conditions": [said]}}),
    )  # fmt: skip
    operator.eventually(
        lambda: operator.get("agentidentity", "billing-agent", "-n", namespace)["status"]["pods"],
        lambda pods: (pods["inForce"], pods["behind"]) == (1, 0),
    )
    operator.kubectl("delete", "pod", "old", "-n", namespace, "--grace-period=0", "--force")
    operator.eventually(
        lambda: operator.condition("agentidentity", "billing-agent", namespace, "Covered"),
        lambda one: one["status"] == "True",
    )


def test_namespace_that_enforces_pod_security_is_told_what_to_do(operator: Operator) -> None:
    namespace = operator.namespace("strict", **{"pod-security.kubernetes.io/enforce": "baseline"})
    operator.apply(billing(namespace))
    for kind in ("Ready", "Covered"):
        found = operator.eventually(
            lambda kind=kind: operator.condition("agentidentity", "billing-agent", namespace, kind), bool
        )
        assert found["reason"] == "PodSecurityRefuses"
        assert "pod-security.kubernetes.io/enforce=privileged" in found["message"]
    operator.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce-")
    operator.eventually(
        lambda: operator.condition("agentidentity", "billing-agent", namespace), lambda one: one["status"] == "True"
    )


def test_status_of_targets_and_cluster_policies_is_told(operator: Operator, agents: str) -> None:
    twin = orders(agents, f"twin-{agents}")
    twin["spec"]["hosts"] = [f"db-{agents}.data.svc"]
    guard = cluster_policy([rule("no-destroy", "Deny", ["destroy"])], f"guard-{agents}")
    guard["metadata"] = {"name": f"guard-{agents}"}
    operator.apply(guard)
    operator.eventually(
        lambda: operator.condition("clusteraccesspolicy", f"guard-{agents}"), lambda one: one.get("status") == "True"
    )
    operator.apply(twin)
    found = operator.eventually(
        lambda: operator.condition("accesstarget", f"twin-{agents}"), lambda one: one.get("status") == "False"
    )
    assert found["reason"] == "HostClaimedTwice"
    operator.kubectl("delete", "accesstarget", f"twin-{agents}")
    operator.kubectl("delete", "clusteraccesspolicy", f"guard-{agents}")
    wait_in_force(operator, agents)


def test_condition_of_another_part_stays(operator: Operator, agents: str) -> None:
    ready = {
        "type": "CredentialReady", "status": "True", "reason": "Read", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    body = {"apiVersion": "chaperone.dev/v1alpha1", "kind": "AccessTarget", "metadata": {"name": f"db-{agents}"}}
    operator.kubectl(
        "apply", "--server-side", "--subresource=status", "--field-manager=chaperone-broker", "-f", "-",
        stdin=json.dumps(body | {"status": {"conditions": [ready]}}),
    )  # fmt: skip
    changed = orders(agents, f"db-{agents}")
    changed["spec"]["tls"] = {"mode": "Require"}
    operator.apply(changed)
    operator.eventually(
        lambda: operator.condition("accesstarget", f"db-{agents}"), lambda one: one.get("observedGeneration") == 2
    )
    assert operator.condition("accesstarget", f"db-{agents}", type_="CredentialReady")["reason"] == "Read"


def test_what_is_wrong_by_itself_is_refused_when_written(operator: Operator) -> None:
    namespace = operator.namespace("wrong")
    shadowed = [rule("read", "Allow", ["read"]), rule("never", "Deny", ["read"])]
    told = operator.kubectl(
        "apply", "-f", "-", stdin=json.dumps(reads(namespace, "db", rules=shadowed)), is_checked=False
    )
    assert "[RuleNeverFires] spec.rules[0]: Allow rule 'read' can never fire" in told
    mask = {"patterns": [{"name": "Own", "pattern": "(?=a)b"}], "method": "Redact"}
    told = operator.kubectl(
        "apply", "-f", "-", stdin=json.dumps(reads(namespace, "db", masks=[mask])), is_checked=False
    )
    assert "[BadExpression] spec.masks[0].patterns[0].pattern: RE2 refuses it" in told


def test_patterns_of_one_name_that_say_two_things_make_both_policies_not_ready(operator: Operator, agents: str) -> None:
    wait_in_force(operator, agents)
    for name, text in (("one", "CU-[0-9]+"), ("two", "KD-[0-9]+")):
        mask = {"patterns": [{"name": "Customer", "pattern": text}], "method": "Redact"}
        operator.apply(reads(agents, f"db-{agents}", name=name, masks=[mask]))
    for name in ("one", "two"):
        operator.eventually(
            lambda name=name: operator.condition("accesspolicy", name, agents),
            lambda one: one.get("status") == "False" and "pattern 'Customer' is another one in" in one["message"],
        )


def test_operator_may_not_read_credentials_of_targets(operator: Operator) -> None:
    system = operator.system_namespace
    operator.kubectl(
        "create", "secret", "generic", "orders-db-reader", "-n", system, "--from-literal=password=canary-7"
    )
    kept = ("secret/orders-db-reader", "secret/chaperone-gateway-ca", "secret/chaperone-mask-key")
    for verb, what in (("list", "secrets"), *(("get", one) for one in kept)):
        told = operator.kubectl("auth", "can-i", verb, what, "-n", system, "--as=operator", is_checked=False)
        assert told.strip() == "no", (verb, what)
    assert "canary-7" not in operator.replicas[0].log.read_text()


def test_round_over_an_unchanged_namespace_writes_nothing(operator: Operator, agents: str) -> None:
    operator.eventually(
        lambda: operator.condition("agentidentity", "billing-agent", agents), lambda one: one.get("status") == "True"
    )

    def versions() -> list[str]:
        found = operator.get("agentidentity,accesspolicy", "-n", agents)["items"]
        stored = snapshot(operator, agents)
        assert stored is not None
        return [one["metadata"]["resourceVersion"] for one in (*found, stored)]

    wait_at_rest(operator)  # the identity's status is written after the policy's
    before = versions()
    operator.apply(orders("elsewhere", f"more-{agents}"))  # a target makes a round over everything
    operator.eventually(lambda: operator.condition("accesstarget", f"more-{agents}"), bool)
    wait_at_rest(operator)
    assert versions() == before


def wait_at_rest(operator: Operator) -> None:
    """Wait until nothing is left to do; the number is written after each round."""
    operator.eventually(
        lambda: operator.replicas[0].get("/metrics")[1], lambda told: "chaperone_operator_backlog 0.0" in told
    )
