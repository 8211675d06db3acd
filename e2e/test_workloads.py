"""Every kind of workload becomes an agent as it is: injected, ready, at work, and counted in its identity's status."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from stage import (
    HOST,
    READ,
    READY_S,
    Kubectl,
    Object,
    Pod,
    Team,
    make_namespace,
    named,
    pod,
    until,
    until_pods_are_ready,
)

from chaperone_tools.errors import ToolsError
from chaperone_tools.install import is_true, rollout

pytestmark = pytest.mark.cluster

CONTAINERS: Final = ("chaperone-fence", "chaperone-gateway", "chaperone-opa")
ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
JOB_TEXT: Final = "SELECT item FROM orders WHERE id = 1"
CRON_JOB_TEXT: Final = "SELECT item FROM orders WHERE id = 2"
INIT_TEXT: Final = "SELECT item FROM orders WHERE id = 3"
SERVERS: Final = "python3 -m http.server 8080 --bind :: & exec python3 -m http.server 8081 --bind ::"
ROLLED_OUT: Final = ("deployment/as-deployment", "statefulset/as-statefulset")
SESSIONS: Final = 100  # more than the broker gives leases at once; one lease is for all of them
PODS: Final = ("as-pod", "non-root", "read-only", "own-account", "with-init", "web")


def _psql(text: str) -> list[str]:
    return ["psql", f"host={HOST} dbname=orders sslmode=verify-full", "-Atc", text]


def _containers(image: str, **more: Any) -> Object:
    return {"containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", **more}]}


def _template(image: str, **more: Any) -> Object:
    return {
        "metadata": {"labels": {"app": "billing"}},
        "spec": _containers(image) | {"terminationGracePeriodSeconds": 2} | more,
    }


def _once(image: str, text: str) -> Object:
    """The spec of a Job that says one statement."""
    template = _template(image, restartPolicy="Never", terminationGracePeriodSeconds=30)
    template["spec"] |= _containers(image, command=_psql(text))
    return {"backoffLimit": 0, "template": template}


def _workloads(namespace: str, image: str) -> list[Object]:
    def workload(api: str, kind: str, name: str, spec: Object) -> Object:
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}

    selector = {"selector": {"matchLabels": {"app": "billing"}}}
    cron = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": _once(image, CRON_JOB_TEXT)}}
    return [
        workload("apps/v1", "Deployment", "as-deployment", selector | {"template": _template(image)}),
        workload(
            "apps/v1", "StatefulSet", "as-statefulset",
            selector | {"serviceName": "as-statefulset", "template": _template(image)},
        ),
        workload("batch/v1", "Job", "as-job", _once(image, JOB_TEXT)),
        workload("batch/v1", "CronJob", "as-cron-job", cron),
    ]  # fmt: skip


def _pods(namespace: str, image: str) -> list[Object]:
    def agent(name: str, app: str = "billing", **spec: Any) -> Object:
        return pod(namespace, name, image, labels={"app": app}, **spec)

    token = {"serviceAccountToken": {"path": "token"}}
    account = {"name": "account", "mountPath": ACCOUNT, "readOnly": True}
    init = {"name": "before", "image": image, "imagePullPolicy": "IfNotPresent", "command": _psql(INIT_TEXT)}
    probe = {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 90}
    return [
        agent("as-pod"),
        agent("non-root", securityContext={"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}),
        agent("read-only", container={"securityContext": {"readOnlyRootFilesystem": True}}),
        agent(
            "own-account",
            container={"volumeMounts": [account]},
            volumes=[{"name": "account", "projected": {"sources": [token]}}],
        ),
        agent("with-init", initContainers=[init]),
        agent("web", "web", container={"command": ["tini", "--", "sh", "-c", SERVERS], "readinessProbe": probe}),
        pod(namespace, "early", image, labels={"app": "late"}),
    ]


@pytest.fixture(scope="module")
def workloads(team: Team, kubectl: Kubectl) -> Team:
    """All of them, made at once in one namespace; a pod `early` is there before its identity."""
    names = _pods(team.namespace, team.image)
    team.apply(names.pop())
    team.wait_for("early")
    team.identity("late", selector={"matchLabels": {"app": "late"}})
    team.identity("web", ingress={"ports": [8080]})
    team.identity()
    team.policy(READ)
    team.apply(*names, *_workloads(team.namespace, team.image))
    kubectl("create", "job", f"--namespace={team.namespace}", "as-cron-job-now", "--from=cronjob/as-cron-job")
    return team


@pytest.fixture(scope="module")
def ready(workloads: Team, kubectl: Kubectl) -> Team:
    """The same, once all of them are ready."""
    until_pods_are_ready(kubectl, workloads.namespace, *PODS)
    until("the others are ready", lambda: not rollout(kubectl, workloads.namespace, *ROLLED_OUT), READY_S)
    return workloads


@pytest.fixture(scope="module")
def completed(ready: Team, kubectl: Kubectl) -> Team:
    """The same, once the Jobs are complete."""

    def are_over() -> bool:
        jobs = kubectl.json("jobs", f"--namespace={ready.namespace}")["items"]
        for one in jobs:
            assert not one["status"].get("failed"), _told(kubectl, ready, one["metadata"]["name"])
        return all(is_true(one, "Complete") for one in jobs)

    until("the Jobs are complete", are_over)
    return ready


def _told(kubectl: Kubectl, team: Team, job: str) -> str:
    """What the containers of a Job that failed said."""
    which = ("logs", f"--namespace={team.namespace}", f"job/{job}", "--all-containers", "--prefix")
    return kubectl(*which)


def _found(kubectl: Kubectl, team: Team, selector: str) -> list[Object]:
    items: list[Object] = kubectl.json("pods", f"--namespace={team.namespace}", f"--selector={selector}")["items"]
    return items


def _condition(kubectl: Kubectl, team: Team, identity: str, kind: str) -> Object:
    status = kubectl.json("agentidentity", identity, f"--namespace={team.namespace}").get("status", {})
    return next((one for one in status.get("conditions") or () if one["type"] == kind), {"status": "Unknown"})


def _row(kubectl: Kubectl, team: Team, identity: str) -> dict[str, str]:
    """An identity as a person lists it, by the table's headings."""
    head, line = kubectl("get", "agentidentities", f"--namespace={team.namespace}", identity).splitlines()
    starts = [head.index(name) for name in head.split()]
    return {head[a:b].strip(): line[a:b].strip() for a, b in zip(starts, [*starts[1:], len(line)], strict=True)}


