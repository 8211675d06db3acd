"""Port-forward through the gateway: real kubectl and Python client, real kube-apiserver, real targets behind "pods"."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fix_apiserver import ApiServer
from fix_http import Backend, running_backend
from fix_kube import NAME, Kube, opened
from fix_postgres import Postgres
from fix_ssh import Host
from forwarding import (
    POD,
    READ_PODS,
    Forwarder,
    api,
    database,
    forwarding,
    host,
    make_pod,
    write_targets,
)
from kubernetes import client as official
from kubernetes import config as official_config
from kubernetes import stream as official_stream
from manifests import rule
from ports import free_port
from waiting import Person, eventually

from chaperone_evidence import record

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
PATH = f"/api/v1/namespaces/agents/pods/{POD}/portforward"
OBJECT = f"agents.core.pods/portforward.{POD}"
APPROVAL = {"groups": ["leads"], "wait": "30s", "validFor": "60s"}
OTHER, HELD = "ungranted-db", "held-db"
RULES = [
    *READ_PODS,
    rule(
        "ports",
        "Allow",
        ["tunnel"],
        [
            "agents.core.pods/portforward.forwarded-*",
            "agents.core.pods/portforward.none",
            "agents.core.pods/portforward.ended",
        ],
    ),
    rule("held", "RequireApproval", ["tunnel"], [f"agents.core.pods/portforward.{HELD}"], approval=APPROVAL),
    rule("nodes", "Allow", ["read"], ["_.core.nodes.*"]),
]
LIMITS = {"bytesPerSession": "8Mi"}
SOCKET = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)


@pytest.fixture(scope="module")
def plain_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """An HTTP API without TLS."""
    with running_backend(tmp_path_factory.mktemp("backend"), is_tls=False) as found:
        yield found


@pytest.fixture(scope="module")
def twins() -> int:
    """A port at which two targets are."""
    return free_port()


@pytest.fixture(scope="module")
def kube(
    api_server: ApiServer, agent_token: str, postgres: Postgres, ssh_host: Host, plain_backend: Backend, twins: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kube]:  # fmt: skip
    """One gateway for all tests of the module; its evidence must verify in the end."""
    folder, evidence = tmp_path_factory.mktemp("kube"), tmp_path_factory.mktemp("evidence")
    more = [*host(ssh_host), *api(plain_backend), *database(twins, "twin-a"), *database(twins, "twin-b")]
    write_targets(folder, postgres, *more)
    found = opened(api_server, folder, agent_token, evidence, rules=RULES, host="127.0.0.1", limits=LIMITS)
    make_pod(found.admin)
    yield found
    assert found.gateway.stop() == 0, "".join(found.gateway.output)
    verdict = found.gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout


def forwarded(
    kube: Kube, port: int, pod: str = POD, *, is_spdy: bool = False
) -> contextlib.AbstractContextManager[Forwarder]:
    """See `forwarding`."""
    return forwarding(kube.kubeconfig, kube.folder, port, pod, is_spdy=is_spdy)


def of_session(kube: Kube, session: str) -> list[record.Known]:
    """Its records."""
    return [one for one in kube.gateway.records() if getattr(one, "session", "") == session]


def tunnels(kube: Kube) -> list[record.CommandIntent]:
    """All port-forwards so far, and connections of them that were refused."""
    found = [one for one in kube.gateway.records() if isinstance(one, record.CommandIntent)]
    return [one for one in found if [access.effect for access in one.accesses] == ["tunnel"]]


def opened_within(kube: Kube, intent: record.CommandIntent) -> list[record.SessionOpen]:
    """Sessions at targets that a port-forward led to."""
    known = [one for one in kube.gateway.records() if isinstance(one, record.SessionOpen)]
    return [one for one in known if one.client.startswith(f"port-forward {intent.session}/")]


def outcome(kube: Kube, intent: record.CommandIntent) -> record.CommandOutcome:
    """How it ended, once it has."""
    found: list[record.CommandOutcome] = []

    def is_there() -> bool:
        found[:] = [
            one
            for one in of_session(kube, intent.session)
            if isinstance(one, record.CommandOutcome) and one.command == intent.command
        ]
        return bool(found)

    eventually(is_there)
    return found[0]


@pytest.mark.parametrize("is_spdy", [False, True], ids=["websocket", "spdy"])
def test_kubectl_reaches_a_database_that_decides_each_command(kube: Kube, postgres: Postgres, is_spdy: bool) -> None:
    with forwarded(kube, postgres.port, is_spdy=is_spdy) as kubectl:
        with kubectl.connect() as connection:
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1000,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"Ask the DBA on call"):
                connection.execute("DROP TABLE orders")
        assert kubectl.stop() == 0
    intent = tunnels(kube)[-1]
    assert (intent.kind, intent.decision, intent.rule) == ("create", "Allow", "ports")
    assert intent.accesses[0].object == OBJECT
    ended = outcome(kube, intent)
    assert (ended.status, ended.code) == ("ok", "")
    assert ended.bytes > 1000
    (inner,) = opened_within(kube, intent)
    assert (inner.target, inner.protocol, inner.seq > intent.seq) == ("orders-db", "PostgreSQL", True)
    commands = [one for one in of_session(kube, inner.session) if isinstance(one, record.CommandIntent)]
    assert [one.decision for one in commands if one.rule in ("orders", "never")] == ["Allow", "Deny"]
    assert ended.seq > max(one.seq for one in commands)


def test_many_connections_and_long_answers_pass_within_one(kube: Kube, postgres: Postgres) -> None:
    with forwarded(kube, postgres.port) as kubectl:
        connections = [kubectl.connect() for _ in range(4)]
        question = "SELECT a.customer FROM orders a, orders b LIMIT 60000"
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda one=one: found.append(len(one.execute(question).fetchall())))
            for one in connections[:3]
        ]
        for thread in threads:
            thread.start()
        assert connections[3].execute("SELECT count(*) FROM orders WHERE id = ANY(%s)", [list(range(100_000))])
        for thread in threads:
            thread.join(60)
        assert found == [60_000] * 3
        for one in connections:
            one.close()
        with kubectl.connect() as connection:
            assert connection.execute("SELECT id FROM orders WHERE id = 1").fetchone() == (1,)
        assert kubectl.stop() == 0
    intent = tunnels(kube)[-1]
    assert outcome(kube, intent).status == "ok"
    assert [one.client.rpartition("/")[2] for one in opened_within(kube, intent)] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("is_spdy", [False, True], ids=["websocket", "spdy"])
def test_a_client_that_is_killed_ends_what_it_forwarded(kube: Kube, postgres: Postgres, is_spdy: bool) -> None:
    with forwarded(kube, postgres.port, is_spdy=is_spdy) as kubectl:
        connection = kubectl.connect()
        kubectl.process.kill()
        intent = tunnels(kube)[-1]
        assert outcome(kube, intent).status == "ok"  # a port-forward has no other end than its client's
        (inner,) = opened_within(kube, intent)
        eventually(lambda: any(isinstance(one, record.SessionClose) for one in of_session(kube, inner.session)))
        connection.close()


@pytest.mark.parametrize("is_spdy", [False, True], ids=["websocket", "spdy"])
def test_a_port_that_is_no_target_is_refused_with_what_to_do(kube: Kube, is_spdy: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        port = other.getsockname()[1]
        with forwarded(kube, port, is_spdy=is_spdy) as kubectl:
            with pytest.raises(psycopg.OperationalError):
                kubectl.connect()
            said = kubectl.until("no AccessTarget of this agent leads to").replace('\\"', '"')
            assert f'port {port} of pod "{POD}" is not forwarded' in said
            assert "Create one whose upstream is that address" in said
        with pytest.raises(BlockingIOError):  # nobody came
            other.accept()
    tunnel, refused = tunnels(kube)[-2:]
    assert (refused.kind, refused.decision, refused.rule) == ("connect", "Deny", "not-covered")
    assert refused.session == tunnel.session
    assert refused.accesses[0].object == OBJECT
    assert opened_within(kube, tunnel) == []


def test_a_port_that_could_be_several_targets_is_refused(kube: Kube, twins: int) -> None:
    with forwarded(kube, twins) as kubectl:
        with pytest.raises(psycopg.OperationalError):
            kubectl.connect()
        assert "several AccessTargets of this agent lead to" in kubectl.until("nobody can say which is meant")
    assert tunnels(kube)[-1].rule == "not-covered"


def test_an_api_is_reached_and_only_by_its_own_name(kube: Kube, plain_backend: Backend) -> None:
    with forwarded(kube, plain_backend.port) as kubectl:

        def ask(name: str) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", kubectl.port, timeout=20)
            connection.request("GET", "/v1/orders", headers={"Host": name})
            answer = connection.getresponse()
            found = answer.status, answer.read()
            connection.close()
            return found

        assert ask("api.data.svc")[0] == 200
        status, body = ask(f"localhost:{kubectl.port}")
        assert status == 421
        assert b"Host names port" in body
    (inner, *_) = opened_within(kube, tunnels(kube)[-1])
    assert (inner.target, inner.protocol) == ("api", "HTTP")


def test_a_host_is_reached_by_ssh(kube: Kube, ssh_host: Host) -> None:
    with forwarded(kube, ssh_host.port) as kubectl:

        def ssh(command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o",
                 "BatchMode=yes", "-o", "IdentityFile=none", "-p", str(kubectl.port), "agent@127.0.0.1", command],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip

        done = ssh("echo hello")
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
        assert ssh("id").returncode == 126
    inner = opened_within(kube, tunnels(kube)[-1])
    assert {(one.target, one.protocol) for one in inner} == {("build-host", "SSH")}


def test_an_api_server_is_reached_and_decides_by_the_same_policy(kube: Kube) -> None:
    with forwarded(kube, int(kube.server.url.rpartition(":")[2])) as kubectl:
        place = (f"--server=https://127.0.0.1:{kubectl.port}", f"--tls-server-name={NAME}")
        within = kube.kubectl("get", "nodes", *place)
        assert within.returncode == 0, within.stderr
        refused = kube.kubectl("get", "secrets", *place)
        assert "is forbidden: Chaperone" in refused.stderr
    assert {one.protocol for one in opened_within(kube, tunnels(kube)[-1])} == {"Kubernetes"}


def python_client(kube: Kube, port: int) -> official_stream.ws_client.PortForward:
    """A port-forward of the official Python client."""
    core = official.CoreV1Api(official_config.new_client_from_config(str(kube.kubeconfig)))
    call = core.connect_get_namespaced_pod_portforward
    return official_stream.portforward(call, POD, "agents", ports=str(port))


def relayed(theirs: socket.socket) -> int:
    """A port at which one connection gets to that socket."""
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                sink.sendall(part)
        sink.close()

    def run() -> None:
        with server:
            ours, _ = server.accept()
        threading.Thread(target=pump, args=(ours, theirs), daemon=True).start()
        pump(theirs, ours)

    threading.Thread(target=run, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def test_the_python_client_reaches_a_database(kube: Kube, postgres: Postgres) -> None:
    forward = python_client(kube, postgres.port)
    port = relayed(forward.socket(postgres.port))
    with Forwarder(None, port=port).connect() as connection:  # type: ignore[arg-type]
        assert len(connection.execute("SELECT a.customer FROM orders a, orders b LIMIT 20000").fetchall()) == 20_000
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE orders")
    eventually(lambda: not forward.connected)
    assert forward.error(postgres.port) is None
    intent = tunnels(kube)[-1]
    assert outcome(kube, intent).status == "ok"
    assert [one.target for one in opened_within(kube, intent)] == ["orders-db"]


def test_the_python_client_hears_why_a_port_is_refused(kube: Kube) -> None:
    port = free_port()
    forward = python_client(kube, port)
    eventually(lambda: forward.error(port) is not None)
    assert "no AccessTarget of this agent leads to" in forward.error(port)
    eventually(lambda: not forward.connected)
    assert (tunnels(kube)[-1].kind, tunnels(kube)[-1].rule) == ("connect", "not-covered")


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        (f"GET {PATH}", "", 400),
        (f"GET {PATH}", SOCKET + "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n", 400),
        (f"GET {PATH}?ports=0", SOCKET + "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n", 400),
        (f"GET {PATH}?ports=80", SOCKET + "Sec-WebSocket-Protocol: v4.base64.channel.k8s.io\r\n", 400),
        (f"POST {PATH}", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n",
         400),
        (f"GET {PATH.replace(POD, 'none')}", SOCKET + "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n", 404),
        (f"GET {PATH.replace(POD, 'ended')}", SOCKET + "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n", 400),
    ],
    ids=["plain", "no-ports", "port-0", "base64", "spdy-of-exec", "no-pod", "ended-pod"],
)  # fmt: skip
def test_what_is_no_port_forward_is_answered_in_http(kube: Kube, line: str, headers: str, status: int) -> None:
    make_pod(kube.admin, "ended", phase="Succeeded")
    raw = f"{line} HTTP/1.1\r\nHost: {NAME}\r\n{headers}\r\n".encode()
    answer = kube.raw(raw, until=b'"code"')
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b'"kind":"Status"' in answer


def test_a_port_forward_that_no_rule_grants_is_refused_natively(kube: Kube, postgres: Postgres) -> None:
    make_pod(kube.admin, OTHER)
    before = len(tunnels(kube))
    with forwarded(kube, postgres.port, OTHER) as kubectl:
        assert kubectl.process.wait(30) == 1
        assert f'pods/portforward "{OTHER}" is forbidden: Chaperone: cannot' in kubectl.until("Chaperone")
    assert {(one.decision, one.rule) for one in tunnels(kube)[before:]} == {("Deny", "uncovered")}


def test_a_held_port_forward_begins_once_people_have_approved_it(kube: Kube, postgres: Postgres) -> None:
    make_pod(kube.admin, HELD)
    person = Person(kube.gateway)
    before = len(tunnels(kube))

    def decide() -> None:
        ticket, shown = person.next()
        assert shown["text"] == f"POST {PATH.replace(POD, HELD)}"
        assert len(tunnels(kube)) == before
        person.decide(ticket, "approve")

    deciding = threading.Thread(target=decide)
    deciding.start()
    with forwarded(kube, postgres.port, HELD) as kubectl:
        deciding.join(30)
        with kubectl.connect() as connection:
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1000,)
    (intent,) = tunnels(kube)[before:]
    assert (intent.decision, intent.rule) == ("Allow", "held")
    assert intent.approval


def test_each_connection_counts_against_the_limits_of_the_cluster(
    kube_with: Callable[..., Kube], postgres: Postgres, tmp_path: Path
) -> None:
    write_targets(tmp_path / "kube-0", postgres)
    kube = kube_with(rules=RULES, limits={"commandsPerMinute": 12})
    make_pod(kube.admin)
    with forwarded(kube, postgres.port) as kubectl:
        with contextlib.suppress(psycopg.OperationalError):
            for _ in range(12):
                kubectl.connect().close()
        assert "as many commands at the target within a minute as it may run: 12" in kubectl.until("is not forwarded")
    tunnel, refused = tunnels(kube)[-2:]
    assert (tunnel.kind, refused.kind, refused.rule) == ("create", "connect", "limit:commandsPerMinute")


def test_a_limit_of_the_cluster_ends_a_port_forward_and_what_is_within(kube: Kube, postgres: Postgres) -> None:
    with forwarded(kube, postgres.port) as kubectl:
        with kubectl.connect() as connection, pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT a.customer FROM orders a, orders b")
        kubectl.until("lost connection to pod")
    intent = tunnels(kube)[-1]
    ended = outcome(kube, intent)
    assert (ended.status, ended.code) == ("error", "limit:bytesPerSession")
    (inner,) = opened_within(kube, intent)
    eventually(lambda: any(isinstance(one, record.SessionClose) for one in of_session(kube, inner.session)))
