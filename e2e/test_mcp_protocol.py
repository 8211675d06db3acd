"""MCP in a real pod: what the SDK's client sees of the SDK's server, what people decide, what an auditor finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcpserver import MCP, SPACE, TARGET, heard, make_mcp
from stage import Kubectl, Object, Pod, Team, chaperone, until
from voting import LEADS, Held, may_vote, pending, person
from webapi import Api, make_trouble

from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

RULES: tuple[Object, ...] = (
    {"name": "connect", "action": "Allow", "match": {"effects": ["session"], "objects": ["mcp:*", "path:/mcp"]}},
    {"name": "lists", "action": "Allow", "match": {"effects": ["read"], "objects": ["mcp:*"]}},
    {"name": "search", "action": "Allow",
     "match": {"effects": ["execute_code"], "objects": ["tool:search", "tool:poison"]}},
    {"name": "close", "action": "RequireApproval", "match": {"effects": ["execute_code"],
     "objects": ["tool:close_ticket"]}, "approval": {"groups": [LEADS], "wait": "60s", "validFor": "2m"}},
    {"name": "never", "action": "Deny", "match": {"effects": ["execute_code"], "objects": ["tool:drop"]},
     "message": "Ask the support team."},
)  # fmt: skip
MASKS = [{"detectors": ["Email"], "method": "Redact"}]
PROGRAM = """
import asyncio, json, sys
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

async def main():
    async with Client(streamable_http_client(sys.argv[1])) as agent:
        for tool, arguments in json.loads(sys.argv[2]):
            try:
                if tool:
                    said = [one.text for one in (await agent.call_tool(tool, arguments)).content]
                else:
                    said = sorted(one.name for one in (await agent.list_tools()).tools)
            except MCPError as error:
                said = {"code": error.error.code, "message": error.error.message, **(error.error.data or {})}
            print(json.dumps(said))

asyncio.run(main())
"""
LIST: tuple[str, Object] = ("", {})


@pytest.fixture(scope="module")
def server(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Api]:
    """The server; the agents' image has all that it needs."""
    yield make_mcp(kubectl, agent_image, chaperone_installed.namespace)
    kubectl("delete", "namespace", SPACE, "--wait=false")


@pytest.fixture(scope="module")
def agent(team: Team, server: Api, trouble: tuple[str, str]) -> Pod:
    """An agent that may search, and has to ask before it closes a ticket."""
    team.identity(evidence={"results": "Full"})
    team.policy(*RULES, targets=(TARGET, f"{TARGET}-down", f"{TARGET}-forged"), masks=MASKS)
    may_vote(team)
    return team.pod()


@pytest.fixture(scope="module")
def trouble(kubectl: Kubectl, chaperone_installed: Installed, server: Api) -> tuple[str, str]:
    """Hosts of servers that cannot be reached."""
    return make_trouble(kubectl, chaperone_installed.namespace, "mcp", "MCP")


def use(agent: Pod, *calls: tuple[str, Object]) -> list[Any]:
    """What one session of the SDK's client hears, call by call."""
    done = agent.python(PROGRAM, f"https://{MCP}/mcp", json.dumps(calls))
    assert done.status == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_the_agent_sees_and_calls_the_tools_that_policy_lets_it(agent: Pod, server: Api):
    listed, found, denied = use(agent, LIST, ("search", {"text": "one"}), ("drop", {"table": "orders"}))
    assert listed == ["close_ticket", "poison", "search"]
    assert found == ["ticket one of [Email]"]
    assert denied["code"] == -32000
    assert denied["rule"] == "never"
    assert "Ask the support team." in denied["message"]
    assert heard(server) == ["search one"]


def test_a_call_waits_for_a_lead(kubectl: Kubectl, team: Team, agent: Pod, server: Api, tmp_path: Path):
    lead = person(kubectl, tmp_path, "lead-1", LEADS)
    for decide, reached in (("deny", False), ("approve", True)):
        held = Held(lambda: agent.python(PROGRAM, f"https://{MCP}/mcp", json.dumps([("close_ticket", {"number": 7})])))
        name = pending(kubectl, team)
        assert "close 7" not in heard(server)
        voted = chaperone(lead, decide, name, "-n", team.namespace, "--yes", "--reason", "the test says so")
        assert voted.status == 0, voted.err
        assert "close_ticket" in voted.out
        done = held.end()
        assert done.status == 0, done.err
        said = json.loads(done.out)
        assert (said == ["closed 7"]) if reached else said["rule"] == "close"
        assert ("close 7" in heard(server)) is reached


def test_the_auditor_lists_shows_and_replays_what_was_called_and_answered(
    agent: Pod, team: Team, kubectl: Kubectl, server: Api
):
    assert use(agent, ("search", {"text": "audited"})) == [["ticket audited of [Email]"]]

    found: dict[str, str] = {}

    def is_recorded() -> bool:
        for session in {one["spec"]["session"] for one in team.commands(kind="tools/call")}:
            replayed = chaperone(kubectl, "replay", session, "-n", team.namespace)
            if "ticket audited of [Email]" in replayed.out:
                found[session] = replayed.out
        return bool(found)

    until("the call is recorded", is_recorded)
    ((session, replayed),) = found.items()
    assert "POST /mcp" in replayed
    listed = kubectl("get", "sessions", session, f"--namespace={team.namespace}", "--no-headers").split()
    assert listed[1:4] == ["billing", TARGET, "MCP"]
    shown = chaperone(kubectl, "show", session, "-n", team.namespace)
    assert shown.status == 0, shown.err
    assert TARGET in shown.out
    everything = replayed + shown.out
    everything += kubectl("get", "sessions,commands", "-ojson", f"--namespace={team.namespace}")
    assert server.token not in everything and "ada.king" not in everything


def test_a_tool_that_the_server_describes_anew_is_neither_listed_nor_called(agent: Pod, server: Api):
    before, _, after, refused = use(agent, LIST, ("poison", {}), LIST, ("search", {"text": "changed"}))
    assert "search" in before
    assert "search" not in after
    assert refused["rule"] == "not-covered"
    assert "changed what it tells" in refused["message"]
    assert "search changed" not in heard(server)


def post(agent: Pod, host: str) -> str:
    """What a request that is no session's gets for an answer."""
    asked = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/list"})
    kinds = ("--header", "Content-Type: application/json", "--header", "Accept: application/json, text/event-stream")
    done = agent.run("curl", "--silent", "--show-error", *kinds, "--data", asked, f"https://{host}/mcp")
    assert done.status == 0, done.err
    return done.out


def test_what_is_wrong_with_the_server_is_told_as_its_protocol_tells_things(
    agent: Pod, trouble: tuple[str, str]
):  # fmt: skip
    for host, why in zip(trouble, ("cannot be reached", "certificate"), strict=True):
        told = json.loads(post(agent, host))
        assert told["id"] == 7
        assert why in told["error"]["message"], told


def test_a_limit_cuts_each_request_that_is_too_many(agent: Pod, team: Team):
    """Last: the minute is not waited for."""
    team.policy(*RULES, targets=(TARGET,), masks=MASKS, limits={"commandsPerMinute": 3})
    until("a request is one too many", lambda: "commandsPerMinute" in [post(agent, MCP) for _ in range(4)][-1])
    until("it is recorded", lambda: bool(team.commands(decision="Deny", rule="limit:commandsPerMinute")))
