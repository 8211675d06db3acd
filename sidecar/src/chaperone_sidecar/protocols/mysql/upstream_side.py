"""The server's half of a session: what each packet belongs to, and what the client gets of it.

One command is under way at a time; its `Step` says how its answer goes on. Column definitions, rows and ends are
numbered anew for the client, since what is masked or cut may be of another length. The outcome of a command is recorded
before the packet that ends its answer is given to the client. A request for a local file (LOCAL INFILE) is a hostile
server's, whatever was asked: the session ends.

Spec: "Command Phase", "Protocol::QueryResponse", "COM_STMT_PREPARE Response", "COM_STMT_EXECUTE Response".
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Literal

import msgspec

from chaperone_sidecar.effects import CancelUpstream, Conclude, Effects, Intent, ToClient
from chaperone_sidecar.errors import ProtocolError, Unmaskable, UpstreamUnavailable
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.mysql import answers
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.codec import Codec
from chaperone_sidecar.protocols.mysql.plan import Result
from chaperone_sidecar.protocols.mysql.reading import Reader
from chaperone_sidecar.protocols.mysql.rows import MAX_COLUMNS, Cursor, RowMask
from chaperone_sidecar.protocols.mysql.tape import Tape
from chaperone_sidecar.protocols.mysql.upstream import Rows

type Kind = Literal["simple", "query", "prepare", "execute", "hidden"]

_PLAIN_ERRORS: Final = frozenset(
    {1007, 1008, 1040, 1044, 1045, 1046, 1049, 1050, 1051, 1052, 1054, 1060, 1061, 1064, 1065, 1072, 1091, 1109, 1113,
     1136, 1142, 1143, 1146, 1149, 1170, 1176, 1203, 1205, 1213, 1222, 1226, 1227, 1235, 1241, 1243, 1247, 1248, 1295,
     1305, 1317, 1370, 1443, 1461, 1568, 1690, 1792, 1969, 3024, 3572}
)  # fmt: skip
"""Errors whose texts quote names of the client's own text and no values."""
# 1690 quotes the expression that is out of range: where columns are masked no expression holds one of them.

_HIDDEN_TEXT: Final = "The server's message is not shown, because it may quote a masked value."


class Stage(Enum):
    """Where an answer stands."""

    FIRST = 1
    COLUMNS = 2
    COLUMNS_END = 3
    ROWS = 4
    PARAMS = 5
    PARAMS_END = 6


class Step(msgspec.Struct, gc=False, eq=False):
    """The command that is under way."""

    kind: Kind
    intent: Intent | None = None
    result: Result = Result()
    on_ok: Callable[[], None] = lambda: None
    on_prepared: Callable[[m.Prepared], None] = lambda _: None
    on_cursor: Callable[[Cursor], None] | None = None  # of an execution that asks for one
    cursor: Cursor | None = None  # that is fetched from
    asked: Rows | None = None  # of the gateway's own question
    stage: Stage = Stage.FIRST
    columns: list[m.Column] = msgspec.field(default_factory=list)
    left: int = 0
    later_columns: int = 0  # of a prepared statement, behind its parameters
    mask: RowMask | None = None
    rows: int = 0
    size_bytes: int = 0
    code: str = ""
    cut: Reached | Unmaskable | None = None
    is_told: bool = False  # the client has heard the end, and what still comes is dropped


