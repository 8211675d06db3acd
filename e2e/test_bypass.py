"""What an agent can try that is root in its container: nothing leaves its pod but what the gateway itself sends.

Each way in `outside.WAYS` is tried once in an agent's pod and once in a pod that nobody fences. The free pod shows that
the attempt is one; of the agent's, packets are counted where they would leave its pod. All ways of a pod are tried in
one run, at the first test's cost.

Left out: SCTP and DCCP, which the kernels of the test clusters do not have (their packets would be dropped like
those of UDP-Lite, for want of the mark); `AF_XDP`, which needs the capability that raw sockets need; QUIC, which is
UDP; tracing the gateway's process, for which one would have to see it first; `AF_VSOCK`, which no packet filter sees
and which leads to whoever runs a virtual machine: the runtime's seccomp profile decides on it, and refuses it from
containerd 1.7 and Docker 23 on (docs/limits.md).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import outside
import pytest
from outside import OUT4, OUT6, PROGRAM, SOURCE, WAYS, Outside, Packet, Places, Result, Seen, Way
from stage import HOST, READ, Database, Kubectl, Pod, Team, chaperone, make_namespace, until

from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

OUTSIDE = "e2e-outside"  # one at a time: addresses on the node have one owner
SLOWEST_S = 6.0  # of one attempt of the agent: what is refused is refused at once, what is dropped ends at a timeout
AT_START = (
    "tcp4", "tcp6", "udp4", "udp6", "dns_of_its_own", "api_service", "database_pod", "tcp_marked", "raw_icmp",
    "udp_answering_a_forged_question6",
)  # fmt: skip

TRIES_LIMIT_S = 400.0  # of all ways in one pod; a minute alone, and most of it timeouts

LISTEN = """
import pathlib, socket, time
enough = pathlib.Path("/tmp/enough")
enough.unlink(missing_ok=True)
server = socket.create_server(("::", 7777), family=socket.AF_INET6, dualstack_ipv6=True)
server.settimeout(0.2)
pathlib.Path("/tmp/listening").touch()
end = time.monotonic() + 100
while time.monotonic() < end:
    is_over = enough.exists()  # looked for first: what came before it is still taken
    try:
        print(server.accept()[1][0])
    except TimeoutError:
        if is_over:
            print("listening until now")
            break
"""
DIAL = """
import socket, sys, time
for target in sys.argv[1:]:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            socket.create_connection((target, 7777), timeout=3)
            print(target)
            break
        except OSError:
            time.sleep(0.05)
