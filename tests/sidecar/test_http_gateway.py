"""HTTP through the real `chaperone dev`, in front of an API that is a program of its own."""

from __future__ import annotations

import gzip
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import requests
from fix_http import CANARY, NAME, Api, parsed, to_end
from http_backend import ORDERS
from pki import Authority
from ports import free_port
from recordings import every_byte
from waiting import Person

from chaperone_evidence import record
from chaperone_operator.kubeconfig import verifying

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "http_smuggling.jsonl").read_text().splitlines()
]


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def intents(api: Api) -> list[record.CommandIntent]:
    return [one for one in api.gateway.records() if isinstance(one, record.CommandIntent)]


def test_an_allowed_request_reaches_the_api_with_the_credential(api: Api) -> None:
    status, found = api.json("GET", "/v1/orders")
    assert status == 200
    assert found[0]["email"] == "jane.doe@example.com"
    assert f"GET /v1/orders Bearer {CANARY}" in api.backend.heard()


def test_a_denied_request_names_the_rule_and_reaches_nothing(api: Api) -> None:
    status, fields, body = api.ask("DELETE", "/v1/orders/7")
    assert (status, fields["content-type"]) == (403, "application/problem+json")
    told = json.loads(body)
    assert (told["rule"], told["policy"]) == ("never", "agents/billing")
    assert "Ask the owner of the API." in told["detail"]
    assert not any("/v1/orders/7" in line for line in api.backend.heard())


def test_the_credential_never_comes_back(api: Api) -> None:
    status, fields, body = api.ask("POST", "/echo", b'{"a":1}', {"Authorization": "Bearer my-own", "Cookie": "a=b"})
    assert status == 200
    assert CANARY.encode() not in body
    assert CANARY not in str(fields)
    heard = dict(json.loads(body)["headers"])
    assert heard["Authorization"] == "[credential]"
    assert heard["Cookie"] == "a=b"
    assert "localhost" in heard["Host"]


def test_what_is_smuggled_is_refused_and_reaches_nothing(api: Api) -> None:
    before = api.backend.heard()
    for case in CORPUS:
        answer = api.raw(case["raw"].encode("latin-1") + b"GET /v1/smuggled HTTP/1.1\r\nHost: api.data.svc\r\n\r\n")
        assert answer.count(b"HTTP/1.1 4") == 1, case["name"]
        status, fields, body = parsed(answer)
        assert (status, fields["content-type"]) == (case.get("status", 400), "application/problem+json"), case["name"]
        assert "refused by Chaperone" in json.loads(body)["detail"]
    assert api.backend.heard() == before
    assert sum(one.rule == "malformed" for one in intents(api)) >= len(CORPUS)


def test_sni_and_host_have_to_be_one(api: Api) -> None:
    assert (
        api.raw(b"GET /v1/orders HTTP/1.1\r\nHost: api.data.svc\r\nConnection: close\r\n\r\n", "other.svc")[9:12]
        == b"421"
    )


def test_methods_are_what_they_say_and_what_they_hide(api: Api) -> None:
    for headers, path, body in (
        ({"X-HTTP-Method-Override": "DELETE"}, "/v1/x", b"{}"),
        ({}, "/v1/x?_method=delete", b"{}"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "/v1/x", b"a=b&_method=DELETE"),
        ({"Content-Type": "application/json"}, "/v1/x", b'{"_method":"DELETE"}'),
    ):
        status, found = api.json("POST", path, body, headers)
        assert (status, found["rule"]) == (403, "never")
    for method in ("TRACE", "CONNECT"):
        assert api.json(method, "/v1/x")[0] == 403
    status, found = api.json("PROPFIND", "/v1/x")
    assert (status, found["rule"]) == (403, "uncovered")
    assert "'PROPFIND' is not known" in found["detail"]


def test_a_part_is_asked_for_where_nothing_is_looked_for_in_the_answer(api: Api, api_with: Callable[..., Api]) -> None:
    part = {"Range": "bytes=0-3", "If-Range": '"a"'}

    def names(of: Api, path: str) -> set[str]:
        return {name for name, _ in of.json("GET", path, headers=part)[1]["headers"]}

    bound = api_with(credential={"path": "/v1"})
    assert {"Range", "If-Range"} <= names(bound, "/echo")
    assert not {"Range", "If-Range"} & names(bound, "/v1/echo")  # half a credential is none that would be found
    masked = api_with(credential={"path": "/v1"}, masks=[{"detectors": ["Email"], "method": "Redact"}])
    assert not {"Range", "If-Range"} & names(masked, "/echo")


