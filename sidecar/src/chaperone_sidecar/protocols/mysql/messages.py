"""What MySQL's wire can say: commands, capabilities, and the packets that a gateway reads or writes.

Names are those of the protocol's documentation ("Client/Server Protocol" in the source documentation of MySQL 8.4, and
"Client/Server Protocol" of MariaDB's knowledge base). All numbers are little endian.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

import msgspec

from chaperone_sidecar.errors import ProtocolError

type Side = Literal["client", "upstream"]

MAX_PAYLOAD: Final = 0xFFFFFF  # of one packet; one of exactly this size is continued by the next

COM_QUIT: Final = 0x01
COM_INIT_DB: Final = 0x02
COM_QUERY: Final = 0x03
COM_FIELD_LIST: Final = 0x04
COM_STATISTICS: Final = 0x09
COM_PROCESS_INFO: Final = 0x0A
COM_PROCESS_KILL: Final = 0x0C
COM_PING: Final = 0x0E
COM_CHANGE_USER: Final = 0x11
COM_BINLOG_DUMP: Final = 0x12
COM_REGISTER_SLAVE: Final = 0x15
COM_STMT_PREPARE: Final = 0x16
COM_STMT_EXECUTE: Final = 0x17
COM_STMT_SEND_LONG_DATA: Final = 0x18
COM_STMT_CLOSE: Final = 0x19
COM_STMT_RESET: Final = 0x1A
COM_SET_OPTION: Final = 0x1B
COM_STMT_FETCH: Final = 0x1C
COM_BINLOG_DUMP_GTID: Final = 0x1E
COM_RESET_CONNECTION: Final = 0x1F

COMMAND_NAMES: Final = {
    0x00: "COM_SLEEP", 0x04: "COM_FIELD_LIST", 0x05: "COM_CREATE_DB", 0x06: "COM_DROP_DB", 0x07: "COM_REFRESH",
    0x08: "COM_SHUTDOWN", 0x09: "COM_STATISTICS", 0x0A: "COM_PROCESS_INFO", 0x0B: "COM_CONNECT",
    0x0C: "COM_PROCESS_KILL", 0x0D: "COM_DEBUG", 0x0F: "COM_TIME", 0x10: "COM_DELAYED_INSERT",
    0x11: "COM_CHANGE_USER", 0x12: "COM_BINLOG_DUMP", 0x13: "COM_TABLE_DUMP", 0x14: "COM_CONNECT_OUT",
    0x15: "COM_REGISTER_SLAVE", 0x1D: "COM_DAEMON", 0x1E: "COM_BINLOG_DUMP_GTID",
    0x20: "COM_CLONE", 0x21: "COM_SUBSCRIBE_GROUP_REPLICATION_STREAM", 0xFA: "COM_STMT_BULK_EXECUTE", 0xFE: "COM_MULTI",
}  # fmt: skip
"""Commands that are refused, by their names; another number is unknown."""

CLIENT_LONG_PASSWORD: Final = 1
CLIENT_FOUND_ROWS: Final = 1 << 1
CLIENT_LONG_FLAG: Final = 1 << 2
CLIENT_CONNECT_WITH_DB: Final = 1 << 3
CLIENT_COMPRESS: Final = 1 << 5
CLIENT_LOCAL_FILES: Final = 1 << 7
CLIENT_IGNORE_SPACE: Final = 1 << 8
CLIENT_PROTOCOL_41: Final = 1 << 9
CLIENT_INTERACTIVE: Final = 1 << 10
CLIENT_SSL: Final = 1 << 11
CLIENT_TRANSACTIONS: Final = 1 << 13
CLIENT_SECURE_CONNECTION: Final = 1 << 15
CLIENT_MULTI_STATEMENTS: Final = 1 << 16
CLIENT_MULTI_RESULTS: Final = 1 << 17
CLIENT_PS_MULTI_RESULTS: Final = 1 << 18
CLIENT_PLUGIN_AUTH: Final = 1 << 19
CLIENT_CONNECT_ATTRS: Final = 1 << 20
CLIENT_PLUGIN_AUTH_LENENC: Final = 1 << 21
CLIENT_ZSTD_COMPRESSION_ALGORITHM: Final = 1 << 26

SERVER_STATUS_IN_TRANS: Final = 0x0001
SERVER_STATUS_AUTOCOMMIT: Final = 0x0002
SERVER_MORE_RESULTS_EXISTS: Final = 0x0008
SERVER_STATUS_CURSOR_EXISTS: Final = 0x0040

CURSOR_TYPE_READ_ONLY: Final = 0x01

UTF8MB4_GENERAL_CI: Final = 45
BINARY_COLLATION: Final = 63

OK: Final = 0x00
AUTH_MORE_DATA: Final = 0x01
NULL_CELL: Final = 0xFB
LOCAL_INFILE: Final = 0xFB
EOF: Final = 0xFE
ERR: Final = 0xFF

NATIVE: Final = "mysql_native_password"
CACHING_SHA2: Final = "caching_sha2_password"
ED25519: Final = "client_ed25519"
CLEAR: Final = "mysql_clear_password"

MAX_NAME_BYTES: Final = 1024  # of users, databases, plugins; a server's own have at most 80 characters


class Cursor:
    """Reads a payload from its beginning to its end; every read says when there is not enough."""

    def __init__(self, data: bytes, side: Side, place: int = 0) -> None:
        self._data = data
        self._side: Side = side
        self.place = place

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return self.place >= len(self._data)

    def take(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            ProtocolError: there are fewer.
        """
        end = self.place + size
        if end > len(self._data):
            raise ProtocolError("A packet ends before what it says is in it.", side=self._side)
        found = self._data[self.place : end]
        self.place = end
        return found

    def number(self, size: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def lenenc(self) -> int:
        """A length-encoded number."""
        first = self.number(1)
        if first < 0xFB:
            return first
        if first not in _LENENC_SIZES:
            raise ProtocolError("A packet holds a length that is none.", side=self._side)
        return self.number(_LENENC_SIZES[first])

    def lenenc_bytes(self) -> bytes:
        """A length-encoded string."""
        return self.take(self.lenenc())

    def until_nul(self) -> bytes:
        """A string that NUL ends."""
        end = self._data.find(b"\0", self.place)
        if end < 0:
            raise ProtocolError("A packet holds a text without its end.", side=self._side)
        found = self._data[self.place : end]
        self.place = end + 1
        return found

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data) - self.place)


