"""Bytes in, payloads out: the packets of one side, with their caps.

A packet has a length of three bytes and a number that counts within one command; a payload of 2^24 - 1 bytes or more
comes in several packets. A client's may not: 16 MiB are enough for what an agent says at once. A server's may be as
long as `MAX_ROW_BYTES`, since a row is masked as a whole.

Spec: "MySQL Packets", "Sending More Than 16Mb".
"""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.mysql.messages import MAX_PAYLOAD, Side

MAX_ROW_BYTES: Final = 64 << 20  # a longer row ends the session; max_allowed_packet of a server is 64 MiB as a rule
HEAD_BYTES: Final = 4


class Packet(msgspec.Struct, frozen=True, gc=False):
    """One payload, and the number that the next packet of the dialogue gets."""

    payload: bytes
    next_sequence: int


class Codec:
    """Takes the packets of one side apart; `expect` says where its numbers begin anew."""

    def __init__(self, side: Side) -> None:
        self._side: Side = side
        self._buffer = bytearray()
        self._place = 0
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._next = 0

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        if self._place:
            del self._buffer[: self._place]
            self._place = 0
        self._buffer += data

    def expect(self, sequence: int) -> None:
        """The next packet must have this number."""
        self._next = sequence & 0xFF

    @property
    def has_bytes(self) -> bool:
        """Whether something was fed that is not taken yet."""
        return self._place < len(self._buffer)

    def take_rest(self) -> bytes:
        """What was fed and not taken."""
        rest = bytes(self._buffer[self._place :])
        self._buffer.clear()
        self._place = 0
        return rest

    def next(self) -> Packet | None:
        """The next whole payload, or None: more bytes are needed.

        Raises:
            ProtocolError: too long, empty where nothing is continued, or out of its order.
        """
        while True:
            buffer, place = self._buffer, self._place
            if len(buffer) - place < HEAD_BYTES:
                return None
            size = buffer[place] | buffer[place + 1] << 8 | buffer[place + 2] << 16
            if buffer[place + 3] != self._next:
                raise ProtocolError("A packet came out of its order.", side=self._side)
            self._check(size)
            start = place + HEAD_BYTES
            if len(buffer) - start < size:
                return None
            payload = bytes(buffer[start : start + size])
            self._place = start + size
            self._next = self._next + 1 & 0xFF
            if size == MAX_PAYLOAD:
                self._parts.append(payload)
                self._size_bytes += size
                continue
            if self._parts:
                payload = b"".join((*self._parts, payload))
                self._parts.clear()
                self._size_bytes = 0
            return Packet(payload, self._next)

    def _check(self, size: int) -> None:
        if self._side == "client" and size == MAX_PAYLOAD:
            raise ProtocolError("A command of 16 MiB or more is not passed on; send less at once.")
        if self._size_bytes + size > MAX_ROW_BYTES:
            raise ProtocolError(f"The database sent more than {MAX_ROW_BYTES >> 20} MiB as one row.", side="upstream")
        if not size and not self._parts and self._side == "upstream":
            raise ProtocolError("The database sent an empty packet.", side="upstream")