def test_a_compressed_body_is_decided_and_sent_on_in_the_clear(api: Api) -> None:
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    status, found = api.json("POST", "/v1/x", gzip.compress(b'{"_method":"DELETE"}'), packed)
    assert (status, found["rule"]) == (403, "never")
    status, found = api.json("POST", "/v1/x", gzip.compress(b'{"a":1}'), packed)
    assert (status, found["body"]) == (200, '{"a":1}')
    assert "Content-Encoding" not in dict(found["headers"])


def test_a_request_and_its_answer_are_recorded_without_the_credential(api: Api) -> None:
    secret = "agents-own-password"
    status, _ = api.json("POST", "/echo/recorded", b'{"a":"b"}', {"Authorization": secret, "X-Api-Key": secret})
    assert status == 200
    found = next(one for one in reversed(intents(api)) if one.kind == "POST")
    assert [(one.effect, one.object) for one in found.accesses] == [("create", "path:/echo/recorded")]
    outcome = next(
        one for one in api.gateway.records() if isinstance(one, record.CommandOutcome) and one.command == found.command
    )
    assert outcome.status == "ok"
    assert outcome.bytes > 0
    kept = every_byte(api.gateway.evidence)
    assert b"POST /echo/recorded" in kept
    assert b'{"a":"b"}' in kept
    assert CANARY.encode() not in kept
    assert f"X-Api-Key: {secret}".encode() not in kept


