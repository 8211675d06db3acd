"""A target of HTTP/2 that goes: what it did nothing of is asked once more, what it may have done is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from fix_http import BACKEND, NAME, Agent, Api, Backend, running_backend
from raw_http2 import Frames, listen

from chaperone_evidence import record


@pytest.fixture(scope="module")
def http_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A target that does as the path says."""
    with running_backend(tmp_path_factory.mktemp("parting"), program=BACKEND.with_name("parting_backend.py")) as found:
        yield found


@pytest.fixture
def agent(api: Api) -> Iterator[Agent]:
    """A connection of the test's own, and so connections to the target of its own."""
    with Agent(api) as found:
        yield found


def outcomes(api: Api, path: str) -> list[str]:
    """Of the commands on a path: one each, however often the target was asked."""
    records = api.gateway.records()
    of = {
        one.command
        for one in records
        if isinstance(one, record.CommandIntent) and one.accesses[0].object == f"path:{path}"
    }
    return [one.status for one in records if isinstance(one, record.CommandOutcome) and one.command in of]


def asked(api: Api, path: str) -> int:
    return sum(line.endswith(f" {path}") for line in api.backend.heard())


@pytest.mark.parametrize("path", ["/v1/refuse", "/v1/leave"])
def test_what_the_target_did_nothing_of_is_asked_once_more(api: Api, agent: Agent, path: str) -> None:
    assert agent.ask("POST", path, content=b"one").text == "by 2"
    assert outcomes(api, path) == ["ok"]


def test_it_is_asked_once_more_and_not_for_ever(api: Api, agent: Agent) -> None:
    found = agent.ask("POST", "/v1/refuse-ever", content=b"one")
    assert (found.status_code, outcomes(api, "/v1/refuse-ever")) == (502, ["error"])
    assert "it did nothing of this one" in found.json()["detail"]
    assert asked(api, "/v1/refuse-ever") == 2


def test_a_body_that_is_sent_on_as_it_comes_is_not_asked_again(api: Api) -> None:
    path = "/v1/long/refuse"
    fields = [
        [":method", "POST"], [":scheme", "https"], [":authority", NAME], [":path", path],
        ["content-type", "text/plain"], ["content-length", "2000000"],
    ]  # fmt: skip
    frames = Frames()
    with api.connect(NAME, "h2") as connection:
        connection.sendall(frames.begin() + frames.head(1, fields, is_whole=False))
        heard = listen(connection, 1)
    assert heard.fields[1][":status"] == "502"
    assert b"it did nothing of this one" in heard.bodies[1]
    assert (asked(api, path), outcomes(api, path)) == (1, ["error"])


def test_a_connection_that_ends_between_two_requests_is_not_seen(api: Api, agent: Agent) -> None:
    path = "/v1/leave-later"
    assert agent.ask("POST", path, content=b"one").text == "by 1"
    assert agent.ask("POST", path, content=b"two").text == "by 3"
    assert outcomes(api, path) == ["ok", "ok"]


def test_an_answer_comes_to_its_end_though_the_target_goes_after_it(api: Api, agent: Agent) -> None:
    path = "/v1/leave-in-order"
    assert agent.ask("GET", path).text == "begun, ended"
    assert agent.ask("GET", path).text == "by 2"
    assert outcomes(api, path) == ["ok", "ok"]


def test_an_answer_that_is_broken_off_is_never_whole_and_never_asked_again(api: Api, agent: Agent) -> None:
    with suppress(httpx.RemoteProtocolError):  # where its beginning had been passed on
        found = agent.ask("GET", "/v1/break-off")
        assert (found.status_code, "broke" in found.json()["detail"]) == (502, True)
    assert (asked(api, "/v1/break-off"), outcomes(api, "/v1/break-off")) == (1, ["error"])


def test_what_may_have_been_done_is_not_asked_again(api: Api, agent: Agent) -> None:
    assert agent.ask("POST", "/v1/drop", content=b"one").status_code == 502
    assert (asked(api, "/v1/drop"), outcomes(api, "/v1/drop")) == (1, ["error"])
