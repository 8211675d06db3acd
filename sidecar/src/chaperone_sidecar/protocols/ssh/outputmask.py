"""Masks what programs write, piece by piece as it comes.

Detectors see whole lines. Of the last line, which may go on, as much is held back as could still become a value; on a
terminal it is let go after a moment, because a prompt has no end. A line is looked at twice: as it is, and without the
codes that move, colour and overstrike, so that a value cannot hide between them. A private key is hidden from its first
line to its last, however many pieces it comes in.

Not covered: what a program encodes, compresses or draws by moving the cursor; see README.md.
"""

from __future__ import annotations

import re
from typing import Final

from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.masking.mask import Masker

MAX_LINE_BYTES: Final = 8 << 10  # of one line that is looked at as a whole; it may come byte by byte
HELD_BYTES: Final = 512  # of a longer one: more than any value but keys has

_CODES: Final = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|.\x08|[\x00-\x08\x0b-\x1f\x7f]",
    re.DOTALL,
)
_BEGIN: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----")
_END: Final = re.compile(rb"-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----")


class OutputMask:
    """Masks one stream.

    Args:
        masker: the detectors.
        shows_binary: what is no text, and so cannot be looked at, is shown.
    """

    def __init__(self, masker: Masker, *, shows_binary: bool = False) -> None:
        self._masker = masker
        self._shows_binary = shows_binary
        self._held = b""
        self._is_in_key = False

    @property
    def is_holding(self) -> bool:
        """Whether something waits for what comes after it."""
        return bool(self._held)

    def feed(self, data: bytes) -> bytes:
        """What may be shown now.

        Raises:
            Unmaskable: it is no text.
        """
        held = self._held + data
        end = held.rfind(b"\n") + 1
        if len(held) - end > MAX_LINE_BYTES:
            end = self._cut(held, end)
        self._held = held[end:]
        return self._lines(held[:end])

    def flush(self) -> bytes:
        """What was held back: the stream has ended, or a terminal has waited."""
        held, self._held = self._held, b""
        return self._lines(held)

    def _lines(self, data: bytes) -> bytes:
        """Lines as they may be seen: one search over all of them tells which to look at."""
        lines = data.splitlines(keepends=True)
        if self._is_in_key or not _is_text(data):
            return b"".join(map(self._line, lines))
        cells = [line.rstrip(b"\r\n") for line in lines]
        if _CODES.search(data.replace(b"\r\n", b"\n")) is not None:
            cells += [_CODES.sub(b"", cell) for cell in cells]
        elif not self._masker.may_hit(data):
            return data
        hit = {at % len(lines) for at in self._masker.hits(cells)}
        return b"".join(self._line(line) if self._is_in_key or at in hit else line for at, line in enumerate(lines))

    def _line(self, line: bytes) -> bytes:
        if self._is_in_key:
            self._is_in_key = _END.search(_CODES.sub(b"", line)) is None
            return b""
        if not self._shows_binary and not _is_text(line):
            raise Unmaskable("the output is no text, so it cannot be masked, and the policy masks values here.")
        plain = line.rstrip(b"\r\n")
        ending = line[len(plain) :]
        bare = _CODES.sub(b"", plain)
        begun = _BEGIN.search(bare)
        masked_bare = self._masker.mask_text(bare)
        if begun is not None and masked_bare != bare and _END.search(bare, begun.end()) is None:
            self._is_in_key = True
        if masked_bare != bare or bare == plain:
            return masked_bare + ending
        return self._masker.mask_text(plain) + ending

    def _cut(self, held: bytes, start: int) -> int:
        """Where a long line may be cut so that no value is: its parts mask as the whole does."""
        whole = self._masker.mask_text(_CODES.sub(b"", held[start:]))
        for place in (len(held) - HELD_BYTES * count for count in (1, 2, 4, 8)):
            first, second = _CODES.sub(b"", held[start:place]), _CODES.sub(b"", held[place:])
            if self._masker.mask_text(first) + self._masker.mask_text(second) == whole:
                return place
        return len(held) - HELD_BYTES


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
