"""Messages of the PostgreSQL protocol, versions 3.0 and 3.2 (PostgreSQL 18, chapter 54 "Frontend/Backend Protocol").

Only what the gateway looks into has a type here; everything else is a frame that is forwarded as it came. Names are the
manual's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError

# Frontend message types (54.7).
BIND: Final = ord("B")
CLOSE: Final = ord("C")
COPY_DATA: Final = ord("d")
COPY_DONE: Final = ord("c")
COPY_FAIL: Final = ord("f")
DESCRIBE: Final = ord("D")
EXECUTE: Final = ord("E")
FLUSH: Final = ord("H")
FUNCTION_CALL: Final = ord("F")
PARSE: Final = ord("P")
PASSWORD: Final = ord("p")
QUERY: Final = ord("Q")
SYNC: Final = ord("S")
TERMINATE: Final = ord("X")

# Backend message types.
AUTHENTICATION: Final = ord("R")
BACKEND_KEY_DATA: Final = ord("K")
BIND_COMPLETE: Final = ord("2")
CLOSE_COMPLETE: Final = ord("3")
COMMAND_COMPLETE: Final = ord("C")
COPY_IN_RESPONSE: Final = ord("G")
COPY_OUT_RESPONSE: Final = ord("H")
DATA_ROW: Final = ord("D")
EMPTY_QUERY_RESPONSE: Final = ord("I")
ERROR_RESPONSE: Final = ord("E")
NEGOTIATE_PROTOCOL_VERSION: Final = ord("v")
NO_DATA: Final = ord("n")
NOTICE_RESPONSE: Final = ord("N")
NOTIFICATION_RESPONSE: Final = ord("A")
PARAMETER_DESCRIPTION: Final = ord("t")
PARAMETER_STATUS: Final = ord("S")
PARSE_COMPLETE: Final = ord("1")
PORTAL_SUSPENDED: Final = ord("s")
READY_FOR_QUERY: Final = ord("Z")
ROW_DESCRIPTION: Final = ord("T")

STATEMENT: Final = ord("S")
PORTAL: Final = ord("P")
IDLE: Final = ord("I")

ASYNCHRONOUS: Final = frozenset({PARAMETER_STATUS, NOTICE_RESPONSE, NOTIFICATION_RESPONSE})
ENDINGS: Final = frozenset({COMMAND_COMPLETE, EMPTY_QUERY_RESPONSE, PORTAL_SUSPENDED})
DETAILS: Final = frozenset(
    {ROW_DESCRIPTION, NO_DATA, PARAMETER_DESCRIPTION, COPY_IN_RESPONSE, COPY_OUT_RESPONSE, COPY_DONE}
)
ACKNOWLEDGES: Final = {PARSE_COMPLETE: "parse", BIND_COMPLETE: "bind", CLOSE_COMPLETE: "close"}

FLUSH_FRAME: Final = b"H\x00\x00\x00\x04"
TERMINATE_FRAME: Final = b"X\x00\x00\x00\x04"
SYNC_FRAME: Final = b"S\x00\x00\x00\x04"

ALPN: Final = "postgresql"  # 54.2.10: the name of the protocol in a TLS handshake
TLS_HANDSHAKE: Final = 0x16  # the first byte of a TLS connection (RFC 8446, 5.1); of no startup message

SSL_REQUEST: Final = 80877103
GSSENC_REQUEST: Final = 80877104
CANCEL_REQUEST: Final = 80877102


class StartupMessage(msgspec.Struct, frozen=True, gc=False):
    """The client's first message: protocol version and parameters."""

    major: int
    minor: int
    parameters: tuple[tuple[str, str], ...]


class SSLRequest(msgspec.Struct, frozen=True, gc=False):
    """The client asks for TLS."""


class GSSENCRequest(msgspec.Struct, frozen=True, gc=False):
    """The client asks for GSSAPI encryption."""


class CancelRequest(msgspec.Struct, frozen=True, gc=False):
    """Another connection asks to cancel what a session runs."""

    process_id: int
    secret: bytes


class Parse(msgspec.Struct, frozen=True, gc=False):
    """Prepare a statement; `types` are the OIDs of its parameters' types, as far as the client says them, or 0."""

    statement: bytes
    query: bytes
    types: tuple[int, ...] = ()


class Bind(msgspec.Struct, frozen=True, gc=False):
    """Make a portal of a statement and parameters; `params` are formats and values as sent."""

    portal: bytes
    statement: bytes
    params: bytes


class Execute(msgspec.Struct, frozen=True, gc=False):
    """Run a portal."""

    portal: bytes
    max_rows: int


class Describe(msgspec.Struct, frozen=True, gc=False):
    """Describe a statement or portal; also the form of Close."""

    kind: int
    name: bytes


Close = Describe


def frame(kind: int, body: bytes) -> bytes:
    """A whole message."""
    return struct.pack(">BI", kind, len(body) + 4) + body


