"""Another version, none at all, and the first one again: what an agent that runs notices of it, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from stage import HOST, READ, TARGET, Kubectl, Object, Pod, Ran, Team, chaperone, pod, until

from chaperone_tools.cache import binary, checkout
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.errors import ToolsError
from chaperone_tools.install import API_SERVICE, RELEASE, WEBHOOKS, Installed, install, rollout
from chaperone_tools.run import run, succeeds

pytestmark = pytest.mark.cluster

OPERATOR: Final = "deployment/chaperone-operator"
SPOOL_MIB: Final = 320
OTHER_SPOOL_MIB: Final = 288
CROWD: Final = 25  # pods at once: a request in fifteen would meet two replicas that do not agree
THROUGH_AN_UPGRADE: Final = "SELECT item FROM orders WHERE id = 3"
WITHOUT_CHAPERONE: Final = "SELECT item FROM orders WHERE id = 4"
DEFINITIONS: Final = ("agentidentities", "accesstargets", "accesspolicies", "clusteraccesspolicies")
KEPT_SECRETS: Final = ("chaperone-ca", "chaperone-gateway-ca", "chaperone-mask-key")
NOWHERE: Final = {"nodeSelector": {"chaperone-e2e": "nowhere"}}  # admitted, and never run
HELM_LIMIT_S: Final = 240.0
WORK_LIMIT_S: Final = 800.0  # of an agent's work, which lasts as long as an upgrade or a whole installation does
REPLACED_S: Final = 180.0  # one replica after the other

# One session that lasts, and with the argument `anew` another one each round, until it is told to stop.
WORK: Final = f"""
import pathlib, psycopg, sys, time
where = "host={HOST} dbname=orders sslmode=verify-full"
begun, stop, rounds = pathlib.Path("/tmp/begun"), pathlib.Path("/tmp/stop"), 0
stop.unlink(missing_ok=True)
ask = lambda session: session.execute(sys.argv[1]).fetchone()[0]
with psycopg.connect(where, autocommit=True, prepare_threshold=None) as lasting:
    while not stop.exists():
        assert ask(lasting) == "relay"
        rounds += 1
        if "anew" in sys.argv:
            with psycopg.connect(where, autocommit=True) as fresh:
                assert ask(fresh) == "relay"
        begun.touch()
        time.sleep(0.1)
stop.unlink()
begun.unlink()
print(rounds)
"""


@pytest.fixture(scope="module")
def agents(team: Team) -> Team:
    """A team with an agent, and another one that has not used its target yet."""
    team.identity()
    team.policy(READ)
    team.pod()
    team.pod("idle")
    return team


@contextmanager
def _at_work(agent: Pod, statement: str, *options: str) -> Iterator[Future[Ran]]:
    """An agent at work for as long as the block runs; afterwards what it did. It ends with the first failure."""
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(agent.python, WORK, statement, *options, limit_s=WORK_LIMIT_S)
        until("it has begun", lambda: agent.run("test", "-e", "/tmp/begun").status == 0 or working.done())
        try:
            yield working
        finally:
            agent.run("touch", "/tmp/stop")


def _upgrade(cluster: Provider, system: str, spool_mib: int) -> str:
    """Upgrade to the same chart with another size of the spool; gives what helm tells the person."""
    return run(
        binary("helm"), f"--kubeconfig={cluster.kubeconfig()}", "upgrade", RELEASE,
        checkout() / "charts" / "chaperone", f"--namespace={system}", "--reuse-values",
        "--set", f"spoolBytes={spool_mib << 20}", limit_s=HELM_LIMIT_S,
    )  # fmt: skip


def _spool(kubectl: Kubectl, team: Team, name: str) -> tuple[str, str]:
    """What a pod's gateway is told of its spool, and the size of its volume."""
    spec = kubectl.json("pod", name, f"--namespace={team.namespace}")["spec"]
    (gateway,) = (one for one in spec["initContainers"] if one["name"] == "chaperone-gateway")
    (told,) = (one["value"] for one in gateway["env"] if one["name"] == "CHAPERONE_SPOOL_BYTES")
    (volume,) = (one["emptyDir"]["sizeLimit"] for one in spec["volumes"] if one["name"] == "chaperone-spool")
    return told, volume


