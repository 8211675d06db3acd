"""What a client of MySQL is about to read, as frames of a recording.

The upstream's side says what it makes the client's next bytes of; `show` keeps it when those bytes are handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from chaperone_evidence import frames
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql import rows
from chaperone_sidecar.recording.results import PIECE_BYTES, ResultLog

MAX_NAME_CHARACTERS: Final = 256


class Tape:
    """Keeps what one client is shown."""

    def __init__(self, log: ResultLog) -> None:
        self._log = log
        self._waiting: list[Callable[[], None]] = []

    def begin(self, command_id: str) -> None:
        """What follows belongs to this command, or to none ("")."""
        self._waiting.append(lambda: self._log.begin(command_id))

    def columns(self, columns: Sequence[m.Column], masked: Sequence[int]) -> None:
        """Rows with these columns follow."""
        told = tuple(
            frames.Column(column.name[:MAX_NAME_CHARACTERS], str(column.type), index in masked)
            for index, column in enumerate(columns)
        )
        self._waiting.append(lambda: self._log.columns(told))

    def rows(self, payloads: list[bytes], columns: Sequence[m.Column], *, is_binary: bool) -> None:
        """Rows as the client gets them."""
        self._waiting.append(lambda: self._rows(payloads, columns, is_binary=is_binary))

    def message(self, severity: str, text: str, code: str = "") -> None:
        """An error, or how a statement ended."""
        self._waiting.append(lambda: self._log.message(severity, text, code))

    def show(self) -> None:
        """The client is about to get all that was said.

        Raises:
            SpoolFull: no room.
        """
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one()

    def _rows(self, payloads: list[bytes], columns: Sequence[m.Column], *, is_binary: bool) -> None:
        kept: list[tuple[frames.Cell, ...]] = []
        size_bytes = 0
        for payload in payloads:
            size = len(payload)
            if kept and size_bytes + size > min(PIECE_BYTES, self._log.room):
                self._log.rows(kept, size_bytes)
                kept, size_bytes = [], 0
            if size > self._log.room:
                self._log.cut()
                return
            if size > PIECE_BYTES:
                self._log.data(payload, "row")
                continue
            kept.append(_cells(payload, columns, is_binary=is_binary))
            size_bytes += size
        if kept:
            self._log.rows(kept, size_bytes)


def _cells(payload: bytes, columns: Sequence[m.Column], *, is_binary: bool) -> tuple[frames.Cell, ...]:
    if not is_binary:
        return tuple(
            None if one is None else frames.cell(one, is_text=True) for one in rows.text_cells(payload, len(columns))
        )
    return tuple(
        None if one is None else frames.cell(rows.shown(one, column), is_text=True)
        for one, column in zip(rows.binary_cells(payload, columns), columns, strict=True)
    )
