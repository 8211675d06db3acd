"""The extended query: what is prepared, bound to parameters, described and executed.

Parse is decided when it comes; Bind too, where the statement runs code, since the server plans it then. Execute is
decided again, since the policy may have changed since. Its bytes wait for those that came together with it, not for
Sync.

Spec: PostgreSQL 18, 54.2.3 "Extended Query".
"""

from __future__ import annotations

from typing import Any

from chaperone_sidecar.decision import Action
from chaperone_sidecar.effects import Effects, ToUpstream
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.protocols.postgresql import answers, messages
from chaperone_sidecar.protocols.postgresql.codec import Frame
from chaperone_sidecar.protocols.postgresql.copyin import CopyIn
from chaperone_sidecar.protocols.postgresql.flight import Flight, Step
from chaperone_sidecar.protocols.postgresql.gate import Gate
from chaperone_sidecar.protocols.postgresql.namespace import Namespace, fetched
from chaperone_sidecar.protocols.postgresql.outgoing import Outgoing
from chaperone_sidecar.protocols.postgresql.prepared import Answer, Names, Portal, Statement
from chaperone_sidecar.protocols.postgresql.reading import runs_code
from chaperone_sidecar.protocols.postgresql.upstream_side import UpstreamSide


class Extended:
    """See the module.

    Args:
        flight: of the session.
        names: of the session.
        upstream: of the session.
        outgoing: where messages wait for their record.
        gate: decides.
        copy: told of an Execute that may begin a COPY.
        meter: says whether commands are timed.
    """

    def __init__(
        self,
        flight: Flight,
        names: Namespace,
        upstream: UpstreamSide,
        outgoing: Outgoing,
        gate: Gate,
        copy: CopyIn,
        meter: Meter,
    ) -> None:
        self._flight = flight
        self._names = names
        self._upstream = upstream
        self._outgoing = outgoing
        self._gate = gate
        self._copy = copy
        self._meter = meter

    def message(self, frame: Frame) -> Effects[None]:
        """Take a message of the extended query, but for Sync.

        Raises:
            ProtocolError: side=client; it is malformed, or none of these.
        """
        kind = frame.type
        if kind == messages.FLUSH:  # changes nothing at the backend, so it opens no segment either
            yield from self._outgoing.cover()
            yield ToUpstream(frame.raw, self._outgoing.opened)
            return
        self._outgoing.has_open_segment = True
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
            yield from self._outgoing.poison(answers.too_many_names("prepared statements"))
            return
        classified = yield from self._gate.classify(message.query)
        command = self._gate.command("parse", message.query, classified)
        decision = yield from self._gate.decide(command, classified)
        if decision.action is not Action.ALLOW:
            intent = yield from self._outgoing.intend(command, decision)
            yield from self._outgoing.refuse(intent, answers.refusal(decision, command))
            return
        statement = self._gate.prepared(message.query, classified, message.types)
        change = self._names.statements.send(message.statement, statement, self._flight.segment)
        step = Step("parse", self._flight.segment, statement=change)
        yield from self._outgoing.parse_later(step, raw, command, decision)

    def _bind(self, message: messages.Bind, raw: bytes) -> Effects[None]:
        yield from self._outgoing.settle(self._names.statements, message.statement)
        statement = self._names.statements.find(message.statement)
        if statement is None:
            yield from self._outgoing.poison(answers.unknown_statement(message.statement))
            return
        if self._names.portals.is_full:
            yield from self._outgoing.poison(answers.too_many_names("portals"))
            return
        portal = Portal(statement, bytes(message.params))
        if runs_code(statement.classified.facts) and not (yield from self._may_plan(portal)):
            return
        change = self._names.portals.send(message.portal, portal, self._flight.segment)
        yield from self._outgoing.later(Step("bind", self._flight.segment, portal=change), raw)

    def _may_plan(self, portal: Portal) -> Effects[bool]:
        """Decide on a Bind: the server plans the statement then, and runs functions to see what they give."""
        statement = portal.statement
        yield from self._gate.renew(statement)
        command = self._gate.command("bind", statement.text, statement.classified, portal.params, _types(statement))
        decision = yield from self._gate.decide(command, statement.classified, portal)
        if decision.action is Action.ALLOW:
            return True
        intent = yield from self._outgoing.intend(command, decision)
        yield from self._outgoing.refuse(intent, answers.refusal(decision, command))
        return False

    def _execute(self, message: messages.Execute, raw: bytes) -> Effects[None]:
        yield from self._outgoing.settle(self._names.portals, message.portal)
        portal = self._names.portals.find(message.portal)
        if portal is None:
            yield from self._outgoing.poison(answers.unknown_portal(message.portal))
            return
        statement = portal.statement
        yield from self._gate.renew(statement)
        begun = 0 if portal.is_begun else statement.classified.counted
        command = self._gate.command(
            "execute", statement.text, statement.classified, portal.params, _types(statement), statements=begun
        )
        decision = yield from self._gate.decide(command, statement.classified, portal)
        if decision.approval:
            yield from self._gate.refresh(statement)
        intent = yield from self._outgoing.intend(command, decision)
        if isinstance(intent, bytes) or decision.action is not Action.ALLOW:
            yield from self._outgoing.refuse(intent, answers.refusal(decision, command))
            return
        portal.is_begun = True
        step = Step("execute", self._flight.segment, intent=intent, is_unread=statement.classified.is_unread)
        if self._names.is_masked:
            yield from self._gate.settle_fetched(statement.classified)
        self._gate.follow(step, statement.classified, portal)
        if self._upstream.tape is not None:
            step.recorded, step.formats = statement, messages.result_formats(portal.params)
        if self._names.is_masked:
            yield from self._describe_result(step, message.portal, portal)
        self._outgoing.covers(statement.text)
        may_copy_in = statement.classified.may_copy_in
        if self._meter.is_timed or may_copy_in:
            # Else the backend would keep the end of a command to itself while it runs the next, and what it says to a
            # COPY while it waits for the data.
            raw += messages.FLUSH_FRAME
        yield from self._outgoing.later(step, raw)
        self._outgoing.executed_segment = self._flight.segment
        self._outgoing.has_waiting_execute = True
        if may_copy_in:
            yield from self._outgoing.cover()
            self._copy.step = step

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
            yield from self._outgoing.later(asked, messages.encode_describe_portal(name))

    def _describe(self, message: messages.Describe, raw: bytes) -> Effects[None]:
        names: Names[Any] = self._names.statements if message.kind == messages.STATEMENT else self._names.portals
        yield from self._outgoing.settle(names, message.name)
        # A name that only the backend knows is one that SQL made (DECLARE), and that was decided then.
        step = Step("describe", self._flight.segment)
        found = names.find(message.name)
        statement = found.statement if isinstance(found, Portal) else found
        if self._upstream.tape is not None:
            step.recorded = statement
        if statement is not None and statement.answer is not None:
            step.answer = statement.answer
            statement.answer.asked_segment = self._flight.segment
        yield from self._outgoing.later(step, raw)

    def _close(self, message: messages.Close, raw: bytes) -> Effects[None]:
        step = Step("close", self._flight.segment)
        if message.kind == messages.STATEMENT:
            step.statement = self._names.statements.send(message.name, None, self._flight.segment)
        else:
            step.portal = self._names.portals.send(message.name, None, self._flight.segment)
        yield from self._outgoing.later(step, raw)


def _types(statement: Statement) -> tuple[int, ...]:
    return statement.answer.types if statement.answer is not None else statement.types
