"""The spool: where records are kept between the command and the collector.

Two append-only families of files under one root, in the layout of an evidence directory: `streams/<id>/<first seq>.seg`
holds entry frames, `bodies/<id>/<n>.seg` holds body frames. Segments are preallocated, so a full disk shows itself when
a segment is made and not in the middle of a record; a zero length ends a segment.

Invariants:
* What `append` took is in the page cache when it returns: it survives the death of this process.
* A record that a command depends on is refused with `SpoolFull` while the records that already running commands still
  owe (outcomes, ends, heads) have room: one spare segment is kept for them.
* After `fail` or `close` nothing is taken any more.
* The sum of all segments of a root never passes `limit_bytes`.

Sad path: a disk that fails under a mapping ends the process (SIGBUS). The fence stays closed, and where no spool can be
made no stream begins.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Final

from chaperone_sidecar.errors import SpoolFailed, SpoolFull

SEGMENT_BYTES: Final = 1 << 20  # 1 MiB: about 2 500 records, so an acknowledged stretch is freed soon
BODY_SEGMENT_BYTES: Final = 2 << 20  # holds the largest body (1 MiB of text and its parameters up to the cap below)
MAX_FRAME_BYTES: Final = 2 + (16 << 10)  # length and the longest entry
END_BYTES: Final = 4  # the zero length that ends a segment of bodies; a reader takes less for a cut frame
MAX_BODY_BYTES: Final = 1 << 20  # longer ones are cut by the recorder, which records the true size and hash


class Segment:
    """One preallocated file, written through a mapping: what is appended is in the page cache at once."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.used = 0
        self.synced = 0  # of `used`, what is known to be on disk
        self.last_seq = -1
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)  # so that no later write can find the disk full
            self._map = mmap.mmap(self._fd, size_bytes)
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def has_room(self, size_bytes: int) -> bool:
        """Whether that many bytes fit."""
        return self.used + size_bytes <= self.size_bytes

    def append(self, frame: bytes) -> None:
        """Keep a frame. Its last byte comes last: a frame that ends in zero was not written to its end."""
        end = self.used + len(frame) - 1
        self._map[self.used : end] = frame[:-1]
        self._map[end] = frame[-1]
        self.used = end + 1

    def duplicate(self) -> int:
        """A descriptor of the file for the caller, who closes it.

        Raises:
            OSError: the file is gone.
        """
        return os.dup(self._fd) if self._fd >= 0 else os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give mapping and file descriptor back; what was appended stays."""
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1


class Spool:
    """The spool of one stream.

    Args:
        root: an evidence directory; other streams in it count against the limit.
        stream: the stream's id.
        limit_bytes: bound on all segments under `root`.
    """

    def __init__(self, root: Path, stream: str, limit_bytes: int) -> None:
        self.root = root
        self.stream = stream
        self._limit_bytes = limit_bytes
        self._directory = root / "streams" / stream
        self._body_directory = root / "bodies" / stream
        self.used_bytes = stored_bytes(root)  # of all streams under the root
        self._sealed: list[Segment] = []
        self._sealed_bodies: list[Segment] = []
        self._next_body_file = 0
        self._next_seq = 0
        self._has_new_names = True
        self.failure = ""
        self.is_synced = False  # somebody syncs: sealed segments stay open until they are on disk
        try:
            self._current = self._new_segment(0)
            self._bodies = self._new_body_segment()
            self._spare: Segment | None = self._new_segment(None)
        except OSError as error:
            raise SpoolFull(f"The spool cannot be made: {error.strerror}.") from error

    @property
    def limit_bytes(self) -> int:
        """The bound of `used_bytes`."""
        return self._limit_bytes

    @property
    def next_seq(self) -> int:
        """The number of the next record."""
        return self._next_seq

    def admit(self, *, owed: bool) -> None:
        """Make sure that the next record fits, before it is chained.

        `owed` marks records that a running command or an open session already owes; they may use the spare segment.

        Raises:
            SpoolFull: no room is left for a record of this kind. SpoolFailed: the disk has failed.
        """
        if self.failure:
            raise SpoolFailed(self.failure)
        if not owed and self._spare is None:
            self._make_spare()
        if not self._current.has_room(MAX_FRAME_BYTES):
            self._rotate()

    def append(self, frame: bytes) -> int:
        """Keep an entry's frame that `admit` made room for; returns its sequence number."""
        seq = self._next_seq
        self._current.append(frame)
        self._current.last_seq = seq
        self._next_seq += 1
        return seq

    def append_body(self, frame: bytes) -> None:
        """Keep the body of the record that comes next.

        Raises:
            SpoolFull: no room is left.
        """
        if not self._bodies.has_room(len(frame) + END_BYTES):
            try:
                fresh = self._new_body_segment()
            except OSError as error:
                raise SpoolFull(f"The spool is full: {error.strerror}.") from error
            self._seal(self._bodies)
            self._sealed_bodies.append(self._bodies)
            self._bodies = fresh
        self._bodies.append(frame)
        self._bodies.last_seq = self._next_seq

    def pin_body(self) -> None:
        """Note that the next record names a body that was kept before, so its segment stays at least as long."""
        for segment in (*self._sealed_bodies, self._bodies):
            segment.last_seq = self._next_seq

    def release(self, acked_seq: int) -> None:
        """Free every sealed segment whose records the collector has stored."""
        self._sealed = self._release(self._sealed, acked_seq)
        self._sealed_bodies = self._release(self._sealed_bodies, acked_seq)

    def forget(self, freed_bytes: int) -> None:
        """Count bytes of an older stream as free after the shipper removed its files."""
        self.used_bytes -= freed_bytes

    def unsynced(self) -> list[Segment]:
        """The segments with something that is not known to be on disk."""
        segments = (*self._sealed, *self._sealed_bodies, self._bodies, self._current)
        return [one for one in segments if one.used > one.synced]

    def new_names(self) -> list[Path]:
        """The folders in which files were made or renamed since this was asked last, and those that they are in."""
        if not self._has_new_names:
            return []
        self._has_new_names = False
        families = (self._directory, self._body_directory)
        return [*families, *(one.parent for one in families), self.root]

    def settle(self, segment: Segment, synced: int) -> None:
        """Note that a segment is on disk up to there."""
        segment.synced = synced
        if segment is not self._current and segment is not self._bodies:
            segment.close()

    def fail(self, why: str) -> None:
        """Take nothing any more: what is here may not be what was written."""
        self.failure = self.failure or why

    def close(self) -> None:
        """Close the files; a spare that was never used is removed. Nothing is taken any more."""
        self.fail("The gateway's stream has ended.")
        for segment in (*self._sealed, *self._sealed_bodies, self._current, self._bodies):
            segment.close()
        if self._spare is not None:
            self._spare.close()
            self._spare.path.unlink(missing_ok=True)

    def _rotate(self) -> None:
        spare = self._spare or self._make_spare()
        self._seal(self._current)
        self._sealed.append(self._current)
        self._has_new_names = True
        spare.path = spare.path.rename(self._directory / f"{self._next_seq:016d}.seg")
        self._current = spare
        self._spare = None

    def _seal(self, segment: Segment) -> None:
        if not self.is_synced:
            segment.close()

    def _make_spare(self) -> Segment:
        try:
            self._spare = self._new_segment(None)
        except OSError as error:
            raise SpoolFull(f"The spool is full: {error.strerror}.") from error
        return self._spare

    def _new_segment(self, first_seq: int | None) -> Segment:
        name = "spare" if first_seq is None else f"{first_seq:016d}.seg"
        return self._allocate(self._directory / name, SEGMENT_BYTES)

    def _new_body_segment(self) -> Segment:
        segment = self._allocate(self._body_directory / f"{self._next_body_file:08d}.seg", BODY_SEGMENT_BYTES)
        self._next_body_file += 1
        return segment

    def _allocate(self, path: Path, size_bytes: int) -> Segment:
        if self.used_bytes + size_bytes > self._limit_bytes:
            raise OSError(errno.ENOSPC, f"its bound of {self._limit_bytes} bytes is reached")
        segment = Segment(path, size_bytes)
        self._has_new_names = True
        self.used_bytes += size_bytes
        return segment

    def _release(self, segments: list[Segment], acked_seq: int) -> list[Segment]:
        kept = []
        for segment in segments:
            if segment.last_seq > acked_seq:
                kept.append(segment)
                continue
            segment.close()
            segment.path.unlink(missing_ok=True)
            self.used_bytes -= segment.size_bytes
        return kept


def stored_bytes(root: Path) -> int:
    """Bytes of all segments under an evidence directory."""
    return sum(path.stat().st_size for family in ("streams", "bodies") for path in root.glob(f"{family}/*/*"))