_LENENC_SIZES: Final = {0xFC: 2, 0xFD: 3, 0xFE: 8}


def encode_lenenc(value: int) -> bytes:
    """A length-encoded number."""
    if value < 0xFB:
        return bytes((value,))
    if value < 1 << 16:
        return b"\xfc" + value.to_bytes(2, "little")
    if value < 1 << 24:
        return b"\xfd" + value.to_bytes(3, "little")
    return b"\xfe" + value.to_bytes(8, "little")


def encode_text(value: bytes) -> bytes:
    """A length-encoded string."""
    return encode_lenenc(len(value)) + value


def packet(sequence: int, payload: bytes) -> bytes:
    """A payload as one packet, or as several where it is longer than one may be."""
    if len(payload) < MAX_PAYLOAD:
        return len(payload).to_bytes(3, "little") + bytes((sequence & 0xFF,)) + payload
    parts = []
    for start in range(0, len(payload) + 1, MAX_PAYLOAD):
        part = payload[start : start + MAX_PAYLOAD]
        parts.append(len(part).to_bytes(3, "little") + bytes((sequence & 0xFF,)) + part)
        sequence += 1
    return b"".join(parts)


class Handshake(msgspec.Struct, frozen=True, gc=False):
    """HandshakeV10: what a server says first."""

    version: bytes
    connection_id: int
    nonce: bytes
    capabilities: int
    plugin: str
    collation: int = UTF8MB4_GENERAL_CI
    status: int = SERVER_STATUS_AUTOCOMMIT

    def encode(self) -> bytes:
        """The payload."""
        return (
            b"\x0a" + self.version + b"\0" + self.connection_id.to_bytes(4, "little") + self.nonce[:8] + b"\0"
            + (self.capabilities & 0xFFFF).to_bytes(2, "little") + bytes((self.collation & 0xFF,))
            + self.status.to_bytes(2, "little") + (self.capabilities >> 16).to_bytes(2, "little")
            + bytes((len(self.nonce) + 1,)) + bytes(10) + self.nonce[8:] + b"\0" + self.plugin.encode() + b"\0"
        )  # fmt: skip


