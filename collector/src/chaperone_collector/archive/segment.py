r"""Segments: a range of the log's entries as one object. Pure.

    segment = "chapseg\x01" ‖ SHA-256(origin) ‖ uint64be first ‖ uint32be count ‖ SHA-256(rest) ‖ rest
    rest    = uint32be length of the frames ‖ frames (uint16be length ‖ entry) ‖ what the tables add, as JSON

The JSON holds what entries do not say: which stream of the collector each belongs to, when it came, and whose
populations are believed. Who signs the log does not sign that; a stream's chain proves the first of it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from chaperone_collector.errors import RestoreRefused
from chaperone_evidence import entry
from chaperone_evidence.errors import EvidenceError

MAGIC: Final = b"chapseg\x01"
_HEAD: Final = struct.Struct(">8s32sQI32s")
_LENGTH: Final = struct.Struct(">I")


class Beside(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the tables know of the entries of a segment."""

    runs: list[tuple[int, int]]  # number of a stream, how many entries of it follow
    received: list[tuple[int, int]]  # first index of a transaction, microseconds since 1970
    population_key: str = ""


class Segment(msgspec.Struct, frozen=True):
    """A range of the log."""

    first: int
    entries: list[bytes]
    beside: Beside

    @property
    def end(self) -> int:
        """The index behind its last entry."""
        return self.first + len(self.entries)


def name(first: int) -> str:
    """The name of the segment that begins there."""
    return f"{first:016x}.seg"


def encode(segment: Segment, origin: str) -> bytes:
    """The object."""
    frames = b"".join(map(entry.frame, segment.entries))
    rest = _LENGTH.pack(len(frames)) + frames + msgspec.json.encode(segment.beside)
    head = _HEAD.pack(MAGIC, origin_hash(origin), segment.first, len(segment.entries), hashlib.sha256(rest).digest())
    return head + rest


def decode(data: bytes, origin: str) -> Segment:
    """Read an object.

    Raises:
        RestoreRefused: it is none, of another log, or changed.
    """
    if len(data) < _HEAD.size + _LENGTH.size:
        raise RestoreRefused("The segment is cut.")
    magic, of, first, count, digest = _HEAD.unpack_from(data)
    rest = memoryview(data)[_HEAD.size :]
    if magic != MAGIC or of != origin_hash(origin):
        raise RestoreRefused(f"The object is no segment of the log {origin}.")
    if hashlib.sha256(rest).digest() != digest:
        raise RestoreRefused(f"The segment at {first} was changed: its hash is another.")
    (length,) = _LENGTH.unpack_from(rest)
    try:
        found = list(entry.frames(rest[_LENGTH.size : _LENGTH.size + length]))
        beside = msgspec.json.decode(bytes(rest[_LENGTH.size + length :]), type=Beside)
    except (EvidenceError, msgspec.DecodeError) as error:
        raise RestoreRefused(f"The segment at {first} cannot be read: {error}") from error
    if not len(found) == count == sum(many for _, many in beside.runs) or not count:
        raise RestoreRefused(f"The segment at {first} does not hold the {count} entries that it says.")
    if not beside.received or beside.received[0][0] > first:
        raise RestoreRefused(f"The segment at {first} does not say when its entries came.")
    return Segment(first, found, beside)


def origin_hash(origin: str) -> bytes:
    """Which log an object is of."""
    return hashlib.sha256(origin.encode()).digest()
