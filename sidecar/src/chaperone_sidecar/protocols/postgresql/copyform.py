"""The forms of COPY TO: what its options say about the bytes, and how a record of text or CSV is taken apart.

Options come from the statement's tree, for the wire says only whether the format is binary. A form that makes values
hard to tell from signs is `Unmaskable`, and so is an option that is not known here.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from chaperone_sidecar.errors import Unmaskable

type Format = Literal["text", "csv", "binary"]
type Node = dict[str, Any]

# In text format a value that equals the null string is written like NULL, so a null string of the client's choice
# would be a question about masked values.
PLAIN_NULLS: Final = frozenset({b"\\N", b"", b"NULL", b"null", b"NA", b"-"})
_TRUE: Final = frozenset({"true", "on", "1", "match"})
_FALSE: Final = frozenset({"false", "off", "0"})
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_TO_ESCAPE: Final = re.compile(rb"[\\\b\f\n\r\t\v]")
_ESCAPES: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_LETTERS: Final = {value: b"\\" + letter for letter, value in _ESCAPES.items()} | {b"\\": b"\\\\"}
_HARMLESS: Final = frozenset({"force_quote", "freeze", "force_not_null", "force_null", "default"})


class CopyForm(msgspec.Struct, frozen=True):
    """How the records of one COPY TO are written."""

    format: Format = "text"
    delimiter: bytes = b"\t"
    null: bytes = b"\\N"
    has_header: bool = False
    quote: bytes = b'"'
    escape: bytes = b'"'


def copy_form(options: list[Node]) -> CopyForm:
    """The form that the options of a `CopyStmt` ask for.

    Raises:
        Unmaskable: an option that is not known, or a form whose fields cannot be told apart for sure.
    """
    said: dict[str, str] = {}
    for option in options:
        element = option.get("DefElem", {})
        said[str(element.get("defname", ""))] = _value(element.get("arg"))
    name = said.pop("format", "text")
    if name not in ("text", "csv", "binary"):
        raise Unmaskable(f"COPY's format {name} is not known to the gateway; use text, csv or binary.")
    for harmless in _HARMLESS:
        said.pop(harmless, None)
    is_csv = name == "csv"
    quote = said.pop("quote", '"').encode()
    form = CopyForm(
        "csv" if is_csv else "text" if name == "text" else "binary",
        said.pop("delimiter", "," if is_csv else "\t").encode(),
        said.pop("null", "" if is_csv else "\\N").encode(),
        _boolean(said.pop("header", "false")),
        quote,
        said.pop("escape", quote.decode()).encode(),
    )
    if said:
        raise Unmaskable(f"COPY's option {min(said)} is not known to the gateway, which masks the answer; omit it.")
    check(form)
    return form


def check(form: CopyForm) -> None:
    """Refuse forms whose fields cannot be told apart for sure.

    Raises:
        Unmaskable: with what to write instead.
    """
    if form.format == "binary":
        return
    signs = (form.delimiter, form.quote, form.escape) if form.format == "csv" else (form.delimiter,)
    for sign in signs:
        if len(sign) != 1 or sign.isalnum() or sign in (b"\n", b"\r", b"\x00", b".") or sign > b"\x7e":
            raise Unmaskable("COPY's delimiter, quote and escape have to be single signs, no letters or digits.")
    if form.delimiter in (form.quote, form.escape, b"\\") or (form.format == "text" and form.null not in PLAIN_NULLS):
        raise Unmaskable("COPY's delimiter or null string could be mistaken for a part of values; use the usual one.")
    if len(form.null) > 64 or any(sign in form.null for sign in (b"\n", b"\r", form.delimiter)):
        raise Unmaskable("COPY's null string cannot be told from values; use the usual one.")


def _value(argument: Node | None) -> str:
    if not argument:
        return "true"
    if "String" in argument:
        return str(argument["String"].get("sval", ""))
    if "Boolean" in argument:
        return "true" if argument["Boolean"].get("boolval") else "false"
    if "Integer" in argument:
        return str(argument["Integer"].get("ival", 0))
    return ""


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise Unmaskable("COPY's header is neither true nor false.")


class Lines:
    """Takes records of one form apart and puts them together again."""

    def __init__(self, form: CopyForm) -> None:
        """Compile what the form's signs need."""
        self._form = form
        self._is_csv = form.format == "csv"
        delimiter, quote, sign = re.escape(form.delimiter), re.escape(form.quote), re.escape(form.escape)
        self._text_field = re.compile(rb"((?:[^\\%b]|\\.)*)(%b|\Z)" % (delimiter, delimiter), re.DOTALL)
        inside = rb"[^%b]|%b%b" % (quote, quote, quote) if quote == sign else rb"[^%b%b]|%b." % (quote, sign, sign)
        self._csv_field = re.compile(
            rb"(%b(?:%b)*%b|[^%b%b]*)(%b|\Z)" % (quote, inside, quote, delimiter, quote, delimiter), re.DOTALL
        )
        self._escaped = re.compile(sign + rb"(.)", re.DOTALL)
        self._to_escape = re.compile(rb"[%b%b]" % (quote, sign))
        self._outside = re.compile(rb"[%b\n]" % quote)
        self._inside = re.compile(rb"%b" % quote if quote == sign else rb"%b|%b[^\n]?" % (quote, sign), re.DOTALL)

    def end(self, data: bytes, place: int, is_quoted: bool) -> tuple[int, int, bool]:
        """Look for the end of a record.

        Returns where the record ends (-1: not in `data`), from where to look on, and whether that is between quotes.
        """
        if not self._is_csv:
            newline = data.find(b"\n", place)
            return (newline + 1, newline + 1, False) if newline >= 0 else (-1, len(data), False)
        quote, is_plain = self._form.quote[0], self._form.quote == self._form.escape
        while True:
            found = (self._inside if is_quoted else self._outside).search(data, place)
            if found is None:
                return -1, len(data), is_quoted
            if is_quoted and not is_plain and found.end() == len(data) and data[found.start()] != quote:
                return -1, found.start(), True  # half an escape: the rest of it is still to come
            place = found.end()
            if data[found.start()] == quote:
                is_quoted = not is_quoted
            elif not is_quoted:
                return place, place, False

    def fields(self, line: bytes) -> list[bytes] | None:
        """The fields of a record as they stand; None if it is no such record."""
        delimiter = self._form.delimiter
        if self._is_csv:
            if self._form.quote not in line:
                return line.split(delimiter)
            pattern = self._csv_field
        elif b"\\" + delimiter not in line:
            return line.split(delimiter)
        else:
            pattern = self._text_field
        out: list[bytes] = []
        place = 0
        while True:
            found = pattern.match(line, place)
            if found is None:
                return None
            out.append(found.group(1))
            place = found.end()
            if not found.group(2):
                return out if place == len(line) else None

    def join(self, fields: list[bytes]) -> bytes:
        """A record of its fields."""
        return self._form.delimiter.join(fields)

    def value(self, field: bytes) -> bytes | None:
        """The value that a field stands for; None is NULL."""
        if field == self._form.null:
            return None
        if not self._is_csv:
            return unescape(field)
        if not field.startswith(self._form.quote):
            return field
        return self._escaped.sub(lambda match: match.group(1), field[1:-1])

    def field(self, value: bytes | None) -> bytes:
        """A masked value as a field.

        In CSV it is always between quotes: the server quotes what equals the null string or holds a delimiter, which
        would be a question about the value, of the client's choice.
        """
        form = self._form
        if value is None:
            return form.null
        if not self._is_csv:
            return escape(value).replace(form.delimiter, b"\\" + form.delimiter)
        return form.quote + self._to_escape.sub(lambda match: form.escape + match.group(), value) + form.quote


def unescape(field: bytes) -> bytes:
    """Undo the escapes that COPY TO writes; the same object comes back when there are none."""
    if b"\\" not in field:
        return field
    return _ESCAPED.sub(lambda match: _ESCAPES.get(match.group(1), match.group(1)), field)


def escape(value: bytes) -> bytes:
    """Write a value as a field of COPY's text format."""
    return _TO_ESCAPE.sub(lambda match: _LETTERS[match.group()], value)
