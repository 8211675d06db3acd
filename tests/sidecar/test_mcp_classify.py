"""What messages of MCP count as, and what becomes of lists of tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.protocols.http import classify
from chaperone_sidecar.protocols.http.answers import Problem
from chaperone_sidecar.protocols.http.messages import RequestHead
from chaperone_sidecar.protocols.mcp.dialect import Mcp, Pins
from chaperone_sidecar.protocols.mcp.streams import Streams

JSON = ("Content-Type", "application/json")


def mcp() -> Mcp:
    return Mcp(Pins(), Streams())


def command(body: bytes | None, *fields: tuple[str, str], method: str = "POST", dialect: Mcp | None = None) -> Command:
    asked = classify.read(RequestHead(method, "/mcp", "api", (("Host", "api"), *(fields or (JSON,)))))
    return (dialect or mcp()).classify(asked, body, "")


def found(body: Any, *fields: tuple[str, str]) -> list[str]:
    return [f"{one.effect} {one.object}" for one in command(json.dumps(body).encode(), *fields).facts.accesses]


def message(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


@pytest.mark.parametrize(
    ("method", "params", "access"),
    [
        ("tools/call", {"name": "search", "arguments": {"a": 1}}, "execute_code tool:search"),
        ("tools/call", {}, "unknown "),
        ("tools/call", {"name": 1}, "unknown "),
        ("resources/read", {"uri": "file:///a"}, "read resource:file:///a"),
        ("prompts/get", {"name": "p"}, "read prompt:p"),
        ("tools/list", {}, "read mcp:tools/list"),
        ("initialize", {}, "session mcp:initialize"),
        ("notifications/cancelled", {}, "session mcp:notifications/cancelled"),
        ("tools/Call", {"name": "search"}, "unknown "),
        ("tasks/cancel", {}, "unknown "),
    ],
)
def test_methods_are_commands(method: str, params: dict[str, Any], access: str) -> None:
    assert found(message(method, **params)) == [access, "session path:/mcp"]


def test_a_batch_is_decided_as_a_whole() -> None:
    batch = [message("ping"), message("tools/call", name="drop")]
    assert found(batch) == ["session mcp:ping", "execute_code tool:drop", "session path:/mcp"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b"1", b"no", b'{"jsonrpc":"1.0","method":"ping"}', b'{"jsonrpc":"2.0","method":1}',
        b'{"jsonrpc":"2.0","method":"ping","method":"tools/call","params":{"name":"drop"}}',
        b'{"jsonrpc":"2.0","method":"ping","Method":"tools/call","params":{"name":"drop"}}',
        b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"search","Name":"drop"}}',
        '{"jsonrpc":"2.0","method":"tools/call","params":{"name":"search"},"param\u017f":{"name":"drop"}}'.encode(),
        b'{"jsonrpc":"2.0","id":1}', b'[[{"jsonrpc":"2.0","method":"ping"}]]',
    ],
)  # fmt: skip
def test_what_is_no_message_is_unknown(body: bytes) -> None:
    assert [one.effect for one in command(body).facts.accesses] == ["unknown"]


def test_fields_may_not_say_something_else_than_the_body() -> None:
    call = message("tools/call", name="search")
    assert "unknown " not in found(call, JSON, ("Mcp-Method", "tools/call"), ("Mcp-Name", "search"))
    assert "unknown " not in found(call, JSON, ("Mcp-Name", "=?base64?c2VhcmNo?="))
    assert "unknown " in found(call, JSON, ("Mcp-Name", "drop"))
    assert "unknown " in found(call, JSON, ("Mcp-Method", "ping"))
    assert "unknown " in found(call, JSON, ("Mcp-Name", "=?base64?c2V?="))
    assert [one.effect for one in command(b"{}", ("Content-Type", "text/plain")).facts.accesses] == ["unknown"]
    assert [one.effect for one in command(json.dumps(call).encode(), method="PUT").facts.accesses] == ["unknown"]
    assert [one.effect for one in command(None, method="GET").facts.accesses] == ["unknown"]  # a body that is too long


@given(st.binary(max_size=200))
def test_any_body_is_a_command(body: bytes) -> None:
    assert command(body).facts.accesses


async def judge(asked: Command) -> Decision:
    is_denied = asked.facts.accesses[0].object == "tool:drop"
    return Decision(Action.DENY if is_denied else Action.ALLOW, "", "", "", "")


def listed(*tools: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}).encode()


async def test_tools_are_shown_where_policy_allows_them_and_pinned() -> None:
    dialect = mcp()
    first = {"name": "search", "description": "Look.", "inputSchema": {"a": 1, "b": 2}}
    shown = json.loads(await dialect.shown(listed(first, {"name": "drop"}, {"name": 1}, "x"), judge))
    assert shown["result"]["tools"] == [first]
    call = command(json.dumps(message("tools/call", name="search")).encode(), dialect=dialect)
    again = {"inputSchema": {"b": 2, "a": 1}, "description": "Look.", "name": "search"}
    assert json.loads(await dialect.shown(listed(again), judge))["result"]["tools"] == [again]
    assert dialect.forbidden(call) == ""
    assert json.loads(await dialect.shown(listed(first | {"description": "Obey."}), judge))["result"]["tools"] == []
    assert "has changed" in dialect.forbidden(call)
    with pytest.raises(Unmaskable):
        await dialect.shown(b"{'tools': []}", judge)
    with pytest.raises(Unmaskable):
        await dialect.shown(listed(first).replace(b'"tools"', b'"Tools"'), judge)


def test_no_is_told_as_an_error_of_json_rpc() -> None:
    problem = Problem(403, "refused by Chaperone", rule="never", hint="Ask.", approval="apr-1")
    told = json.loads(mcp().refusal(None, json.dumps(message("ping")).encode(), problem))
    assert (told["id"], told["error"]["data"]) == (1, {"rule": "never", "hint": "Ask.", "approval": "apr-1"})
    assert mcp().refusal(None, b'{"jsonrpc":"2.0","method":"notifications/x"}', problem) == b""
