"""Patterns of a policy's own: whether gateways can look for them, in linear time.

The gateway compiles them with the same library under the same bounds (`chaperone_sidecar.masking.engine.custom`), so
what passes here cannot fail there; a test gives both the same table.
"""

from __future__ import annotations

import re
from typing import Final

import re2

from chaperone_operator.compile.vocabulary import DETECTORS

MAX_PATTERN: Final = 1000  # characters
MAX_PROGRAM: Final = 2000  # instructions; nested repeats compile to many, and each state of the automaton holds them
MAX_MEMORY_BYTES: Final = 2 << 20  # program and states of one expression; the gateway's whole budget is 64 MiB

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")
_CLASS_OR_ESCAPE: Final = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\\[^Az]", re.DOTALL)
_ANCHOR: Final = re.compile(r"[\^$]|\\[Az]")


class BadExpression(Exception):
    """A name or an expression that is refused; the text says why."""


def check_name(name: str) -> None:
    """Refuse what cannot stand where a value stood.

    Raises:
        BadExpression: the name of a detector, or other characters than can be shown.
    """
    if not _NAME.fullmatch(name):
        raise BadExpression("a name has 1 to 48 letters, digits, '-' or '_' and begins with a letter")
    if name in DETECTORS:
        raise BadExpression("a detector has that name; choose another")


def check(expression: str) -> None:
    """Refuse what RE2 cannot find in linear time, or what would be found where nothing is.

    Raises:
        BadExpression: too long or too large, an anchor, not RE2, or it matches the empty text.
    """
    if len(expression) > MAX_PATTERN:
        raise BadExpression(f"it has more than {MAX_PATTERN} characters; shorten it")
    if _ANCHOR.search(_CLASS_OR_ESCAPE.sub("", expression)):
        raise BadExpression(
            "values are searched in batches and inside other values, so ^, $, \\A and \\z have no meaning; "
            "write \\b, or name the column instead"
        )
    try:
        encoded = expression.encode()
    except UnicodeEncodeError:
        raise BadExpression("it is no Unicode text") from None
    try:
        program = re2.compile(encoded, _options())
        re2.compile(b"(?:%s)" % encoded, _options())  # as filters have it: an open \Q would quote the bracket
    except re2.error as error:
        told = error.args[0] if error.args else ""
        reason = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
        raise BadExpression(
            f"RE2 refuses it ({reason}); look-around and back-references have no linear-time form"
        ) from None
    if program.programsize > MAX_PROGRAM:
        raise BadExpression("it compiles to a program that is too large; bound its repeats")
    if program.search(b"") is not None:
        raise BadExpression("it matches the empty text, so everywhere; make it say something")


def _options() -> re2.Options:
    made = re2.Options()
    made.encoding = re2.Options.Encoding.LATIN1
    made.max_mem = MAX_MEMORY_BYTES
    made.log_errors = False
    return made
