"""Masking of rows: whole DataRow frames in, whole DataRow frames out.

Clean rows are not looked into: one search over the raw frames says that they are clean. Where it cannot say so, only
the rows that may hold something are taken apart. Columns whose binary format hides digits from that search are read in
every row; classified columns are cut out by the lengths alone. No state is kept between runs, so a run may be given
again after `NotLookedUp`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from chaperone_sidecar.errors import ProtocolError, Unmaskable
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import ColumnClass
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.binary import Reader
from chaperone_sidecar.protocols.postgresql.column import Column, Setting, cell
from chaperone_sidecar.protocols.postgresql.kind import Types
from chaperone_sidecar.protocols.postgresql.shape import Shape

# A value of this size takes milliseconds to mask, tenths of a second if it is hostile: not for the event loop.
HEAVY_BYTES: Final = 64 << 10

_INT32: Final = struct.Struct(">i")
_HEAD: Final = struct.Struct(">BIh")


class RowMask:
    """Masks the rows of one result."""

    def __init__(
        self,
        masker: Masker,
        shape: Shape,
        classes: Sequence[ColumnClass | None],
        types: Types,
        unmaskable: Setting = "Deny",
    ) -> None:
        """A mask for rows of a shape.

        Args:
            masker: the masks.
            shape: the columns, in the formats that were asked for.
            classes: of the columns, in order; none if no column is classified. `OPAQUE` is one whose origin is unknown.
            types: gives types that are not the server's own.
            unmaskable: what happens to columns that cannot be masked as policy wants it. "Allow" still masks what
                detectors find in the bytes as they stand.

        Raises:
            ProtocolError: side=upstream; the RowDescription is not well formed.
            Unmaskable: a column that cannot be masked, and policy denies that; or classes of another answer.
            NotLookedUp: a column's type that nobody asked the database for yet.
        """
        fields = shape.fields
        if classes and len(classes) != len(fields):
            raise Unmaskable("The answer has other columns than the gateway derived from the statement.")
        reader = Reader(types, is_thorough=masker.has_patterns)
        self._masker = masker
        self._columns = [
            Column(
                masker,
                reader,
                types,
                field.name,
                field.type,
                field.format == 1,
                classes[i] if classes else None,
                unmaskable,
            )
            for i, field in enumerate(fields)
        ]
        self._has_detectors = masker.has_detectors
        self._classified = [i for i, column in enumerate(self._columns) if column.is_classified]
        self._hidden = [i for i, column in enumerate(self._columns) if column.hides]

    def rows(self, data: bytes | memoryview) -> bytes | memoryview:
        """Mask a run of whole DataRow frames; the same object comes back when there is nothing to mask.

        Raises:
            ProtocolError: side=upstream; rows that are not well formed or not of the shape.
            Unmaskable: a value that cannot be read, and policy denies that.
            NotLookedUp: a type in a value that nobody asked the database for yet; give the run again.
        """
        if not (self._classified or self._hidden or self._masker.may_hit(data)):
            return data
        whole = bytes(data)
        rows = split(whole, m.DATA_ROW)
        nulls = self._found_in_hidden(rows) if self._hidden else {}
        hit = set(nulls)
        is_changed = bool(self._classified)
        if is_changed:
            rows = [self._cut_out(row) for row in rows]
        if self._has_detectors:
            masked = b"".join(rows) if is_changed else whole
            if self._masker.may_hit(masked):
                hit.update(self._masker.hits(rows))
            elif not hit:
                return masked if is_changed else data
        for index in hit:
            row = self._masked(rows[index], nulls.get(index, ()))
            is_changed = is_changed or row is not rows[index]
            rows[index] = row
        return b"".join(rows) if is_changed else data

    def _cut_out(self, row: bytes) -> bytes:
        """A row whose classified columns are masked; it is read as far as the last of them."""
        self._check_head(row)
        parts = []
        end, start, place, seen = len(row), 5, 7, 0
        try:
            for index in self._classified:
                for _ in range(index - seen):
                    (size,) = _INT32.unpack_from(row, place)
                    place += 4 + size if size > 0 else 4
                    if size < -1:
                        raise _malformed()
                (size,) = _INT32.unpack_from(row, place)
                after = place + 4 + size if size > 0 else place + 4
                if size < -1 or after > end:
                    raise _malformed()
                if size >= 0:
                    column = self._columns[index]
                    new = column.constant or cell(column.classified(row[place + 4 : after]))
                    parts.append(row[start:place])
                    parts.append(new)
                    start = after
                place = after
                seen = index + 1
        except struct.error:
            raise _malformed() from None
        if not parts:
            return row
        parts.append(row[start:])
        return m.frame(m.DATA_ROW, b"".join(parts))

    def _found_in_hidden(self, rows: list[bytes]) -> dict[int, set[int]]:
        """By row, the hidden columns that are to be NULL."""
        texts: list[bytes] = []
        owners: list[tuple[int, int]] = []
        nulls: dict[int, set[int]] = {}
        hidden = [(index, self._columns[index].read) for index in self._hidden]
        for number, row in enumerate(rows):
            self._check_head(row)
            end, place, seen = len(row), 7, 0
            try:
                for index, read in hidden:
                    for _ in range(index - seen):
                        (size,) = _INT32.unpack_from(row, place)
                        place += 4 + size if size > 0 else 4
                        if size < -1:
                            raise _malformed()
                    (size,) = _INT32.unpack_from(row, place)
                    after = place + 4 + size if size > 0 else place + 4
                    if size < -1 or after > end:
                        raise _malformed()
                    if size > 0:
                        found = read(row[place + 4 : after])
                        if found is None:
                            nulls.setdefault(number, set()).add(index)
                        elif found:
                            texts += found
                            owners += [(number, index)] * len(found)
                    place = after
                    seen = index + 1
            except struct.error:
                raise _malformed() from None
        for hit in self._masker.hits(texts):
            if self._masker.mask_value(texts[hit]) != texts[hit]:
                number, index = owners[hit]
                nulls.setdefault(number, set()).add(index)
        return nulls

    def _masked(self, row: bytes, nulls: set[int] | tuple[()]) -> bytes:
        """A row whose classified columns are masked already, with what detectors find in the others."""
        cells = self._cells(row)
        rest = [
            index
            for index, value in enumerate(cells)
            if value and index not in nulls and not self._columns[index].is_classified
        ]
        is_changed = bool(nulls)
        for index in nulls:
            cells[index] = None
        for index in rest:
            value = cells[index] or b""
            new = self._columns[index].mask(value)
            if new is None or new != value:
                cells[index] = new
                is_changed = True
        if not is_changed:
            return row
        return m.frame(m.DATA_ROW, row[5:7] + b"".join([cell(value) for value in cells]))

    def _cells(self, row: bytes) -> list[bytes | None]:
        self._check_head(row)
        cells: list[bytes | None] = []
        end, place = len(row), 7
        for _ in self._columns:
            if place + 4 > end:
                raise _malformed()
            (size,) = _INT32.unpack_from(row, place)
            place += 4
            if size == -1:
                cells.append(None)
                continue
            if size < 0 or place + size > end:
                raise _malformed()
            cells.append(row[place : place + size])
            place += size
        if place != end:
            raise _malformed()
        return cells

    def _check_head(self, row: bytes) -> None:
        if len(row) < 7 or _HEAD.unpack_from(row)[2] != len(self._columns):
            raise _malformed()


def split(data: bytes, kind: int) -> list[bytes]:
    """The whole frames of one type that `data` is a run of.

    Raises:
        ProtocolError: side=upstream; another type, an impossible length, or a frame that is cut.
    """
    out: list[bytes] = []
    place, end = 0, len(data)
    while place < end:
        if place + 5 > end or data[place] != kind:
            raise _malformed()
        after = place + 1 + int.from_bytes(data[place + 1 : place + 5], "big")
        if not place + 5 <= after <= end:
            raise _malformed()
        out.append(data[place:after])
        place = after
    return out


def is_heavy(data: bytes | memoryview) -> bool:
    """Whether a run of whole frames holds one of more than `HEAVY_BYTES`: masking it is work for a thread."""
    place, end = 0, len(data)
    if end <= HEAVY_BYTES:
        return False
    while place + 5 <= end:
        size = int.from_bytes(data[place + 1 : place + 5], "big")
        if size > HEAVY_BYTES:
            return True
        place += 1 + max(size, 4)
    return False


def _malformed() -> ProtocolError:
    return ProtocolError(
        "The database sent a row that is not well formed or does not fit its description.", side="upstream"
    )
