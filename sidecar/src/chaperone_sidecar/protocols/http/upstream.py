"""The way to one target: connections that the gateway dials itself, and the credential for one place.

Theory of operation. A conversation has one `Login`: the lease, if the target has one, and the connections that carry
it. A connection serves one request at a time; one that is free serves the next. The authority that the target hears is
always its own, never the client's, and the credential goes with requests for its scheme, host, port and path alone.
No redirect is followed.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from chaperone_sidecar import secured
from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Header, Lease
from chaperone_sidecar.errors import ChaperoneError, LeaseRefused, ProtocolError, UpstreamUnavailable
from chaperone_sidecar.frontend import Dial, LeaseSource
from chaperone_sidecar.protocols.http import codec
from chaperone_sidecar.protocols.http.codec import Codec
from chaperone_sidecar.protocols.http.dialect import HTTP_1_1, HTTP_2
from chaperone_sidecar.protocols.http.messages import AnswerHead, Data, End, Fields, NeedData, value
from chaperone_sidecar.protocols.http.wire import Gone, Wire
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.tls import upstream_context

CONNECT_TIMEOUT_S: Final = 15.0  # TCP and TLS
ANSWER_TIMEOUT_S: Final = 600.0  # until the head of an answer; models think for minutes
PIECE_TIMEOUT_S: Final = 600.0  # between two pieces; events of a stream may be rare
KEEP_S: Final = 10.0  # a free connection; servers close theirs after 5 s to 75 s
PORTS: Final = {"http": 80, "https": 443}
type Body = bytes | AsyncIterator[bytes]


class Connection(Protocol):
    """One connection to a target, for one request at a time."""

    version: str  # of HTTP
    is_reused: bool
    has_answered: bool
    is_refused: bool  # the target has done nothing of the last request (RFC 9113, 8.7)
    trailers: Fields  # of the answer, once its body is read

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent on it."""
        ...

    async def ask(self, method: str, target: str, fields: Fields, body: Body, size_bytes: int | None) -> AnswerHead:
        """Send a request and wait for the answer's head.

        Raises:
            UpstreamUnavailable: no answer. ProtocolError: one that is none.
        """
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """The answer's body; raises as `ask`."""
        ...

    def close(self) -> None:
        """Nothing more is asked here."""
        ...