def test_nothing_of_a_long_body_is_kept_back(api: Api) -> None:
    size = 24 << 20
    head = f"POST /v1/count HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
    with api.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        for _ in range(size >> 20):
            connection.sendall(b"x" * (1 << 20))
        answer = connection.recv(1 << 16)
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += connection.recv(1 << 16)
        assert parsed(answer)[2] == b'{"size": %d}' % size
        connection.sendall(f"GET /big?size={size} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        status, _, body = parsed(to_end(connection))
    assert (status, len(body)) == (200, size)


def test_clients_need_nothing_but_the_ca(api: Api) -> None:
    port = str(api.gateway.port)
    curl = subprocess.run(
        ["curl", "-sS", "--cacert", str(api.ca), "--connect-to", f"{NAME}:{port}:127.0.0.1:{port}",
         f"{api.url}/v1/orders"],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert json.loads(curl.stdout) == ORDERS, curl.stderr
    context = verifying(cadata=api.ca_pem)
    with httpx.Client(verify=context) as client:
        for _ in range(2):
            found = client.get(
                f"https://127.0.0.1:{port}/v1/orders", headers={"Host": NAME}, extensions={"sni_hostname": NAME}
            )
            assert found.json() == ORDERS
    with requests.Session() as session:
        session.mount("https://", HostAdapter())
        answer = session.get(
            f"https://127.0.0.1:{port}/v1/orders", headers={"Host": NAME}, verify=str(api.ca), timeout=20
        )
        assert answer.json() == ORDERS


class HostAdapter(requests.adapters.HTTPAdapter):
    """requests, with the name that TLS asks for and checks."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, server_hostname=NAME, assert_hostname=NAME, **named)


def test_an_answer_that_breaks_off_is_never_whole(api: Api) -> None:
    answer = api.raw(b"GET /cut HTTP/1.1\r\nHost: api.data.svc\r\n\r\n")
    assert b"beginning" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert [one for one in api.gateway.records() if isinstance(one, record.CommandOutcome)][-1].status == "error"


def test_a_client_that_goes_ends_what_runs_for_it(api: Api) -> None:
    with api.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: api.data.svc\r\n\r\n")
        eventually(lambda: any(line.startswith("GET /slow") for line in api.backend.heard()))
    eventually(
        lambda: [one for one in api.gateway.records() if isinstance(one, record.CommandOutcome)][-1].status == "aborted"
    )


def test_masked_answers(api_with: Callable[..., Api], tmp_path: Path) -> None:
    api = api_with(masks=[{"detectors": ["Email"], "method": "Redact"}], recording={"results": "Full"})
    status, fields, body = api.ask("GET", "/v1/orders")
    assert status == 200
    assert "example.com" not in body.decode() + str(fields)
    assert [one["id"] for one in json.loads(body)] == [1, 2]
    assert "alt-svc" not in fields
    assert b"example.com" not in api.ask("GET", "/packed")[2]
    assert b"example.com" not in api.ask("GET", "/page")[2]
    status, found = api.json("GET", "/big?size=10")
    assert (status, found["rule"]) == (403, "unmaskable")
    go = tmp_path / "go"
    with api.connect() as connection:
        connection.sendall(f"GET /events?go={go} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        found = b""
        while b"first" not in found:  # an event comes when it is whole, not when the stream is
            found += connection.recv(1 << 16)
        go.touch()
        found += to_end(connection)
    events = parsed(found)[2]
    assert b"example.com" not in events
    assert b"\\u0040" not in events
    assert events.endswith(b"data: end\n\n")
    api.ask("POST", "/echo", b"call joe@example.com")
    assert b"example.com" not in every_byte(api.gateway.evidence).replace(b"owner@example.com", b"")


ASK = {
    "name": "fix", "action": "RequireApproval", "match": {"effects": ["modify"], "objects": ["path:/v1/*"]},
    "approval": {"groups": ["leads"], "wait": "20s", "validFor": "60s"},
}  # fmt: skip


def test_a_held_request_waits_for_people(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=[ASK])
    person = Person(api.gateway)
    done: list[tuple[int, Any]] = []
    for number, (word, status) in enumerate((("approve", 200), ("deny", 403)), 1):
        path = f"/v1/held-{word}"
        thread = threading.Thread(target=lambda path=path: done.append(api.json("PUT", path, b'{"paid":true}')))
        thread.start()
        ticket, shown = person.next(number)
        assert str(shown["text"]).startswith(f"PUT {path}")
        assert '{"paid":true}' in str(shown["text"])
        assert not any(path in line for line in api.backend.heard())
        person.decide(ticket, word)
        thread.join(30)
        assert done[-1][0] == status
    assert done[-1][1]["rule"] == "fix"
    assert not any("held-deny" in line for line in api.backend.heard())
    size = (1 << 20) + 1
    status, found = api.json("PUT", "/v1/long", b"x" * size)
    assert status == 403
    assert "longer than" in found["detail"]


def test_limits(api_with: Callable[..., Api]) -> None:
    api = api_with(limits={"commandsPerMinute": 3, "bytesPerSession": "1Mi", "commandDuration": "10s"})
    status, found = api.json("GET", "/slow")
    assert (status, found["rule"]) == (403, "limit:commandDuration")
    answer = api.raw(b"GET /big?size=3000000 HTTP/1.1\r\nHost: api.data.svc\r\n\r\n")
    assert len(answer) < 1 << 20
    assert api.ask("GET", "/v1/orders")[0] == 200
    status, found = api.json("GET", "/v1/orders")
    assert (status, found["rule"]) == (429, "limit:commandsPerMinute")
    codes = [one.code for one in api.gateway.records() if isinstance(one, record.CommandOutcome)]
    assert {"limit:commandDuration", "limit:bytesPerSession"} <= set(codes)


def test_an_api_that_is_away_or_another_one_is_a_bad_gateway(api_with: Callable[..., Api]) -> None:
    down = api_with(port=free_port())
    status, found = down.json("GET", "/v1/orders")
    assert status == 502
    assert "cannot be reached" in found["detail"]
    other = api_with(ca_pem=Authority("another").pem)
    status, found = other.json("GET", "/v1/orders")
    assert status == 502
    assert "certificate that is not accepted" in found["detail"]


def test_the_credential_goes_below_its_path_alone(api_with: Callable[..., Api]) -> None:
    api = api_with(credential={"path": "/v1", "header": "X-Token", "prefix": ""})
    sent = {"X-Token": "mine", "X_Token": "mine"}
    names = dict(api.json("GET", "/v1/echo", headers=sent)[1]["headers"])
    assert names["X-Token"] == "[credential]"
    assert "mine" not in names.values()
    for path in ("/v10/echo", "/other", "/"):
        assert "X-Token" not in dict(api.json("GET", path, headers=sent)[1]["headers"])


def test_a_gateway_that_stops_tells_its_clients_and_owes_nothing(api_with: Callable[..., Api]) -> None:
    api = api_with()
    with api.connect() as idle, api.connect() as busy:
        idle.sendall(b"GET /v1/orders HTTP/1.1\r\nHost: api.data.svc\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        busy.sendall(b"GET /slow HTTP/1.1\r\nHost: api.data.svc\r\n\r\n")
        eventually(lambda: len([one for one in api.gateway.records() if isinstance(one, record.CommandIntent)]) == 2)
        assert api.gateway.stop() == 0
        assert parsed(to_end(busy))[0] == 503
    assert api.gateway.verify().stdout.endswith("verify: OK\n")
    outcomes = [one.status for one in api.gateway.records() if isinstance(one, record.CommandOutcome)]
    assert outcomes == ["ok", "aborted"]
    assert sum(isinstance(one, record.SessionClose) for one in api.gateway.records()) == 2
