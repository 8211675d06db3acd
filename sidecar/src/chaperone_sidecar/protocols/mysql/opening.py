"""How a session begins: the greeting, encryption, the person behind it, and the log-in that the gateway does instead.

The agent is asked for nothing: whatever it proves, the gateway logs in with the target's credential. Nothing reaches a
server for the session before the client's answer to the greeting was checked, and, where the agent acts on behalf of
persons, before it is known whose token the client shows.

Spec: "Connection Phase".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from chaperone_sidecar.effects import Close, Effects, Identify, Offload, Opened, OpenUpstream, StartTls, ToClient
from chaperone_sidecar.errors import LimitReached, ProtocolError, SpoolFull, UpstreamUnavailable, UserRefused
from chaperone_sidecar.protocols.mysql import answers
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.codec import Codec, Packet
from chaperone_sidecar.protocols.mysql.upstream import BASE, OF_CLIENT

VERSION: Final = b"8.0.36"  # of a server whose own is not known
OFFERED: Final = BASE | OF_CLIENT | m.CLIENT_SSL | m.CLIENT_CONNECT_WITH_DB | m.CLIENT_CONNECT_ATTRS


class Opening:
    """The client's side until it is logged in.

    Args:
        client: takes the client's bytes apart.
        connection_id, nonce, version, asks_user: see `session.Session`.
    """

    def __init__(
        self,
        client: Codec,
        connection_id: int,
        nonce: bytes,
        version: Callable[[], Awaitable[bytes]],
        *,
        asks_user: bool,
    ) -> None:
        self._client = client
        self._id = connection_id
        self._nonce = nonce
        self._version = version
        self._asks_user = asks_user
        self._is_greeted = False
        self._has_tls = False
        self._asked: m.HandshakeResponse | None = None  # of a client that is asked for a token
        self._response: m.HandshakeResponse | None = None
        self.sequence = 0
        """Number of the next packet for the client."""
        self.is_over = False
        """Whether the client was sent away."""

    def greet(self) -> Effects[None]:
        """Say what a server says first."""
        version = yield Offload(self._version)
        greeting = m.Handshake(version or VERSION, self._id, self._nonce, OFFERED, m.NATIVE)
        self._client.expect(1)
        self._is_greeted = True
        self.sequence = 2
        yield ToClient(m.packet(0, greeting.encode()))

    def packet(self, packet: Packet) -> Effects[Opened | None]:
        """Take a packet; returns the server once the client is logged in, but before it is told so.

        Raises:
            ProtocolError: side=client.
        """
        if not self._is_greeted:
            raise ProtocolError("The client spoke before it was greeted.")
        self.sequence = packet.next_sequence
        if self._asked is not None:
            return (yield from self._identify(packet.payload.rstrip(b"\0"), self._asked))
        response = m.decode_handshake_response(packet.payload)
        if response.is_tls_request:
            if self._has_tls:
                raise ProtocolError("The connection is encrypted already.")
            self._has_tls = True
            yield StartTls(self._client.take_rest())
            return None
        if response.capabilities & (m.CLIENT_COMPRESS | m.CLIENT_ZSTD_COMPRESSION_ALGORITHM):
            raise ProtocolError("The client compresses though no server offered it; turn compression off.")
        self._response = response
        if self._asks_user:
            self._asked = response
            yield ToClient(m.packet(self.sequence, b"\xfe" + m.CLEAR.encode() + b"\0"))
            self.sequence += 1
            self._client.expect(self.sequence)
            return None
        return (yield from self._log_in(response))

    def welcome(self, sequence: int) -> bytes:
        """What the client hears once it is logged in."""
        out = b""
        response = self._response
        if (
            response is not None
            and self._asked is None
            and response.plugin == m.CACHING_SHA2.encode()
            and response.auth
        ):
            out = m.packet(sequence, b"\x01\x03")  # that plugin waits to hear that its proof was known
            sequence += 1
        return out + m.packet(sequence, m.Ok().encode())

    def _identify(self, token: bytes, response: m.HandshakeResponse) -> Effects[Opened | None]:
        try:
            yield Identify(token)
        except UserRefused as error:
            yield from self._end("user refused", error)
            return None
        return (yield from self._log_in(response))

    def _log_in(self, response: m.HandshakeResponse) -> Effects[Opened | None]:
        user, database, program = (
            one.decode("utf-8", "replace") for one in (response.user, response.database, response.program)
        )
        try:
            opened: Opened = yield OpenUpstream(
                user, database, program,
                (("capabilities", str(response.capabilities & OF_CLIENT)), ("connection_id", str(self._id))),
            )  # fmt: skip
        except (UpstreamUnavailable, LimitReached, SpoolFull) as error:
            yield from self._end("upstream unavailable", error)
            return None
        return opened

    def _end(self, why: str, error: Exception) -> Effects[None]:
        self.is_over = True
        yield ToClient(m.packet(self.sequence, answers.fatal(error).encode()))
        yield Close(why)
