"""One connection of the agent to a Kubernetes API, from the TLS handshake to its end.

Theory of operation. aiohttp reads the requests of the connection one after the other and has each answered by
`_serve`. The answer is worked out in a task of its own, so that a limit, a suspension or the end of a lease can stop
it: where nothing was sent yet the client then hears why, as a `Status`; where something was, the connection is broken
off, which no client takes for the end of an answer. A client that goes stops it, too; what ran without an outcome is
recorded as aborted with the end of the session.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from aiohttp import web

from chaperone_sidecar import peer, secured
from chaperone_sidecar.command import Command, unknown
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.config import Target
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import Conclude, Intend, Intent
from chaperone_sidecar.errors import (
    ChaperoneError,
    CommandRefused,
    LimitReached,
    ProtocolError,
    SpoolFull,
    Suspended,
    Unmaskable,
    UserRefused,
)
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.kubernetes import answers, classify, negotiation, request
from chaperone_sidecar.protocols.kubernetes.body import MAX_BODY_BYTES
from chaperone_sidecar.protocols.kubernetes.execution import Execution
from chaperone_sidecar.protocols.kubernetes.portforward import PortForward
from chaperone_sidecar.protocols.kubernetes.relay import SERVER, Relay
from chaperone_sidecar.protocols.kubernetes.request import Request
from chaperone_sidecar.protocols.kubernetes.server import (
    MAX_LINE_BYTES,
    Server,
    bearer,
    bounded,
    not_covered,
    upgraded_to,
)
from chaperone_sidecar.protocols.kubernetes.upstream import Upstream

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

logger = logging.getLogger(__name__)

WATCH_S: Final = 0.25  # how often it is looked at how long a request runs
MAX_SHOWN_CHARACTERS: Final = 200  # of the client's name for itself
ALPN: Final = "http/1.1"
UNCOVERED: Final = "uncovered"
MALFORMED: Final = "malformed"
OUTSIDE: Final = "not-covered"


class Conversation:
    """See `frontend.Conversation`.

    Args:
        target: where it leads.
        services: of the gateway.
        upstream: the API server, shared by all conversations with it.
        masker: of the target; None where nothing is masked.
        on_over: told when it is over.
    """

    def __init__(self, target: Target, services: Services, upstream: Upstream, masker: Masker | None) -> None:
        self.target = target
        self._services = services
        self._upstream = upstream
        self._masker = masker
        self._conduct: Conduct = services.conduct(target)
        self._refusal: ChaperoneError | None = services.suspended
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._token: bytes | None = None
        self._server: Server | None = None
        self._work: asyncio.Task[web.StreamResponse] | None = None
        self._stopped: ChaperoneError | Reached | None = None
        self._telling: set[asyncio.Future[Intent]] = set()
        self._is_closing = self._is_entered = self._is_upgraded = False
        self._is_watching = False
        self._is_lost = False
        self._is_over = False
        self._reason = "client closed the connection"
        self.running: Intent | None = None
        """The command at work."""

    async def take(self, connection: socket.socket) -> None:
        """See `frontend.Conversation`."""
        self._peer = peer.named(connection.getpeername())
        context = self._services.server_context(self.target, ALPN)
        server = Server(self._serve, self._lost, self._unreadable)
        self._transport = await secured.accept(server(), connection, context)
        self._server = server

    def cut(self, error: ChaperoneError, *, is_stopping: bool = False) -> None:
        """See `frontend.Conversation`."""
        if self._refusal is None:  # who is suspended has no target any more either, which is no reason of its own
            self._refusal = error
            self._reason = str(error) if isinstance(error, Suspended) else type(error).__name__
        if is_stopping:
            self._conduct.leave(is_stopping=True)
        self._stop(error)
        if self._work is None:
            self._break_off()

    def follow_limits(self) -> None:
        """See `frontend.Conversation`."""
        if self._conduct.is_open and not self._is_watching:
            self._watch()

    # --- one request --------------------------------------------------------------------------------------------------

    async def _serve(self, http: web.BaseRequest) -> web.StreamResponse:
        work = self._work = asyncio.get_running_loop().create_task(self._answer(http))
        try:
            return await work
        except asyncio.CancelledError:
            if not work.done():  # the client is gone
                work.cancel()
                await asyncio.wait([work])
                raise
            return self._last_word(http, self._stopped or ChaperoneError("The request was stopped."))
        except ChaperoneError as error:
            return self._last_word(http, error)
        except Exception as error:  # a defect ends this request alone; its text might quote what was sent
            if not self._is_lost:
                logger.error("a request failed: %s", type(error).__name__)
            return self._last_word(http, ChaperoneError(f"The gateway failed ({type(error).__name__})."))
        finally:
            self._work = self._stopped = self.running = None
            if self._is_lost:
                self._end()

    async def _answer(self, http: web.BaseRequest) -> web.StreamResponse:
        await self._begin(http)
        try:
            request.check_headers(http.raw_headers)
            asked = request.read(http.method, http.raw_path)
            raw = await self._body(http)
            upgrade = upgraded_to(http, asked)
        except ProtocolError as error:
            self._close_after(http)
            await self._refuse_unread(http, error)
            raise
        named = http.headers.get("Content-Type", "")
        try:
            form, raw = negotiation.content(named, asked, raw)
            accept = negotiation.accepted(", ".join(http.headers.getall("Accept", ())), asked)
        except negotiation.NotTaken as error:
            command = self._shown(classify.unread(asked, named[:MAX_SHOWN_CHARACTERS], raw, str(error)))
            await self._refuse(command, str(error), answers.status(error.status, str(error), asked), error.status)
        command = self._shown(classify.classify(asked, form, raw))
        await self._refuse_not_covered(asked, raw, command)
        self.running = intent = await self._run(command, asked)
        headers = {"Accept": accept}
        if raw:
            headers["Content-Type"] = form
        agent = http.headers.get("User-Agent", "")
        if agent.isascii() and agent.isprintable():
            headers["User-Agent"] = agent
        self._conduct.log.bytes_in += len(raw)
        if upgrade:
            return await self._run_upgraded(http, asked, intent, upgrade, headers)
        relay = Relay(http, asked, self._conduct, intent, self._masker)
        return await relay.run(self._upstream, headers, raw, self._stop)

    async def _run_upgraded(
        self, http: web.BaseRequest, asked: Request, intent: Intent, protocol: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        more = (self._conduct, intent, self._upstream, self._stop, self._upgraded)
        if classify.is_forwarding(asked):
            return await PortForward(http, asked, self._services, *more).run(protocol)
        return await Execution(http, asked, *more).run(protocol, headers)

    async def _run(self, command: Command, asked: Request) -> Intent:
        try:
            text = command.text if command.shown_text is None else command.shown_text
            return await self._conduct.run(command, text.decode("utf-8", "replace"))
        except CommandRefused as error:
            decision = error.decision
            if command.facts.why_unknown and decision.rule == UNCOVERED:
                decision = msgspec.structs.replace(decision, message=command.facts.why_unknown)
            raise _Refused(answers.refusal(decision, asked), decision) from error

    async def _begin(self, http: web.BaseRequest) -> None:
        """Everything before the first request; for later ones, that nothing has changed."""
        if self._refusal is not None:
            self._close_after(http)
            raise self._refusal
        conduct = self._conduct
        if conduct.asks_user:
            token = bearer(http)
            if self._token is None:
                await conduct.identify(token, self.cut)
                self._token = token
            elif token != self._token:
                self._close_after(http)
                raise UserRefused("The connection belongs to another person; open one for each.")
        if conduct.is_open:
            return
        try:
            if not self._is_entered:
                conduct.enter()
            self._is_entered = True
        except LimitReached as error:
            self._refusal = error
            self._close_after(http)
            raise
        where = self.target.upstream
        application = http.headers.get("User-Agent", "")[:MAX_SHOWN_CHARACTERS]
        conduct.open(
            client=self._peer,
            upstream=f"{where.host}:{where.port}",
            application=self._text(application.encode()).decode(),
        )
        self._watch()

    async def _body(self, http: web.BaseRequest) -> bytes:
        if not http.can_read_body:
            return b""
        raw = await bounded(http.content, MAX_BODY_BYTES)
        if raw is None:
            raise ProtocolError(f"The body has more than {MAX_BODY_BYTES >> 20} MiB.")
        return raw if http.method not in ("GET", "HEAD") else b""

    async def _refuse_unread(self, http: web.BaseRequest, error: ProtocolError) -> None:
        line = f"{http.method} {http.raw_path}".encode("utf-8", "surrogateescape")[:MAX_LINE_BYTES]
        found = self._malformed(line, error)
        if not isinstance(found, Intent):
            await found

    def _malformed(self, line: bytes, error: ProtocolError) -> Intent | Coroutine[Any, Any, Intent]:
        """Record what is no request of the Kubernetes API."""
        command = self._shown(Command(MALFORMED, line, unknown(str(error))))
        return self._conduct.intend(Intend(command, Decision(Action.DENY, "", MALFORMED, str(error), "")))

    def _unreadable(self, status: int) -> web.StreamResponse:
        """What is no HTTP."""
        error: ChaperoneError = ProtocolError("This is no HTTP/1.1 as RFC 9112 has it; the connection ends.")
        if self._conduct.is_open:
            try:
                found = self._malformed(b"", ProtocolError(str(error)))
            except SpoolFull as full:
                error = full
            else:
                if not isinstance(found, Intent):
                    self._telling.add(task := asyncio.ensure_future(found))
                    task.add_done_callback(self._telling.discard)
        answer = _status(status if 400 <= status < 500 else 400, str(error))
        answer.force_close()
        return answer

    def _upgraded(self) -> None:
        """Nothing more can be said in HTTP on this connection."""
        self._is_upgraded = True

    def _close_after(self, http: web.BaseRequest) -> None:
        """The answer to this request is the last one of the connection."""
        http.protocol.close()
        self._is_closing = True

    async def _refuse_not_covered(self, asked: Request, raw: bytes, command: Command) -> None:
        why = not_covered(asked, raw)
        if asked.subresource in classify.EXECUTING and self._masker is not None and not self._may_show_unmasked():
            why = (
                "what a program prints cannot be masked, and policy masks this target; set unmaskable to Allow for it."
            )
        if why:
            decision = Decision(Action.DENY, "", OUTSIDE, why, "")
            await self._refuse(command, why, answers.refusal(decision, asked))

    async def _refuse(self, command: Command, why: str, answer: bytes, status: int = 403) -> NoReturn:
        """Refuse what no policy can let pass; recorded."""
        rule = MALFORMED if status == web.HTTPBadRequest.status_code else OUTSIDE
        decision = Decision(Action.DENY, "", rule, why, "")
        await self._conduct.recorded(command, decision)
        raise _Refused(answer, decision, status)

    def _may_show_unmasked(self) -> bool:
        return self.target.masks.unmaskable == "Allow"

    def _shown(self, command: Command) -> Command:
        text = command.text if command.shown_text is None else command.shown_text
        masked = self._text(text)
        return command if masked is text else msgspec.structs.replace(command, shown_text=masked)

    def _text(self, text: bytes) -> bytes:
        return text if self._masker is None else self._masker.mask_text(text)

    # --- stopping and the end -----------------------------------------------------------------------------------------

    def _stop(self, why: Exception | Reached) -> None:
        """Stop the request at work."""
        if self._work is not None and self._stopped is None:
            self._stopped = why if isinstance(why, ChaperoneError | Reached) else ChaperoneError(str(why))
            self._work.cancel()

    def _last_word(self, http: web.BaseRequest, error: ChaperoneError | Reached) -> web.StreamResponse:
        """What the client hears; where it has heard something already the connection is broken off."""
        if isinstance(error, LimitReached):
            error = error.reached
        owed, is_gone = self.running, http.transport is None or http.transport.is_closing()
        if owed is not None and self._conduct.owes(owed):
            try:
                self._conduct.conclude(
                    Conclude(owed, "aborted" if is_gone else "error", "" if is_gone else _named(error))
                )
            except SpoolFull:
                self._close_after(http)
        if is_gone or self._is_upgraded or http.writer.output_size:
            self._break_off()
            return web.Response()
        if self._refusal is not None or isinstance(error, SpoolFull):
            self._close_after(http)
        if isinstance(error, _Refused):
            answer = web.Response(status=error.status, body=error.body, content_type=classify.JSON, headers=SERVER)
        elif isinstance(error, Reached):
            answer = _status(403, answers.refused(error.decision("")))
        else:
            answer = _status(answers.code(error), str(error))
        if self._is_closing:
            answer.force_close()
        return answer

    def _break_off(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _watch(self) -> None:
        self._is_watching = not self._is_over and self._conduct.meter.is_timed
        if not self._is_watching:
            return
        asyncio.get_running_loop().call_later(WATCH_S, self._watch)
        reached = self._conduct.meter.watch(self.running)
        if reached is not None:
            self._stop(reached)

    def _lost(self) -> None:
        self._is_lost = True
        if self._work is None:
            self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._conduct.end(self._reason)
        self._services.over(self)


class _Refused(ChaperoneError):
    """Policy does not let a request pass; recorded."""

    def __init__(self, body: bytes, decision: Decision, status: int = 403) -> None:
        super().__init__(decision.message)
        self.body = body
        self.status = status


def _named(error: ChaperoneError | Reached) -> str:
    """The code of an outcome."""
    if isinstance(error, Reached):
        return error.rule
    if isinstance(error, Unmaskable):
        return error.rule
    return getattr(error, "code", "") or type(error).__name__


def _status(code: int, message: str) -> web.Response:
    body = answers.status(code, message)
    return web.Response(status=code, body=body, content_type="application/json", headers=SERVER)
