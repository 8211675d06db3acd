"""Masking of COPY TO STDOUT: CopyData frames in, CopyData frames out, in all three formats.

The server sends one record a frame and drivers read them so, but the protocol lets frames end anywhere (54.2.6). So
bytes are taken out of the frames they came in, cut into records, masked record by record, and every record is sent in a
frame of its own; the same bytes give the same records however they were cut. Clean runs of whole records are not
touched.

A record is held until it is whole, and bounded: one of more than `MAX_RECORD_BYTES` is not masked but refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final

from chaperone_sidecar.errors import ProtocolError, Unmaskable
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import ColumnClass
from chaperone_sidecar.protocols.postgresql import copyform
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.binary import Reader
from chaperone_sidecar.protocols.postgresql.column import Column, Setting, cell
from chaperone_sidecar.protocols.postgresql.copyform import CopyForm, Lines
from chaperone_sidecar.protocols.postgresql.kind import Types

MAX_RECORD_BYTES: Final = 4 << 20  # sessions share 64 MiB; a longer record may go by SELECT, or not at all
MAX_COLUMNS: Final = 1664

_ESCAPED: Final = re.compile(rb"\\[^N]")  # not only NULL's sign: the values are other bytes than the line
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\x00"
_HEAD_BYTES: Final = len(_SIGNATURE) + 8
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_TRAILER: Final = -1


class CopyMask:
    """Masks the records of one COPY TO STDOUT."""

    def __init__(
        self,
        masker: Masker,
        response: bytes,
        form: CopyForm,
        classes: Sequence[ColumnClass | None],
        types: Types,
        oids: Sequence[int] | None = None,
        unmaskable: Setting = "Deny",
    ) -> None:
        """A mask for one COPY.

        Args:
            masker: the masks.
            response: the whole CopyOutResponse frame.
            form: what the statement's options say (`copyform.copy_form`).
            classes: of the columns, in order; none if no column is classified.
            types: gives types that are not the server's own.
            oids: the columns' types, which the wire does not tell; None if nobody knows them. Then text and CSV take
                any text, and a binary field is read in every way its length allows.
            unmaskable: what happens to columns that cannot be masked as policy wants it.

        Raises:
            ProtocolError: side=upstream; a CopyOutResponse that is not well formed, or not of that form.
            Unmaskable: a form or a column that cannot be masked.
            NotLookedUp: a column's type that nobody asked the database for yet.
        """
        count = _columns(response, form)
        if (classes and len(classes) != count) or (oids is not None and len(oids) != count):
            raise Unmaskable("COPY gives other columns than the gateway derived from the statement.")
        self._is_idle = not masker.has_detectors and not any(classes)
        if not self._is_idle:
            copyform.check(form)
        is_binary = form.format == "binary"
        reader = Reader(types, is_thorough=masker.has_patterns)
        self._columns = [
            Column(
                masker, reader, types, f"{i + 1} of COPY", oids[i] if oids else 0, is_binary,
                classes[i] if classes else None, unmaskable,
            )
            for i in range(count)
        ]  # fmt: skip
        self._must_read = is_binary or any(column.is_classified or column.hides for column in self._columns)
        self._masker = masker
        self._is_binary = is_binary
        self._is_csv = form.format == "csv"
        self._quote = form.quote
        self._lines = Lines(form)
        self._has_header = form.has_header
        self._has_head = False
        self._is_done = False
        self._frames = b""  # of a frame whose head is not whole
        self._frame_left = 0
        self._record = b""  # not yet masked
        self._searched = 0
        self._is_quoted = False

    def rows(self, data: bytes | memoryview) -> bytes | memoryview:
        """Mask bytes of CopyData frames, cut anywhere; give what of the records is decided.

        Raises:
            ProtocolError: side=upstream; frames or records that are not well formed.
            Unmaskable: a record that is too long, or a value that cannot be read.
            NotLookedUp: a type in a binary value that nobody asked the database for yet. Such a mask is of no more
                use: look the types of columns up before it is made.
        """
        if self._is_idle or not data or (not self._must_read and self._is_clean(data)):
            return data
        self._unframe(bytes(data))
        out: list[bytes] = []
        start = 0
        while True:
            end = self._binary_end(start) if self._is_binary else self._line_end()
            if end < 0:
                break
            out.append(m.frame(m.COPY_DATA, self._masked(self._record[start:end])))
            start = end
        if start:
            self._record = self._record[start:]
            self._searched = max(self._searched - start, 0)
        if len(self._record) > MAX_RECORD_BYTES:
            raise Unmaskable(
                f"A record of COPY has more than {MAX_RECORD_BYTES >> 20} MiB, too many to mask; leave long ones out."
            )
        return b"".join(out)

    def finish(self) -> bytes:
        """The COPY has ended (CopyDone): give what was held.

        Raises:
            ProtocolError: side=upstream; it ended inside a frame, or inside a record of binary format.
        """
        if self._frames or self._frame_left or (self._is_binary and self._record):
            raise _malformed()
        rest, self._record = self._record, b""
        return m.frame(m.COPY_DATA, self._masked(rest)) if rest else b""

    def _is_clean(self, data: bytes | memoryview) -> bool:
        """Whether a run is of whole frames of whole records, with nothing in them to mask."""
        if self._frames or self._frame_left or self._record or self._may_hit(data):
            return False
        whole = bytes(data)
        place, end = 0, len(whole)
        while place < end:
            if place + 5 > end or whole[place] != m.COPY_DATA:
                return False
            after = place + 1 + int.from_bytes(whole[place + 1 : place + 5], "big")
            if not place + 5 < after <= end or whole[after - 1] != 0x0A:
                return False
            if self._is_csv and (self._lines.end(whole[place + 5 : after], 0, False)[0] != after - place - 5):
                return False
            place = after
        self._has_header = False
        return True

    def _may_hit(self, data: bytes | memoryview) -> bool:
        """Whether values in lines may be hit; what an escape or a doubled quote stands for, a search cannot see."""
        if self._masker.may_hit(data):
            return True
        if self._is_csv:
            return self._masker.has_patterns and self._quote in bytes(data)
        return self._masker.has_detectors and _ESCAPED.search(data) is not None

    def _unframe(self, data: bytes) -> None:
        data = self._frames + data
        parts = [self._record]
        place, end = 0, len(data)
        while place < end:
            if self._frame_left:
                taken = min(self._frame_left, end - place)
                parts.append(data[place : place + taken])
                self._frame_left -= taken
                place += taken
                continue
            if data[place] != m.COPY_DATA:
                raise _malformed()
            if place + 5 > end:
                break
            size = int.from_bytes(data[place + 1 : place + 5], "big") - 4
            if not 0 <= size < 0x7FFFFFFF:
                raise _malformed()
            self._frame_left = size
            place += 5
        self._frames = data[place:]
        self._record = b"".join(parts)

    def _line_end(self) -> int:
        end, self._searched, self._is_quoted = self._lines.end(self._record, self._searched, self._is_quoted)
        return end

    def _binary_end(self, start: int) -> int:
        """Where the tuple ends that begins at `start`, with the head before the first one; -1: not there yet."""
        record, place = self._record, start
        if self._is_done:
            if start < len(record):
                raise _malformed()
            return -1
        try:
            if not self._has_head:
                if record[start : start + len(_SIGNATURE)] != _SIGNATURE[: len(record) - start]:
                    raise _malformed()
                flags, extension = struct.unpack_from(">Ii", record, start + len(_SIGNATURE))
                if flags or extension:
                    raise _malformed()  # no server we cover writes OIDs or extensions of the head
                place += _HEAD_BYTES
            (count,) = _INT16.unpack_from(record, place)
            place += 2
            if count not in (_TRAILER, len(self._columns)):
                raise _malformed()
            for _ in range(max(count, 0)):
                (size,) = _INT32.unpack_from(record, place)
                if size < -1:
                    raise _malformed()
                place += 4 + max(size, 0)
        except struct.error:
            return -1
        return place if place <= len(record) else -1

    def _masked(self, record: bytes) -> bytes:
        return self._tuple(record) if self._is_binary else self._line(record)

    def _line(self, record: bytes) -> bytes:
        line = record.removesuffix(b"\n")
        if self._has_header:
            self._has_header = False
            return record
        if not (self._must_read or self._may_hit(line)):
            return record
        lines = self._lines
        fields = lines.fields(line)
        if not self._columns and not line:
            return record
        if fields is None or len(fields) != len(self._columns):
            raise _malformed()
        for index, field in enumerate(fields):
            value = lines.value(field)
            if value is None:
                continue
            new = self._columns[index].mask(value)
            if new is None or new != value:
                fields[index] = lines.field(new)
        return lines.join(fields) + record[len(line) :]

    def _tuple(self, record: bytes) -> bytes:
        place = 0 if self._has_head else _HEAD_BYTES
        self._has_head = True
        (count,) = _INT16.unpack_from(record, place)
        if count == _TRAILER:
            self._is_done = True
            return record
        place += 2
        parts = [record[:place]]
        for column in self._columns:
            (size,) = _INT32.unpack_from(record, place)
            after = place + 4 + max(size, 0)
            if size < 0 or (size == 0 and not column.is_classified):
                parts.append(record[place:after])
            else:
                parts.append(cell(column.mask(record[place + 4 : after])))
            place = after
        return b"".join(parts)


def _columns(response: bytes, form: CopyForm) -> int:
    """How many columns a CopyOutResponse tells of."""
    if len(response) < 8 or response[0] != m.COPY_OUT_RESPONSE:
        raise _malformed()
    count: int = _INT16.unpack_from(response, 6)[0]
    if not 0 <= count <= MAX_COLUMNS or len(response) != 8 + 2 * count:
        raise _malformed()
    if response[5] not in (0, 1) or (response[5] == 1) != (form.format == "binary"):
        raise _malformed()
    return count


def _malformed() -> ProtocolError:
    return ProtocolError("The database sent COPY data that is not well formed.", side="upstream")
