"""HTTP in a real pod: what curl, WebSocket and Python's clients see, what people decide, what an auditor finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from liveapi import LIVE, make_live
from liveapi import SPACE as LIVE_SPACE
from liveapi import TARGET as LIVE_TARGET
from stage import Kubectl, Object, Pod, Ran, Team, chaperone, replayed, until
from voting import LEADS, Held, may_vote, pending, person
from webapi import API, SPACE, TARGET, Api, make_api

from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

RULES: tuple[Object, ...] = (
    {"name": "look", "action": "Allow", "match": {"effects": ["read"], "objects": ["path:/v1/orders*"]}},
    {"name": "refunds", "action": "RequireApproval", "match": {"effects": ["create"], "objects": ["path:/v1/refunds*"]},
     "approval": {"groups": [LEADS], "wait": "60s", "validFor": "2m"}},
    {"name": "follow", "action": "Allow",
     "match": {"effects": ["read"], "objects": ["path:/v1/events", "path:/v1/go"]}},
    {"name": "talk", "action": "Allow", "match": {"effects": ["session", "create"], "objects": ["path:/v1/live"]}},
    {"name": "listen", "action": "Allow", "match": {"effects": ["session"], "objects": ["path:/v1/news"]}},
    {"name": "never", "action": "Deny", "match": {"effects": ["delete"], "objects": ["path:*"]},
     "message": "Ask the shop team."},
)  # fmt: skip
_EVENTS = """
import sys, httpx
with httpx.stream("GET", f"https://{sys.argv[1]}/v1/events", timeout=60) as answer:
    lines = answer.iter_lines()
    print(next(lines), next(lines), flush=True)
    assert next(lines) == ""
    # The next event is said once this is asked: whoever held the first back until the stream ends would wait for ever.
    print(httpx.get(f"https://{sys.argv[1]}/v1/go").json()["heard"])
    print(*lines)
"""
_SOCKET = """
import asyncio, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

async def main():
    for path in ("live", "news"):
        async with connect(f"wss://{sys.argv[1]}/v1/{path}") as opened:
            print(await opened.recv())
            await opened.send(f"order 7 for {path}")
            try:
                print(await opened.recv())
            except ConnectionClosed as error:
                print(error.rcvd.code, error.rcvd.reason)

asyncio.run(main())
"""
MASKS = [{"detectors": ["Email"], "method": "Redact"}]


@pytest.fixture(scope="module")
def api(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Api]:
    """The API; the agents' image has all that it needs."""
    yield make_api(kubectl, agent_image, chaperone_installed.namespace)
    kubectl("delete", "namespace", SPACE, "--wait=false")


@pytest.fixture(scope="module")
def live(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Api]:
    """An API beside it that goes on talking."""
    yield make_live(kubectl, agent_image, chaperone_installed.namespace)
    kubectl("delete", "namespace", LIVE_SPACE, "--wait=false")


@pytest.fixture(scope="module")
def agent(team: Team, api: Api, live: Api) -> Pod:
    """An agent that may look, and has to ask before it pays."""
    team.identity(evidence={"results": "Full"})
    team.policy(*RULES, targets=(TARGET, LIVE_TARGET), masks=MASKS)
    may_vote(team)
    return team.pod()


def curl(agent: Pod, path: str, *options: str) -> Ran:
    """As one types it: no credential, and the server's certificate checked."""
    return agent.run("curl", "--silent", "--show-error", "--max-time", "100", *options, f"https://{API}{path}")


def test_an_allowed_request_has_a_credential_that_the_agent_never_sees(agent: Pod, api: Api):
    done = curl(agent, "/v1/orders", "--include")
    assert done.status == 0, done.err
    assert '"known":true' in done.out
    assert "ada.king" not in done.out and "[Email]" in done.out
    assert api.token not in done.out
    program = f"import urllib.request; print(urllib.request.urlopen('https://{API}/v1/orders/7').status)"
    assert agent.python(program).out == "200\n"


def test_a_refusal_is_a_problem_that_names_the_rule(agent: Pod):
    done = curl(agent, "/v1/orders/7", "--request", "DELETE", "--write-out", "\n%{http_code} %{content_type}")
    body, _, told = done.out.rpartition("\n")
    assert told == "403 application/problem+json", done
    problem = json.loads(body)
    assert problem["rule"] == "never"
    assert "Ask the shop team." in problem["detail"]
    assert json.loads(curl(agent, "/v1/customers").out)["status"] == 403


