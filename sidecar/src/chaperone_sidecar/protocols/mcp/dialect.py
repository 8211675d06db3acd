"""MCP as a dialect of HTTP: calls of tools are the commands, and lists show what policy would let pass.

Objects are `tool:`, `resource:` and `prompt:` with a name, `mcp:` with the method of what else there is, and `path:` of
the endpoint, of which every request is a `session` beside the rest. What a server says of its own tools (that one only
reads) is not believed: a tool is `execute_code`, and a rule has to name it.

A tool is pinned by what the server first told of it. Once it tells something else, its new description never reaches
the agent, and it is not called any more, until another configuration is in force or the gateway starts anew.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any, Final

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution, unknown
from chaperone_sidecar.decision import Action
from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.protocols.http import classify
from chaperone_sidecar.protocols.http.answers import Problem
from chaperone_sidecar.protocols.http.classify import Asked
from chaperone_sidecar.protocols.http.dialect import HTTP_1_1, Judge
from chaperone_sidecar.protocols.http.messages import values
from chaperone_sidecar.protocols.mcp import rpc
from chaperone_sidecar.protocols.mcp.streams import Streams

CALL: Final = "tools/call"
BATCH: Final = "batch"
REFUSED: Final = -32000  # of the range that JSON-RPC leaves to servers
MAX_TOOLS: Final = 2000  # that are pinned for one target; of more nobody could keep watch
_NAMED: Final = {
    CALL: ("tool", "name", Effect.EXECUTE_CODE),
    "resources/read": ("resource", "uri", Effect.READ),
    "resources/subscribe": ("resource", "uri", Effect.READ),
    "resources/unsubscribe": ("resource", "uri", Effect.READ),
    "prompts/get": ("prompt", "name", Effect.READ),
}
_READING: Final = frozenset(
    {"tools/list", "resources/list", "resources/templates/list", "prompts/list", "completion/complete"}
)
_SESSION: Final = frozenset({"initialize", "ping", "logging/setLevel", "server/discover", "subscriptions/listen"})
_ENCODED: Final = ("=?base64?", "?=")
_STREAMS: Final = {"GET": "mcp:stream", "DELETE": "mcp:end"}


class Pins:
    """What a target's server first told of each of its tools."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._changed: set[str] = set()

    def keeps(self, name: str, tool: rpc.Message) -> bool:
        """Whether a tool is as it was; the first time it is."""
        digest = hashlib.sha256(rpc.encode(_sorted(tool))).hexdigest()
        if name not in self._digests and len(self._digests) >= MAX_TOOLS:
            return False
        if self._digests.setdefault(name, digest) != digest:
            self._changed.add(name)
        return name not in self._changed

    def is_changed(self, name: str) -> bool:
        """Whether the server has told two things of a tool."""
        return name in self._changed


