"""`kube`: the real `chaperone dev` process in front of the real kube-apiserver, and clients of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_apiserver import ApiServer
from fix_dev import Gateway, start
from manifests import cluster_policy, identity, policy, rule, target
from ports import free_port

from chaperone_operator.kubeconfig import verifying

NAME = "kubernetes.default.svc"
CANARY = "canary-of-a-secret"
KUBECTL_TIMEOUT_S = 60
OLD_KUBECTL = "kubectl-1.30"  # four minors older than the API server; its programs run over SPDY
OBJECTS: dict[str, list[dict[str, Any]]] = {
    "namespaces": [{"metadata": {"name": "agents"}}, {"metadata": {"name": "other"}}],
    "namespaces/agents/serviceaccounts": [{"metadata": {"name": "agent"}}],
    "namespaces/agents/configmaps": [
        {"metadata": {"name": "app"}, "data": {"contact": "jane.doe@example.com", "colour": "green"}}
    ],
    "namespaces/other/configmaps": [{"metadata": {"name": "hidden"}, "data": {"a": "b"}}],
    "namespaces/agents/secrets": [
        {
            "metadata": {
                "name": "db",
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": f'{{"x":"{CANARY}"}}'},
            },
            "stringData": {"password": CANARY},
        }
    ],
}
READS = ["read", "bulk_read"]
RULES = [
    rule("discovery", "Allow", ["read"], ["path:*"]),
    rule("read-own", "Allow", READS, ["agents.*.*.*"]),
    rule("secrets", "Allow", ["read_sensitive", "create", "modify"], ["agents.core.secrets.*"]),
    rule("work", "Allow", ["create", "modify", "delete"], ["agents.core.configmaps.*", "agents.apps.deployments*.*"]),
    rule("reviews", "Allow", ["read"], ["_.authorization_k8s_io.self*.*", "_.authentication_k8s_io.self*.*"]),
    rule("never", "Deny", ["destroy", "privilege", "execute_code"], message="Ask the platform team."),
]


@dataclass
class Kube:
    """A gateway to an API server."""

    server: ApiServer
    gateway: Gateway
    folder: Path
    ca_pem: str = ""
    _known: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"https://127.0.0.1:{self.gateway.port}"

    @property
    def context(self) -> ssl.SSLContext:
        """That trusts the pod's CA."""
        return verifying(cadata=self.ca_pem)

    @property
    def kubeconfig(self) -> Path:
        """As an agent has it: no credential that is worth anything, the CA of its pod."""
        path = self.folder / "agent.kubeconfig"
        if not path.exists():
            cluster = {
                "server": self.url,
                "certificate-authority": str(self.folder / "ca.crt"),
                "tls-server-name": NAME,
            }
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "agent",
                "contexts": [{"name": "agent", "context": {"cluster": "c", "user": "u", "namespace": "agents"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": "worth-nothing"}}],
            }
            path.write_text(yaml.safe_dump(config))
        return path

    def kubectl(
        self, *arguments: str, stdin: str = "", program: str = "kubectl", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, or another version of it, as the agent."""
        return kubectl(self.kubeconfig, self.folder, *arguments, stdin=stdin, program=program, **environment)

    def admin(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as an administrator, past the gateway."""
        return kubectl(self.server.kubeconfig, self.folder, *arguments, stdin=stdin)

    def raw(self, data: bytes, *, until: bytes = b"") -> bytes:
        """Send bytes and read to the end, or until something is there."""
        context = self.context
        with (
            socket.create_connection(("127.0.0.1", self.gateway.port), timeout=20) as connection,
            context.wrap_socket(connection, server_hostname=NAME) as wrapped,
        ):
            wrapped.sendall(data)
            found = b""
            while not (until and until in found):
                try:
                    part = wrapped.recv(1 << 16)
                except (ConnectionError, ssl.SSLError):
                    break
                if not part:
                    break
                found += part
            return found

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """One request on a connection of its own."""
        answer = self.raw(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"chunked" in head:
            body = unchunked(body)
        return int(head.split(b" ")[1]), json.loads(body)


def unchunked(body: bytes) -> bytes:
    """A body without its framing."""
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return found


def kubectl(
    config: Path, folder: Path, *arguments: str, stdin: str = "", program: str = "kubectl", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run kubectl."""
    built = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin")) / program
    found = str(built) if built.exists() else shutil.which(program)
    assert found is not None, f"no {program}: run `make setup`"
    return subprocess.run(
        [found, f"--kubeconfig={config}", f"--cache-dir={folder / 'cache'}", *arguments], input=stdin,
        capture_output=True, text=True, timeout=KUBECTL_TIMEOUT_S, check=False, env=os.environ | environment,
    )  # fmt: skip


def prepare(server: ApiServer, folder: Path) -> str:
    """Make the objects that tests need; a token of the agent's service account, which may do everything."""
    for path, objects in OBJECTS.items():
        for one in objects:
            made = kubectl(
                server.kubeconfig, folder, "create", "--raw", f"/api/v1/{path}", "-f", "-", stdin=json.dumps(one)
            )
            assert made.returncode == 0 or "AlreadyExists" in made.stderr, made.stderr
    kubectl(
        server.kubeconfig, folder, "create", "clusterrolebinding", "agent", "--clusterrole=cluster-admin",
        "--serviceaccount=agents:agent",
    )  # fmt: skip
    made = kubectl(server.kubeconfig, folder, "create", "token", "agent", "--namespace=agents", "--duration=2h")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def write(
    folder: Path, server: ApiServer, token: str, *, rules: list[dict[str, Any]] | None = None,
    ca_pem: str | None = None, port: int | None = None, host: str = "localhost",
    recording: dict[str, Any] | None = None,
    **spec: Any,
) -> None:  # fmt: skip
    """The manifests of one agent with one API server."""
    credential: dict[str, Any] = {"kubernetesToken": {"serviceAccount": "agent", "namespace": "agents"}}
    unmaskable = spec.pop("unmaskable", None)
    objects = [
        identity(evidence=recording or {}),
        target(
            "cluster", protocol="Kubernetes", hosts=[NAME, "10.96.0.1"],
            upstream={"host": host, "port": port or int(server.url.rpartition(":")[2])},
            tls={"mode": "VerifyFull", "caSecretRef": {"name": "cluster-ca"}, "serverName": host},
            credential=credential,
        ),
        policy(RULES if rules is None else rules, targets=[{"name": "cluster"}], **spec),
    ]  # fmt: skip
    if unmaskable is not None:
        objects.append(cluster_policy([], "showing", unmaskable=unmaskable))
    (folder / "agents.yaml").write_text(yaml.safe_dump_all(objects))
    account = {
        "name": "agent-token",
        "namespace": "agents",
        "annotations": {"kubernetes.io/service-account.name": "agent"},
    }
    secrets = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "cluster-ca"},
            "stringData": {"ca.crt": ca_pem or server.authority.pem},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/service-account-token",
            "metadata": account,
            "stringData": {"token": token},
        },
    ]
    (folder / "secrets.yaml").write_text(yaml.safe_dump_all(secrets))


def opened(server: ApiServer, folder: Path, token: str, evidence: Path, **changes: Any) -> Kube:
    """Start a gateway."""
    folder.mkdir(exist_ok=True)
    write(folder, server, token, **changes)
    gateway = start(folder, evidence, {"cluster": free_port()})
    assert gateway.process.poll() is None, "".join(gateway.output)
    found = Kube(server, gateway, folder)
    unverified = ssl._create_unverified_context()  # noqa: S323 - to learn the CA, which a pod has in a volume
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection,
        unverified.wrap_socket(connection, server_hostname=NAME) as wrapped,
    ):
        chain = wrapped.get_unverified_chain()
    found.ca_pem = ssl.DER_cert_to_PEM_cert(chain[-1])
    (folder / "ca.crt").write_text(found.ca_pem)
    return found


@pytest.fixture(scope="session")
def agent_token(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token of the agent's service account."""
    return prepare(api_server, tmp_path_factory.mktemp("prepare"))


@pytest.fixture(scope="module")
def kube(api_server: ApiServer, agent_token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """One gateway for all tests of a module; its evidence must verify in the end."""
    folder, evidence = tmp_path_factory.mktemp("kube"), tmp_path_factory.mktemp("evidence")
    found = opened(api_server, folder, agent_token, evidence, recording={"results": "Full"})
    yield found
    assert found.gateway.stop() == 0, "".join(found.gateway.output)
    verdict = found.gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout
    assert agent_token not in "".join(found.gateway.output)


@pytest.fixture
def kube_with(api_server: ApiServer, agent_token: str, tmp_path: Path) -> Iterator[Callable[..., Kube]]:
    """Start gateways of one's own: keyword arguments are those of `write`."""
    started: list[Kube] = []

    def make(**changes: Any) -> Kube:
        token = changes.pop("token", agent_token)
        found = opened(
            api_server, tmp_path / f"kube-{len(started)}", token, tmp_path / f"evidence-{len(started)}", **changes
        )
        started.append(found)
        return found

    yield make
    for one in started:
        one.gateway.stop()
