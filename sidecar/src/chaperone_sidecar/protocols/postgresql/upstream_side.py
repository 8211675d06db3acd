"""The backend's half of a session: which command an answer belongs to, and what is recorded of it.

Rows stream through the mask. The frame that ends a command is kept back until its outcome is recorded: for Execute
that is CommandComplete, EmptyQueryResponse, PortalSuspended or ErrorResponse; for a simple query the last of those
before ReadyForQuery, so one small frame at most waits.

A command that passes a limit is cut: what still comes of its answer is dropped, the backend is asked to cancel it, and
the frame that ends it is replaced by an error that names the limit. Nothing else is looked at until the cancel request
has been delivered, so it can meet no later command. Where the backend was faster than the cancel, client and backend
are brought together again (`_end_cut`), or the session ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from chaperone_sidecar.effects import CancelUpstream, Close, Conclude, Effects, Receipt, ToClient, ToUpstream
from chaperone_sidecar.errors import LimitReached, ProtocolError, Unmaskable
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.postgresql import answers, messages
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, Frame, Rows, frames
from chaperone_sidecar.protocols.postgresql.flight import POISON_NAME, POISON_STATEMENT, Flight, Step
from chaperone_sidecar.protocols.postgresql.namespace import Namespace

if TYPE_CHECKING:  # it loads RE2, which a gateway without masks does not carry
    from chaperone_sidecar.protocols.postgresql.results import Results
    from chaperone_sidecar.protocols.postgresql.tape import Tape  # and this one a compressor, which few need

MAX_ENDING_BYTES: Final = 64 << 10  # asynchronous messages kept back with an ending; more of them go ahead of it
_FATAL: Final = frozenset({"FATAL", "PANIC"})


class UpstreamSide:
    """Matches what the backend says to the steps of a flight."""

    def __init__(self, codec: BackendCodec, flight: Flight, names: Namespace, meter: Meter) -> None:
        self._codec = codec
        self._flight = flight
        self._names = names
        self._meter = meter
        self.results: Results | None = None  # the masks, where there are any
        self.tape: Tape | None = None  # records what the client is shown, where the identity asks for it
        self._out = bytearray()
        self._ending = b""
        self._behind = b""  # asynchronous messages that came after the ending
        self.failed_segment = -1  # the backend skips what it is sent of this one
        self._is_last = False  # the backend has said that it ends the session
        self._must_stop = False  # a command was cut and may still run
        self._owes_tail = False  # the client has the beginning of a row whose command was cut
        self.changing_segment = -1  # the last in which something may have changed the schema, and is not committed
        self.on_changed: Callable[[], None] = lambda: None
        self.key = (0, b"")  # by which the gateway cancels what this session runs
        self.status = messages.IDLE
        self.copy_receipt: Receipt | None = None

    def receive(self, data: bytes) -> Effects[None]:
        """Take plain bytes of the backend.

        Raises:
            ProtocolError: side=upstream; an answer that nothing asked for, or a malformed one.
        """
        codec = self._codec
        codec.feed(data)
        while (item := codec.next()) is not None:
            if self.tape is not None:
                self.tape.at(len(self._out), self._flight.first())
            if isinstance(item, Rows):
                if self.results is None:
                    self._rows(item)
                else:
                    yield from self._masked_rows(self.results, item)
            elif item.type in messages.DETAILS:  # the most frequent ones, and they record nothing
                step = self._step(item.type)
                if self.results is not None:
                    yield from self._described(self.results, step, item)
                if self.tape is not None:
                    self._note_columns(self.tape, step, item)
                self._detail(step, item)
            else:
                yield from self._frame(item)
        if self._out:
            yield self._told()
        if self._must_stop:
            yield from self._stop()
        if self._is_last:
            yield Close("the target ended the session")

    def _told(self) -> ToClient:
        """What the client is to be told next."""
        out, self._out = self._out, bytearray()
        if self.tape is not None:
            self.tape.release()
        return ToClient(out)

    def _note_columns(self, tape: Tape, step: Step, frame: Frame) -> None:
        if frame.type != messages.ROW_DESCRIPTION:
            return
        if step.recorded is not None:
            step.recorded.description = bytes(frame.raw)
        if self.results is not None:
            tape.at(len(self._out), step, self.results.classified(step))

    def running(self) -> Step | None:
        """The command that the backend works on now, if any."""
        return self._flight.running()

    @property
    def is_inside_row(self) -> bool:
        """Whether the client has the beginning of a row and not its end."""
        step = self._flight.first()
        return self._codec.row_bytes_left > 0 and (step is None or step.cut is None or self._owes_tail)

    def cut(self, reached: Reached) -> Effects[None]:
        """End the running command: it has passed a limit."""
        step = self._flight.running()
        if step is not None and step.cut is None and not step.code:
            self._cut(step, reached)
            yield from self._stop()

    def _cut(self, step: Step, reached: Reached | Unmaskable) -> None:
        step.cut = reached
        step.code = reached.rule
        if step is self._flight.first():
            self._ending = b""
            self._release_ending()
        self._owes_tail = True
        self._must_stop = True

    def _stop(self) -> Effects[None]:
        """Make the backend stop what is cut, unless it has ended already."""
        self._must_stop = False
        step = self._flight.running()
        if step is None or step.cut is None:
            return
        receipt, self.copy_receipt = self.copy_receipt, None
        if receipt is not None:  # a backend that waits for COPY data does not look at cancel requests
            yield ToUpstream(messages.encode_copy_fail(step.cut.rule), receipt)
        else:
            yield CancelUpstream(*self.key)

    def _drop(self, rows: Rows) -> None:
        """Rows of a command that was cut; a row that the client has begun to read is the last that it gets."""
        if self._owes_tail:
            self._out += rows.data[: rows.tail]
            self._owes_tail = rows.tail == len(rows.data)

    def _rows(self, rows: Rows) -> None:
        step = self._row_step()
        if step.cut is None and self._count(step, rows):
            self._out += rows.data
        else:
            self._drop(rows)

    def _row_step(self) -> Step:
        step = self._flight.first()
        if step is None or step.kind not in ("query", "execute") or step.refusal:
            raise _unexpected("a row")
        self._release_ending()
        return step

    def _count(self, step: Step, rows: Rows) -> bool:
        """Count rows, or cut their command: they must not be passed on."""
        data, count = rows.data, step.rows + rows.count
        reached = self._meter.take(count, len(data), self._codec.row_bytes_left)
        if reached is not None:
            self._cut(step, reached)
            return False
        step.rows = count
        step.size_bytes += len(data)
        return True

    # --- masked results ---------------------------------------------------------------------------------------------

    def mask(self, results: Results) -> None:
        """From now on results are masked; rows are looked at whole."""
        self.results = results
        self._codec.long_row_bytes = results.max_row_bytes

    def _masked_rows(self, results: Results, rows: Rows) -> Effects[None]:
        step = self._row_step()
        if step.cut is not None:
            return
        try:
            if self._codec.row_bytes_left:
                raise results.too_long()
            if step.mask is None:
                step.mask = yield from results.of_execute(step)
                if self.tape is not None:
                    self.tape.at(len(self._out), step, results.classified(step))
            self._show(step, (yield from results.rows(step.mask, rows.data)), rows.count)
        except Unmaskable as error:
            self._cut_whole(step, error)

    def _show(self, step: Step, data: bytes | memoryview, count: int) -> None:
        """Count masked rows and pass them on, up to the one that passes a limit.

        What the backend sent, and in which pieces it came, tells how long the masked values are: it must decide neither
        how much is counted nor where the result ends.
        """
        if self._take(step, data, step.rows + count) is None:
            return
        for row in frames(data):
            reached = self._take(step, row, step.rows + 1)
            if reached is not None:
                self._cut_whole(step, reached)
                return

    def _take(self, step: Step, data: bytes | memoryview, count: int) -> Reached | None:
        reached = self._meter.take(count, len(data))
        if reached is None:
            step.rows = count
            step.size_bytes += len(data)
            self._out += data
        return reached

    def _cut_whole(self, step: Step, why: Reached | Unmaskable) -> None:
        """Cut a command of whose rows the client has no beginning without its end."""
        self._cut(step, why)
        self._owes_tail = False

    def _described(self, results: Results, step: Step, frame: Frame) -> Effects[None]:
        """Learn from the backend what comes, before it comes."""
        if step.cut is not None or step.refusal:
            return
        try:
            if frame.type == messages.ROW_DESCRIPTION:
                yield from results.described(step, bytes(frame.raw))
            elif frame.type == messages.NO_DATA:
                results.described_as_empty(step)
            elif frame.type == messages.PARAMETER_DESCRIPTION and step.answer is not None:
                step.answer.types = messages.decode_parameter_description(frame.body)
            elif frame.type == messages.COPY_OUT_RESPONSE:
                step.mask = yield from results.of_copy(step, bytes(frame.raw))
            elif frame.type == messages.COPY_DONE:
                self._show(step, results.finish(step), 0)
        except Unmaskable as error:
            self._cut_whole(step, error)

    def _shown_as_empty(self, results: Results, step: Step) -> Effects[None]:
        """That there are no rows tells something, too."""
        if step.cut is not None:
            return
        try:
            yield from results.of_nothing(step)
        except Unmaskable as error:
            self._cut_whole(step, error)

    def _masked_text(self, raw: bytes) -> bytes:
        return raw if self.results is None else self.results.text(raw)

    def _step(self, kind: int) -> Step:
        """The step that a message belongs to."""
        step = self._flight.first()
        if step is None:
            raise _unexpected(f"a message of type {chr(kind)!r} that nothing asked for")
        return step

    def _frame(self, frame: Frame) -> Effects[None]:
        kind = frame.type
        if kind in messages.ASYNCHRONOUS:
            self._asynchronous(kind, self._masked_text(frame.raw))
            return
        if kind == messages.ERROR_RESPONSE:
            # The backend ends the session on its own (shutdown, idle timeout): its last words are for the client.
            self._is_last = messages.error_fields(frame.body).get("V") in _FATAL
            if not self._flight:
                self._out += self._masked_text(frame.raw)
                return
        step = self._step(kind)
        if kind == messages.ERROR_RESPONSE:
            yield from self._error(step, frame)
        elif kind == messages.READY_FOR_QUERY:
            yield from self._ready(step, frame)
        elif kind in messages.ENDINGS:
            if self.results is not None and step.kind == "execute" and step.mask is None:
                yield from self._shown_as_empty(self.results, step)
            yield from self._end(step, frame)
        else:
            self._acknowledge(step, kind)
            if step.intent is not None:
                yield Conclude(step.intent, "ok")
            self._out += frame.raw

    def _asynchronous(self, kind: int, raw: bytes) -> None:
        """NoticeResponse, ParameterStatus and NotificationResponse stay behind the ending that they came after.

        A notice after CommandComplete is one of the next statement of the same text, so that was not the last ending.
        """
        step = self._flight.first()
        if kind == messages.NOTICE_RESPONSE and step is not None and not step.code:
            self._release_ending()
        if self._ending and len(self._behind) < MAX_ENDING_BYTES:
            self._behind += raw
        else:
            self._out += raw

    def _detail(self, step: Step, frame: Frame) -> None:
        """A message inside a command's answer that does not end it."""
        if step.refusal:
            raise _unexpected("an answer to a refused command")
        if step.kind not in ("query", "execute", "describe"):
            raise _unexpected(f"a message of type {chr(frame.type)!r} in answer to {step.kind}")
        self._release_ending()
        if frame.type == messages.COPY_IN_RESPONSE:
            if step.intent is None:
                raise _unexpected("a COPY that was not asked for")
            self.copy_receipt = step.intent.receipt
            self._must_stop |= step.cut is not None
        if step.cut is not None:
            return
        if not step.is_hidden:
            self._out += frame.raw
        if step.kind == "describe" and frame.type in (messages.ROW_DESCRIPTION, messages.NO_DATA):
            self._flight.finish()

    def _acknowledge(self, step: Step, kind: int) -> None:
        """ParseComplete, BindComplete, CloseComplete: the step is done and its names are what we took them for."""
        if messages.ACKNOWLEDGES.get(kind) != step.kind:
            raise _unexpected(f"a message of type {chr(kind)!r} in answer to {step.kind}")
        self._flight.finish()
        if step.statement is not None:
            self._names.statements.confirm(step.statement)
        if step.portal is not None:
            self._names.portals.confirm(step.portal)

    def _end(self, step: Step, frame: Frame) -> Effects[None]:
        """CommandComplete and its like."""
        if step.refusal or step.kind not in ("query", "execute"):
            raise _unexpected(f"the end of a command in answer to {step.kind}")
        self.copy_receipt = None
        step.endings += 1
        step.mask = None
        if step.kind == "query":
            if step.cut is None:
                self._release_ending()
                self._ending = bytes(frame.raw)
            return
        self._flight.finish()
        if step.cut is not None:
            yield from self._end_cut(step, step.cut)
            return
        yield from self._conclude(step, "ok")
        self._out += frame.raw

    def _end_cut(self, step: Step, reached: Reached | Unmaskable) -> Effects[None]:
        """The backend completed a command that the client is told has failed: make both agree again.

        With Sync next, both do. With nothing on its way, poison fails at the backend in the client's place. Where other
        messages were sent already, the backend acts on what the client will believe was skipped: the session ends.
        """
        yield from self._conclude(step, "error")
        follower = self._flight.first()
        error = answers.cut(reached, is_complete=self._said(is_complete=True))
        if follower is None and step.intent is not None:
            self._flight.add(Step("poison", self._flight.segment, refusal=error))
            self._flight.is_skipping = True
            poison = messages.encode_parse(POISON_NAME, POISON_STATEMENT) + messages.FLUSH_FRAME
            yield ToUpstream(poison, step.intent.receipt)
        elif follower is not None and follower.kind == "sync":
            self._out += error
        else:
            yield self._told()  # answers of commands before it
            raise reached if isinstance(reached, Unmaskable) else LimitReached(reached)

    def _said(self, *, is_complete: bool) -> bool | None:
        """What the client hears of a command's end: of masked results it would tell how long the values are."""
        return is_complete if self.results is None else None

    def _error(self, step: Step, frame: Frame) -> Effects[None]:
        self.copy_receipt = None
        cut = step.cut
        if cut is None and (running := self._flight.running()) is not None and running.segment == step.segment:
            cut = running.cut  # the cancel met what prepares the command
        if cut is not None:
            text = answers.cut(cut, is_complete=self._said(is_complete=False))
            step.code = cut.rule
        else:
            text = step.refusal or self._masked_text(frame.raw)
            # As the client hears it: a function may have made the code of a value.
            step.code = messages.sqlstate(frame.body if step.refusal else text[5:])
        if step.kind == "query":
            self._release_ending()
            self._ending = text
            if self._is_last:  # no ReadyForQuery will come
                self._flight.finish()
                yield from self._conclude(step, "error")
                self._release_ending()
            return
        self.failed_segment = step.segment
        yield from self._skip(step)
        self._out += text

    def _skip(self, failed: Step) -> Effects[None]:
        """What the backend does not look at until Sync never ran, and its names are what they were."""
        for skipped in self._flight.skip_to_sync():
            yield from self._conclude(skipped, "error" if skipped is failed else "aborted")

    def _ready(self, step: Step, frame: Frame) -> Effects[None]:
        if step.kind not in ("query", "sync"):
            raise _unexpected(f"ReadyForQuery in answer to {step.kind}")
        if step.refusal and not step.code:
            raise _unexpected("success of a refused command")
        self._flight.finish()
        self.copy_receipt = None
        self.status = messages.transaction_status(frame.body)
        if self.status == messages.IDLE and 0 <= self.changing_segment <= step.segment:
            self.changing_segment = -1
            self.on_changed()
        if step.kind == "query":
            yield from self._conclude(step, "error" if step.code else "ok")
            if step.cut is not None and not self._ending:
                self._ending = answers.cut(step.cut, is_complete=self._said(is_complete=True))
            self._release_ending()
        self._out += frame.raw

    def _conclude(self, step: Step, status: Literal["ok", "error", "aborted"]) -> Effects[None]:
        for cursor in step.cursors:
            if status == "ok":
                self._names.cursors.confirm(cursor)
            elif len(step.plans) > 1:  # which of the text's statements stand is not known
                self._names.cursors.drop(cursor.name)
        if status != "ok":
            self.take_back(step)
        if step.intent is not None:
            yield Conclude(step.intent, status, step.code, step.rows, step.size_bytes)

    def take_back(self, step: Step) -> None:
        """The names of a step that never ran are what they were."""
        if step.statement is not None:
            self._names.statements.take_back(step.statement)
        if step.portal is not None:
            self._names.portals.take_back(step.portal)
        for cursor in step.cursors:
            self._names.cursors.take_back(cursor)

    def _release_ending(self) -> None:
        """What was kept back was not the last word of the simple query after all, or its outcome is recorded now."""
        if self._ending or self._behind:
            self._out += self._ending + self._behind
            self._ending = self._behind = b""


def _unexpected(what: str) -> ProtocolError:
    return ProtocolError(f"The database sent {what}.", side="upstream")
