"""What stands between a statement and the backend: it is read, decided, and held for people."""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.command import Command, unknown
from chaperone_sidecar.decision import Action, Decision, changed_meanwhile
from chaperone_sidecar.effects import Admit, Ask, Effects, Hold, ToUpstream, Wait
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import answers, messages
from chaperone_sidecar.protocols.postgresql.classify import Classified
from chaperone_sidecar.protocols.postgresql.flight import Flight, Step
from chaperone_sidecar.protocols.postgresql.namespace import Namespace, fetched
from chaperone_sidecar.protocols.postgresql.outgoing import Outgoing
from chaperone_sidecar.protocols.postgresql.plan import UNPLANNED
from chaperone_sidecar.protocols.postgresql.prepared import Answer, Portal, Statement
from chaperone_sidecar.protocols.postgresql.preview import preview
from chaperone_sidecar.protocols.postgresql.reading import Reader, changes_schema
from chaperone_sidecar.protocols.postgresql.upstream_side import UpstreamSide

_CHANGED_READING: Final = (
    "This session changed how names or strings are read, so what the statement means is not known; open a new session."
)


class Gate:
    """See the module. `reader` is there once the session is open.

    Args:
        flight: of the session.
        names: of the session.
        upstream: of the session.
        outgoing: what has to be sent before people are asked.
    """

    def __init__(self, flight: Flight, names: Namespace, upstream: UpstreamSide, outgoing: Outgoing) -> None:
        self._flight = flight
        self._names = names
        self._upstream = upstream
        self._outgoing = outgoing
        self.reader: Reader | None = None
        self._reading_changed = False

    @property
    def reads(self) -> Reader:
        """How the session reads texts.

        Raises:
            ProtocolError: it is not open.
        """
        if self.reader is None:
            raise ProtocolError("The session has not started.")
        return self.reader

    # --- what a statement means -------------------------------------------------------------------------------------

    def classify(self, text: bytes) -> Effects[Classified]:
        """What a text would do."""
        reader = self.reads
        if self._upstream.changing_segment >= 0:
            return (yield from reader.read_unsettled(text))
        found = reader.find(text)
        return found if found is not None else (yield from reader.read(text))

    def prepared(self, text: bytes, classified: Classified, types: tuple[int, ...]) -> Statement:
        """A statement that the client prepares; `types` are those of its parameters."""
        return Statement(text, classified, self.reads.generation, self._answer(classified, types), types)

    def renew(self, statement: Statement) -> Effects[None]:
        """Read a prepared statement again if what it means may have changed."""
        if statement.generation != self.reads.generation or self._upstream.changing_segment >= 0:
            yield from self.refresh(statement)

    def refresh(self, statement: Statement) -> Effects[None]:
        """Read a prepared statement again."""
        statement.classified = yield from self.classify(statement.text)
        statement.generation = self.reads.generation
        types = statement.answer.types if statement.answer is not None else ()
        statement.answer = self._answer(statement.classified, types)

    def _answer(self, classified: Classified, types: tuple[int, ...]) -> Answer | None:
        if self._upstream.results is None:
            return None
        return Answer(classified.plans[0] if len(classified.plans) == 1 else UNPLANNED, types=types)

    def settle_fetched(self, classified: Classified) -> Effects[None]:
        """The names of cursors that a text reads have to be known before it is sent."""
        for name in fetched(classified):
            yield from self._outgoing.settle(self._names.portals, name)
            yield from self._outgoing.settle(self._names.cursors, name)

    def follow(self, step: Step, classified: Classified, active: Portal | None = None) -> None:
        """A statement goes upstream: follow what it does to names, and say how its results are masked."""
        step.plans, step.cursors = self._names.follow(classified, self._flight.segment, active)
        if changes_schema(classified.facts):
            self._upstream.changing_segment = self._flight.segment
        self._reading_changed |= classified.changes_reading

    # --- what is decided about it -----------------------------------------------------------------------------------

    def command(
        self, kind: str, text: bytes, classified: Classified, params: bytes = b"", types: tuple[int, ...] = (), *,
        statements: int = 0,
    ) -> Command:  # fmt: skip
        """What policy is asked about; `statements` of it count against the limits."""
        facts = unknown(_CHANGED_READING) if self._reading_changed else classified.facts
        in_transaction = self._is_in_transaction()
        results = self._upstream.results
        if results is None:
            return Command(kind, text, facts, params, in_transaction, param_types=types, statements=statements)
        shown, conceals = results.shown, classified.conceals or self._reading_changed
        return Command(
            kind, text, facts, params, in_transaction, shown.text(text, classified, conceals=conceals),
            shown.params(params, types, conceals=conceals), shown.facts(facts, conceals=conceals), types,
            statements,
        )  # fmt: skip

    def decide(self, command: Command, classified: Classified, portal: Portal | None = None) -> Effects[Decision]:
        """Decide on a command; one that needs people waits for them."""
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
                return changed_meanwhile(approved, counted)
            is_admitted, portal.is_admitted = portal.is_admitted, False
            return approved if is_admitted else (yield Admit(command, approved))
        outgoing = self._outgoing
        yield from outgoing.cover()
        if outgoing.has_open_segment:  # the client may want to know how what it sent before this went
            yield ToUpstream(messages.FLUSH_FRAME, outgoing.opened)
        yield Wait(lambda: not self._flight)  # only then is it known whether a transaction is open
        if outgoing.has_failed():
            return decision  # the server will skip it, so nobody need be asked
        asked = msgspec.structs.replace(command, in_transaction=self._is_in_transaction())
        held: Decision = yield Hold(asked, decision, preview(command))
        if held.action is not Action.ALLOW:
            return held
        self.reads.catalog.invalidate()  # people take longer than what is known of it may be trusted
        classified = yield from self.classify(command.text)
        fresh: Decision = yield Ask(msgspec.structs.replace(command, facts=classified.facts), is_approved=True)
        if classified.unmaskable:
            return _unmaskable(classified, fresh)
        is_same = classified.facts.accesses == command.facts.accesses and not self._reading_changed
        if not is_same or fresh != decision:
            return changed_meanwhile(held, fresh)
        if portal is not None:
            portal.approved, portal.is_admitted = held, command.is_preparing
        return held

    def _is_in_transaction(self) -> bool:
        """What was executed since the last Sync holds its locks in a transaction too, although nobody began it."""
        return self._upstream.status != messages.IDLE or self._outgoing.executed_segment == self._flight.segment


def _unmaskable(classified: Classified, decision: Decision) -> Decision:
    return Decision(Action.DENY, "", "unmaskable", classified.unmaskable, decision.revision, answers.UNMASKABLE_HINT)
