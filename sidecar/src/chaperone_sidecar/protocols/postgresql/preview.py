"""What people see of a command before they approve it: its text and, one a line, its bound parameters."""

from __future__ import annotations

import struct
from typing import Final

from chaperone_sidecar.command import Command
from chaperone_sidecar.protocols.postgresql import messages
from chaperone_sidecar.protocols.postgresql.kind import TEXT_OIDS

_SIGNED: Final[dict[int, str]] = {21: ">h", 23: ">i", 20: ">q", 700: ">f", 701: ">d"}  # int2 int4 int8 float4 float8
_BY_LENGTH: Final = {2: ">h", 4: ">i", 8: ">q"}
_BOOL: Final = 16


def preview(command: Command) -> str:
    """The command as records may show it."""
    text = command.text if command.shown_text is None else command.shown_text
    params = command.params if command.shown_params is None else command.shown_params
    lines = [text.decode("utf-8", "replace")]
    lines += [f"-- ${place} = {value}" for place, value in enumerate(_values(params, command.param_types), 1)]
    return "\n".join(lines)


def _values(params: bytes, types: tuple[int, ...]) -> list[str]:
    found: list[str] = []

    def note(place: int, value: bytes, is_binary: bool) -> bytes:
        found.extend("NULL" for _ in range(place - len(found)))
        oid = types[place] if place < len(types) else 0
        found.append(_binary(value, oid) if is_binary else _quoted(value))
        return value

    if params:
        messages.map_params(params, note)
        found.extend("NULL" for _ in range(messages.count_params(params) - len(found)))
    return found


def _quoted(value: bytes) -> str:
    return "'" + value.decode("utf-8", "replace").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r") + "'"


def _binary(value: bytes, oid: int) -> str:
    """A value in the binary format: read where its type is known, else its bytes and what they are as a number."""
    if oid in TEXT_OIDS:
        return _quoted(value)
    if oid == _BOOL and len(value) == 1:
        return "true" if value[0] else "false"
    form = _SIGNED.get(oid) or _BY_LENGTH.get(len(value), "")
    is_number = bool(form) and len(value) == struct.calcsize(form)
    number = str(struct.unpack(form, value)[0]) if is_number else ""
    if oid in _SIGNED and is_number:
        return number
    raw = f"'\\x{value.hex()}'"
    if number:
        return f"{raw} (as a number: {number})"
    return f"{raw} (as text: {_quoted(value)})" if _is_text(value) else raw


def _is_text(value: bytes) -> bool:
    try:
        return value.decode().isprintable()
    except UnicodeDecodeError:
        return False
