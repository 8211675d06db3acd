"""What one session's client is shown, on its way into the spool.

A protocol's package says what is shown (`columns`, `rows`, `data`, `message`), the driver calls `flush` before it
writes to the client: then everything said so far is in the spool. So what a client has is a beginning of what is
recorded, whenever this process dies. Only bytes that have passed the mask come here, for the client gets the same.

Of each command so many bytes are kept as the identity asks for; a `cut` frame says where the rest is missing, and it is
in the spool before the first byte that is missing is sent. Memory is bounded by one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from chaperone_evidence import frames
from chaperone_sidecar.recording.recorder import Recorder, SessionLog

# Of the client's bytes in one frame: JSON needs at most six for one, so the frame fits into a chunk.
PIECE_BYTES: Final = 32 << 10
MAX_MESSAGE_CHARACTERS: Final = 8 << 10  # of each text of a message; an error may quote a statement of 1 MiB
# Few and small, and a result means something else without them.
_ALWAYS: Final = frozenset({"ERROR", "FATAL", "PANIC", "COMPLETE"})


class ResultLog:
    """Collects frames of one session and puts them into the spool as chunks.

    Args:
        recorder: writes the stream.
        log: the session's.
        max_bytes: kept of what one command shows, as the client gets it.
    """

    def __init__(self, recorder: Recorder, log: SessionLog, max_bytes: int) -> None:
        self._recorder = recorder
        self._log = log
        self._max_bytes = max_bytes
        self._command = ""
        self._kept = {"": 0}  # bytes of the present command, and of what belongs to none since the last one
        self._is_cut: set[str] = set()
        self._lines: list[bytes] = []
        self._size_bytes = 0
        self._first_us = 0
        self._last_us = 0

    def begin(self, command: str) -> None:
        """What follows belongs to this command, or to none ("").

        Raises:
            SpoolFull: no room for what was said of another one.
        """
        if command == self._command:
            return
        self.flush()
        self._command = command
        if command and command not in self._kept:
            self._kept = {"": 0, command: 0}
            self._is_cut.clear()

    @property
    def room(self) -> int:
        """Bytes that are still kept of what the present command shows; 0 after it was cut."""
        return 0 if self._command in self._is_cut else self._max_bytes - self._kept[self._command]

    def cut(self) -> None:
        """Nothing more is kept of what the present command shows.

        Raises:
            SpoolFull: no room.
        """
        if self._command not in self._is_cut:
            self._is_cut.add(self._command)
            kept = self._kept[self._command]
            self._add(frames.Cut(t_us=self._now_us(), why="maxResultBytes", kept_bytes=kept))

    def columns(self, columns: tuple[frames.Column, ...]) -> None:
        """Rows with these columns follow.

        Raises:
            SpoolFull: no room.
        """
        if not self.room:
            return
        frame = frames.Columns(t_us=self._now_us(), columns=columns)
        if len(frames.encode(frame)) > frames.MAX_CHUNK_BYTES:  # names of a hostile server: cells come without them
            frame = frames.Columns(t_us=frame.t_us, columns=())
        self._add(frame)

    def rows(self, rows: Sequence[tuple[frames.Cell, ...]], size_bytes: int) -> None:
        """Rows, at most `PIECE_BYTES` of them and not more than there is room for.

        Raises:
            SpoolFull: no room.
        """
        self._kept[self._command] += size_bytes
        self._add(frames.Rows(t_us=self._now_us(), rows=tuple(rows)))

    def data(self, raw: bytes | memoryview, part_of: Literal["copy", "row"], *, is_text: bool = True) -> None:
        """Bytes without columns; kept as far as there is room.

        Raises:
            SpoolFull: no room.
        """
        room = self.room
        for start in range(0, min(len(raw), room), PIECE_BYTES):
            piece = raw[start : min(start + PIECE_BYTES, room)]
            self._kept[self._command] += len(piece)
            self._add(frames.Data(t_us=self._now_us(), data=frames.cell(piece, is_text=is_text), part_of=part_of))
        if len(raw) > room:
            self.cut()

    def output(self, raw: bytes) -> None:
        """What a terminal, or the reader of a program's output, is shown; kept as far as there is room.

        Raises:
            SpoolFull: no room.
        """
        for piece in self._pieces(raw):
            self._add(frames.Output(t_us=self._now_us(), data=frames.cell(piece)))

    def typed(self, raw: bytes) -> None:
        """What the client types or sends to a program; kept as far as there is room.

        Raises:
            SpoolFull: no room.
        """
        for piece in self._pieces(raw):
            self._add(frames.Input(t_us=self._now_us(), data=frames.cell(piece)))

    def resize(self, width: int, height: int) -> None:
        """A terminal has this size from now on, in characters.

        Raises:
            SpoolFull: no room.
        """
        self._add(frames.Resize(t_us=self._now_us(), width=min(width, 65535), height=min(height, 65535)))

    def message(self, severity: str, text: str, code: str = "", detail: str = "", hint: str = "") -> None:
        """An error, a notice, or how a statement ended. Errors and ends are kept where there is no room any more, too.

        Raises:
            SpoolFull: no room.
        """
        texts = (text, detail, hint)
        if severity not in _ALWAYS:
            size_bytes = len("".join(texts).encode())
            if size_bytes > self.room:
                self.cut()
                return
            self._kept[self._command] += size_bytes
        text, detail, hint = (one[:MAX_MESSAGE_CHARACTERS] for one in texts)
        self._add(
            frames.Message(
                t_us=self._now_us(), severity=severity[:32], text=text, code=code[:32], detail=detail, hint=hint
            )
        )
        if (text, detail, hint) != texts:
            kept = len((text + detail + hint).encode())
            self._add(frames.Cut(t_us=self._now_us(), why="maxMessageBytes", kept_bytes=kept))

    def flush(self) -> None:
        """Put what was said into the spool.

        Raises:
            SpoolFull: no room; none of it may be shown.
        """
        lines, self._lines, self._size_bytes = self._lines, [], 0
        if lines:
            packed = frames.pack(b"".join(lines))
            self._recorder.keep_chunk(
                self._log, self._command, packed, frames.CODEC, len(lines), self._first_us, self._last_us
            )

    def _pieces(self, raw: bytes) -> Iterator[bytes]:
        """Bytes in pieces of frames, as far as there is room; what is left out is said."""
        room = self.room
        for start in range(0, min(len(raw), room), PIECE_BYTES):
            piece = raw[start : min(start + PIECE_BYTES, room)]
            self._kept[self._command] += len(piece)
            yield piece
        if len(raw) > room:
            self.cut()

    def _add(self, frame: frames.Frame) -> None:
        line = frames.encode(frame)
        if self._size_bytes + len(line) > frames.MAX_CHUNK_BYTES:
            self.flush()
        if not self._lines:
            self._first_us = frame.t_us
        self._last_us = frame.t_us
        self._lines.append(line)
        self._size_bytes += len(line)

    def _now_us(self) -> int:
        return self._recorder.since_open_us(self._log)