class Mcp:
    """See the module, and `http.dialect.Dialect`.

    Args:
        pins: of the target.
        streams: of the target.
    """

    reads_answers = True
    alpn: tuple[str, ...] = (HTTP_1_1,)

    def __init__(self, pins: Pins, streams: Streams) -> None:
        self._pins = pins
        self._streams = streams

    def classify(self, asked: Asked, body: bytes | None, secret: str) -> Command:
        """See `Dialect`."""
        paths = [Access(Effect.SESSION, f"path:{path}") for path in asked.target.readings]
        text = classify.text(asked, body, secret)
        kept = body or b""
        if len(classify.methods(asked, body)) > 1:
            return Command(asked.method, text, unknown("the request names another method."), kept)
        if asked.method in _STREAMS and body == b"":
            accesses = (Access(Effect.SESSION, _STREAMS[asked.method]), *paths)
            return Command(asked.method, text, Facts(accesses, Resolution.SYNTACTIC))
        if asked.method != "POST" or body is None or asked.content_type != "application/json":
            return Command(asked.method, text, unknown("it is no message of MCP."), kept)
        try:
            messages, is_batch = rpc.decode(body)
        except rpc.Unread as error:
            return Command(asked.method, text, unknown(f"it is no message of MCP: {error}."), kept)
        found: dict[Access, None] = {}
        why = _contradiction(asked, messages)
        if why:
            found[Access(Effect.UNKNOWN)] = None
        for message in messages:
            access = _access(message)
            if access.effect is Effect.UNKNOWN:
                why = why or f"the method {str(message.get('method'))[:60]!r} is not known, or names nothing."
            found[access] = None
        found |= dict.fromkeys(paths)
        kind = BATCH if is_batch else str(messages[0].get("method", "response"))[:64]
        return Command(kind, text, Facts(tuple(found), Resolution.SYNTACTIC, why), kept)

    def forbidden(self, command: Command) -> str:
        """See `Dialect`."""
        for access in command.facts.accesses:
            kind, _, name = access.object.partition(":")
            if kind == "tool" and self._pins.is_changed(name):
                return f"the server has changed what it tells of tool {name[:100]!r} since this gateway first saw it."
        return ""

    def events(self, asked: Asked, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """See `Dialect`."""
        return self._streams.mixed(events, asked.target.path) if asked.method == "GET" else events

    def refusal(self, asked: Asked | None, body: bytes | None, problem: Problem) -> bytes:
        """See `Dialect`."""
        try:
            messages, is_batch = rpc.decode(body or b"")
        except rpc.Unread:
            return b""
        ids = [one["id"] for one in messages if "method" in one and isinstance(one.get("id"), str | int)]
        if not ids:
            return b""
        told = {"rule": problem.rule, "policy": problem.policy, "hint": problem.hint, "approval": problem.approval}
        message = " ".join(part for part in (problem.detail, problem.hint) if part)
        error = {"code": REFUSED, "message": message, "data": {name: said for name, said in told.items() if said}}
        answers = [{"jsonrpc": "2.0", "id": one, "error": error} for one in ids]
        if asked is not None:
            for answer in answers:  # the old transport knows no batches
                self._streams.tell(asked.target.raw, rpc.encode(answer))
        return rpc.encode(answers if is_batch else answers[0])

    async def shown(self, raw: bytes, judge: Judge) -> bytes:
        """See `Dialect`."""
        if not raw.strip():
            return raw
        try:
            messages, is_batch = rpc.decode(raw)
        except rpc.Unread as error:
            raise Unmaskable(f"The server's answer is no message of MCP: {error}.") from error
        has_changed = False
        for message in messages:
            result = message.get("result")
            if isinstance(result, dict) and "tools" in result:
                result["tools"] = [one async for one in self._tools(result["tools"], judge)]
                has_changed = True
        return rpc.encode(messages if is_batch else messages[0]) if has_changed else raw

    async def _tools(self, tools: Any, judge: Judge) -> AsyncIterator[rpc.Message]:  # noqa: ANN401
        for tool in tools if isinstance(tools, list) else ():
            name = tool.get("name") if isinstance(tool, dict) else None
            if not isinstance(name, str) or not self._pins.keeps(name, tool):
                continue
            facts = Facts((Access(Effect.EXECUTE_CODE, f"tool:{name}"),), Resolution.SYNTACTIC)
            decision = await judge(Command(CALL, name.encode("utf-8", "replace"), facts))
            if decision.action is not Action.DENY:
                yield tool


def _contradiction(asked: Asked, messages: list[rpc.Message]) -> str:
    """Whether fields name another method or object than the body: a server may go by either."""
    for field, key in (("mcp-method", "method"), ("mcp-name", "")):
        for raw in values(asked.fields, field):
            is_encoded = raw.startswith(_ENCODED[0]) and raw.endswith(_ENCODED[1])
            told = _decoded(raw[len(_ENCODED[0]) : -len(_ENCODED[1])]) if is_encoded else raw
            message = messages[0]
            params = message.get("params")
            names = [params.get("name"), params.get("uri")] if isinstance(params, dict) else []
            if len(messages) > 1 or told not in ([message.get(key)] if key else names):
                return f"the field {field} says something else than the body."
    return ""


def _access(message: rpc.Message) -> Access:
    method = message.get("method")
    if method is None:
        return Access(Effect.SESSION, "mcp:response")
    named = _NAMED.get(method)
    if named is not None:
        kind, key, effect = named
        params = message.get("params")
        name = params.get(key) if isinstance(params, dict) else None
        return Access(effect, f"{kind}:{name}") if isinstance(name, str) and name else Access(Effect.UNKNOWN)
    if method in _READING:
        return Access(Effect.READ, f"mcp:{method}")
    if method in _SESSION or method.startswith("notifications/"):
        return Access(Effect.SESSION, f"mcp:{method}")
    return Access(Effect.UNKNOWN)


def _sorted(content: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(content, dict):
        return {key: _sorted(content[key]) for key in sorted(content)}
    return [_sorted(one) for one in content] if isinstance(content, list) else content


def _decoded(encoded: str) -> str:
    try:
        return b64decode(encoded, validate=True).decode()
    except ValueError:
        return ""
