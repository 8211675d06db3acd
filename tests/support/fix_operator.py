"""`operator`: the operator as a process, with its own rights only, its webhooks registered at a real API server.

The webhooks hold namespaces labelled `chaperone-test: "true"`, and all cluster-scoped objects of our kinds.
"""

from __future__ import annotations

import base64
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_apiserver import ApiServer
from fix_crds import kubectl
from ports import free_ports

from chaperone_operator.policykey import namespace_of

READY_TIMEOUT_S = 60.0  # 3 s alone; the machine may be shared
WATCHED = {"chaperone-test": "true"}

type Object = dict[str, Any]


@dataclass
class Replica:
    """One process."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a path of the plain listener."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def is_leading(self) -> bool:
        return "chaperone_operator_writes 1.0" in self.get("/metrics")[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@dataclass
class Operator:
    """An installation."""

    api: ApiServer
    system_namespace: str
    folder: Path
    replicas: list[Replica] = field(default_factory=list)

    def kubectl(self, *arguments: str, stdin: str = "", is_checked: bool = True) -> str:
        return kubectl(self.api, *arguments, stdin=stdin, is_checked=is_checked)

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def namespace(self, name: str, **labels: str) -> str:
        """A namespace that the webhooks hold."""
        whole = f"{name}-{secrets.token_hex(3)}"
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": whole, "labels": WATCHED | labels}})
        return whole

    def condition(self, kind: str, name: str, namespace: str = "", type_: str = "Ready") -> Object:
        """A condition of an object, {} while there is none."""
        where = ["-n", namespace] if namespace else []
        status = self.get(kind, name, *where).get("status") or {}
        found: list[Object] = [one for one in status.get("conditions") or () if one["type"] == type_]
        return found[0] if found else {}

    def eventually[T](self, ask: Callable[[], T], is_good: Callable[[T], bool], timeout_s: float = 30.0) -> T:
        """Ask until the answer is good."""
        pause = threading.Event()
        ends = time.monotonic() + timeout_s
        while True:
            found = ask()
            if is_good(found):
                return found
            if time.monotonic() > ends:
                logs = "".join(one.log.read_text()[-4000:] for one in self.replicas)
                pytest.fail(f"still {found!r} after {timeout_s} s; logs:\n{logs}")
            pause.wait(0.1)

    def start(self, *more: str, port: int = 0) -> Replica:
        """Start a replica and wait until it is ready."""
        replica = self.launch(*more, port=port)
        self.eventually(lambda: replica.get("/readyz")[0], lambda status: status == 200, READY_TIMEOUT_S)
        return replica

    def launch(self, *more: str, port: int = 0) -> Replica:
        """Start a replica."""
        found, metrics_port = free_ports(2)
        port = port or found
        log = self.folder / f"operator-{len(self.replicas)}.log"
        command = [
            sys.executable, "-m", "chaperone_operator.main", "run",
            f"--kubeconfig={self.api.kubeconfig_of('operator')}",
            f"--namespace={self.system_namespace}", f"--port={port}", f"--metrics-port={metrics_port}",
            "--address=127.0.0.1", "--gateway-image=example.com/gateway:1", "--opa-image=example.com/opa:1",
            "--drain=0.2", *more,
        ]  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        replica = Replica(process, port, metrics_port, log)
        self.replicas.append(replica)
        return replica

    def end(self) -> None:
        for replica in self.replicas:
            if replica.process.poll() is None:
                replica.process.terminate()
        for replica in self.replicas:
            try:
                replica.process.wait(20)
            except subprocess.TimeoutExpired:
                replica.process.kill()
                replica.process.wait()


@pytest.fixture(scope="module")
def installation(crds: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Rights, Service and system namespace; no process yet."""
    with installed(crds, tmp_path_factory.mktemp("operator")) as held:
        yield held


@pytest.fixture(scope="module")
def operator(installation: Operator) -> Iterator[Operator]:
    """One running replica behind registered webhooks."""
    with serving(installation):
        yield installation


@contextmanager
def installed(crds: ApiServer, folder: Path) -> Iterator[Operator]:
    """Rights and system namespace at an API server that knows our kinds; its processes are ended after use."""
    system = f"chaperone-system-{secrets.token_hex(3)}"
    held = Operator(crds, system, folder)
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in (system, namespace_of(system))
    ]
    held.apply(*namespaces, *_rights(system))
    try:
        yield held
    finally:
        held.end()


@contextmanager
def serving(installation: Operator) -> Iterator[Replica]:
    """One running replica behind registered webhooks."""
    port = free_ports(1)[0]
    registered = registrations(installation.system_namespace, port)
    try:
        # The registrations come first, as a chart's do: without certificate, so that everything they hold is refused.
        installation.apply(service(installation.system_namespace), *registered)
        replica = installation.start(port=port)
        encoded = base64.b64encode(_bundle(installation).encode()).decode()
        assert all(
            webhook["clientConfig"].get("caBundle") == encoded
            for one in registered
            for webhook in installation.get(one["kind"].lower(), "chaperone")["webhooks"]
        ), replica.log.read_text()
        yield replica
    finally:
        for one in registered:
            installation.kubectl("delete", one["kind"].lower(), "chaperone", "--ignore-not-found", is_checked=False)


