"""The images: each carries what it runs and nothing an intruder would be glad of."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

import pytest

from chaperone_tools.cluster.provider import Provider
from chaperone_tools.images.build import build_all
from chaperone_tools.kubectl import Kubectl

pytestmark = pytest.mark.cluster

INSTALLERS = ["pip", "ensurepip", "setuptools", "uv"]
LOOK = """
import importlib.util, json, shutil, sys
wanted, programs = json.loads(sys.argv[1])
print(json.dumps([[name for name in wanted if importlib.util.find_spec(name)],
                  [name for name in programs if shutil.which(name)]]))
"""


@pytest.mark.parametrize(
    ("target", "modules", "programs", "never"),
    [
        (
            "gateway",
            ["chaperone_sidecar", "chaperone_evidence", "aiohttp"],
            ["chaperone-gateway", "nft"],
            ["kopf", "kubernetes", "chaperone_operator", "chaperone_collector", "chaperone_cli"],
        ),
        (
            "operator",
            ["chaperone_operator", "kopf", "chaperone_sidecar"],  # the reader of statements in policies' tests
            ["chaperone-broker"],
            ["chaperone_collector", "chaperone_cli"],
        ),
        (
            "collector",
            ["chaperone_collector", "chaperone_evidence"],
            ["chaperone-collector"],
            ["kopf", "kubernetes", "chaperone_operator", "chaperone_sidecar"],
        ),
    ],
)
def test_an_image_carries_its_part_and_neither_the_others_nor_an_installer_or_compiler(
    kubectl: Kubectl,
    cluster: Provider,
    namespace: str,
    target: str,
    modules: list[str],
    programs: list[str],
    never: list[str],
):
    tools = ["pip", "pip3", "gcc", "cc", "uv", "curl", "wget"]
    asked = json.dumps([modules + never + INSTALLERS, programs + tools])
    container = {
        "name": "look",
        "image": _loaded(cluster, target),
        "command": ["/opt/chaperone/bin/python3", "-I", "-c", LOOK, asked],
        "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }
    kubectl.apply(_pod(namespace, "look", {"restartPolicy": "Never", "containers": [container]}))
    phase = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "--namespace", namespace, phase, "pod/look", "--timeout=60s")
    found = json.loads(kubectl("logs", "--namespace", namespace, "look"))
    assert found == [modules, programs]


def test_the_test_database_takes_its_password_from_a_file_and_asks_for_it(
    kubectl: Kubectl, cluster: Provider, namespace: str, agent_image: str
):
    password = secrets.token_urlsafe(18)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "superuser", "namespace": namespace},
        "data": {"password": base64.b64encode(password.encode()).decode()},
    }
    ready = {"exec": {"command": ["pg_isready", "--host=127.0.0.1"]}, "periodSeconds": 1}
    database = {
        "name": "postgres",
        "image": _loaded(cluster, "postgres"),
        "env": [{"name": "POSTGRES_PASSWORD_FILE", "value": "/secret/password"}],
        "readinessProbe": ready,
        "volumeMounts": [{"name": "secret", "mountPath": "/secret"}],
    }
    volumes = [{"name": "secret", "secret": {"secretName": "superuser"}}]
    client = _pod(namespace, "client", {"containers": [{"name": "main", "image": agent_image}]})
    kubectl.apply(secret, _pod(namespace, "db", {"containers": [database], "volumes": volumes}), client)
    kubectl("wait", "--namespace", namespace, "--for=condition=Ready", "pod/db", "pod/client", "--timeout=90s")
    address = kubectl("get", "pod", "db", "--namespace", namespace, "--output=jsonpath={.status.podIP}")
    ask = """
import psycopg, sys
for password in (sys.stdin.readline().strip(), "wrong"):
    try:
        with psycopg.connect(host="%s", user="postgres", password=password) as connection:
            print(connection.execute("select 42").fetchone()[0])
    except psycopg.OperationalError as error:
        print("refused" if "password authentication failed" in str(error) else error)
"""
    said = kubectl(
        "exec", "--stdin", "--namespace", namespace, "client", "--", "python3", "-c", ask % address, stdin=password
    )
    assert said.split() == ["42", "refused"]


def _loaded(cluster: Provider, target: str) -> str:
    (image,) = build_all([target]).values()
    cluster.load_image(image.reference, image.archive)
    return image.reference


def _pod(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"terminationGracePeriodSeconds": 1} | spec,
    }
