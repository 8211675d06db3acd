"""Reading a spool's segments from the front while their end is still being written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

READ_BYTES: Final = 1 << 20  # a batch's bound at the collector
SUFFIX: Final = ".seg"


class Cursor:
    """Walks the frames of a folder of segments in order.

    Args:
        folder: holds `*.seg`; their names sort as their contents.
        prefix_bytes: 2 for entry frames, 4 for body frames.
    """

    def __init__(self, folder: Path, prefix_bytes: int) -> None:
        self._folder = folder
        self._prefix = prefix_bytes
        self._file = ""
        self._offset = 0
        self._passed = 0

    @property
    def number(self) -> int:
        """That of the frame where the cursor stands: a segment is named by its first one's. After `peek` gave some."""
        return int(self._file.removesuffix(SUFFIX)) + self._passed

    def peek(self, limit_bytes: int = READ_BYTES) -> tuple[bytes, list[int]]:
        """Whole frames from where the cursor stands, and the length of each; empty when there is nothing new.

        A first frame longer than the limit is given alone.
        """
        while True:
            if not self._file and not self._open_next():
                return b"", []
            data = self._read(limit_bytes)
            lengths = self._lengths(data)
            if lengths:
                return data[: sum(lengths)], lengths
            if not self._open_next():
                return b"", []

    def advance(self, lengths: list[int]) -> None:
        """What was peeked is dealt with, as far as frames of these lengths."""
        self._offset += sum(lengths)
        self._passed += len(lengths)

    def _read(self, limit_bytes: int) -> bytes:
        try:
            descriptor = os.open(self._folder / self._file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""  # read to its end, acknowledged and freed: the next one follows
        try:
            data = os.pread(descriptor, max(limit_bytes, self._prefix), self._offset)
            size = int.from_bytes(data[: self._prefix], "big") + self._prefix
            return os.pread(descriptor, size, self._offset) if size > len(data) else data
        finally:
            os.close(descriptor)

    def _lengths(self, data: bytes) -> list[int]:
        lengths, position = [], 0
        while position + self._prefix <= len(data):
            length = int.from_bytes(data[position : position + self._prefix], "big")
            if length == 0 or position + self._prefix + length > len(data):
                break
            lengths.append(self._prefix + length)
            position += self._prefix + length
        return lengths

    def _open_next(self) -> bool:
        """Go on to the next segment, if it exists: then the present one is sealed and read to its end."""
        following = min((path.name for path in self._folder.glob(f"*{SUFFIX}") if path.name > self._file), default="")
        if not following:
            return False
        self._file, self._offset, self._passed = following, 0, 0
        return True
