"""What admission refuses in a real cluster, in the words that a person reads, and who answers when replicas go away."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from stage import Kubectl, Object, Pod, Ran, Team, make_namespace, pod, until

from chaperone_tools.cache import binary
from chaperone_tools.errors import ToolsError
from chaperone_tools.install import Installed, rollout

pytestmark = pytest.mark.cluster

PERSON: Final = "alice@example.com"
RUNTIME_CLASS: Final = "chaperone-e2e-sandbox"
OPERATOR: Final = "deployment/chaperone-operator"
KUBECTL_LIMIT_S: Final = 30.0
NOWHERE: Final = {"nodeSelector": {"chaperone-e2e": "nowhere"}}  # admitted, and never run
TOLD: Final = "Chaperone refuses: "


def _main(**security: Any) -> Object:
    return {"container": {"securityContext": security}}


def _host_path() -> Object:
    return {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}


UNFIT: Final[list[tuple[str, Object, str, str]]] = [
    ("host-network", {"hostNetwork": True}, "spec.hostNetwork lets the agent leave the pod", "remove it"),
    ("host-pid", {"hostPID": True}, "spec.hostPID lets the agent leave the pod", "remove it"),
    ("host-ipc", {"hostIPC": True}, "spec.hostIPC lets the agent leave the pod", "remove it"),
    (
        "share-process-namespace",
        {"shareProcessNamespace": True},
        "spec.shareProcessNamespace lets the agent reach into the gateway",
        "remove it",
    ),
    ("privileged", _main(privileged=True), "a privileged container can take the fence down", "remove privileged"),
    *(
        ("capability", _main(capabilities={"add": [name]}), f"the capability {name} may not be added", "remove it")
        for name in ("NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "BPF")
    ),
    ("host-path", _host_path(), "spec.volumes[0] (node) opens the node to the agent", "use another kind of volume"),
    ("reserved-id", _main(runAsUser=64138), "runAsUser 64138 is Chaperone's own", "use another"),
    ("reserved-id", _main(runAsGroup=64137), "runAsGroup 64137 is Chaperone's own", "use another"),
    ("reserved-id", {"securityContext": {"fsGroup": 64137}}, "fsGroup 64137 is Chaperone's own", "use another"),
    (
        "reserved-id",
        {"securityContext": {"supplementalGroups": [64138]}},
        "supplementalGroups 64138 is Chaperone's own",
        "use another",
    ),
    (
        "runtime-class",
        {"runtimeClassName": RUNTIME_CLASS},
        f"spec.runtimeClassName {RUNTIME_CLASS} is not known to run the fence",
        "let the administrator add it",
    ),
    (
        "reserved-name",
        {"container": {"name": "chaperone-helper"}},
        "spec.containers[0] (chaperone-helper): names that begin with chaperone- are Chaperone's",
        "use another",
    ),
    (
        "reserved-name",
        {"initContainers": [{"name": "chaperone-gateway", "image": "mine"}]},
        "spec.initContainers[0] (chaperone-gateway): names that begin with chaperone- are Chaperone's",
        "use another",
    ),
]


@pytest.fixture(scope="module")
def agents(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Team]:
    """A namespace with an identity and no target."""
    name = f"admission-{secrets.token_hex(4)}"
    make_namespace(kubectl, name)
    found = Team(kubectl, name, agent_image)
    found.identity()
    yield found
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def agent(agents: Team) -> Pod:
    """An agent that runs."""
    return agents.pod()


@pytest.fixture(scope="module")
def runtime_class(kubectl: Kubectl) -> Iterator[None]:
    """A RuntimeClass that exists; nothing is known of its netfilter."""
    kubectl.apply(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": RUNTIME_CLASS},
            "handler": "sandbox",
        }
    )
    yield
    kubectl("delete", "runtimeclass", RUNTIME_CLASS)


def _run(kubectl: Kubectl, *arguments: str) -> Ran:
    """kubectl as somebody types it who may be told no."""
    done = subprocess.run(
        [str(binary("kubectl")), f"--kubeconfig={kubectl.kubeconfig}", *arguments],
        capture_output=True, text=True, timeout=KUBECTL_LIMIT_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def _agent_pod(team: Team, name: str, **spec: Any) -> Object:
    return pod(team.namespace, name, team.image, labels={"app": "billing"}, **spec)


def _refused(team: Team, *objects: Object) -> str:
    """What `kubectl apply` says to something that must not be."""
    with pytest.raises(ToolsError) as refused:
        team.apply(*objects)
    return str(refused.value)


def _is_taken(team: Team, wanted: Object) -> bool:
    try:
        team.apply(wanted)
    except ToolsError as error:
        assert "failed calling webhook" in str(error)
        return False
    return True


def _is_injected(kubectl: Kubectl, team: Team, name: str) -> bool:
    found = kubectl.json("pod", name, f"--namespace={team.namespace}")["spec"]["initContainers"]
    return [one["name"] for one in found] == ["chaperone-fence", "chaperone-gateway", "chaperone-opa"]


# Pods that cannot be fenced


@pytest.mark.parametrize(("rule", "spec", "wrong", "remedy"), UNFIT, ids=lambda value: value if value is str else None)
@pytest.mark.usefixtures("runtime_class")
def test_a_pod_that_cannot_be_fenced_is_refused_with_rule_and_remedy(
    agents: Team, rule: str, spec: Object, wrong: str, remedy: str
):
    said = _refused(agents, _agent_pod(agents, "unfit", **json.loads(json.dumps(spec))))
    assert TOLD in said
    assert f"[{rule}] " in said
    assert wrong in said
    assert remedy in said.split(wrong)[1]


def test_an_extra_network_is_refused(agents: Team):
    wanted = _agent_pod(agents, "unfit")
    wanted["metadata"]["annotations"] = {"k8s.v1.cni.cncf.io/networks": "other"}
    said = _refused(agents, wanted)
    assert "[extra-network] metadata.annotations k8s.v1.cni.cncf.io/networks gives the pod a network" in said
    assert "remove it" in said


def test_everything_that_is_wrong_is_told_at_once(agents: Team):
    said = _refused(agents, _agent_pod(agents, "unfit", hostNetwork=True, **_host_path(), **_main(privileged=True)))
    for rule in ("host-network", "host-path", "privileged"):
        assert f"[{rule}]" in said


def test_nobody_sets_our_label_by_hand(agents: Team):
    said = _refused(agents, pod(agents.namespace, "false", agents.image, labels={"chaperone.dev/identity": "billing"}))
    assert "chaperone.dev/identity" in said
    assert "make an AgentIdentity that selects the pod" in said or "is set by Chaperone alone; remove it" in said


def test_a_workload_that_cannot_be_fenced_says_so_in_its_events(agents: Team, kubectl: Kubectl):
    template = {"metadata": {"labels": {"app": "billing"}}, "spec": _agent_pod(agents, "any", hostPID=True)["spec"]}
    agents.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "unfit", "namespace": agents.namespace},
            "spec": {"selector": {"matchLabels": {"app": "billing"}}, "template": template},
        }
    )

    def is_told() -> bool:
        events = kubectl.json("events", f"--namespace={agents.namespace}", "--field-selector=reason=FailedCreate")
        return any("[host-pid] spec.hostPID lets the agent" in one["message"] for one in events["items"])

    until("the reason stands in an event", is_told)
    kubectl("delete", "deployment", "unfit", f"--namespace={agents.namespace}")


# Ephemeral containers


def _debug(kubectl: Kubectl, agent: Pod, *more: str) -> Ran:
    image = agent.seen["spec"]["containers"][0]["image"]
    words = ("debug", f"--namespace={agent.namespace}", agent.name, f"--image={image}", "--attach=false", *more)
    return _run(kubectl, *words, "--", "true")


@pytest.mark.parametrize(
    ("profile", "wrong", "remedy"),
    [
        ("netadmin", "NET_ADMIN", "take them out of securityContext.capabilities.add"),
        ("general", "SYS_PTRACE", "take them out of securityContext.capabilities.add"),
        ("sysadmin", "a privileged container cannot be fenced", "take securityContext.privileged out"),
    ],
)
def test_a_debug_container_that_could_leave_is_refused(
    agent: Pod, kubectl: Kubectl, profile: str, wrong: str, remedy: str
):
    done = _debug(kubectl, agent, f"--profile={profile}")
    assert done.status == 1
    assert wrong in done.err
    assert remedy in done.err.split(wrong)[1]  # the API server's own lock, which is asked first
    assert "ephemeralContainers" not in agent.seen["spec"]


@pytest.mark.parametrize(
    ("security", "rule", "wrong"),
    [
        ({"capabilities": {"add": ["SYS_TIME"]}}, "capability", "the capability SYS_TIME may not be added"),
        ({"capabilities": {"add": ["DAC_READ_SEARCH"]}}, "capability", "the capability DAC_READ_SEARCH may not be"),
        ({"runAsUser": 64138}, "reserved-id", "runAsUser 64138 is Chaperone's own; use another"),
        ({"runAsGroup": 64137}, "reserved-id", "runAsGroup 64137 is Chaperone's own; use another"),
    ],
)
def test_a_debug_container_that_breaks_another_rule_is_refused(
    agent: Pod, kubectl: Kubectl, tmp_path: Path, security: Object, rule: str, wrong: str
):
    custom = tmp_path / "custom.json"
    custom.write_text(json.dumps({"securityContext": security}))
    done = _debug(kubectl, agent, "--profile=baseline", f"--custom={custom}")
    assert done.status == 1, done
    assert f"{TOLD}[{rule}] " in done.err
    assert wrong in done.err


def test_a_debug_container_with_our_name_is_refused(agent: Pod, kubectl: Kubectl):
    done = _debug(kubectl, agent, "--profile=baseline", "--container=chaperone-debug")
    assert done.status == 1
    assert "[reserved-name] spec.ephemeralContainers[0] (chaperone-debug)" in done.err
    assert "use another" in done.err


# Updates


def test_what_was_injected_cannot_be_changed(agent: Pod, kubectl: Kubectl):
    where = f"--namespace={agent.namespace}"
    for change in (
        ("label", "pod", agent.name, "chaperone.dev/identity-"),
        ("label", "pod", agent.name, "chaperone.dev/identity=other", "--overwrite"),
    ):
        done = _run(kubectl, *change, where)
        assert done.status == 1
        assert (
            "the label chaperone.dev/identity of a pod cannot be set, changed or removed after its creation" in done.err
        )
        assert "delete the pod and make it anew" in done.err
    done = _run(kubectl, "annotate", "pod", agent.name, "chaperone.dev/injected-", where)
    assert done.status == 1
    assert f"{TOLD}[injected-changed] metadata.annotations chaperone.dev/injected never changes" in done.err
    for container in ("chaperone-fence", "chaperone-gateway", "chaperone-opa"):
        done = _run(kubectl, "set", "image", f"pod/{agent.name}", f"{container}=mine", where)
        assert done.status == 1
        assert f"{TOLD}[injected-changed] The container {container} never changes after creation" in done.err
        assert "make the pod anew" in done.err


def test_an_agent_that_loses_its_label_stays_an_agent(agents: Team, kubectl: Kubectl):
    agents.apply(_agent_pod(agents, "relabelled", **NOWHERE))
    kubectl("label", "pod", "relabelled", "app-", f"--namespace={agents.namespace}")
    assert _is_injected(kubectl, agents, "relabelled")
    done = _run(kubectl, "label", "pod", "relabelled", "chaperone.dev/identity-", f"--namespace={agents.namespace}")
    assert done.status == 1


def test_a_pod_that_runs_cannot_become_an_agent(agents: Team, kubectl: Kubectl):
    agents.apply(pod(agents.namespace, "free", agents.image, **NOWHERE))
    done = _run(kubectl, "label", "pod", "free", "app=billing", "--overwrite", f"--namespace={agents.namespace}")
    assert done.status == 1
    assert "[label-change] These labels would make a running pod an agent (billing) unfenced" in done.err
    assert "make it anew" in done.err


# People


@pytest.mark.parametrize("container", ["chaperone-fence", "chaperone-gateway", "chaperone-opa"])
@pytest.mark.parametrize("verb", ["exec", "attach"])
def test_nobody_enters_our_containers(agent: Pod, kubectl: Kubectl, verb: str, container: str):
    words = [verb, f"--namespace={agent.namespace}", agent.name, f"--container={container}"]
    done = _run(kubectl, *words, *(["--", "/bin/sh", "-c", "true"] if verb == "exec" else []))
    assert done.status == 1
    if container == "chaperone-fence" and verb == "attach":
        assert "cannot attach to" in done.err or "[our-container]" in done.err, done.err  # it ended long ago
        return
    assert f"[our-container] Nobody enters {container} by {verb}" in done.err, done.err
    assert "choose the agent's own container" in done.err


def test_who_enters_an_agents_container_is_noted_by_name(agent: Pod, kubectl: Kubectl):
    who = (f"--as={PERSON}", "--as-group=system:masters")
    done = _run(kubectl, "exec", *who, f"--namespace={agent.namespace}", agent.name, "--", "echo", "here")
    assert done.out == "here\n", done.err
    events = kubectl.json("events", f"--namespace={agent.namespace}", "--field-selector=reason=AgentEntered")["items"]
    (noted,) = [one for one in events if PERSON in one["message"]]
    assert noted["message"] == f"{PERSON} entered the container main by exec."
    assert (noted["involvedObject"]["kind"], noted["involvedObject"]["name"]) == ("Pod", agent.name)
    assert "echo" not in noted["message"]


def test_ports_of_an_agent_are_not_forwarded(agent: Pod, kubectl: Kubectl):
    done = _run(kubectl, "port-forward", f"--namespace={agent.namespace}", agent.name, ":8080")
    assert done.status == 1
    assert "[port-forward] A forwarded port goes past the fence into the pod" in done.err, done.err
    assert "declare spec.ingress.ports and use a Service" in done.err


def test_a_harmless_debug_container_is_let_in_without_raw_sockets(agent: Pod, kubectl: Kubectl):
    done = _debug(kubectl, agent, "--profile=baseline", "--container=look")
    assert done.status == 0, done.err
    (added,) = agent.seen["spec"]["ephemeralContainers"]
    assert added["name"] == "look"
    assert "NET_RAW" in added["securityContext"]["capabilities"]["drop"]


# Replicas


def _pods(kubectl: Kubectl, system: str) -> list[Object]:
    selector = "--selector=app.kubernetes.io/name=chaperone,app.kubernetes.io/component=operator"
    items: list[Object] = kubectl.json("pods", f"--namespace={system}", selector)["items"]
    return items


def _replicas(kubectl: Kubectl, system: str) -> list[str]:
    """Names of the operator's pods that stay."""
    found = _pods(kubectl, system)
    return sorted(one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"])


def _leader(kubectl: Kubectl, system: str) -> str:
    holder: str = kubectl.json("lease", "chaperone-operator", f"--namespace={system}")["spec"]["holderIdentity"]
    return holder.rpartition("_")[0]


def _is_writing(kubectl: Kubectl, system: str, replica: str) -> bool:
    text = kubectl("get", "--raw", f"/api/v1/namespaces/{system}/pods/{replica}:8080/proxy/metrics")
    return "chaperone_operator_writes 1.0" in text.splitlines()


def _writing(kubectl: Kubectl, system: str) -> list[bool]:
    """Of each replica; one that holds the Lease may not know it yet, or be late with it."""
    return sorted(_is_writing(kubectl, system, one) for one in _replicas(kubectl, system))


def _until_whole(kubectl: Kubectl, system: str) -> None:
    until(
        "all replicas are ready",
        lambda: not rollout(kubectl, system, OPERATOR) and len(_replicas(kubectl, system)) == 2,
    )


def test_a_replica_that_does_not_write_answers_like_the_one_that_does(
    agents: Team, kubectl: Kubectl, chaperone_installed: Installed
):
    system = chaperone_installed.namespace
    _until_whole(kubectl, system)
    until("one of them writes", lambda: _writing(kubectl, system) == [False, True])
    review = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "operation": "CREATE",
            "namespace": agents.namespace,
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": _agent_pod(agents, "asked"),
        },
    }
    answers = []
    for replica in _replicas(kubectl, system):
        path = f"/api/v1/namespaces/{system}/pods/https:{replica}:8443/proxy/mutate-pod"
        answer = json.loads(kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(review)))["response"]
        assert answer["allowed"]
        answers.append(base64.b64decode(answer["patch"]))
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert b"chaperone-gateway" in answers[0]


