"""`evidence_api`: a collector behind a real kube-apiserver as `evidence.chaperone.dev`, and kubectl to ask it with."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_apiserver import ApiServer
from fix_collector import Collector
from pki import Authority

READY_TIMEOUT_S = 90.0
KUBECTL_TIMEOUT_S = 60.0
NAMESPACE = "chaperone-system"
_BIN = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin"))
_APISERVICE = "v1alpha1.evidence.chaperone.dev"
_PATH = "/apis/evidence.chaperone.dev/v1alpha1"


class EvidenceApi:
    """The collector and the API server in front of it."""

    def __init__(self, server: ApiServer, collector: Collector) -> None:
        self.server = server
        self.collector = collector

    def kubectl(self, *arguments: str, user: str = "", groups: tuple[str, ...] = (), given: str = "") -> str:
        """Run kubectl; its output. As administrator unless a user is named."""
        done = self.run(*arguments, user=user, groups=groups, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(
        self, *arguments: str, user: str = "", groups: tuple[str, ...] = (), given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it."""
        return subprocess.run(
            [*self.command(user, groups), *arguments], input=given, capture_output=True, text=True,
            timeout=KUBECTL_TIMEOUT_S, check=False,
        )  # fmt: skip

    def command(self, user: str = "", groups: tuple[str, ...] = ()) -> list[str]:
        """The beginning of a kubectl command line."""
        path = self.server.kubeconfig_of(user, *groups) if user else self.server.kubeconfig
        cache = self.server.folder / f"cache-{user or 'admin'}"
        return [str(_BIN / "kubectl"), "--kubeconfig", str(path), "--cache-dir", str(cache)]

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[str]:
        """`kubectl proxy` as administrator; its URL."""
        process = await asyncio.create_subprocess_exec(
            *self.command(), "proxy", "--port=0", "--reject-methods=^$", stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(KUBECTL_TIMEOUT_S):
                line = (await process.stdout.readline()).decode()
            yield "http://" + line.split()[-1]
        finally:
            process.terminate()
            await process.wait()

    def eventually(self, *arguments: str) -> str:
        """The output of kubectl, once it succeeds: kube-apiserver merges documents in its own time."""
        done = _until(self, lambda found: not found.returncode, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        """`kubectl get --raw`, read as JSON."""
        return json.loads(self.kubectl("get", "--raw", path))

    @property
    def ca_bundle(self) -> str:
        """By which the collector is known."""
        return base64.b64encode(self.collector.service_ca.pem.encode()).decode()

    def register(self) -> None:
        """Make it known to the API server; again where an operator may have run, which sets its own CA."""
        self.kubectl("apply", "-f", "-", given=_manifests(self))
        _wait_available(self)


def _manifests(api: EvidenceApi) -> str:
    service = {"name": "chaperone-evidence", "namespace": NAMESPACE, "port": api.collector.api_port}
    group = "rbac.authorization.k8s.io"
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "chaperone-evidence", "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": _APISERVICE},
            "spec": {
                "group": "evidence.chaperone.dev", "version": "v1alpha1", "groupPriorityMinimum": 1000,
                "versionPriority": 15, "service": service,
                "caBundle": api.ca_bundle,
            },
        },
        {
            "apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "chaperone-auditor"},
            "rules": [{
                "apiGroups": ["evidence.chaperone.dev"],
                "resources": [
                    "sessions", "sessions/proof", "sessions/recording", "commands", "reads", "checkpoints",
                    "checkpoints/checkpoint", "checkpoints/entries", "checkpoints/policy", "checkpoints/tile",
                ],
                "verbs": ["get", "list", "watch"],
            }],
        },
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding",
            "metadata": {"name": "auditors", "namespace": "agents"},
            "subjects": [{"kind": "Group", "name": "auditors", "apiGroup": group}],
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "chaperone-auditor"},
        },
    ]  # fmt: skip
    return yaml.safe_dump_all(documents)


