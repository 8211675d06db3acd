"""Masking of streams: rows of COPY, cut wherever the wire cut them.

Bytes are carried over until a record is whole, so the same bytes give the same result however they were cut. Memory
is bounded: a record longer than a window is masked window by window. A window ends where a delimiter is, not inside
anything found, and is looked at a tail further than it reaches; where there is no delimiter for a tail's length, it
ends anywhere, and if anything is found in such a word, all the rest of it is dropped.

Sad path: in records longer than a window, a value of more than `TAIL_BYTES` / 2 whose first part alone is not
recognised may show its rest. COPY's escapes are not undone there; the detectors see through the frequent ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import ColumnClass

WINDOW_BYTES: Final = 128 * 1024
TAIL_BYTES: Final = 8 * 1024

_HARD: Final = (b"\t", b"\n", b"\r", b'"', b"\x00")
_SOFT: Final = tuple(bytes([sign]) for sign in b" ,;<>{}()'")
_DELIMITER: Final = re.compile(rb"[\t\n\r\"\x00 ,;<>{}()']")
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_TO_ESCAPE: Final = re.compile(rb"[\\\b\f\n\r\t\v]")
_ESCAPES: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_LETTERS: Final = {value: b"\\" + letter for letter, value in _ESCAPES.items()} | {b"\\": b"\\\\"}


class Carry:
    """Masks one stream of records that end with a newline."""

    def __init__(
        self,
        masker: Masker,
        classes: Sequence[ColumnClass | None] = (),
        *,
        is_csv: bool = False,
        window_bytes: int = WINDOW_BYTES,
        tail_bytes: int = TAIL_BYTES,
    ) -> None:
        """A stream of COPY's text format with its usual delimiter, or of CSV with the usual quotes.

        Args:
            masker: the masks.
            classes: of the columns, in order; for the text format alone.
            is_csv: newlines between quotes do not end a record, and values are found in the line as it stands, where
                NULL cannot be said: Null redacts.
            window_bytes: how much of a record is masked at once.
            tail_bytes: how much further a window looks.

        Raises:
            ConfigError: columns of CSV that would have to be masked as a whole.
        """
        self._classes = tuple(classes) if any(classes) else ()
        if is_csv and self._classes:
            raise ConfigError("Classified columns cannot be masked in CSV; use COPY's text format.")
        self._masker = masker
        self._is_csv = is_csv
        self._window = window_bytes
        self._limit = window_bytes + tail_bytes
        self._reach = tail_bytes // 2
        self._buffer = b""
        self._searched = 0
        self._is_quoted = False
        self._is_long = False
        self._is_dropping = False

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take the next bytes; give what of the stream is decided."""
        data = self._buffer + data
        if not (self._is_csv or self._is_long or self._classes):
            last = data.rfind(b"\n", self._searched) + 1
            is_short = len(data) - last <= self._limit
            if last and is_short and not self._masker.may_hit(memoryview(data)[:last]):
                self._buffer, self._searched = data[last:], len(data) - last
                return data[:last]
        out: list[bytes] = []
        start, search = 0, self._searched
        while True:
            end = self._record_end(data, search)
            stop = len(data) if end < 0 else end
            while stop - start > self._limit:
                start += self._take(data[start : start + self._limit], out)
            if end < 0:
                break
            out.append(self._finish(data[start:end]))
            start = search = end
        self._buffer, self._searched = data[start:], len(data) - start
        return b"".join(out)

    def finish(self) -> bytes:
        """The stream has ended: give what was carried over."""
        rest, self._buffer, self._searched = self._buffer, b"", 0
        return self._finish(rest) if rest else b""

    def _record_end(self, data: bytes, search: int) -> int:
        """Where the record ends that is open at `search`, or -1; quotes are counted once."""
        while True:
            newline = data.find(b"\n", search)
            if not self._is_csv:
                return newline + 1 if newline >= 0 else -1
            stop = len(data) if newline < 0 else newline
            self._is_quoted ^= data.count(b'"', search, stop) % 2 == 1
            if newline < 0:
                return -1
            if not self._is_quoted:
                return newline + 1
            search = newline + 1

    def _finish(self, record: bytes) -> bytes:
        """Mask a record, or what is left of a long one."""
        if self._is_dropping:
            found = _DELIMITER.search(record)
            record = record[found.start() :] if found else b""
        is_long = self._is_long
        self._is_long = self._is_dropping = False
        if is_long or self._is_csv:
            return self._masker.mask_text(record)
        line = record.removesuffix(b"\n")
        return self._fields(line) + record[len(line) :]

    def _fields(self, line: bytes) -> bytes:
        """A record of the text format: its fields without COPY's escapes, masked as values."""
        if not self._classes and not self._masker.may_hit(line):
            return line
        fields = line.split(b"\t")
        classes = self._classes if len(self._classes) == len(fields) else ()
        if self._classes and not classes and line != b"\\.":
            # Not the record we were told of: every field may be the classified one.
            classes = (next(known for known in self._classes if known),) * len(fields)
        cells = [None if field == b"\\N" else unescape(field) for field in fields]
        masked = self._masker.mask_row(cells, classes or None)
        return b"\t".join(
            field if new is cell else b"\\N" if new is None else escape(new)
            for field, cell, new in zip(fields, cells, masked, strict=True)
        )

    def _take(self, window: bytes, out: list[bytes]) -> int:
        """Mask the first part of a record that is longer than a window; say how long it is."""
        self._is_long = True
        if self._is_dropping:
            found = _DELIMITER.search(window)
            self._is_dropping = found is None
            return found.start() if found else len(window)
        border = window[self._window : self._window + self._reach]
        cut = self._window + 1 + max((border.rfind(sign) for sign in _HARD), default=-1)
        if cut == self._window:
            cut = self._window + 1 + max(border.rfind(sign) for sign in _SOFT)
        if cut == self._window:
            begin = 1 + max(window.rfind(sign, 0, self._window) for sign in (*_HARD, *_SOFT))
            word = window[begin:]
            if self._masker.mask_text(word) != word:
                out.append(self._masker.mask_text(window))
                self._is_dropping = True
                return len(window)
        for span in self._masker.scan(window):
            if span.start < cut < span.end:
                cut = span.end if span.end < len(window) else span.start
                break
        if cut == 0:
            out.append(self._masker.mask_text(window))
            self._is_dropping = True
            return len(window)
        out.append(self._masker.mask_text(window[:cut]))
        return cut


def unescape(field: bytes) -> bytes:
    """Undo the escapes that COPY TO writes; the same object comes back when there are none."""
    if b"\\" not in field:
        return field
    return _ESCAPED.sub(lambda match: _ESCAPES.get(match.group(1), match.group(1)), field)


def escape(value: bytes) -> bytes:
    """Write a value as a field of COPY's text format."""
    return _TO_ESCAPE.sub(lambda match: _LETTERS[match.group()], value)