def test_injection_goes_on_while_the_replica_that_writes_goes_away(
    agents: Team, kubectl: Kubectl, chaperone_installed: Installed
):
    system = chaperone_installed.namespace
    _until_whole(kubectl, system)
    until("one of them writes", lambda: _leader(kubectl, system) in _replicas(kubectl, system))
    gone = _leader(kubectl, system)
    kubectl("delete", "pod", gone, f"--namespace={system}", "--wait=false")
    made: list[str] = []

    def is_whole() -> bool:
        made.append(f"meanwhile-{len(made)}")
        agents.apply(_agent_pod(agents, made[-1], **NOWHERE))
        assert _is_injected(kubectl, agents, made[-1])
        return gone not in kubectl("get", "pods", f"--namespace={system}") and not rollout(kubectl, system, OPERATOR)

    until("the other one has company again", is_whole)
    assert len(made) > 3
    until("somebody writes again", lambda: _leader(kubectl, system) in _replicas(kubectl, system))
    agents.identity("after", selector={"matchLabels": {"app": "after"}})


def test_without_any_replica_nothing_starts_but_what_is_exempt(
    agents: Team, agent: Pod, kubectl: Kubectl, chaperone_installed: Installed
):
    system = chaperone_installed.namespace
    _until_whole(kubectl, system)
    before = agent.seen["status"]
    kubectl("scale", OPERATOR, f"--namespace={system}", "--replicas=0")
    try:
        until("nobody answers", lambda: not _pods(kubectl, system))
        for wanted in (_agent_pod(agents, "unanswered"), pod(agents.namespace, "anybody", agents.image)):
            said = _refused(agents, wanted)
            assert 'failed calling webhook "mutate-pod.chaperone.dev"' in said
            assert "chaperone-operator" in said
        done = _run(kubectl, "exec", f"--namespace={agent.namespace}", agent.name, "--", "true")
        assert 'failed calling webhook "validate-exec.chaperone.dev"' in done.err
        for exempt in ("kube-system", "kube-public", system):
            name = f"e2e-{agents.namespace}"
            kubectl.apply(pod(exempt, name, agents.image, **NOWHERE))
            kubectl("delete", "pod", name, f"--namespace={exempt}", "--grace-period=0", "--force")
        now = agent.seen["status"]
        assert now["phase"] == "Running"
        assert now["initContainerStatuses"] == before["initContainerStatuses"]
    finally:
        kubectl("scale", OPERATOR, f"--namespace={system}", "--replicas=2")
        _until_whole(kubectl, system)
    until("the API server finds them", lambda: _is_taken(agents, _agent_pod(agents, "unanswered", **NOWHERE)))
    assert _is_injected(kubectl, agents, "unanswered")
