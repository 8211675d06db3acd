"""Bodies in protobuf through the gateway: the real API server makes of them what it makes of them without one."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fix_kube import CANARY, NAME, Kube
from kube_protobuf import data, encoded, envelope
from recordings import every_byte

from chaperone_evidence import record
from chaperone_operator.kubeconfig import verifying
from chaperone_sidecar.protocols.kubernetes.protobuf import CONTENT_TYPE
from chaperone_tools.cache import binary

pytestmark = pytest.mark.timeout(300)
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "namespace", "generation")
CREATED = [
    ["configmap", "made", "--from-literal=a=b", "--from-literal=c="],
    ["deployment", "made", "--image=registry.k8s.io/pause:3.10", "--replicas=0", "--port=80"],
]
CONTAINER = {
    "name": "c", "image": "i", "args": ["a", ""], "env": [{"name": "E", "value": ""}, {"name": "N", "valueFrom": {
        "fieldRef": {"fieldPath": "metadata.name"}}}],
    "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "0.25"}},
    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 7},
    "readinessProbe": {"tcpSocket": {"port": 8080}}, "ports": [{"name": "http", "containerPort": 8080}],
    "securityContext": {"runAsNonRoot": True, "runAsUser": 0, "readOnlyRootFilesystem": False},
}  # fmt: skip
TEMPLATE = {
    "metadata": {"labels": {"app": "made"}, "annotations": {"a": "ü"}},
    "spec": {
        "containers": [CONTAINER], "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {
            "name": "app", "items": [{"key": "k", "path": "p", "mode": 256}], "optional": True}}],
        "tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}],
        "terminationGracePeriodSeconds": 0,
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["made"]}]}}],
        "automountServiceAccountToken": False,
    },
}  # fmt: skip
OBJECTS = [
    ("/apis/apps/v1", "deployments", {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "rich", "finalizers": ["a.example.com/b"]},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "made"}}, "template": TEMPLATE, "strategy": {
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}, "revisionHistoryLimit": 0}}),
    ("/api/v1", "configmaps", {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rich", "labels": {"a": ""}}, "immutable": False,
        "data": {"a": "", "b": "line\nline\t\u0001 ü"}, "binaryData": {"c": "AAEC/w==", "d": ""}}),
]  # fmt: skip


def post(kube: Kube, path: str, raw: bytes, *, past_gateway: bool = False) -> tuple[int, dict[str, Any]]:
    """Create an object in protobuf, through the gateway or past it with the same account."""
    if past_gateway:
        where = urlsplit(kube.server.url)
        made = kube.admin("create", "token", "agent", "--namespace=agents").stdout.strip()
        context: ssl.SSLContext = verifying(cadata=kube.server.authority.pem)
        connection = http.client.HTTPSConnection(str(where.hostname), where.port, timeout=20, context=context)
        token = f"Bearer {made}"
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", kube.gateway.port, timeout=20)
        plain = socket.create_connection(("127.0.0.1", kube.gateway.port), timeout=20)
        connection.sock = kube.context.wrap_socket(plain, server_hostname=NAME)
        token = "Bearer worth-nothing"
    headers = {
        "Content-Type": CONTENT_TYPE,
        "Accept": f"{CONTENT_TYPE};q=0.1, application/json",
        "Authorization": token,
    }
    connection.request("POST", path, raw, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def lasting(content: dict[str, Any]) -> dict[str, Any]:
    """An object without what differs each time."""
    metadata = {key: value for key, value in content["metadata"].items() if key not in VOLATILE}
    return content | {"metadata": metadata}


def stored(kube: Kube, resource: str, name: str, namespace: str) -> dict[str, Any]:
    """What the API server keeps."""
    shown = kube.admin("get", resource, name, f"--namespace={namespace}", "--output=json")
    assert shown.returncode == 0, shown.stderr
    return lasting(json.loads(shown.stdout))


def last_intent(kube: Kube) -> record.CommandIntent:
    """The last command's."""
    return [one for one in kube.gateway.records() if isinstance(one, record.CommandIntent)][-1]


@pytest.mark.parametrize("arguments", CREATED, ids=lambda one: one[0])
def test_kubectl_creates_the_same_object_as_past_the_gateway(kube: Kube, arguments: list[str]) -> None:
    made = kube.kubectl("create", *arguments)
    assert made.returncode == 0, made.stderr
    assert kube.admin("create", *arguments, "--namespace=other").returncode == 0
    resource, name = arguments[:2]
    assert stored(kube, resource, name, "agents") == stored(kube, resource, name, "other")
    for namespace in ("agents", "other"):
        kube.admin("delete", resource, name, f"--namespace={namespace}")


@pytest.mark.parametrize(("group", "resource", "content"), OBJECTS, ids=lambda one: one if isinstance(one, str) else "")
def test_the_api_server_makes_the_same_of_it(kube: Kube, group: str, resource: str, content: dict[str, Any]) -> None:
    raw = encoded(content)
    for namespace in ("agents", "other"):
        path = f"{group}/namespaces/{namespace}/{resource}"
        status, answer = post(kube, path, raw, past_gateway=namespace == "other")
        assert status == 201, answer
    name = content["metadata"]["name"]
    through, past = (stored(kube, resource, name, namespace) for namespace in ("agents", "other"))
    assert through == past
    assert through["metadata"]["name"] == name
    for namespace in ("agents", "other"):
        kube.admin("patch", resource, name, f"--namespace={namespace}", "--type=json",
                   '--patch=[{"op":"add","path":"/metadata/finalizers","value":[]}]')  # fmt: skip
        kube.admin("delete", resource, name, f"--namespace={namespace}")