def decode_handshake(payload: bytes) -> Handshake:
    """Read a server's first packet.

    Raises:
        ProtocolError: side=upstream; not a handshake of version 10 with the capabilities that every server of the
            versions that are supported has.
    """
    at = Cursor(payload, "upstream")
    if at.number(1) != 0x0A:
        raise ProtocolError("The server does not begin as MySQL does.", side="upstream")
    version = at.until_nul()
    if len(version) > MAX_NAME_BYTES:
        raise ProtocolError("The server's version is too long to be one.", side="upstream")
    connection_id, nonce = at.number(4), at.take(8)
    at.take(1)
    capabilities, collation, status = at.number(2), at.number(1), at.number(2)
    capabilities |= at.number(2) << 16
    size = at.number(1)
    at.take(10)
    nonce += at.take(max(13, size - 8))[:12]
    plugin = at.until_nul().decode("ascii", "replace") if capabilities & CLIENT_PLUGIN_AUTH else NATIVE
    return Handshake(version, connection_id, nonce, capabilities, plugin, collation, status)


class HandshakeResponse(msgspec.Struct, frozen=True, gc=False):
    """HandshakeResponse41: what a client answers; `is_tls_request` for its beginning alone (SSLRequest)."""

    capabilities: int
    collation: int
    user: bytes = b""
    auth: bytes = b""
    database: bytes = b""
    plugin: bytes = b""
    program: bytes = b""
    is_tls_request: bool = False

    def encode(self) -> bytes:
        """The payload."""
        head = struct.pack("<IIB23x", self.capabilities, MAX_PAYLOAD, self.collation)
        if self.is_tls_request:
            return head
        body = head + self.user + b"\0" + encode_text(self.auth)
        if self.capabilities & CLIENT_CONNECT_WITH_DB:
            body += self.database + b"\0"
        return body + self.plugin + b"\0"

    def __repr__(self) -> str:
        return "HandshakeResponse()"


_RESPONSE_HEAD_BYTES: Final = 32


def decode_handshake_response(payload: bytes) -> HandshakeResponse:
    """Read a client's answer to the handshake.

    Raises:
        ProtocolError: side=client; malformed, or of a client that is too old.
    """
    at = Cursor(payload, "client")
    capabilities = at.number(4)
    if not capabilities & CLIENT_PROTOCOL_41:
        raise ProtocolError("The client speaks a protocol older than that of MySQL 4.1.")
    at.take(4)
    collation = at.number(1)
    at.take(23)
    if len(payload) == _RESPONSE_HEAD_BYTES and capabilities & CLIENT_SSL:
        return HandshakeResponse(capabilities, collation, is_tls_request=True)
    user = at.until_nul()
    if capabilities & CLIENT_PLUGIN_AUTH_LENENC:
        auth = at.lenenc_bytes()
    elif capabilities & CLIENT_SECURE_CONNECTION:
        auth = at.take(at.number(1))
    else:
        auth = at.until_nul()
    database = at.until_nul() if capabilities & CLIENT_CONNECT_WITH_DB and not at.is_at_end else b""
    plugin = at.until_nul() if capabilities & CLIENT_PLUGIN_AUTH and not at.is_at_end else b""
    if max(len(user), len(database), len(plugin)) > MAX_NAME_BYTES:
        raise ProtocolError("A name in the client's log-in is too long to be one.")
    program = b""
    if capabilities & CLIENT_CONNECT_ATTRS and not at.is_at_end:
        attributes = Cursor(at.lenenc_bytes(), "client")
        while not attributes.is_at_end:
            key, value = attributes.lenenc_bytes(), attributes.lenenc_bytes()
            if key == b"program_name":
                program = value
    return HandshakeResponse(capabilities, collation, user, auth, database, plugin, program)


