"""One connection of the agent to an HTTP target, from the TLS handshake to its end.

Theory of operation. Each request is worked on in a task of its own, so that a limit, a suspension or the end of a lease
can stop it: where nothing was sent yet the client hears why, as a problem; where something was, the answer is broken
off, which no client takes for its end. A client that goes stops it, too; what ran without an outcome is recorded as
aborted with the end of the session. In HTTP/1.1 one request follows the other, in HTTP/2 they run beside each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from chaperone_sidecar import peer, secured
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.config import Target
from chaperone_sidecar.effects import Conclude
from chaperone_sidecar.errors import (
    ChaperoneError,
    CommandRefused,
    LimitReached,
    ProtocolError,
    SpoolFull,
    UserRefused,
)
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.http import answers, place
from chaperone_sidecar.protocols.http.codec import Codec
from chaperone_sidecar.protocols.http.dialect import HTTP_2, Dialect, Plain
from chaperone_sidecar.protocols.http.exchange import Exchange, next_request, preface
from chaperone_sidecar.protocols.http.handler import Handler
from chaperone_sidecar.protocols.http.messages import RequestHead, value
from chaperone_sidecar.protocols.http.upstream import Login
from chaperone_sidecar.protocols.http.wire import Gone, Wire
from chaperone_sidecar.protocols.http.work import Work, code_of, is_call, tell

if TYPE_CHECKING:
    import ssl

    from chaperone_sidecar.masking.mask import Masker
    from chaperone_sidecar.protocols.http.http2 import Link

logger = logging.getLogger(__name__)

LAST_WORD_S: Final = 6.0  # for a client that is cut to take it, and for a WebSocket to close
MAX_SHOWN_CHARACTERS: Final = 200  # of the client's name for itself

_names: Final[WeakKeyDictionary[object, str]] = WeakKeyDictionary()
"""By TLS connection the name that its client asked for."""


class Conversation:
    """See `frontend.Conversation`.

    Args:
        target: where it leads.
        services: of the gateway.
        masker: of the target; None where nothing is masked.
        dialect: what travels in HTTP here.
    """

    def __init__(
        self, target: Target, services: Services, masker: Masker | None, dialect: Dialect | None = None
    ) -> None:
        self.target = target
        self._services = services
        self._dialect: Dialect = dialect or Plain()
        self._conduct: Conduct = services.conduct(target)
        self._login = Login(target, services.dial, services.leases, self._fail)
        self._handler = Handler(
            target, self._conduct, self._login, None if masker is None or masker.is_idle else masker, self._dialect,
            self._check_place,
        )  # fmt: skip
        self._refusal: ChaperoneError | None = services.suspended
        self._wire = Wire(self._lost)
        self._peer = ""
        self._name = ""  # that TLS was asked for
        self._token: bytes | None = None
        self._serving: asyncio.Task[None] | None = None
        self._works: dict[asyncio.Task[None], Work] = {}
        self._turn = asyncio.Lock()  # of what comes before the first request
        self._link: Link | None = None  # where it is HTTP/2
        self._is_over = False
        self._reason = "client closed the connection"

    async def take(self, connection: socket.socket) -> None:
        """See `frontend.Conversation`."""
        self._peer = peer.named(connection.getpeername())
        context = None
        if self.target.tls.mode != "Disable":
            context = self._services.server_context(self.target, *self._dialect.alpn)
            context.sni_callback = _note_name
        transport = await secured.accept(self._wire, connection, context)
        layer = transport.get_extra_info("ssl_object")
        self._name = _names.get(layer, "") if layer is not None else ""
        is_http2 = layer is not None and layer.selected_alpn_protocol() == HTTP_2
        self._serving = asyncio.create_task(self._serve(is_http2=is_http2, is_clear=layer is None))

    def cut(self, error: ChaperoneError, *, is_stopping: bool = False) -> None:
        """See `frontend.Conversation`."""
        if self._refusal is None:
            self._refusal, self._reason = error, str(error)
            # Who opens no window, or reads nothing, does not keep what was taken away.
            asyncio.get_running_loop().call_later(LAST_WORD_S, self._wire.abort)
        if is_stopping:
            self._conduct.leave(is_stopping=True)
        for task, work in tuple(self._works.items()):
            work.stop(task, error)
        if self._link is not None:
            self._link.retire()
        if not self._works:
            self._wire.close()
        if is_stopping:  # the stream's last record comes next, so what is owed cannot wait for the loop's next turn
            self._end()

    def follow_limits(self) -> None:
        """See `frontend.Conversation`: each request asks for the limits when it begins."""

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _serve(self, *, is_http2: bool, is_clear: bool) -> None:
        try:
            first = b""
            if is_clear and HTTP_2 in self._dialect.alpn:
                first, is_http2 = await preface(self._wire)
            if is_http2:
                await self._serve_streams(first, "http" if is_clear else "https")
            else:
                await self._serve_one_by_one(first)
        except (Gone, SpoolFull, ChaperoneError):
            pass  # the client is gone, or nothing can be recorded any more: it hears nothing
        except Exception as error:  # a defect ends this connection alone; its text might quote what was sent
            logger.error("a connection failed: %s", type(error).__name__)
        finally:
            self._wire.close()
            self._end()

    async def _serve_one_by_one(self, first: bytes) -> None:
        reader = Codec("client")
        reader.feed(first)
        while True:
            try:
                exchange = await next_request(self._wire, reader)
            except ProtocolError as error:
                await self._unreadable(error)
                break
            if exchange is None:
                break
            await self._run_work(exchange)
            if not exchange.may_continue or self._refusal is not None:
                break

    async def _serve_streams(self, first: bytes, scheme: str) -> None:
        from chaperone_sidecar.protocols.http.http2 import Link  # noqa: PLC0415 - it loads `h2`
        from chaperone_sidecar.protocols.http.http2_exchange import Http2Exchange  # noqa: PLC0415

        self._login.is_http2 = True
        link = self._link = Link(self._wire, is_client=False)
        running: set[asyncio.Task[None]] = set()
        try:
            link.begin()
            async with contextlib.aclosing(link.requests(first)) as streams:
                async for stream in streams:
                    task = asyncio.create_task(self._run_stream(Http2Exchange(stream, scheme)))
                    running.add(task)
                    task.add_done_callback(running.discard)
        except ProtocolError as error:
            link.refuse(error)
            await self._note_unreadable(error)
        finally:
            for task in tuple(self._works):  # the client is gone, or not to be heard any more
                self._works[task].stop(task, ChaperoneError("The client has closed the connection."))
            await asyncio.gather(*running, return_exceptions=True)

    async def _run_stream(self, exchange: Exchange) -> None:
        """Answer one of several requests; what none of them outlives ends them all."""
        try:
            await self._run_work(exchange)
        except Gone:
            pass
        except ChaperoneError as error:
            self.cut(error)
        if self._refusal is not None and self._link is not None:
            self._link.retire()
            if not self._works:
                self._wire.close()

    async def _run_work(self, exchange: Exchange) -> None:
        """Answer one request; a stop from outside ends the work, not the connection's task."""
        work = Work(exchange)
        task = asyncio.create_task(self._answer(work))
        self._works[task] = work
        self._limit(task, work)
        exchange.on_gone = lambda: work.stop(task, ChaperoneError("The client has cancelled the request."))
        try:
            await asyncio.wait([task])
        finally:
            del self._works[task]
            work.forget_limit()
        if task.cancelled():
            await self._last_word(work, work.stopped or ChaperoneError("The request was stopped."))
        elif (error := task.exception()) is not None:
            if isinstance(error, Gone):
                raise error
            if not isinstance(error, ChaperoneError):
                logger.error("a request failed: %s", type(error).__name__)
                error = ChaperoneError(f"The gateway failed ({type(error).__name__}).")
            await self._last_word(work, error)

    def _limit(self, task: asyncio.Task[None], work: Work) -> None:
        """Let the work run no longer than it may; waiting for people does not count."""
        most = self._conduct.meter.command_duration
        if most is not None:
            reached = LimitReached(Reached("commandDuration", most))
            work.on_intent = lambda: work.limit(most.max / 1000, task, reached)

    async def _unreadable(self, error: ProtocolError) -> None:
        """What is no HTTP/1.1."""
        error = await self._note_unreadable(error)
        body = answers.failure(error).encode()
        head = (
            f"HTTP/1.1 400 Bad Request\r\nContent-Type: {answers.CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        with contextlib.suppress(Gone):
            await self._wire.send(head.encode() + body)

    async def _note_unreadable(self, error: ProtocolError) -> ProtocolError:
        """Record what is no HTTP, where a session is open or can be without asking who it is; what the client hears."""
        try:
            async with self._turn:
                await self._begin(None)
            await self._handler.record_malformed(b"", error)
        except ChaperoneError as other:
            if not isinstance(other, CommandRefused | UserRefused):
                return ProtocolError(str(other))
        return error

    # --- a request ----------------------------------------------------------------------------------------------------

    async def _answer(self, work: Work) -> None:
        async with self._turn:
            await self._begin(work.exchange.head)
        await self._handler.answer(work)

    def _check_place(self, head: RequestHead) -> None:
        own = self._wire.transport.get_extra_info("sockname") if self._wire.transport is not None else None
        place.check(head, self.target, self._name, peer.port(own))

    async def _begin(self, head: RequestHead | None) -> None:
        """Everything before the first request; for later ones, that nothing has changed."""
        if self._refusal is not None:
            raise self._refusal
        conduct = self._conduct
        if conduct.asks_user:
            token = _bearer(head) if head is not None else b""
            if self._token is None:
                await conduct.identify(token, self.cut)
                self._token = token
            elif token != self._token:
                raise UserRefused("The connection belongs to another person; open one for each.")
        if conduct.is_open:
            return
        try:
            conduct.enter()
        except LimitReached as error:
            self._refusal = error
            raise
        where = self.target.upstream
        application = value(head.fields, "user-agent")[:MAX_SHOWN_CHARACTERS] if head is not None else ""
        conduct.open(
            client=self._peer, upstream=f"{where.host}:{where.port}",
            application=self._handler.masked(application.encode()).decode("utf-8", "replace"),
        )  # fmt: skip

    # --- stopping and the end -----------------------------------------------------------------------------------------

    async def _last_word(self, work: Work, error: ChaperoneError) -> None:
        """What the client hears; where it has heard something already the answer is broken off."""
        exchange, owed = work.exchange, work.intent
        if owed is not None and self._conduct.owes(owed):
            is_gone = exchange.is_gone
            self._conduct.conclude(Conclude(owed, "aborted" if is_gone else "error", "" if is_gone else code_of(error)))
        if work.tunnel is not None:
            await work.tunnel.end(error)
            return
        if exchange.is_gone:
            return
        problem = answers.failure(error)
        if exchange.is_started:
            exchange.break_off(problem.grpc_trailers if is_call(exchange) else ())
            return
        if self._refusal is not None or isinstance(error, SpoolFull) or not exchange.is_whole:
            exchange.last()
        await tell(exchange, problem, self._dialect.refusal(work.asked, work.body, problem))

    def _fail(self, error: Exception) -> None:
        self.cut(error if isinstance(error, ChaperoneError) else ChaperoneError(str(error)))

    def _lost(self) -> None:
        for task, work in tuple(self._works.items()):
            work.stop(task, ChaperoneError("The client has closed the connection."))
        if self._serving is None:
            self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._conduct.end(self._reason)
        self._login.close()
        self._services.over(self)


def _note_name(secured: object, name: str | None, _: ssl.SSLContext) -> None:
    _names[secured] = (name or "").lower()


def _bearer(head: RequestHead) -> bytes:
    scheme, _, token = value(head.fields, "authorization").partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""
