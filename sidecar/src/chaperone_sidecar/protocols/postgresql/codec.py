"""Frames of the PostgreSQL protocol, in both directions, without I/O.

`FrontendCodec` reads what a client sends, `BackendCodec` what a server sends. Both hold at most one unfinished frame,
whose length is checked against a cap for its type as soon as five bytes are there: neither side can make the gateway
keep more. Rows are the exception: `BackendCodec.next` gives runs of whole DataRow and CopyData frames, and a row
longer than `LONG_ROW_BYTES` in pieces as they come, so that a value of a gigabyte passes through without being held.

States: a client is starting (messages without a type byte) until `started` is called. Which message may come when is
the session's business, since it depends on what was sent the other way; a type that is not in the table is refused
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import messages as m

type Side = Literal["client", "upstream"]

MAX_STARTUP_BYTES: Final = 10_000  # the server's own MAX_STARTUP_PACKET_LENGTH
MAX_SMALL_BYTES: Final = 64 << 10  # names and counts: Execute, Describe, Close, Sync, …
MAX_QUERY_BYTES: Final = (1 << 20) + 64  # a statement of 1 MiB: the longest that is still parsed
MAX_BIND_BYTES: Final = 16 << 20  # parameters are kept until recorded
MAX_COPY_BYTES: Final = 16 << 20  # drivers send 8–64 KiB a message; the server accepts 1 GiB
MAX_ERROR_BYTES: Final = 1 << 20  # an error may quote the statement
LONG_ROW_BYTES: Final = 256 << 10  # rows up to here are passed whole, longer ones in pieces

_FRONTEND_CAPS: Final = {
    m.BIND: MAX_BIND_BYTES,
    m.CLOSE: MAX_SMALL_BYTES,
    m.COPY_DATA: MAX_COPY_BYTES,
    m.COPY_DONE: 4,
    m.COPY_FAIL: MAX_SMALL_BYTES,
    m.DESCRIBE: MAX_SMALL_BYTES,
    m.EXECUTE: MAX_SMALL_BYTES,
    m.FLUSH: 4,
    m.FUNCTION_CALL: MAX_SMALL_BYTES,
    m.PARSE: MAX_QUERY_BYTES + MAX_SMALL_BYTES,
    m.QUERY: MAX_QUERY_BYTES,
    m.SYNC: 4,
    m.TERMINATE: 4,
}
_PASSWORD_CAPS: Final = {m.PASSWORD: MAX_SMALL_BYTES, m.TERMINATE: 4}  # a token of a person has a few KiB
_BACKEND_CAPS: Final = {
    m.AUTHENTICATION: MAX_SMALL_BYTES,
    m.BACKEND_KEY_DATA: 264,
    m.BIND_COMPLETE: 4,
    m.CLOSE_COMPLETE: 4,
    m.COMMAND_COMPLETE: MAX_SMALL_BYTES,
    m.COPY_DONE: 4,
    m.COPY_IN_RESPONSE: MAX_SMALL_BYTES,
    m.COPY_OUT_RESPONSE: MAX_SMALL_BYTES,
    m.EMPTY_QUERY_RESPONSE: 4,
    m.ERROR_RESPONSE: MAX_ERROR_BYTES,
    m.NEGOTIATE_PROTOCOL_VERSION: MAX_SMALL_BYTES,
    m.NO_DATA: 4,
    m.NOTICE_RESPONSE: MAX_ERROR_BYTES,
    m.NOTIFICATION_RESPONSE: MAX_SMALL_BYTES,
    m.PARAMETER_DESCRIPTION: 4 + 2 + 4 * 65535,
    m.PARAMETER_STATUS: MAX_SMALL_BYTES,
    m.PARSE_COMPLETE: 4,
    m.PORTAL_SUSPENDED: 4,
    m.READY_FOR_QUERY: 5,
    m.ROW_DESCRIPTION: 1 << 20,  # 1 664 columns, each with a name of at most 63 bytes, and room
}
_ROWS: Final = frozenset({m.DATA_ROW, m.COPY_DATA})


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One message: type (0 in the start-up phase) and the whole of it as sent."""

    type: int
    raw: bytes

    @property
    def body(self) -> bytes:
        """What follows type and length."""
        return self.raw[5:] if self.type else self.raw[4:]


class Rows(msgspec.Struct, frozen=True, gc=False):
    """A run of rows as sent: `count` begin in it, after `tail` bytes of one that began earlier."""

    data: bytes
    count: int
    tail: int = 0


class _Buffer:
    """Bytes not yet read, consumed from the front without moving what is left.

    While a message is incomplete, `missing` says how many bytes it lacks; until they are there nothing is looked at
    again and what comes is only appended, so that a peer who sends single bytes costs linear time.
    """

    def __init__(self) -> None:
        self.data = b""
        self.start = 0
        self.missing = 0
        self._tail = bytearray()

    def feed(self, data: bytes) -> None:
        if self.missing > len(data):
            self._tail += data
            self.missing -= len(data)
            return
        self.missing = 0
        rest = self.data[self.start :] if self.start else self.data
        if self._tail:
            rest += self._tail
            self._tail = bytearray()
        self.data = rest + data if rest else bytes(data)
        self.start = 0

    def __len__(self) -> int:
        return 0 if self.missing else len(self.data) - self.start

    def rest(self) -> bytes:
        return self.data[self.start :] + self._tail


