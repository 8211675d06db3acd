"""Masking of the server's texts: errors, notices, notifications, changed settings.

Detectors look at every text. Where columns are classified that is not enough: a message may quote a value that no
detector knows. There the parts that only serve to quote (detail, context, internal query) are dropped, and what a
message quotes is replaced, unless its SQLSTATE says that the message speaks of names and nothing else. A message that
a function of the database raised says what its author liked, under any SQLSTATE, so it goes as a whole; the server
names the routine.

Not covered: a notification's payload and texts without quotes of third-party extensions are seen by detectors alone.
"""

from __future__ import annotations

import re
from typing import Final

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.protocols.postgresql import messages as m

MAX_TEXT_BYTES: Final = 64 << 10  # of one field; masking is not for the event loop past that, and nobody reads it

HIDDEN: Final = b"[masked]"
RAISED: Final = b"A function of the database raised this; its text is masked, because columns of this target are."

_KEPT: Final = frozenset(b"SVCPFLR")  # severity, code, position, file, line, routine: never a value
_QUOTING: Final = frozenset(b"DWqp")  # detail, context, internal query and the position in it
_NUMBERS: Final = frozenset(b"PpL")
_RAISED_BY: Final = b"exec_stmt_raise"  # PL/pgSQL's RAISE

# SQLSTATE classes whose messages name objects, settings or processes, and no value of a row. What is not here may
# quote values: 22 data exceptions do nothing else, 23 is below, P0 is what functions raise, XX is anything.
_CLASSES_OF_NAMES: Final = {
    "08": "connections",
    "0A": "features that are not there: the name of the feature",
    "25": "states of the transaction",
    "26": "names of prepared statements",
    "28": "roles",
    "2B": "roles that others depend on",
    "34": "names of cursors",
    "3B": "names of savepoints",
    "3D": "names of databases",
    "3F": "names of schemas",
    "40": "states of the transaction; who waits for whom is in the detail",
    "42": "names, types and syntax of the text that the client wrote",
    "53": "resources",
    "54": "sizes and limits",
    "55": "states of objects",
    "57": "cancels and shutdowns",
}
# Exceptions both ways.
_CODES: Final = {
    "42804": True,  # datatype_mismatch: types and names of columns
    "42601": True,  # syntax_error: near a word of the client's own text (with an internal query it is not: see below)
    "54000": False,  # program_limit_exceeded: some extensions quote what was too long
    "23502": True,  # not_null_violation: names of column and relation; the row is in the detail
    "23503": True,  # foreign_key_violation: names; the key is in the detail
    "23505": True,  # unique_violation: name of the constraint; the key is in the detail
    "23514": True,  # check_violation: names; the row is in the detail
    "23P01": True,  # exclusion_violation: names; the key is in the detail
    "0A000": False,  # feature_not_supported: some texts quote what is not supported
}
_OPEN: Final = re.compile('["„“”«»]'.encode())
_QUOTES: Final = tuple(sign.encode() for sign in '"„“”«»')
_BYTES: Final = re.compile(rb"0x[0-9a-fA-F]{2}(?: 0x[0-9a-fA-F]{2})*")
# Settings that are free text; the server checks the others.
_FREE_SETTINGS: Final = frozenset({b"application_name", b"search_path"})


def mask_error(raw: bytes, masker: Masker) -> bytes:
    """An ErrorResponse or NoticeResponse, with masked texts.

    Raises:
        ProtocolError: side=upstream; a frame that is not well formed.
    """
    if masker.is_idle:
        return raw
    fields = _fields(raw)
    if masker.has_columns:
        fields = _without_values(fields)
    body = b"".join(
        bytes((key,)) + (text if key in _KEPT or key in _NUMBERS else _masked(text, masker)) + b"\x00"
        for key, text in fields
    )
    return m.frame(raw[0], body + b"\x00")


def mask_notification(raw: bytes, masker: Masker) -> bytes:
    """A NotificationResponse, with its channel and payload masked.

    Raises:
        ProtocolError: side=upstream; a frame that is not well formed.
    """
    if masker.is_idle:
        return raw
    texts = _strings(raw, 9, 2)
    return m.frame(raw[0], raw[5:9] + b"".join([_masked(text, masker) + b"\x00" for text in texts]))


def mask_parameter_status(raw: bytes, masker: Masker) -> bytes:
    """A ParameterStatus, with its value masked.

    Raises:
        ProtocolError: side=upstream; a frame that is not well formed.
    """
    if masker.is_idle:
        return raw
    name, value = _strings(raw, 5, 2)
    value = HIDDEN if masker.has_columns and name in _FREE_SETTINGS and value else _masked(value, masker)
    return m.frame(raw[0], name + b"\x00" + value + b"\x00")


def _without_values(fields: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    said = dict(fields)
    code = said.get(ord("C"), b"").decode("ascii", "replace")
    if said.get(ord("R")) == _RAISED_BY or code[:2] == "P0":
        shown = {ord("M"): RAISED}
    elif ord("q") not in said and ord("W") not in said and _CODES.get(code, code[:2] in _CLASSES_OF_NAMES):
        shown = {ord("M"): said.get(ord("M"), b""), ord("H"): said.get(ord("H"), b"")}
    else:
        shown = {ord("M"): _unquoted(said.get(ord("M"), b""))}
    return [
        (key, shown.get(key, text))
        for key, text in fields
        if key not in _QUOTING and (key != ord("H") or ord("H") in shown)
    ]


def _unquoted(text: bytes) -> bytes:
    """A message without what it quotes, from the first sign of quotation to the last: values may hold such signs."""
    text = _BYTES.sub(HIDDEN, text)
    first = _OPEN.search(text)
    if first is None:
        return text
    last = max(text.rfind(sign) + len(sign) for sign in _QUOTES if sign in text)
    if last <= first.end():
        last = len(text)
    return text[: first.start()] + b'"' + HIDDEN + b'"' + text[last:]


def _masked(text: bytes, masker: Masker) -> bytes:
    """A text without NUL, whatever stood in it."""
    return masker.mask_text(text[:MAX_TEXT_BYTES]).replace(b"\x00", b"")


def _fields(raw: bytes) -> list[tuple[int, bytes]]:
    if len(raw) < 6 or raw[-1] != 0:
        raise _malformed()
    out: list[tuple[int, bytes]] = []
    place, end = 5, len(raw) - 1
    while place < end:
        stop = raw.index(b"\x00", place)
        if stop == place or stop >= end:
            raise _malformed()
        out.append((raw[place], raw[place + 1 : stop]))
        place = stop + 1
    return out


def _strings(raw: bytes, start: int, count: int) -> list[bytes]:
    parts = raw[start:].split(b"\x00")
    if len(raw) < start or len(parts) != count + 1 or parts[-1]:
        raise _malformed()
    return parts[:count]


def _malformed() -> ProtocolError:
    return ProtocolError("The database sent a message that is not well formed.", side="upstream")
