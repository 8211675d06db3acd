"""Masking of rows: whole DataRow frames in, whole DataRow frames out.

Clean rows are not looked into: one search of each filter over the raw frames says that they are clean. Where one hits,
the place says which cell is to be looked at, and the search goes on behind that cell. This holds because our patterns
cross no NUL, and the first byte of a length is one: a row that is masked has less than 2^24 bytes. A policy's own
patterns may cross it, or ask what stands beside a value; with those, values are looked at one by one.

Columns whose binary format hides digits from the search are read in every row; classified columns are cut out by the
lengths alone. No state is kept between runs, so a run may be given again after `NotLookedUp`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from chaperone_sidecar.errors import ProtocolError, Unmaskable
from chaperone_sidecar.masking.engine import ANY_FILTER
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import ColumnClass
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.binary import Reader
from chaperone_sidecar.protocols.postgresql.column import Column, Setting, cell
from chaperone_sidecar.protocols.postgresql.kind import Types
from chaperone_sidecar.protocols.postgresql.shape import Shape

# A value of this size takes milliseconds to mask, tenths of a second if it is hostile: not for the event loop.
HEAVY_BYTES: Final = 64 << 10

_HEAD_BYTES: Final = 7  # of a row: type, length, number of columns
_TO_NULL: Final = 0  # in place of filters: the cell is NULL, whatever is in it
_NULL: Final = b"\xff\xff\xff\xff"


class _Run:
    """A run of rows, and where their cells are: found when they are asked for."""

    def __init__(self, data: bytes, columns: Sequence[Column]) -> None:
        self.data = data
        self.hits: dict[int, dict[int, int]] = {}
        """By row and column, which filters hit the cell, a bit for each."""
        self._columns = columns
        self._starts: list[int] = []
        self._cells: dict[int, list[int]] = {}

    @property
    def starts(self) -> list[int]:
        """Where rows begin, and where the last one ends."""
        if not self._starts:
            self._starts = _starts(self.data)
        return self._starts

    def cells(self, row: int) -> list[int]:
        """Where the lengths of a row's cells are, and where the last cell ends."""
        found = self._cells.get(row)
        if found is None:
            starts = self.starts
            found = self._cells[row] = _cells(self.data, starts[row], starts[row + 1], len(self._columns))
        return found

    def resume(self, number: int, place: int) -> int:
        """A filter hits at this place: note the cell, and go on behind it."""
        row = bisect_right(self.starts, place) - 1
        cells = self.cells(row)
        column = bisect_right(cells, place) - 1
        if column < 0:  # in the head, and what begins there ends before the first cell, which begins with NUL
            return cells[0]
        after = cells[column + 1]
        known = self._columns[column]
        if after - cells[column] > 4 and not (known.is_classified or known.is_inert):
            hits = self.hits.setdefault(row, {})
            hits[column] = hits.get(column, 0) | 1 << number
        return after


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
        self._classified = [i for i, column in enumerate(self._columns) if column.is_classified]
        self._hidden = [i for i, column in enumerate(self._columns) if column.hides]
        self._looked_at = [i for i, column in enumerate(self._columns) if not column.is_classified]

    @property
    def classified(self) -> tuple[int, ...]:
        """The columns that are masked as a whole, by their places."""
        return tuple(self._classified)

    def rows(self, data: bytes | memoryview) -> bytes | memoryview:
        """Mask a run of whole DataRow frames; the same object comes back when there is nothing to mask.

        Raises:
            ProtocolError: side=upstream; rows that are not well formed or not of the shape.
            Unmaskable: a value that cannot be read, and policy denies that.
            NotLookedUp: a type in a value that nobody asked the database for yet; give the run again.
        """
        run = _Run(data if isinstance(data, bytes) else bytes(data), self._columns)
        hidden = self._found_in_hidden(run) if self._hidden else ()
        if self._classified:
            run = _Run(self._cut_out(run), self._columns)
        if self._masker.has_patterns:
            self._find_all(run)
        else:
            self._masker.visit(run.data, run.resume)
        for row, column in hidden:
            run.hits.setdefault(row, {})[column] = _TO_NULL
        if run.hits:
            return self._masked(run)
        return run.data if self._classified else data

    def _cut_out(self, run: _Run) -> bytes:
        """Rows whose classified columns are masked; each is read to its end, which no cell may miss."""
        data, starts = run.data, run.starts
        out: list[bytes] = []
        for row in range(len(starts) - 1):
            start, end = starts[row], starts[row + 1]
            if end - start < _HEAD_BYTES or data[start + 5] << 8 | data[start + 6] != len(self._columns):
                raise _malformed()
            parts: list[bytes] = []
            copied, place, seen = start + 5, start + _HEAD_BYTES, 0
            for index in self._classified:
                while seen < index:
                    place = _after(data, place, end)
                    seen += 1
                after = _after(data, place, end)
                if data[place] != 0xFF:
                    column = self._columns[index]
                    parts.append(data[copied:place])
                    parts.append(column.constant or cell(column.classified(data[place + 4 : after])))
                    copied = after
                place = after
                seen += 1
            while seen < len(self._columns):
                place = _after(data, place, end)
                seen += 1
            if place != end:
                raise _malformed()
            if parts:
                parts.append(data[copied:end])
                out.append(m.frame(m.DATA_ROW, b"".join(parts)))
            else:
                out.append(data[start:end])
        return b"".join(out)

    def _found_in_hidden(self, run: _Run) -> list[tuple[int, int]]:
        """The hidden cells, by row and column, that are to be NULL: something is in them, or they cannot be read."""
        data = run.data
        nulls: list[tuple[int, int]] = []
        texts: list[bytes] = []
        owners: list[tuple[int, int]] = []
        for row in range(len(run.starts) - 1):
            cells = run.cells(row)
            for index in self._hidden:
                start, end = cells[index] + 4, cells[index + 1]
                if end <= start:
                    continue
                found = self._columns[index].read(data[start:end])
                if found is None:
                    nulls.append((row, index))
                elif found:
                    texts += found
                    owners += [(row, index)] * len(found)
        for hit in self._masker.hits(texts):
            if self._masker.mask_found(texts[hit]) != texts[hit]:
                nulls.append(owners[hit])
        return nulls

    def _find_all(self, run: _Run) -> None:
        """Note all cells of the rows that may hold something."""
        if not self._masker.may_hit(run.data):
            return
        starts = run.starts
        for row in range(len(starts) - 1):
            if self._masker.may_hit(run.data[starts[row] : starts[row + 1]]):
                run.hits[row] = dict.fromkeys(self._looked_at, ANY_FILTER)

    def _masked(self, run: _Run) -> bytes:
        """The run, with what detectors find in the cells that are noted."""
        data, starts = run.data, run.starts
        out: list[bytes] = []
        copied = 0
        for row in sorted(run.hits):
            masked = self._masked_row(data, run.cells(row), run.hits[row])
            if masked:
                out.append(data[copied : starts[row]])
                out.append(masked)
                copied = starts[row + 1]
        if not out:
            return data
        out.append(data[copied:])
        return b"".join(out)

    def _masked_row(self, data: bytes, cells: list[int], hits: dict[int, int]) -> bytes:
        """A row with its noted cells masked; nothing if that changes nothing."""
        parts: list[bytes] = []
        copied = cells[0] - 2
        for index in sorted(hits):
            place, after = cells[index], cells[index + 1]
            if after - place <= 4:
                continue
            new: bytes | None = None
            if hits[index] != _TO_NULL:
                value = data[place + 4 : after]
                new = self._columns[index].mask(value, hits[index])
                if new == value:
                    continue
            parts.append(data[copied:place])
            parts.append(cell(new))
            copied = after
        if not parts:
            return b""
        parts.append(data[copied : cells[-1]])
        return m.frame(m.DATA_ROW, b"".join(parts))