def test_every_kind_of_workload_is_injected_and_gets_ready(ready: Team, kubectl: Kubectl):
    pods = _found(kubectl, ready, "app=billing")
    owners = {one["metadata"].get("ownerReferences", [{"kind": "nobody"}])[0]["kind"] for one in pods}
    assert owners == {"ReplicaSet", "StatefulSet", "Job", "nobody"}
    for one in pods:
        assert tuple(init["name"] for init in one["spec"]["initContainers"])[:3] == CONTAINERS
        assert one["metadata"]["labels"]["chaperone.dev/identity"] == "billing"
        assert not one["spec"]["automountServiceAccountToken"]


@pytest.mark.parametrize(("job", "text"), [("as-job", JOB_TEXT), ("as-cron-job-now", CRON_JOB_TEXT)])
def test_a_job_completes_and_everything_it_did_is_listed_in_a_closed_session(
    completed: Team, kubectl: Kubectl, job: str, text: str
):
    (ended,) = _found(kubectl, completed, f"job-name={job}")
    assert ended["status"]["phase"] == "Succeeded"
    assert Pod(kubectl, completed.namespace, ended["metadata"]["name"]).logs("main").strip() in {"engine", "compiler"}
    # The gateway ended before its pod did, so nothing can still be on its way.
    (command,) = completed.commands(command=text)
    assert (command["spec"]["decision"], command["status"]["rows"]) == ("Allow", 1)
    session = kubectl.json("session", command["spec"]["session"], f"--namespace={completed.namespace}")
    assert (session["status"]["state"], session["status"]["commands"]) == ("Closed", 1)


