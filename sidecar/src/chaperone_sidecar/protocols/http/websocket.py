"""Frames of WebSocket (RFC 6455), read strictly, and what the gateway itself says in them.

One direction of a connection is read by one `Codec`. Fragments become whole messages of bounded length; no extension is
ever agreed, so a reserved bit is an error. States: between messages, or within one of a kind (its fragments); control
frames come in either.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Final, Literal

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http.messages import NEED_DATA, NeedData

MAX_MESSAGE_BYTES: Final = 1 << 20  # of a message: it is decided about, or masked, as a whole
MAX_REASON_BYTES: Final = 123  # of a Close frame (5.5)
MAX_CONTROL_BYTES: Final = 125
GOING_AWAY, PROTOCOL, NO_STATUS, INVALID, POLICY, TOO_BIG, TRY_LATER, BAD_GATEWAY = (
    1001, 1002, 1005, 1007, 1008, 1009, 1013, 1014,
)  # fmt: skip
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_KINDS: Final = {_TEXT: "text", _BINARY: "binary"}
_CONTROL: Final = 0x8  # the bit that control frames have in their opcode
_FIN, _RESERVED, _MASKED = 0x80, 0x70, 0x80
_LENGTH16, _LENGTH64 = 126, 127
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
_OWN_CODES: Final = range(3000, 5000)  # of applications (7.4.2)


class Said(msgspec.Struct, frozen=True, gc=False):
    """A whole message."""

    kind: Literal["text", "binary"]
    data: bytes


class Ping(msgspec.Struct, frozen=True, gc=False):
    """Wants a Pong with the same data."""

    data: bytes


class Pong(msgspec.Struct, frozen=True, gc=False):
    """The peer is there."""


class Close(msgspec.Struct, frozen=True, gc=False):
    """The peer says no more; `NO_STATUS` where it gives no code."""

    code: int = NO_STATUS
    reason: str = ""


type Frame = Said | Ping | Pong | Close


class FrameError(ProtocolError):
    """What came is no WebSocket, or too long; `code` is what the peer hears."""

    def __init__(self, message: str, side: Literal["client", "upstream"], code: int) -> None:
        super().__init__(message, side)
        self.close_code = code


class Codec:
    """Reads one direction.

    Args:
        side: who speaks: the client, whose frames are masked, or the upstream, whose are not (5.1).
    """

    def __init__(self, side: Literal["client", "upstream"]) -> None:
        self._side = side
        self._buffer = bytearray()
        self._message = bytearray()
        self._kind = ""

    def feed(self, data: bytes) -> None:
        """Take bytes off the wire."""
        self._buffer += data

    def next(self) -> Frame | NeedData:
        """Take the next control frame or whole message.

        Raises:
            FrameError: it is malformed, or longer than `MAX_MESSAGE_BYTES`.
        """
        while (found := self._frame()) is not None:
            opcode, is_final, payload = found
            if opcode & _CONTROL:
                return self._control(opcode, payload)
            self._message += payload
            if is_final:
                return self._whole()
        return NEED_DATA

    def _frame(self) -> tuple[int, bool, bytes] | None:
        """The next frame off the buffer; refused by its first bytes where it is malformed or too long."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        opcode, is_final = buffer[0] & 0x0F, bool(buffer[0] & _FIN)
        is_masked, length, at = bool(buffer[1] & _MASKED), buffer[1] & 0x7F, 2
        self._check(opcode, is_final=is_final, is_masked=is_masked, length=length)
        if length >= _LENGTH16:
            size = 2 if length == _LENGTH16 else 8
            if len(buffer) < at + size:
                return None
            least = _LENGTH16 if length == _LENGTH16 else 1 << 16
            length, at = int.from_bytes(buffer[at : at + size]), at + size
            if length < least:
                raise self._broken("a length is longer than it need be")
        if not opcode & _CONTROL and len(self._message) + length > MAX_MESSAGE_BYTES:
            raise FrameError(f"A message has more than {MAX_MESSAGE_BYTES} bytes.", self._side, TOO_BIG)
        body = at + (4 if is_masked else 0)
        if len(buffer) < body + length:
            return None
        payload = bytes(buffer[body : body + length])
        if is_masked:
            payload = _unmasked(payload, bytes(buffer[at:body]))
        del buffer[: body + length]
        if not opcode & _CONTROL and opcode != _CONTINUATION:
            self._kind = _KINDS[opcode]
        return opcode, is_final, payload

    def _check(self, opcode: int, *, is_final: bool, is_masked: bool, length: int) -> None:
        if self._buffer[0] & _RESERVED:
            raise self._broken("a reserved bit is set, and no extension was agreed")
        if is_masked is not (self._side == "client"):
            raise self._broken("a frame is masked that must not be, or is not that must be")
        if opcode & _CONTROL:
            if opcode not in (_CLOSE, _PING, _PONG) or not is_final or length > MAX_CONTROL_BYTES:
                raise self._broken("a control frame is unknown, in fragments or too long")
        elif opcode != _CONTINUATION and (opcode not in _KINDS or self._kind):
            raise self._broken("an opcode is unknown, or a message begins within another")
        elif opcode == _CONTINUATION and not self._kind:
            raise self._broken("a fragment belongs to no message")

    def _control(self, opcode: int, payload: bytes) -> Frame:
        if opcode == _PING:
            return Ping(payload)
        if opcode == _PONG:
            return Pong()
        if not payload:
            return Close()
        code = int.from_bytes(payload[:2])
        if len(payload) == 1 or (code not in _CODES and code not in _OWN_CODES):
            raise self._broken("a Close frame has no code that may be sent")
        return Close(code, self._text(payload[2:]))

    def _whole(self) -> Said:
        data, kind = bytes(self._message), self._kind
        self._message.clear()
        self._kind = ""
        if kind == "text":
            self._text(data)
        return Said("text" if kind == "text" else "binary", data)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise FrameError("A text of WebSocket is no UTF-8.", self._side, INVALID) from None

    def _broken(self, why: str) -> FrameError:
        return FrameError(f"This is no WebSocket: {why}.", self._side, PROTOCOL)


