"""What the chart's admission policies hold where the webhooks are gone: the second lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from fix_approvals import request as approval_request
from fix_chart import SYSTEM, Installation, Object, eventually, pod, without_webhooks

from chaperone_operator.admission.inject import Agent, Settings, inject

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def agent(**spec: Any) -> Object:
    """A pod as the webhook leaves it, but for what is named."""
    settings = Settings(version="1", gateway_image="g", opa_image="o", cluster="c", service_ca="ca", policy_key="key")
    found = inject(pod(), settings, Agent("billing"))
    return found | {"spec": found["spec"] | spec}


@pytest.fixture
def held(installed: Installation) -> Iterator[Installation]:
    """An installation without its webhooks."""
    with without_webhooks(installed):
        yield installed


def container(**context: Any) -> list[Object]:
    return [{"name": "main", "image": "example.com/main:1", "securityContext": context}]


REFUSED: dict[str, tuple[Object, str]] = {
    "no gateway": (agent(initContainers=[]), "must begin with the init containers chaperone-fence and"),
    "fence alone": (agent(initContainers=agent()["spec"]["initContainers"][:1]), "must begin with the init"),
    "another first": (
        agent(initContainers=[{"name": "first", "image": "i"}, *agent()["spec"]["initContainers"]]),
        "must begin with the init",
    ),
    "gateway that ends": (
        agent(initContainers=[{"name": name, "image": "i"} for name in ("chaperone-fence", "chaperone-gateway")]),
        "must begin with the init",
    ),
    "host network": (agent(hostNetwork=True), "take them out of the pod's spec"),
    "host pid": (agent(hostPID=True), "hostPID"),
    "host ipc": (agent(hostIPC=True), "hostIPC"),
    "one process namespace": (agent(shareProcessNamespace=True), "shareProcessNamespace"),
    "privileged": (agent(containers=container(privileged=True)), "a privileged container cannot be fenced"),
    "privileged gateway": (
        agent(initContainers=[
            agent()["spec"]["initContainers"][0],
            {**agent()["spec"]["initContainers"][1], "securityContext": {"privileged": True}},
        ]),
        "a privileged container cannot be fenced",
    ),
    "gateway with more": (
        agent(initContainers=[
            agent()["spec"]["initContainers"][0],
            {**agent()["spec"]["initContainers"][1], "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
        ]),
        "chaperone-gateway NET_RAW, and nothing else",
    ),
    "capability of an init container": (
        agent(initContainers=[
            *agent()["spec"]["initContainers"],
            {"name": "i", "image": "i", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}},
        ]),
        "could leave the fence",
    ),
    "our name outside init": (
        agent(containers=[
            {"name": "chaperone-x", "image": "i", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}
        ]),
        "could leave the fence",
    ),
} | {
    capability: (agent(containers=container(capabilities={"add": ["CHOWN", capability]})), "could leave the fence")
    for capability in ("NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "BPF", "ALL", "CAP_NET_ADMIN",
                       "net_raw")
}  # fmt: skip


def test_second_lock_holds_agents_without_webhooks(held: Installation) -> None:
    # Its verdicts begin a moment after it is stored.
    eventually(lambda: held.try_pod(agent(initContainers=[]), "agents") != "", "the policy is in force")
    for name, (refused, why) in REFUSED.items():
        told = held.try_pod(refused, "agents")
        if "disallowed by cluster policy" in told:
            continue  # an API server without --allow-privileged, as this one may be, refuses those itself
        assert "ValidatingAdmissionPolicy 'chaperone-agents'" in told, (name, told)
        assert why in told, (name, told)
    assert held.try_pod(agent(), "agents") == ""
    assert held.try_pod(agent(containers=container(capabilities={"add": ["CHOWN"], "drop": ["ALL"]})), "agents") == ""
    assert (
        held.try_pod(pod(hostNetwork=True, containers=container(capabilities={"add": ["NET_ADMIN"]})), "agents") == ""
    )
    assert held.try_pod(agent(hostNetwork=True), SYSTEM).count("ValidatingAdmissionPolicy") == 0


def test_second_lock_holds_what_becomes_of_a_pod(held: Installation) -> None:
    eventually(lambda: held.try_pod(agent(initContainers=[]), "agents") != "", "the policy is in force")
    plain = pod()
    plain["metadata"]["name"] = "plain"
    held.kubectl("create", "-n", "agents", "-f", "-", stdin=yaml.safe_dump_all([agent(), plain]))

    def label(name: str, value: str) -> str:
        return held.kubectl("label", "pod", name, "-n", "agents", "--overwrite", value, is_checked=False)

    for name, value in (
        ("plain", "chaperone.dev/identity=billing"),
        ("billing", "chaperone.dev/identity=other"),
        ("billing", "chaperone.dev/identity-"),
    ):
        assert "cannot be set, changed or removed" in label(name, value)
    for name in ("plain", "billing"):
        assert f"pod/{name} labeled" in label(name, "team=billing")
    found = held.get("pod", "billing", "-n", "agents")
    for capability, is_held in (("NET_ADMIN", True), ("CHOWN", False)):
        debugger = {
            "name": "debugger", "image": "i", "securityContext": {"capabilities": {"add": [capability]}},
            "terminationMessagePolicy": "File",
        }  # fmt: skip
        changed = {**found, "spec": {**found["spec"], "ephemeralContainers": [debugger]}}
        told = held.kubectl(
            "replace", "--raw", "/api/v1/namespaces/agents/pods/billing/ephemeralcontainers", "-f", "-",
            stdin=json.dumps(changed), is_checked=False,
        )  # fmt: skip
        assert ("could leave the fence" in told) == is_held, told
    held.kubectl("delete", "pod", "plain", "billing", "-n", "agents", "--grace-period=0", "--force")


def test_second_lock_holds_approvals_without_webhooks(held: Installation) -> None:
    account = f"--as=system:serviceaccount:{SYSTEM}:chaperone-broker"
    now = {"by": {"username": "lead-1"}, "groups": ["billing-leads"], "at": "2026-01-01T00:00:00Z"}

    def create(*arguments: str) -> str:
        given = yaml.safe_dump(approval_request("apr-1"))
        return held.kubectl("create", "-n", "agents", "-f", "-", *arguments, stdin=given, is_checked=False)

    def patch(user: str, *patches: Object, groups: tuple[str, ...] = ("billing-leads", "system:masters")) -> str:
        return held.kubectl(
            "patch", "approvalrequest", "apr-1", "-n", "agents", "--subresource=status", "--type=json",
            "-p", json.dumps(patches), f"--as={user}", *(f"--as-group={one}" for one in groups), is_checked=False,
        )  # fmt: skip

    def vote(**changed: Any) -> Object:
        return {"op": "add", "path": "/status/votes/-", "value": {"decision": "Approve"} | now | changed}

    # Its verdicts begin a moment after it is stored.
    eventually(lambda: "made, changed and deleted by the broker alone" in create("--dry-run=server"), "it is in force")
    assert "created" in create(account)
    assert "by the broker alone" in held.kubectl("delete", "apr", "apr-1", "-n", "agents", is_checked=False)
    assert "by the broker alone" in held.kubectl("label", "apr", "apr-1", "-n", "agents", "a=b", is_checked=False)
    approved = {"op": "replace", "path": "/status/state", "value": "Approved"}
    for told, why in (
        (patch("lead-1", approved), "people add exactly one vote"),
        (patch("lead-1", vote(), approved), "people add exactly one vote"),
        (patch("lead-1", vote(), vote(decision="Deny")), "people add exactly one vote"),
        (patch("lead-1", vote(by={"username": "lead-2"})), "bears the name and the groups of whoever sends it"),
        (patch("lead-1", vote(), groups=("staff", "system:masters")), "bears the name and the groups"),
        (patch("lead-1", vote(groups=["system:masters"])), "bears the name and the groups"),
        (patch("creator", vote(by={"username": "creator"})), "nobody votes on an own request"),
    ):
        assert "ValidatingAdmissionPolicy 'chaperone-approvals'" in told, told
        assert why in told, told
    assert "patched" in patch("lead-1", vote())
    assert "nobody votes on an own request, twice" in patch("lead-1", vote(decision="Deny"))
    assert "people add exactly one vote" in patch("lead-2", vote(by={"username": "lead-2"}), {
        "op": "replace", "path": "/status/votes/0/decision", "value": "Deny",
    })  # fmt: skip
    removed = held.kubectl("delete", "apr", "apr-1", "-n", "agents", account, is_checked=False)
    assert "deleted" in removed, removed


def test_second_lock_holds_who_suspends_and_who_resumes(held: Installation) -> None:
    people = {"developer": "chaperone-agent-developer", "responder": "chaperone-responder"}
    for user, role in people.items():
        held.kubectl("create", "rolebinding", user, "-n", "agents", f"--clusterrole={role}", f"--user={user}")
    stamp = {"by": "developer", "at": "2026-01-01T00:00:00Z", "reason": "odd"}
    spec: Object = {"selector": {"matchLabels": {"app": "killed"}}, "owner": {"name": "Billing on-call"}}
    item = {
        "apiVersion": "chaperone.dev/v1alpha1", "kind": "AgentIdentity",
        "metadata": {"name": "killed", "namespace": "agents"}, "spec": spec,
    }  # fmt: skip
    lock = "ValidatingAdmissionPolicy 'chaperone-suspension'"

    def create(user: str, *arguments: str, **more: Any) -> str:
        given = json.dumps({**item, "spec": spec | more})
        return held.kubectl("create", "-f", "-", f"--as={user}", *arguments, stdin=given, is_checked=False)

    def patch(user: str, **changed: Any) -> str:
        return held.kubectl(
            "patch", "agentidentity", "killed", "-n", "agents", "--type=merge", f"--as={user}",
            "-p", json.dumps({"spec": changed}), is_checked=False,
        )  # fmt: skip

    eventually(lambda: lock in create("developer", "--dry-run=server", suspended=True), "it is in force")
    assert lock in create("developer", suspension=stamp)
    assert "created" in create("developer")
    for told in (
        patch("developer", suspended=True),
        patch("developer", suspended=True, suspension=stamp | {"by": "responder"}),
        patch("developer", suspension=stamp),
    ):
        assert lock in told, told
        assert "says who changed spec.suspended last" in told, told
    assert "changes nothing but spec.suspended" in patch("responder", purpose="mine")
    assert "changes nothing but spec.suspended" in patch("responder", owner={"name": "me"})
    assert "patched" in patch("developer", purpose="books")
    assert "patched" in patch("developer", suspended=True, suspension=stamp)

    resumed = {"suspended": False, "suspension": stamp | {"reason": "fine"}}
    for told in (
        patch("developer", **resumed),
        patch("developer", suspended=None, suspension=None),
        held.kubectl("delete", "agentidentity", "killed", "-n", "agents", "--as=developer", is_checked=False),
        held.kubectl("delete", "agentidentity", "--all", "-n", "agents", "--as=developer", is_checked=False),
    ):
        assert lock in told, told
        assert "developer may not resume a suspended agent, nor delete it" in told, told
    assert "the selector of a suspended agent stays" in patch("developer", selector={"matchLabels": {"app": "x"}})
    assert "says who changed" in patch("developer", suspension=stamp | {"by": "responder"})
    assert "patched" in patch("developer", purpose="all the same")
    assert "patched" in patch("responder", suspended=False, suspension=stamp | {"by": "responder", "reason": "fine"})
    assert "deleted" in held.kubectl("delete", "agentidentity", "killed", "-n", "agents", "--as=developer")