"""


@dataclass(frozen=True)
class Tried:
    """What came of every way in one pod, and what came out of that pod meanwhile."""

    results: dict[str, Result]
    seen: Seen


@pytest.fixture(scope="module")
def world(kubectl: Kubectl, agent_image: str) -> Iterator[Outside]:
    """Everything outside, played on the node."""
    make_namespace(kubectl, OUTSIDE)  # and with an earlier run's goes what that one has left on the node
    made = Outside(kubectl, OUTSIDE, agent_image)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        kubectl("delete", "namespace", OUTSIDE, "--wait=false")


@pytest.fixture(scope="module")
def agent(team: Team) -> Pod:
    """An agent that may read orders."""
    team.identity()
    team.policy(READ)
    return team.pod()


@pytest.fixture(scope="module")
def places(agent: Pod, world: Outside, kubectl: Kubectl, database: Database) -> Places:
    """Where the ways lead."""
    api = kubectl.json("endpointslices", "--namespace=default", "--selector=kubernetes.io/service-name=kubernetes")
    endpoint = api["items"][0]
    virtual = agent.run("getent", "ahostsv4", HOST).out.split()[0]
    return Places(
        node=world.node,
        database=database.address,
        database_service=database.service_address,
        api=kubectl.json("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"],
        api_endpoint=endpoint["endpoints"][0]["addresses"][0],
        api_endpoint_port=endpoint["ports"][0]["port"],
        virtual=virtual,
        token=agent.run("cat", "/var/run/secrets/kubernetes.io/serviceaccount/token").out,
    )


@pytest.fixture(scope="module")
def tried(agent: Pod, free_pod: Pod, world: Outside, places: Places) -> dict[str, Tried]:
    """Every way, in both pods at once."""
    pods = {"agent": agent, "free": free_pod}
    devices = {who: pod.run("cat", "/sys/class/net/eth0/iflink").out.strip() for who, pod in pods.items()}
    world.watch(**devices)
    with ThreadPoolExecutor() as threads:
        verbs = ("try", "prove")
        ran = dict(zip(pods, threads.map(lambda pod, verb: _try(pod, places, verb), pods.values(), verbs), strict=True))
    return {who: Tried(results, world.seen(who)) for who, results in ran.items()}


def _try(pod: Pod, places: Places, verb: str) -> dict[str, Result]:
    ran = pod.python(SOURCE, verb, json.dumps(_told(places)), limit_s=TRIES_LIMIT_S)
    assert ran.status == 0, ran.err
    return outside.results(ran.out)


def _told(places: Places) -> dict[str, Any]:
    return {key: value for key, value in asdict(places).items() if key != "port"}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_way_leads_out(way: Way, tried: dict[str, Tried]):
    result = tried["agent"].results[way.name]
    assert result.outcome == "stopped", result.said
    assert way.sent(tried["agent"].seen.packets) == ()
    assert result.seconds < SLOWEST_S


@pytest.mark.parametrize("way", [one for one in WAYS.values() if one.proof], ids=lambda one: one.name)
def test_the_way_is_open_to_a_pod_without_a_fence(way: Way, tried: dict[str, Tried]):
    result = tried["free"].results[way.name]
    if way.proof == "answer":
        assert result.outcome == "reached", result.said
    else:
        assert result.outcome != "broken", result.said
        assert way.sent(tried["free"].seen.packets), result.said


def test_nothing_left_the_pod_but_the_gateways_own_conversations(
    tried: dict[str, Tried], agent: Pod, kubectl: Kubectl, chaperone_installed: Installed
):
    def service(name: str, namespace: str) -> str:
        return str(kubectl.json("service", name, f"--namespace={namespace}")["spec"]["clusterIP"])

    resolver = agent.run("sed", "-n", "s/^nameserver //p", "/etc/resolv.conf").out.strip()
    system = chaperone_installed.namespace
    own = {
        (resolver, 17, 53),
        (resolver, 6, 53),
        (service("chaperone-broker", system), 6, 8443),
        (service("chaperone-collector", system), 6, 8443),
    }
    seen = tried["agent"].seen
    assert [one for one in seen.packets if (one.target, one.protocol, one.port) not in own] == []
    assert {one.source for one in seen.packets} <= set(agent.addresses)
    assert seen.others == 0


def test_nothing_of_the_agents_arrived(tried: dict[str, Tried], world: Outside, agent: Pod, free_pod: Pod):
    arrived = world.arrived()
    assert _from(free_pod, arrived), "the counter counts"
    assert _from(agent, arrived) == ()


def test_no_name_carries_anything_out(tried: dict[str, Tried]):
    assert "REFUSED" in tried["agent"].results["dns_tunnel"].said
    assert tried["agent"].seen.labels == 0
    assert tried["free"].seen.labels > 0


def test_the_token_of_the_agent_is_worth_nothing_to_the_api_server(tried: dict[str, Tried], places: Places):
    assert places.token.count(".") < 2, "a real token has three parts"
    for name in ("api_endpoint", "kubelet"):
        assert " 401 " in tried["free"].results[name].said, "presented with that token by a pod that gets there"


def test_nothing_gets_out_while_the_pod_starts(team: Team, world: Outside, places: Places, tried: dict[str, Tried]):
    environment = [PROGRAM, {"name": "PLACES", "value": json.dumps(_told(places))}]
    attempt = f'exec python3 -c "$PROGRAM" try "$PLACES" {" ".join(AT_START)}'
    first = {
        "name": "first", "image": team.image, "imagePullPolicy": "IfNotPresent", "env": environment,
        "command": ["sh", "-c", attempt],
    }  # fmt: skip
    hook = {"exec": {"command": ["sh", "-c", f"{attempt} > /tmp/started"]}}
    pod = team.pod("starting", initContainers=[first], container={"env": environment, "lifecycle": {"postStart": hook}})
    for printed in (pod.logs("first"), pod.run("cat", "/tmp/started").out):
        results = outside.results(printed)
        assert {name: one.said for name, one in results.items() if one.outcome != "stopped"} == {}
        assert results.keys() == set(AT_START)
    assert _from(pod, world.arrived()) == ()
    open_ones = {name for name in AT_START if WAYS[name].proof}
    assert open_ones <= {name for name, one in tried["free"].results.items() if one.outcome == "reached"}


def test_nobody_gets_in_where_no_port_is_declared(agent: Pod, free_pod: Pod, world: Outside):
    pods = (free_pod, agent)
    with ThreadPoolExecutor() as threads:
        heard = [threads.submit(pod.python, LISTEN) for pod in pods]
        try:
            for pod in pods:
                until("it listens", lambda pod=pod: pod.run("test", "-e", "/tmp/listening").status == 0)  # type: ignore[misc]
            dialled = world.python(DIAL, *free_pod.addresses, *agent.addresses)
        finally:
            for pod in pods:
                pod.run("touch", "/tmp/enough")
        came, nobody = (one.result().out.splitlines() for one in heard)
    assert dialled.splitlines() == free_pod.addresses
    assert len(came) == 3
    assert came[-1] == "listening until now"
    assert nobody == ["listening until now"]


def test_the_agent_still_works_and_what_it_tried_is_on_record(
    tried: dict[str, Tried], agent: Pod, team: Team, kubectl: Kubectl, tmp_path: Path
):
    done = agent.psql("SELECT count(*) FROM orders")
    assert (done.status, done.out) == (0, "4\n"), done.err
    until("the command is listed", lambda: bool(team.commands(command="SELECT count(*) FROM orders")))
    session = team.commands(command="SELECT count(*) FROM orders")[0]["spec"]["session"]
    proof, trust = tmp_path / "proof.tar", tmp_path / "proof.trust.pem"

    def is_proved() -> bool:
        exported = chaperone(kubectl, "export", f"--namespace={team.namespace}", session, f"--output={proof}")
        verified = chaperone(kubectl, "verify", str(proof), f"--trust={trust}")
        print(exported.err, verified.out, verified.err)
        return verified.out.endswith("verify: OK\n")

    until("the session's proof verifies", is_proved)
    records = list(_records(proof))
    egress = {(one["address"], one["port"]) for one in records if one["type"] == "egress.denied"}
    assert (OUT4, WAYS["tcp4"].port) in egress
    assert (OUT6, WAYS["tcp6"].port) in egress
    assert (outside.METADATA, 80) in egress
    names = {one["name"] for one in records if one["type"] == "dns.denied"}
    assert any(name.startswith(f"{outside.LABEL.decode()}.") for name in names), names


def _from(pod: Pod, packets: tuple[Packet, ...]) -> tuple[Packet, ...]:
    addresses = pod.addresses
    return tuple(one for one in packets if one.source in addresses)


def _records(bundle: Path) -> Iterator[dict[str, Any]]:
    """The records of a bundle: frames of a length and an entry, whose header is JSON (docs/architecture.md, §6)."""
    with tarfile.open(bundle) as tar:
        for member in tar:
            if "streams/" not in member.name or (opened := tar.extractfile(member)) is None:
                continue
            segment = io.BytesIO(opened.read())
            while size := int.from_bytes(segment.read(2)):
                entry = segment.read(size)
                if entry[1] == 1:
                    yield json.loads(entry[34:])
