"""What has to be there before the story: names, Secrets with random values, and waits until things run."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chaperone_tools.cluster.pki import Authority
from chaperone_tools.errors import ToolsError
from chaperone_tools.install import diagnosis, is_true, rollout, wait_for
from chaperone_tools.kubectl import Kubectl

AGENTS: Final = "agents"
DATA: Final = "data"
DOMAIN: Final = "data.svc"
WORKLOADS: Final = (
    "statefulset/orders-db", "deployment/crm-db", "deployment/payments", "deployment/tickets",
    "deployment/worker-host", "deployment/invoice-worker",
)  # fmt: skip
TARGETS: Final = ("orders-db", "crm-db", "payments", "tickets", "worker-host", "cluster")
AGENT: Final = ("kubectl", "exec", "-n", AGENTS, "deploy/billing-agent", "-c", "agent")
FREE: Final = ("kubectl", "exec", "-n", DATA, "free")
CONNECTION: Final = f"host=orders-db.{DOMAIN} dbname=orders sslmode=verify-full"
DENIED: Final = "refused by Chaperone"
API_ADDRESS: Final = "192.0.2.1"  # stands in 21-targets.yaml for the address of Service kubernetes
HOST_KEY: Final = "chaperone-demo/host-key"

ROLLOUT_LIMIT_S: Final = 180.0  # 10 s alone; initdb and a gateway's start on a busy machine take longer
_AUTHORITY: Final = "worker-host-authority"
_BASIC: Final = "kubernetes.io/basic-auth"


class Secrets:
    """The Secrets that the manifests name: made unless they are there, and copied for the broker.

    Args:
        kubectl: of an administrator.
        system_namespace: where the broker reads.
    """

    def __init__(self, kubectl: Kubectl, system_namespace: str) -> None:
        self._kubectl = kubectl
        self._system = system_namespace
        self._stored = self._read(DATA)

    def make(self) -> dict[str, str]:
        """Make them all; gives what replaces the placeholders of 21-targets.yaml."""
        self._make("orders-db-superuser", password=_random())
        for database in ("orders-db", "crm-db"):
            login = self._make(f"{database}-agent", username="agent_rw", password=_random())
            self._put(self._system, f"{database}-agent", login, _BASIC)
            self._certificate(database)
        for name in ("payments", "tickets"):
            self._put(self._system, f"{name}-token", self._make(f"{name}-token", token=_random()))
            self._certificate(name)
        authority = self._kubectl.json("configmap", "kube-root-ca.crt", "--namespace=default")["data"]["ca.crt"]
        self._put(self._system, "cluster-ca", _encoded(**{"ca.crt": authority}))
        print(f"\nSecrets with random passwords, keys and certificates are in {DATA} and {self._system}.")
        address = self._kubectl.json("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
        return {API_ADDRESS: address, HOST_KEY: self._host()}

    @property
    def certificate(self) -> str:
        """SHA-256 of the certificate of orders-db."""
        pem = base64.b64decode(self._stored["orders-db-tls"]["tls.crt"]).decode()
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()

    def _certificate(self, name: str) -> None:
        """A server's certificate of a CA of its own, which the gateway is told."""
        host = f"{name}.{DOMAIN}"
        authority = Authority(f"{name} CA")
        server = authority.server(host, [host, f"{host}.cluster.local", name])
        made = {
            "tls.crt": server.certificate.decode(),
            "tls.key": server.key.decode(),
            "ca.crt": authority.pair.certificate.decode(),
        }
        stored = self._make(f"{name}-tls", **made)
        self._put(self._system, f"{name}-ca", {"ca.crt": stored["ca.crt"]})

    def _host(self) -> str:
        """The host's key and the authority's, whose private one the broker alone has; gives the host's public one."""
        if _AUTHORITY not in self._read(self._system) or "worker-host" not in self._stored:
            self._stored.pop("worker-host", None)
            self._kubectl("delete", "deployment", "worker-host", f"--namespace={DATA}", "--ignore-not-found")
            authority, authority_public = _key_pair()
            self._put(self._system, _AUTHORITY, _encoded(**{"ssh-privatekey": authority}))
            host, host_public = _key_pair()
            made = {"host_key": host, "host_key.pub": host_public, "authority.pub": authority_public}
            self._make("worker-host", **made)
        return base64.b64decode(self._stored["worker-host"]["host_key.pub"]).decode()

    def _make(self, name: str, **values: str) -> dict[str, str]:
        if name not in self._stored:
            self._stored[name] = _encoded(**values)
            self._put(DATA, name, self._stored[name])
        return self._stored[name]

    def _read(self, namespace: str) -> dict[str, dict[str, str]]:
        found = json.loads(self._kubectl("get", "secrets", f"--namespace={namespace}", "--output=json"))["items"]
        return {one["metadata"]["name"]: one.get("data", {}) for one in found}

    def _put(self, namespace: str, name: str, data: Mapping[str, str], kind: str = "Opaque") -> None:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": kind,
            "data": dict(data),
        }
        # On the server's side, or kubectl would write the values into an annotation too.
        self._kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=json.dumps(secret))


def not_ready(kubectl: Kubectl) -> str:
    """Which of the declared objects are not in force yet, and why."""
    found = kubectl.json("accesstargets,agentidentities,accesspolicies", f"--namespace={AGENTS}")["items"]
    lacking = []
    for one in found:
        reasons = [each for each in one.get("status", {}).get("conditions") or () if each["type"] == "Ready"]
        if not is_true(one, "Ready"):
            why = f"{reasons[0]['reason']}: {reasons[0].get('message', '')}" if reasons else "not judged yet"
            lacking.append(f"{one['kind']} {one['metadata']['name']} ({why})")
    return ", ".join(lacking)


def await_rollout(kubectl: Kubectl, namespace: str, workload: str) -> None:
    """Wait until a Deployment or StatefulSet is rolled out.

    Raises:
        ToolsError: it was not in time.
    """
    wait_for(
        f"the rollout of {workload}",
        ROLLOUT_LIMIT_S,
        lambda: rollout(kubectl, namespace, workload),
        lambda: diagnosis(kubectl, namespace),
    )


def agent_pod(kubectl: Kubectl) -> dict[str, Any]:
    """The agent's pod.

    Raises:
        ToolsError: there is not exactly one.
    """
    pods = kubectl.json("pods", f"--namespace={AGENTS}", "--selector=app=billing-agent")["items"]
    living = [one for one in pods if "deletionTimestamp" not in one["metadata"]]
    if len(living) != 1:
        raise ToolsError(f"there are {len(living)} pods of billing-agent\n{diagnosis(kubectl, AGENTS)}")
    pod: dict[str, Any] = living[0]
    return pod


def addresses(pod: Mapping[str, Any]) -> list[str]:
    """A pod's addresses, IPv4 first."""
    return sorted((one["ip"] for one in pod["status"]["podIPs"]), key=lambda address: ":" in address)


def _encoded(**values: str) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def _random() -> str:
    return secrets.token_urlsafe(24)


def _key_pair() -> tuple[str, str]:
    """A private key of Ed25519 and its public one, as OpenSSH writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()
