"""One PostgreSQL session between an agent and a backend: which message needs what, in which order.

Theory of operation. `from_client` and `from_upstream` are generators; each takes the plain bytes of its side and yields
what is to be done. The client's side (here) runs start-up, then decides on every statement before anything of it goes
upstream:

* a simple query is classified and decided as a whole, then its intent is recorded, then it is forwarded;
* Parse is decided when it comes; its bytes wait until a record covers them: the intent of its Execute, or, when the
  client wants an answer first (Flush, Sync), an intent of its own. Execute is decided again, since the policy may have
  changed since Parse. Its bytes wait for those that came together with it, not for Sync;
* a refused command is replaced by poison (flight.py), and what follows it is swallowed until Sync, as a server would
  do; so is what follows an error of the server's own;
* what follows a COPY FROM STDIN waits until the backend asks for data or is done, since that decides what it means.

The upstream's side (upstream_side.py) matches each answer to its step and records the outcome before the frame that
ends the command is given to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution, unknown
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import (
    Admit,
    Ask,
    Close,
    Conclude,
    Effects,
    Hold,
    Intend,
    Intent,
    Opened,
    Receipt,
    ToClient,
    ToUpstream,
    Wait,
)
from chaperone_sidecar.errors import ProtocolError, SpoolFull, Unwitnessed
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.postgresql import answers, messages
from chaperone_sidecar.protocols.postgresql.classify import Classified
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, Frame, FrontendCodec
from chaperone_sidecar.protocols.postgresql.flight import POISON_NAME, POISON_STATEMENT, Flight, Step
from chaperone_sidecar.protocols.postgresql.namespace import Namespace, fetched
from chaperone_sidecar.protocols.postgresql.opening import Opening
from chaperone_sidecar.protocols.postgresql.plan import UNPLANNED
from chaperone_sidecar.protocols.postgresql.prepared import Answer, Names, Portal, Statement
from chaperone_sidecar.protocols.postgresql.preview import preview
from chaperone_sidecar.protocols.postgresql.reading import Reader, changes_schema, runs_code
from chaperone_sidecar.protocols.postgresql.upstream_side import UpstreamSide

if TYPE_CHECKING:  # it loads a compressor, which a gateway that records no results does not carry
    from chaperone_sidecar.recording.results import ResultLog

MAX_UNCOVERED_BYTES: Final = 1 << 20  # Parse and Bind waiting for their cover; past this they get a record of their own

_CHANGED_READING: Final = (
    "This session changed how names or strings are read, so what the statement means is not known; open a new session."
)
_COPY: Final = frozenset({messages.COPY_DATA, messages.COPY_DONE, messages.COPY_FAIL})
_NO_FUNCTION_CALL: Final = Decision(
    Action.DENY, "", "not-covered", "The fast-path function call is not covered; call the function with SELECT.", ""
)


class Session:
    """One session; see the module's docstring.

    Args:
        reader_of: gives the reader of texts for a database, which sessions share; it knows the masks, too.
        meter: counts what the session moves, and says when that is enough.
        asks_user: whether the client is asked for the token of the person on whose behalf it acts.
    """

    def __init__(self, reader_of: Callable[[str], Reader], meter: Meter, *, asks_user: bool = False) -> None:
        self._reader_of = reader_of
        self._reader: Reader | None = None
        self._client = FrontendCodec()
        self._flight = Flight()
        self._names = Namespace()
        self._meter = meter
        self._upstream = UpstreamSide(BackendCodec(), self._flight, self._names, meter)
        self._receipt: Receipt | None = None
        self._opening = Opening(self._client, asks_user=asks_user)
        self._is_first = True
        self._uncovered = bytearray()
        self._uncovered_parses: list[tuple[Step, Command, Decision]] = []
        self._has_waiting_execute = False  # among the bytes that wait
        self._has_open_segment = False  # extended messages came and no Sync yet
        self._executed_segment = -1  # the last in which something was executed
        self._copying: Step | None = None  # sent and perhaps COPY FROM STDIN; what follows waits for its answer
        self._first_uncovered: Step | None = None  # the first of what waits to be sent
        self._held_syncs = 0  # came inside a COPY, where the server ignores them
        self._reading_changed = False

    # --- the client's side ------------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the client.

        Raises:
            ProtocolError: side=client; the driver answers with `fatal` and closes.
        """
        self._client.feed(data)
        if self._is_first:
            self._is_first = False
            if data[0] == messages.TLS_HANDSHAKE:
                yield from self._opening.start_tls(messages.ALPN)
                return
        while (frame := self._client.next()) is not None:
            if self._receipt is None:
                opened: Opened | None = yield from self._opening.message(frame)
                if opened is not None:
                    yield from self._begin(opened)
                elif self._opening.is_over:
                    return
            else:
                yield from self._message(frame)
        if self._has_waiting_execute:  # the server would begin, and tell of an error, before any Sync comes
            yield from self._cover()

    def from_upstream(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the backend.

        Raises:
            ProtocolError: side=upstream.
        """
        yield from self._upstream.receive(data)
        while self._held_syncs and (self._copying is None or self._copying.is_over):
            self._held_syncs -= 1  # the COPY failed before it read on, so these are not inside it
            yield from self._sync(messages.SYNC_FRAME)

    def cut(self, reached: Reached) -> Effects[None]:
        """The running command has passed a limit: end it with an error."""
        if self._upstream.copy_receipt is not None:
            self._held_syncs = 0  # the COPY waits for data, so the server would have read and ignored them
        yield from self._upstream.cut(reached)

    def running(self) -> object | None:
        """The command that the backend works on now, if any."""
        return self._upstream.running()

    def abandoned(self) -> list[Intent]:
        """The connection is gone: intents that still owe an outcome ("aborted")."""
        if self._reader is not None:
            self._reader.catalog.leave()
        return [step.intent for step in self._flight.abandon() if step.intent is not None]

    def fatal(self, error: Exception) -> bytes:
        """The native last word to the client before the connection is closed."""
        # Inside a row there is no place for words: the client would read them as a value.
        return b"" if self._upstream.is_inside_row else answers.fatal(error)

    def record(self, log: ResultLog) -> None:
        """Record what the client is shown from when the session is open on."""
        from chaperone_sidecar.protocols.postgresql.tape import Tape  # noqa: PLC0415 - it loads a compressor

        self._upstream.tape = Tape(log)

    def show(self, data: bytes | bytearray | memoryview) -> None:
        """The client is about to get this.

        Raises:
            SpoolFull: no room.
        """
        if self._upstream.tape is not None:
            self._upstream.tape.show(data)

    def _begin(self, opened: Opened) -> Effects[None]:
        """The backend is there: tell the client, and from now on decide on what it sends."""
        self._receipt = opened.receipt
        self._reader = self._reader_of(self._opening.database)
        self._reader.catalog.join()
        self._upstream.on_changed = self._reader.catalog.invalidate
        if self._reader.results is not None:
            self._upstream.mask(self._reader.results)
            self._names.is_masked = True
        self._upstream.key = (opened.process_id, opened.secret)
        self._client.started()
        yield ToClient(answers.welcome(opened.parameters, opened.process_id, opened.secret))

    def _message(self, frame: Frame) -> Effects[None]:
        kind = frame.type
        if self._flight.is_full:
            yield from self._drain()
        if self._has_failed():
            self._flight.is_skipping = True
        if self._copying is not None and (yield from self._is_of_copy(frame)):
            return
        if kind == messages.TERMINATE:
            yield from self._terminate(frame)
        elif kind == messages.SYNC:
            yield from self._sync(frame.raw)
        elif kind == messages.QUERY:
            yield from self._settle_segment()
            # A server that waits for Sync skips simple queries too.
            if not self._flight.is_skipping:
                yield from self._query(messages.decode_query(frame.body))
                self._has_open_segment = False
        elif kind in _COPY:
            pass  # without a COPY under way the server ignores these too: they are late after its error
        elif kind == messages.FUNCTION_CALL:
            yield from self._settle_segment()
            if not self._flight.is_skipping:
                facts = Facts((Access(Effect.EXECUTE_CODE, "protocol:function_call"),), Resolution.NONE)
                results, body = self._upstream.results, bytes(frame.body)
                shown = results.shown.arguments(body) if results is not None else None
                command = Command("function_call", body, facts, shown_text=shown)
                yield from self._query_refused(command, _NO_FUNCTION_CALL)
                self._has_open_segment = False
        elif not self._flight.is_skipping:
            yield from self._extended(frame)

    def _is_of_copy(self, frame: Frame) -> Effects[bool]:
        """Treat a message as part of a COPY FROM STDIN, if there is one: what it means depends on the backend's answer.

        A client may send the data, and even Sync, before it knows whether the COPY began (libpq sends Execute and Sync
        at once). Inside a COPY the server ignores Sync and Flush, so neither is sent there.

        Spec: 54.2.6 "COPY Operations".
        """
        step, upstream = self._copying, self._upstream
        if step is None:
            return False
        if step.cut is not None and frame.type in _COPY:
            return True  # late: its COPY was ended here, or will be as soon as it begins
        while not step.is_over and upstream.copy_receipt is None:  # a cut that comes first ends the COPY again
            yield Wait(lambda: step.is_over or upstream.copy_receipt is not None)
        receipt = upstream.copy_receipt
        if step.is_over or receipt is None:
            self._copying = None
            if step.is_unread and step.endings:
                self._names.clear()
            return False
        if frame.type in _COPY:
            self._held_syncs = 0  # the server would have read them before this
        if frame.type == messages.COPY_DATA:
            reached = self._meter.take(0, len(frame.raw))
            if reached is not None:
                yield from upstream.cut(reached)
            else:
                yield ToUpstream(frame.raw, receipt)
        elif frame.type in _COPY:
            upstream.copy_receipt = None
            # The answer to an Execute is held back until Flush or Sync, and the next message waits for it.
            yield ToUpstream(frame.raw + messages.FLUSH_FRAME, receipt)
        elif frame.type == messages.SYNC:
            self._held_syncs += 1
        elif frame.type == messages.TERMINATE:
            return False
        elif frame.type != messages.FLUSH:
            raise ProtocolError(f"A message of type {chr(frame.type)!r} came inside COPY FROM STDIN; end it first.")
        return True

    def _terminate(self, frame: Frame) -> Effects[None]:
        """End the session; what was asked before is answered first, as the server does it."""
        if self._flight and not self._has_open_segment and self._upstream.copy_receipt is None:
            yield Wait(lambda: not self._flight)
        yield ToUpstream(frame.raw, self._opened())
        yield Close("client ended the session")

    def _drain(self) -> Effects[None]:
        """Let the client send more only when answers have come; Flush makes the backend give those it holds back."""
        yield from self._cover()
        yield ToUpstream(messages.FLUSH_FRAME, self._opened())
        yield Wait(lambda: not self._flight.is_full)

    def _settle_segment(self) -> Effects[None]:
        """Have all extended messages answered that a simple query follows without Sync, as asyncpg's do.

        The server takes the query for the end of what they began, unless one of them failed: then it skips the query.
        """
        if not self._has_open_segment:
            return
        yield from self._cover()
        if self._flight:
            yield ToUpstream(messages.FLUSH_FRAME, self._opened())
            yield Wait(lambda: not self._flight)
        if self._has_failed():
            self._flight.is_skipping = True

    # --- simple query -----------------------------------------------------------------------------------------------

    def _query(self, text: bytes) -> Effects[None]:
        yield from self._cover()
        classified = yield from self._classify(text)
        command = self._command("query", text, classified)
        decision = yield from self._decide(command, classified)
        if decision.action is not Action.ALLOW:
            yield from self._query_refused(command, decision)
            return
        if decision.approval:
            classified = yield from self._classify(text)
        intent = yield from self._intend(command, decision)
        if isinstance(intent, bytes):
            yield from self._query_poisoned(intent)
            return
        step = Step("query", self._flight.segment, intent=intent, is_unread=classified.is_unread)
        if self._names.is_masked:
            yield from self._settle_fetched(classified)
        self._follow(step, classified)
        self._flight.add(step)
        if classified.may_copy_in:
            self._copying = step
        yield ToUpstream(messages.encode_query(text), intent.receipt)

    def _query_refused(self, command: Command, decision: Decision) -> Effects[None]:
        yield from self._cover()
        intent = yield from self._intend(command, decision)
        refusal = intent if isinstance(intent, bytes) else answers.refusal(decision, command)
        yield from self._query_poisoned(refusal)

    def _query_poisoned(self, refusal: bytes) -> Effects[None]:
        """Refuse at once where nothing is under way; otherwise in the backend's order, with its transaction aborted."""
        if not self._flight and not self._has_open_segment and self._upstream.status == messages.IDLE:
            yield ToClient(refusal + answers.ready_for_query(messages.IDLE))
            return
        self._flight.add(Step("query", self._flight.segment, refusal=refusal))
        yield ToUpstream(messages.encode_query(POISON_STATEMENT), self._opened())

    # --- extended query ---------------------------------------------------------------------------------------------

    def _extended(self, frame: Frame) -> Effects[None]:
        kind = frame.type
        if kind == messages.FLUSH:  # changes nothing at the backend, so it opens no segment either
            yield from self._cover()
            yield ToUpstream(frame.raw, self._opened())
            return
        self._has_open_segment = True
        if kind == messages.PARSE:
            yield from self._parse(messages.decode_parse(frame.body), frame.raw)
        elif kind == messages.BIND:
            yield from self._bind(messages.decode_bind(frame.body), frame.raw)
        elif kind == messages.EXECUTE:
            yield from self._execute(messages.decode_execute(frame.body), frame.raw)
        elif kind == messages.DESCRIBE:
            yield from self._describe(messages.decode_describe(frame.body), frame.raw)
        elif kind == messages.CLOSE:
            yield from self._close(messages.decode_close(frame.body), frame.raw)
        else:
            raise ProtocolError(f"A message of type {chr(kind)!r} is not allowed here.")

    def _parse(self, message: messages.Parse, raw: bytes) -> Effects[None]:
        if self._names.statements.is_full:
            yield from self._poison(answers.too_many_names("prepared statements"))
            return
        classified = yield from self._classify(message.query)
        command = self._command("parse", message.query, classified)
        decision = yield from self._decide(command, classified)
        if decision.action is not Action.ALLOW:
            intent = yield from self._intend(command, decision)
            yield from self._refuse(intent, answers.refusal(decision, command))
            return
        answer = self._answer(classified, message.types)
        statement = Statement(message.query, classified, self._generation(), answer, message.types)
        change = self._names.statements.send(message.statement, statement, self._flight.segment)
        step = Step("parse", self._flight.segment, statement=change)
        self._uncovered_parses.append((step, command, decision))
        yield from self._later(step, raw)

    def _bind(self, message: messages.Bind, raw: bytes) -> Effects[None]:
        yield from self._settle(self._names.statements, message.statement)
        statement = self._names.statements.find(message.statement)
        if statement is None:
            yield from self._poison(answers.unknown_statement(message.statement))
            return
        if self._names.portals.is_full:
            yield from self._poison(answers.too_many_names("portals"))
            return
        portal = Portal(statement, bytes(message.params))
        if runs_code(statement.classified.facts) and not (yield from self._may_plan(portal)):
            return
        change = self._names.portals.send(message.portal, portal, self._flight.segment)
        yield from self._later(Step("bind", self._flight.segment, portal=change), raw)

    def _may_plan(self, portal: Portal) -> Effects[bool]:
        """Decide on a Bind: the server plans the statement then, and runs functions to see what they give."""
        statement = portal.statement
        yield from self._renew(statement)
        command = self._command("bind", statement.text, statement.classified, portal.params, _types(statement))
        decision = yield from self._decide(command, statement.classified, portal)
        if decision.action is Action.ALLOW:
            return True
        intent = yield from self._intend(command, decision)
        yield from self._refuse(intent, answers.refusal(decision, command))
        return False

    def _execute(self, message: messages.Execute, raw: bytes) -> Effects[None]:
        yield from self._settle(self._names.portals, message.portal)
        portal = self._names.portals.find(message.portal)
        if portal is None:
            yield from self._poison(answers.unknown_portal(message.portal))
            return
        statement = portal.statement
        yield from self._renew(statement)
        command = self._command("execute", statement.text, statement.classified, portal.params, _types(statement))
        decision = yield from self._decide(command, statement.classified, portal)
        if decision.approval:
            yield from self._refresh(statement)
        intent = yield from self._intend(command, decision)
        if isinstance(intent, bytes) or decision.action is not Action.ALLOW:
            yield from self._refuse(intent, answers.refusal(decision, command))
            return
        step = Step("execute", self._flight.segment, intent=intent, is_unread=statement.classified.is_unread)
        if self._names.is_masked:
            yield from self._settle_fetched(statement.classified)
        self._follow(step, statement.classified, portal)
        if self._upstream.tape is not None:
            step.recorded, step.formats = statement, messages.result_formats(portal.params)
        if self._names.is_masked:
            yield from self._describe_result(step, message.portal, portal)
        self._uncovered_parses = [
            waiting for waiting in self._uncovered_parses if waiting[1].text != statement.text
        ]  # this intent records their text
        may_copy_in = statement.classified.may_copy_in
        if self._meter.is_timed or may_copy_in:
            # Else the backend would keep the end of a command to itself while it runs the next, and what it says to a
            # COPY while it waits for the data.
            raw += messages.FLUSH_FRAME
        yield from self._later(step, raw)
        self._executed_segment = self._flight.segment
        self._has_waiting_execute = True
        if may_copy_in:
            yield from self._cover()
            self._copying = step

    def _describe(self, message: messages.Describe, raw: bytes) -> Effects[None]:
        names: Names[Any] = self._names.statements if message.kind == messages.STATEMENT else self._names.portals
        yield from self._settle(names, message.name)
        # A name that only the backend knows is one that SQL made (DECLARE), and that was decided then.
        step = Step("describe", self._flight.segment)
        found = names.find(message.name)
        statement = found.statement if isinstance(found, Portal) else found
        if self._upstream.tape is not None:
            step.recorded = statement
        if statement is not None and statement.answer is not None:
            step.answer = statement.answer
            statement.answer.asked_segment = self._flight.segment
        yield from self._later(step, raw)

    def _close(self, message: messages.Close, raw: bytes) -> Effects[None]:
        step = Step("close", self._flight.segment)
        if message.kind == messages.STATEMENT:
            step.statement = self._names.statements.send(message.name, None, self._flight.segment)
        else:
            step.portal = self._names.portals.send(message.name, None, self._flight.segment)
        yield from self._later(step, raw)

    def _sync(self, raw: bytes) -> Effects[None]:
        yield from self._cover()
        self._flight.is_skipping = False
        self._flight.add(Step("sync", self._flight.segment))
        self._has_open_segment = False
        yield ToUpstream(raw, self._opened())

    def _refuse(self, intent: Intent | bytes, refusal: bytes) -> Effects[None]:
        """Refuse a message: with the refusal that was recorded, or because it could not be, and then what waits too."""
        if isinstance(intent, Intent):
            yield from self._poison(refusal)
        elif self._uncovered:
            self._uncovered_parses.clear()  # they are not sent, so they need no record
            yield from self._refuse_waiting(intent)
        else:
            yield from self._poison(intent)

    def _refuse_waiting(self, refusal: bytes) -> Effects[None]:
        """Poison goes upstream in place of all that waits; what that was is skipped like what comes after an error."""
        first = self._first_uncovered
        self._uncovered.clear()
        self._has_waiting_execute = False
        self._flight.is_skipping = True
        if first is None or self._has_failed():
            return
        first.refusal = refusal
        yield ToUpstream(messages.encode_parse(POISON_NAME, POISON_STATEMENT) + messages.FLUSH_FRAME, self._opened())

    def _poison(self, refusal: bytes) -> Effects[None]:
        """Put a failing Parse in the place of a refused message, and swallow what follows until Sync."""
        yield from self._cover()
        self._flight.is_skipping = True
        if self._has_failed():
            return
        self._flight.add(Step("poison", self._flight.segment, refusal=refusal))
        yield ToUpstream(messages.encode_parse(POISON_NAME, POISON_STATEMENT) + messages.FLUSH_FRAME, self._opened())

    def _has_failed(self) -> bool:
        """Whether the backend has told of an error in this segment: it skips what it is sent before the next Sync.

        So nothing more is sent, and nothing waits for an answer that cannot come. A message that was being decided
        when the error came is caught as late as where it would be sent.
        """
        return self._upstream.failed_segment == self._flight.segment

    def _later(self, step: Step, raw: bytes) -> Effects[None]:
        if self._has_failed():
            step.is_over = True
            self._upstream.take_back(step)
            if step.intent is not None:
                yield Conclude(step.intent, "aborted")
            return
        self._flight.add(step)
        if not self._uncovered:
            self._first_uncovered = step
        self._uncovered += raw
        if len(self._uncovered) > MAX_UNCOVERED_BYTES:
            yield from self._cover()

    def _cover(self) -> Effects[None]:
        """Record an intent for each Parse that no Execute has covered, then let the waiting bytes go upstream."""
        if self._has_failed():
            self._uncovered_parses.clear()
            self._uncovered.clear()
        uncovered, self._uncovered_parses = self._uncovered_parses, []
        for step, command, decision in uncovered:
            intent = yield from self._intend(command, decision)
            if isinstance(intent, bytes):
                yield from self._refuse_waiting(intent)
                return
            if step.is_over:  # the backend failed while the intent was made sure
                yield Conclude(intent, "aborted")
            else:
                step.intent = intent
        if self._has_failed():
            self._uncovered.clear()
        self._has_waiting_execute = False
        if self._uncovered:
            waiting, self._uncovered = self._uncovered, bytearray()
            yield ToUpstream(waiting, self._opened())

    def _settle(self, names: Names[Any], name: bytes) -> Effects[None]:
        segment = self._flight.segment
        if names.is_settled(name, segment):
            return
        yield from self._cover()
        yield Wait(lambda: names.is_settled(name, segment))

    # --- the stages before upstream ---------------------------------------------------------------------------------

    def _classify(self, text: bytes) -> Effects[Classified]:
        reader = self._opened_reader()
        if self._upstream.changing_segment >= 0:
            return (yield from reader.read_unsettled(text))
        found = reader.find(text)
        return found if found is not None else (yield from reader.read(text))

    def _renew(self, statement: Statement) -> Effects[None]:
        """Read a prepared statement again if what it means may have changed."""
        if statement.generation != self._generation() or self._upstream.changing_segment >= 0:
            yield from self._refresh(statement)

    def _refresh(self, statement: Statement) -> Effects[None]:
        """Read a prepared statement again."""
        statement.classified = yield from self._classify(statement.text)
        statement.generation = self._generation()
        types = statement.answer.types if statement.answer is not None else ()
        statement.answer = self._answer(statement.classified, types)

    def _command(
        self, kind: str, text: bytes, classified: Classified, params: bytes = b"", types: tuple[int, ...] = ()
    ) -> Command:
        facts = unknown(_CHANGED_READING) if self._reading_changed else classified.facts
        in_transaction = self._is_in_transaction()
        results = self._upstream.results
        if results is None:
            return Command(kind, text, facts, params, in_transaction, param_types=types)
        shown, conceals = results.shown, classified.conceals or self._reading_changed
        return Command(
            kind, text, facts, params, in_transaction, shown.text(text, classified, conceals=conceals),
            shown.params(params, types, conceals=conceals), shown.facts(facts, conceals=conceals), types,
        )  # fmt: skip

    def _is_in_transaction(self) -> bool:
        """What was executed since the last Sync holds its locks in a transaction too, although nobody began it."""
        return self._upstream.status != messages.IDLE or self._executed_segment == self._flight.segment

    def _decide(self, command: Command, classified: Classified, portal: Portal | None = None) -> Effects[Decision]:
        decision: Decision = yield Ask(command)
        if classified.unmaskable and decision.action is not Action.DENY:
            decision = _unmaskable(classified, decision)
        elif decision.action is Action.REQUIRE_APPROVAL:
            return (yield from self._hold(command, decision, portal))
        if decision.action is Action.ALLOW and not command.is_preparing:  # what is prepared counts when it runs
            decision = yield Admit(command, decision)
        return decision

    def _hold(self, command: Command, decision: Decision, portal: Portal | None) -> Effects[Decision]:
        """Ask people, and then policy and the database's catalog again: both may have changed meanwhile.

        Limits are asked by `Hold`, before the approval is used up.
        """
        if command.kind == "parse":  # nothing runs yet, and its parameters are not known
            return msgspec.structs.replace(decision, action=Action.ALLOW, message="")
        approved = portal.approved if portal is not None else None
        if portal is not None and approved is not None and approved.revision == decision.revision:
            counted: Decision = yield Ask(command, is_approved=True)
            if counted != decision:
                return answers.changed_meanwhile(approved)
            is_admitted, portal.is_admitted = portal.is_admitted, False
            return approved if is_admitted else (yield Admit(command, approved))
        yield from self._cover()
        if self._has_open_segment:  # the client may want to know how what it sent before this went
            yield ToUpstream(messages.FLUSH_FRAME, self._opened())
        yield Wait(lambda: not self._flight)  # only then is it known whether a transaction is open
        if self._has_failed():
            return decision  # the server will skip it, so nobody need be asked
        asked = msgspec.structs.replace(command, in_transaction=self._is_in_transaction())
        held: Decision = yield Hold(asked, decision, preview(command))
        if held.action is not Action.ALLOW:
            return held
        self._opened_reader().catalog.invalidate()  # people take longer than what is known of it may be trusted
        classified = yield from self._classify(command.text)
        fresh: Decision = yield Ask(msgspec.structs.replace(command, facts=classified.facts), is_approved=True)
        if classified.unmaskable:
            return _unmaskable(classified, fresh)
        is_same = classified.facts.accesses == command.facts.accesses and not self._reading_changed
        if not is_same or fresh != decision:
            return answers.changed_meanwhile(held)
        if portal is not None:
            portal.approved, portal.is_admitted = held, command.is_preparing
        return held

    def _intend(self, command: Command, decision: Decision) -> Effects[Intent | bytes]:
        """Record what is about to happen; a refusal when it cannot be recorded, and then it must not happen."""
        try:
            intent: Intent = yield Intend(command, decision)
        except (SpoolFull, Unwitnessed) as error:
            return answers.unrecorded(error)
        return intent

    def _settle_fetched(self, classified: Classified) -> Effects[None]:
        """The names of cursors that a text reads have to be known before it is sent."""
        for name in fetched(classified):
            yield from self._settle(self._names.portals, name)
            yield from self._settle(self._names.cursors, name)

    def _follow(self, step: Step, classified: Classified, active: Portal | None = None) -> None:
        """A statement goes upstream: follow what it does to names, and say how its results are masked."""
        step.plans, step.cursors = self._names.follow(classified, self._flight.segment, active)
        if changes_schema(classified.facts):
            self._upstream.changing_segment = self._flight.segment
        self._reading_changed |= classified.changes_reading

    def _describe_result(self, step: Step, name: bytes, portal: Portal) -> Effects[None]:
        """Say how the result of an Execute is masked; ask the backend for its shape where nobody has."""
        answer = portal.statement.answer
        if answer is None:
            return
        if fetched(portal.statement.classified):  # its rows have another shape with each cursor of the name
            answer = portal.fetched = portal.fetched or Answer(step.plans[0])
        step.answer = answer
        step.formats = messages.result_formats(portal.params)
        if answer.shape is None and answer.asked_segment != self._flight.segment:
            answer.asked_segment = self._flight.segment
            asked = Step("describe", self._flight.segment, answer=answer, is_hidden=True, recorded=step.recorded)
            yield from self._later(asked, messages.encode_describe_portal(name))

    def _answer(self, classified: Classified, types: tuple[int, ...]) -> Answer | None:
        if self._upstream.results is None:
            return None
        return Answer(classified.plans[0] if len(classified.plans) == 1 else UNPLANNED, types=types)

    def _generation(self) -> int:
        return self._opened_reader().generation

    def _opened_reader(self) -> Reader:
        if self._reader is None:
            raise ProtocolError("The session has not started.")
        return self._reader

    def _opened(self) -> Receipt:
        if self._receipt is None:
            raise ProtocolError("The session has not started.")
        return self._receipt


def _types(statement: Statement) -> tuple[int, ...]:
    return statement.answer.types if statement.answer is not None else statement.types


def _unmaskable(classified: Classified, decision: Decision) -> Decision:
    return Decision(Action.DENY, "", "unmaskable", classified.unmaskable, decision.revision, answers.UNMASKABLE_HINT)
