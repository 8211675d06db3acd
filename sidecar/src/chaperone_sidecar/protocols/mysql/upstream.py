"""Logging in at a server, as a generator without I/O.

The driver sends what `Send` holds, answers `Read` with bytes, and `BeginTls` once the connection is encrypted. The end
is a `LoggedIn`, or `UpstreamUnavailable` with a text that the client may see: it names the target and what to check,
and quotes the server only by its error's number.

Then the session is pinned: its character set, and its sql_mode without the modes that change how a text is read.

Spec: "Connection Phase"; caching_sha2_password gives the password itself only to a server that TLS has verified.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import msgspec

from chaperone_sidecar.errors import ProtocolError, UpstreamUnavailable
from chaperone_sidecar.protocols.mysql import auth
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.codec import Codec
from chaperone_sidecar.protocols.mysql.setting import READING_MODES
from chaperone_sidecar.steps import BeginTls, Read, Send

BASE: Final = (
    m.CLIENT_LONG_PASSWORD | m.CLIENT_LONG_FLAG | m.CLIENT_PROTOCOL_41 | m.CLIENT_TRANSACTIONS
    | m.CLIENT_SECURE_CONNECTION | m.CLIENT_MULTI_RESULTS | m.CLIENT_PS_MULTI_RESULTS | m.CLIENT_PLUGIN_AUTH
    | m.CLIENT_PLUGIN_AUTH_LENENC
)  # fmt: skip
"""What every session asks of a server: no compression, no LOCAL INFILE, no attributes of queries, EOF packets."""

OF_CLIENT: Final = m.CLIENT_FOUND_ROWS | m.CLIENT_MULTI_STATEMENTS | m.CLIENT_INTERACTIVE
"""What a client may ask for beside that."""

MAX_ROUNDS: Final = 8  # of a log-in's exchange
STATE: Final = (
    "SELECT @@SESSION.sql_mode, @@lower_case_table_names, @@character_set_client, @@character_set_results, "
    "COALESCE(DATABASE(), ''), @@collation_connection"
)
PIN_NAMES: Final = "SET NAMES utf8mb4"

_CHECK: Final = {
    1045: ("28000", "the user or the password in its credential is wrong"),
    1044: ("28000", "its credential's user may not use the database"),
    1049: ("3D000", "the database does not exist"),
    1040: ("08004", "it has no connection free"),
    1129: ("28000", "it has blocked this host after too many broken connections"),
    1130: ("28000", "it lets this host not in"),
    1698: ("28000", "its credential's user may not log in with a password"),
    3118: ("28000", "its credential's account is locked"),
    1862: ("28000", "the password in its credential has expired"),
}


class Credential(msgspec.Struct, frozen=True):
    """What a log-in needs; its repr shows nothing."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Credential()"


class LoggedIn(msgspec.Struct, frozen=True, gc=False):
    """The server is ready, and the session pinned; `sql_mode` is what it was pinned to."""

    version: bytes
    connection_id: int
    sql_mode: str
    folds_tables: bool
    database: str


type Steps[T] = Generator[Send | Read | BeginTls, Any, T]