def test_what_a_lead_approves_is_sent_once_and_what_one_denies_is_not(
    kubectl: Kubectl, team: Team, agent: Pod, tmp_path: Path
):
    lead = person(kubectl, tmp_path, "lead-1", LEADS)

    def refunds() -> list[str]:
        found: list[str] = json.loads(curl(agent, "/v1/orders").out)["refunds"]
        return found

    for decide, sent in (("deny", []), ("approve", ["cents=4900"])):
        held = Held(lambda: curl(agent, "/v1/refunds", "--data", "cents=4900"))
        name = pending(kubectl, team)
        assert refunds() == []
        voted = chaperone(lead, decide, name, "-n", team.namespace, "--yes", "--reason", "the test says so")
        assert voted.status == 0, voted.err
        assert "cents=4900" in voted.out
        assert ('"known":true' in held.end().out) is bool(sent)
        assert refunds() == sent


def test_the_auditor_lists_and_replays_what_was_asked_and_shown(agent: Pod, team: Team, kubectl: Kubectl, api: Api):
    assert curl(agent, "/v1/orders?mark=audited").status == 0

    def asked() -> list[Object]:
        return [one for one in team.commands(rule="look") if "mark=audited" in one["spec"].get("command", "")]

    until("the request is listed", lambda: bool(asked()))
    session = asked()[-1]["spec"]["session"]
    listed = kubectl("get", "sessions", session, f"--namespace={team.namespace}", "--no-headers").split()
    assert listed[1:4] == ["billing", TARGET, "HTTP"]
    everything = replayed(team, session, "mark=audited", "[Email]")
    everything += kubectl("get", "sessions,commands", "-ojson", f"--namespace={team.namespace}")
    assert api.token not in everything and "ada.king" not in everything


def test_events_come_as_they_are_said_and_masked(agent: Pod, live: Api):
    done = agent.python(_EVENTS, LIVE)
    assert done.status == 0, done.err
    first, _, last = done.out.splitlines()
    assert first == 'event: order data: {"known":true,"of":"[Email]"}'
    assert last.strip() == "data: the last one, for [Email]"
    assert live.token not in done.out


def test_messages_of_websocket_are_commands_masked_and_recorded(
    agent: Pod, team: Team, kubectl: Kubectl, live: Api
):  # fmt: skip
    done = agent.python(_SOCKET, LIVE)
    assert done.status == 0, done.err
    greeting, heard, other, refused = done.out.splitlines()
    assert greeting == other == "known: True, [Email]"
    assert heard == "heard order 7 for live"
    assert refused.startswith("1008 ") and "uncovered" in refused  # who may listen may not talk
    told = json.loads(agent.run("curl", "-sS", f"https://{LIVE}/v1/go").out)["heard"]
    assert told == ["order 7 for live"]

    def said() -> list[Object]:
        return [one["spec"] for one in team.commands(kind="websocket.text")]

    until("both messages are listed", lambda: len(said()) == 2)
    assert [(one["command"], one["decision"], one["rule"]) for one in said()] == [
        ("order 7 for live", "Allow", "talk"), ("order 7 for news", "Deny", "uncovered"),
    ]  # fmt: skip
    session = said()[0]["session"]
    everything = replayed(team, session, "known: True, [Email]", "heard order 7 for live")
    everything += kubectl("get", "sessions,commands", "-ojson", f"--namespace={team.namespace}")
    assert live.token not in everything and "ada.king" not in everything


def test_nothing_goes_around_the_gateway(agent: Pod, api: Api, free_pod: Pod):
    (address, *_) = api.server.addresses
    past = ("curl", "--silent", "--insecure", f"https://{address}:8443/v1/orders", "--max-time")
    assert "known" in free_pod.run(*past, "30").out  # it does answer
    assert "known" not in agent.run(*past, "4").out


def test_a_suspended_identity_is_told_so_and_comes_back(agent: Pod, team: Team):
    team.identity(suspended=True)
    until("it is told", lambda: 'AgentIdentity \\"billing\\" is suspended' in curl(agent, "/v1/orders").out)
    team.identity(evidence={"results": "Full"})
    until("it works again", lambda: '"known":true' in curl(agent, "/v1/orders").out)
