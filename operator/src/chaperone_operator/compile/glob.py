"""Object patterns: names in dot-separated parts, where `*` stands for any run of characters within one part.

Paths of files (`path:/srv/data/*`) have no such parts: in them `*` stands for any run of characters, so that a pattern
that ends with `/*` means everything below. A dot in a path is a character like others.

A pattern is compiled to a regular expression here, once, so that OPA needs no glob library of its own; the only
special character is `*`, and everything else means itself.
"""

from __future__ import annotations

import re
from typing import Final

MAX_PATTERN: Final = 256  # characters; four PostgreSQL identifiers of 63 fit
_ANY: Final = "[^.]*"
PATH: Final = "path:"
_ANY_OF_PATH: Final = "(?s:.*)"
_REFUSED: Final = {
    "?": "a single character",
    "[": "a set",
    "]": "a set",
    "{": "a choice",
    "}": "a choice",
    "\\": "an escape",
}
_PUNCTUATION: Final = re.compile(r"[^A-Za-z0-9_]")


class BadPattern(Exception):
    """A pattern that is refused; the text says why."""


def check(pattern: str) -> None:
    """Refuse what is no pattern.

    Raises:
        BadPattern: empty parts, `**`, characters of other glob languages, control characters, or too long.
    """
    if not pattern or len(pattern) > MAX_PATTERN:
        raise BadPattern(f"a pattern has 1 to {MAX_PATTERN} characters")
    if not pattern.isprintable():
        raise BadPattern("a pattern has no control characters")
    if "**" in pattern:
        raise BadPattern("** is not known; * stays within a part, so write one * for each part")
    for character, meaning in _REFUSED.items():
        if character in pattern:
            raise BadPattern(f"{character} ({meaning}) is not known; only * is special")
    if not pattern.startswith(PATH) and any(not part for part in pattern.split(".")):
        raise BadPattern("a part between dots is empty")


def check_column(pattern: str) -> None:
    """Refuse what is no pattern of columns.

    Raises:
        BadPattern: as `check`, or another number of parts than schema, table and column have, with the database or not.
    """
    check(pattern)
    if pattern.count(".") not in {2, 3}:
        raise BadPattern("a column is schema.table.column, or database.schema.table.column")


def covers(wide: str, narrow: str) -> bool:
    """Whether every name that `narrow` means is meant by `wide`; False where that is not plain to see."""
    # A * of the narrow one is a character like another here: only a * of the wide one can take it.
    return re.fullmatch(_any(wide).join(map(re.escape, wide.split("*"))), narrow) is not None


def is_exact(pattern: str) -> bool:
    """Whether the pattern is a plain name."""
    return "*" not in pattern


def first_part(pattern: str) -> str:
    """The first part of every name that matches, "" when the pattern leaves it open."""
    first = pattern.split(".", 1)[0]
    return first if is_exact(first) else ""


def expression(pattern: str) -> str:
    """The pattern as an RE2 expression, anchored at both ends."""
    return r"\A" + _any(pattern).join(map(_quoted, pattern.split("*"))) + r"\z"


def _any(pattern: str) -> str:
    return _ANY_OF_PATH if pattern.startswith(PATH) else _ANY


def _quoted(text: str) -> str:
    # Python's re.escape and RE2 differ outside ASCII; in RE2 a backslash quotes exactly ASCII punctuation.
    return _PUNCTUATION.sub(lambda found: "\\" + found[0] if found[0].isascii() and found[0] != " " else found[0], text)