class LogIn:
    """One log-in.

    Args:
        target: its name, for texts.
        credential: of the lease.
        database: to begin with, or "".
        capabilities: that the client asks for beside the usual.
        use_tls: ask for TLS and refuse to go on without.
        is_verified: TLS proves who the server is.
    """

    def __init__(
        self, target: str, credential: Credential, database: str, capabilities: int, *, use_tls: bool, is_verified: bool
    ) -> None:
        self._target = target
        self._credential = credential
        self._password = credential.password.encode()
        self._database = database.encode()
        self._capabilities = BASE | capabilities & OF_CLIENT
        self._use_tls = use_tls
        self._is_verified = is_verified
        self._codec = Codec("upstream")

    def steps(self) -> Steps[LoggedIn]:
        """Log in.

        Raises:
            UpstreamUnavailable: see the module's docstring.
        """
        try:
            greeting = yield from self._greet()
            yield from self._authenticate(greeting)
            return (yield from self._pin(greeting))
        except ProtocolError as error:
            raise UpstreamUnavailable(f'Target "{self._target}" does not speak MySQL: {error}') from error

    def _greet(self) -> Steps[m.Handshake]:
        first = yield from self._packet()
        if first.payload[:1] == b"\xff":
            raise self._refused(m.decode_err(first.payload))
        greeting = m.decode_handshake(first.payload)
        wanted = m.CLIENT_PROTOCOL_41 | m.CLIENT_SECURE_CONNECTION | m.CLIENT_PLUGIN_AUTH
        if greeting.capabilities & wanted != wanted:
            raise ProtocolError("it is too old to be used.", side="upstream")
        self._sequence = first.next_sequence
        if self._database:
            self._capabilities |= m.CLIENT_CONNECT_WITH_DB
        if self._use_tls:
            if not greeting.capabilities & m.CLIENT_SSL:
                raise UpstreamUnavailable(f'Target "{self._target}" offers no TLS; check its tls.mode and its address.')
            if self._codec.has_bytes:
                raise ProtocolError("it sent more before TLS than its greeting.", side="upstream")
            self._capabilities |= m.CLIENT_SSL
            request = m.HandshakeResponse(self._capabilities, m.UTF8MB4_GENERAL_CI, is_tls_request=True)
            yield from self._say(request.encode())
            yield BeginTls()
        return greeting

    def _authenticate(self, greeting: m.Handshake) -> Steps[None]:
        plugin, nonce = greeting.plugin, greeting.nonce
        if plugin not in (m.NATIVE, m.CACHING_SHA2, m.ED25519):
            plugin = m.NATIVE  # what the account wants is said by a switch
        response = m.HandshakeResponse(
            self._capabilities, m.UTF8MB4_GENERAL_CI, self._credential.user.encode(), self._proof(plugin, nonce),
            self._database, plugin.encode(),
        )  # fmt: skip
        yield from self._say(response.encode())
        for _ in range(MAX_ROUNDS):
            answer = yield from self._packet()
            self._sequence = answer.next_sequence
            kind, body = answer.payload[0], answer.payload[1:]
            if kind == m.OK:
                return
            if kind == m.ERR:
                raise self._refused(m.decode_err(answer.payload))
            if kind == m.EOF:
                at = m.Cursor(body, "upstream")
                plugin, nonce = at.until_nul().decode("ascii", "replace"), at.rest().rstrip(b"\0")
                yield from self._say(self._proof(plugin, nonce))
            elif kind == m.AUTH_MORE_DATA and plugin == m.CACHING_SHA2 and body == b"\x03":
                continue  # the server knew it
            elif kind == m.AUTH_MORE_DATA and plugin == m.CACHING_SHA2 and body == b"\x04":
                if not self._is_verified:
                    raise UpstreamUnavailable(
                        f'Target "{self._target}" wants the password itself, which only a server that TLS has verified '
                        "is given; set tls.mode to VerifyFull or VerifyCA."
                    )
                yield from self._say(self._password + b"\0")
            else:
                raise ProtocolError("it goes on with its log-in in a way that is not known.", side="upstream")
        raise ProtocolError("its log-in does not end.", side="upstream")

    def _proof(self, plugin: str, nonce: bytes) -> bytes:
        if plugin == m.NATIVE:
            return auth.native(self._password, nonce)
        if plugin == m.CACHING_SHA2:
            return auth.caching_sha2(self._password, nonce)
        if plugin == m.ED25519:
            return auth.ed25519(self._password, nonce)
        raise UpstreamUnavailable(
            f'Target "{self._target}" wants a log-in that is not supported; use caching_sha2_password, '
            "mysql_native_password or ed25519 for its credential's user."
        )

    def _pin(self, greeting: m.Handshake) -> Steps[LoggedIn]:
        yield from self._run(PIN_NAMES)
        state = yield from self._ask(STATE)
        mode = pinned_mode(state[0])
        if mode != state[0]:
            yield from self._run(set_mode(mode))
        if state[2:4] != ["utf8mb4", "utf8mb4"]:
            raise UpstreamUnavailable(f'Target "{self._target}" does not let a session have utf8mb4.')
        return LoggedIn(greeting.version, greeting.connection_id, mode, state[1] != "0", state[4])

    def _run(self, statement: str) -> Steps[None]:
        yield from self._command(statement)
        answer = yield from self._packet()
        if answer.payload[0] == m.ERR:
            raise self._refused(m.decode_err(answer.payload))
        m.decode_ok(answer.payload)

    def _ask(self, statement: str) -> Steps[list[str]]:
        """The one row of a query."""
        yield from self._command(statement)
        rows = Rows()
        while not rows.is_over:
            rows.take((yield from self._packet()).payload)
        if rows.error is not None:
            raise self._refused(rows.error)
        if len(rows.rows) != 1:
            raise ProtocolError("it does not say how its session reads.", side="upstream")
        return rows.rows[0]

    def _command(self, statement: str) -> Steps[None]:
        self._sequence = 0
        yield from self._say(bytes((m.COM_QUERY,)) + statement.encode())

    def _say(self, payload: bytes) -> Steps[None]:
        data = m.packet(self._sequence, payload)
        self._sequence += 1
        self._codec.expect(self._sequence)
        yield Send(data)

    def _packet(self) -> Steps[Any]:
        while (found := self._codec.next()) is None:
            self._codec.feed((yield Read()))
        return found

    def _refused(self, error: m.Err) -> UpstreamUnavailable:
        code, reason = _CHECK.get(error.code, ("08006", "it refused the log-in"))
        return UpstreamUnavailable(
            f'Target "{self._target}" cannot be used: {reason} (error {error.code}). The platform team can mend it.',
            code,
        )


class Rows:
    """Reads the answer to a query of the gateway's own: texts without NULLs, few of them."""

    MAX: Final = 10_000

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.error: m.Err | None = None
        self.is_over = False
        self._columns = -1
        self._left = 0
        self._has_columns = False  # the EOF behind them was seen

    def take(self, payload: bytes) -> None:
        """Take one packet of the answer.

        Raises:
            ProtocolError: side=upstream.
        """
        if payload[0] == m.ERR:
            self.error, self.is_over = m.decode_err(payload), True
        elif self._columns < 0:
            if payload[0] in (m.OK, m.LOCAL_INFILE):
                raise ProtocolError("it answers a question without rows.", side="upstream")
            self._columns = self._left = m.Cursor(payload, "upstream").lenenc()
        elif self._left:
            self._left -= 1
        elif m.is_eof(payload):
            self.is_over, self._has_columns = self._has_columns, True
        else:
            at = m.Cursor(payload, "upstream")
            self.rows.append([at.lenenc_bytes().decode("utf-8", "replace") for _ in range(self._columns)])
            if len(self.rows) > self.MAX:
                raise ProtocolError("it answers a question with too many rows.", side="upstream")


def pinned_mode(mode: str) -> str:
    """An sql_mode without what changes how a text is read."""
    return ",".join(one for one in mode.split(",") if one and one.upper() not in READING_MODES)


def set_mode(mode: str) -> str:
    """The statement that sets it; names of modes hold letters and underscores alone."""
    clean = "".join(sign for sign in mode if sign.isalnum() or sign in "_,")
    return f"SET SESSION sql_mode = '{clean}'"
