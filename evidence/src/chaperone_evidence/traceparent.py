"""W3C Trace Context in what an agent sends: the comment of a statement (sqlcommenter), or the name of its application.

Agents choose these texts, so only what is valid to the letter is taken, and of a text that names two traces none is.
Spec: W3C Trace Context, 3.2 "Traceparent Header"; sqlcommenter, "Specification".
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_COMMENT_CHARS: Final = 4096  # sqlcommenter's pairs are a few hundred; a longer comment is prose

_HEADER: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_PAIR: Final = re.compile(r"([A-Za-z0-9_.%-]+)='([^',\\]*)'\Z")


class Trace(msgspec.Struct, frozen=True):
    """One position in a distributed trace, as hex digits."""

    trace_id: str
    parent_id: str
    is_sampled: bool
    header: str


def parse(header: str) -> Trace | None:
    """Read a `traceparent` of version 00; None when it is not valid."""
    match = _HEADER.match(header)
    if match is None or not match[1].strip("0") or not match[2].strip("0"):
        return None
    return Trace(match[1], match[2], bool(int(match[3], 16) & 1), header)


def of_statement(text: str) -> Trace | None:
    """The trace that the comment at the end or at the beginning of a statement names.

    A comment elsewhere is not looked for: to tell it from a quoted text takes the server's own lexer.
    """
    found = {trace for comment in _comments(text) if (trace := _of_pairs(comment)) is not None}
    return found.pop() if len(found) == 1 else None


def of_application(name: str) -> Trace | None:
    """The trace that an application's name is, or names as `traceparent='…'`."""
    return parse(name.strip()) or _of_pairs(name)


def _comments(text: str) -> list[str]:
    found = []
    end = text[-MAX_COMMENT_CHARS:].rstrip().rstrip(";").rstrip()
    if end.endswith("*/") and (begin := end.rfind("/*", 0, -2)) >= 0:
        found.append(end[begin + 2 : -2])
    start = text[:MAX_COMMENT_CHARS].lstrip()
    if start.startswith("/*") and (close := start.find("*/", 2)) >= 0:
        found.append(start[2:close])
    return [comment for comment in found if "/*" not in comment and "*/" not in comment]


def _of_pairs(text: str) -> Trace | None:
    """The trace in `key='value',…`; None unless every part is such a pair and one alone is a traceparent."""
    pairs = [_PAIR.match(part.strip()) for part in text.split(",")]
    named = [pair[2] for pair in pairs if pair is not None and pair[1] == "traceparent"]
    return parse(named[0]) if len(named) == 1 and None not in pairs else None