def encode_query(text: bytes) -> bytes:
    """A Query message."""
    return frame(QUERY, text + b"\x00")


def encode_parse(name: bytes, text: bytes, types: bytes = b"\x00\x00") -> bytes:
    """A Parse message, by default without parameter types."""
    return frame(PARSE, name + b"\x00" + text + b"\x00" + types)


def encode_bind(value: bytes) -> bytes:
    """A Bind of the unnamed statement to the unnamed portal, with one value as text; results come as text."""
    return frame(BIND, b"\x00\x00" + struct.pack(">HHi", 0, 1, len(value)) + value + b"\x00\x00")


def encode_execute(max_rows: int) -> bytes:
    """An Execute of the unnamed portal; 0 rows mean all."""
    return frame(EXECUTE, b"\x00" + struct.pack(">I", max_rows))


def encode_copy_fail(why: str) -> bytes:
    """A CopyFail."""
    return frame(COPY_FAIL, why.encode() + b"\x00")


def encode_startup(parameters: tuple[tuple[str, str], ...]) -> bytes:
    """A StartupMessage of protocol 3.0."""
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters) + b"\x00"
    return struct.pack(">II", len(body) + 8, 3 << 16) + body


def encode_cancel(process_id: int, secret: bytes) -> bytes:
    """A CancelRequest."""
    return struct.pack(">III", 12 + len(secret), CANCEL_REQUEST, process_id) + secret


def decode_startup(body: bytes) -> StartupMessage | SSLRequest | GSSENCRequest | CancelRequest:
    """Read a message of the start-up phase (without its length).

    Raises:
        ProtocolError: side=client.
    """
    if len(body) < 4:
        raise ProtocolError("The first message is too short.")
    code = int.from_bytes(body[:4], "big")
    if code == SSL_REQUEST and len(body) == 4:
        return SSLRequest()
    if code == GSSENC_REQUEST and len(body) == 4:
        return GSSENCRequest()
    if code == CANCEL_REQUEST and 12 <= len(body) <= 264:
        return CancelRequest(int.from_bytes(body[4:8], "big"), body[8:])
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        raise ProtocolError(f"Protocol {major}.{minor} is not supported; use protocol 3.")
    return StartupMessage(major, minor, _parameters(body[4:]))


def _parameters(body: bytes) -> tuple[tuple[str, str], ...]:
    if not body.endswith(b"\x00\x00") and body != b"\x00":
        raise ProtocolError("The startup message is not well formed.")
    try:
        parts = body[:-2].decode().split("\x00") if len(body) > 1 else []
    except UnicodeDecodeError as error:
        raise ProtocolError("A startup parameter is not UTF-8.") from error
    if len(parts) % 2:
        raise ProtocolError("The startup message is not well formed.")
    pairs = tuple(zip(parts[::2], parts[1::2], strict=True))
    if any(not name for name, _ in pairs) or len({name for name, _ in pairs}) != len(pairs):
        raise ProtocolError("A startup parameter is given twice or has no name.")
    return pairs


def decode_query(body: bytes) -> bytes:
    """The text of a Query.

    Raises:
        ProtocolError: side=client; no terminator, or a NUL inside.
    """
    if body.find(b"\x00") != len(body) - 1 or not body:
        raise ProtocolError("The query is not terminated, or holds a NUL.")
    return body[:-1]


def decode_password(body: bytes) -> bytes:
    """What a PasswordMessage holds.

    Raises:
        ProtocolError: side=client; no terminator, or a NUL inside.
    """
    if body.find(b"\x00") != len(body) - 1 or not body:
        raise ProtocolError("The password is not terminated, or holds a NUL.")
    return body[:-1]


def decode_parse(body: bytes) -> Parse:
    """Read a Parse.

    Raises:
        ProtocolError: side=client.
    """
    name, rest = _string(body)
    query, types = _string(rest)
    if len(types) < 2 or len(types) != 2 + 4 * int.from_bytes(types[:2], "big"):
        raise ProtocolError("The Parse message is not well formed.")
    return Parse(name, query, struct.unpack_from(f">{len(types) // 4}I", types, 2))


def decode_bind(body: bytes) -> Bind:
    """Read a Bind; formats and values are checked for their lengths and otherwise left as they are.

    Raises:
        ProtocolError: side=client.
    """
    portal, rest = _string(body)
    statement, params = _string(rest)
    _check_params(params)
    return Bind(portal, statement, params)


def _check_params(params: bytes) -> None:
    try:
        (formats,) = struct.unpack_from(">H", params)
        position = 2 + 2 * formats
        (values,) = struct.unpack_from(">H", params, position)
        position += 2
        for _ in range(values):
            (length,) = struct.unpack_from(">i", params, position)
            if length < -1:
                raise ProtocolError("A parameter has a negative length.")
            position += 4 + max(length, 0)
        (results,) = struct.unpack_from(">H", params, position)
    except struct.error as error:
        raise ProtocolError("The Bind message is cut.") from error
    if position + 2 + 2 * results != len(params):
        raise ProtocolError("The Bind message is not well formed.")