class FrontendCodec:
    """Reads what a client sends."""

    def __init__(self) -> None:
        self._buffer = _Buffer()
        self._is_starting = True
        self._caps = _FRONTEND_CAPS

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer.feed(data)

    def expect_password(self) -> None:
        """A password was asked for: until `started` nothing else may come."""
        self._is_starting = False
        self._caps = _PASSWORD_CAPS

    def started(self) -> None:
        """The start-up phase is over: messages have types from now on."""
        self._is_starting = False
        self._caps = _FRONTEND_CAPS

    def expect_nothing(self) -> None:
        """Refuse bytes that came in plain after a request for encryption: they would be taken for encrypted ones.

        Raises:
            ProtocolError: side=client (the fault of CVE-2021-23214).
        """
        if self._buffer.rest():
            raise ProtocolError("Bytes followed the request for encryption before it was answered.")

    def take_rest(self) -> bytes:
        """What was fed and not read; for handing over to another layer."""
        rest = self._buffer.rest()
        self._buffer = _Buffer()
        return rest

    def next(self) -> Frame | None:
        """The next whole message, or None: more bytes are needed.

        Raises:
            ProtocolError: side=client; a type that does not exist or a length over its cap.
        """
        buffer = self._buffer
        if self._is_starting:
            return self._next_startup()
        data, start = buffer.data, buffer.start
        if buffer.missing or len(data) - start < 5:
            return None
        kind = data[start]
        size = int.from_bytes(data[start + 1 : start + 5], "big")
        cap = self._caps.get(kind)
        if cap is None:
            raise ProtocolError(f"A message of type {bytes((kind,))!r} is not allowed here.")
        if not 4 <= size <= cap:
            raise ProtocolError(f"A message of type {chr(kind)!r} has {size} bytes; at most {cap} are allowed.")
        return _take(buffer, kind, size)

    def _next_startup(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        size = int.from_bytes(buffer.data[buffer.start : buffer.start + 4], "big")
        if not 8 <= size <= MAX_STARTUP_BYTES:
            raise ProtocolError("The first message is not a PostgreSQL startup message.")
        if len(buffer) < size:
            buffer.missing = size - len(buffer)
            return None
        raw = buffer.data[buffer.start : buffer.start + size]
        buffer.start += size
        return Frame(0, raw)


class BackendCodec:
    """Reads what a server sends after its log-in."""

    def __init__(self) -> None:
        self._buffer = _Buffer()
        self.long_row_bytes = LONG_ROW_BYTES
        """A row of more is passed on in parts."""
        self.row_bytes_left = 0
        """Bytes still to come of a row that was passed on in part."""

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer.feed(data)

    def _rows(self, buffer: _Buffer) -> Rows | None:
        """The run of rows at the front of what was fed, or None: nothing of them is whole."""
        data, start, end = buffer.data, buffer.start, len(buffer.data)
        position, count, tail = start, 0, 0
        if self.row_bytes_left:
            position = min(end, start + self.row_bytes_left)
            tail = position - start
            self.row_bytes_left -= tail
        while not self.row_bytes_left and position + 5 <= end and data[position] in _ROWS:
            size = int.from_bytes(data[position + 1 : position + 5], "big")
            if not 4 <= size <= 0x7FFFFFFF:
                raise ProtocolError("The database sent a row with an impossible length.", side="upstream")
            after = position + 1 + size
            if after > end:
                if size <= self.long_row_bytes:
                    if position == start:
                        buffer.missing = after - end
                    break
                self.row_bytes_left = after - end
                after = end
            position = after
            count += 1
        if position == start:
            return None
        buffer.start = position
        return Rows(data[start:position] if start or position < end else data, count, tail)

    def next(self) -> Frame | Rows | None:
        """The next whole message, or a run of rows; None: more bytes are needed.

        Raises:
            ProtocolError: side=upstream; a type that is not allowed, a length over its cap, or an impossible one.
        """
        buffer = self._buffer
        if buffer.missing:
            return None
        data, start = buffer.data, buffer.start
        if self.row_bytes_left:
            return self._rows(buffer)
        if len(data) - start < 5:
            return None
        kind = data[start]
        if kind in _ROWS:
            return self._rows(buffer)
        size = int.from_bytes(data[start + 1 : start + 5], "big")
        cap = _BACKEND_CAPS.get(kind)
        if cap is None:
            raise ProtocolError(
                f"The database sent a message of type {bytes((kind,))!r}, which is not allowed.", side="upstream"
            )
        if not 4 <= size <= cap:
            raise ProtocolError(f"The database sent a message of {size} bytes; at most {cap} are allowed.", "upstream")
        return _take(buffer, kind, size)

    def take_rest(self) -> bytes:
        """What was fed and not read; for handing over to another codec."""
        rest = self._buffer.rest()
        self._buffer = _Buffer()
        return rest


def frames(run: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """The frames of a run that is whole and well formed."""
    place = 0
    while place < len(run):
        after = place + 1 + int.from_bytes(run[place + 1 : place + 5], "big")
        yield run[place:after]
        place = after


def _take(buffer: _Buffer, kind: int, size: int) -> Frame | None:
    start = buffer.start
    end = start + 1 + size
    if end > len(buffer.data):
        buffer.missing = end - len(buffer.data)
        return None
    buffer.start = end
    raw = buffer.data[start:end]
    return Frame(kind, raw)
