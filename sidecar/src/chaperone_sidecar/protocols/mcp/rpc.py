"""Messages of JSON-RPC 2.0, read strictly: a key that stands twice is no message.

Nor is one whose keys are written otherwise: parsers that take capitals for small letters, as Go's does, would find a
second method or name in it.
"""

from __future__ import annotations

import json
from typing import Any, Final

MAX_BATCH: Final = 100
_KEYS: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_PARTS: Final = {"params": frozenset({"name", "uri", "arguments"}), "result": frozenset({"tools"})}
type Message = dict[str, Any]


class Unread(ValueError):
    """It is no message of JSON-RPC; the text says why."""


def decode(raw: bytes) -> tuple[list[Message], bool]:
    """The messages of a body, and whether they are a batch.

    Raises:
        Unread: there are none.
    """
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Unread("the body is no JSON, or has a key twice") from None
    is_batch = isinstance(content, list)
    messages = content if is_batch else [content]
    if not messages or len(messages) > MAX_BATCH:
        raise Unread(f"a batch has 1 to {MAX_BATCH} messages")
    for one in messages:
        if not isinstance(one, dict) or one.get("jsonrpc") != "2.0":
            raise Unread("a message says that it is JSON-RPC 2.0")
        if not _is_plain(one, _KEYS) or not all(_is_plain(one.get(key), known) for key, known in _PARTS.items()):
            raise Unread("a key is written in another way than JSON-RPC's")
        if "method" in one and not isinstance(one["method"], str):
            raise Unread("a method is a text")
        if "method" not in one and ("result" in one) == ("error" in one):
            raise Unread("a message is a request, or has either a result or an error")
    return messages, is_batch


def encode(content: Any) -> bytes:  # noqa: ANN401 - any JSON
    """As it goes on the wire."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _is_plain(content: Any, known: frozenset[str]) -> bool:  # noqa: ANN401 - any JSON
    return not isinstance(content, dict) or all(key in known or key.casefold() not in known for key in content)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unread
    return found
