"""`broker`: the real broker process against the real API server, with the rights of broker/README.md and no others."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from fix_apiserver import ApiServer
from manifests import identity, policy, rule, target
from pki import key_pem

from chaperone_evidence.note import Signer
from chaperone_operator import kubeconfig, policykey, signing
from chaperone_operator.admission.names import INJECTED_ANNOTATION
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import (
    ACCESS_TARGETS,
    CONFIG_MAPS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Client,
    Object,
    Resource,
)

START_TIMEOUT_S = 90.0  # 2 s alone; the machine may be shared
STOP_TIMEOUT_S = 60.0  # 8 s alone: it drains, and waits for calls under way
CALL_TIMEOUT_S = 40.0
CREATOR = "creator@example.com"  # of the agents' pods
CANARY = "canary-password-7f1c"  # must never be seen outside a lease

CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole")
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")


@dataclass
class Broker:
    """A running broker and the cluster around it."""

    api: ApiServer
    system: str
    agents: str
    folder: Path
    service_ca: ServiceCa
    cluster: str
    policy_key: Ed25519PrivateKey
    serial: int = 0
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    metrics_url: str = ""

    @property
    def log(self) -> Path:
        """All it said."""
        return self.folder / "broker.log"

    @property
    def signer(self) -> signing.Signer:
        """The operator's, which signs what is stored."""
        return signing.Signer(f"{self.cluster}/operator", self.policy_key)

    def admin(self) -> Client:
        """A client that may do anything."""
        return Client(kubeconfig.from_file(self.api.kubeconfig))

    def start(self, *more: str) -> None:
        """Start the process and wait until it serves; `more` are further options."""
        before = self.log.stat().st_size if self.log.exists() else 0
        user = kubeconfig_of_broker(self.api, self.system)
        arguments = [sys.executable, "-m", "chaperone_operator.broker", "--namespace", self.system]
        arguments += ["--address", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--kubeconfig", str(user)]
        arguments += ["--tls-cert", str(self.folder / "tls.crt"), "--tls-key", str(self.folder / "tls.key"), *more]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(arguments, stdout=out, stderr=out)
        pause, ends = threading.Event(), time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends and self.process.poll() is None:
            said = self.log.read_bytes()[before:].decode()
            if found := re.search(r"serving gateways on port (\d+), metrics on port (\d+)", said):
                self.url = f"https://127.0.0.1:{found[1]}"
                self.metrics_url = f"http://127.0.0.1:{found[2]}"
                return
            pause.wait(0.02)
        pytest.fail(f"the broker did not start; its log:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> int:
        """End the process; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def write_pair(self) -> bytes:
        """A new serving certificate, in place; its DER."""
        key, certificate = self.service_ca.server_pair("127.0.0.1")
        (self.folder / "tls.key").write_bytes(key)
        (self.folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return certificate.public_bytes(serialization.Encoding.DER)

    def signed(self, snapshot: Snapshot, namespace: str = "") -> dict[str, str]:
        """`binaryData` of a snapshot as the operator stores it, later than all before."""
        self.serial = max(self.serial + 1, time.time_ns() // 1_000_000)
        namespace = namespace or self.agents
        return signing.signed(snapshot.binary_data(), namespace, snapshot.revision, None, self.signer, self.serial)

    async def put_snapshot(self, snapshot: Snapshot, namespace: str = "", **more: bytes) -> None:
        """Store a snapshot as the operator does; `more` are further members, by name without `.json`."""
        members = {f"{name}.json": base64.b64encode(content).decode() for name, content in more.items()}
        await self.put_data(self.signed(snapshot, namespace) | members, namespace)

    async def put_data(self, data: dict[str, str], namespace: str = "") -> None:
        """Store `binaryData` as it is."""
        namespace = namespace or self.agents
        async with self.admin() as client:
            body = {"metadata": {"labels": {"chaperone.dev/snapshot": "true"}}, "binaryData": data}
            name = f"snapshot-{namespace}"
            await client.apply(CONFIG_MAPS, name, body, manager="chaperone-operator", namespace=self.system)

    def compiled(self, *rules: Object, is_suspended: bool = False) -> Snapshot:
        """Policy of the agents' namespace: two targets, of which orders-db is granted to billing-agent."""
        allowed: Object = {"allowedNamespaces": {"names": [self.agents]}}
        snapshot = compile_namespace(
            self.agents,
            [identity(namespace=self.agents, suspended=is_suspended), identity("other-agent", namespace=self.agents)],
            [target(tls={"caSecretRef": {"name": "orders-db-ca"}}, **allowed), target("idle-db", **allowed)],
            [policy(list(rules) or [rule("read", "Allow", ["read"])], namespace=self.agents)],
            [],
            namespace_labels={},
            system_namespace=self.system,
        )
        assert snapshot.is_usable, snapshot.problems
        return snapshot

    async def pod(self, name: str, namespace: str = "", account: str = "agent", **changed: Any) -> Pod:
        """An injected pod, as the API server has it before a node runs it."""
        namespace = namespace or self.agents
        async with self.admin() as client:
            made = await client.create(PODS, pod_manifest(name, account, **changed), namespace)
        return Pod(self, namespace, name, made["metadata"]["uid"], account)


@dataclass
class Pod:
    """A pod with the keys of its gateway's present start."""

    broker: Broker
    namespace: str
    name: str
    uid: str
    account: str
    tls_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    signer_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    certificate: str = ""
    address: str = "127.0.0.1"  # from which it calls; the broker counts what comes from one

    @property
    def vkey(self) -> str:
        """The key of its stream."""
        return Signer(f"{self.broker.cluster}/gateway/{self.uid}", self.signer_key).verifier.vkey

    @property
    def csr(self) -> str:
        """A request for its TLS key."""
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self.tls_key, hashes.SHA256())
        )
        return request.public_bytes(serialization.Encoding.PEM).decode()

    async def token(self, audience: str = "chaperone-broker", *, is_bound: bool = True) -> str:
        """A token as the kubelet would project it."""
        body: Object = {"spec": {"audiences": [audience], "expirationSeconds": 600}}
        if is_bound:
            body["spec"]["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": self.name, "uid": self.uid}
        async with self.broker.admin() as client:
            made = await client.create(SERVICE_ACCOUNTS, body, self.namespace, self.account, "token")
        token: str = made["status"]["token"]
        return token

    async def exchange(self, token: str = "", **changed: str) -> tuple[int, Any]:
        """`POST /v1/certificates` with a token; keeps the certificate."""
        body = {"csr": self.csr, "stream_key": self.vkey} | changed
        headers = {"Authorization": f"Bearer {token or await self.token()}"}
        status, answer = await self.call("POST", "/v1/certificates", json=body, headers=headers, has_certificate=False)
        if status == 200:
            self.certificate = answer["certificate"]
        return status, answer

    async def renew(self, **changed: str) -> tuple[int, Any]:
        """`POST /v1/certificates` with the certificate."""
        return await self.call("POST", "/v1/certificates", json={"csr": self.csr, "stream_key": self.vkey} | changed)

    async def lease(self, wanted: str = "orders-db", **more: str) -> tuple[int, Any]:
        """`POST /v1/leases`."""
        return await self.call("POST", "/v1/leases", json={"target": wanted} | more)

    async def call(self, method: str, path: str, *, has_certificate: bool = True, **arguments: Any) -> tuple[int, Any]:
        """One call over a connection of its own: status, and JSON or bytes."""
        context = self.context(has_certificate=has_certificate)
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=self.connector(context), timeout=timeout) as session,
            session.request(method, self.broker.url + path, **arguments) as response,
        ):
            answer = await response.read()
            is_json = response.content_type in {"application/json", "application/problem+json"}
            return response.status, await response.json(content_type=None) if is_json and answer else answer

    async def until_limited(self, method: str, path: str, most: int, **arguments: Any) -> list[aiohttp.ClientResponse]:
        """Calls over one connection until one is answered with 429, at most so many: some come back meanwhile."""
        answers: list[aiohttp.ClientResponse] = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.context())) as session:
            while len(answers) < most and not (answers and answers[-1].status == 429):
                async with session.request(method, self.broker.url + path, **arguments) as response:
                    answers.append(response)
        return answers

    def connector(self, context: ssl.SSLContext) -> aiohttp.TCPConnector:
        """Connections of its own."""
        return aiohttp.TCPConnector(ssl=context, local_addr=(self.address, 0))

    def context(self, *, has_certificate: bool = True, certificate: str = "") -> ssl.SSLContext:
        """The TLS side of its gateway."""
        context = ssl.create_default_context(cadata=self.broker.service_ca.pem)
        shown = certificate or (self.certificate if has_certificate else "")
        if shown:
            path = self.broker.folder / f"{self.uid}.pem"
            path.write_bytes(shown.encode() + key_pem(self.tls_key))
            context.load_cert_chain(path)
        return context

    async def set_status(self, restarts: int) -> None:
        """What the kubelet reports of the gateway's container."""
        started = {"running": {"startedAt": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}}
        status = {
            "name": "chaperone-gateway", "image": "i", "imageID": "i", "ready": True, "restartCount": restarts,
            "state": started, "containerID": f"containerd://{restarts}",
        }  # fmt: skip
        async with self.broker.admin() as client:
            body: Object = {"status": {"phase": "Running", "initContainerStatuses": [status]}}
            await client.merge_patch(PODS, self.name, body, self.namespace, "status")

    def restarted(self) -> Pod:
        """The same pod with the keys of another start."""
        return Pod(self.broker, self.namespace, self.name, self.uid, self.account)


