"""What a client of PostgreSQL is about to read, as frames of a recording.

The tape is given the very bytes that go to the client, after the mask. The upstream's side tells beside which command
they belong to: `at` marks places in its next bytes. What comes without marks (refusals, the last word) belongs to none.

Bytes of a server that keep no form are recorded as they stand: a row whose cells do not fill it is a piece of data.
"""

from __future__ import annotations

import itertools
from typing import Final

from chaperone_evidence import frames
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import messages
from chaperone_sidecar.protocols.postgresql.flight import Step
from chaperone_sidecar.protocols.postgresql.shape import MAX_COLUMNS, Field, Shape
from chaperone_sidecar.recording.results import PIECE_BYTES, ResultLog

MAX_NAME_CHARACTERS: Final = 256  # the server's own have at most 63 bytes
_TEXT: Final = (0,)
_HEAD_BYTES: Final = 5


class Tape:
    """Reads what goes to one client."""

    def __init__(self, log: ResultLog) -> None:
        self._log = log
        self._marks: list[tuple[int, Step | None, tuple[int, ...] | None]] = []
        self._is_marked = False
        self._step: Step | None = None
        self._columns_of: Step | None = None
        self._masked: tuple[int, ...] = ()
        self._formats: tuple[int, ...] = ()
        self._copy_is_text = True
        self._long: int = 0  # the type of a frame whose beginning was shown
        self._left = 0  # its bytes that are still to come
        self._rows: list[tuple[frames.Cell, ...]] = []
        self._copied: list[memoryview] = []
        self._size_bytes = 0  # of rows or COPY data that are not handed on yet

    def at(self, place: int, step: Step | None, masked: tuple[int, ...] | None = None) -> None:
        """From this place on the upstream's bytes belong to a step; `masked` are the classified columns from here."""
        if self._marks:
            last_place, last_step, last_masked = self._marks[-1]
            if step is last_step and masked is None:
                return
            if place == last_place:  # nothing was said of the last one, as of rows that are dropped
                self._marks.pop()
                masked = last_masked if masked is None and step is last_step else masked
        self._marks.append((place, step, masked))

    def release(self) -> None:
        """The upstream's bytes are what is shown next."""
        self._is_marked = True

    def show(self, data: bytes | bytearray | memoryview) -> None:
        """Take what the client is about to get.

        Raises:
            SpoolFull: no room.
        """
        view = memoryview(bytes(data))
        if not self._is_marked:
            self._part(view, None)
            return
        marks, self._marks, self._is_marked = self._marks, [], False
        places = [(0, self._step, None), *marks, (len(view), None, None)]
        for (start, step, masked), (end, _, _) in itertools.pairwise(places):
            if step is not self._step:
                self._step, self._masked = step, ()
            if masked is not None:
                self._masked = masked
            if start < end:
                self._part(view[start:end], step)

    def _part(self, view: memoryview, step: Step | None) -> None:
        intent = step.intent if step is not None else None
        self._log.begin(intent.command_id if intent is not None else "")
        place, end = 0, len(view)
        while place < end:
            if self._left:
                after = min(end, place + self._left)
                self._left -= after - place
                self._piece(view[place:after])
                place = after
                continue
            kind = view[place]
            size = int.from_bytes(view[place + 1 : place + _HEAD_BYTES], "big")
            after = min(end, place + 1 + size)
            body = view[place + _HEAD_BYTES : after]
            if place + 1 + size > end:
                self._hand_on()
                self._long, self._left = kind, place + 1 + size - end
                self._piece(body)
            elif kind == messages.DATA_ROW:
                self._row(body, step)
            elif kind == messages.COPY_DATA:
                self._copy(body)
            else:
                self._hand_on()
                self._frame(kind, bytes(body), step)
            place = after
        self._hand_on()

    def _piece(self, body: memoryview) -> None:
        if self._long == messages.COPY_DATA:
            self._log.data(body, "copy", is_text=self._copy_is_text)
        else:
            self._log.data(body, "row")

    def _row(self, body: memoryview, step: Step | None) -> None:
        size_bytes = len(body)
        if self._size_bytes + size_bytes > min(PIECE_BYTES, self._log.room):
            self._hand_on()
        if size_bytes > self._log.room:
            self._log.cut()
            return
        if step is not None and step.kind == "execute" and self._columns_of is not step:
            self._hand_on()
            self._describe(step, step.recorded.description if step.recorded is not None else b"", step.formats or _TEXT)
        row = self._cells(body) if size_bytes <= PIECE_BYTES else None
        if row is None:
            self._hand_on()
            self._log.data(body, "row")
            return
        self._rows.append(row)
        self._size_bytes += size_bytes

    def _cells(self, body: memoryview) -> tuple[frames.Cell, ...] | None:
        """The cells of a row; None where they do not fill it."""
        count, place, end = int.from_bytes(body[:2], "big"), 2, len(body)
        formats = self._formats
        if count > MAX_COLUMNS:
            return None
        found: list[frames.Cell] = []
        for index in range(count):
            after = place + 4
            if after > end:
                return None
            size = int.from_bytes(body[place:after], "big", signed=True)
            if size < 0:
                found.append(None)
                place = after
                continue
            place = after + size
            if place > end:
                return None
            how = formats[index] if index < len(formats) else formats[0] if len(formats) == 1 else 0
            found.append(frames.cell(body[after:place], is_text=how == 0))
        return tuple(found) if place == end else None

    def _copy(self, body: memoryview) -> None:
        if self._size_bytes + len(body) > PIECE_BYTES:
            self._hand_on()
        self._copied.append(body)
        self._size_bytes += len(body)

    def _hand_on(self) -> None:
        size_bytes, self._size_bytes = self._size_bytes, 0
        if self._rows:
            rows, self._rows = self._rows, []
            self._log.rows(rows, size_bytes)
        if self._copied:
            copied, self._copied = self._copied, []
            self._log.data(b"".join(copied), "copy", is_text=self._copy_is_text)

    def _describe(self, step: Step | None, raw: bytes, formats: tuple[int, ...]) -> None:
        """Columns of the rows that come next."""
        self._columns_of = step
        try:
            fields: tuple[Field, ...] = Shape(raw, formats).fields if raw else ()
        except ProtocolError:
            fields = ()
        self._formats = tuple(field.format for field in fields) or formats
        self._log.columns(
            tuple(
                frames.Column(field.name[:MAX_NAME_CHARACTERS], str(field.type), index in self._masked)
                for index, field in enumerate(fields)
            )
        )

    def _frame(self, kind: int, body: bytes, step: Step | None) -> None:
        if kind == messages.ROW_DESCRIPTION:
            if step is not None and step.kind == "query":
                self._describe(step, messages.frame(kind, body), ())
        elif kind == messages.COPY_OUT_RESPONSE:
            self._copy_is_text = body[:1] == b"\0"
        elif kind in (messages.ERROR_RESPONSE, messages.NOTICE_RESPONSE):
            said = messages.error_fields(body)
            severity = said.get("V") or said.get("S") or ("ERROR" if kind == messages.ERROR_RESPONSE else "NOTICE")
            self._log.message(severity, said.get("M", ""), said.get("C", ""), said.get("D", ""), said.get("H", ""))
        elif kind == messages.NOTIFICATION_RESPONSE:
            channel, _, payload = body[4:].rstrip(b"\0").partition(b"\0")
            self._log.message("NOTIFICATION", _text(payload), detail=_text(channel))
        elif kind == messages.COMMAND_COMPLETE:
            self._log.message("COMPLETE", _text(body.rstrip(b"\0")))
        elif kind == messages.PARAMETER_STATUS and step is not None:
            name, _, value = body.rstrip(b"\0").partition(b"\0")
            self._log.message("PARAMETER", _text(value), detail=_text(name))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