def _parts(kubectl: Kubectl, system: str, *components: str) -> set[str]:
    selector = f"--selector=app.kubernetes.io/name=chaperone,app.kubernetes.io/component in ({','.join(components)})"
    return {one["metadata"]["uid"] for one in kubectl.json("pods", f"--namespace={system}", selector)["items"]}


def _restarts(seen: Object) -> list[tuple[str, int, bool]]:
    status = seen["status"]
    return [
        (one["name"], one["restartCount"], one["ready"])
        for one in (*status["initContainerStatuses"], *status["containerStatuses"])
    ]


def _is_replaced(kubectl: Kubectl, system: str) -> bool:
    """Whether the new replicas of the operator are ready and the old ones gone."""
    return not rollout(kubectl, system, OPERATOR) and len(_parts(kubectl, system, "operator")) == 2


def test_an_upgrade_replaces_the_operator_and_no_agent_notices(
    agents: Team, kubectl: Kubectl, cluster: Provider, chaperone_installed: Installed
):
    system, agent = chaperone_installed.namespace, Pod(kubectl, agents.namespace, "agent")
    before, operators = _parts(kubectl, system, "broker", "collector"), _parts(kubectl, system, "operator")
    seen = agent.seen

    with _at_work(agent, THROUGH_AN_UPGRADE, "anew") as working:
        notes = _upgrade(cluster, system, SPOOL_MIB)
        until("the operator is replaced", lambda: _is_replaced(kubectl, system), REPLACED_S)
        agents.apply(pod(agents.namespace, "new", agents.image, labels={"app": "billing"}, **NOWHERE))
    done = working.result()
    assert done.status == 0, done.err
    assert int(done.out) > 10
    assert (agent.seen["metadata"]["uid"], _restarts(agent.seen)) == (seen["metadata"]["uid"], _restarts(seen))

    assert f"kubectl -n {system} rollout status deploy/chaperone-operator" in notes
    assert "kubectl get sessions -A" in notes
    assert not operators & _parts(kubectl, system, "operator")
    assert _parts(kubectl, system, "broker", "collector") == before
    assert _spool(kubectl, agents, "new") == (str(SPOOL_MIB << 20), f"{SPOOL_MIB + 64}Mi")
    assert _spool(kubectl, agents, "agent") == (str(256 << 20), "320Mi")


def test_no_pod_is_refused_while_replicas_of_two_versions_answer(
    agents: Team, kubectl: Kubectl, cluster: Provider, chaperone_installed: Installed
):
    system = chaperone_installed.namespace
    crowd = [pod(agents.namespace, f"crowd-{n}", agents.image, labels={"app": "billing"}) for n in range(CROWD)]
    documents = "\n---\n".join(map(json.dumps, crowd))
    made = 0

    def is_replaced() -> bool:
        nonlocal made
        kubectl("create", "--dry-run=server", "--filename=-", stdin=documents)
        made += CROWD
        return _is_replaced(kubectl, system)

    _upgrade(cluster, system, OTHER_SPOOL_MIB)
    until("the operator is replaced", is_replaced, REPLACED_S)
    assert made > CROWD