class ServiceCa:
    """A CA whose certificates pass Python's strict verification, as the operator's do."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "service CA")])
        usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
        self.certificate = (
            self._builder(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_pair(self, address: str) -> tuple[bytes, x509.Certificate]:
        """Key and certificate of a server at an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(x509.Name([]), key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return key_pem(key), certificate

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
        )


def pod_manifest(name: str, account: str = "agent", **changed: Any) -> Object:
    """A pod of `billing-agent` after injection; `labels`, `annotations`, `init` and `spec` replace those parts."""
    labels = changed.get("labels", {"chaperone.dev/identity": "billing-agent"})
    environment = [{"name": "CHAPERONE_IDENTITY", "value": changed.get("told", "billing-agent")}]
    token = {"name": "token", "mountPath": "/var/run/chaperone/token"}
    source = {"serviceAccountToken": {"audience": "chaperone-broker", "path": "token", "expirationSeconds": 600}}
    init = [
        {"name": "chaperone-fence", "image": "fence"},
        {
            "name": "chaperone-gateway", "image": "gateway", "restartPolicy": "Always",
            "env": environment, "volumeMounts": [token],
        },
        {"name": "chaperone-opa", "image": "opa", "restartPolicy": "Always"},
    ]  # fmt: skip
    spec = {
        "serviceAccountName": account,
        "nodeName": "node-1",
        "initContainers": changed.get("init", init),
        "containers": [{"name": "agent", "image": "agent"}],
        "volumes": [{"name": "token", "projected": {"sources": [source]}}],
    }
    annotations = changed.get("annotations", {"chaperone.dev/created-by": CREATOR, INJECTED_ANNOTATION: "true"})
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    return {"metadata": metadata, "spec": spec | changed.get("spec", {})}


