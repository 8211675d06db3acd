"""The Kubernetes API through the gateway: real kubectl and Python client, real kube-apiserver, real policy engine."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_apiserver import ApiServer
from fix_kube import CANARY, NAME, OLD_KUBECTL, READS, Kube, opened
from kubernetes import client as official
from kubernetes import config as official_config
from kubernetes import watch as official_watch
from kubernetes.client.exceptions import ApiException
from manifests import identity, rule
from pki import Authority
from ports import free_port
from recordings import every_byte
from waiting import Person

from chaperone_evidence import record
from chaperone_evidence.errors import Malformed
from chaperone_operator.compile import compile_namespace

pytestmark = pytest.mark.timeout(300)
WAIT_S = 20.0
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: '{value}'}}\n"
MASKS = [{"detectors": ["Email"], "method": "Redact"}]


def seen(kube: Kube, intent: record.CommandIntent) -> bool:
    """Whether its outcome is there."""
    known = kube.gateway.records()
    return any(isinstance(one, record.CommandOutcome) and one.command == intent.command for one in known)


def intents(kube: Kube) -> list[record.CommandIntent]:
    """All commands so far."""
    return [one for one in kube.gateway.records() if isinstance(one, record.CommandIntent)]


def outcome(kube: Kube, intent: record.CommandIntent) -> record.CommandOutcome:
    """How a command ended."""
    return next(
        one
        for one in kube.gateway.records()
        if isinstance(one, record.CommandOutcome) and one.command == intent.command
    )


def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for it; a record that is being written is not there yet."""
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        with contextlib.suppress(Malformed):
            if is_so():
                return
        time.sleep(0.05)
    raise AssertionError(what)


@contextlib.contextmanager
def connected(kube: Kube) -> Iterator[http.client.HTTPSConnection]:
    """One connection for several requests."""
    connection = http.client.HTTPSConnection("127.0.0.1", kube.gateway.port, timeout=20)
    raw = socket.create_connection(("127.0.0.1", kube.gateway.port), timeout=20)
    connection.sock = kube.context.wrap_socket(raw, server_hostname=NAME)
    try:
        yield connection
    finally:
        connection.close()


def asked(
    connection: http.client.HTTPSConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """One request's answer."""
    text = None if body is None else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, text, ({"Content-Type": "application/json"} if text else {}) | named)
    answer = connection.getresponse()
    raw = answer.read()
    return answer.status, json.loads(raw) if raw else None


@pytest.mark.parametrize("program", ["kubectl", OLD_KUBECTL])
def test_kubectl_reads_and_writes_what_policy_allows(kube: Kube, program: str) -> None:
    kubectl = partial(kube.kubectl, program=program)
    assert "Server Version" in kubectl("version").stdout
    assert kubectl("api-resources").returncode == 0
    for verb in (
        ["create", "-f", "-"],
        ["apply", "-f", "-"],
        ["apply", "--server-side", "--force-conflicts", "-f", "-"],
        ["replace", "-f", "-"],
    ):
        done = kubectl(*verb, stdin=MAP.format(name="made", value=verb[0]))
        assert done.returncode == 0, done.stderr
    assert kubectl("label", "configmap", "made", "x=y").returncode == 0
    assert kubectl("annotate", "configmap", "made", "p=q").returncode == 0
    assert (
        kubectl(
            "patch", "configmap", "made", "--type=json", '-p=[{"op":"add","path":"/data/b","value":"c"}]'
        ).returncode
        == 0
    )
    found = json.loads(kubectl("get", "configmap", "made", "-o", "json").stdout)
    assert found["data"] == {"a": "replace", "b": "c"}
    assert "made" in kubectl("describe", "configmap", "made").stdout
    assert kubectl("delete", "configmap", "made").returncode == 0
    assert kube.admin("get", "configmap", "made", "-n", "agents").returncode == 1
    allowed = kubectl("auth", "can-i", "get", "pods")
    assert allowed.stdout.strip() == "yes", allowed.stderr
    assert kubectl("explain", "deployment.spec").returncode == 0