class Column(msgspec.Struct, frozen=True, gc=False):
    """ColumnDefinition41; names beginning `org_` are those of the table's owner, whatever the statement calls them."""

    schema: str
    table: str
    org_table: str
    name: str
    org_name: str
    collation: int
    type: int
    flags: int


def decode_column(payload: bytes) -> Column:
    """Read a column's definition.

    Raises:
        ProtocolError: side=upstream.
    """
    at = Cursor(payload, "upstream")
    _, schema, table, org_table, name, org_name = (
        at.lenenc_bytes().decode("utf-8", "replace") for _ in range(6)
    )  # fmt: skip
    if at.lenenc() != 0x0C:
        raise ProtocolError("The server described a column in a form that is not known.", side="upstream")
    collation = at.number(2)
    at.take(4)
    kind, flags = at.number(1), at.number(2)
    return Column(schema, table, org_table, name, org_name, collation, kind, flags)


def encode_column(column: Column) -> bytes:
    """The payload of a column's definition."""
    names = ("def", column.schema, column.table, column.org_table, column.name, column.org_name)
    tail = struct.pack("<BHIBHBxx", 0x0C, column.collation, 0, column.type, column.flags, 0)
    return b"".join(encode_text(name.encode()) for name in names) + tail


class Ok(msgspec.Struct, frozen=True, gc=False):
    """OK_Packet."""

    affected_rows: int = 0
    last_insert_id: int = 0
    status: int = SERVER_STATUS_AUTOCOMMIT
    warnings: int = 0
    info: bytes = b""

    def encode(self) -> bytes:
        """The payload."""
        numbers = encode_lenenc(self.affected_rows) + encode_lenenc(self.last_insert_id)
        return b"\0" + numbers + struct.pack("<HH", self.status, self.warnings) + self.info


def decode_ok(payload: bytes) -> Ok:
    """Read an OK_Packet.

    Raises:
        ProtocolError: side=upstream.
    """
    at = Cursor(payload, "upstream", 1)
    return Ok(at.lenenc(), at.lenenc(), at.number(2), at.number(2), at.rest())


class Eof(msgspec.Struct, frozen=True, gc=False):
    """EOF_Packet."""

    warnings: int = 0
    status: int = SERVER_STATUS_AUTOCOMMIT

    def encode(self) -> bytes:
        """The payload."""
        return b"\xfe" + struct.pack("<HH", self.warnings, self.status)


def is_eof(payload: bytes) -> bool:
    """Whether a packet among columns or rows is their end: no row that begins like one is as short."""
    return payload[:1] == b"\xfe" and len(payload) < 9


def decode_eof(payload: bytes) -> Eof:
    """Read an EOF_Packet.

    Raises:
        ProtocolError: side=upstream.
    """
    at = Cursor(payload, "upstream", 1)
    return Eof(at.number(2), at.number(2))


class Err(msgspec.Struct, frozen=True, gc=False):
    """ERR_Packet."""

    code: int
    sqlstate: str
    message: str

    def encode(self) -> bytes:
        """The payload."""
        return b"\xff" + self.code.to_bytes(2, "little") + b"#" + self.sqlstate.encode() + self.message.encode()


def decode_err(payload: bytes) -> Err:
    """Read an ERR_Packet, which before the log-in has no SQLSTATE.

    Raises:
        ProtocolError: side=upstream.
    """
    at = Cursor(payload, "upstream", 1)
    code, text = at.number(2), at.rest()
    if text[:1] == b"#" and len(text) >= 6:
        return Err(code, text[1:6].decode("ascii", "replace"), text[6:].decode("utf-8", "replace"))
    return Err(code, "HY000", text.decode("utf-8", "replace"))


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """COM_STMT_PREPARE_OK."""

    statement_id: int
    columns: int
    params: int


def decode_prepared(payload: bytes) -> Prepared:
    """Read a COM_STMT_PREPARE_OK.

    Raises:
        ProtocolError: side=upstream.
    """
    at = Cursor(payload, "upstream", 1)
    return Prepared(at.number(4), at.number(2), at.number(2))