@pytest.fixture(scope="session")
def broker(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with policy, Secrets and a service account `agent` in the agents' namespace."""
    folder = tmp_path_factory.mktemp("broker")
    made = asyncio.run(_prepare(api_server, folder))
    made.write_pair()
    made.start()
    yield made
    assert made.stop() == 0
    assert "canary-" not in made.log.read_text()  # every secret of the tests begins with it


async def _prepare(api: ApiServer, folder: Path) -> Broker:
    async with Client(kubeconfig.from_file(api.kubeconfig)) as client:
        names = []
        for prefix in ("system-", "agents-"):
            made = await client.create(NAMESPACES, {"metadata": {"generateName": prefix}})
            names.append(made["metadata"]["name"])
        system, agents = names
        cluster = (await client.get(NAMESPACES, "kube-system"))["metadata"]["uid"]
        await _install_crd(client)
        await grant(client, system)
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "agent"}}, agents)
        await client.create(SECRETS, secret("orders-db-reader", username="reader", password=CANARY), system)
        await client.create(SECRETS, secret("orders-db-ca", "Opaque", **{"ca.crt": ServiceCa().pem}), system)
        for one in ("orders-db", "idle-db"):
            await client.apply(ACCESS_TARGETS, one, {"spec": target(one)["spec"]}, manager="test")
        # The operator's key, so that one that is started where the broker is signs with it.
        key = Ed25519PrivateKey.generate()
        keys = policykey.namespace_of(system)
        await client.create(NAMESPACES, {"metadata": {"name": keys}})
        seed = base64.b64encode(key.private_bytes_raw()).decode()
        kept = {"metadata": {"name": policykey.SECRET}, "data": {policykey.FIELD: seed}}
        await client.create(SECRETS, kept, keys)
    broker = Broker(api, system, agents, folder, ServiceCa(), cluster, key)
    await broker.put_snapshot(broker.compiled())
    return broker


