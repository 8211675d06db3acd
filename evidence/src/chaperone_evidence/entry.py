"""Entries, bodies and their frames: the same bytes in spool, wire, log and bundle.

entry = 0x01 ‖ class(1) ‖ link(32) ‖ header, framed as uint16be length ‖ entry (the entry bundle of C2SP tlog-tiles).
body  = salt(32) ‖ plain, framed as uint32be length ‖ body.

A zero length ends a preallocated segment, and only zeros may follow. No entry ends in a zero byte (a header is JSON or
a note), so a frame that does was torn: a crash left its beginning and the zeros of the preallocated file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from chaperone_evidence.errors import Malformed, Torn

VERSION: Final = 1
CLASS_RECORD: Final = 1
CLASS_HEAD: Final = 2
LINK_BYTES: Final = 32
SALT_BYTES: Final = 32
PREFIX_BYTES: Final = 2 + LINK_BYTES
MAX_ENTRY_BYTES: Final = 16 << 10  # leaves stay small; the format itself allows 65 535
MAX_BODY_BYTES: Final = (1 << 20) + SALT_BYTES + 1024  # a statement of 1 MiB

_BODY_DOMAIN: Final = b"chaperone.dev/body/v1\n"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a stream."""

    cls: int
    link: bytes
    header: bytes

    def encode(self) -> bytes:
        """The entry's bytes, as hashed by the log."""
        return bytes((VERSION, self.cls)) + self.link + self.header


def decode(data: bytes) -> Entry:
    """Read an entry.

    Raises:
        Malformed: another version, or too short or too long.
    """
    return Entry(*split(data))


def split(data: bytes) -> tuple[int, bytes, bytes]:
    """Class, link and header of an entry's bytes.

    Raises:
        Malformed: another version, or too short or too long.
    """
    if not PREFIX_BYTES < len(data) <= MAX_ENTRY_BYTES:
        raise Malformed(f"An entry of {len(data)} bytes is not possible.")
    if data[0] != VERSION:
        raise Malformed(f"The entry has version {data[0]}; this program knows {VERSION}.")
    return data[1], data[2:PREFIX_BYTES], data[PREFIX_BYTES:]


def frame(data: bytes) -> bytes:
    """The frame of an entry's bytes.

    Raises:
        Malformed: the entry is too long.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise Malformed(f"An entry of {len(data)} bytes is longer than {MAX_ENTRY_BYTES}.")
    return len(data).to_bytes(2, "big") + data


def frames(data: bytes | memoryview) -> Iterator[bytes]:
    """The entries' bytes in a run of frames; stops at a zero length.

    Raises:
        Torn: the last frame is cut, by the end of the data or by zeros. Malformed: something follows the end.
    """
    position, size = 0, len(data)
    while position + 2 <= size:
        length = (data[position] << 8) | data[position + 1]
        if length == 0:
            _need_zeros(data, position)
            return
        end = position + 2 + length
        if end > size:
            raise Torn(f"The frame at byte {position} is cut.")
        if data[end - 1] == 0:
            _need_zeros(data, end)
            raise Torn(f"The frame at byte {position} was not written to its end.")
        yield bytes(data[position + 2 : end])
        position = end
    if position != size:
        raise Torn(f"The frame at byte {position} is cut.")


def body_frame(salt: bytes, plain: bytes) -> bytes:
    """The frame of a body."""
    return struct.pack(">I", len(salt) + len(plain)) + salt + plain


def body_frames(data: bytes | memoryview) -> Iterator[bytes]:
    """The bodies in a run of body frames; stops at a zero length.

    Raises:
        Torn: the last frame is cut. Malformed: a frame has an impossible length, or something follows the end.
    """
    position, size = 0, len(data)
    while position + 4 <= size:
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 0:
            _need_zeros(data, position)
            return
        if not SALT_BYTES <= length <= MAX_BODY_BYTES:
            raise Malformed(f"The body at byte {position} has an impossible length.")
        end = position + 4 + length
        if end > size:
            raise Torn(f"The body at byte {position} is cut.")
        yield bytes(data[position + 4 : end])
        position = end
    if position != size:
        raise Torn(f"The body at byte {position} is cut.")


def body_commit(body: bytes) -> bytes:
    """The commitment that a record holds of a body (salt and plain text)."""
    return hashlib.sha256(_BODY_DOMAIN + body).digest()


def _need_zeros(data: bytes | memoryview, position: int) -> None:
    if bytes(data[position:]).strip(b"\0"):
        raise Malformed(f"Something follows the end at byte {position}.")