def test_refusal_is_a_status_that_names_the_rule(kube: Kube) -> None:
    refused = kube.kubectl("get", "configmaps", "-n", "other")
    assert refused.returncode == 1
    assert "Error from server (Forbidden)" in refused.stderr
    assert 'rule "uncovered"' in refused.stderr
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "x"},
        "roleRef": reference,
    }
    denied = kube.kubectl("create", "-f", "-", stdin=json.dumps(binding))
    assert 'rule "never" of policy "agents/billing": Ask the platform team.' in denied.stderr
    status, answer = kube.get("/api/v1/namespaces/other/configmaps/hidden")
    assert (status, answer["kind"], answer["reason"], answer["code"]) == (403, "Status", "Forbidden", 403)
    assert kube.admin("get", "clusterrolebinding", "x").returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["delete", "configmaps", "--all", "--raw=/api/v1/namespaces/agents/configmaps"],
        ["get", "--raw", "/api/v1/namespaces/agents/pods/x/proxy/"], ["get", "--raw", "/api/v1/nodes/n/proxy/pods"],
        ["get", "pods", "-A"],
        ["get", "--raw", "/debug/pprof/"], ["get", "--raw", "/api/v1/watch/pods"],
    ],
    ids=lambda one: " ".join(one)[:40],
)  # fmt: skip
def test_what_no_rule_covers_is_refused(kube: Kube, arguments: list[str]) -> None:
    if "--raw=/api/v1/namespaces/agents/configmaps" in arguments:
        arguments = ["delete", arguments[-1]]
    before = len(intents(kube))
    refused = kube.kubectl(*arguments)
    assert refused.returncode != 0
    assert "hidden" not in refused.stdout
    assert {one.decision for one in intents(kube)[before:] if "path:/api" not in str(one.accesses)} == {"Deny"}


def test_a_pod_that_gets_more_than_a_plain_one_needs_leave_for_it(kube: Kube) -> None:
    spec = {
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        "selector": {"matchLabels": {"a": "b"}},
    }
    deployment: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": spec,
    }
    assert kube.kubectl("create", "-f", "-", stdin=json.dumps(deployment)).returncode == 0
    for patch in (
        {"hostPID": True},
        {"serviceAccountName": "agent"},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
    ):
        body = json.dumps({"spec": {"template": {"spec": patch}}})
        refused = kube.kubectl("patch", "deployment", "web", "--patch", body)
        assert 'rule "never"' in refused.stderr
    stored = json.loads(kube.admin("get", "deployment", "web", "-n", "agents", "-o", "json").stdout)
    assert "hostPID" not in stored["spec"]["template"]["spec"]
    assert kube.kubectl("scale", "deployment", "web", "--replicas=2").returncode == 0
    assert kube.kubectl("delete", "deployment", "web").returncode == 0