def _bundle(held: Operator) -> str:
    found: str = held.get("configmap", "chaperone-trust", "-n", held.system_namespace)["data"]["ca.crt"]
    return found


def service(system: str) -> Object:
    """By which the API server finds the operator."""
    # Without nodes there are no endpoints; by an external name the API server finds the process and still asks for the
    # Service's name in its certificate.
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chaperone-operator", "namespace": system},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }


def registrations(system: str, port: int) -> list[Object]:
    """Of the webhooks, as charts/chaperone/templates/webhooks.yaml registers them."""

    def webhook(path: str, *rules: Object, **more: Any) -> Object:
        place = {"name": "chaperone-operator", "namespace": system, "path": f"/{path}", "port": port}
        return {
            "name": f"{path}.chaperone.dev",
            "clientConfig": {"service": place},
            "namespaceSelector": {"matchLabels": WATCHED},
            "rules": list(rules),
            "failurePolicy": "Fail",
            "sideEffects": "NoneOnDryRun" if path == "validate-exec" else "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 30,  # the chart's are 5 s; the machine may be shared
            **more,
        }

    def core(operation: str, *resources: str) -> Object:
        return {"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": list(resources)}

    kinds = ["agentidentities", "accesstargets", "accesspolicies", "clusteraccesspolicies"]
    ours = {"apiGroups": ["chaperone.dev"], "apiVersions": ["v1alpha1"], "operations": ["CREATE", "UPDATE"]}
    mutators = [
        webhook("mutate-pod", core("CREATE", "pods"), core("UPDATE", "pods/ephemeralcontainers"),
                reinvocationPolicy="IfNeeded"),
        webhook("mutate-suspension", ours | {"resources": ["agentidentities"]}, reinvocationPolicy="IfNeeded"),
    ]  # fmt: skip
    validators = [
        webhook("validate-pod", core("CREATE", "pods"),
                core("UPDATE", "pods", "pods/ephemeralcontainers", "pods/resize")),
        webhook("validate-exec", core("CONNECT", "pods/exec", "pods/attach", "pods/portforward")),
        webhook("validate-crd", ours | {"resources": kinds}),
        webhook("validate-suspension", ours | {"resources": ["agentidentities"]}),
    ]  # fmt: skip
    group = "admissionregistration.k8s.io/v1"
    return [
        {"apiVersion": group, "kind": kind, "metadata": {"name": "chaperone"}, "webhooks": webhooks}
        for kind, webhooks in (
            ("MutatingWebhookConfiguration", mutators),
            ("ValidatingWebhookConfiguration", validators),
        )
    ]


def _rights(system: str) -> list[Object]:
    """The rights of operator/README.md, and no others."""
    kinds = ["agentidentities", "accesstargets", "accesspolicies", "clusteraccesspolicies"]
    pairs = ["chaperone-ca", "chaperone-operator-tls", "chaperone-broker-tls", "chaperone-collector-tls"]
    registrations = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]
    everywhere = [
        _may("", ["namespaces", "pods"], "get", "list", "watch"),
        _may("chaperone.dev", kinds, "list", "watch"),
        _may("chaperone.dev", [f"{kind}/status" for kind in kinds], "patch"),
        _may("evidence.chaperone.dev", ["tallies"], "list"),
        _may("evidence.chaperone.dev", ["populations", "policyrevisions"], "create", "get"),
        _may("events.k8s.io", ["events"], "create"),
        _may("admissionregistration.k8s.io", registrations, "get", "update", names=["chaperone"]),
        _may("apiregistration.k8s.io", ["apiservices"], "get", "update", names=["v1alpha1.evidence.chaperone.dev"]),
    ]
    here = [
        _may("", ["secrets"], "get", "update", names=pairs),
        _may("", ["secrets"], "create"),
        _may("", ["configmaps"], "get", "list", "create", "patch", "delete"),
        _may("coordination.k8s.io", ["leases"], "create"),
        _may("coordination.k8s.io", ["leases"], "get", "update", names=["chaperone-operator"]),
    ]
    key = [
        _may("", ["secrets"], "get", names=["chaperone-policy-key"]),
        _may("", ["secrets"], "create"),
    ]
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "User", "apiGroup": group, "name": "operator"}
    found: list[Object] = []
    for kind, rules, metadata in (
        ("ClusterRole", everywhere, {"name": "chaperone-operator"}),
        ("Role", here, {"name": "chaperone-operator", "namespace": system}),
        ("Role", key, {"name": "chaperone-operator", "namespace": namespace_of(system)}),
    ):
        found.append({"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules})
        reference = {"apiGroup": group, "kind": kind, "name": "chaperone-operator"}
        found.append(
            {
                "apiVersion": f"{group}/v1",
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": reference,
                "subjects": [subject],
            }
        )
    return found


def _may(group: str, resources: list[str], *verbs: str, names: list[str] | None = None) -> Object:
    rule: Object = {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}
    return rule | ({"resourceNames": names} if names else {})
