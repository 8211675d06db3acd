"""What requests to the Kubernetes API would do, and which are not in normal form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.command import Effect
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import body, request
from chaperone_sidecar.protocols.kubernetes.classify import JSON, JSON_PATCH, PLACEHOLDER, classify, hidden, unread
from chaperone_sidecar.protocols.kubernetes.negotiation import NotTaken, accepted
from chaperone_sidecar.protocols.kubernetes.negotiation import content as content_of
from chaperone_sidecar.protocols.kubernetes.protobuf import CONTENT_TYPE as PROTOBUF

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "kubernetes_requests.jsonl").read_text().splitlines()
]
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}


def read(line: str) -> request.Request:
    """Of method and target."""
    return request.read(*line.split(" ", 1))


def effects(line: str, content: Any, kind: str = JSON) -> set[Effect]:
    """Of a request with a body."""
    return {one.effect for one in classify(read(line), kind, json.dumps(content).encode()).facts.accesses}


@pytest.mark.parametrize("case", [one for one in CORPUS if not one.get("refused")], ids=lambda one: one["request"])
def test_request_has_these_facts(case: dict[str, Any]) -> None:
    found = read(case["request"])
    raw = json.dumps(case["body"]).encode() if "body" in case else b""
    command = classify(found, case.get("type", JSON), raw)
    assert found.verb == case["verb"]
    assert [f"{one.effect} {one.object}" for one in command.facts.accesses] == case["accesses"]


@pytest.mark.parametrize("case", [one for one in CORPUS if one.get("refused")], ids=lambda one: one["request"])
def test_request_that_can_be_read_in_two_ways_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read(case["request"])


@settings(deadline=None)
@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "DELETE"]))
def test_any_target_is_a_request_or_a_protocol_error(target: str, method: str) -> None:
    try:
        found = request.read(method, "/" + target)
    except ProtocolError:
        return
    again = request.read(method, found.target)
    assert again == found  # what is forwarded is read as what was decided on
    classify(found)


@settings(deadline=None)
@given(
    st.binary(max_size=80),
    st.sampled_from(["/api/v1/namespaces/a/secrets/x", "/apis/apps/v1/namespaces/a/deployments/x"]),
)
def test_any_body_is_a_command(raw: bytes, path: str) -> None:
    for kind in (JSON, JSON_PATCH):
        assert classify(request.read("PATCH", path), kind, raw).facts.accesses


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_json_patch_is_a_command(content: Any) -> None:
    for path in ("/api/v1/namespaces/a/secrets/x", "/api/v1/namespaces/a/pods/x"):
        assert classify(request.read("PATCH", path), JSON_PATCH, json.dumps(content).encode()).facts.accesses


@pytest.mark.parametrize(
    "spec",
    [
        {"hostPID": True}, {"hostNetwork": True}, {"hostIPC": True}, {"serviceAccountName": "admin"},
        {"serviceAccount": "admin"}, {"volumes": [{"hostPath": {"path": "/"}}]}, {"nodeName": "n"},
        {"containers": [{"securityContext": {"privileged": True}}]}, {"runtimeClassName": "x"},
        {"containers": [{"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]},
        {"initContainers": [{"securityContext": {"procMount": "Unmasked"}}]},
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        {"securityContext": {"windowsOptions": {"hostProcess": True}}},
        {"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
        {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, {"seLinuxOptions": {"user": "system_u"}},
        {"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]},
        {"containers": [{"livenessProbe": {"httpGet": {"path": "/latest", "port": 80, "host": "169.254.169.254"}}}]},
        {"containers": [{"lifecycle": {"postStart": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}}]},
        {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_pod_that_gets_more_than_a_plain_one_is_privilege(spec: dict[str, Any]) -> None:
    for path, content in (
        ("/api/v1/namespaces/a/pods", {**POD, "spec": spec}),
        ("/apis/apps/v1/namespaces/a/deployments", {"spec": {"template": {"spec": spec}}}),
        ("/apis/batch/v1/namespaces/a/cronjobs", {"spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}}),
        ("/apis/example.com/v1/namespaces/a/rollouts", {"spec": {"template": {"spec": spec}}}),
    ):
        assert effects(f"POST {path}", content) == {Effect.CREATE, Effect.PRIVILEGE}


def test_plain_pod_is_only_created() -> None:
    spec = {
        "serviceAccountName": "default", "hostNetwork": False, "volumes": [{"emptyDir": {}}],
        "containers": [{
            "name": "c", "securityContext": {"capabilities": {"drop": ["ALL"]}, "privileged": False},
            "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
        }],
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "seLinuxOptions": {"level": "s0:c1,c2"}},
        "annotations": {"container.apparmor.security.beta.kubernetes.io/c": "runtime/default"},
    }  # fmt: skip
    assert effects("POST /api/v1/namespaces/a/pods", {**POD, "spec": spec}) == {Effect.CREATE}


@pytest.mark.parametrize(
    ("path", "is_risky"),
    [
        ("/spec/template/spec/securityContext/seLinuxOptions/type", True),
        ("/metadata/annotations/container.apparmor.security.beta.kubernetes.io~1c", True),
        ("/spec/template/spec/containers/0/livenessProbe/httpGet", True),
        ("/spec/template/spec/containers/0/livenessProbe/httpGet/host", True),
        ("/spec/template/spec/containers/0/livenessProbe/httpGet/port", False),
        ("/spec/template/spec/containers/0/ports/0/hostPort", True), ("/spec/externalIPs/-", True),
        ("/spec/rules/0/host", False), ("/spec/template/spec/containers/0/image", False),
    ],
)  # fmt: skip
def test_json_patch_of_what_gives_rights_is_privilege(path: str, is_risky: bool) -> None:
    found = effects("PATCH /apis/apps/v1/namespaces/a/deployments/d", [{"op": "add", "path": path}], JSON_PATCH)
    assert found == {Effect.MODIFY} | ({Effect.PRIVILEGE} if is_risky else set())


def test_what_leads_traffic_or_volumes_elsewhere_is_privilege() -> None:
    for line in (
        "PUT /api/v1/namespaces/a/endpoints/e", "PATCH /apis/discovery.k8s.io/v1/namespaces/a/endpointslices/e",
        "POST /api/v1/persistentvolumes", "PATCH /api/v1/namespaces/a/services/s/status",
    ):  # fmt: skip
        assert Effect.PRIVILEGE in effects(line, {"metadata": {"resourceVersion": "1"}})
    service = {"metadata": {"name": "s"}, "spec": {"externalIPs": ["192.0.2.1"]}}
    assert Effect.PRIVILEGE in effects("POST /api/v1/namespaces/a/services", service)
    assert effects("POST /api/v1/namespaces/a/services", {"spec": {"externalIPs": []}}) == {Effect.CREATE}


def test_whoever_gives_an_object_an_owner_may_have_it_deleted() -> None:
    path = "/api/v1/namespaces/a/configmaps"
    owned = {"metadata": {"resourceVersion": "1", "ownerReferences": [{"kind": "Pod", "name": "gone", "uid": "u"}]}}
    assert effects(f"PUT {path}/c", owned) == {Effect.MODIFY, Effect.DELETE}
    assert effects(f"PATCH {path}/c", owned, "application/merge-patch+json") == {Effect.MODIFY, Effect.DELETE}
    assert effects(f"POST {path}", owned) == {Effect.CREATE}
    for operation in (
        {"op": "add", "path": "/metadata/ownerReferences", "value": []},
        {"op": "add", "path": "/metadata", "value": owned["metadata"]},
    ):
        assert effects(f"PATCH {path}/c", [operation], JSON_PATCH) == {Effect.MODIFY, Effect.DELETE}
    free = {"metadata": {"resourceVersion": "1", "ownerReferences": []}}
    assert effects(f"PUT {path}/c", free) == {Effect.MODIFY}


def test_claims_of_volumes_are_destroyed() -> None:
    accesses = classify(read("DELETE /api/v1/namespaces/a/persistentvolumeclaims/data")).facts.accesses
    assert {one.effect for one in accesses} == {Effect.DELETE, Effect.DESTROY}


@pytest.mark.parametrize(
    "raw", [b'{"a":1,"a":2}', b"{", b"a: b", b"\xff", b'{"a":NaN}', b"[" * 500 + b"]" * 500, b"[" * 5000]
)
def test_body_that_servers_may_read_otherwise_is_unknown(raw: bytes) -> None:
    facts = classify(read("POST /api/v1/namespaces/a/pods"), JSON, raw).facts
    assert [one.effect for one in facts.accesses] == [Effect.UNKNOWN]
    assert facts.why_unknown


def test_body_over_the_cap_is_unknown() -> None:
    raw = b'"' + b"a" * body.MAX_BODY_BYTES + b'"'
    assert classify(read("POST /api/v1/namespaces/a/pods"), JSON, raw).facts.why_unknown


def test_secret_that_is_written_is_not_shown() -> None:
    content = {
        "metadata": {"name": "db", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "canary-1"}},
        "data": {"password": "canary-2"}, "stringData": {"user": "canary-3"},
    }  # fmt: skip
    for line, kind, written in (
        ("POST /api/v1/namespaces/a/secrets", JSON, content),
        ("PATCH /api/v1/namespaces/a/secrets/db", "application/merge-patch+json", content),
        ("PATCH /api/v1/namespaces/a/secrets/db", JSON_PATCH, [{"op": "add", "path": "/data/x", "value": "canary-4"}]),
    ):
        command = classify(read(line), kind, json.dumps(written).encode())
        assert command.shown_text is not None
        assert b"canary" in command.text
        assert b"canary" not in command.shown_text


def test_values_of_secrets_are_hidden_wherever_they_stand() -> None:
    secret = {
        "kind": "Secret",
        "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "c"}},
        "data": {"a": "c"},
        "stringData": {"a": "c"},
    }
    for form in (
        {"items": [secret]},
        {"type": "ADDED", "object": secret},
        {"kind": "Table", "rows": [{"cells": ["db"], "object": secret}]},
        secret,
    ):
        assert '"c"' not in json.dumps(hidden(json.loads(json.dumps(form))))
    assert hidden({"data": None, "stringData": "x"}) == {"data": None, "stringData": PLACEHOLDER}


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Impersonate-User", b"admin")], [(b"impersonate-extra-x", b"1")], [(b"X-Remote-User", b"admin")],
        [(b"X-Remote-Group", b"system:masters")], [(b"X-HTTP-Method-Override", b"DELETE")], [(b"Host", b"b")],
        [(b"Content-Length", b"1"), (b"content-length", b"1")], [(b"Transfer-Encoding", b"chunked, gzip")],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")], [(b"X-Original-URL", b"/x")],
        [(b"Content-Encoding", b"gzip")], [(b"X-Forwarded-For", b"1.2.3.4")], [(b"Upgrade", b"a"), (b"Upgrade", b"b")],
    ],
    ids=str,
)  # fmt: skip
def test_headers_that_speak_of_another_request_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ProtocolError):
        request.check_headers([(b"Host", b"kubernetes.default.svc"), *headers])


def test_usual_headers_pass_and_host_is_needed() -> None:
    request.check_headers([(b"Host", b"a"), (b"Authorization", b"Bearer x"), (b"Accept", b"a"), (b"Accept", b"b")])
    with pytest.raises(ProtocolError):
        request.check_headers([(b"Accept", b"a")])


TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.mark.parametrize(
    ("accept", "sent"),
    [
        ("application/vnd.kubernetes.protobuf,application/json", "application/json"),
        (f"{TABLE},application/json", f"{TABLE}, application/json"),
        ("application/cbor", ""),
        ("application/vnd.kubernetes.protobuf", ""),
        ("*/*", "application/json"),
        ("", "application/json"),
        ("application/yaml", ""),
        ("application/json;profile=nolist", "application/json;profile=nolist"),
    ],
)
def test_clients_that_take_json_get_json(accept: str, sent: str) -> None:
    assert taken(lambda: accepted(accept, read("GET /api/v1/pods"))) == (sent or 406)


def taken[T](way: Callable[[], T]) -> T | int:
    """What a way gives, or the status with which it is refused."""
    try:
        return way()
    except NotTaken as error:
        return error.status


def test_bodies_in_other_forms_do_not_pass() -> None:
    post, patch = read("POST /api/v1/namespaces/a/pods"), read("PATCH /api/v1/namespaces/a/pods/p")
    assert content_of("application/json; charset=utf-8", post, b"{}") == (JSON, b"{}")
    assert content_of("application/json-patch+json", patch, b"[]") == (JSON_PATCH, b"[]")
    for kind in (PROTOBUF, f"{PROTOBUF};x=y", "application/cbor; x=y", "text/plain", "application/json; x=y"):
        assert taken(lambda kind=kind: content_of(kind, post, b"{}")) == 415
    for kind in ("application/cbor", "application/yaml", "application/json", PROTOBUF):
        assert taken(lambda kind=kind: content_of(kind, patch, b"{}")) == 415


def test_what_is_not_read_is_a_command_of_which_people_see_the_size() -> None:
    command = unread(read("POST /api/v1/namespaces/a/secrets"), "text/plain\udc80", b"secret", "it is text.")
    assert [(one.effect, one.object) for one in command.facts.accesses] == [(Effect.UNKNOWN, "")]
    assert (command.kind, command.facts.why_unknown) == ("create", "it is text.")
    assert command.shown_text is not None
    assert b"secret\n" not in command.shown_text
    assert command.shown_text.endswith(b"(6 bytes)")
    assert command.text.endswith(b"secret")


def test_the_token_of_a_review_is_not_shown() -> None:
    raw = json.dumps({"spec": {"token": "canary"}}).encode()
    command = classify(read("POST /apis/authentication.k8s.io/v1/tokenreviews"), JSON, raw)
    assert [one.effect for one in command.facts.accesses] == [Effect.READ_SENSITIVE]
    assert b"canary" not in (command.shown_text or b"canary")


def test_a_pod_that_gets_a_secret_reads_it() -> None:
    environment = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "db.main", "key": "password"}}}]
    for spec in (
        {"containers": [{"env": environment}]},
        {"containers": [{"envFrom": [{"secretRef": {"name": "db.main"}}]}]},
        {"volumes": [{"name": "v", "secret": {"secretName": "db.main"}}]},
        {"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "db.main"}}]}}]},
    ):
        raw = json.dumps({"spec": {"template": {"spec": spec}}}).encode()
        facts = classify(read("POST /apis/apps/v1/namespaces/a/deployments"), JSON, raw).facts
        assert ("read_sensitive", "a.core.secrets.db_main") in [(one.effect, one.object) for one in facts.accesses]
    raw = json.dumps([{"op": "add", "path": "/spec/containers/0/env/0/valueFrom/secretKeyRef/name", "value": "db"}])
    facts = classify(read("PATCH /api/v1/namespaces/a/pods/p"), JSON_PATCH, raw.encode()).facts
    assert ("read_sensitive", "a.core.secrets.*") in [(one.effect, one.object) for one in facts.accesses]
