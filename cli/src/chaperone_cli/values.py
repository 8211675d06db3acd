"""Values of results as text: one line, nothing that a terminal obeys, and not wider than a column may be.

Drivers that ask for binary formats get the same numbers and times in other bytes; those of the commonest types of
PostgreSQL are read here (named by their OIDs), all others are shown as their bytes.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final

from chaperone_cli.say import printable
from chaperone_evidence import frames

MAX_WIDTH: Final = 48  # characters of a cell
CONCEALED: Final = b"[masked]"  # the gateway keeps it in place of a parameter, whatever the format of that
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_TEXTS: Final = (18, 19, 25, 114, 142, 705, 1042, 1043)  # char name text json xml unknown bpchar varchar


def cell(value: frames.Cell, type_name: str = "") -> str:
    """A value, not wider than a column may be."""
    text = shown(value, type_name)
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"


def shown(value: frames.Cell, type_name: str = "") -> str:
    """A value on one line."""
    if value is None:
        return "NULL"
    if isinstance(value, frames.Bytes):
        return printable(_read(value.raw, type_name))
    line = printable(value.replace("\n", "⏎").replace("\t", " "))
    return f'"{line}"' if line in ("", "NULL") else line


def _read(raw: bytes, type_name: str) -> str:
    reader = _READERS.get(type_name)
    try:
        if reader is not None:
            return reader(raw)
    except (struct.error, ValueError, OverflowError):
        pass  # not of its type: a server may send anything
    return "\\x" + raw[:MAX_WIDTH].hex()


def _number(form: str) -> Callable[[bytes], str]:
    return lambda raw: str(struct.unpack(form, raw)[0])


def _time(raw: bytes) -> str:
    (micros,) = struct.unpack(">q", raw)
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(sep=" ").removesuffix("+00:00")


def _date(raw: bytes) -> str:
    (days,) = struct.unpack(">i", raw)
    return (date(2000, 1, 1) + timedelta(days=days)).isoformat()


_READERS: Final[dict[str, Callable[[bytes], str]]] = {
    "16": lambda raw: {b"\0": "f", b"\1": "t"}.get(raw) or "\\x" + raw[:MAX_WIDTH].hex(),
    "20": _number(">q"), "21": _number(">h"), "23": _number(">i"), "26": _number(">I"),
    "700": _number(">f"), "701": _number(">d"),
    "1082": _date, "1114": _time, "1184": _time,
    "2950": lambda raw: str(uuid.UUID(bytes=raw)),
    "3802": lambda raw: raw[1:].decode(),
    **{str(oid): bytes.decode for oid in _TEXTS},
}  # fmt: skip


def parameters(raw: bytes) -> list[str]:
    """The bound parameters of a command of PostgreSQL, as Bind holds them; none where they are in another form."""
    try:
        (formats,) = struct.unpack_from(">H", raw)
        how = struct.unpack_from(f">{formats}H", raw, 2)
        place = 2 + 2 * formats
        (count,) = struct.unpack_from(">H", raw, place)
        place += 2
        found = []
        for index in range(count):
            (size,) = struct.unpack_from(">i", raw, place)
            place += 4
            is_text = not (how[index] if len(how) > 1 else how[0] if how else 0)
            value = raw[place : place + max(size, 0)]
            found.append(None if size < 0 else frames.cell(value, is_text=is_text or value == CONCEALED))
            place += max(size, 0)
    except (struct.error, IndexError):
        return []
    return [cell(value) for value in found] if place <= len(raw) else []
