"""The way to one API server: connections that the gateway dials itself, and the credential.

Theory of operation. All conversations with a target share a `Login`: one lease, one pool of connections. A lease of
this kind is a token that cannot be renewed, so at two thirds of its life the next request gets another login; what
still runs with the old one (a watch, a program) goes on until its token ends, and fails then. A login that nobody has
used for a while is given back.

No request is sent anywhere but to the address that was dialled: redirects are not followed, proxies of the environment
are not used, and the name in the certificate is the target's.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from chaperone_sidecar import secured
from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.errors import LeaseRefused, UpstreamUnavailable
from chaperone_sidecar.frontend import Dial, LeaseSource
from chaperone_sidecar.protocols.kubernetes.channels import MAX_MESSAGE_BYTES, PROTOCOLS
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.tls import upstream_context

CONNECT_TIMEOUT_S: Final = 15.0  # TCP and TLS
ANSWER_TIMEOUT_S: Final = 75.0  # the API server's own limit for what is no watch is 60 s
KEEP_S: Final = 30.0  # an idle connection; the API server's limit is longer
IDLE_S: Final = 60.0  # a login without requests
RENEW_AT: Final = 2 / 3
MAX_HEADER_BYTES: Final = 32 << 10
READ_BYTES: Final = 256 << 10

_STREAM: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, connect=None)
_WHOLE: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=ANSWER_TIMEOUT_S)


class _Connector(aiohttp.BaseConnector):
    """aiohttp's pool over connections that are dialled by us."""

    def __init__(self, target: Target, dial: Dial, context: ssl.SSLContext | None) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEP_S)
        self._target = target
        self._dial = dial
        self._context = context

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:  # noqa: ANN401, ASYNC109
        where = self._target.upstream
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connected = await self._dial(where.host, where.port)
                protocol = self._factory()
                await secured.connect(protocol, connected, self._context, self._target.tls.server_name or where.host)
        except ssl.SSLCertVerificationError as error:
            raise UpstreamUnavailable(
                f'Target "{self._target.name}" shows a certificate that is not accepted: {error.verify_message}. '
                "Check its certificate, tls.caSecretRef and tls.serverName."
            ) from error
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UpstreamUnavailable(
                f'Target "{self._target.name}" cannot be reached at {where.host}:{where.port} ({reason}).'
            ) from error
        return protocol


