"""The test cluster itself: what the other cluster tests stand on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chaperone_tools.errors import ToolsError
from chaperone_tools.kubectl import Kubectl

pytestmark = pytest.mark.cluster

PORT = 7777
SERVER = f"socat TCP6-LISTEN:{PORT},fork,reuseaddr,ipv6only=0 SYSTEM:'echo hello'"
ASK = """
import json, socket, time
answers, end = {{}}, time.monotonic() + 60

def connected(address):
    # A pod is ready a moment before the node sends its Service's connections there.
    while True:
        try:
            return socket.create_connection(address, timeout=10)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)

for family in (socket.AF_INET, socket.AF_INET6):
    (*_, address), *_ = socket.getaddrinfo("{name}", {port}, family, socket.SOCK_STREAM)
    with connected(address[:2]) as connection:
        answers[address[0]] = connection.recv(16).decode().strip()
print(json.dumps(answers))
"""


@pytest.fixture
def served(kubectl: Kubectl, namespace: str, agent_image: str) -> str:
    """A namespace with a pod whose native sidecar serves a dual-stack Service `echo`, and a pod `client`."""
    security = {"allowPrivilegeEscalation": False}
    common: dict[str, Any] = {"image": agent_image, "imagePullPolicy": "IfNotPresent", "securityContext": security}
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    sidecar = common | {
        "name": "sidecar",
        "restartPolicy": "Always",
        "command": ["tini", "--", "sh", "-c", SERVER],
        "startupProbe": probe,
    }
    main = common | {"name": "main"}
    pods = [
        _pod(namespace, "server", {"initContainers": [sidecar], "containers": [main]}),
        _pod(namespace, "client", {"containers": [main]}),
    ]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "echo", "namespace": namespace},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": "server"},
            "ports": [{"port": PORT}],
        },
    }
    kubectl.apply(service, *pods)
    kubectl("wait", "--namespace", namespace, "--for=condition=Ready", "pod/server", "pod/client", "--timeout=90s")
    return namespace


def test_a_service_is_found_by_name_and_answers_on_both_families_from_a_native_sidecar(kubectl: Kubectl, served: str):
    answers = json.loads(kubectl.python(served, "client", ASK.format(name=f"echo.{served}.svc", port=PORT)))
    addresses = kubectl("get", "service", "echo", "--namespace", served, "--output=jsonpath={.spec.clusterIPs[*]}")
    assert set(answers) == set(addresses.split())
    assert set(answers.values()) == {"hello"}


def test_exec_gives_back_output_and_exit_status(kubectl: Kubectl, served: str):
    assert kubectl("exec", "--namespace", served, "client", "--", "echo", "here").strip() == "here"
    with pytest.raises(ToolsError, match="exit code 7"):
        kubectl("exec", "--namespace", served, "client", "--", "sh", "-c", "exit 7")


def test_a_pod_reaches_the_api_server_with_its_own_token(kubectl: Kubectl, served: str):
    ask = (
        "import ssl, urllib.request as u; d = '/var/run/secrets/kubernetes.io/serviceaccount/'; "
        "r = u.Request('https://kubernetes.default.svc/version', "
        "headers={'Authorization': 'Bearer ' + open(d + 'token').read()}); "
        "print(u.urlopen(r, context=ssl.create_default_context(cafile=d + 'ca.crt'), timeout=10).status)"
    )
    assert kubectl.python(served, "client", ask).strip() == "200"


def test_a_claim_is_bound_and_its_files_outlive_the_pod(kubectl: Kubectl, served: str, agent_image: str):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": served},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    container = {
        "name": "main",
        "image": agent_image,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    writer = _pod(served, "writer", {"containers": [container], "volumes": volumes})
    for program in ("open('/data/kept', 'w').write('yes')", "print(open('/data/kept').read())"):
        kubectl.apply(claim, writer)
        kubectl("wait", "--namespace", served, "--for=condition=Ready", "pod/writer", "--timeout=60s")
        said = kubectl.python(served, "writer", program)
        kubectl("delete", "pod", "writer", "--namespace", served, "--now", "--wait")
    assert said.strip() == "yes"


def _pod(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"terminationGracePeriodSeconds": 1} | spec,
    }
