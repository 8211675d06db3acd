"""A part dies or is away: nothing runs unrecorded, nothing recorded is lost, nothing gets out meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import HOST, READ, Database, Kubectl, Object, Pod, Team, chaperone, until

from chaperone_tools.install import API_SERVICE, Installed, is_true

pytestmark = pytest.mark.cluster

COLLECTOR = "statefulset/chaperone-collector"
OUTAGE_S = 60
LOAD = f"""
import sys, time, psycopg
done, end = 0, time.monotonic() + float(sys.argv[1])
with psycopg.connect("host={HOST} dbname=orders sslmode=verify-full", autocommit=True) as connection:
    print(connection.info.backend_pid, flush=True)
    while time.monotonic() < end:
        connection.execute("SELECT id FROM orders WHERE id = %s AND " + f"{{done}} = {{done}}", (1,))
        done += 1
        time.sleep(0.002)
print(done)
"""
FILL = f"""
import psycopg
where = "host={HOST} dbname=orders sslmode=verify-full"
def fill(connection, size):
    for number in range(4000):
        connection.execute(f"SELECT id FROM orders /* {{number}} {{'x' * size}} */")
for size in (900_000, 50_000, 2_000, 2_000):  # the last one in a session that was not there before
    try:
        with psycopg.connect(where, autocommit=True) as connection:
            fill(connection, size)
    except psycopg.Error as error:
        print(error.sqlstate, str(error).splitlines()[0])
"""
# Kills the process with this command line in the pod with this uid, whose name no other process on the node may bear.
KILL = """
import os, pathlib, signal, sys
found = []
for entry in pathlib.Path("/proc").iterdir():
    try:
        words = (entry / "cmdline").read_bytes().split(b"\\0")
        group = (entry / "cgroup").read_text()
    except OSError:
        continue
    if sys.argv[1].replace("-", "_") in group.replace("-", "_") and b"run" in words and b"gateway" in b" ".join(words):
        found.append(int(entry.name))
for pid in found:
    os.kill(pid, signal.SIGKILL)
print(len(found))
"""


@pytest.fixture(scope="module")
def agent(team: Team) -> Pod:
    """An agent that may read orders, and serves on a declared port."""
    team.identity(ingress={"ports": [8080]})
    team.policy(READ)
    serve = ["tini", "--", "python3", "-m", "http.server", "8080", "--bind", "::"]
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    return team.pod(container={"command": serve, "readinessProbe": probe})


@pytest.fixture
def collector_away(kubectl: Kubectl, chaperone_installed: Installed) -> Iterator[None]:
    """The collector is gone while the test runs, or until the test scales it up itself."""
    scale(kubectl, chaperone_installed.namespace, 0)
    yield
    scale(kubectl, chaperone_installed.namespace, 1)


def scale(kubectl: Kubectl, namespace: str, replicas: int) -> None:
    """Scale the collector and wait until it is so."""
    kubectl("scale", COLLECTOR, f"--namespace={namespace}", f"--replicas={replicas}")
    kubectl("rollout", "status", COLLECTOR, f"--namespace={namespace}", "--timeout=90s")
    until("the collector's pods are as wanted", lambda: _running(kubectl, namespace) == replicas)
    if replicas:
        until("the API server reaches it", lambda: is_true(kubectl.json("apiservice", API_SERVICE), "Available"))


def _running(kubectl: Kubectl, namespace: str) -> int:
    selector = "--selector=app.kubernetes.io/component=collector"
    return len(kubectl.json("pods", f"--namespace={namespace}", selector)["items"])


def restarts(agent: Pod) -> int:
    """How often the gateway's container was started anew."""
    statuses = agent.seen["status"]["initContainerStatuses"]
    return sum(one["restartCount"] for one in statuses if one["name"] == "chaperone-gateway")


def listed(team: Team, session: str) -> list[Object]:
    """All commands of a session, over every page."""
    selector = f"--field-selector=spec.session={session}"
    found: list[Object] = team.kubectl.json("commands", f"--namespace={team.namespace}", selector)["items"]
    return found


def sessions(team: Team) -> list[Object]:
    """All sessions of the namespace, oldest first."""
    found: list[Object] = team.kubectl.json("sessions", f"--namespace={team.namespace}")["items"]
    return sorted(found, key=lambda one: one["metadata"]["name"])


