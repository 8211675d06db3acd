"""What a GraphQL document would do: its operations with the fields at their roots (GraphQL October 2021, 2).

All operations of a document count, whichever of them runs: a client that wants less sends less. Names of operations are
the client's invention and say nothing; fields are the server's.
"""

from __future__ import annotations

import re
from typing import Final

MAX_TOKENS: Final = 20_000
_TOKEN: Final = re.compile(
    r'[\s,\ufeff]+|#[^\n\r]*|("""(?:[^"\\]|\\.|"(?!""))*"""|"(?:[^"\\\n\r]|\\.)*"|\.\.\.|[A-Za-z_]\w*|[!$&()=:@\[\]{}|]|-?[0-9][0-9.eE+-]*)',
    re.ASCII | re.DOTALL,
)
_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PAIRS: Final = {"(": ")", "[": "]", "{": "}"}


class Unread(ValueError):
    """The document is not understood; the text says why."""


def operations(document: str) -> list[tuple[str, str]]:
    """Pairs of an operation's type and a field at its root, without repetitions, in their order.

    Raises:
        Unread: it is no document, or what it asks for at its root stands in a fragment.
    """
    tokens = _tokens(document)
    found: dict[tuple[str, str], None] = {}
    at = 0
    while at < len(tokens):
        kind = tokens[at]
        if kind == "fragment":
            at = _skip(tokens, _brace(tokens, at))
            continue
        if kind not in ("{", "query", "mutation", "subscription"):
            raise Unread("it has something else than operations and fragments")
        start = at if kind == "{" else _brace(tokens, at)
        end = _skip(tokens, start)
        for field in _fields(tokens[start + 1 : end - 1]):
            found[("query" if kind == "{" else kind, field)] = None
        at = end
    if not found:
        raise Unread("it has no operation")
    return list(found)


def _fields(tokens: list[str]) -> list[str]:
    """Fields of a selection, by their own names, not their aliases."""
    found, at = [], 0
    while at < len(tokens):
        if _NAME.fullmatch(tokens[at]) is None:
            raise Unread("a root selection is no plain field; write fields there, not fragments")
        name = tokens[at]
        at += 1
        if at < len(tokens) and tokens[at] == ":":
            if at + 1 >= len(tokens) or _NAME.fullmatch(tokens[at + 1]) is None:
                raise Unread("an alias stands for nothing")
            name = tokens[at + 1]
            at += 2
        found.append(name)
        if at < len(tokens) and tokens[at] == "(":
            at = _skip(tokens, at)
        while at < len(tokens) and tokens[at] == "@":
            at += 2
            if at < len(tokens) and tokens[at] == "(":
                at = _skip(tokens, at)
        if at < len(tokens) and tokens[at] == "{":
            at = _skip(tokens, at)
    return found


def _brace(tokens: list[str], at: int) -> int:
    """Where the selection begins; variables and directives stand before it."""
    while at < len(tokens) and tokens[at] != "{":
        at = _skip(tokens, at) if tokens[at] in _PAIRS else at + 1
    if at == len(tokens):
        raise Unread("an operation selects nothing")
    return at


def _skip(tokens: list[str], at: int) -> int:
    """Behind the bracket that closes the one at `at`."""
    open_: list[str] = []
    while at < len(tokens):
        token = tokens[at]
        if token in _PAIRS:
            open_.append(_PAIRS[token])
        elif token in (")", "]", "}"):
            if open_.pop() != token:
                raise Unread("its brackets do not match")
            if not open_:
                return at + 1
        at += 1
    raise Unread("its brackets do not match")


def _tokens(document: str) -> list[str]:
    tokens, at = [], 0
    while at < len(document):
        found = _TOKEN.match(document, at)
        if found is None:
            raise Unread("it has characters that belong into no document")
        at = found.end()
        if found[1] is not None:
            tokens.append(found[1])
            if len(tokens) > MAX_TOKENS:
                raise Unread("it is too long")
    return tokens