def test_the_identity_counts_its_pods_and_forgets_those_that_ended(completed: Team, kubectl: Kubectl):
    # as-deployment, as-statefulset and five pods; the Jobs' two are over, `web` is another's.
    until("seven pods are covered", lambda: _row(kubectl, completed, "billing")["COVERED"] == "7")
    row = _row(kubectl, completed, "billing")
    assert (row["UNCOVERED"], row["READY"]) == ("0", "True")
    covered = _condition(kubectl, completed, "billing", "Covered")
    assert (covered["status"], covered["reason"]) == ("True", "AllPods")


def test_a_user_without_rights_reaches_the_database(ready: Team, kubectl: Kubectl):
    agent = Pod(kubectl, ready.namespace, "non-root")
    assert agent.run("id", "-u").out == "1000\n"
    # Without a line in /etc/passwd libpq wants to be told a name; which one is all the same.
    done = agent.run(
        "psql", f"host={HOST} dbname=orders user=me sslmode=verify-full", "-Atc", "SELECT count(*) FROM orders"
    )
    assert (done.status, done.out) == (0, "4\n"), done.err


def test_a_container_that_cannot_write_reaches_the_database(ready: Team, kubectl: Kubectl):
    agent = Pod(kubectl, ready.namespace, "read-only")
    assert agent.run("touch", "/tmp/anything").status == 1
    done = agent.psql("SELECT count(*) FROM orders")
    assert (done.status, done.out) == (0, "4\n"), done.err


def test_an_agent_that_keeps_no_pool_begins_a_hundred_sessions_one_after_the_other(ready: Team, kubectl: Kubectl):
    program = f"""
import psycopg
for _ in range({SESSIONS}):
    with psycopg.connect("host={HOST} dbname=orders sslmode=verify-full") as session:
        assert session.execute("SELECT count(*) FROM orders").fetchone()[0] == 4
"""
    done = Pod(kubectl, ready.namespace, "as-pod").python(program)
    assert done.status == 0, done.err


def test_a_service_account_of_its_own_is_replaced_by_one_that_opens_nothing(ready: Team, kubectl: Kubectl):
    agent = Pod(kubectl, ready.namespace, "own-account")
    assert "account" not in {volume["name"] for volume in agent.seen["spec"]["volumes"]}
    assert agent.run("cat", f"{ACCOUNT}/namespace").out == ready.namespace
    assert agent.run("cat", f"{ACCOUNT}/ca.crt").out == agent.run("cat", "/etc/chaperone-trust/ca.crt").out != ""
    token = agent.run("cat", f"{ACCOUNT}/token").out
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    told = json.loads(kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(review)))
    assert token
    assert not told["status"].get("authenticated", False)


def test_an_init_container_of_the_agent_is_held_like_the_agent_itself(ready: Team, kubectl: Kubectl):
    agent = Pod(kubectl, ready.namespace, "with-init")
    assert agent.logs("before") == "relay\n"
    restarts = [one["restartCount"] for one in agent.seen["status"]["initContainerStatuses"]]
    assert restarts == [0, 0, 0, 0], agent.logs("before", "--previous")
    until("its command is listed", lambda: bool(ready.commands(command=INIT_TEXT)))
    (command,) = ready.commands(command=INIT_TEXT)
    assert command["spec"]["decision"] == "Allow"


