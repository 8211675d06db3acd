"""What the cluster tests stand on: a database that nobody fences, and namespaces of agents with identity and policy.

Names are those of a test's own namespace, so tests do not meet; the target is one for all of them.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from chaperone_tools.cache import binary, checkout
from chaperone_tools.cluster.pki import Authority
from chaperone_tools.kubectl import Kubectl

type Object = dict[str, Any]

DATA: Final = "e2e-data"
HOST: Final = f"orders-db.{DATA}.svc"
TARGET: Final = "e2e-orders"
AGENTS_LABEL: Final = "chaperone-e2e"
API: Final = "chaperone.dev/v1alpha1"
EXEC_LIMIT_S: Final = 120.0
WAIT_S: Final = 90.0
READY_S: Final = 180  # a pod of an agent; its gateway alone may take two minutes on a busy node

READ: Final = {"name": "read-orders", "action": "Allow", "match": {"effects": ["read"], "objects": ["public.orders"]}}
SETTLE: Final = {
    "name": "settle-invoices", "action": "Allow",
    "match": {"effects": ["read", "modify"], "objects": ["public.invoices"]},
}  # fmt: skip
NEVER: Final = {
    "name": "never", "action": "Deny", "match": {"effects": ["destroy", "privilege"]},
    "message": "Ask the DBA on call.",
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """What a command in a pod did."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Pod:
    """A pod whose container `main` runs the agent's image."""

    kubectl: Kubectl
    namespace: str
    name: str

    def run(self, *command: str, stdin: str = "", limit_s: float = EXEC_LIMIT_S) -> Ran:
        """Run a command in it; a status other than 0 is an answer, not an error."""
        done = subprocess.run(
            self._exec(*command), input=stdin, capture_output=True, text=True, timeout=limit_s, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def feed(self, content: IO[bytes], *command: str) -> None:
        """Run a command that reads a file of this machine, past every gateway; it has to succeed."""
        subprocess.run(self._exec(*command), stdin=content, capture_output=True, timeout=EXEC_LIMIT_S, check=True)

    def put(self, program: Path) -> str:
        """Copy a program into it; where it lies then."""
        place = f"/usr/local/bin/{program.name}"
        with program.open("rb") as content:
            self.feed(content, "sh", "-c", f"cat > {place} && chmod +x {place}")
        return place

    def _exec(self, *command: str) -> list[str]:
        kubectl = [str(binary("kubectl")), f"--kubeconfig={self.kubectl.kubeconfig}"]
        return [*kubectl, "exec", "-i", f"-n{self.namespace}", self.name, "-c", "main", "--", *command]

    def python(self, program: str, *arguments: str, limit_s: float = EXEC_LIMIT_S) -> Ran:
        """Run a program that is given on its standard input."""
        return self.run("python3", "-", *arguments, stdin=program, limit_s=limit_s)

    def psql(self, statement: str, *options: str, host: str = HOST) -> Ran:
        """Run a statement as a person would: no password, the server's certificate checked."""
        return self.run("psql", f"host={host} dbname=orders sslmode=verify-full", "-Atc", statement, *options)

    @property
    def seen(self) -> Object:
        """The pod as the API server has it."""
        return self.kubectl.json("pod", self.name, f"--namespace={self.namespace}")

    @property
    def addresses(self) -> list[str]:
        """IPv4 first."""
        return sorted((one["ip"] for one in self.seen["status"]["podIPs"]), key=lambda address: ":" in address)

    def logs(self, container: str, *options: str) -> str:
        """What a container printed."""
        return self.kubectl("logs", f"--namespace={self.namespace}", self.name, f"--container={container}", *options)


@dataclass(frozen=True)
class Team:
    """A namespace of agents."""

    kubectl: Kubectl
    namespace: str
    image: str

    def identity(self, name: str = "billing", **spec: Any) -> None:
        """Declare an identity for pods with the label `app: <name>`."""
        wanted = {"selector": {"matchLabels": {"app": name}}, "owner": {"name": "On call"}, "purpose": "Tests"}
        self.apply(named("AgentIdentity", name, {**wanted, **spec}, self.namespace))
        if not spec.get("suspended"):
            self.until_ready("agentidentity", name)

    def policy(
        self, *rules: Object, name: str = "billing", identity: str = "", targets: tuple[str, ...] = (TARGET,),
        **more: Any,
    ) -> None:  # fmt: skip
        """Declare what an identity, that of the policy's name unless told, may do; `more` is of the spec."""
        spec = more | {
            "subjects": [{"identity": identity or name}],
            "targets": [{"name": target} for target in targets],
            "rules": list(rules),
        }
        self.apply(named("AccessPolicy", name, spec, self.namespace))
        self.until_ready("accesspolicy", name)

    def until_ready(self, kind: str, name: str) -> None:
        """Wait until the operator says that it is in force as it stands now."""

        def is_ready() -> bool:
            found = self.kubectl.json(kind, name, f"--namespace={self.namespace}")
            generation = found["metadata"]["generation"]
            return any(
                one["type"] == "Ready" and one["status"] == "True" and one.get("observedGeneration") == generation
                for one in found.get("status", {}).get("conditions") or ()
            )

        until(f"{kind} {name} is Ready", is_ready)

    def pod(self, name: str = "agent", *, app: str = "billing", **spec: Any) -> Pod:
        """Start an agent and wait until it is ready."""
        self.apply(pod(self.namespace, name, self.image, labels={"app": app}, **spec))
        self.wait_for(name)
        return Pod(self.kubectl, self.namespace, name)

    def wait_for(self, name: str) -> None:
        """Wait until a pod is ready."""
        until_pods_are_ready(self.kubectl, self.namespace, name)

    def apply(self, *objects: Object) -> None:
        """Apply."""
        self.kubectl.apply(*objects)

    def commands(self, **fields: str) -> list[Object]:
        """The recorded commands of this namespace with these values in their spec."""
        found = self.kubectl.json("commands", f"--namespace={self.namespace}")["items"]
        return [one for one in found if all(one["spec"].get(key) == value for key, value in fields.items())]


def until(what: str, is_so: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    """Wait for something that happens in the cluster.

    Raises:
        AssertionError: it did not happen in time.
    """
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.25)


def until_pods_are_ready(kubectl: Kubectl, namespace: str, *names: str) -> None:
    """Wait for pods that have gateways."""
    limit, pods = f"--timeout={READY_S}s", [f"pod/{name}" for name in names]
    kubectl("wait", f"--namespace={namespace}", "--for=condition=Ready", *pods, limit, limit_s=READY_S + 30)


def named(kind: str, name: str, spec: Object, namespace: str = "") -> Object:
    """One of our own kinds."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


def pod(namespace: str, name: str, image: str, *, labels: Mapping[str, str] | None = None, **spec: Any) -> Object:
    """A pod that sleeps as root."""
    container = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"} | spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {"app": name})},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [container]} | spec,
    }


def make_namespace(kubectl: Kubectl, name: str, **labels: str) -> None:
    """Make it; an earlier run's of the same name goes first. Pods can be made in it when this returns."""
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=100s")
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    # A controller makes it a moment later; the API server waits a second for it, then refuses the pod.
    kubectl("wait", f"--namespace={name}", "--for=create", "serviceaccount/default", "--timeout=60s")


def secret(name: str, namespace: str, kind: str = "Opaque", **data: str) -> Object:
    """A Secret."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "type": kind,
        "data": encoded,
    }  # fmt: skip


@dataclass(frozen=True)
class Database:
    """The database of all cluster tests."""

    kubectl: Kubectl
    password: str
    certificate: str

    def query(self, statement: str) -> str:
        """Ask as its owner, past every gateway."""
        return self.kubectl(
            "exec", f"--namespace={DATA}", "orders-db-0", "--", "psql", "--host=/tmp", "--username=postgres", "orders",
            "-Atc", statement,
        ).strip()  # fmt: skip

    @property
    def address(self) -> str:
        """Of its pod."""
        found: str = self.kubectl.json("pod", "orders-db-0", f"--namespace={DATA}")["status"]["podIP"]
        return found

    @property
    def service_address(self) -> str:
        """Of its Service."""
        found: str = self.kubectl.json("service", "orders-db", f"--namespace={DATA}")["spec"]["clusterIP"]
        return found


def make_database(kubectl: Kubectl, image: str, system_namespace: str) -> Database:
    """The demo's database in a namespace of the tests, with passwords of its own, and the target that leads there."""
    make_namespace(kubectl, DATA)
    authority = Authority("e2e orders CA")
    server = authority.server(HOST, [HOST, f"{HOST}.cluster.local", "orders-db"])
    certificate, ca = server.certificate.decode(), authority.pair.certificate.decode()
    password = f"canary-{secrets.token_urlsafe(18)}"
    text = (checkout() / "examples" / "demo" / "10-database.yaml").read_text()
    kubectl.apply(
        secret("orders-db-superuser", DATA, password=secrets.token_urlsafe(18)),
        secret("orders-db-agent", DATA, username="agent_rw", password=password),
        secret("orders-db-tls", DATA, **{"tls.crt": certificate, "tls.key": server.key.decode(), "ca.crt": ca}),
        secret(f"{TARGET}-agent", system_namespace, "kubernetes.io/basic-auth", username="agent_rw", password=password),
        secret(f"{TARGET}-ca", system_namespace, **{"ca.crt": ca}),
    )
    kubectl(
        "apply", "--filename=-",
        stdin=text.replace("namespace: data}", f"namespace: {DATA}}}").replace("chaperone-demo/postgres", image),
    )  # fmt: skip
    kubectl.apply(target(TARGET))
    kubectl("rollout", "status", f"--namespace={DATA}", "statefulset/orders-db", "--timeout=110s")
    return Database(kubectl, password, certificate)


def target(name: str, **spec: Any) -> Object:
    """An AccessTarget that leads to the database, open to every namespace of agents of these tests."""
    wanted = {
        "protocol": "PostgreSQL",
        "hosts": [HOST],
        "port": 5432,
        "upstream": {"database": "orders"},
        "tls": {"mode": "VerifyFull", "caSecretRef": {"name": f"{TARGET}-ca"}},
        "credential": {"secretRef": {"name": f"{TARGET}-agent"}},
        "allowedNamespaces": {"selector": {"matchLabels": {AGENTS_LABEL: "true"}}},
    }
    return named("AccessTarget", name, {**wanted, **spec})


def replayed(team: Team, session: str, *words: str) -> str:
    """What a session's replay shows, once these words are in it: a command is listed before its answer is recorded."""
    shown: list[str] = []

    def is_shown() -> bool:
        done = chaperone(team.kubectl, "replay", session, "-n", team.namespace)
        print(done.err)
        shown[:] = [done.out]
        return done.status == 0 and all(word in done.out for word in words)

    until(f"the replay of {session} shows {' and '.join(words)}", is_shown)
    return shown[0]


def chaperone(kubectl: Kubectl, *arguments: str) -> Ran:
    """The command line of an auditor, with this workspace's programs and the cluster's kubeconfig."""
    folders = (str(Path(sys.executable).parent), str(binary("kubectl").parent), os.environ.get("PATH", ""))
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig), "PATH": os.pathsep.join(folders)}
    done = subprocess.run(
        ["chaperone", *arguments], capture_output=True, text=True, timeout=EXEC_LIMIT_S, env=environment, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)
