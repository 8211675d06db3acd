"""Rows of both formats, taken apart, masked and put together again.

Spec: "Text Resultset Row", "Binary Protocol Resultset Row", "Binary Protocol Value".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from json import loads
from typing import TYPE_CHECKING, Final

import msgspec

from chaperone_sidecar.errors import ProtocolError, Unmaskable
from chaperone_sidecar.masking.rule import OPAQUE, ColumnClass
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.plan import Result

if TYPE_CHECKING:  # it loads RE2, which a gateway without masks does not carry
    from chaperone_sidecar.masking.mask import Masker

type Cells = list[bytes | None]

MAX_COLUMNS: Final = 4096  # of a server

_JSON: Final = 245
_TEXTS: Final = frozenset({15, 247, 248, 249, 250, 251, 252, 253, 254})
_COUNTED: Final = _TEXTS | {0, 16, 242, _JSON, 246, 255}  # values with a length before them
_INTEGERS: Final = {1: 1, 2: 2, 13: 2, 3: 4, 9: 4, 8: 8}
_FLOAT, _DOUBLE = 4, 5
_DAYS: Final = frozenset({7, 10, 12, 14})
_TIME: Final = 11
_DAY_SIZES, _TIME_SIZES = (0, 4, 7, 11), (0, 8, 12)
_UNSIGNED: Final = 32


def takes_text(column: m.Column) -> bool:
    """Whether a value of a column may be any text."""
    return column.type in _TEXTS


def text_cells(payload: bytes, count: int) -> Cells:
    """The cells of a row in the text format.

    Raises:
        ProtocolError: side=upstream; they do not fill it.
    """
    cells: Cells = []
    at = m.Cursor(payload, "upstream")
    for _ in range(count):
        if payload[at.place : at.place + 1] == b"\xfb":
            at.place += 1
            cells.append(None)
        else:
            cells.append(at.lenenc_bytes())
    if not at.is_at_end:
        raise ProtocolError("A row has more cells than columns.", side="upstream")
    return cells


def text_row(cells: Sequence[bytes | None]) -> bytes:
    """The payload of a row in the text format."""
    return b"".join(b"\xfb" if cell is None else m.encode_text(cell) for cell in cells)


def binary_cells(payload: bytes, columns: Sequence[m.Column]) -> Cells:
    """The cells of a row in the binary format, as they stand there; texts without their lengths.

    Raises:
        ProtocolError: side=upstream; they do not fill it.
    """
    at = m.Cursor(payload, "upstream")
    if at.number(1) != 0:
        raise ProtocolError("A row does not begin as one does.", side="upstream")
    nulls = at.take((len(columns) + 9) // 8)
    cells: Cells = []
    for index, column in enumerate(columns):
        if nulls[(index + 2) // 8] >> (index + 2) % 8 & 1:
            cells.append(None)
        else:
            cells.append(binary_value(at, column.type))
    if not at.is_at_end:
        raise ProtocolError("A row has more cells than columns.", side="upstream")
    return cells


def binary_value(at: m.Cursor, kind: int) -> bytes:
    """One value of the binary format; texts without their lengths.

    Raises:
        ProtocolError: side=upstream; a type that is not known, or it is not whole.
    """
    if kind in _COUNTED:
        return at.lenenc_bytes()
    if kind in _INTEGERS:
        return at.take(_INTEGERS[kind])
    if kind in (_FLOAT, _DOUBLE):
        return at.take(4 if kind == _FLOAT else 8)
    if kind in _DAYS or kind == _TIME:
        size = at.number(1)
        if size not in (_TIME_SIZES if kind == _TIME else _DAY_SIZES):
            raise ProtocolError("A day or a time is of a length that none has.", side="upstream")
        return at.take(size)
    raise ProtocolError(f"A column has a type that is not known ({kind}).", side="upstream")


def binary_row(cells: Sequence[bytes | None], columns: Sequence[m.Column]) -> bytes:
    """The payload of a row in the binary format."""
    nulls = bytearray((len(columns) + 9) // 8)
    parts: list[bytes] = []
    for index, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        if cell is None:
            nulls[(index + 2) // 8] |= 1 << (index + 2) % 8
        elif column.type in _COUNTED:
            parts.append(m.encode_text(cell))
        elif column.type in _DAYS or column.type == _TIME:
            parts.append(bytes((len(cell),)) + cell)
        else:
            parts.append(cell)
    return b"\0" + bytes(nulls) + b"".join(parts)


def shown(cell: bytes, column: m.Column) -> bytes:
    """A binary value as text."""
    kind = column.type
    if kind in _INTEGERS:
        return str(int.from_bytes(cell, "little", signed=not column.flags & _UNSIGNED)).encode()
    if kind == _FLOAT:
        return repr(struct.unpack("<f", cell)[0]).encode()
    if kind == _DOUBLE:
        return repr(struct.unpack("<d", cell)[0]).encode()
    if kind in _DAYS:
        return _day(cell)
    if kind == _TIME:
        return _time(cell)
    return cell


def _day(cell: bytes) -> bytes:
    parts = cell.ljust(11, b"\0")
    day = f"{int.from_bytes(parts[:2], 'little'):04}-{parts[2]:02}-{parts[3]:02}"
    if len(cell) <= 4:
        return day.encode()
    micros = int.from_bytes(parts[7:11], "little")
    return (f"{day} {parts[4]:02}:{parts[5]:02}:{parts[6]:02}" + (f".{micros:06}" if micros else "")).encode()


def _time(cell: bytes) -> bytes:
    parts = cell.ljust(12, b"\0")
    hours = int.from_bytes(parts[1:5], "little") * 24 + parts[5]
    micros = int.from_bytes(parts[8:12], "little")
    sign = "-" if parts[0] else ""
    return (f"{sign}{hours:02}:{parts[6]:02}:{parts[7]:02}" + (f".{micros:06}" if micros else "")).encode()


class RowMask:
    """Masks the rows of one result.

    Args:
        masker: the masks.
        columns: of the result.
        result: what is known of the statement.
        is_binary: the format.
        redacts: show a column whose origin is not told as NULL.

    Raises:
        Unmaskable: a column whose origin is not told.
    """

    def __init__(
        self, masker: Masker, columns: Sequence[m.Column], result: Result, *, is_binary: bool, redacts: bool = False
    ) -> None:
        self._masker = masker
        self._columns = columns
        self._is_binary = is_binary
        self._classes = _classes(masker, columns, result, redacts=redacts)

    @property
    def classified(self) -> tuple[int, ...]:
        """The columns that are masked as a whole, by their places."""
        return tuple(index for index, found in enumerate(self._classes) if found is not None)

    def rows(self, payloads: list[bytes]) -> list[bytes]:
        """Mask rows.

        Raises:
            ProtocolError: side=upstream; rows that are not well formed.
        """
        columns, masker = self._columns, self._masker
        if self._is_binary:
            cells = [binary_cells(payload, columns) for payload in payloads]
            texts = [
                [None if cell is None else shown(cell, column) for cell, column in zip(row, columns, strict=True)]
                for row in cells
            ]
        else:
            cells = texts = [text_cells(payload, len(columns)) for payload in payloads]
        flat = [cell for row in texts for cell in row]
        masked = masker.mask_row(flat, [*self._classes] * len(payloads))
        out: list[bytes] = []
        width = len(columns)
        for number, (payload, row) in enumerate(zip(payloads, cells, strict=True)):
            before = flat[number * width : (number + 1) * width]
            after = masked[number * width : (number + 1) * width]
            if before == after:
                out.append(payload)
                continue
            fresh = [self._cell(index, row[index], before[index], after[index]) for index in range(width)]
            out.append(binary_row(fresh, columns) if self._is_binary else text_row(fresh))
        return out

    def _cell(self, index: int, raw: bytes | None, before: bytes | None, after: bytes | None) -> bytes | None:
        if before == after:
            return raw
        column = self._columns[index]
        if after is None or takes_text(column):
            return after
        return after if column.type == _JSON and _is_json(after) else None


class Cursor(msgspec.Struct, gc=False, eq=False):
    """A result that the server keeps, and of which a client fetches so many rows at a time."""

    columns: list[m.Column]
    mask: RowMask | None
    rows: int = 0  # that were fetched


def _classes(masker: Masker, columns: Sequence[m.Column], result: Result, *, redacts: bool) -> list[ColumnClass | None]:
    """How each column is masked as a whole: by the table it is of, and by where it stands in the statement."""
    if result.is_opaque:
        return [OPAQUE] * len(columns)
    found = [_of_origin(masker, column) for column in columns]
    has_star = any(output.is_star for output in result.outputs)
    if result.outputs and not has_star:
        if len(result.outputs) != len(columns):
            raise Unmaskable("The result has other columns than the statement.")
        for index, output in enumerate(result.outputs):
            for table in result.tables if output.column else ():
                found[index] = found[index] or masker.column_class(f"{table}.{output.column}")
    if has_star and result.is_checked:
        nameless = [index for index, column in enumerate(columns) if not column.org_table or not column.schema]
        if len(nameless) > sum(not output.is_star and not output.column for output in result.outputs):
            if not redacts:
                raise Unmaskable("The database does not say of which table a column of the result is.")
            for index in nameless:
                found[index] = OPAQUE
    return found


def _of_origin(masker: Masker, column: m.Column) -> ColumnClass | None:
    """By the table that the server names; compared in both cases, since a server may fold names."""
    if not masker.has_columns or not column.org_table:
        return None
    name = column.org_name.lower()
    exact = masker.column_class(f"{column.schema}.{column.org_table}.{name}")
    return exact or masker.column_class(f"{column.schema}.{column.org_table}".lower() + f".{name}")


def _is_json(text: bytes) -> bool:
    try:
        loads(text)
    except ValueError:
        return False
    return True