def secret(name: str, kind: str = "kubernetes.io/basic-auth", **values: str) -> Object:
    """A Secret."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"metadata": {"name": name}, "type": kind, "data": data}


def kubeconfig_of_broker(api: ApiServer, system: str) -> Path:
    """A kubeconfig of the broker's service account."""
    return api.kubeconfig_of(f"system:serviceaccount:{system}:chaperone-broker")


async def grant(client: Client, system: str) -> None:
    """The rights of operator/src/chaperone_operator/broker/README.md, as the chart grants them."""
    user = f"system:serviceaccount:{system}:chaperone-broker"
    cluster_rules = [
        _rule("authentication.k8s.io", "tokenreviews", "create"),
        _rule("", "pods", "get", "list", "watch"),
        _rule("", "pods/status", "patch"),
        _rule("chaperone.dev", "accesstargets", "get"),
        _rule("chaperone.dev", "accesstargets/status", "patch"),
        _rule("chaperone.dev", "approvalrequests", "get", "list", "watch", "create", "delete"),
        _rule("chaperone.dev", "approvalrequests/status", "patch"),
        _rule("", "namespaces", "get") | {"resourceNames": ["kube-system"]},
    ]
    system_rules = [
        _rule("", "secrets", "get", "create"),
        _rule("coordination.k8s.io", "leases", "get", "list", "watch", "create", "patch", "delete"),
        _rule("", "configmaps", "get", "list", "watch"),
        _rule("", "configmaps", "create"),
        _rule("", "configmaps", "patch") | {"resourceNames": ["chaperone-trust"]},
    ]
    subjects = [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]
    name = f"broker-{system}"
    reference = {"apiGroup": "rbac.authorization.k8s.io", "name": name}
    metadata = {"metadata": {"name": name}}
    await client.create(CLUSTER_ROLES, metadata | {"rules": cluster_rules})
    binding = metadata | {"subjects": subjects, "roleRef": reference | {"kind": "ClusterRole"}}
    await client.create(CLUSTER_ROLE_BINDINGS, binding)
    await client.create(ROLES, metadata | {"rules": system_rules}, system)
    await client.create(ROLE_BINDINGS, binding | {"roleRef": reference | {"kind": "Role"}}, system)


def _rule(group: str, resource: str, *verbs: str) -> Object:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}


async def _install_crd(client: Client) -> None:
    """The kinds that the broker works with, as the product defines them; other tests of the run share them."""
    for plural in ("accesstargets", "approvalrequests"):
        path = Path(__file__).parents[2] / "crds" / f"{plural}.yaml"
        spec = yaml.safe_load(path.read_text())["spec"]
        await client.apply(CRDS, f"{plural}.chaperone.dev", {"spec": spec}, manager="test")
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                found = await client.get(CRDS, f"{plural}.chaperone.dev")
                conditions_now = (found.get("status") or {}).get("conditions") or ()
                if any(one["type"] == "Established" and one["status"] == "True" for one in conditions_now):
                    break
                await asyncio.sleep(0.05)
