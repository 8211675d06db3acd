"""Logging in at the backend, as a generator without I/O (54.2.1 "Start-up", 54.3 "SASL Authentication").

The driver sends what `Send` holds, answers `Read` with bytes, `BeginTls` with the channel-binding hash of the
connection it has encrypted and verified, and `Derive` with the salted password. The end is a `LoggedIn`, or
`UpstreamUnavailable` with a text that the client may see: it names the target and what to check, and quotes the
backend only by its SQLSTATE.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import msgspec

from chaperone_sidecar.errors import ProtocolError, UpstreamUnavailable
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, Frame, Rows
from chaperone_sidecar.protocols.postgresql.scram import MECHANISM, MECHANISM_PLUS, Scram
from chaperone_sidecar.steps import BeginTls, Read, Send

MAX_PARAMETERS: Final = 100  # PostgreSQL reports about fifteen

# What the classifier takes for granted. A single-byte server encoding would fold names that UTF-8 does not.
READING: Final = (("server_encoding", "UTF8"), ("client_encoding", "UTF8"), ("standard_conforming_strings", "on"))

_AUTH_OK, _AUTH_CLEARTEXT, _AUTH_SASL, _AUTH_SASL_CONTINUE, _AUTH_SASL_FINAL = 0, 3, 10, 11, 12

_CHECK: Final = {
    "28P01": "the password in its credential is wrong",
    "28000": "its credential's user may not log in",
    "3D000": "the database does not exist",
    "53300": "it has no connection free",
    "57P03": "it is starting up or shutting down",
}


class Credential(msgspec.Struct, frozen=True):
    """What a log-in needs; its repr shows nothing."""

    user: str
    password: str
    nonce: bytes

    def __repr__(self) -> str:
        return "Credential()"


class Derive(msgspec.Struct, frozen=True, gc=False):
    """Derive the salted password (scram.derive)."""

    password: bytes
    salt: bytes
    iterations: int

    def __repr__(self) -> str:
        return "Derive()"


class LoggedIn(msgspec.Struct, frozen=True, gc=False):
    """The backend is ready; `rest` is what it sent beyond that."""

    parameters: tuple[tuple[str, str], ...]
    process_id: int
    secret: bytes
    rest: bytes


type Steps[T] = Generator[Send | Read | BeginTls | Derive, Any, T]


def log_in(
    target: str,
    credential: Credential,
    database: str,
    parameters: tuple[tuple[str, str], ...],
    *,
    use_tls: bool,
    is_verified: bool,
) -> Steps[LoggedIn]:
    """Log in.

    Args:
        target: its name, for texts.
        credential: user and password of the lease, and a fresh nonce.
        database: the database to use.
        parameters: startup parameters beside user and database.
        use_tls: ask for TLS and refuse to go on without.
        is_verified: TLS proves who the backend is, so that a password may be sent to it in the clear.

    Raises:
        UpstreamUnavailable: see the module's docstring.
    """
    binding = yield from request_tls(target) if use_tls else _no_tls()
    yield Send(m.encode_startup((("user", credential.user), ("database", database), *parameters)))
    codec = BackendCodec()
    try:
        yield from _authenticate(target, codec, credential, binding, is_verified=is_verified)
        return (yield from _settle(target, codec))
    except ProtocolError as error:
        raise UpstreamUnavailable(f'Target "{target}" does not speak PostgreSQL: {error}') from error


def request_tls(target: str) -> Steps[bytes]:
    """Ask for TLS and begin it.

    Raises:
        UpstreamUnavailable: the backend has none, or sent more than its one byte in plain.
    """
    yield Send((8).to_bytes(4, "big") + m.SSL_REQUEST.to_bytes(4, "big"))
    answer = yield Read()
    if answer != b"S":
        reason = "offers no TLS" if answer[:1] == b"N" else "did not answer the request for TLS as PostgreSQL does"
        raise UpstreamUnavailable(f'Target "{target}" {reason}; check its tls.mode and its address.')
    binding: bytes = yield BeginTls()
    return binding


def _no_tls() -> Steps[bytes]:
    yield from ()
    return b""


def _authenticate(
    target: str, codec: BackendCodec, credential: Credential, binding: bytes, *, is_verified: bool
) -> Steps[None]:
    scram: Scram | None = None
    finished = False
    while True:
        frame = yield from _frame(codec)
        if frame.type == m.NEGOTIATE_PROTOCOL_VERSION:
            continue
        _expect(target, frame, m.AUTHENTICATION)
        code, data = int.from_bytes(frame.body[:4], "big"), frame.body[4:]
        if code == _AUTH_OK:
            if scram is not None and not finished:
                raise UpstreamUnavailable(f'Target "{target}" ended SCRAM before it proved that it knows the password.')
            return
        if code == _AUTH_SASL and scram is None:
            offered = data.split(b"\x00")
            if MECHANISM.encode() not in offered:
                raise UpstreamUnavailable(f'Target "{target}" offers no SCRAM-SHA-256.')
            scram = Scram(
                credential.password, credential.nonce, binding, server_can_bind=MECHANISM_PLUS.encode() in offered
            )
            first = scram.first()
            body = scram.mechanism.encode() + b"\x00" + len(first).to_bytes(4, "big") + first
            yield Send(m.frame(m.PASSWORD, body))
        elif code == _AUTH_SASL_CONTINUE and scram is not None:
            salted = yield Derive(*scram.challenge(data))
            yield Send(m.frame(m.PASSWORD, scram.final(salted)))
        elif code == _AUTH_SASL_FINAL and scram is not None:
            scram.check(data)
            finished = True
        elif code == _AUTH_CLEARTEXT and is_verified and scram is None:
            yield Send(m.frame(m.PASSWORD, credential.password.encode() + b"\x00"))
        else:
            raise UpstreamUnavailable(
                f'Target "{target}" asks for an authentication that would give the password away; '
                "set password_encryption to scram-sha-256 there."
            )


def _settle(target: str, codec: BackendCodec) -> Steps[LoggedIn]:
    parameters: list[tuple[str, str]] = []
    process_id, secret = 0, b""
    while True:
        frame = yield from _frame(codec)
        if frame.type == m.READY_FOR_QUERY:
            return LoggedIn(tuple(parameters), process_id, secret, codec.take_rest())
        if frame.type == m.PARAMETER_STATUS and len(parameters) < MAX_PARAMETERS:
            name, _, value = frame.body.rstrip(b"\x00").partition(b"\x00")
            parameters.append((name.decode("utf-8", "replace"), value.decode("utf-8", "replace")))
        elif frame.type == m.BACKEND_KEY_DATA:
            process_id, secret = int.from_bytes(frame.body[:4], "big"), frame.body[4:]
        elif frame.type not in (m.NOTICE_RESPONSE, m.NEGOTIATE_PROTOCOL_VERSION):
            _expect(target, frame, m.READY_FOR_QUERY)


def _frame(codec: BackendCodec) -> Steps[Frame]:
    while (found := codec.next()) is None:
        codec.feed((yield Read()))
    if isinstance(found, Rows):
        raise ProtocolError("it sent rows before its log-in.", side="upstream")
    return found


def _expect(target: str, frame: Frame, kind: int) -> None:
    if frame.type == m.ERROR_RESPONSE:
        code = m.sqlstate(frame.body)
        reason = _CHECK.get(code, "it refused the log-in")
        raise UpstreamUnavailable(
            f'Target "{target}" cannot be used: {reason} (SQLSTATE {code}). The platform team can mend it.', code
        )
    if frame.type != kind:
        raise ProtocolError(f"it sent a message of type {chr(frame.type)!r} during its log-in.", side="upstream")