def _starts(data: bytes) -> list[int]:
    """Where the rows of a run begin, and where the last one ends."""
    out: list[int] = []
    place, end = 0, len(data)
    while place < end:
        if place + 5 > end or data[place] != m.DATA_ROW:
            raise _malformed()
        out.append(place)
        size = data[place + 1] << 24 | data[place + 2] << 16 | data[place + 3] << 8 | data[place + 4]
        if size < 4:
            raise _malformed()
        place += 1 + size
    if place != end:
        raise _malformed()
    out.append(end)
    return out


def _cells(data: bytes, start: int, end: int, count: int) -> list[int]:
    """Where the lengths of a row's cells are, and where the last cell ends."""
    if end - start < _HEAD_BYTES or data[start + 5] << 8 | data[start + 6] != count:
        raise _malformed()
    place = start + _HEAD_BYTES
    out = [place]
    for _ in range(count):
        place = _after(data, place, end)
        out.append(place)
    if place != end:
        raise _malformed()
    return out


def _after(data: bytes, place: int, end: int) -> int:
    """Where a cell ends whose length is here."""
    after = place + 4
    if after > end:
        raise _malformed()
    if data[place] == 0:
        after += data[place + 1] << 16 | data[place + 2] << 8 | data[place + 3]
        if after <= end:
            return after
    elif data[place:after] == _NULL:
        return after
    raise _malformed()


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
