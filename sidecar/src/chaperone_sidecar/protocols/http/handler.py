"""What is done for one request: facts, decision, the target's answer, on a connection of either HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from chaperone_sidecar.command import Command, unknown
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.config import Target
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import Ask, Intent
from chaperone_sidecar.errors import CommandRefused, LimitReached, ProtocolError, Unmaskable, UpstreamUnavailable
from chaperone_sidecar.protocols.http import answers, classify, codec, coding, grpc, handshake, websocket
from chaperone_sidecar.protocols.http.classify import Asked
from chaperone_sidecar.protocols.http.dialect import Dialect
from chaperone_sidecar.protocols.http.exchange import Exchange, Http1Exchange
from chaperone_sidecar.protocols.http.handshake import Handshake
from chaperone_sidecar.protocols.http.mask import Redactor
from chaperone_sidecar.protocols.http.messages import AnswerHead, Fields, RequestHead
from chaperone_sidecar.protocols.http.relay import Relay
from chaperone_sidecar.protocols.http.tunnel import Tunnel
from chaperone_sidecar.protocols.http.upstream import Connection, Http1Connection, Login
from chaperone_sidecar.protocols.http.work import Work, is_call, read

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

SETTLE_S: Final = 0.2  # for a call of gRPC to be whole; one that is not is a stream of messages
MALFORMED: Final = "malformed"
NOT_COVERED: Final = "not-covered"
UNAUTHORIZED: Final = 401
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_RANGES: Final = frozenset({"range", "if-range"})


class Handler:
    """Answers the requests of one connection.

    Args:
        target: where they go.
        conduct: of the session.
        login: the credential, and connections to the target.
        masker: of the target; None where nothing is masked.
        dialect: what travels in HTTP here.
        check_place: raises ProtocolError for a request that is not for the connection's host.
    """

    def __init__(
        self, target: Target, conduct: Conduct, login: Login, masker: Masker | None, dialect: Dialect,
        check_place: Callable[[RequestHead], None],
    ) -> None:  # fmt: skip
        self._target = target
        self._conduct = conduct
        self._login = login
        self._masker = masker
        self._dialect = dialect
        self._check_place = check_place

    async def answer(self, work: Work) -> None:
        """Decide, hold, ask the target and relay what it says.

        Raises:
            ChaperoneError: what the client is to hear instead. Gone: the client is not there.
        """
        exchange = work.exchange
        head = exchange.head
        try:
            self._check_place(head)
            asked = classify.read(head)
            opening = handshake.read(head)
            if opening is not None:
                self._check_opening(exchange)
            body, rest = await read(exchange, SETTLE_S if is_call(exchange) else None)
            body = coding.plain(head, body)
            asked = classify.settled(asked, body)
        except ProtocolError as error:
            exchange.last()
            line = f"{head.method} {head.target}".encode("latin-1", "replace")
            await self.record_malformed(line, error)
            raise
        secret = self._login.secret
        named = secret.name if secret is not None else ""
        found = self._dialect.classify(asked, body, named) if opening is None else handshake.command(asked, named)
        command = self._shown(found)
        work.asked, work.body = asked, body
        if asked.is_grpc and self._masker is not None and self._target.masks.unmaskable != "Allow":
            await self._conduct.refuse(command, Decision(Action.DENY, "", Unmaskable.rule, grpc.UNMASKABLE, ""))
        work.intent = await self._decide(command, body)
        work.on_intent()
        await self._login.begin()
        fields, redactor = self._fields(asked)
        if opening is not None:
            await self._tunnel(work, asked, opening, fields, redactor)
            return
        content = body if body is not None else self._counted(rest, exchange)
        size = len(body) if body is not None else exchange.size_bytes
        connection, answer = await self._ask(asked, fields, content, size)
        try:
            await self._relay(work, asked, answer, connection, redactor)
        except BaseException:
            connection.close()
            raise
        self._login.give_back(connection)

    async def _relay(
        self, work: Work, asked: Asked, answer: AnswerHead, connection: Connection, redactor: Redactor
    ) -> None:
        if answer.status == UNAUTHORIZED:
            self._login.refused()
        assert work.intent is not None  # noqa: S101 - nothing is asked without one
        relay = Relay(work.exchange, asked, self._conduct, work.intent, self._masker, redactor, self._dialect)
        await relay.run(answer, connection)

    def _check_opening(self, exchange: Exchange) -> None:
        if self._dialect.reads_answers or not isinstance(exchange, Http1Exchange):
            raise ProtocolError("WebSocket is not spoken here.")

    async def _tunnel(self, work: Work, asked: Asked, opening: Handshake, fields: Fields, redactor: Redactor) -> None:
        """Open a WebSocket and let it run; a target that does not want it answers as to any request."""
        intent, exchange, key = work.intent, work.exchange, websocket.new_key()
        assert intent is not None and isinstance(exchange, Http1Exchange)  # noqa: S101 - as `_answer` has it
        connection = await self._login.connection(is_fresh=True)
        assert isinstance(connection, Http1Connection)  # noqa: S101 - the target is asked in the client's form of HTTP
        try:
            answer = await connection.offer("GET", asked.target.raw, handshake.fields(opening, fields, key), b"", 0)
            if answer.status != codec.SWITCHING:
                await self._relay(work, asked, answer, connection, redactor)
                return
            told = handshake.agreed(opening, answer, key)
            upstream, from_upstream = connection.switched()
            client, from_client = await exchange.switch(told)
            credential = self._login.credential(asked.target.path)
            work.tunnel = Tunnel(
                asked, self._conduct, intent, self._masker, credential.value if credential is not None else "",
                lambda command, body: self._decide(self._shown(command), body), client, upstream,
            )  # fmt: skip
            await work.tunnel.run(from_client, from_upstream)
        finally:
            if work.tunnel is None:
                connection.close()

    async def _ask(
        self, asked: Asked, fields: Fields, content: bytes | AsyncIterator[bytes], size_bytes: int | None
    ) -> tuple[Connection, AnswerHead]:
        connection = await self._connection(asked)
        try:
            return connection, await _asked(connection, asked, fields, content, size_bytes)
        except UpstreamUnavailable:
            # What cannot have had an effect is asked once more: a free connection may have been closed by the target at
            # this very moment.
            is_unheard = connection.is_reused and not connection.has_answered and asked.method in _SAFE and not content
            if not is_unheard and not (connection.is_refused and isinstance(content, bytes)):
                raise
        connection = await self._connection(asked, is_fresh=True)
        return connection, await _asked(connection, asked, fields, content, size_bytes)

    async def _connection(self, asked: Asked, *, is_fresh: bool = False) -> Connection:
        connection = await self._login.connection(is_fresh=is_fresh)
        if asked.is_grpc and self._login.is_http2 and connection.version == "HTTP/1.1":
            connection.close()
            raise UpstreamUnavailable(f'Target "{self._target.name}" does not speak HTTP/2, which gRPC needs.')
        return connection

    async def _decide(self, command: Command, body: bytes | None) -> Intent:
        if why := self._dialect.forbidden(command):
            await self._conduct.refuse(command, Decision(Action.DENY, "", NOT_COVERED, why, ""))
        if body is None:
            found = self._conduct.ask(Ask(command))
            decision = found if isinstance(found, Decision) else await found
            if decision.action is Action.REQUIRE_APPROVAL:
                why = "it needs an approval, and is a stream of messages or longer than the bytes that can be bound."
                await self._conduct.refuse(
                    command, msgspec.structs.replace(decision, action=Action.DENY, message=why, would=None)
                )
        text = command.text if command.shown_text is None else command.shown_text
        params = command.params if command.shown_params is None else command.shown_params
        shown = text.decode("utf-8", "replace") + ("\n\n" + params.decode("utf-8", "replace") if params else "")
        try:
            return await self._conduct.run(command, shown)
        except CommandRefused as error:
            decision = error.decision
            if command.facts.why_unknown and decision.rule == answers.UNCOVERED:
                raise CommandRefused(msgspec.structs.replace(decision, message=command.facts.why_unknown)) from error
            raise

    def _fields(self, asked: Asked) -> tuple[Fields, Redactor]:
        """What the target gets, and what takes the credential out of what it says."""
        credential = self._login.credential(asked.target.path)
        secret = self._login.secret
        hidden = set() if secret is None else {secret.name.lower()}
        if self._conduct.asks_user:
            hidden.add("authorization")  # the person's token is for the gateway alone
        redactor = Redactor(credential.value if credential is not None else "", keeps_length=asked.is_grpc)
        # A part of a value is no value, so neither masks nor the search for the credential would see it.
        if self._masker is not None or self._dialect.reads_answers or not redactor.is_idle:
            hidden |= _RANGES
        hidden.add(coding.FIELD)
        if asked.is_grpc:  # a message that is compressed could not be searched for the credential
            hidden.add("grpc-accept-encoding")
        kept = [(name, found) for name, found in asked.fields if classify.like(name) not in hidden]
        fields = [("Host", self._login.authority), *kept, ("Accept-Encoding", "identity")]
        if credential is not None:
            fields.append((credential.name, credential.value))
        return tuple(fields), redactor

    async def _counted(self, pieces: AsyncIterator[bytes], exchange: Exchange) -> AsyncIterator[bytes]:
        """A long body on its way up, counted against the limits."""
        async for data in pieces:
            reached = self._conduct.meter.take(0, len(data))
            if reached is not None:
                exchange.last()
                raise LimitReached(reached)
            yield data

    async def record_malformed(self, line: bytes, error: ProtocolError) -> None:
        """Record what is no request, as refused; raises as `Conduct.recorded`."""
        command = self._shown(Command(MALFORMED, line, unknown(str(error))))
        await self._conduct.recorded(command, Decision(Action.DENY, "", MALFORMED, str(error), ""))

    def _shown(self, command: Command) -> Command:
        text, params = self.masked(command.text), self.masked(command.params)
        if text is command.text and params is command.params:
            return command
        return msgspec.structs.replace(command, shown_text=text, shown_params=params)

    def masked(self, text: bytes) -> bytes:
        """A text as people and records may have it; itself where nothing in it is masked."""
        if self._masker is None or not text:
            return text
        found = self._masker.mask_text(text)
        return text if found == text else found


async def _asked(
    connection: Connection, asked: Asked, fields: Fields, content: bytes | AsyncIterator[bytes], size_bytes: int | None
) -> AnswerHead:
    try:
        return await connection.ask(asked.method, asked.target.raw, fields, content, size_bytes)
    except BaseException:
        connection.close()
        raise
