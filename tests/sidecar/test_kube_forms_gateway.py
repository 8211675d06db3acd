"""Bodies in CBOR and YAML through the gateway: decided on, recorded and sent as the JSON that stands for them."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest
import yaml
from fix_kube import CANARY, NAME, Kube
from kube_cbor import encoded
from recordings import every_byte

from chaperone_evidence import record
from chaperone_sidecar.protocols.kubernetes.cbor import SELF_DESCRIBED

pytestmark = pytest.mark.timeout(300)
PATH = "/api/v1/namespaces/agents/configmaps"
FORMS = ["cbor", "yaml"]


def written(form: str, content: Any) -> bytes:
    """An object in a form."""
    return SELF_DESCRIBED + encoded(content) if form == "cbor" else yaml.safe_dump(content).encode()


def ask(kube: Kube, method: str, path: str, kind: str, raw: bytes) -> tuple[int, Any]:
    """One request's answer."""
    connection = http.client.HTTPSConnection("127.0.0.1", kube.gateway.port, timeout=20)
    plain = socket.create_connection(("127.0.0.1", kube.gateway.port), timeout=20)
    connection.sock = kube.context.wrap_socket(plain, server_hostname=NAME)
    connection.request(method, path, raw, {"Content-Type": kind})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def last_intent(kube: Kube) -> record.CommandIntent:
    """The last command's."""
    return [one for one in kube.gateway.records() if isinstance(one, record.CommandIntent)][-1]


@pytest.mark.parametrize("form", FORMS)
def test_objects_are_created_applied_and_deleted(kube: Kube, form: str) -> None:
    name = f"in-{form}"
    data = {"a": "", "multi": "line\n\tline\x01 ü\u2028 \U0001f600", "number": "010", "truth": "no"}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    status, answer = ask(kube, "POST", PATH, f"application/{form}", written(form, made))
    assert (status, answer["data"]) == (201, data), answer
    made["data"] = data | {"b": "applied", "multi": "other\x7f\u2029\ufffe"}
    query = "?fieldManager=tests&force=true"
    status, answer = ask(kube, "PATCH", f"{PATH}/{name}{query}", f"application/apply-patch+{form}", written(form, made))
    assert (status, answer["data"]) == (200, made["data"]), answer
    intent = last_intent(kube)
    assert {(one.effect, one.object) for one in intent.accesses} == {
        (effect, f"agents.core.configmaps.{name}") for effect in ("create", "modify")
    }
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    status, answer = ask(kube, "DELETE", f"{PATH}/{name}", f"application/{form}", written(form, options))
    assert (status, answer["status"]) == (200, "Success")


@pytest.mark.parametrize("form", FORMS)
def test_policy_and_records_see_what_is_in_it(kube: Kube, form: str) -> None:
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}], "hostPID": True}}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": f"hidden-in-{form}"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pod},
    }  # fmt: skip
    path = "/apis/apps/v1/namespaces/agents/deployments"
    for method, place, kind in (
        ("POST", path, f"application/{form}"),
        ("PATCH", f"{path}/hidden-in-{form}?fieldManager=tests", f"application/apply-patch+{form}"),
    ):
        status, answer = ask(kube, method, place, kind, written(form, deployment))
        assert status == 403
        assert 'rule "never"' in answer["message"]
        accesses = {(one.effect, one.object) for one in last_intent(kube).accesses}
        assert ("privilege", f"agents.apps.deployments.hidden-in-{form}") in accesses
    assert b'"hostPID":true' in every_byte(kube.gateway.evidence)


@pytest.mark.parametrize("form", FORMS)
def test_values_of_secrets_are_not_shown_or_recorded(kube: Kube, form: str) -> None:
    content = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": f"{CANARY}-{form}"}}
    path = "/api/v1/namespaces/agents/secrets"
    status, answer = ask(kube, "POST", path, f"application/{form}", written(form, content))
    assert (status, answer["data"]) == (201, {"a": "W21hc2tlZF0="}), answer
    broken = written(form, content) + (b"\0" if form == "cbor" else b"\nstringData: {}")
    status, answer = ask(kube, "POST", path, f"application/{form}", broken)
    assert (status, answer["reason"]) == (400, "BadRequest")
    assert (last_intent(kube).rule, last_intent(kube).decision) == ("malformed", "Deny")
    assert CANARY.encode() not in every_byte(kube.gateway.evidence)
    kube.admin("delete", "secret", "s", "--namespace=agents")
