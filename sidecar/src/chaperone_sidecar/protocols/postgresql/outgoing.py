"""What goes to the backend: bytes of extended messages wait here until a record covers them.

A record covers what waits when the intent of an Execute among it is recorded; a Parse whose text no Execute runs gets
an intent of its own when the client wants an answer (Flush, Sync). A refused message is replaced by poison (flight.py),
and what follows it is swallowed until Sync; so is what follows an error of the backend's own.
"""

from __future__ import annotations

from typing import Any, Final

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.effects import Conclude, Effects, Intend, Intent, Receipt, ToUpstream, Wait
from chaperone_sidecar.errors import ProtocolError, SpoolFull, Unwitnessed
from chaperone_sidecar.protocols.postgresql import answers, messages
from chaperone_sidecar.protocols.postgresql.flight import POISON_NAME, POISON_STATEMENT, Flight, Step
from chaperone_sidecar.protocols.postgresql.prepared import Names
from chaperone_sidecar.protocols.postgresql.upstream_side import UpstreamSide

MAX_UNCOVERED_BYTES: Final = 1 << 20  # Parse and Bind waiting for their cover; past this they get a record of their own


class Outgoing:
    """See the module. `receipt` is there once the session is open."""

    def __init__(self, flight: Flight, upstream: UpstreamSide) -> None:
        self._flight = flight
        self._upstream = upstream
        self.receipt: Receipt | None = None
        self._uncovered = bytearray()
        self._uncovered_parses: list[tuple[Step, Command, Decision]] = []
        self._first_uncovered: Step | None = None  # the first of what waits to be sent
        self.has_waiting_execute = False  # among the bytes that wait
        self.has_open_segment = False  # extended messages came and no Sync yet
        self.executed_segment = -1  # the last in which something was executed

    @property
    def opened(self) -> Receipt:
        """The record that covers what runs nothing.

        Raises:
            ProtocolError: the session is not open.
        """
        if self.receipt is None:
            raise ProtocolError("The session has not started.")
        return self.receipt

    def has_failed(self) -> bool:
        """Whether the backend has told of an error in this segment: it skips what it is sent before the next Sync.

        So nothing more is sent, and nothing waits for an answer that cannot come. A message that was being decided
        when the error came is caught as late as where it would be sent.
        """
        return self._upstream.failed_segment == self._flight.segment

    def intend(self, command: Command, decision: Decision) -> Effects[Intent | bytes]:
        """Record what is about to happen; a refusal when it cannot be recorded, and then it must not happen."""
        try:
            intent: Intent = yield Intend(command, decision)
        except (SpoolFull, Unwitnessed) as error:
            return answers.unrecorded(error)
        return intent

    # --- what waits -------------------------------------------------------------------------------------------------

    def later(self, step: Step, raw: bytes) -> Effects[None]:
        """A message goes upstream with those that it came with."""
        if self.has_failed():
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
            yield from self.cover()

    def parse_later(self, step: Step, raw: bytes, command: Command, decision: Decision) -> Effects[None]:
        """A Parse goes upstream when an intent records its text."""
        self._uncovered_parses.append((step, command, decision))
        yield from self.later(step, raw)

    def covers(self, text: bytes) -> None:
        """The intent of an Execute records this text, so its Parse needs none."""
        self._uncovered_parses = [waiting for waiting in self._uncovered_parses if waiting[1].text != text]

    def cover(self) -> Effects[None]:
        """Record an intent for each Parse that no Execute has covered, then let the waiting bytes go upstream."""
        if self.has_failed():
            self._uncovered_parses.clear()
            self._uncovered.clear()
        uncovered, self._uncovered_parses = self._uncovered_parses, []
        for step, command, decision in uncovered:
            intent = yield from self.intend(command, decision)
            if isinstance(intent, bytes):
                yield from self._refuse_waiting(intent)
                return
            if step.is_over:  # the backend failed while the intent was made sure
                yield Conclude(intent, "aborted")
            else:
                step.intent = intent
        if self.has_failed():
            self._uncovered.clear()
        self.has_waiting_execute = False
        if self._uncovered:
            waiting, self._uncovered = self._uncovered, bytearray()
            yield ToUpstream(waiting, self.opened)

    def settle(self, names: Names[Any], name: bytes) -> Effects[None]:
        """What the name stands for has to be known before the client's next message is looked at."""
        segment = self._flight.segment
        if names.is_settled(name, segment):
            return
        yield from self.cover()
        yield Wait(lambda: names.is_settled(name, segment))

    def drain(self) -> Effects[None]:
        """Let the client send more only when answers have come; Flush makes the backend give those it holds back."""
        yield from self.cover()
        yield ToUpstream(messages.FLUSH_FRAME, self.opened)
        yield Wait(lambda: not self._flight.is_full)

    def settle_segment(self) -> Effects[None]:
        """Have all extended messages answered that a simple query follows without Sync, as asyncpg's do.

        The server takes the query for the end of what they began, unless one of them failed: then it skips the query.
        """
        if not self.has_open_segment:
            return
        yield from self.cover()
        if self._flight:
            yield ToUpstream(messages.FLUSH_FRAME, self.opened)
            yield Wait(lambda: not self._flight)
        if self.has_failed():
            self._flight.is_skipping = True

    # --- refusals ---------------------------------------------------------------------------------------------------

    def refuse(self, intent: Intent | bytes, refusal: bytes) -> Effects[None]:
        """Refuse a message: with the refusal that was recorded, or because it could not be, and then what waits too."""
        if isinstance(intent, Intent):
            yield from self.poison(refusal)
        elif self._uncovered:
            self._uncovered_parses.clear()  # they are not sent, so they need no record
            yield from self._refuse_waiting(intent)
        else:
            yield from self.poison(intent)

    def poison(self, refusal: bytes) -> Effects[None]:
        """Put a failing Parse in the place of a refused message, and swallow what follows until Sync."""
        yield from self.cover()
        self._flight.is_skipping = True
        if self.has_failed():
            return
        self._flight.add(Step("poison", self._flight.segment, refusal=refusal))
        yield ToUpstream(messages.encode_parse(POISON_NAME, POISON_STATEMENT) + messages.FLUSH_FRAME, self.opened)

    def _refuse_waiting(self, refusal: bytes) -> Effects[None]:
        """Poison goes upstream in place of all that waits; what that was is skipped like what comes after an error."""
        first = self._first_uncovered
        self._uncovered.clear()
        self.has_waiting_execute = False
        self._flight.is_skipping = True
        if first is None or self.has_failed():
            return
        first.refusal = refusal
        yield ToUpstream(messages.encode_parse(POISON_NAME, POISON_STATEMENT) + messages.FLUSH_FRAME, self.opened)