def encode(frame: Frame, *, is_masked: bool) -> bytes:
    """A frame as it goes on the wire, a message in one; masked where it goes to the target (5.3)."""
    match frame:
        case Said(kind, data):
            opcode, payload = (_TEXT if kind == "text" else _BINARY), data
        case Ping(data):
            opcode, payload = _PING, data
        case Close(code, reason):
            opcode = _CLOSE
            payload = b"" if code == NO_STATUS else code.to_bytes(2) + cut(reason)
        case Pong():
            opcode, payload = _PONG, b""
    return _encoded(opcode, payload, is_masked=is_masked)


def encode_pong(ping: Ping, *, is_masked: bool) -> bytes:
    """The answer to a Ping."""
    return _encoded(_PONG, ping.data, is_masked=is_masked)


def cut(reason: str) -> bytes:
    """A reason that fits into a Close frame, whole characters of it."""
    raw = reason.encode("utf-8", "replace")
    return (
        raw if len(raw) <= MAX_REASON_BYTES else raw[: MAX_REASON_BYTES - 3].decode("utf-8", "ignore").encode() + b"..."
    )


def new_key() -> str:
    """A value of Sec-WebSocket-Key."""
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def is_key(found: str) -> bool:
    """Whether a client's Sec-WebSocket-Key is one (4.1)."""
    try:
        return len(base64.b64decode(found, validate=True)) == _KEY_BYTES
    except ValueError:
        return False


def accept(key: str) -> str:
    """The value of Sec-WebSocket-Accept that answers a key (4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324 - the specification's


def _encoded(opcode: int, payload: bytes, *, is_masked: bool) -> bytes:
    bit, size = _MASKED if is_masked else 0, len(payload)
    if size < _LENGTH16:
        head = bytes((_FIN | opcode, bit | size))
    elif size < 1 << 16:
        head = bytes((_FIN | opcode, bit | _LENGTH16)) + size.to_bytes(2)
    else:
        head = bytes((_FIN | opcode, bit | _LENGTH64)) + size.to_bytes(8)
    if not is_masked:
        return head + payload
    mask = secrets.token_bytes(4)
    return head + mask + _unmasked(payload, mask)


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    """Masking and its undoing (5.3), all bytes at once."""
    size = len(payload)
    stream = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(stream)).to_bytes(size)
