"""kubectl's work, straight to an API server and through the gateway: the same is printed, the same is there after."""

from __future__ import annotations

import re
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Final

import pytest
from fix_kube import Kube
from manifests import rule

pytestmark = pytest.mark.peer

EFFECTS: Final = [
    "read", "read_sensitive", "bulk_read", "create", "modify", "delete", "destroy", "privilege", "execute_code",
    "schema", "external_io", "maintain", "tunnel",
]  # fmt: skip
# What differs each time. A name of a namespace is longer on one side, which shifts columns.
VARYING: Final = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UID"),
    (re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\w{3}, \d\d \w{3} 20\d\d [\d:]{8} \+0000"), "TIME"),
    (re.compile(r'(resourceVersion\\?"?: \\?"?)\d+'), r"\1VERSION"),
    (re.compile(r"\b(\d+[smh])+\b"), "AGE"),
    (re.compile(r"\bagents-(there|here)\b"), "NAMESPACE"),
    (re.compile(r" {2,}"), "  "),
    (re.compile(r"\b10\.\d+\.\d+\.\d+\b"), "ADDRESS"),
    (re.compile(r"https://127\.0\.0\.1:\d+"), "SERVER"),
)
MAP: Final = """
apiVersion: v1
kind: ConfigMap
metadata: {name: app, labels: {app: web}, annotations: {note: "ü: {}"}}
data: {a: "1", "b.yaml": "x: [1, 2]\\n", empty: ""}
binaryData: {raw: AP8Q}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{containerPort: 80}], resources: {requests: {cpu: 100m, memory: 1Gi}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""
BROKEN: Final = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: none}\nspec: {replicas: many}\n"
WORK: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (MAP, ("apply", "-f", "-")),
    ("", ("get", "configmap,deployment,service")),
    ("", ("get", "all", "-o", "wide")),
    ("", ("get", "configmap", "app", "-o", "json", "--show-managed-fields")),
    ("", ("get", "deployment", "web", "-o", "yaml")),
    ("", ("get", "configmap", "-l", "app=web", "-o", "jsonpath={.items[*].data.a}")),
    ("", ("get", "configmap", "--field-selector", "metadata.name=app", "-o", "name")),
    ("", ("describe", "configmap", "app")),
    ("", ("describe", "deployment", "web")),
    (MAP, ("diff", "-f", "-")),
    (MAP.replace('a: "1"', 'a: "2"'), ("apply", "-f", "-")),
    (MAP.replace('a: "1"', 'a: "3"'), ("apply", "--server-side", "--force-conflicts", "-f", "-")),
    (MAP.replace('a: "1"', 'a: "4"'), ("apply", "--server-side", "--field-manager=other", "-f", "-")),
    (MAP, ("apply", "--dry-run=server", "-o", "yaml", "-f", "-")),
    (MAP, ("create", "-f", "-")),
    (MAP, ("replace", "-f", "-")),
    ("", ("patch", "configmap", "app", "--type=merge", "-p", '{"data": {"c": "5", "empty": null}}')),
    ("", ("patch", "configmap", "app", "--type=json", "-p", '[{"op": "add", "path": "/data/d", "value": "6"}]')),
    ("", ("patch", "configmap", "app", "--type=json", "-p", '[{"op": "test", "path": "/data/d", "value": "7"}]')),
    ("", ("patch", "deployment", "web", "-p", '{"spec": {"template": {"spec": {"hostname": "h"}}}}')),
    ("", ("label", "configmap", "app", "tier=front", "app-")),
    ("", ("annotate", "--overwrite", "configmap", "app", "note=new")),
    ("", ("scale", "deployment", "web", "--replicas=3")),
    ("", ("get", "deployment", "web", "--subresource=scale", "-o", "yaml")),
    ("", ("set", "image", "deployment/web", "web=web:2")),
    ("", ("rollout", "history", "deployment/web")),
    ("", ("create", "configmap", "made", "--from-literal=x=y")),
    ("", ("create", "configmap", "Not_A_Name", "--from-literal=x=y")),
    ("", ("create", "deployment", "other", "--image=other:1")),
    ("", ("expose", "deployment", "other", "--port=9")),
    ("", ("run", "single", "--image=single:1", "--restart=Never")),
    (BROKEN, ("apply", "-f", "-")),
    (BROKEN, ("create", "--validate=false", "-f", "-")),
    ("", ("get", "configmap", "absent")),
    ("", ("get", "nothings")),
    ("", ("get", "--raw", "/api/v1/namespaces/{namespace}/configmaps/absent")),
    ("", ("get", "--raw", "/api/v1")),
    ("", ("get", "--raw", "/apis/apps/v1?timeout=9s")),
    ("", ("get", "--raw", "/version")),
    ("", ("api-resources", "--api-group=apps", "-o", "wide")),
    ("", ("api-versions",)),
    ("", ("explain", "deployment.spec.strategy", "--recursive")),
    ("", ("auth", "can-i", "get", "pods")),
    ("", ("get", "configmap", "--chunk-size=1", "-o", "name")),
    ("", ("get", "events", "--field-selector=involvedObject.kind=Pod")),  # there are others when the API server likes
    ("", ("wait", "--for=delete", "configmap/absent", "--timeout=60s")),
    ("", ("wait", "--for=jsonpath={.data.x}=y", "configmap/made", "--timeout=60s")),
    ("", ("delete", "deployment", "other", "--wait=false")),
    ("", ("delete", "configmap", "--all")),
    ("", ("delete", "-l", "app=web", "service,deployment", "--ignore-not-found")),
    ("", ("get", "configmap,deployment,service,pod", "-o", "name")),
)  # fmt: skip


def plain(text: str) -> str:
    """Without what differs each time."""
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return text


def test_kubectl_prints_what_it_prints_without_the_gateway(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with(rules=[rule("all", "Allow", EFFECTS)])
    sides: dict[str, Callable[..., CompletedProcess[str]]] = {"agents-here": kube.kubectl, "agents-there": kube.admin}
    for namespace in sides:
        assert kube.admin("create", "namespace", namespace).returncode == 0
    for stdin, words in WORK:
        told = []
        for namespace, kubectl in sides.items():
            done = kubectl(
                *(word.replace("{namespace}", namespace) for word in words), f"--namespace={namespace}", stdin=stdin
            )
            told.append((done.returncode, plain(done.stdout), plain(done.stderr)))
        assert told[0] == told[1], words
