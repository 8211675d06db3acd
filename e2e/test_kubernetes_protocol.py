"""Programs in pods, through the gateway: real kubectls over WebSocket and SPDY, the Python client, a real kubelet."""

from __future__ import annotations

import base64
import os
import pty
import secrets
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from fix_kube import OLD_KUBECTL, Kube, opened
from kubernetes import client as official
from kubernetes import config as official_config
from kubernetes.stream import stream
from manifests import rule
from recordings import read_frames
from stage import make_namespace, pod

from chaperone_evidence import frames, record
from chaperone_tools.cache import binary
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.kubectl import Kubectl

pytestmark = pytest.mark.cluster
WAIT_S = 60.0
BIG = 3_000_000  # bytes through a program and back
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"}
OLD = {"program": OLD_KUBECTL}
WAYS = [pytest.param({}, id="websocket"), pytest.param(SPDY, id="spdy"), pytest.param(OLD, id=OLD_KUBECTL)]
RULES = [
    rule("read", "Allow", ["read", "read_sensitive", "bulk_read"], ["agents.*.*.*", "path:*"]),
    rule("run", "Allow", ["execute_code"], ["agents.core.pods/exec.*", "agents.core.pods/attach.*"]),
    rule("programs", "Allow", ["execute_code"], ["argv:*"]),
    rule("no-curl", "Deny", ["execute_code"], ["argv:curl*"], message="No downloads."),
]


@dataclass
class Authority:
    """As much of one as is asked for."""

    pem: str


@dataclass
class Server:
    """The cluster's API server, as `fix_kube` wants one."""

    url: str
    kubeconfig: Path
    authority: Authority


@pytest.fixture(scope="module")
def agents(kubectl: Kubectl, agent_image: str) -> Iterator[str]:
    """A namespace with a pod and an account that may do everything in it."""
    make_namespace(kubectl, "agents")
    kubectl("create", "serviceaccount", "agent", "--namespace=agents")
    kubectl(
        "create", "rolebinding", "agent", "--clusterrole=admin", "--serviceaccount=agents:agent", "--namespace=agents"
    )
    name = "echo"
    container = {
        "command": ["sh", "-c", "echo started; while read line; do echo got $line; done; sleep 600"],
        "stdin": True,
    }
    kubectl.apply(pod("agents", "sleeper", agent_image), pod("agents", name, agent_image, container=container))
    for one in ("sleeper", name):
        kubectl("wait", "--namespace=agents", "--for=condition=Ready", f"pod/{one}", "--timeout=90s")
    yield "agents"
    kubectl("delete", "namespace", "agents", "--wait=false")


