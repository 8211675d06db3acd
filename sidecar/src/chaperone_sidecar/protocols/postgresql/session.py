"""One PostgreSQL session between an agent and a backend: which message needs what, in which order.

Theory of operation. `from_client` and `from_upstream` are generators; each takes the plain bytes of its side and yields
what is to be done. The client's side (here) runs start-up, then decides on every statement before anything of it goes
upstream:

* a simple query is classified and decided as a whole, then its intent is recorded, then it is forwarded;
* messages of the extended query (extended.py) are decided as they come; their bytes wait until a record covers them
  (outgoing.py);
* a refused command is replaced by poison (flight.py), and what follows it is swallowed until Sync, as a server would
  do; so is what follows an error of the server's own;
* what follows a COPY FROM STDIN waits until the backend asks for data or is done, since that decides what it means
  (copyin.py).

The upstream's side (upstream_side.py) matches each answer to its step and records the outcome before the frame that
ends the command is given to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import Close, Effects, Intent, Opened, ToClient, ToUpstream, Wait
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.postgresql import answers, copyin, messages
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, Frame, FrontendCodec
from chaperone_sidecar.protocols.postgresql.copyin import CopyIn
from chaperone_sidecar.protocols.postgresql.extended import Extended
from chaperone_sidecar.protocols.postgresql.flight import POISON_STATEMENT, Flight, Step
from chaperone_sidecar.protocols.postgresql.gate import Gate
from chaperone_sidecar.protocols.postgresql.namespace import Namespace
from chaperone_sidecar.protocols.postgresql.opening import Opening
from chaperone_sidecar.protocols.postgresql.outgoing import Outgoing
from chaperone_sidecar.protocols.postgresql.reading import Reader
from chaperone_sidecar.protocols.postgresql.upstream_side import UpstreamSide

if TYPE_CHECKING:  # it loads a compressor, which a gateway that records no results does not carry
    from chaperone_sidecar.recording.results import ResultLog

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
        self._client = FrontendCodec()
        self._flight = Flight()
        self._names = Namespace()
        self._upstream = UpstreamSide(BackendCodec(), self._flight, self._names, meter)
        self._outgoing = Outgoing(self._flight, self._upstream)
        self._gate = Gate(self._flight, self._names, self._upstream, self._outgoing)
        self._copy = CopyIn(self._upstream, self._names, meter)
        self._extended = Extended(
            self._flight, self._names, self._upstream, self._outgoing, self._gate, self._copy, meter
        )  # fmt: skip
        self._opening = Opening(self._client, asks_user=asks_user)
        self._is_first = True

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
            if self._outgoing.receipt is None:
                opened: Opened | None = yield from self._opening.message(frame)
                if opened is not None:
                    yield from self._begin(opened)
                elif self._opening.is_over:
                    return
            else:
                yield from self._message(frame)
        if self._outgoing.has_waiting_execute:  # the server would begin, and tell of an error, before any Sync comes
            yield from self._outgoing.cover()

    def from_upstream(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the backend.

        Raises:
            ProtocolError: side=upstream.
        """
        yield from self._upstream.receive(data)
        while self._copy.owes_sync:
            self._copy.held_syncs -= 1
            yield from self._sync(messages.SYNC_FRAME)

    def cut(self, reached: Reached) -> Effects[None]:
        """The running command has passed a limit: end it with an error."""
        if self._upstream.copy_receipt is not None:
            self._copy.held_syncs = 0  # the COPY waits for data, so the server would have read and ignored them
        yield from self._upstream.cut(reached)

    def running(self) -> object | None:
        """The command that the backend works on now, if any."""
        return self._upstream.running()

    def abandoned(self) -> list[Intent]:
        """The connection is gone: intents that still owe an outcome ("aborted")."""
        if self._gate.reader is not None:
            self._gate.reader.catalog.leave()
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
        self._outgoing.receipt = opened.receipt
        self._gate.reader = reader = self._reader_of(self._opening.database)
        reader.catalog.join()
        self._upstream.on_changed = reader.catalog.invalidate
        if reader.results is not None:
            self._upstream.mask(reader.results)
            self._names.is_masked = True
        self._upstream.key = (opened.process_id, opened.secret)
        self._client.started()
        yield ToClient(answers.welcome(opened.parameters, opened.process_id, opened.secret))

    def _message(self, frame: Frame) -> Effects[None]:
        kind = frame.type
        if self._flight.is_full:
            yield from self._outgoing.drain()
        if self._outgoing.has_failed():
            self._flight.is_skipping = True
        if self._copy.step is not None and (yield from self._copy.takes(frame)):
            return
        if kind == messages.TERMINATE:
            yield from self._terminate(frame)
        elif kind == messages.SYNC:
            yield from self._sync(frame.raw)
        elif kind == messages.QUERY:
            yield from self._outgoing.settle_segment()
            # A server that waits for Sync skips simple queries too.
            if not self._flight.is_skipping:
                yield from self._query(messages.decode_query(frame.body))
                self._outgoing.has_open_segment = False
        elif kind in copyin.MESSAGES:
            pass  # without a COPY under way the server ignores these too: they are late after its error
        elif kind == messages.FUNCTION_CALL:
            yield from self._outgoing.settle_segment()
            if not self._flight.is_skipping:
                facts = Facts((Access(Effect.EXECUTE_CODE, "protocol:function_call"),), Resolution.NONE)
                results, body = self._upstream.results, bytes(frame.body)
                shown = results.shown.arguments(body) if results is not None else None
                command = Command("function_call", body, facts, shown_text=shown)
                yield from self._query_refused(command, _NO_FUNCTION_CALL)
                self._outgoing.has_open_segment = False
        elif not self._flight.is_skipping:
            yield from self._extended.message(frame)

    def _terminate(self, frame: Frame) -> Effects[None]:
        """End the session; what was asked before is answered first, as the server does it."""
        if self._flight and not self._outgoing.has_open_segment and self._upstream.copy_receipt is None:
            yield Wait(lambda: not self._flight)
        yield ToUpstream(frame.raw, self._outgoing.opened)
        yield Close("client ended the session")

    def _sync(self, raw: bytes) -> Effects[None]:
        yield from self._outgoing.cover()
        self._flight.is_skipping = False
        self._flight.add(Step("sync", self._flight.segment))
        self._outgoing.has_open_segment = False
        yield ToUpstream(raw, self._outgoing.opened)

    # --- simple query -----------------------------------------------------------------------------------------------

    def _query(self, text: bytes) -> Effects[None]:
        yield from self._outgoing.cover()
        classified = yield from self._gate.classify(text)
        command = self._gate.command("query", text, classified, statements=classified.counted)
        decision = yield from self._gate.decide(command, classified)
        if decision.action is not Action.ALLOW:
            yield from self._query_refused(command, decision)
            return
        if decision.approval:
            classified = yield from self._gate.classify(text)
        intent = yield from self._outgoing.intend(command, decision)
        if isinstance(intent, bytes):
            yield from self._query_poisoned(intent)
            return
        step = Step("query", self._flight.segment, intent=intent, is_unread=classified.is_unread)
        if self._names.is_masked:
            yield from self._gate.settle_fetched(classified)
        self._gate.follow(step, classified)
        self._flight.add(step)
        if classified.may_copy_in:
            self._copy.step = step
        yield ToUpstream(messages.encode_query(text), intent.receipt)

    def _query_refused(self, command: Command, decision: Decision) -> Effects[None]:
        yield from self._outgoing.cover()
        intent = yield from self._outgoing.intend(command, decision)
        refusal = intent if isinstance(intent, bytes) else answers.refusal(decision, command)
        yield from self._query_poisoned(refusal)

    def _query_poisoned(self, refusal: bytes) -> Effects[None]:
        """Refuse at once where nothing is under way; otherwise in the backend's order, with its transaction aborted."""
        if not self._flight and not self._outgoing.has_open_segment and self._upstream.status == messages.IDLE:
            yield ToClient(refusal + answers.ready_for_query(messages.IDLE))
            return
        self._flight.add(Step("query", self._flight.segment, refusal=refusal))
        yield ToUpstream(messages.encode_query(POISON_STATEMENT), self._outgoing.opened)