def test_what_is_not_valid_is_told_in_the_same_words(kube: Kube) -> None:
    _, resource, content = OBJECTS[0]
    spec = content["spec"] | {"selector": {"matchLabels": {"app": "other"}}, "replicas": -1}  # type: ignore[index]
    raw = encoded(content | {"spec": spec})
    through = post(kube, f"/apis/apps/v1/namespaces/agents/{resource}", raw)
    past = post(kube, f"/apis/apps/v1/namespaces/other/{resource}", raw, past_gateway=True)
    assert through == past
    assert through[0] == 422


def test_policy_and_records_see_what_is_in_it(kube: Kube) -> None:
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}], "hostPID": True}}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hidden-in-protobuf"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pod},
    }  # fmt: skip
    status, answer = post(kube, "/apis/apps/v1/namespaces/agents/deployments", encoded(deployment))
    assert status == 403
    assert 'rule "never"' in answer["message"]
    intent = last_intent(kube)
    assert {(one.effect, one.object) for one in intent.accesses} == {
        (effect, "agents.apps.deployments.hidden-in-protobuf") for effect in ("create", "privilege")
    }
    assert b'"hostPID":true' in every_byte(kube.gateway.evidence)


def test_values_of_secrets_are_not_shown_or_recorded(kube: Kube) -> None:
    made = kube.kubectl("create", "secret", "generic", "typed", f"--from-literal=password={CANARY}-x", "--output=json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["data"] == {"password": "W21hc2tlZF0="}
    found = json.loads(kube.admin("get", "secret", "typed", "-n", "agents", "-o", "json").stdout)["data"]["password"]
    kept = every_byte(kube.gateway.evidence)
    assert found not in made.stdout
    assert found.encode() not in kept
    assert CANARY.encode() not in kept
    kube.admin("delete", "secret", "typed", "--namespace=agents")
    masked = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "m"}, "data": {"a": "W21hc2tlZF0="}}
    status, answer = post(kube, "/api/v1/namespaces/agents/secrets", encoded(masked))
    assert status == 403
    assert "mask of a Secret's value" in answer["message"]


def test_what_is_not_known_is_refused_and_recorded(kube: Kube) -> None:
    path = "/api/v1/namespaces/agents/secrets"
    metadata = data(1, data(1, b"s"))
    raw = envelope("v1", "Secret", metadata + data(4, data(1, b"k") + data(2, CANARY.encode())) + data(60, b"x"))
    status, answer = post(kube, path, raw)
    assert (status, answer["reason"]) == (415, "UnsupportedMediaType")
    assert "field 60 of core/v1.Secret is not known" in answer["message"]
    assert "set the content type application/json" in answer["message"]
    intent = last_intent(kube)
    assert (intent.decision, intent.rule, intent.kind) == ("Deny", "not-covered", "create")
    assert CANARY.encode() not in every_byte(kube.gateway.evidence)
    assert kube.admin("get", "secret", "s", "--namespace=agents").returncode == 1


def helm(kube: Kube, *arguments: str, driver: str) -> subprocess.CompletedProcess[str]:
    """Run helm as the agent."""
    environment = os.environ | {"HELM_DRIVER": driver, "HELM_CACHE_HOME": str(kube.folder / "helm")}
    program = [str(binary("helm")), f"--kubeconfig={kube.kubeconfig}", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_helm_works_with_releases_in_configmaps_and_is_told_so(kube: Kube, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 0.1.0\n")
    (tmp_path / "values.yaml").write_text("colour: red\n")
    (tmp_path / "templates" / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: tiny}\ndata: {colour: '{{ .Values.colour }}'}\n"
    )
    chart = str(tmp_path)
    for arguments in (["install", "tiny", chart], ["list"], ["upgrade", "tiny", chart], ["uninstall", "tiny"]):
        refused = helm(kube, *arguments, driver="secret")
        assert refused.returncode == 1
        assert "set HELM_DRIVER=configmap" in refused.stderr
    assert kube.admin("get", "configmap", "tiny", "-n", "agents").returncode == 1
    installed = helm(kube, "install", "tiny", chart, driver="configmap")
    assert installed.returncode == 0, installed.stderr
    assert "tiny" in helm(kube, "list", driver="configmap").stdout
    upgraded = helm(kube, "upgrade", "tiny", chart, "--set=colour=blue", driver="configmap")
    assert upgraded.returncode == 0, upgraded.stderr
    shown = json.loads(kube.admin("get", "configmap", "tiny", "-n", "agents", "-o", "json").stdout)
    assert shown["data"] == {"colour": "blue"}
    gone = helm(kube, "uninstall", "tiny", driver="configmap")
    assert gone.returncode == 0, gone.stderr
    assert kube.admin("get", "configmap", "tiny", "-n", "agents").returncode == 1
