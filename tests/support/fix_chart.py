"""`installed`: the Helm chart as it renders, and as `helm install` leaves it on an API server of its own."""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_apiserver import ApiServer, api_server
from fix_crds import kubectl

from chaperone_operator.certs import API_SERVICE, WEBHOOKS
from chaperone_tools.cache import binary
from chaperone_tools.errors import ToolsError

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "chaperone"
SYSTEM = "chaperone-system"
KUBE_VERSION = "1.34.0"  # a helm built from source takes itself for one of an old Kubernetes when it has no cluster
HELM_TIMEOUT_S = 120.0
WAIT_S = 60.0
REGISTRATIONS = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")

type Object = dict[str, Any]


def helm(*arguments: str, is_checked: bool = True) -> str:
    """What helm prints; its errors too when it fails."""
    try:
        program = binary("helm")
    except ToolsError as error:
        pytest.fail(str(error))
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=HELM_TIMEOUT_S, check=False, cwd=ROOT
    )
    assert done.returncode == 0 or not is_checked, done.stdout + done.stderr
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def rendered(*arguments: str) -> list[Object]:
    told = helm("template", "chaperone", str(CHART), "-n", SYSTEM, "--kube-version", KUBE_VERSION, *arguments)
    return [one for one in yaml.safe_load_all(told) if one]


def of(objects: list[Object], *kinds: str) -> list[Object]:
    found = [one for one in objects if one["kind"] in kinds]
    assert found
    return found


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Pod specs of all workloads, by the workload's name."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in objects
        if "template" in (one.get("spec") or {})
    }


class Installation:
    """A release of the chart."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def kubectl(self, *arguments: str, stdin: str = "", is_checked: bool = True) -> str:
        return kubectl(self.server, *arguments, stdin=stdin, is_checked=is_checked)

    def helm(self, command: str, *arguments: str) -> str:
        return helm(command, "chaperone", *arguments, "-n", SYSTEM, f"--kubeconfig={self.server.kubeconfig}")

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def try_pod(self, pod: Object, namespace: str) -> str:
        """What the API server says to a pod, "" when it would take it."""
        given = yaml.safe_dump(pod)
        told = self.kubectl(
            "create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=given, is_checked=False
        )  # fmt: skip
        return "" if "created (server dry run)" in told else told

    def may(self, part: str, verb: str, resource: str, namespace: str = SYSTEM, subresource: str = "") -> bool:
        account = f"system:serviceaccount:{SYSTEM}:chaperone-{part}"
        more = [f"--subresource={subresource}"] if subresource else []
        told = self.kubectl(
            "auth", "can-i", verb, resource, f"--as={account}", "-n", namespace, *more, is_checked=False
        )  # fmt: skip
        return "yes" in told.splitlines()

    def ca_bundles(self) -> set[str]:
        """Everything that stands as a CA in our registrations."""
        found = {
            webhook["clientConfig"].get("caBundle", "")
            for kind in REGISTRATIONS
            for webhook in self.get(kind, WEBHOOKS)["webhooks"]
        }
        return found | {self.get("apiservice", API_SERVICE)["spec"].get("caBundle", "")}


def eventually(is_so: Any, told: str) -> None:
    ends = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > ends:
            pytest.fail(f"{told}: not within {WAIT_S:.0f} s")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The chart, as `helm install` leaves it; nothing of it runs, for there are no nodes.

    The API server is the module's alone: a release holds the pods of all namespaces.
    """
    with contextlib.contextmanager(inspect.unwrap(api_server))(tmp_path_factory) as server:
        release = Installation(server, tmp_path_factory.mktemp("release"))
        release.kubectl("create", "namespace", "agents")
        release.helm("install", str(CHART), "--create-namespace")
        release.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
        yield release


@contextlib.contextmanager
def without_webhooks(installed: Installation) -> Iterator[None]:
    """Somebody took the webhooks out; they come back afterwards."""
    kept = [installed.get(kind, WEBHOOKS) for kind in REGISTRATIONS]
    for kind, one in zip(REGISTRATIONS, kept, strict=True):
        installed.kubectl("delete", kind, WEBHOOKS)
        one["metadata"] = {key: one["metadata"][key] for key in ("name", "labels", "annotations")}
    eventually(
        lambda: "no endpoints available" not in installed.try_pod(pod(), "agents"), "the API server forgets webhooks"
    )
    try:
        yield
    finally:
        installed.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(kept))


def pod(**spec: Any) -> Object:
    """A pod that is no agent's."""
    usual: Object = {"containers": [{"name": "main", "image": "example.com/main:1"}], "serviceAccountName": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "billing"}, "spec": usual | spec}
