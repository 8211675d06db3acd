"""HTTP/2 through the real `chaperone dev`: clients and a server that others wrote, and the same decisions as ever."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fix_http import BACKEND, CANARY, NAME, RULES, Agent, Api, Backend, running_backend
from http_backend import ORDERS
from pki import Authority
from ports import free_port
from process_usage import resident_mib
from raw_http2 import Frames, listen
from recordings import every_byte
from waiting import Person, eventually

from chaperone_evidence import record

RIGHT = [[":method", "POST"], [":scheme", "https"], [":authority", NAME], [":path", "/echo"]]
ASK = {
    "name": "fix", "action": "RequireApproval", "match": {"effects": ["modify"], "objects": ["path:/v1/*"]},
    "approval": {"groups": ["leads"], "wait": "60s", "validFor": "60s"},
}  # fmt: skip


@pytest.fixture(scope="module")
def http_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """An API that speaks HTTP/2, and HTTP/1.1 to who wants that."""
    with running_backend(tmp_path_factory.mktemp("backend"), program=BACKEND.with_name("http2_backend.py")) as found:
        yield found


@pytest.fixture(scope="module")
def agent(api: Api) -> Iterator[Agent]:
    """One connection for the tests that share a gateway."""
    with Agent(api) as found:
        yield found


def outcomes(api: Api) -> list[record.CommandOutcome]:
    return [one for one in api.gateway.records() if isinstance(one, record.CommandOutcome)]


def commands(api: Api, path: str) -> set[str]:
    """Those on a path so far."""
    found = [one for one in api.gateway.records() if isinstance(one, record.CommandIntent)]
    return {one.command for one in found if one.accesses[0].object == f"path:{path}"}


def test_an_allowed_request_goes_to_an_api_of_http_2_with_the_credential(api: Api, agent: Agent) -> None:
    found = agent.ask("GET", "/v1/orders")
    assert (found.status_code, found.json()) == (200, ORDERS)
    assert f"2 GET /v1/orders Bearer {CANARY}" in api.backend.heard()
    echoed = agent.ask("POST", "/echo", content=b"hello")
    assert CANARY.encode() not in echoed.content
    assert CANARY not in str(echoed.headers)
    heard = dict(echoed.json()["headers"])
    assert (heard["authorization"], heard["content-length"]) == ("[credential]", "5")
    assert heard["host"] == f"localhost:{api.backend.port}"
    assert agent.ask("HEAD", "/v1/orders").content == b""


def test_a_denied_request_names_the_rule_and_its_connection_goes_on(api: Api, agent: Agent) -> None:
    found = agent.ask("DELETE", "/v1/orders/7")
    assert (found.status_code, found.headers["content-type"]) == (403, "application/problem+json")
    assert (found.json()["rule"], found.json()["policy"]) == ("never", "agents/billing")
    assert agent.ask("GET", "/v1/orders").status_code == 200
    assert not any("/v1/orders/7" in line for line in api.backend.heard())
    opened = [one for one in api.gateway.records() if isinstance(one, record.SessionOpen)]
    assert len(opened) == 1  # one connection, one session


def test_requests_and_answers_are_recorded_without_the_credential(api: Api, agent: Agent) -> None:
    assert agent.ask("POST", "/echo/recorded", content=b'{"a":"b"}').status_code == 200
    found = [one for one in api.gateway.records() if isinstance(one, record.CommandIntent)][-1]
    assert [(one.effect, one.object) for one in found.accesses] == [("create", "path:/echo/recorded")]
    assert (outcomes(api)[-1].command, outcomes(api)[-1].status) == (found.command, "ok")
    kept = every_byte(api.gateway.evidence)
    assert b"POST /echo/recorded" in kept
    assert b'{"a":"b"}' in kept
    assert b"HTTP/2 200" in kept
    assert CANARY.encode() not in kept


def test_long_bodies_pass_both_ways(agent: Agent) -> None:
    assert agent.ask("POST", "/v1/count", content=b"x" * (2 << 20)).json() == {"size": 2 << 20}
    pieces = (b"y" * 50_000 for _ in range(30))
    assert agent.ask("POST", "/v1/count", content=pieces).json() == {"size": 1_500_000}
    assert len(agent.ask("GET", "/big?size=2000000").content) == 2_000_000


def test_curl_agrees_on_http_2_by_itself(api: Api) -> None:
    port = str(api.gateway.port)
    done = subprocess.run(
        ["curl", "-sS", "--http2", "--cacert", str(api.ca), "--connect-to", f"{NAME}:{port}:127.0.0.1:{port}",
         "--write-out", "\n%{http_version}", f"{api.url}/v1/orders"],
        capture_output=True, timeout=30, check=False, text=True,
    )  # fmt: skip
    body, _, version = done.stdout.rpartition("\n")
    assert (json.loads(body), version) == (ORDERS, "2"), done.stderr


def test_a_request_is_the_same_however_its_bytes_come(api: Api) -> None:
    frames = Frames()
    data = frames.begin() + frames.script(
        [{"head": "right", "whole": False}, {"frame": "data", "data": "hello", "flags": ["END_STREAM"]}], RIGHT
    )
    with api.connect(NAME, "h2") as connection:
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])
        heard = listen(connection, 1)
    assert heard.fields[1][":status"] == "200"
    assert json.loads(heard.bodies[1])["body"] == "hello"


def test_who_reads_nothing_holds_up_neither_memory_nor_others(api: Api) -> None:
    frames = Frames()
    ask = [[":method", "GET"], [":scheme", "https"], [":authority", NAME]]
    with api.connect(NAME, "h2") as connection:
        connection.sendall(frames.begin() + frames.head(1, [*ask, [":path", "/v1/orders"]]))
        heard = listen(connection, 1)
        before = resident_mib(api.gateway.process.pid)
        connection.sendall(b"".join(frames.head(n, [*ask, [":path", "/big?size=30000000"]]) for n in (3, 5, 7)))
        while sum(map(len, heard.bodies.values())) < 65_535:  # all that it may send without a window
            heard = listen_once(connection, heard)
        connection.sendall(frames.head(9, [[":method", "DELETE"], *ask[1:], [":path", "/v1/x"]]))
        while 9 not in heard.fields:
            heard = listen_once(connection, heard)
        assert heard.fields[9][":status"] == "403"
        assert resident_mib(api.gateway.process.pid) - before < 16


def listen_once(connection: Any, heard: Any) -> Any:
    """One frame more."""
    return listen(connection, None, heard, most=1)


def test_more_streams_than_are_served_are_refused(api: Api) -> None:
    frames = Frames()
    slow = [[":method", "GET"], [":scheme", "https"], [":authority", NAME], [":path", "/slow"]]
    with api.connect(NAME, "h2") as connection:
        connection.sendall(frames.begin() + b"".join(frames.head(2 * n + 1, slow) for n in range(40)))
        heard = listen(connection, 79)
        assert heard.resets == {2 * n + 1: 7 for n in range(32, 40)}
        eventually(lambda: len(commands(api, "/slow")) == 32)  # what is taken back before it is decided leaves no trace
        connection.sendall(frames.script([{"frame": "reset", "error_code": 8}], slow))
        of = commands(api, "/slow")
        eventually(lambda: [one.status for one in outcomes(api) if one.command in of] == ["aborted"])


def test_masked_answers(api_with: Callable[..., Api]) -> None:
    api = api_with(masks=[{"detectors": ["Email"], "method": "Redact"}], recording={"results": "Full"})
    with Agent(api) as agent:
        found = agent.ask("GET", "/v1/orders")
        assert "example.com" not in found.text + str(found.headers)
        assert [one["id"] for one in found.json()] == [1, 2]
        found = agent.ask("GET", "/big?size=10")
        assert (found.status_code, found.json()["rule"]) == (403, "unmaskable")
    assert b"jane.doe" not in every_byte(api.gateway.evidence)


def test_a_held_request_waits_while_others_go_on(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=[*RULES[:1], ASK])
    person, done = Person(api.gateway), dict[str, httpx.Response]()
    with Agent(api) as agent:
        agent.ask("GET", "/v1/orders")

        def put(word: str) -> None:
            done[word] = agent.ask("PUT", f"/v1/held-{word}", content=b'{"paid":true}')

        for number, (word, status) in enumerate((("approve", 200), ("deny", 403)), 1):
            thread = threading.Thread(target=put, args=(word,))
            thread.start()
            ticket, shown = person.next(number)
            assert '{"paid":true}' in str(shown["text"])
            with Agent(api) as other:  # threads of httpx wait for each other on one connection
                assert other.ask("GET", "/v1/orders").status_code == 200
            assert not any(f"held-{word}" in line for line in api.backend.heard())
            person.decide(ticket, word)
            thread.join(60)
            assert done[word].status_code == status


def test_limits_cut_a_stream_and_none_else(api_with: Callable[..., Api]) -> None:
    api = api_with(limits={"commandsPerMinute": 3, "bytesPerSession": "1Mi", "commandDuration": "10s"})
    with Agent(api) as agent:
        found = agent.ask("GET", "/slow")
        assert (found.status_code, found.json()["rule"]) == (403, "limit:commandDuration")
        with pytest.raises(httpx.RemoteProtocolError):
            agent.ask("GET", "/big?size=3000000")
        assert outcomes(api)[-1].code == "limit:bytesPerSession"
    with Agent(api) as agent:
        assert agent.ask("GET", "/v1/orders").status_code == 200
        found = agent.ask("GET", "/v1/orders")
        assert (found.status_code, found.json()["rule"]) == (429, "limit:commandsPerMinute")


def test_a_limit_cuts_a_body_on_its_way_up(api_with: Callable[..., Api], tmp_path: Path) -> None:
    """In both forms of HTTP; the client hears why."""
    api = api_with(limits={"bytesPerSession": "1Mi"})
    port, body = str(api.gateway.port), tmp_path / "body"
    body.write_bytes(b"x" * (4 << 20))
    for version in ("--http1.1", "--http2"):
        done = subprocess.run(
            ["curl", "-sS", version, "--cacert", str(api.ca), "--connect-to", f"{NAME}:{port}:127.0.0.1:{port}",
             "--write-out", "\n%{http_version} %{http_code}", "--header", "Content-Type: application/octet-stream",
             "--data-binary", f"@{body}", f"{api.url}/v1/count"],
            capture_output=True, timeout=60, check=False, text=True,
        )  # fmt: skip
        told, _, ended = done.stdout.rpartition("\n")
        assert ended == f"{version.removeprefix('--http')} 403", done
        assert json.loads(told)["rule"] == "limit:bytesPerSession"
        assert (outcomes(api)[-1].status, outcomes(api)[-1].code) == ("error", "limit:bytesPerSession")
    assert len(outcomes(api)) == 2


def test_an_api_that_is_away_or_another_one_is_a_bad_gateway(api_with: Callable[..., Api]) -> None:
    with Agent(api_with(port=free_port())) as agent:
        found = agent.ask("POST", "/v1/orders", content=b"one")
        assert found.status_code == 502
        assert "cannot be reached" in found.json()["detail"]
    with Agent(api_with(ca_pem=Authority("another").pem)) as agent:
        found = agent.ask("GET", "/v1/orders")
        assert found.status_code == 502
        assert "certificate that is not accepted" in found.json()["detail"]


def test_a_gateway_that_stops_tells_its_clients_and_owes_nothing(api_with: Callable[..., Api]) -> None:
    api = api_with()
    slow = [[":method", "GET"], [":scheme", "https"], [":authority", NAME], [":path", "/slow"]]
    frames = Frames()
    with api.connect(NAME, "h2") as connection:
        connection.sendall(frames.begin() + frames.head(1, slow))
        eventually(lambda: any(isinstance(one, record.CommandIntent) for one in api.gateway.records()))
        assert api.gateway.stop() == 0
        heard = listen(connection)
    assert heard.fields[1][":status"] == "503"
    assert heard.goaway is not None
    assert api.gateway.verify().stdout.endswith("verify: OK\n")
    assert [one.status for one in outcomes(api)] == ["aborted"]


def test_in_the_clear_both_sides_know_it_beforehand(
    api_with: Callable[..., Api], tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = BACKEND.with_name("http2_backend.py")
    with running_backend(tmp_path_factory.mktemp("clear"), is_tls=False, program=program) as backend:
        api = api_with(backend)
        url = f"http://127.0.0.1:{api.gateway.port}/v1/orders"
        for versions in ({"http1": False, "http2": True}, {"http1": True, "http2": False}):
            with httpx.Client(**versions) as client:
                assert client.get(url, headers={"Host": NAME}).json() == ORDERS
        assert [line[:3] for line in backend.heard()] == ["2 G", "1.1"]
