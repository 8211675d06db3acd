"""An installation of the chart: what the API server takes, what accounts may, how it goes on and ends."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import manifests
import pytest
import yaml
from fix_chart import (
    CHART,
    REGISTRATIONS,
    SYSTEM,
    WAIT_S,
    Installation,
    eventually,
    pod,
    pod_specs,
    rendered,
    without_webhooks,
)
from fix_operator import Operator
from ports import free_ports

from chaperone_operator import policykey
from chaperone_operator.broker import ca
from chaperone_operator.certs import API_SERVICE, CA_SECRET, SERVICES, TRUST, TRUST_KEY, WEBHOOKS

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def test_api_server_takes_every_object_as_it_is(installed: Installation) -> None:
    told = installed.kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "-f", "-",
        stdin=yaml.safe_dump_all(rendered("--include-crds")),
    )  # fmt: skip
    assert "Warning" not in told


def test_pods_pass_pod_security_restricted(installed: Installation) -> None:
    installed.kubectl(
        "label", "namespace", SYSTEM, "--overwrite",
        *(f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")),
    )  # fmt: skip
    # The API server follows labels and registrations with a delay.
    eventually(lambda: "violates PodSecurity" in installed.try_pod(pod(), SYSTEM), "the label counts")
    for name, spec in pod_specs(rendered()).items():
        claimed = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]  # as the StatefulSet adds it
        spec = spec | {"volumes": [*spec.get("volumes", ()), *claimed]}  # noqa: PLW2901
        assert installed.try_pod(pod(**spec), SYSTEM) == "", name


def test_without_an_operator_pods_are_refused_but_in_exempt_namespaces(installed: Installation) -> None:
    eventually(lambda: "failed calling webhook" in installed.try_pod(pod(), "agents"), "the webhooks are asked")
    assert installed.try_pod(pod(), "kube-system") == ""


def test_accounts_may_what_they_need_and_no_more(installed: Installation) -> None:
    may = installed.may
    for name in (CA_SECRET, *SERVICES):
        assert may("operator", "get", f"secrets/{name}")
        assert may("operator", "update", f"secrets/{name}")
    for verb in ("get", "list", "watch", "delete", "patch"):
        assert not may("operator", verb, "secrets")
        assert not may("collector", verb, "secrets")
    for name in ("orders-db-reader", ca.SECRET):
        assert not may("operator", "get", f"secrets/{name}")
        assert may("broker", "get", f"secrets/{name}")
        assert not may("broker", "get", f"secrets/{name}", "agents")
    assert not may("broker", "list", "secrets")
    keys = policykey.namespace_of(SYSTEM)
    for part in ("broker", "collector"):  # who hands policy out cannot sign it
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            assert not may(part, verb, f"secrets/{policykey.SECRET}", keys)
    assert may("operator", "get", f"secrets/{policykey.SECRET}", keys)
    assert may("operator", "create", "secrets", keys)
    assert not may("operator", "get", "secrets/another", keys)
    assert may("collector", "create", "subjectaccessreviews.authorization.k8s.io")
    assert may("collector", "get", "configmaps/extension-apiserver-authentication", "kube-system")
    assert may("broker", "patch", "pods", "agents", "status")
    assert not may("operator", "patch", "pods", "agents", "status")
    for verb in ("list", "create", "delete"):
        assert may("broker", verb, "leases.coordination.k8s.io")
        assert not may("broker", verb, "leases.coordination.k8s.io", "agents")
    for account, namespace in (("chaperone-operator", SYSTEM), ("chaperone-broker", "agents"), ("default", "agents")):
        assert not may("broker", "create", f"serviceaccounts/{account}", namespace, "token")
    assert may("broker", "create", "serviceaccounts/chaperone-broker", SYSTEM, "token")
    for part in ("operator", "broker", "collector"):
        for verb in ("create", "update", "patch", "delete"):
            assert not may(part, verb, "pods")
            assert not may(part, verb, "accesspolicies.chaperone.dev", "agents")
    for verb in ("get", "list", "watch", "create", "delete"):
        assert may("broker", verb, "approvalrequests.chaperone.dev", "agents")
    assert may("broker", "patch", "approvalrequests.chaperone.dev", "agents", "status")
    for part in ("operator", "collector"):
        for verb in ("get", "create", "delete", "patch"):
            assert not may(part, verb, "approvalrequests.chaperone.dev", "agents")
            assert not may(part, verb, "approvalrequests.chaperone.dev", "agents", "status")
    assert not may("operator", "get", "mutatingwebhookconfigurations/another")
    for name, is_granted in ((TRUST, True), ("snapshot-agents", False)):  # a policy is the operator's to write
        assert all(may("broker", verb, f"configmaps/{name}") == is_granted for verb in ("create", "patch"))


def test_upgrade_keeps_the_ca_that_the_operator_wrote(installed: Installation) -> None:
    assert installed.ca_bundles() == {""}
    for remark in ("first", "second"):
        encoded = base64.b64encode(f"{installed.server.authority.pem}# {remark}\n".encode()).decode()
        for kind in REGISTRATIONS:
            found = installed.get(kind, WEBHOOKS)
            for webhook in found["webhooks"]:
                webhook["clientConfig"]["caBundle"] = encoded
            installed.kubectl("replace", "-f", "-", stdin=json.dumps(found))
        bundle = json.dumps({"spec": {"caBundle": encoded}})  # and nothing else: the API server writes the status
        installed.kubectl("patch", "apiservice", API_SERVICE, "--type=merge", "-p", bundle)
        for more in (("--set", "broker.replicas=3"), ()):
            installed.helm("upgrade", str(CHART), *more)
            assert installed.ca_bundles() == {encoded}


def test_operator_and_broker_run_with_the_rights_that_they_get(installed: Installation) -> None:
    accounts = {
        part: installed.server.kubeconfig_of(f"system:serviceaccount:{SYSTEM}:chaperone-{part}")
        for part in ("operator", "broker")
    }
    identity = {
        "apiVersion": "chaperone.dev/v1alpha1", "kind": "AgentIdentity",
        "metadata": {"name": "billing", "namespace": "kube-public"},
        "spec": {"selector": {"matchLabels": {"app": "billing"}}, "owner": {"name": "Billing on-call"}},
    }  # fmt: skip
    unfit = manifests.policy(
        [manifests.rule("read", "Allow", ["read"])], "billing", "kube-public", subjects=[{"identity": "billing"}],
        targets=[{"name": "none-such"}],
    )  # fmt: skip
    unfit["metadata"] = {"name": "billing", "namespace": "kube-public"}
    with without_webhooks(installed):  # nobody answers them before the operator runs
        installed.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([identity, unfit]))
    operator = Operator(installed.server, SYSTEM, installed.folder)
    try:
        replica = operator.start(f"--kubeconfig={accounts['operator']}")
        operator.eventually(lambda: operator.condition("agentidentity", "billing", "kube-public"), bool, WAIT_S)
        operator.eventually(lambda: operator.get("events.events.k8s.io", "-n", "kube-public")["items"], bool)
        operator.eventually(
            lambda: operator.condition("accesspolicy", "billing", "kube-public").get("status"),
            lambda one: one == "False",
        )
        trust = operator.get("configmap", TRUST, "-n", SYSTEM)["data"][TRUST_KEY]
        assert installed.ca_bundles() == {base64.b64encode(trust.encode()).decode()}
        with _broker(installed, accounts["broker"]) as log:
            operator.eventually(
                lambda: operator.get("configmap", TRUST, "-n", SYSTEM)["data"].get(ca.TRUST_KEY, log.read_text()),
                lambda told: told.startswith("-----BEGIN"), WAIT_S,
            )  # fmt: skip
            assert set(operator.get("configmap", TRUST, "-n", SYSTEM)["data"]) == {TRUST_KEY, ca.TRUST_KEY}
        assert replica.stop() == 0
        for told in (replica.log.read_text(), log.read_text()):
            assert "forbidden" not in told, told
    finally:
        operator.end()


def test_uninstalling_lets_pods_start_and_keeps_what_was_declared(installed: Installation) -> None:
    installed.helm("uninstall")
    try:
        eventually(lambda: installed.try_pod(pod(), "agents") == "", "the API server forgets webhooks")
        for kind, name in *((kind, WEBHOOKS) for kind in REGISTRATIONS), ("apiservice", API_SERVICE):
            assert "not found" in installed.kubectl("get", kind, name, is_checked=False)
        assert "chaperone.dev" in installed.kubectl("get", "customresourcedefinitions")
    finally:
        installed.helm("install", str(CHART))


@contextlib.contextmanager
def _broker(installed: Installation, kubeconfig: Path) -> Iterator[Path]:
    data = installed.get("secret", "chaperone-broker-tls", "-n", SYSTEM)["data"]
    for name in ("tls.crt", "tls.key"):
        (installed.folder / name).write_bytes(base64.b64decode(data[name]))
    port, metrics_port = free_ports(2)
    log = installed.folder / "broker.log"
    command = [
        sys.executable, "-m", "chaperone_operator.broker", f"--namespace={SYSTEM}", f"--kubeconfig={kubeconfig}",
        f"--port={port}", f"--metrics-port={metrics_port}", "--address=127.0.0.1",
        f"--tls-cert={installed.folder / 'tls.crt'}", f"--tls-key={installed.folder / 'tls.key'}",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