def test_a_killed_gateway_leaves_egress_closed_then_works_again_and_its_records_verify(
    agent: Pod, node: Pod, team: Team, database: Database, kubectl: Kubectl, tmp_path: Path
):
    text = "SELECT id FROM orders WHERE id = 2"
    assert agent.psql(text).out == "2\n"
    address = database.address
    before = restarts(agent)
    killed = node.python(KILL, agent.seen["metadata"]["uid"])
    assert killed.out.split() == ["1"], killed.err
    attempt = f"""
import socket, sys
try:
    with socket.create_connection(("{address}", 5432), 2) as raw:
        raw.sendall(bytes.fromhex("0000000804d2162f"))
        print("reached", raw.recv(1))
except OSError as error:
    print("stopped", type(error).__name__)
"""
    assert agent.python(attempt).out.startswith("stopped")
    until("the gateway runs again", lambda: restarts(agent) == before + 1)
    until("the agent works again", lambda: agent.psql(text).out == "2\n")
    assert agent.python(attempt).out.startswith("stopped")
    until("both runs are listed", lambda: len({one["spec"]["stream"] for one in team.commands(command=text)}) >= 2)
    first, *_, last = sorted(team.commands(command=text), key=lambda one: one["metadata"]["name"])
    assert first["spec"]["stream"] != last["spec"]["stream"]
    for number, command in enumerate((first, last)):
        proof, trust = tmp_path / f"{number}.tar", tmp_path / f"{number}.trust.pem"
        session = command["spec"]["session"]

        def is_proved(session: str = session, proof: Path = proof, trust: Path = trust) -> bool:
            chaperone(kubectl, "export", f"--namespace={team.namespace}", session, f"--output={proof}")
            verified = chaperone(kubectl, "verify", str(proof), f"--trust={trust}")
            print(verified.out, verified.err)
            return verified.out.endswith("verify: OK\n")

        until("its session's proof verifies", is_proved)  # what signs the first run's end comes with the second one


def test_a_minute_without_the_collector_loses_nothing_doubles_nothing_and_keeps_the_order(
    agent: Pod, team: Team, kubectl: Kubectl, chaperone_installed: Installed, collector_away: None
):
    ran = agent.python(LOAD, str(OUTAGE_S), limit_s=OUTAGE_S + 120)
    assert ran.status == 0, ran.err
    done = int(ran.out.split()[1])
    assert done > OUTAGE_S
    scale(kubectl, chaperone_installed.namespace, 1)
    until("the session is listed, with all of its commands", lambda: bool(_closed(team, done)), 120)
    (session,) = _closed(team, done)
    commands = listed(team, session["name"])
    assert [one["status"]["status"] for one in commands] == ["Ok"] * done
    texts = [one["spec"]["command"].rpartition(" = ")[2] for one in commands]
    assert texts == [str(number) for number in range(done)]
    numbers = [one["spec"]["seq"] for one in commands]
    assert numbers == sorted(set(numbers))


def _closed(team: Team, commands: int) -> list[Object]:
    ended = [one["status"] | {"name": one["metadata"]["name"]} for one in sessions(team)]
    return [one for one in ended if one["state"] == "Closed" and one["commands"] == commands]


def test_a_full_spool_refuses_natively_while_the_pods_other_life_goes_on(
    agent: Pod, team: Team, kubectl: Kubectl, chaperone_installed: Installed, free_pod: Pod, collector_away: None
):
    ran = agent.python(FILL, limit_s=240)
    assert ran.status == 0, ran.err
    refusals = ran.out.strip().split("\n")
    assert [one.split(" ", 1)[0] for one in refusals] == ["53100"] * 4, refusals
    assert all("record" in one for one in refusals)
    ask = f"import urllib.request as u; print(u.urlopen('http://{agent.addresses[0]}:8080/', timeout=30).status)"
    assert free_pod.run("python3", "-c", ask).out == "200\n"
    until("the pod is ready", lambda: is_true(agent.seen, "Ready"))  # a probe that is late may say otherwise once
    scale(kubectl, chaperone_installed.namespace, 1)
    until("the spool has drained and the agent works", lambda: agent.psql("SELECT 1 FROM orders").status == 0, 180)