@pytest.mark.timeout(1500)  # the installation at its end must not be cut off
def test_agents_outlive_an_uninstallation_and_go_on_with_the_next_installation(
    agents: Team, kubectl: Kubectl, cluster: Provider, chaperone_installed: Installed, tmp_path: Path
):
    system, agent = chaperone_installed.namespace, Pod(kubectl, agents.namespace, "agent")
    before, authorities = agent.seen, _kept(kubectl, system)
    with _at_work(agent, WITHOUT_CHAPERONE) as working:
        try:
            run(
                binary("helm"), f"--kubeconfig={cluster.kubeconfig()}", "uninstall", RELEASE, f"--namespace={system}",
                "--wait", limit_s=HELM_LIMIT_S,
            )  # fmt: skip
            until("all parts are gone", lambda: not _parts(kubectl, system, "operator", "broker", "collector"))
            _is_gone_but_for_what_is_kept(kubectl, agents, system)
            # The session that was open goes on; who has no lease yet is told why none can be had.
            refused = Pod(kubectl, agents.namespace, "idle").psql(WITHOUT_CHAPERONE)
            assert refused.status == 2
            assert f'FATAL:  Chaperone: Target "{TARGET}" cannot be used: ' in refused.err
            assert "broker" in refused.err
            assert agent.run("curl", "--silent", "--max-time", "30", "https://kubernetes.default.svc").status == 6
            assert not working.done(), working.result().err
            agents.apply(pod(agents.namespace, "unheld", agents.image, labels={"app": "billing"}, **NOWHERE))
        finally:
            install(cluster)
    done = working.result()
    assert done.status == 0, done.err
    assert int(done.out) > 10
    assert _kept(kubectl, system) == authorities
    assert _restarts(agent.seen) == _restarts(before)

    asked = agent.psql("SELECT count(*) FROM orders")
    assert (asked.status, asked.out) == (0, "4\n"), asked.err
    # The API server has to learn anew which kinds the collector serves.
    ask = (binary("kubectl"), f"--kubeconfig={cluster.kubeconfig()}", "get", f"--namespace={agents.namespace}")
    until("its kinds are known", lambda: succeeds(*ask, "sessions,commands"))
    # What was done meanwhile waited in the gateway's spool.
    commands: list[Object] = []

    def are_listed() -> bool:
        commands[:] = agents.commands(command=WITHOUT_CHAPERONE)
        return len(commands) >= int(done.out)

    until("what was done meanwhile is listed", are_listed)
    assert len(commands) == int(done.out)
    assert len({one["spec"]["session"] for one in commands}) == 1
    proof, trust = tmp_path / "proof.tar", tmp_path / "proof.trust.pem"

    def is_proved() -> bool:
        session = commands[0]["spec"]["session"]
        chaperone(kubectl, "export", f"--namespace={agents.namespace}", session, f"--output={proof}")
        return chaperone(kubectl, "verify", str(proof), f"--trust={trust}").out.endswith("verify: OK\n")

    until("its session's proof verifies", is_proved)
    agents.until_ready("agentidentity", "billing")

    def is_told() -> bool:
        status = kubectl.json("agentidentity", "billing", f"--namespace={agents.namespace}")["status"]
        return bool(status["pods"]["uncoveredNames"] == ["unheld"])

    until("the pod that nobody injected is uncovered", is_told)
    agents.pod("successor")


def _kept(kubectl: Kubectl, system: str) -> list[Object]:
    """The authorities on which running gateways rely."""
    found = [kubectl.json("secret", name, f"--namespace={system}") for name in KEPT_SECRETS]
    found.append(kubectl.json("configmap", "chaperone-trust", f"--namespace={system}"))
    return [one["data"] for one in found]


def _is_gone_but_for_what_is_kept(kubectl: Kubectl, agents: Team, system: str) -> None:
    for gone in (*WEBHOOKS, f"apiservice/{API_SERVICE}", "validatingadmissionpolicy/chaperone-agents"):
        assert not kubectl("get", gone, "--ignore-not-found")
    assert not kubectl("get", "deployments,statefulsets", f"--namespace={system}", "--output=name")
    with pytest.raises(ToolsError, match=r"could not find the requested resource|doesn't have a resource type"):
        kubectl("get", "sessions", f"--namespace={agents.namespace}")
    for definition in DEFINITIONS:
        kubectl("get", f"customresourcedefinition/{definition}.chaperone.dev")
    assert kubectl("get", "accesstarget", TARGET, "--output=name").strip()
    for kind in ("agentidentity", "accesspolicy"):
        assert kubectl("get", kind, "billing", f"--namespace={agents.namespace}", "--output=name").strip()
    kubectl("get", "persistentvolumeclaim", "data-chaperone-collector-0", f"--namespace={system}")