def test_a_declared_port_is_reached_from_outside_and_another_is_not(ready: Team, kubectl: Kubectl, free_pod: Pod):
    agent = Pod(kubectl, ready.namespace, "web")
    for address in agent.addresses:
        host = f"[{address}]" if ":" in address else address
        declared, other = f"http://{host}:8080/etc/hostname", f"http://{host}:8081/etc/hostname"
        ask = ("curl", "--silent", "--globoff", "--max-time")
        assert free_pod.run(*ask, "30", declared).out == "web\n"
        assert agent.run(*ask, "30", "--noproxy", "*", "http://[::1]:8081/etc/hostname").out == "web\n"
        assert free_pod.run(*ask, "4", other).status in {7, 28}  # cannot connect, or nobody answers


def test_a_pod_older_than_its_identity_is_uncovered_until_it_is_made_anew(ready: Team, kubectl: Kubectl):
    row = _row(kubectl, ready, "late")
    assert (row["COVERED"], row["UNCOVERED"]) == ("0", "1")
    covered = _condition(kubectl, ready, "late", "Covered")
    assert (covered["status"], covered["reason"]) == ("False", "ExistedBefore")
    assert covered["message"] == ("early: older than the identity; delete the pod, and it is made anew with a gateway.")
    status = kubectl.json("agentidentity", "late", f"--namespace={ready.namespace}")["status"]
    assert status["pods"]["uncoveredNames"] == ["early"]
    assert "early: older than the identity" in kubectl("describe", "agentidentity", "late", f"-n{ready.namespace}")

    kubectl("delete", "pod", "early", f"--namespace={ready.namespace}")
    ready.pod("early", app="late")
    until("it is covered", lambda: _condition(kubectl, ready, "late", "Covered")["reason"] == "AllPods")
    row = _row(kubectl, ready, "late")
    assert (row["COVERED"], row["UNCOVERED"]) == ("1", "0")


def test_a_pod_of_two_identities_is_refused_with_both_names(ready: Team):
    ready.identity("left", selector={"matchLabels": {"both": "yes"}})
    ready.identity("right", selector={"matchExpressions": [{"key": "both", "operator": "Exists"}]})
    with pytest.raises(ToolsError) as refused:
        ready.apply(pod(ready.namespace, "torn", ready.image, labels={"both": "yes"}))
    assert "[two-identities] AgentIdentities left, right select this pod" in str(refused.value)
    assert "change selectors or labels so that one does" in str(refused.value)


def test_a_namespace_whose_pod_security_refuses_the_fence_says_what_to_do(ready: Team, kubectl: Kubectl):
    name = f"{ready.namespace}-restricted"
    make_namespace(kubectl, name, **{"pod-security.kubernetes.io/enforce": "restricted"})
    strict = Team(kubectl, name, ready.image)
    try:
        spec = {"selector": {"matchLabels": {"app": "billing"}}, "owner": {"name": "On call"}}
        strict.apply(named("AgentIdentity", "billing", spec, name))
        until("it is refused", lambda: _condition(kubectl, strict, "billing", "Ready")["status"] == "False")
        advice = (
            f"Namespace {name} enforces Pod Security restricted, which refuses the capabilities of fence and gateway"
        )
        remedy = "Label the namespace pod-security.kubernetes.io/enforce=privileged"
        for kind in ("Ready", "Covered"):
            found = _condition(kubectl, strict, "billing", kind)
            assert (found["status"], found["reason"]) == ("False", "PodSecurityRefuses")
            assert advice in found["message"]
            assert remedy in found["message"]
        assert _row(kubectl, strict, "billing")["READY"] == "False"
        until("the event is there", lambda: remedy in kubectl("get", "events", f"-n{name}", "--output=wide"))
        with pytest.raises(ToolsError, match='violates PodSecurity "restricted'):
            strict.apply(pod(name, "agent", ready.image, labels={"app": "billing"}))

        kubectl("label", "namespace", name, "--overwrite", "pod-security.kubernetes.io/enforce=privileged")
        strict.until_ready("agentidentity", "billing")
        strict.pod()
    finally:
        kubectl("delete", "namespace", name, "--wait=false")