@pytest.fixture(scope="module")
def kube(cluster: Provider, kubectl: Kubectl, agents: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A gateway on this machine in front of the cluster's API server."""
    known = yaml.safe_load(cluster.kubeconfig().read_text())["clusters"][0]["cluster"]
    pem = base64.b64decode(known["certificate-authority-data"]).decode()
    token = kubectl("create", "token", "agent", f"--namespace={agents}", "--duration=1h").strip()
    where = urlsplit(known["server"])
    folder, evidence = tmp_path_factory.mktemp("kube"), tmp_path_factory.mktemp("evidence")
    found = opened(
        Server(known["server"], cluster.kubeconfig(), Authority(pem)), folder, token, evidence,  # type: ignore[arg-type]
        rules=RULES, host=where.hostname, port=where.port, recording={"results": "Full", "maxResultBytes": "16Mi"},
    )  # fmt: skip
    yield found
    assert found.gateway.stop() == 0, "".join(found.gateway.output)
    assert found.gateway.verify().stdout.endswith("verify: OK\n")


def executions(kube: Kube) -> list[record.CommandIntent]:
    """All programs so far."""
    return [
        one
        for one in kube.gateway.records()
        if isinstance(one, record.CommandIntent) and any(access.object.startswith("argv:") for access in one.accesses)
    ]


def outcome(kube: Kube, intent: record.CommandIntent) -> record.CommandOutcome:
    """How it ended."""
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        for one in kube.gateway.records():
            if isinstance(one, record.CommandOutcome) and one.command == intent.command:
                return one
        time.sleep(0.1)
    raise AssertionError("no outcome")


def command_line(kube: Kube, *arguments: str, program: str = "kubectl", **environment: str) -> list[str]:
    """The command line of a kubectl, with its environment."""
    given = [f"{name}={value}" for name, value in environment.items()]
    return ["env", *given, str(binary(program)), f"--kubeconfig={kube.kubeconfig}", *arguments]


@pytest.mark.parametrize("environment", WAYS)
def test_programs_run_with_their_streams_and_exit_codes(kube: Kube, environment: dict[str, str]) -> None:
    done = kube.kubectl("exec", "sleeper", "--", "sh", "-c", "echo out; echo err >&2; exit 7", **environment)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.startswith("err\n")
    intent = executions(kube)[-1]
    assert [one.object for one in intent.accesses] == [
        "agents.core.pods/exec.sleeper", "argv:sh -c 'echo out; echo err >&2; exit 7'",
    ]  # fmt: skip
    assert (outcome(kube, intent).status, outcome(kube, intent).code) == ("error", "exit:7")
    done = kube.kubectl("exec", "-i", "sleeper", "--", "sh", "-c", "wc -c", stdin="x" * BIG, **environment)
    assert done.stdout.strip() == str(BIG), done.stderr
    done = kube.kubectl("exec", "-i", "sleeper", "--", "cat", stdin="y" * BIG, **environment)
    assert len(done.stdout) == BIG
    assert outcome(kube, executions(kube)[-1]).status == "ok"
    shown = "".join(str(one.data) for one in read_frames(kube.gateway.evidence, frames.Output))
    typed = "".join(str(one.data) for one in read_frames(kube.gateway.evidence, frames.Input))
    assert "out\n" in shown
    assert "err\n" in shown
    assert typed.count("x") >= BIG


@pytest.mark.parametrize("environment", WAYS)
def test_refused_programs_say_which_rule(kube: Kube, environment: dict[str, str]) -> None:
    refused = kube.kubectl("exec", "sleeper", "--", "curl", "https://example.com", **environment)
    assert refused.returncode == 1
    assert 'rule "no-curl" of policy "agents/billing": No downloads.' in refused.stderr
    missing = kube.kubectl("exec", "sleeper", "--", "no-such-program", **environment)
    assert missing.returncode != 0
    assert outcome(kube, executions(kube)[-1]).status == "error"


@pytest.mark.parametrize("environment", WAYS)
def test_files_are_copied_both_ways(kube: Kube, tmp_path: Path, environment: dict[str, str]) -> None:
    content = secrets.token_bytes(200_000)
    (tmp_path / "there").write_bytes(content)
    name = f"/tmp/{secrets.token_hex(4)}"
    done = kube.kubectl("cp", str(tmp_path / "there"), f"sleeper:{name}", **environment)
    assert done.returncode == 0, done.stderr
    done = kube.kubectl("cp", f"sleeper:{name}", str(tmp_path / "back"), **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("environment", WAYS)
def test_terminals_have_sizes_and_are_recorded(kube: Kube, environment: dict[str, str]) -> None:
    leader, follower = pty.openpty()
    program = command_line(kube, "exec", "-it", "sleeper", "--", "sh", **environment)
    process = subprocess.Popen(program, stdin=follower, stdout=follower, stderr=follower, start_new_session=True)
    os.close(follower)
    os.write(leader, b"echo $((40+2))-answer; exit 3\n")
    seen = b""
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:  # to the end of the terminal, which comes after the end of the process
        if select.select([leader], [], [], 0.2)[0]:
            try:
                seen += os.read(leader, 4096)
            except OSError:
                break
    assert process.wait(WAIT_S) == 3
    assert b"42-answer" in seen
    assert outcome(kube, executions(kube)[-1]).code == "exit:3"
    assert read_frames(kube.gateway.evidence, frames.Resize)


def test_the_python_client_runs_programs(kube: Kube) -> None:
    api = official.CoreV1Api(official_config.new_client_from_config(str(kube.kubeconfig)))
    said = stream(
        api.connect_get_namespaced_pod_exec, "sleeper", "agents", command=["echo", "from-python"], stderr=True,
        stdin=False, stdout=True, tty=False,
    )  # fmt: skip
    assert said == "from-python\n"
    talk = stream(
        api.connect_get_namespaced_pod_exec, "sleeper", "agents", command=["cat"], stderr=True, stdin=True, stdout=True,
        tty=False, _preload_content=False,
    )  # fmt: skip
    talk.write_stdin("hello\n")
    assert talk.readline_stdout(timeout=20) == "hello"
    talk.close()
    assert outcome(kube, executions(kube)[-1]).status == "aborted"  # the client went before the program did


@pytest.mark.parametrize("environment", WAYS)
def test_attach_reaches_what_runs(kube: Kube, environment: dict[str, str]) -> None:
    program = command_line(kube, "attach", "-i", "echo", **environment)
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    word, found = secrets.token_hex(4), threading.Event()

    def listen() -> None:
        for line in process.stdout or ():
            if line == f"got {word}\n":
                found.set()

    threading.Thread(target=listen, daemon=True).start()
    ends = time.monotonic() + WAIT_S
    # kubectl says nothing when it is attached, and what was answered before is not shown: so it is said again.
    while not found.wait(1) and time.monotonic() < ends:
        process.stdin.write(f"{word}\n")
        process.stdin.flush()
    process.kill()
    process.wait(WAIT_S)
    assert found.is_set()


def test_logs_are_followed(kube: Kube) -> None:
    assert "started" in kube.kubectl("logs", "echo").stdout
    program = [binary("kubectl"), f"--kubeconfig={kube.kubeconfig}", "logs", "--follow", "echo"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.kill()
    process.wait(WAIT_S)
