"""One MySQL session between an agent and a server: which command needs what, in which order.

Theory of operation. `greet`, `from_client` and `from_upstream` are generators that yield what is to be done. The
protocol is one of questions and answers, so commands are taken one at a time: what a client sends ahead waits. Each
text is classified and decided as a whole, its intent is recorded, then it is forwarded; an execution of a prepared
statement is decided again, with its parameters. A refused command never reaches the server: the client gets an ERR
packet in its place, and the session stays as it is.

The gateway asks the server questions of its own between commands (`pinned`), where masks depend on what a name is, and
where code that ran may have changed how the session reads. Their answers are nobody's but the gateway's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import (
    CancelUpstream,
    Close,
    Conclude,
    Effects,
    Intent,
    Offload,
    Opened,
    Receipt,
    ToClient,
    ToUpstream,
    Wait,
)
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.mysql import answers, utility
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.classify import Classified
from chaperone_sidecar.protocols.mysql.codec import Codec
from chaperone_sidecar.protocols.mysql.context import UnknownName
from chaperone_sidecar.protocols.mysql.gate import Apart, Gate
from chaperone_sidecar.protocols.mysql.kills import Kills
from chaperone_sidecar.protocols.mysql.opening import Opening
from chaperone_sidecar.protocols.mysql.pinned import Pinned
from chaperone_sidecar.protocols.mysql.prepared import (
    FETCH_BYTES,
    HEAD_BYTES,
    MAX_STATEMENTS,
    Statement,
    bind,
    long_packets,
    run,
)
from chaperone_sidecar.protocols.mysql.reading import Reader, changed_reading
from chaperone_sidecar.protocols.mysql.rows import Cursor
from chaperone_sidecar.protocols.mysql.tape import Tape
from chaperone_sidecar.protocols.mysql.upstream_side import Kind, Stage, Step, UpstreamSide

if TYPE_CHECKING:  # it loads a compressor, which a gateway that records no results does not carry
    from chaperone_sidecar.recording.results import ResultLog

_NOT_COVERED: Final = "not-covered"
_EFFECT_OF: Final = {
    m.COM_CHANGE_USER: Effect.PRIVILEGE, m.COM_BINLOG_DUMP: Effect.TUNNEL, m.COM_BINLOG_DUMP_GTID: Effect.TUNNEL,
    m.COM_REGISTER_SLAVE: Effect.TUNNEL, 0x20: Effect.TUNNEL, m.COM_PROCESS_KILL: Effect.MAINTAIN,
}  # fmt: skip


class Session:
    """One session; see the module's docstring.

    Args:
        reader: of the target.
        meter: counts what the session moves.
        connection_id: what the client is told; by it KILL QUERY finds the session.
        nonce: 20 bytes without NUL for the client's log-in, which proves nothing.
        version: gives the version that the server calls itself; b"" where it cannot be had.
        is_own: whether a number is one of this pod's sessions at the target.
        apart: does work elsewhere than on the event loop.
        kills: of this session's statements.
        asks_user: whether the client is asked for the token of the person on whose behalf it acts.
    """

    def __init__(
        self,
        reader: Reader,
        meter: Meter,
        connection_id: int,
        nonce: bytes,
        version: Callable[[], Awaitable[bytes]],
        is_own: Callable[[int], bool],
        apart: Apart,
        kills: Kills,
        *,
        asks_user: bool = False,
    ) -> None:
        self._reader = reader
        self._client = Codec("client")
        self._opening = Opening(self._client, connection_id, nonce, version, asks_user=asks_user)
        self._upstream = UpstreamSide(meter, connection_id)
        self._upstream.reader = reader
        self._gate = Gate(reader, self._upstream, apart)
        self._is_own = is_own
        self._kills = kills
        kills.running = self._upstream.running
        self._receipt: Receipt | None = None
        self._is_asked = False  # a command of the client is being decided on, so it waits for an answer
        self._statements: dict[int, Statement] = {}

    def greet(self) -> Effects[None]:
        """Say what a server says first."""
        yield from self._opening.greet()

    def from_client(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the client.

        Raises:
            ProtocolError: side=client; the driver answers with `fatal` and closes.
        """
        self._client.feed(data)
        while (packet := self._client.next()) is not None:
            if self._receipt is None:
                opened: Opened | None = yield from self._opening.packet(packet)
                if opened is not None:
                    yield from self._begin(opened, packet.next_sequence)
                elif self._opening.is_over:
                    return
            else:
                self._client.expect(0)
                if not packet.payload:
                    raise ProtocolError("A command without its first byte came.")
                if self._upstream.is_busy:
                    yield Wait(lambda: not self._upstream.is_busy)
                if self._kills.are_due:
                    yield Offload(self._kills.settled)
                    yield from self._gate.reads.absorb()
                self._is_asked = True
                yield from self._command(packet.payload)
                self._is_asked = False

    def from_upstream(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the server.

        Raises:
            ProtocolError: side=upstream.
        """
        yield from self._upstream.receive(data)

    def cut(self, reached: Reached) -> Effects[None]:
        """The running command has passed a limit: end it with an error."""
        yield from self._upstream.cut(reached)

    def running(self) -> object | None:
        """The command that the server works on now, if any."""
        return self._upstream.running()

    def abandoned(self) -> list[Intent]:
        """The connection is gone: intents that still owe an outcome ("aborted")."""
        return self._upstream.abandon()

    def fatal(self, error: Exception) -> bytes:
        """The native last word to the client before the connection is closed."""
        if self._receipt is None:
            sequence = self._opening.sequence
        else:  # what nobody asked for has the number 0, which clients take for the server's going
            sequence = self._upstream.next_sequence or int(self._is_asked)
        return m.packet(sequence, answers.fatal(error).encode())

    def record(self, log: ResultLog) -> None:
        """Record what the client is shown from when the session is open on."""
        self._upstream.tape = Tape(log)

    def show(self, data: bytes | bytearray | memoryview) -> None:
        """The client is about to get what was made of the last answers.

        Raises:
            SpoolFull: no room.
        """
        if self._upstream.tape is not None:
            self._upstream.tape.show()

    def _begin(self, opened: Opened, sequence: int) -> Effects[None]:
        """The server is there: tell the client, and from now on decide on what it sends."""
        self._receipt = opened.receipt
        self._gate.pinned = Pinned(self._upstream, opened.receipt, dict(opened.parameters))
        self._client.expect(0)
        yield ToClient(self._opening.welcome(sequence))

    # --- commands ---------------------------------------------------------------------------------------------------

    def _command(self, payload: bytes) -> Effects[None]:
        kind = payload[0]
        if kind == m.COM_QUIT:
            yield ToUpstream(m.packet(0, payload[:1]), self._opened())
            yield Close("client ended the session")
        elif kind == m.COM_PING:
            yield from self._send(Step("simple"), payload[:1], self._opened())
        elif kind == m.COM_STMT_SEND_LONG_DATA:
            self._long_data(payload)
        elif kind == m.COM_STMT_CLOSE:
            if self._statements.pop(_number(payload), None) is not None:
                yield ToUpstream(m.packet(0, payload[:5]), self._opened())
        else:
            yield from self._gate.reads.settle()
            yield from self._decided(kind, payload)

    def _decided(self, kind: int, payload: bytes) -> Effects[None]:
        if kind == m.COM_QUERY:
            yield from self._query(payload[1:])
        elif kind == m.COM_STMT_PREPARE:
            yield from self._prepare(payload[1:])
        elif kind == m.COM_STMT_EXECUTE:
            yield from self._execute(payload)
        elif kind == m.COM_STMT_FETCH:
            yield from self._fetch(payload)
        elif kind == m.COM_STMT_RESET:
            yield from self._reset_statement(payload)
        elif kind == m.COM_INIT_DB:
            yield from self._init_db(payload)
        elif kind == m.COM_RESET_CONNECTION:
            yield from self._session_command("reset_connection", payload[:1], "connection:reset", self._forget)
        elif kind == m.COM_SET_OPTION:
            yield from self._session_command("set_option", payload[:3], "setting:multi_statements", lambda: None)
        else:
            yield from self._not_covered(kind, payload)

    def _query(self, text: bytes) -> Effects[None]:
        classified = yield from self._gate.classify(text)
        intent = yield from self._gate.admit("query", text, classified)
        if intent is None:
            return
        if classified.kills is not None:
            yield from self._kill(classified.kills, intent)
            return
        step = self._step("query", classified, intent)
        yield from self._send(step, bytes((m.COM_QUERY,)) + classified.sent(text), intent.receipt)

    def _prepare(self, text: bytes) -> Effects[None]:
        if len(self._statements) >= MAX_STATEMENTS:
            yield from self._gate.say(answers.too_many_statements())
            return
        classified = yield from self._gate.classify(text)
        if classified.kills is not None:
            classified = Classified(changed_reading(), is_unknown=True)
        intent = yield from self._gate.admit("parse", text, classified)
        if intent is None:
            return
        statement = Statement(text, classified)

        def keep(found: m.Prepared) -> None:
            statement.params = found.params
            self._statements[found.statement_id] = statement

        step = Step("prepare", intent, on_prepared=keep)
        yield from self._send(step, bytes((m.COM_STMT_PREPARE,)) + classified.sent(text), intent.receipt)

    def _execute(self, payload: bytes) -> Effects[None]:
        if len(payload) < HEAD_BYTES:
            raise ProtocolError("An execution ends before what it says is in it.")
        statement = self._statements.get(_number(payload))
        if statement is None:
            yield from self._gate.say(answers.unknown_statement())
            return
        if statement.is_overfull:
            statement.clear()
            yield from self._gate.say(answers.too_large())
            return
        values, types = bind(statement, payload)
        ahead = long_packets(payload[1:5], statement)
        sent = run(payload, statement, types)
        bound = sent[HEAD_BYTES:] + b"".join(ahead)
        classified = statement.classified
        intent = yield from self._gate.admit("execute", statement.text, classified, bound, values)
        statement.clear()
        if intent is None:
            return
        step = self._step("execute", classified, intent)
        statement.types, statement.cursor, statement.allowed = types, None, self._gate.revision
        if sent[5]:

            def keep(cursor: Cursor) -> None:
                statement.cursor = cursor

            step.on_cursor = keep
        yield from self._send(step, sent, intent.receipt, b"".join(ahead))

    def _fetch(self, payload: bytes) -> Effects[None]:
        """More rows of a cursor: decided again, but people are not asked for what they, or the same policy, allowed."""
        statement = self._statements.get(_number(payload))
        if len(payload) != FETCH_BYTES:
            raise ProtocolError("A fetch ends before what it says is in it.")
        if statement is None:
            yield from self._gate.say(answers.unknown_statement())
            return
        cursor = statement.cursor
        if cursor is None:
            yield from self._gate.say(answers.no_cursor())
            return
        intent = yield from self._gate.admit(
            "fetch", statement.text, statement.classified, allowed=statement.allowed
        )  # fmt: skip
        if intent is not None:
            step = Step(
                "execute", intent, stage=Stage.ROWS, columns=cursor.columns, mask=cursor.mask, cursor=cursor
            )  # fmt: skip
            yield from self._send(step, payload, intent.receipt)

    def _long_data(self, payload: bytes) -> None:
        statement = self._statements.get(_number(payload))
        if statement is not None and len(payload) >= 7:
            held_bytes = sum(one.long_bytes for one in self._statements.values())
            statement.add(int.from_bytes(payload[5:7], "little"), payload[7:], held_bytes)

    def _reset_statement(self, payload: bytes) -> Effects[None]:
        statement = self._statements.get(_number(payload))
        if statement is None:
            yield from self._gate.say(answers.unknown_statement())
            return
        statement.clear()
        statement.cursor = None
        yield from self._send(Step("simple"), payload[:5], self._opened())

    def _init_db(self, payload: bytes) -> Effects[None]:
        name = payload[1:].decode("utf-8", "replace")
        try:
            told = utility.use(name, self._gate.reads.context)
        except UnknownName as error:
            facts = Facts((Access(Effect.UNKNOWN),), Resolution.UNRESOLVED, str(error))
            classified = Classified(facts, is_unknown=True)
        else:
            classified = Classified(Facts(told.accesses, Resolution.NONE), database=told.database)
        intent = yield from self._gate.admit("init_db", payload[1:], classified)
        if intent is not None:
            yield from self._send(self._step("simple", classified, intent), payload, intent.receipt)

    def _session_command(self, kind: str, payload: bytes, subject: str, on_ok: Callable[[], None]) -> Effects[None]:
        classified = Classified(Facts((Access(Effect.SESSION, subject),), Resolution.NONE))
        intent = yield from self._gate.admit(kind, payload[1:], classified)
        if intent is not None:
            yield from self._send(Step("simple", intent, on_ok=on_ok), payload, intent.receipt)

    def _not_covered(self, kind: int, payload: bytes) -> Effects[None]:
        name = m.COMMAND_NAMES.get(kind, f"command {kind}")
        access = Access(_EFFECT_OF.get(kind, Effect.UNKNOWN), f"protocol:{name.lower().replace(' ', '_')}")
        command = Command(name.lower(), b"", Facts((access,), Resolution.NONE))
        why = f"{name} is not passed on; use a statement for it." if kind != m.COM_CHANGE_USER else (
            "COM_CHANGE_USER is not passed on; open a new session."
        )  # fmt: skip
        decision = Decision(Action.DENY, "", _NOT_COVERED, why, "")
        refused = yield from self._gate.intend(command, decision)
        yield from self._gate.say(refused if isinstance(refused, m.Err) else answers.refusal(decision, command))

    def _kill(self, number: int, intent: Intent) -> Effects[None]:
        """End what another session of this pod runs."""
        if not self._is_own(number):
            yield Conclude(intent, "error", "HY000:1094")
            yield from self._gate.say(answers.unknown_thread(number))
            return
        yield CancelUpstream(number, b"")
        yield Conclude(intent, "ok")
        yield ToClient(m.packet(1, m.Ok(status=self._upstream.status).encode()))

    # --- going upstream ---------------------------------------------------------------------------------------------

    def _step(self, kind: Kind, classified: Classified, intent: Intent) -> Step:
        reads = self._gate.reads

        def done() -> None:
            if classified.database is not None:
                reads.use(classified.database)

        reads.follow(classified)
        return Step(kind, intent, self._gate.result(classified), on_ok=done)

    def _send(self, step: Step, payload: bytes, receipt: Receipt, ahead: bytes = b"") -> Effects[None]:
        """A command goes upstream; `ahead` are packets that get no answer."""
        self._upstream.begin(step)
        yield ToUpstream(ahead + m.packet(0, payload), receipt)

    def _forget(self) -> None:
        """The server has reset the session: its prepared statements are gone, and what it was pinned to."""
        self._statements.clear()
        self._gate.reads.forget()

    def _opened(self) -> Receipt:
        if self._receipt is None:
            raise ProtocolError("The session has not started.")
        return self._receipt


def _number(payload: bytes) -> int:
    """The statement that a command names.

    Raises:
        ProtocolError: side=client; it names none.
    """
    if len(payload) < 5:
        raise ProtocolError("A command names no prepared statement.")
    return int.from_bytes(payload[1:5], "little")
