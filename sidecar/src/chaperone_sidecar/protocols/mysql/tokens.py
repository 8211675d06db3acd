r"""The tokenizer: a text as MySQL's own lexer reads it, in the sql_mode that the gateway pins.

Pinned are: no ANSI_QUOTES (so "…" is a string), no NO_BACKSLASH_ESCAPES (so \ escapes in strings), no IGNORE_SPACE,
and UTF-8. What one server reads otherwise than another is `Unreadable`: comments that are code (`/*!`, `/*M!`), hints
(`/*+`), comments inside comments, character set introducers, bytes that are no UTF-8, control characters.

Spec: MySQL 8.4, 11.1 "Literal Values", 11.2 "Schema Object Names", 11.7 "Comments".
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import msgspec

MAX_TEXT_BYTES: Final = 256 << 10  # a longer text took more than a second to be parsed
MAX_TOKENS: Final = 20_000
MAX_DEPTH: Final = 40  # of parentheses; the parser recurses

_HARMLESS_INTRODUCERS: Final = frozenset({"_utf8mb4", "_binary"})


class Unreadable(Exception):
    """The text may mean different things; the text of this error is one sentence for the refusal."""


class Kind(Enum):
    """What a token is."""

    WORD = 1  # a keyword or a name without quotes
    QUOTED = 2  # a name in backticks
    STRING = 3
    NUMBER = 4
    SIGN = 5  # one character of an operator or of punctuation


class Token(msgspec.Struct, frozen=True, gc=False):
    """A token: `text` is a name without its quotes, a word or a sign as it stands, a string with its quotes."""

    kind: Kind
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """An unquoted word in capitals, "" for anything else."""
        return self.text.upper() if self.kind is Kind.WORD else ""

    @property
    def is_name(self) -> bool:
        """Whether it may name something."""
        return self.kind in (Kind.WORD, Kind.QUOTED)


_TOKEN: Final = re.compile(
    r"""
    (?P<space>[ \t\r\n\v\f]+)
  | (?P<code>/\*(?:!|M!|\+))
  | (?P<comment>/\*.*?\*/|\#[^\n]*|--(?=[ \t\r\n\v\f]|\Z)[^\n]*)
  | (?P<number>0x[0-9A-Fa-f]+(?![0-9A-Za-z_$])|0b[01]+(?![0-9A-Za-z_$])
      |(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![0-9A-Za-z_$]))
  | (?P<bits>[xXbB]'[0-9A-Fa-f]*')
  | (?P<national>[nN]')
  | (?P<word>[A-Za-z_$][A-Za-z0-9_$]*)
  | (?P<quoted>`(?:[^`]|``)+`)
  | (?P<string>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
  | (?P<sign>[-+*/%=<>!~^&|?:;,.()@{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def decode(text: bytes) -> str:
    """A statement's text.

    Raises:
        Unreadable: too long, or not what may be pinned down.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise Unreadable(f"the text is longer than {MAX_TEXT_BYTES >> 10} KiB; send it in parts.")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("the text is not UTF-8.") from None
    if "\0" in decoded:
        raise Unreadable("the text holds a NUL.")
    return decoded


def tokenize(text: str) -> list[Token]:
    """All tokens of a text, comments left out.

    Raises:
        Unreadable: see the module's docstring.
    """
    found: list[Token] = []
    place, depth = 0, 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Unreadable(f"its character {place + 1} begins nothing that the gateway can read.")
        kind, start, place = match.lastgroup, place, match.end()
        if kind == "space":
            continue
        if kind == "comment":
            _check_comment(match.group())
            continue
        if kind == "code":
            raise Unreadable("a comment that is code (/*! */, /*M! */) or a hint (/*+ */) is not passed on.")
        if kind == "national":
            raise Unreadable("a string with N before it is not passed on; leave the N out.")
        if kind == "sign":
            depth += {"(": 1, ")": -1}.get(match.group(), 0)
        if len(found) >= MAX_TOKENS or depth > MAX_DEPTH:
            raise Unreadable("the text is too long or nested too deeply; send simpler statements.")
        found.append(_token(match, start, place))
        _check_pair(found)
    return found


def statements(tokens: list[Token]) -> list[list[Token]]:
    """The tokens of each statement of a text; empty ones are left out."""
    found: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind is Kind.SIGN and token.text == ";":
            found.append([])
        else:
            found[-1].append(token)
    return [one for one in found if one]


def _token(match: re.Match[str], start: int, end: int) -> Token:
    text = match.group()
    match match.lastgroup:
        case "word":
            return Token(Kind.WORD, text, start, end)
        case "quoted":
            return Token(Kind.QUOTED, text[1:-1].replace("``", "`"), start, end)
        case "string":
            return Token(Kind.STRING, text, start, end)
        case "sign":
            return Token(Kind.SIGN, text, start, end)
    return Token(Kind.NUMBER, text, start, end)


def _check_comment(comment: str) -> None:
    if comment.startswith("/*") and "/*" in comment[2:]:
        raise Unreadable("a comment inside a comment is not passed on.")
    if _CONTROL.search(comment):
        raise Unreadable("a comment holds a control character.")


def _check_pair(found: list[Token]) -> None:
    """Refuse what depends on the token before: introducers, and names that begin with a digit behind a dot."""
    if len(found) < 2:
        return
    before, last = found[-2:]
    if before.end != last.start and last.kind is not Kind.STRING:
        return
    is_introducer = (
        before.kind is Kind.WORD and before.text.startswith("_") and before.text.lower() not in _HARMLESS_INTRODUCERS
    )
    if last.kind in (Kind.STRING, Kind.NUMBER) and is_introducer:
        raise Unreadable(f"the character set introducer {before.text} is not passed on.")
    if last.kind is Kind.NUMBER and before.is_name and before.end == last.start:
        raise Unreadable("a name that begins with a digit must stand between backticks.")
