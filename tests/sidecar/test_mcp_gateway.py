"""MCP through the real `chaperone dev`: the SDK's server behind it, the SDK's client in front."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fix_http import NAME, Api, Backend, running_backend
from manifests import rule
from mcp import Client, ClientSession, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from recordings import every_byte

from chaperone_evidence import record
from chaperone_operator.kubeconfig import verifying

PROGRAM = Path(__file__).parents[1] / "support" / "mcp_backend.py"
RULES = [
    rule("session", "Allow", ["session"], ["mcp:*", "path:/mcp"]),
    rule("lists", "Allow", ["read"], ["mcp:*", "resource:docs://*"]),
    rule("search", "Allow", ["execute_code"], ["tool:search", "tool:poison"]),
    rule("never", "Deny", ["execute_code"], ["tool:drop"], message="Ask the owner of the data."),
]


@pytest.fixture(scope="module")
def mcp_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with running_backend(tmp_path_factory.mktemp("mcp"), program=PROGRAM) as found:
        yield found


def http(api: Api, **options: Any) -> httpx2.AsyncClient:
    """The SDK's way to the target; the name is the target's, the address that of the test."""

    async def named(request: httpx2.Request) -> None:
        request.headers["Host"] = NAME
        request.extensions["sni_hostname"] = NAME

    return httpx2.AsyncClient(
        **{"timeout": 20} | options, verify=verifying(cadata=api.ca_pem), event_hooks={"request": [named]}
    )


@asynccontextmanager
async def client(api: Api) -> AsyncIterator[Client]:
    """The SDK's client."""
    url = f"https://127.0.0.1:{api.gateway.port}/mcp"
    async with http(api) as sent, Client(streamable_http_client(url, http_client=sent)) as found:
        yield found


def call(api: Api, *messages: dict[str, Any]) -> tuple[int, Any]:
    body = json.dumps(messages if len(messages) > 1 else messages[0]).encode()
    return api.json(
        "POST", "/mcp", body, {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    )


async def test_tools_are_commands_and_lists_show_what_policy_allows(
    api_with: Callable[..., Api], mcp_backend: Backend
) -> None:
    api = api_with(
        mcp_backend, protocol="MCP", rules=RULES, recording={"results": "Full"}, credential={"path": "/mcp"},
        masks=[{"detectors": ["Email"], "method": "Redact"}],
    )  # fmt: skip
    async with client(api) as agent:
        listed = await agent.list_tools()
        assert sorted(tool.name for tool in listed.tools) == ["poison", "search"]
        answer = await agent.call_tool("search", {"text": "7"})
        assert "found 7" in str(answer.content)
        assert "example.com" not in str(answer)
        assert "example.com" not in str(await agent.read_resource("docs://intro"))
        with pytest.raises(MCPError) as caught:
            await agent.call_tool("drop", {"table": "orders"})
        assert "Ask the owner of the data." in str(caught.value)
        assert caught.value.error.data["rule"] == "never"
        assert not any(line.startswith("drop") for line in mcp_backend.heard())

        await agent.call_tool("poison", {})
        assert "search" not in [tool.name for tool in (await agent.list_tools()).tools]
        with pytest.raises(MCPError, match="has changed what it tells"):
            await agent.call_tool("search", {"text": "8"})
    assert "search 7" in mcp_backend.heard()
    assert "search 8" not in mcp_backend.heard()
    status, found = call(
        api, {"jsonrpc": "2.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "drop", "arguments": {}}},
    )  # fmt: skip
    assert status == 200
    assert [(one["id"], one["error"]["data"]["rule"]) for one in found] == [(1, "never"), (2, "never")]
    assert call(api, {"jsonrpc": "2.0", "id": 1, "method": "tools/forge"})[1]["error"]["data"]["rule"] == "uncovered"
    assert (
        api.json(
            "POST", "/other", b'{"jsonrpc":"2.0","method":"notifications/x"}', {"Content-Type": "application/json"}
        )[0]
        == 403
    )
    found = [one for one in api.gateway.records() if isinstance(one, record.CommandIntent) and one.kind == "tools/call"]
    assert ("execute_code", "tool:search") in [(one.effect, one.object) for one in found[0].accesses]
    assert b'"arguments"' in every_byte(api.gateway.evidence)


async def test_the_old_transport_hears_results_masked_and_refusals_where_it_listens(
    api_with: Callable[..., Api], mcp_backend: Backend
) -> None:
    api = api_with(
        mcp_backend, protocol="MCP", recording={"results": "Full"}, credential={"path": "/"},
        rules=[
            rule("session", "Allow", ["session"], ["mcp:*", "path:/sse", "path:/messages/"]),
            rule("lists", "Allow", ["read"], ["mcp:*"]),
            rule("look", "Allow", ["execute_code"], ["tool:look"]),
            rule("never", "Deny", ["execute_code"], ["tool:drop"], message="Ask the owner of the data."),
        ],
        masks=[{"detectors": ["Email"], "method": "Redact"}],
    )  # fmt: skip
    before = mcp_backend.heard()
    url = f"https://127.0.0.1:{api.gateway.port}/sse"
    factory = lambda headers=None, timeout=None, auth=None: http(api, headers=headers, timeout=timeout, auth=auth)  # noqa: E731
    async with (
        sse_client(url, httpx_client_factory=factory) as (reader, writer),
        ClientSession(reader, writer, read_timeout_seconds=20) as agent,
    ):
        await agent.initialize()
        assert [tool.name for tool in (await agent.list_tools()).tools] == ["look"]
        assert "[Email]" in str(await agent.call_tool("look", {"text": "old"}))
        with pytest.raises(MCPError, match=r"Ask the owner of the data\.") as caught:
            await agent.call_tool("drop", {"table": "orders"})
        assert caught.value.error.data["rule"] == "never"
        assert "found more" in str(await agent.call_tool("look", {"text": "more"}))  # the stream is still in step
    assert mcp_backend.heard()[len(before) :] == ["look old", "look more"]
    kept = every_byte(api.gateway.evidence)
    assert b"example.com" not in kept and b"Ask the owner of the data." in kept