def test_values_of_secrets_are_never_shown_or_recorded(kube: Kube) -> None:
    path = "/api/v1/namespaces/agents/secrets"
    shown = [
        kube.kubectl("get", "secret", "db", "-o", form).stdout for form in ("json", "yaml", "wide", "jsonpath={.data}")
    ]
    shown.append(kube.kubectl("get", "secrets").stdout)
    shown.append(kube.kubectl("get", "secret", "db", "-o", "go-template={{.data.password}}").stdout)
    with connected(kube) as connection:
        table = "application/json;as=Table;v=v1;g=meta.k8s.io"
        for accept in ("application/json", table, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"):
            status, answer = asked(connection, "GET", f"{path}?includeObject=Object", Accept=accept)
            assert status == 200
            shown.append(json.dumps(answer))
        patch = {"metadata": {"labels": {"seen": "yes"}}}
        status, answer = asked(connection, "PATCH", f"{path}/db", patch, Content_Type="application/merge-patch+json")
        assert status == 200
        shown.append(json.dumps(answer))
        for hostile in (
            [{"op": "test", "path": "/data/password", "value": "x"}],
            [{"op": "copy", "from": "/data/password", "path": "/metadata/labels/x"}],
        ):
            status, answer = asked(
                connection, "PATCH", f"{path}/db", hostile, Content_Type="application/json-patch+json"
            )
            assert status == 403
            assert "tells what a Secret holds" in answer["message"]
        status, answer = asked(connection, "GET", f"{path}/db")
        status, answer = asked(connection, "PUT", f"{path}/db", answer)  # what was masked is not written back
        assert status == 403
        assert "mask of a Secret's value" in answer["message"]
        new = {"metadata": {"name": "new"}, "stringData": {"a": f"{CANARY}-new"}}
        status, answer = asked(connection, "POST", path, new)
        assert status == 201
        shown.append(json.dumps(answer))
    shown.append(
        kube.raw(
            f"GET {path}?watch=1&timeoutSeconds=1 HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
        ).decode()
    )
    stored = json.loads(kube.admin("get", "secret", "db", "-n", "agents", "-o", "json").stdout)["data"]["password"]
    for one in (*shown, every_byte(kube.gateway.evidence).decode("latin-1")):
        assert CANARY not in one
        assert stored not in one
    assert any("W21hc2tlZF0=" in one for one in shown)


def test_a_watch_is_streamed_and_recorded_as_it_goes(kube: Kube) -> None:
    config = kube.folder / "python"
    events: list[tuple[str, str]] = []
    api = api_of(kube)

    def follow() -> None:
        stream = official_watch.Watch().stream(api.list_namespaced_config_map, "agents", timeout_seconds=15)
        for event in stream:
            events.append((event["type"], event["object"].metadata.name))
            if event["object"].metadata.name == "seen" and event["type"] == "DELETED":
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    until(lambda: bool(events), "no first event")
    api.create_namespaced_config_map("agents", {"metadata": {"name": "seen"}})
    api.delete_namespaced_config_map("seen", "agents")
    thread.join(WAIT_S)
    assert ("ADDED", "seen") in events
    assert ("DELETED", "seen") in events
    assert not config.exists()
    assert any(one.kind == "watch" and one.accesses[0].effect == "read" for one in intents(kube))


def api_of(kube: Kube) -> official.CoreV1Api:
    """The official Python client, configured as an agent would."""
    made = official_config.new_client_from_config(str(kube.kubeconfig))
    return official.CoreV1Api(made)


def test_the_python_client_works_and_hears_refusals(kube: Kube) -> None:
    api = api_of(kube)
    assert "app" in [one.metadata.name for one in api.list_namespaced_config_map("agents").items]
    api.create_namespaced_config_map("agents", {"metadata": {"name": "py"}, "data": {"a": "b"}})
    api.patch_namespaced_config_map("py", "agents", {"data": {"a": "c"}})
    assert api.read_namespaced_config_map("py", "agents").data == {"a": "c"}
    assert official.RbacAuthorizationV1Api(api.api_client).list_namespaced_role("agents").items == []
    api.delete_namespaced_config_map("py", "agents")
    with pytest.raises(ApiException) as refused:
        api.read_namespaced_config_map("hidden", "other")
    assert refused.value.status == 403
    assert json.loads(refused.value.body)["reason"] == "Forbidden"


def test_intent_comes_before_outcome_and_both_say_what_was_done(kube: Kube) -> None:
    status, _ = kube.get("/api/v1/namespaces/agents/configmaps/no-such")
    assert status == 404
    intent = intents(kube)[-1]
    ended = outcome(kube, intent)
    assert [(one.effect, one.object) for one in intent.accesses] == [("read", "agents.core.configmaps.no-such")]
    assert (intent.kind, intent.decision, intent.rule) == ("get", "Allow", "read-own")
    assert (ended.status, ended.code, ended.ref) == ("error", "404", intent.seq)
    assert ended.seq > intent.seq


HOST = "Host: {name}\r\n"
GET = "GET /api/v1/pods HTTP/1.1\r\n" + HOST
POST = "POST /api/v1/namespaces/agents/configmaps HTTP/1.1\r\n" + HOST
EXEC = "GET /api/v1/namespaces/agents/pods/x/exec?command=sh&stdout=1 HTTP/1.1\r\n" + HOST
SOCKET = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)