class Login:
    """One lease and the connections that carry it; the `User` of the lease."""

    def __init__(self, target: Target, dial: Dial, leases: LeaseSource, lease: Lease) -> None:
        now = time.time()
        self._target = target
        self._leases = leases
        self.lease = lease
        self.is_lost = False
        self.renew_at = now + RENEW_AT * (lease.expires_at_unix - now)
        self._running: set[Callable[[Exception], None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._is_current = True
        context = None if target.tls.mode == "Disable" else upstream_context(target.tls, lease.ca_pem)
        self._scheme = "http" if context is None else "https"
        self._session = aiohttp.ClientSession(
            connector=_Connector(target, dial, context), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"), read_bufsize=READ_BYTES,
            max_line_size=MAX_HEADER_BYTES, max_field_size=MAX_HEADER_BYTES,
        )  # fmt: skip
        leases.use(lease, self)

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, fail: Callable[[Exception], None],
        *, is_stream: bool,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """Send a request; `fail` is called when the lease ends while it runs.

        Raises:
            UpstreamUnavailable: no answer.
        """
        with self.used(fail):
            try:
                async with self._session.request(
                    method, self._url(target), headers=self._headers(headers), data=body or None,
                    allow_redirects=False, timeout=_STREAM if is_stream else _WHOLE,
                ) as answer:  # fmt: skip
                    yield answer
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._broken(error) from error

    @asynccontextmanager
    async def channels(
        self, target: str, headers: Mapping[str, str], fail: Callable[[Exception], None]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open the streams of a program.

        Raises:
            UpstreamUnavailable: it is not opened; `code` is the HTTP status where there is one.
        """
        with self.used(fail):
            try:
                async with self._session.ws_connect(
                    self._url(target), protocols=PROTOCOLS, headers=self._headers(headers), compress=0,
                    max_msg_size=MAX_MESSAGE_BYTES, autoping=True,
                ) as socket:  # fmt: skip
                    if socket.protocol not in PROTOCOLS:
                        raise UpstreamUnavailable(f'Target "{self._target.name}" names no protocol for streams.')
                    yield socket
            except aiohttp.WSServerHandshakeError as error:
                raise UpstreamUnavailable(
                    f'Target "{self._target.name}" opens no streams: HTTP status {error.status}.', str(error.status)
                ) from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._broken(error) from error

    def fail(self, error: Exception) -> None:
        """The lease has ended: so does what runs with it."""
        self.is_lost = True
        for one in tuple(self._running):
            one(error)
        self._close()

    def retire(self) -> None:
        """No new request gets it."""
        self._is_current = False
        if not self._running:
            self._close()

    def used(self, fail: Callable[[Exception], None]) -> _Use:
        """While this lasts the login is not given back; `fail` is called when its lease ends."""
        return _Use(self, fail)

    def _begin(self, fail: Callable[[Exception], None]) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._running.add(fail)

    def _end(self, fail: Callable[[Exception], None]) -> None:
        self._running.discard(fail)
        if self._running or self.is_lost:
            return
        if not self._is_current:
            self._close()
        else:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._close)

    def _close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self.is_lost = True
        self._leases.let_go(self)
        _closing.add(task := asyncio.get_running_loop().create_task(self._session.close()))
        task.add_done_callback(_closing.discard)

    def _url(self, target: str) -> URL:
        where = self._target.upstream
        host = f"[{where.host}]" if ":" in where.host else where.host
        return URL(f"{self._scheme}://{host}:{where.port}{target}", encoded=True)

    def _headers(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        found = [*headers.items(), ("Authorization", f"Bearer {self.lease.token}")]
        if self.lease.impersonate is not None:
            found.append(("Impersonate-User", self.lease.impersonate.user))
            found += [("Impersonate-Group", group) for group in self.lease.impersonate.groups]
        return found

    def _broken(self, error: Exception) -> UpstreamUnavailable:
        return UpstreamUnavailable(f'Target "{self._target.name}" broke the connection ({type(error).__name__}).')


_closing: Final[set[asyncio.Task[None]]] = set()


class _Use:
    """A request under way."""

    def __init__(self, login: Login, fail: Callable[[Exception], None]) -> None:
        self._login = login
        self._fail = fail

    def __enter__(self) -> None:
        self._login._begin(self._fail)

    def __exit__(self, *_: object) -> None:
        self._login._end(self._fail)


class Upstream:
    """The logins of one target."""

    def __init__(self, target: Target, dial: Dial, leases: LeaseSource) -> None:
        self.target = target
        self._dial = dial
        self._leases = leases
        self._current: Login | None = None
        self._turn = asyncio.Lock()

    async def login(self) -> Login:
        """A login for one request.

        Raises:
            UpstreamUnavailable: there is no credential.
        """
        async with self._turn:  # requests that come together share one question
            found = self._current
            if found is not None and not found.is_lost and found.renew_at > time.time():
                return found
            lease = await self._lease()
            if found is not None and not found.is_lost:
                found.retire()
            self._current = Login(self.target, self._dial, self._leases, lease)
            return self._current

    def refused(self, login: Login) -> None:
        """The API server does not know the token: the next request gets another."""
        if self._current is login:
            self._current = None
        self._leases.forget(login.lease)
        login.retire()

    def close(self) -> None:
        """Give back what is leased."""
        if self._current is not None and not self._current.is_lost:
            self._current.retire()
        self._current = None

    async def _lease(self) -> Lease:
        session = Ids().ulid() if self.target.leased_per_session else ""
        try:
            lease = await self._leases.lease(self.target.name, session)
        except LeaseRefused as error:
            raise UpstreamUnavailable(f'Target "{self.target.name}" cannot be used: {error}') from error
        if lease.kind != "token" or not lease.token:
            raise UpstreamUnavailable(f'Target "{self.target.name}" has a credential that is no token.')
        return lease
