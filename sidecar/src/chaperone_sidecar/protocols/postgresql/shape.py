"""The shape of a result: its columns as RowDescription names them, in the formats that Bind asked for.

A shape is read from the frame when it is first asked for its fields: most results are never looked into.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError

MAX_COLUMNS: Final = 1664  # the server's MaxTupleAttributeNumber

_FIELD: Final = struct.Struct(">IhIhih")
_INT16: Final = struct.Struct(">h")


class Field(msgspec.Struct, frozen=True, gc=False):
    """A column of a result (54.7, RowDescription); `table` and `number` are 0 where it is no column of a table."""

    name: str
    table: int
    number: int
    type: int
    size: int
    modifier: int
    format: int


class Shape:
    """The columns of a result, in order."""

    def __init__(self, raw: bytes, formats: Sequence[int] = ()) -> None:
        """A shape that is read when it is needed.

        Args:
            raw: the whole RowDescription frame.
            formats: the result formats of the Bind that made the portal; a description of a statement has none yet.
        """
        self._raw = raw
        self._formats = tuple(formats)
        self._fields: tuple[Field, ...] | None = None

    def with_formats(self, formats: Sequence[int]) -> Shape:
        """The same columns in other formats: none for all text, one for all columns, or one for each."""
        return Shape(self._raw, formats)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns.

        Raises:
            ProtocolError: side=upstream; a RowDescription that is not well formed or does not fit the formats.
        """
        if self._fields is None:
            self._fields = _fields(self._raw, self._formats)
        return self._fields


def _fields(raw: bytes, formats: tuple[int, ...]) -> tuple[Field, ...]:
    if len(raw) < 7:
        raise _malformed()
    (count,) = _INT16.unpack_from(raw, 5)
    if not 0 <= count <= MAX_COLUMNS or len(formats) not in (0, 1, count) or not set(formats) <= {0, 1}:
        raise _malformed()
    found = []
    place = 7
    for index in range(count):
        end = raw.find(b"\x00", place)
        if end < 0 or end + 1 + _FIELD.size > len(raw):
            raise _malformed()
        table, number, oid, size, modifier, said = _FIELD.unpack_from(raw, end + 1)
        how = formats[0 if len(formats) == 1 else index] if formats else said
        if how not in (0, 1):
            raise _malformed()
        name = raw[place:end].decode("utf-8", "replace")
        found.append(Field(name, table, number, oid, size, modifier, how))
        place = end + 1 + _FIELD.size
    if place != len(raw):
        raise _malformed()
    return tuple(found)


def _malformed() -> ProtocolError:
    return ProtocolError("The database sent a RowDescription that is not well formed.", side="upstream")
