"""A port-forward's surroundings: a pod that "runs" where the real PostgreSQL is, the target for it, kubectl as client.

There is no kubelet, and none is needed: the gateway asks the API server for the pod's address alone.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from fix_http import Backend
from fix_postgres import PASSWORD, Postgres
from fix_ssh import Host
from manifests import Object, policy, rule, target

POD = "forwarded-db"
WAIT_S = 30.0
ADDRESS = "127.0.0.1"
READ_PODS = [rule("discovery", "Allow", ["read"], ["path:*"]), rule("pods", "Allow", ["read"], ["agents.core.pods.*"])]
ORDERS = [
    rule("orders", "Allow", ["read"], ["public.orders"]),
    rule("sessions", "Allow", ["session"]),
    rule("catalog", "Allow", ["read"], ["pg_catalog.*"]),
    rule("never", "Deny", ["destroy"], message="Ask the DBA on call."),
]


def make_pod(admin: Callable[..., subprocess.CompletedProcess[str]], name: str = POD, phase: str = "Running") -> None:
    """A pod that the API server says runs at this machine's address."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "agents"},
        "spec": {"containers": [{"name": "db", "image": "db"}], "nodeName": "here"},
    }
    made = admin("create", "-f", "-", stdin=json.dumps(pod))
    assert made.returncode == 0 or "AlreadyExists" in made.stderr, made.stderr
    status = {"status": {"phase": phase, "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}}
    patched = admin(
        "patch", "pod", name, "--namespace=agents", "--subresource=status", "--type=merge", f"-p={json.dumps(status)}"
    )
    assert patched.returncode == 0, patched.stderr


def database(port: int, name: str = "orders-db") -> list[Object]:
    """A target that is a database at a port of the pod, and what may be done there."""
    place = target(
        name,
        upstream={"host": ADDRESS, "port": port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "orders-db-ca"}},
        credential={"secretRef": {"name": "orders-db-writer"}},
    )
    return [place, policy(ORDERS, name, targets=[{"name": name}])]


def host(found: Host) -> list[Object]:
    """A target that is a real sshd at a port of the pod."""
    place = target(
        "build-host",
        protocol="SSH",
        upstream={"host": ADDRESS, "port": found.port},
        credential={"secretRef": {"name": "build-host-key"}},
        ssh={"hostKeys": [found.host_key]},
    )
    rules = [rule("run", "Allow", ["read"], ["command:echo"])]
    key = {"username": getpass.getuser(), "ssh-privatekey": (found.folder / "client_key").read_text()}
    secret = secret_of("build-host-key", key) | {"type": "kubernetes.io/ssh-auth"}
    return [place, policy(rules, "build-host", targets=[{"name": "build-host"}]), secret]


def api(found: Backend) -> list[Object]:
    """A target that is an HTTP API at a port of the pod."""
    place = target(
        "api",
        protocol="HTTP",
        upstream={"host": ADDRESS, "port": found.port},
        tls={"mode": "Disable"},
        credential={"httpHeader": {"secretRef": {"name": "api-token"}, "host": ADDRESS, "port": found.port,
                                   "scheme": "http", "prefix": "Bearer "}},
    )  # fmt: skip
    rules = [rule("read", "Allow", ["read"], ["path:*"])]
    return [place, policy(rules, "api", targets=[{"name": "api"}]), secret_of("api-token", {"token": "canary"})]


def secret_of(name: str, data: dict[str, str]) -> Object:
    """A Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def write_targets(folder: Path, postgres: Postgres, *more: Object) -> None:
    """Manifests beside those of the agent and its API server: the pod's database, and more."""
    folder.mkdir(exist_ok=True)
    secrets = [
        secret_of("orders-db-ca", {"ca.crt": postgres.ca_pem}),
        secret_of("orders-db-writer", {"username": "agent_rw", "password": PASSWORD}),
    ]
    (folder / "targets.yaml").write_text(yaml.safe_dump_all([*database(postgres.port), *more, *secrets]))


@dataclass
class Forwarder:
    """A running `kubectl port-forward`."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    port: int = 0

    def connect(self, **arguments: Any) -> psycopg.Connection:
        """Through it, as an agent: without a password."""
        return psycopg.connect(
            f"host=127.0.0.1 port={self.port} user=agent dbname=orders connect_timeout=20", autocommit=True, **arguments
        )

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return "".join(self.output)

    def until(self, text: str) -> str:
        """Wait until it has said something."""
        ends = time.monotonic() + WAIT_S
        while text not in self.said:
            assert time.monotonic() < ends, self.said
            time.sleep(0.05)
        return self.said

    def stop(self) -> int:
        """End it as a person would, by ctrl-c; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)


@contextlib.contextmanager
def forwarding(
    kubeconfig: Path, folder: Path, port: int, pod: str = POD, *, namespace: str = "agents", is_spdy: bool = False
) -> Iterator[Forwarder]:  # fmt: skip
    """Run `kubectl port-forward`; over WebSocket, as it does by itself, unless told."""
    program = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin")) / "kubectl"
    found = str(program) if program.exists() else shutil.which("kubectl")
    assert found is not None, "no kubectl: run `make setup`"
    process = subprocess.Popen(
        [found, f"--kubeconfig={kubeconfig}", f"--cache-dir={folder / 'cache'}", "port-forward", f"pod/{pod}",
         f":{port}", "--address=127.0.0.1", f"--namespace={namespace}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"KUBECTL_PORT_FORWARD_WEBSOCKETS": "false" if is_spdy else "true"},
    )  # fmt: skip
    made = Forwarder(process)
    is_known = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            made.output.append(line)
            if (match := re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line)) is not None:
                made.port = int(match[1])
                is_known.set()
        is_known.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    is_known.wait(WAIT_S)
    try:
        yield made
    finally:
        made.stop()
        reader.join(WAIT_S)