def _account_manifests() -> str:
    group = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": "chaperone-collector", "namespace": NAMESPACE}
    documents: list[dict[str, Any]] = [
        *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
          for name in (NAMESPACE, "agents", "elsewhere")),
        {
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "chaperone-collector", "namespace": NAMESPACE},
        },
        {
            "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "chaperone-collector"},
            "subjects": [account],
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "system:auth-delegator"},
        },
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding",
            "metadata": {"name": "chaperone-collector", "namespace": "kube-system"},
            "subjects": [account],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "extension-apiserver-authentication-reader"},
        },
    ]  # fmt: skip
    return yaml.safe_dump_all(documents)


@pytest.fixture(scope="session")
def evidence_served(
    api_server: ApiServer, gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EvidenceApi]:
    """One for the whole run."""
    with served(api_server, gateway_ca, tmp_path_factory.mktemp("evidence-api")) as api:
        yield api


@pytest.fixture(scope="module")
def evidence_api(evidence_served: EvidenceApi) -> EvidenceApi:
    """One for the whole run; isolate by namespace or by what a test sends.

    Operators of other files set their own CA at the API server that all share; then it is made known again.
    """
    found = evidence_served.kubectl("get", "apiservice", _APISERVICE, "-o", "jsonpath={.spec.caBundle}")
    if found != evidence_served.ca_bundle:
        evidence_served.register()
    return evidence_served


@contextmanager
def served(api_server: ApiServer, gateway_ca: Authority, folder: Path, *more: str) -> Iterator[EvidenceApi]:
    """A collector, with more arguments, behind an API server, which has no other."""
    (folder / "kubernetes-ca.crt").write_text(api_server.authority.pem)
    collector = Collector(
        folder, gateway_ca, "--api-port", "0", "--kubernetes", api_server.url,
        "--kubernetes-ca", str(folder / "kubernetes-ca.crt"), "--kubernetes-token", str(folder / "token"),
        *more,
    )  # fmt: skip
    api = EvidenceApi(api_server, collector)
    api.kubectl("apply", "-f", "-", given=_account_manifests())
    (folder / "token").write_text(
        api.kubectl("create", "token", "chaperone-collector", "-n", NAMESPACE, "--duration=2h")
    )
    _wait_readable(api)
    collector.start()
    try:
        api.register()
        yield api
    finally:
        collector.stop()
        api.run("delete", "apiservice", _APISERVICE)


def _wait_readable(api: EvidenceApi) -> None:
    """kube-apiserver writes the ConfigMap, and takes bindings into account, a moment after it is ready."""
    account = f"system:serviceaccount:{NAMESPACE}:chaperone-collector"
    done = _until(
        api, lambda found: "requestheader-client-ca-file" in found.stdout,
        "get", "configmap", "-n", "kube-system", "extension-apiserver-authentication", "-o", "json", "--as", account,
    )  # fmt: skip
    assert "requestheader-client-ca-file" in done.stdout, f"the collector cannot read the ConfigMap: {done.stderr}"


def _wait_available(api: EvidenceApi) -> None:
    """Wait until kube-apiserver asks the collector that was registered last, lists its kinds, and knows who may ask.

    Each of these follows in its own time. The condition `Available` may still be that of the collector before.
    """
    for wanted, question in (
        ("APIResourceList", ("get", "--raw", _PATH)),
        ("sessions", ("api-resources", "--api-group=evidence.chaperone.dev", "-o=name")),
        ("yes", ("auth", "can-i", "list", "sessions.evidence.chaperone.dev", "-n=agents", "--as=x",
                 "--as-group=auditors")),
    ):  # fmt: skip
        done = _until(api, lambda found, part=wanted: not found.returncode and part in found.stdout, *question)  # type: ignore[misc]
        if done.returncode or wanted not in done.stdout:
            shown = api.run("get", "apiservice", _APISERVICE, "-o", "jsonpath={.status}").stdout
            pytest.fail(f"{question}: {done.stderr}\n{shown}\n{api.collector.log.read_text()[-3000:]}")


def _until(
    api: EvidenceApi, is_so: Callable[[subprocess.CompletedProcess[str]], bool], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run kubectl until it says so, or the time is over."""
    pause, ends = threading.Event(), time.monotonic() + READY_TIMEOUT_S
    while not is_so(done := api.run(*arguments)) and time.monotonic() < ends:
        pause.wait(0.1)
    return done