@pytest.mark.parametrize(
    "lines",
    [
        "GET /api/v1/../v1/secrets HTTP/1.1\r\n" + HOST, "GET //api/v1/secrets HTTP/1.1\r\n" + HOST,
        "GET /api/v1/namespaces/agents%2fsecrets HTTP/1.1\r\n" + HOST,
        "GET https://other/api/v1/secrets HTTP/1.1\r\n" + HOST,
        GET + "Host: other\r\n", "GET /api/v1/pods HTTP/1.1\r\n", GET + "Impersonate-User: admin\r\n",
        GET + "X-Remote-User: admin\r\n", GET + "X-HTTP-Method-Override: DELETE\r\n",
        POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        POST + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}",
        POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n",
        POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n",
        GET + SOCKET, EXEC, EXEC + SOCKET + "Sec-WebSocket-Protocol: base64.channel.k8s.io\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n", GET + "X : y\r\n", GET + "X: a\r\n folded\r\n",
    ],
    ids=lambda one: one.replace("\r\n", "|")[:90],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_answered_by_400_and_the_connection_ends(kube: Kube, lines: str) -> None:
    second = f"GET /api/v1/namespaces/agents/configmaps/app HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
    before = len(intents(kube))
    answer = kube.raw((lines.format(name=NAME) + "\r\n" + second).encode())
    assert answer[5:].startswith((b"1.1 400", b"1.0 400")), answer
    assert answer.count(b"\r\nServer: ") == 1  # what comes behind it is nobody's request
    assert b"green" not in answer
    assert all(one.decision == "Deny" for one in intents(kube)[before:])


def test_other_forms_are_refused_as_a_server_without_them_does(kube: Kube) -> None:
    with connected(kube) as connection:
        path = "/api/v1/namespaces/agents/configmaps"
        status, answer = asked(connection, "GET", path, Accept="application/vnd.kubernetes.protobuf")
        assert (status, answer["reason"]) == (406, "NotAcceptable")
        for kind in ("application/vnd.kubernetes.protobuf", "application/cbor-seq", "text/yaml"):
            before = len(intents(kube))
            status, answer = asked(connection, "POST", path, {"data": {"a": CANARY}}, Content_Type=kind)
            assert (status, answer["reason"]) == (415, "UnsupportedMediaType")
            assert "Send JSON: with kubectl use" in answer["message"]
            (refused,) = intents(kube)[before:]
            assert (refused.decision, refused.rule, refused.kind) == ("Deny", "not-covered", "create")
        for kind, body in (("application/cbor", "{}"), ("application/yaml", f"a: {CANARY}\na: b")):
            before = len(intents(kube))
            connection.request("POST", path, body, {"Content-Type": kind})
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())["reason"]) == (400, "BadRequest")
            (refused,) = intents(kube)[before:]
            assert (refused.decision, refused.rule, refused.kind) == ("Deny", "malformed", "create")
        status, answer = asked(connection, "POST", "/api/v1/namespaces/agents/serviceaccounts/agent/token", {})
        assert (status, answer["reason"]) == (403, "Forbidden")
        both = "application/vnd.kubernetes.protobuf, application/json"
        status, answer = asked(connection, "GET", path, Accept=both)
        assert (status, answer["kind"]) == (200, "ConfigMapList")


