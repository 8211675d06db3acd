"""The words of a statement's text, also of one that does not parse: what is a value, a name, a comment, a sign.

This is the server's lexer (scan.l) with `standard_conforming_strings` on, made cautious: what is not closed reaches to
the end, and whatever hangs on a number belongs to it. It never fails, on any bytes, and takes linear time; the tokens
of a text join to the text.

Spec: PostgreSQL 18, 4.1 "Lexical Structure".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

STRINGS: Final = frozenset({"plain", "escape", "unicode", "bits", "hex", "dollar"})
COMMENTS: Final = frozenset({"line", "block"})

MAX_DIGITS: Final = 400  # of a number that is written out in full; no detector looks for more than 34

_TOKEN: Final = re.compile(
    rb"""(?P<space>\s++)
    | (?P<line>--[^\r\n]*+) | (?P<block>/\*)
    | (?P<escape>[eE]') | (?P<unicode>[uU]&') | (?P<bits>[bB]') | (?P<hex>[xX]') | (?P<plain>[nN]?')
    | (?P<quoted>(?:[uU]&)?"[^"]*+(?:""[^"]*+)*+(?:"|\Z))
    | (?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?\$)
    | (?P<parameter>\$[0-9]{1,5}(?![A-Za-z0-9_$\x80-\xff]))
    | (?P<number>\.?[0-9](?:[eE][-+][0-9]|[A-Za-z0-9_.\x80-\xff])*+)
    | (?P<word>[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)
    | (?P<sign>[-~!@#^&|`?+*/%<>=:;,.()\[\]])
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_TO_QUOTE: Final = re.compile(rb"[^']*+(?:''[^']*+)*+(?:'|\Z)")
_TO_QUOTE_WITH_ESCAPES: Final = re.compile(rb"[^'\\]*+(?:(?:\\.|'')[^'\\]*+)*+(?:'|\\?\Z)", re.DOTALL)
_COMMENT_SIGN: Final = re.compile(rb"/\*|\*/")
_UESCAPE: Final = re.compile(rb"\s*uescape\s*'([^'])'", re.IGNORECASE)
_ESCAPED: Final = re.compile(
    rb"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|''", re.DOTALL
)
_LETTERS: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_NUMBER: Final = re.compile(rb"(?:([0-9_]+)(?:\.([0-9_]*))?|\.([0-9][0-9_]*))(?:[eE]([-+]?[0-9]{1,9}))?")
_RADIX: Final = {b"0x": 16, b"0o": 8, b"0b": 2}


class Token(msgspec.Struct, frozen=True, gc=False):
    """A piece of a text.

    `kind` is `space`, one of `COMMENTS`, one of `STRINGS`, `quoted` (a name), `parameter`, `number`, `word`, `sign`, or
    `other`, which no statement has outside of strings. `place` counts the tokens before it.
    """

    kind: str
    start: int
    end: int
    value: bytes
    place: int


def tokens(text: bytes) -> Iterator[Token]:
    """All tokens of a text, in order. A string that goes on after a line end is several, all of the first's kind."""
    place = count = 0
    string, is_next_line = "", False  # the string before, and whether a line has ended since
    while (match := _TOKEN.match(text, place)) is not None:
        kind, end = match.lastgroup or "other", match.end()
        if kind == "plain" and string and is_next_line and text[place] == ord("'"):
            kind = string
        if kind == "dollar":
            close = text.find(match.group(), end)
            end = len(text) if close < 0 else close + end - place
        elif kind in STRINGS:
            body = (_TO_QUOTE_WITH_ESCAPES if kind == "escape" else _TO_QUOTE).match(text, end)
            end = body.end() if body is not None else len(text)
        elif kind == "block":
            end = _comment_end(text, end)
        yield Token(kind, place, end, text[place:end], count)
        count += 1
        if kind in STRINGS:
            string, is_next_line = kind, False
        elif kind == "space":
            is_next_line = is_next_line or b"\n" in match.group() or b"\r" in match.group()
        elif kind not in COMMENTS:
            string = ""
        place = end


def _comment_end(text: bytes, place: int) -> int:
    depth = 1
    for sign in _COMMENT_SIGN.finditer(text, place):
        depth += 1 if sign.group() == b"/*" else -1
        if depth == 0:
            return sign.end()
    return len(text)


def content(token: Token) -> bytes:
    """What stands between the quotes of a string or name, as it is written."""
    value = token.value
    if token.kind == "dollar":
        tag = value[: value.index(b"$", 1) + 1]
        return value[len(tag) :].removesuffix(tag)
    quote = b'"' if token.kind == "quoted" else b"'"
    start = value.index(quote) + 1
    end = len(value) - 1 if len(value) > start and value.endswith(quote) else len(value)
    return value[start:end]


def readings(token: Token, text: bytes) -> tuple[bytes, ...]:
    """What a string or quoted name may say; more than one where a setting decides how it is read."""
    written = content(token)
    if token.kind == "dollar":
        return (written,)
    if token.kind == "escape":
        return (_escaped(written),)
    if token.kind in ("bits", "hex"):
        return _of_bits(written, 2 if token.kind == "bits" else 16)
    if token.kind == "unicode" or (token.kind == "quoted" and token.value[:1] in b"uU"):
        found = _UESCAPE.match(text, token.end)
        return (_unicode(written, found.group(1) if found is not None else b"\\"), written)
    quote = b'"' if token.kind == "quoted" else b"'"
    plain = written.replace(quote * 2, quote)
    return (plain, _escaped(written)) if b"\\" in written else (plain,)


def digits(number: bytes) -> bytes | None:
    """The whole part of a number, in decimal digits; None for what is none, or has more than `MAX_DIGITS`."""
    if len(number) > MAX_DIGITS:
        return None
    radix = _RADIX.get(number[:2].lower())
    if radix is not None:
        try:
            return b"%d" % int(number[2:].replace(b"_", b""), radix)
        except ValueError:
            return None
    match = _NUMBER.fullmatch(number)
    if match is None:
        return None
    whole, fraction, bare, exponent = match.groups()
    whole = (whole or b"").replace(b"_", b"")
    fraction = (fraction or bare or b"").replace(b"_", b"")
    point = len(whole) + int(exponent or 0)
    if point > MAX_DIGITS:
        return None
    return (whole + fraction).ljust(point, b"0")[: max(point, 0)].lstrip(b"0")


def _escaped(written: bytes) -> bytes:
    return _joined(_ESCAPED.sub(_plain, written))


def _plain(match: re.Match[bytes]) -> bytes:
    hexadecimal, octal, short, long, letter = match.groups()
    if hexadecimal:
        return bytes((int(hexadecimal, 16),))
    if octal:
        return bytes((int(octal, 8) & 0xFF,))
    if short or long:
        return _character(int(short or long, 16))
    return _LETTERS.get(letter, letter) if letter else b"'"


def _character(code: int) -> bytes:
    return chr(code).encode("utf-8", "surrogatepass") if code <= 0x10FFFF else b"?"


def _unicode(written: bytes, sign: bytes) -> bytes:
    mark = re.escape(sign)
    pattern = rb"%b(?:([0-9A-Fa-f]{4})|\+([0-9A-Fa-f]{6})|(%b))|''|\"\"" % (mark, mark)

    def plain(match: re.Match[bytes]) -> bytes:
        short, long, itself = match.groups()
        if short or long:
            return _character(int(short or long, 16))
        return itself or match.group()[:1]

    return _joined(re.sub(pattern, plain, written))


def _joined(data: bytes) -> bytes:
    """Two surrogates are one character."""
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _of_bits(written: bytes, radix: int) -> tuple[bytes, ...]:
    try:
        number = int(written, radix)
    except ValueError:
        return (written,)
    size_bytes = (number.bit_length() + 7) // 8
    data = number.to_bytes(size_bytes, "big")
    return (data, b"%d" % number) if size_bytes <= MAX_DIGITS // 4 else (data,)