def result_formats(params: bytes) -> tuple[int, ...]:
    """The result formats that a Bind asks for, from its `params`: none for text, one for all columns, or one each."""
    (count,) = struct.unpack_from(">H", params)
    position = 2 + 2 * count
    (values,) = struct.unpack_from(">H", params, position)
    position += 2
    for _ in range(values):
        (length,) = struct.unpack_from(">i", params, position)
        position += 4 + max(length, 0)
    (results,) = struct.unpack_from(">H", params, position)
    return struct.unpack_from(f">{results}H", params, position + 2)


def map_params(params: bytes, shown: Callable[[int, bytes, bool], bytes]) -> bytes:
    """The `params` of a Bind with `shown(place, value, is_binary)` for each value; NULL stays NULL.

    Formats are 0 or 1 then, whatever was sent.
    """
    (count,) = struct.unpack_from(">H", params)
    formats = tuple(map(bool, struct.unpack_from(f">{count}H", params, 2)))
    position = 2 + 2 * count
    (values,) = struct.unpack_from(">H", params, position)
    parts = [struct.pack(f">H{count}HH", count, *formats, values)]
    position += 2
    for index in range(values):
        (length,) = struct.unpack_from(">i", params, position)
        position += 4
        if length < 0:
            parts.append(b"\xff\xff\xff\xff")
            continue
        is_binary = formats[0] if count == 1 else index < count and formats[index]
        value = shown(index, params[position : position + length], is_binary)
        parts += (len(value).to_bytes(4, "big"), value)
        position += length
    results = result_formats(params)
    parts.append(struct.pack(f">H{len(results)}H", len(results), *map(bool, results)))
    return b"".join(parts)


def count_params(params: bytes) -> int:
    """How many values the `params` of a Bind hold, NULLs included."""
    (formats,) = struct.unpack_from(">H", params)
    (values,) = struct.unpack_from(">H", params, 2 + 2 * formats)
    return int(values)


def encode_describe_portal(name: bytes) -> bytes:
    """A Describe of a portal."""
    return frame(DESCRIBE, bytes((PORTAL,)) + name + b"\x00")


def decode_execute(body: bytes) -> Execute:
    """Read an Execute.

    Raises:
        ProtocolError: side=client.
    """
    portal, rest = _string(body)
    if len(rest) != 4:
        raise ProtocolError("The Execute message is not well formed.")
    return Execute(portal, int.from_bytes(rest, "big"))


def decode_describe(body: bytes) -> Describe:
    """Read a Describe.

    Raises:
        ProtocolError: side=client.
    """
    if len(body) < 2 or body[0] not in (STATEMENT, PORTAL):
        raise ProtocolError("The message names neither a statement nor a portal.")
    name, rest = _string(body[1:])
    if rest:
        raise ProtocolError("The message is not well formed.")
    return Describe(body[0], name)


def decode_close(body: bytes) -> Close:
    """Read a Close, which has the form of a Describe.

    Raises:
        ProtocolError: side=client.
    """
    return decode_describe(body)


def decode_single(body: bytes) -> bytes:
    """The one value of a DataRow with one column that is not NULL.

    Raises:
        ProtocolError: side=upstream; it has another shape.
    """
    if len(body) < 6 or body[:2] != b"\x00\x01" or int.from_bytes(body[2:6], "big", signed=True) != len(body) - 6:
        raise ProtocolError("The database sent a row that is not of one value.", side="upstream")
    return body[6:]


def decode_parameter_description(body: bytes) -> tuple[int, ...]:
    """The OIDs of the types in a ParameterDescription.

    Raises:
        ProtocolError: side=upstream.
    """
    if len(body) < 2 or len(body) != 2 + 4 * int.from_bytes(body[:2], "big"):
        raise ProtocolError("The database sent a ParameterDescription that is not well formed.", side="upstream")
    return struct.unpack_from(f">{len(body) // 4}I", body, 2)


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse; what cannot be read is left out."""
    fields = {}
    for part in body.split(b"\x00"):
        if part:
            fields[chr(part[0])] = part[1:].decode("utf-8", "replace")
    return fields


def sqlstate(body: bytes) -> str:
    """The SQLSTATE of an ErrorResponse, "XX000" if it has none that is well formed."""
    code = error_fields(body).get("C", "")
    return code if len(code) == 5 and code.isascii() and code.isalnum() else "XX000"


def transaction_status(body: bytes) -> int:
    """The status byte of a ReadyForQuery.

    Raises:
        ProtocolError: side=upstream.
    """
    if len(body) != 1 or body not in (b"I", b"T", b"E"):
        raise ProtocolError("The database sent a ReadyForQuery that is not well formed.", side="upstream")
    return body[0]


def _string(data: bytes) -> tuple[bytes, bytes]:
    end = data.find(b"\x00")
    if end < 0:
        raise ProtocolError("A string is not terminated.")
    return data[:end], data[end + 1 :]