@pytest.mark.parametrize(
    "question",
    [
        "?labelSelector=owner%3Dhelm",
        "?labelSelector=name%3Da%2Cowner%3D%3Dhelm&watch=1",
        "/sh.helm.release.v1.web.v1",
    ],
)
def test_releases_in_secrets_are_refused_and_not_answered_falsely(kube: Kube, question: str) -> None:
    status, answer = kube.get(f"/api/v1/namespaces/agents/secrets{question}")
    assert (status, answer["reason"]) == (403, "Forbidden")
    assert "set HELM_DRIVER=configmap" in answer["message"]
    intent = intents(kube)[-1]
    assert (intent.decision, intent.rule, intent.accesses[0].effect) == ("Deny", "not-covered", "read_sensitive")


def test_detectors_mask_answers_watches_and_records(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with(masks=MASKS, recording={"results": "Full"})
    for arguments in (["-o", "json"], ["-o", "yaml"], ["-o", "jsonpath={.data}"]):
        shown = kube.kubectl("get", "configmap", "app", *arguments)
        assert shown.returncode == 0, shown.stderr
        assert "jane.doe" not in shown.stdout
        assert "[Email]" in shown.stdout
        assert "green" in shown.stdout
    path = "GET /api/v1/namespaces/agents/configmaps?watch=1 HTTP/1.1\r\nConnection: close\r\n"
    watched = kube.raw(f"{path}{HOST}\r\n".format(name=NAME).encode(), until=b'"[Email]"')
    assert b"jane.doe" not in watched
    assert b"[Email]" in watched
    with connected(kube) as connection:
        content = {"metadata": {"name": "mail"}, "data": {"to": "john.roe@example.com"}}
        status, answer = asked(connection, "POST", "/api/v1/namespaces/agents/configmaps", content)
        assert (status, answer["data"]["to"]) == (201, "[Email]")
    kept = every_byte(kube.gateway.evidence)
    assert b"[Email]" in kept
    for canary in (b"jane.doe", b"john.roe"):
        assert canary not in kept
    execution = (EXEC + SOCKET + "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n").format(name=NAME)
    answer = kube.raw(execution.encode(), until=b"Allow for it")
    assert b"HTTP/1.1 403" in answer
    assert b"cannot be masked" in answer


def test_limits_cut_lists_watches_and_commands(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with(limits={"rowsPerCommand": 1, "commandDuration": "10s", "commandsPerMinute": 8, "connections": 2})
    with connected(kube) as connection:
        status, answer = asked(connection, "GET", "/api/v1/namespaces/agents/configmaps/app")
        assert status == 200
        status, answer = asked(connection, "GET", "/api/v1/namespaces")
        assert status == 403
        status, answer = asked(connection, "GET", "/apis/rbac.authorization.k8s.io/v1/namespaces/agents/roles")
        assert status == 200
        status, answer = asked(connection, "GET", "/api/v1/namespaces/agents/serviceaccounts")
        assert status == 200
        status, answer = asked(connection, "GET", "/api/v1/namespaces/agents/secrets")
        if status != 200:
            assert "rowsPerCommand" in answer["message"] or "rows" in answer["message"]
        began = time.monotonic()
        watched = kube.raw(
            f"GET /apis/apps/v1/namespaces/agents/deployments?watch=1 HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
        )
        assert time.monotonic() - began < 3 * WAIT_S  # without the limit it would go on for half an hour
        assert not watched.endswith(b"0\r\n\r\n")  # no client takes that for the end
        with connected(kube) as second:
            assert asked(second, "GET", "/version")[0] == 200
            with connected(kube) as third:
                status, answer = asked(third, "GET", "/version")
                assert status == 403
                assert "connections" in answer["message"]
        for _ in range(8):
            status, answer = asked(connection, "GET", "/version")
        assert status == 403
        assert "within a minute" in answer["message"]
    codes = {one.code for one in kube.gateway.records() if isinstance(one, record.CommandOutcome)}
    assert "limit:commandDuration" in codes


def test_a_server_that_is_down_or_another_is_told_as_such(kube_with: Callable[..., Kube]) -> None:
    down = kube_with(port=free_port())
    status, answer = down.get("/api/v1/namespaces/agents/configmaps/app")
    assert (status, answer["reason"]) == (503, "ServiceUnavailable")
    assert "cannot be reached" in answer["message"]
    other = kube_with(ca_pem=Authority("another").pem)
    status, answer = other.get("/api/v1/namespaces/agents/configmaps/app")
    assert (status, answer["reason"]) == (503, "ServiceUnavailable")
    assert "certificate that is not accepted" in answer["message"]
    wrong = kube_with(token="not-a-token")
    status, answer = wrong.get("/api/v1/namespaces/agents/configmaps/app")
    assert (status, answer["reason"]) == (503, "ServiceUnavailable")
    assert "does not accept the credential" in answer["message"]
    for kube in (down, other, wrong):
        assert {one.status for one in kube.gateway.records() if isinstance(one, record.CommandOutcome)} == {"error"}


ASK = {
    "name": "fix", "action": "RequireApproval",
    "match": {"effects": ["create"], "objects": ["agents.core.configmaps.*"]},
    "approval": {"groups": ["leads"], "wait": "20s", "validFor": "60s"},
}  # fmt: skip
HOLD = [rule("discovery", "Allow", ["read"], ["path:*"]), rule("read-own", "Allow", READS, ["agents.*.*.*"]), ASK]


def test_a_held_request_waits_for_people(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with(rules=HOLD)
    person = Person(kube.gateway)
    done: list[subprocess.CompletedProcess[str]] = []
    for number, word in enumerate(("approve", "deny"), 1):
        name = f"held-{word}"
        thread = threading.Thread(
            target=lambda name=name: done.append(
                kube.kubectl("create", "-f", "-", stdin=MAP.format(name=name, value="1"))
            )
        )
        thread.start()
        ticket, shown = person.next(number)
        assert f'"name":"{name}"' in str(shown["text"]).replace(" ", "")
        assert kube.admin("get", "configmap", name, "-n", "agents").returncode == 1  # nothing was sent
        person.decide(ticket, word)
        thread.join(WAIT_S)
    assert done[0].returncode == 0, done[0].stderr
    assert done[1].returncode == 1
    assert "is forbidden: Chaperone" in done[1].stderr
    assert kube.admin("get", "configmap", "held-deny", "-n", "agents").returncode == 1
    kube.admin("delete", "configmap", "held-approve", "-n", "agents")


def test_a_ticket_lets_the_same_request_pass_once(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with(rules=[*HOLD[:2], ASK | {"approval": {"groups": ["leads"], "wait": "1s", "validFor": "60s"}}])
    person = Person(kube.gateway)
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ticket"}}
    path = "/api/v1/namespaces/agents/configmaps"
    with connected(kube) as connection:
        status, answer = asked(connection, "POST", path, body)
        assert status == 403
        name, _ = person.next()
        assert name in answer["message"]
        assert "Send the very same command again" in answer["message"]
        person.decide(name, "approve")
        status, answer = asked(connection, "POST", path, body | {"data": {"a": "b"}})
        assert status == 403  # another byte is another request
        status, _ = asked(connection, "POST", path, body)
        assert status == 201
    kube.admin("delete", "configmap", "ticket", "-n", "agents")


def test_a_client_that_goes_withdraws_what_people_are_asked(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with(rules=HOLD)
    person = Person(kube.gateway)
    with connected(kube) as connection:
        body = json.dumps({"metadata": {"name": "gone"}})
        connection.request("POST", "/api/v1/namespaces/agents/configmaps", body, {"Content-Type": "application/json"})
        person.next()
    until(
        lambda: any(isinstance(one, record.ApprovalOutcome) for one in kube.gateway.records()), "nothing was withdrawn"
    )
    assert kube.admin("get", "configmap", "gone", "-n", "agents").returncode == 1


def test_a_client_that_goes_in_a_watch_leaves_an_aborted_command(kube: Kube) -> None:
    before = len(intents(kube))
    kube.raw(
        f"GET /api/v1/namespaces/agents/configmaps?watch=1 HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode(), until=b"ADDED"
    )
    intent = intents(kube)[before]
    until(lambda: seen(kube, intent), "no outcome")
    assert outcome(kube, intent).status == "aborted"


def test_a_gateway_that_stops_breaks_watches_off_and_ends_its_stream(kube_with: Callable[..., Kube]) -> None:
    kube = kube_with()
    with connected(kube) as connection:
        connection.request("GET", "/api/v1/namespaces/agents/configmaps?watch=1")
        assert connection.getresponse().readline().startswith(b'{"type":"ADDED"')
        kube.gateway.process.send_signal(signal.SIGTERM)
        assert kube.gateway.process.wait(WAIT_S) == 0
    assert kube.gateway.verify().stdout.endswith("verify: OK\n")


def test_a_full_disk_refuses_requests_natively_and_they_do_not_run(
    api_server: ApiServer, agent_token: str, tmp_path: Path, small_disk: Path
) -> None:
    kube = opened(api_server, tmp_path / "kube", agent_token, small_disk / "evidence")
    path = "/api/v1/namespaces/agents/configmaps"
    try:
        for size in (500_000, 50_000, 5_000, 0):  # what does not fit is followed by what would
            status, answer = 201, {}
            while status == 201:
                with connected(kube) as connection:
                    content = {"metadata": {"name": "x"}, "data": {"a": "b" * size}}
                    status, answer = asked(connection, "POST", f"{path}?dryRun=All", content)
            assert (status, answer["reason"]) == (503, "ServiceUnavailable")
            assert "spool is full" in answer["message"]
        with connected(kube) as connection:
            status, answer = asked(connection, "POST", path, {"metadata": {"name": "no-room"}})
            assert (status, answer["reason"]) == (503, "ServiceUnavailable")
    finally:
        kube.gateway.stop()
    assert kube.admin("get", "configmap", "no-room", "-n", "agents").returncode == 1


def test_certificate_is_good_for_the_names_and_the_address_of_the_service(kube: Kube) -> None:
    for name in (NAME, "10.96.0.1"):
        with (
            socket.create_connection(("127.0.0.1", kube.gateway.port), timeout=20) as connection,
            kube.context.wrap_socket(connection, server_hostname=name) as wrapped,
        ):
            assert wrapped.selected_alpn_protocol() is None
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection(("127.0.0.1", kube.gateway.port)) as connection,
    ):
        kube.context.wrap_socket(connection, server_hostname="other.svc")


def test_the_guides_policy_compiles_and_does_what_the_guide_says(kube_with: Callable[..., Kube]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "kubernetes.md").read_text()
    place, rules, releases, database = (
        yaml.safe_load(one) for one in re.findall(r"^```yaml\n(.+?)^```", guide, re.DOTALL | re.MULTILINE)
    )
    rules["spec"]["rules"] += releases
    agent = identity("triage-agent")
    compiled = compile_namespace("agents", [agent], [place, database], [rules], [], namespace_labels={})
    assert compiled.is_usable, compiled.problems
    kube = kube_with(rules=rules["spec"]["rules"], limits=rules["spec"]["limits"])
    with connected(kube) as connection:
        for path in ("pods", "events", "pods/web/log"):
            assert asked(connection, "GET", f"/api/v1/namespaces/shop/{path}")[0] in (200, 404)
        release = {"metadata": {"name": "sh.helm.release.v1.web.v1"}}
        assert asked(connection, "POST", "/api/v1/namespaces/shop/configmaps", release)[0] == 404  # no such namespace
        for path in ("shop/secrets", "agents/pods"):
            assert asked(connection, "GET", f"/api/v1/namespaces/{path}")[0] == 403
        status, answer = asked(connection, "DELETE", "/api/v1/namespaces/shop/pods")
        assert status == 403
        assert "Ask the SRE on call." in answer["message"]