class Login:
    """See the module; the `User` of its lease.

    Args:
        target: where it leads.
        dial: the way out.
        leases: gives credentials.
        fail: told when the lease ends.
    """

    def __init__(self, target: Target, dial: Dial, leases: LeaseSource, fail: Callable[[Exception], None]) -> None:
        self.target = target
        self._dial = dial
        self._leases = leases
        self._fail = fail
        self._lease: Lease | None = None
        self._context: ssl.SSLContext | None = None
        self._free: list[tuple[float, Connection]] = []
        self._turn = asyncio.Lock()
        self.is_lost = False
        self.is_http2 = False  # whether the client speaks it, so the target is asked for it

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port that the target is asked for."""
        where = self.target
        scheme = "http" if where.tls.mode == "Disable" else "https"
        return scheme, (where.tls.server_name or where.upstream.host).lower(), where.upstream.port

    @property
    def authority(self) -> str:
        """Host and port, as they stand in Host."""
        scheme, host, port = self.origin
        named = f"[{host}]" if ":" in host else host
        return named if port == PORTS[scheme] else f"{named}:{port}"

    async def begin(self) -> None:
        """Get the credential.

        Raises:
            UpstreamUnavailable: there is none.
        """
        async with self._turn:
            if self._lease is not None:
                return
            session = Ids().ulid() if self.target.leased_per_session else ""
            try:
                lease = await self._leases.lease(self.target.name, session)
            except LeaseRefused as error:
                raise UpstreamUnavailable(f'Target "{self.target.name}" cannot be used: {error}') from error
            if lease.kind != "header" or lease.header is None:
                raise UpstreamUnavailable(f'Target "{self.target.name}" has a credential that is no header.')
            if self.target.tls.mode != "Disable":
                self._context = upstream_context(self.target.tls, lease.ca_pem)
                self._context.set_alpn_protocols([HTTP_2, HTTP_1_1] if self.is_http2 else [HTTP_1_1])
            self._lease = lease
            self._leases.use(lease, self)

    def credential(self, path: str) -> Header | None:
        """The field that a request for a path gets, where it is for the place that the credential is bound to."""
        header = self._lease.header if self._lease is not None else None
        if header is None or (header.scheme, header.host.lower(), header.port) != self.origin:
            return None
        below = header.path.rstrip("/")
        return header if path in (header.path, below) or path.startswith(below + "/") else None

    @property
    def secret(self) -> Header | None:
        """The credential, wherever it is bound to."""
        return self._lease.header if self._lease is not None else None

    async def connection(self, *, is_fresh: bool = False) -> Connection:
        """A free connection.

        Raises:
            UpstreamUnavailable: the target cannot be reached, or is not what it should be.
        """
        while self._free and not is_fresh:
            since, found = self._free.pop()
            if found.is_usable and since + KEEP_S > time.monotonic():
                found.is_reused = True
                return found
            found.close()
        return await self._connect()

    def give_back(self, connection: Connection) -> None:
        """A request is over."""
        if connection.is_usable and not self.is_lost:
            self._free.append((time.monotonic(), connection))
        else:
            connection.close()

    def refused(self) -> None:
        """The target does not know the credential: the next request asks for it anew."""
        if self._lease is not None:
            self._leases.forget(self._lease)
            self._leases.let_go(self)
            self._lease = None

    def fail(self, error: Exception) -> None:
        """The lease has ended."""
        self._fail(error)

    def close(self) -> None:
        """Give back what is leased, and close what is open."""
        self.is_lost = True
        for _, one in self._free:
            one.close()
        self._free.clear()
        if self._lease is not None:
            self._leases.let_go(self)

    async def _connect(self) -> Connection:
        where, wire = self.target.upstream, Wire()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connected = await self._dial(where.host, where.port)
                await secured.connect(wire, connected, self._context, self.origin[1])
        except ssl.SSLCertVerificationError as error:
            raise UpstreamUnavailable(
                f'Target "{self.target.name}" shows a certificate that is not accepted: {error.verify_message}. '
                "Check its certificate, tls.caSecretRef and tls.serverName."
            ) from error
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UpstreamUnavailable(
                f'Target "{self.target.name}" cannot be reached at {where.host}:{where.port} ({reason}).'
            ) from error
        if not self._has_http2(wire):
            return Http1Connection(self.target.name, wire)
        from chaperone_sidecar.protocols.http.http2_upstream import Http2Connection  # noqa: PLC0415 - it loads `h2`

        return Http2Connection(self.target.name, wire, self.origin[0])

    def _has_http2(self, wire: Wire) -> bool:
        """Whether the target speaks HTTP/2: as TLS says, and in the clear as the client does."""
        if not self.is_http2 or self._context is None:
            return self.is_http2
        secured = wire.transport.get_extra_info("ssl_object") if wire.transport is not None else None
        return secured is not None and secured.selected_alpn_protocol() == HTTP_2


class Http1Connection:
    """See `Connection`: one of HTTP/1.1."""

    version = "HTTP/1.1"
    is_refused = False  # HTTP/1.1 cannot say so

    def __init__(self, name: str, wire: Wire) -> None:
        self._name = name
        self._wire = wire
        self._codec = Codec("upstream")
        self._sending: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._is_whole = True
        self._may_continue = True
        self.is_reused = False
        self.has_answered = False
        self.trailers: Fields = ()

    @property
    def is_usable(self) -> bool:
        """See `Connection`."""
        return self._is_whole and self._may_continue and not self._wire.is_lost and not self._codec.buffered

    async def ask(self, method: str, target: str, fields: Fields, body: Body, size_bytes: int | None) -> AnswerHead:
        """Send a request and wait for the answer's head.

        Raises:
            UpstreamUnavailable: no answer. ProtocolError: one that is no HTTP/1.1.
        """
        found = await self.offer(method, target, fields, body, size_bytes)
        if found.status == codec.SWITCHING:
            raise ProtocolError("The target changes the protocol, which nobody asked for.", "upstream")
        return found

    async def offer(self, method: str, target: str, fields: Fields, body: Body, size_bytes: int | None) -> AnswerHead:
        """As `ask`, for a request that offers another protocol: an answer with 101 takes it."""
        self._is_whole = self.has_answered = False
        self._codec.expect(method)
        is_empty = isinstance(body, bytes) and not body and method in ("GET", "HEAD", "OPTIONS", "DELETE")
        if size_bytes is None:
            fields += (("Transfer-Encoding", "chunked"),)
        elif not is_empty:
            fields += (("Content-Length", str(size_bytes)),)
        head = codec.encode_request(method, target, fields)
        try:
            if isinstance(body, bytes):
                await self._wire.send(head + body)
            else:
                await self._wire.send(head)
                self._sending = asyncio.create_task(self._send(body, is_chunked=size_bytes is None))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while isinstance(found := self._codec.next(), NeedData):
                    await self._feed()
        except (Gone, TimeoutError) as error:
            raise self._broken(error) from error
        if not isinstance(found, AnswerHead):
            raise ProtocolError("The target's answer has no head.", "upstream")
        named = {one.strip().lower() for one in value(found.fields, "connection").split(",")}
        self._may_continue = "close" not in named
        return found

    def switched(self) -> tuple[Wire, bytes]:
        """The connection in another protocol, and what came of it already."""
        return self._wire, self._codec.take()

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `Connection`."""
        try:
            while True:
                found = self._codec.next()
                if isinstance(found, Data):
                    yield found.data
                elif isinstance(found, End):
                    self.trailers = found.trailers
                    break
                else:
                    async with asyncio.timeout(PIECE_TIMEOUT_S):
                        await self._feed()
        except (Gone, TimeoutError) as error:
            raise self._broken(error) from error
        if self._sending is None or self._sending.done():
            self._is_whole = self._codec.state is codec.State.HEAD
        self._sending = None if self._is_whole else self._sending

    def close(self) -> None:
        """See `Connection`."""
        if self._sending is not None:
            self._sending.cancel()
        self._wire.abort()

    async def _send(self, body: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        try:
            async for data in body:
                await self._wire.send(codec.encode_chunk(data) if is_chunked else data)
            if is_chunked:
                await self._wire.send(codec.encode_end())
        except (ChaperoneError, Gone) as error:
            # A body that stops in its middle must not look like a whole one; whoever waits for the answer hears why.
            self._failure = error
            self._wire.abort()

    async def _feed(self) -> None:
        data = await self._wire.receive()
        if data:
            self.has_answered = True
            self._codec.feed(data)
        elif self._failure is not None:
            raise self._failure
        elif self._codec.state is codec.State.HEAD and not self._codec.buffered:
            raise Gone("the target has closed the connection")
        else:
            self._codec.end()

    def _broken(self, error: Exception) -> UpstreamUnavailable:
        return UpstreamUnavailable(f'Target "{self._name}" broke the connection ({type(error).__name__}).')