class UpstreamSide:
    """See the module's docstring.

    Args:
        meter: counts what the session moves.
        connection_id: by which this session's command is cancelled.
    """

    def __init__(self, meter: Meter, connection_id: int) -> None:
        self._codec = Codec("upstream")
        self._meter = meter
        self._id = connection_id
        self._out: list[bytes] = []
        self._pending: list[bytes] = []  # rows that came together
        self._sequence = 1
        self.reader: Reader | None = None
        self.tape: Tape | None = None
        self.step: Step | None = None
        self.status = m.SERVER_STATUS_AUTOCOMMIT

    @property
    def is_busy(self) -> bool:
        """Whether an answer is still to come."""
        return self.step is not None

    @property
    def is_in_transaction(self) -> bool:
        """Whether the server has a transaction open."""
        return bool(self.status & m.SERVER_STATUS_IN_TRANS)

    @property
    def next_sequence(self) -> int:
        """Number of the next packet of the answer that is under way; 0 where none is."""
        step = self.step
        return 0 if step is None or step.is_told or step.kind == "hidden" else self._sequence

    def begin(self, step: Step) -> None:
        """A command goes upstream; its answer is numbered from 1 on."""
        self.step = step
        self._codec.expect(1)
        if step.kind != "hidden":
            self._sequence = 1
            if self.tape is not None:
                self.tape.begin(step.intent.command_id if step.intent is not None else "")
                if step.cursor is not None:
                    self.tape.columns(step.columns, step.mask.classified if step.mask is not None else ())

    def receive(self, data: bytes) -> Effects[None]:
        """Take bytes of the server.

        Raises:
            ProtocolError: side=upstream. UpstreamUnavailable: it ends the session.
        """
        self._codec.feed(data)
        while (packet := self._codec.next()) is not None:
            if self.step is None:
                if packet.payload[0] == m.ERR:
                    raise UpstreamUnavailable(
                        f"The database ended the session (error {m.decode_err(packet.payload).code})."
                    )
                raise ProtocolError("The database sent what nobody asked for.", side="upstream")
            if self.step.stage is Stage.ROWS and packet.payload[0] < m.EOF:  # a row, and no end
                if not self.step.is_told:
                    self._pending.append(packet.payload)
                continue
            if self.step.kind == "hidden":
                self._answer_hidden(self.step, packet.payload)
            else:
                yield from self._packet(self.step, packet.payload)
        if self.step is not None:
            yield from self._flush_rows(self.step)
        yield from self._release()

    def running(self) -> object | None:
        """The command that the server works on now."""
        return self.step if self.step is not None and self.step.kind in ("query", "execute") else None

    def cut(self, reached: Reached) -> Effects[None]:
        """End the running command with an error."""
        if self.step is not None and self.step.cut is None:
            self.step.cut = reached
            yield CancelUpstream(self._id, b"")

    def abandon(self) -> list[Intent]:
        """The connection is gone."""
        step, self.step = self.step, None
        return [step.intent] if step is not None and step.intent is not None and not step.is_told else []

    # --- packets ----------------------------------------------------------------------------------------------------

    def _packet(self, step: Step, payload: bytes) -> Effects[None]:
        match step.stage:
            case Stage.FIRST:
                yield from self._first(step, payload)
            case Stage.COLUMNS | Stage.PARAMS:
                column = m.decode_column(payload)
                step.left -= 1
                if step.stage is Stage.COLUMNS:
                    step.columns.append(column)
                if not step.left:
                    step.stage = Stage.COLUMNS_END if step.stage is Stage.COLUMNS else Stage.PARAMS_END
                self._emit(step, payload)
            case Stage.COLUMNS_END | Stage.PARAMS_END:
                yield from self._columns_end(step, payload)
            case Stage.ROWS:
                yield from self._row(step, payload)

    def _first(self, step: Step, payload: bytes) -> Effects[None]:
        kind = payload[0]
        if kind == m.ERR:
            yield from self._error(step, payload)
        elif kind == m.LOCAL_INFILE:
            raise ProtocolError("The database asked for a file of the client, which it never gets.", side="upstream")
        elif step.kind == "prepare" and kind == m.OK:
            yield from self._prepared(step, payload)
        elif kind == m.OK or (step.kind == "simple" and m.is_eof(payload)):
            yield from self._ok(step, payload)
        elif step.kind in ("query", "execute"):
            count = m.Cursor(payload, "upstream").lenenc()
            if not 0 < count <= MAX_COLUMNS:
                raise ProtocolError("The database told of a number of columns that is none.", side="upstream")
            step.columns, step.left, step.stage = [], count, Stage.COLUMNS
            self._emit(step, payload)
        else:
            raise ProtocolError("The database answered what was not asked.", side="upstream")

    def _prepared(self, step: Step, payload: bytes) -> Effects[None]:
        found = m.decode_prepared(payload)
        step.on_prepared(found)
        step.left, step.later_columns = found.params, found.columns
        self._next_of_prepared(step)
        if step.stage is Stage.FIRST:
            yield from self._finish(step, payload, "ok")
        else:
            self._emit(step, payload)

    def _next_of_prepared(self, step: Step) -> None:
        if step.left:
            step.stage = Stage.PARAMS
        elif step.later_columns:
            step.left, step.later_columns, step.stage = step.later_columns, 0, Stage.COLUMNS
        else:
            step.stage = Stage.FIRST

    def _columns_end(self, step: Step, payload: bytes) -> Effects[None]:
        if payload[0] == m.ERR and step.kind == "execute":  # a cursor's query runs only now
            yield from self._error(step, payload)
            return
        if not m.is_eof(payload):
            raise ProtocolError("The database did not end its columns.", side="upstream")
        if step.kind == "prepare":
            self._next_of_prepared(step)
            if step.stage is Stage.FIRST:
                yield from self._finish(step, payload, "ok")
            else:
                self._emit(step, payload)
            return
        step.stage = Stage.ROWS
        eof = m.decode_eof(payload)
        has_cursor = step.on_cursor is not None and bool(eof.status & m.SERVER_STATUS_CURSOR_EXISTS)
        masked: tuple[int, ...] = ()
        reader = self.reader
        if reader is not None and reader.masker is not None:
            try:
                step.mask = RowMask(
                    reader.masker, step.columns, step.result,
                    is_binary=step.kind == "execute", redacts=reader.redacts,
                )  # fmt: skip
            except Unmaskable as error:
                if reader.is_strict:
                    yield from self._cut_off(step, error)
                    self.step = None if has_cursor else step
                    return
                step.mask = RowMask(reader.masker, step.columns, Result(), is_binary=step.kind == "execute")
            masked = step.mask.classified
        if self.tape is not None and not step.is_told:
            self.tape.columns(step.columns, masked)
        if has_cursor and step.on_cursor is not None and step.cut is None:
            step.on_cursor(Cursor(step.columns, step.mask))
        if has_cursor:
            yield from self._answered(step, eof)
        else:
            self._emit(step, eof.encode())

    def _row(self, step: Step, payload: bytes) -> Effects[None]:
        if m.is_eof(payload):
            yield from self._flush_rows(step)
            eof = m.decode_eof(payload)
            if eof.status & m.SERVER_MORE_RESULTS_EXISTS:
                self.status = eof.status
                self._emit(step, payload)
                step.stage = Stage.FIRST
            else:
                yield from self._answered(step, eof)
        elif payload[0] == m.ERR:
            yield from self._flush_rows(step)
            yield from self._error(step, payload)
        elif not step.is_told:
            self._pending.append(payload)

    def _answered(self, step: Step, eof: m.Eof) -> Effects[None]:
        """The EOF that ends an answer with columns."""
        self.status = eof.status
        if step.cut is not None:
            yield from self._cut_off(step, step.cut)
            self.step = None
        else:
            yield from self._finish(step, eof.encode(), "ok")

    def _flush_rows(self, step: Step) -> Effects[None]:
        rows, self._pending = self._pending, []
        if not rows or step.is_told:
            return
        size_bytes = sum(map(len, rows))
        before = step.cursor.rows if step.cursor is not None else step.rows
        reached = self._meter.take(before + len(rows), size_bytes)
        if reached is not None:
            yield from self._cut_off(step, reached)
            yield ToClient(self._taken())
            yield CancelUpstream(self._id, b"")
            return
        step.rows += len(rows)
        step.size_bytes += size_bytes
        if step.cursor is not None:
            step.cursor.rows += len(rows)
        if step.mask is not None:
            rows = step.mask.rows(rows)
        if self.tape is not None:
            self.tape.rows(rows, step.columns, is_binary=step.kind == "execute")
        if not step.is_told:
            out, sequence = self._out, self._sequence
            for row in rows:
                out.append(m.packet(sequence, row))
                sequence += 1 + len(row) // m.MAX_PAYLOAD
            self._sequence = sequence

    def _ok(self, step: Step, payload: bytes) -> Effects[None]:
        if m.is_eof(payload) and payload[0] == m.EOF:
            yield from self._finish(step, payload, "ok")
            return
        found = m.decode_ok(payload)
        self.status = found.status
        if found.status & m.SERVER_MORE_RESULTS_EXISTS:
            self._emit(step, payload)
            return
        step.on_ok()
        step.rows += found.affected_rows
        if self.tape is not None and not step.is_told and step.intent is not None:
            self.tape.message("COMPLETE", f"OK {found.affected_rows}")
        yield from self._finish(step, payload, "ok")

    def _error(self, step: Step, payload: bytes) -> Effects[None]:
        if step.cut is not None:
            yield from self._cut_off(step, step.cut)
            self.step = None
            return
        error = self._masked(m.decode_err(payload))
        step.code = f"{error.sqlstate}:{error.code}"
        if self.tape is not None and not step.is_told and step.intent is not None:
            self.tape.message("ERROR", error.message, error.sqlstate)
        yield from self._finish(step, error.encode(), "error")

    def _masked(self, error: m.Err) -> m.Err:
        reader = self.reader
        if reader is None or reader.masker is None:
            return error
        if reader.masker.has_columns and error.code not in _PLAIN_ERRORS:
            return msgspec.structs.replace(error, message=_HIDDEN_TEXT)
        text = reader.masker.mask_text(error.message.encode()).decode("utf-8", "replace")
        return msgspec.structs.replace(error, message=text)

    def _finish(self, step: Step, payload: bytes, status: Literal["ok", "error"]) -> Effects[None]:
        """The answer's last packet: the outcome is recorded before it is given out."""
        if not step.is_told and step.intent is not None:
            yield Conclude(step.intent, status, step.code, step.rows, step.size_bytes)
        self._emit(step, payload)
        self.step = None

    def _cut_off(self, step: Step, why: Reached | Unmaskable) -> Effects[None]:
        """The client hears an error in the place of what comes; the rest of the answer is dropped."""
        step.cut = why
        if step.is_told:
            return
        if step.intent is not None:
            yield Conclude(step.intent, "error", why.rule, step.rows, step.size_bytes)
        error = answers.cut(why)
        if self.tape is not None:
            self.tape.message("ERROR", error.message, error.sqlstate)
        self._emit(step, error.encode())
        step.is_told = True

    def _answer_hidden(self, step: Step, payload: bytes) -> None:
        rows = step.asked
        if rows is None:  # a statement without rows
            if payload[0] == m.ERR:
                raise UpstreamUnavailable("The database does not let the session be as it was pinned; connect again.")
            self.status = m.decode_ok(payload).status
            self.step = None
            return
        rows.take(payload)
        if rows.is_over:
            self.step = None

    def _emit(self, step: Step, payload: bytes) -> None:
        if step.is_told:
            return
        self._out.append(m.packet(self._sequence, payload))
        self._sequence += 1 + len(payload) // m.MAX_PAYLOAD

    def _taken(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)

    def _release(self) -> Effects[None]:
        if self._out:
            yield ToClient(self._taken())
