"""The driver: runs one session's generators on sockets, spool, policy and time.

Theory of operation. Each direction is a generator that is run to its end for each delivery of bytes; a direction that
has to wait (for OPA, for the backend, for the other direction) is paused together with its transport, and what still
arrives is kept for it. What a run wants to send is collected, and `commit` hands it over at the end of the run, the
upstream first. A record is in the spool when its effect has been executed; so no byte of a command is sent before it is
in the kernel, and no end of a command is told before its outcome is. Where the identity asks for more, an intent is
answered once it is that sure, and what the client hears waits in the `Outbox`.

Everything here ends: start-up, log-in, TLS and questions have deadlines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from chaperone_sidecar import metrics
from chaperone_sidecar.approval.binding import Place
from chaperone_sidecar.approval.hold import Holds
from chaperone_sidecar.command import Command
from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.users import Users
from chaperone_sidecar.decision import CANCELLED, Action, Decision
from chaperone_sidecar.effects import (
    Admit,
    Ask,
    CancelUpstream,
    Close,
    Conclude,
    Hold,
    Identify,
    Intend,
    Intent,
    Offload,
    Opened,
    OpenUpstream,
    SessionEffect,
    StartTls,
    ToClient,
    ToUpstream,
    Wait,
)
from chaperone_sidecar.errors import (
    ChaperoneError,
    LimitReached,
    SpoolFull,
    Suspended,
    Unwitnessed,
    UpstreamUnavailable,
    UserRefused,
)
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import RULE_PREFIX, Reached
from chaperone_sidecar.link import Link
from chaperone_sidecar.outbox import Outbox
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.recording.assurance import Assurance
from chaperone_sidecar.recording.recorder import Recorder, SessionLog

if TYPE_CHECKING:
    from chaperone_sidecar.recording.results import ResultLog

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 15.0  # from connect to a session that is open; a client on the same node needs milliseconds
OFFLOAD_TIMEOUT_S: Final = 10.0  # the worst text of 1 MiB took 1.3 s to be parsed
WATCH_S: Final = 0.25  # how often the present command's duration is looked at: limits are whole seconds
CUT_TIMEOUT_S: Final = 10.0  # a backend that has not ended a cancelled command by then is left alone with it
MAX_PENDING_BYTES: Final = 4 << 20  # arrived while its direction waits; the transport is paused, so one read at most
MAX_HELD_BYTES: Final = 256 << 10  # read behind a command that waits for people, so that a client that goes is noticed

type Effects = Generator[SessionEffect, Any, None]


class Session(Protocol):
    """What a protocol's package gives the driver."""

    def from_client(self, data: bytes) -> Effects:
        """Take plain bytes from the client."""
        ...

    def from_upstream(self, data: bytes) -> Effects:
        """Take plain bytes from the backend."""
        ...

    def cut(self, reached: Reached) -> Effects:
        """End the running command with an error that names the limit."""
        ...

    def running(self) -> object | None:
        """The command that the backend works on now: the same object for as long as it is the same command."""
        ...

    def abandoned(self) -> list[Intent]:
        """Intents that owe an outcome when the connection is gone."""
        ...

    def fatal(self, error: Exception) -> bytes:
        """The native last word."""
        ...

    def record(self, log: ResultLog) -> None:
        """Say to the log what the client is shown from now on."""
        ...

    def show(self, data: bytes | bytearray | memoryview) -> None:
        """The client is about to get this; raises `SpoolFull`."""
        ...


class Connector(Protocol):
    """Opens backends for sessions; one per protocol."""

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """Connect `link` and log in; returns what the session learns (its receipt is replaced), early bytes, address.

        Raises:
            UpstreamUnavailable: with a text for the client.
        """
        ...

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """Cancel what the session with this key runs; silent when there is none."""
        ...

    def on_cancel(self, opened: Opened, interrupt: Callable[[], bool]) -> None:
        """Ask `interrupt` first when the session with this key is to be cancelled; true means that this was all."""
        ...

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """The session is over; its key cancels nothing any more. What it still runs is cancelled when that is said."""
        ...


class _Direction:
    """One side's generator, run to its end for each delivery."""

    def __init__(self, driver: Driver, start: Callable[[bytes], Effects]) -> None:
        self._driver = driver
        self._start = start
        self._pending = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.link: Link | None = None

    @property
    def is_waiting(self) -> bool:
        return self._task is not None

    def deliver(self, data: bytes) -> None:
        if self._task is not None:
            self._pending += data
            if self.link is not None and len(self._pending) > MAX_HELD_BYTES:
                self.link.pause(True)
            if len(self._pending) > MAX_PENDING_BYTES:
                self._driver.fail(ChaperoneError("More arrived than can be kept while the session waits."))
            return
        self._run(self._start(data), None)

    def run(self, generator: Effects) -> None:
        """Run something else on this side; it must not be waiting."""
        self._run(generator, None)

    def _run(self, generator: Effects, answer: object) -> None:
        driver = self._driver
        try:
            effect = generator.send(answer)
            while True:
                try:
                    found = driver.execute(effect)
                except ChaperoneError as error:
                    effect = generator.throw(error)
                    continue
                if type(found) is CoroutineType:  # an instance check of an abstract class costs a microsecond
                    driver.commit()
                    if driver.is_over:  # what the client was to be shown could not be recorded
                        found.close()
                        return
                    if self.link is not None:
                        # While people think, a client may go: who does not read from it does not see that.
                        self.link.pause(type(effect) is not Hold or driver.is_choked(self.link))
                    self._task = driver.spawn(self._resume(generator, found))
                    return
                effect = generator.send(found)
        except StopIteration:
            driver.commit()
        except ChaperoneError as error:
            driver.fail(error)

    async def _resume(self, generator: Effects, awaited: Coroutine[Any, Any, object]) -> None:
        try:
            answer = await awaited
        except ChaperoneError as error:
            self._task = None
            self._throw(generator, error)
        else:
            self._task = None
            self._run(generator, answer)
        if self._task is None and not self._driver.is_over:
            if self._pending:
                waiting, self._pending = bytes(self._pending), bytearray()
                self.deliver(waiting)
            if self._task is None and self.link is not None:
                self.link.pause(self._driver.is_choked(self.link))

    def _throw(self, generator: Effects, error: ChaperoneError) -> None:
        try:
            effect = generator.throw(error)
        except StopIteration:
            self._driver.commit()
        except ChaperoneError as other:
            self._driver.fail(other)
        else:
            self._run(_resumed(generator, effect), None)


def _resumed(generator: Effects, effect: SessionEffect) -> Effects:
    """The rest of a generator whose next effect is already known."""
    while True:
        try:
            answer = yield effect
        except ChaperoneError as error:
            effect = generator.throw(error)
            continue
        try:
            effect = generator.send(answer)
        except StopIteration:
            return


class Driver:
    """Runs one session.

    Args:
        target: what the connection's original destination belongs to.
        session: the protocol's session.
        meter: counts what the session does against the limits of policy.
        connector: opens the backend.
        recorder, decider, holds: the services of the process.
        accept_context: makes the TLS context towards the client.
        on_over: told when the session is over.
        shown_client: what records may show of a name that the client gives itself.
        estimate: how many rows a command in a database will reach, for policies that ask.
        users: says who is behind a token; None where nobody is asked for one.
        on_refused: told when a session is refused for want of one.
        max_result_bytes: kept of what each command shows; 0: nothing is.
    """

    def __init__(
        self,
        target: Target,
        session: Session,
        meter: Meter,
        connector: Connector,
        recorder: Recorder,
        decider: Decider,
        holds: Holds,
        accept_context: Callable[[], Any],
        on_over: Callable[[Driver], None],
        shown_client: Callable[[str], str],
        estimate: Callable[[str, Command], Awaitable[int | None]],
        users: Users | None = None,
        on_refused: Callable[[], None] = lambda: None,
        max_result_bytes: int = 0,
    ) -> None:
        self.target = target
        self._session = session
        self._meter = meter
        self._connector = connector
        self._recorder = recorder
        self._decider = decider
        self._holds = holds
        self._held: asyncio.Task[Decision] | None = None
        self._accept_context = accept_context
        self._on_over = on_over
        self._shown_client = shown_client
        self._estimate = estimate
        self._users = users
        self._on_refused = on_refused
        self._expiry: asyncio.TimerHandle | None = None
        self._log: SessionLog = recorder.new_session(target.name)
        self._opened: Opened | None = None
        self._max_result_bytes = max_result_bytes
        self._results: ResultLog | None = None  # from when the session is open on
        self._place = Place(self._log.id, target.name, target.protocol)
        self._to_upstream: list[bytes | bytearray | memoryview] = []
        self._to_client: list[bytes | bytearray | memoryview] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._unassured: Intent | None = None
        self._is_client_full = False
        self._choked: set[Link] = set()
        self._is_watching = False
        self._is_cut = False
        self.is_over = False
        self._client_side = _Direction(self, session.from_client)
        self._upstream_side = _Direction(self, session.from_upstream)
        self.client = Link(self._client_lost, self._start)
        self.upstream = Link(self._upstream_lost)
        self._client_side.link = self.client
        self._outbox = Outbox(self.client, recorder, self._is_whole, self._choke_upstream, self.fail)
        self._handlers: dict[type, Callable[[Any], object]] = {
            Ask: self._ask,
            Admit: self._admit,
            Intend: self._intend,
            Conclude: self._conclude,
            ToUpstream: self._send_upstream,
            ToClient: self._send_client,
            Hold: self._hold,
            StartTls: self._start_tls,
            Identify: self._identify,
            OpenUpstream: self._open,
            CancelUpstream: self._cancel,
            Wait: self._wait,
            Offload: self._offload,
            Close: self._close,
        }

    def cut(self, error: ChaperoneError, *, is_stopping: bool = False) -> None:
        """End the session from outside with a native last word; its backend stops working.

        `is_stopping`: because the gateway stops, so that what it waits for is asked for again by the next start.
        """
        self._is_cut = True
        if is_stopping:
            self._holds.leave(self._log.id, is_stopping=True)
        self.fail(error)

    def follow_limits(self) -> None:
        """The limits are others now. Most are looked at with each command; how long it runs needs a clock."""
        if self._opened is not None and not self._is_watching:
            self._watch()

    # --- for the directions -----------------------------------------------------------------------------------------

    def execute(self, effect: SessionEffect) -> object:
        """Do what a session asks; a coroutine is the answer that comes later."""
        if self.is_over:
            raise ChaperoneError("The session is over.")
        return self._handlers[type(effect)](effect)

    def commit(self) -> None:
        """Upstream, then client; what covers these bytes is in the spool since its effect was executed.

        What the client is shown is recorded before it is written, where it is recorded; without room the session ends.
        """
        if self._to_upstream:
            self._log.bytes_in += _hand_over(self.upstream, self._to_upstream)
        if self._to_client:
            if self._results is not None:
                try:
                    self._results.flush()
                except SpoolFull as error:
                    self.fail(error)
                    return
                self._outbox.owed_seq = self._recorder.next_seq - 1
            self._log.bytes_out += _hand_over(self._outbox, self._to_client)
        self._changed.set()

    def spawn(self, work: Any) -> asyncio.Task[None]:  # noqa: ANN401 - a coroutine of any kind
        """Run a direction's wait as a task that ends with the session."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def fail(self, error: Exception) -> None:
        """End the session with the protocol's last word."""
        if self.is_over:
            return
        metrics.session_failed(self.target.name, type(error).__name__)
        self._to_upstream.clear()
        words = self._session.fatal(error)
        if self._results is not None and not self._is_recorded(words, error):
            self._to_client.clear()
        self._end(str(error) if isinstance(error, Suspended) else type(error).__name__, words)

    def _is_recorded(self, words: bytes, error: Exception) -> bool:
        """Whether what the client has not got yet, and the last words after it, are in the spool.

        Our own words are said also where they are not: that the session ends for want of room is in its last record.
        """
        if self._results is None or isinstance(error, SpoolFull):
            return False
        try:
            self._session.show(words)
            self._results.flush()
        except SpoolFull:
            return False
        return True

    def is_choked(self, link: Link) -> bool:
        """Whether reading from `link` has to wait for the other side to drain."""
        return link in self._choked

    # --- effects ----------------------------------------------------------------------------------------------------

    def _ask(self, effect: Ask) -> object:
        found = self._decider.remembered(self.target.name, effect.command, self._log.user)
        if found is not None:
            return found
        command = effect.command
        estimate = partial(self._estimate, self._place.database, command)
        return self._decider.decide(
            self.target.name, self.target.protocol, command, estimate, is_approved=effect.is_approved,
            user=self._log.user,
        )  # fmt: skip

    def _admit(self, effect: Admit) -> Decision:
        reached = self._meter.admit(effect.command)
        if reached is None:
            return effect.decision
        metrics.limit_reached(self.target.name, reached.name)
        return reached.decision(effect.decision.revision)

    async def _hold(self, effect: Hold) -> Decision:
        admit = partial(self._admit, Admit(effect.command, effect.decision))
        held = asyncio.create_task(self._holds.hold(self._place, effect.command, effect.decision, effect.shown, admit))
        self._held = held
        try:
            return await held
        except asyncio.CancelledError:
            if self._held is held:  # the session ends
                raise
        finally:
            self._held = None
        revision = effect.decision.revision
        return Decision(Action.DENY, "", CANCELLED, "the client cancelled it while it waited for approval.", revision)

    def _interrupt(self) -> bool:
        """The client cancels: if people are being asked, that ends here."""
        held, self._held = self._held, None
        return held is not None and held.cancel()

    def _intend(self, effect: Intend) -> object:
        intent = self._recorder.intend(self._log, effect.command, effect.decision)
        metrics.command(self.target.name, effect.decision.action)
        assurance = self._recorder.assurance
        return intent if assurance is None else self._assured(intent, effect.decision, assurance)

    async def _assured(self, intent: Intent, decision: Decision, assurance: Assurance) -> Intent:
        """An intent once it is sure enough for what comes next; the session does not know of it before."""
        self._unassured = intent
        try:
            if decision.action is Action.ALLOW:
                await assurance.sent(intent.receipt.seq)
            else:
                await assurance.told(intent.receipt.seq)
        except Unwitnessed:
            self._recorder.conclude(self._log, intent, "refused", "unwitnessed")
            raise
        finally:
            self._unassured = None
        return intent

    def _conclude(self, effect: Conclude) -> object:
        if effect.code.startswith(RULE_PREFIX):
            metrics.limit_reached(self.target.name, effect.code.removeprefix(RULE_PREFIX))
        receipt = self._recorder.conclude(
            self._log, effect.intent, effect.status, effect.code, effect.rows, effect.size_bytes
        )
        self._outbox.owed_seq = receipt.seq
        return receipt

    def _send_upstream(self, effect: ToUpstream) -> None:
        if effect.receipt.seq >= self._recorder.next_seq:
            raise AssertionError("Bytes for upstream name a record that is not in the spool.")
        self._to_upstream.append(effect.data)

    def _send_client(self, effect: ToClient) -> None:
        if self._results is not None:
            self._session.show(effect.data)
        self._to_client.append(effect.data)

    def _start_tls(self, effect: StartTls) -> None:
        self.commit()
        self.client.accept_tls(self._accept_context(), effect.received, effect.alpn)

    async def _identify(self, effect: Identify) -> None:
        try:
            found = await self._users.identify(effect.token) if self._users is not None else None
        except UserRefused:
            self._on_refused()
            raise
        if found is None or self.is_over:
            return
        self._log.user = found.user
        ended = UserRefused(f'The token of user "{found.user.subject}" has expired; connect again with another one.')
        left_s = max(0.0, found.expires_at_unix - time.time())
        self._expiry = asyncio.get_running_loop().call_later(left_s, self.cut, ended)

    def _open(self, effect: OpenUpstream) -> object:
        reached = self._meter.enter()
        if reached is not None:
            metrics.limit_reached(self.target.name, reached.name)
            raise LimitReached(reached)
        return self._open_upstream(effect)

    async def _open_upstream(self, effect: OpenUpstream) -> Opened:
        effect = msgspec.structs.replace(effect, session=self._log.id)
        user, database, application = map(self._shown_client, (effect.user, effect.database, effect.application))
        if not self.target.upstream.database:
            database = effect.database  # the backend knows it by that name
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                opened, early, address = await self._connector.open(self.target, effect, self.upstream)
        except TimeoutError as error:
            raise UpstreamUnavailable(f'Target "{self.target.name}" did not answer in time.') from error
        receipt = self._recorder.open_session(
            self._log, protocol=self.target.protocol, client=self.client.peer, upstream=address, user=user,
            database=database, application=application,
        )  # fmt: skip
        self._outbox.owed_seq = receipt.seq
        if self._max_result_bytes:
            self._record_results(self._max_result_bytes)
        self._opened = Opened(receipt, opened.parameters, opened.process_id, opened.secret)
        self._place = msgspec.structs.replace(
            self._place, user=effect.user, database=effect.database, delegated=self._log.user
        )
        self._connector.on_cancel(self._opened, self._interrupt)
        self._upstream_side.link = self.upstream
        self.upstream.deliver_to(self._upstream_side.deliver, self._upstream_writable)
        self.follow_limits()
        if early:
            self._upstream_side.deliver(early)
        return self._opened

    def _record_results(self, max_bytes: int) -> None:
        from chaperone_sidecar.recording.results import ResultLog  # noqa: PLC0415 - it loads a compressor

        self._results = ResultLog(self._recorder, self._log, max_bytes)
        self._session.record(self._results)

    def _watch(self) -> None:
        """Look at how long the present command runs, for as long as that is limited and the session lives."""
        self._is_watching = not self.is_over and self._meter.is_timed
        if not self._is_watching:
            return
        asyncio.get_running_loop().call_later(WATCH_S, self._watch)
        if self._upstream_side.is_waiting:
            return
        reached = self._meter.watch(self._session.running())
        if reached is not None:
            self._upstream_side.run(self._session.cut(reached))

    def _check_cut(self, running: object) -> None:
        if not self.is_over and self._session.running() is running:
            self.fail(ChaperoneError("The database did not end a command that passed a limit; the session is closed."))

    def _cancel(self, effect: CancelUpstream) -> object:
        if self._opened is not None and (running := self._session.running()) is not None:  # cut by a limit
            asyncio.get_running_loop().call_later(CUT_TIMEOUT_S, self._check_cut, running)
        return self._connector.cancel(effect.process_id, effect.secret)

    def _wait(self, effect: Wait) -> object:
        return None if effect.is_over() else self._until(effect.is_over)

    async def _until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self._changed.clear()
            await self._changed.wait()

    def _offload(self, effect: Offload) -> object:
        return worked_off(effect)

    def _close(self, effect: Close) -> None:
        self._end(effect.reason)

    # --- beginning and end ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.client.deliver_to(self._client_side.deliver, self._client_writable)
        asyncio.get_running_loop().call_later(START_TIMEOUT_S, self._check_started)

    def _client_lost(self, _: Exception | None) -> None:
        self._end("client closed the connection")

    def _upstream_lost(self, error: Exception | None) -> None:
        if isinstance(error, ChaperoneError):
            self.fail(error)
        elif self._opened is not None and not self.is_over:
            self.fail(UpstreamUnavailable(f'Target "{self.target.name}" closed the connection.'))

    def _check_started(self) -> None:
        if self._opened is None and not self.is_over:
            self.fail(ChaperoneError("The session was not opened in time."))

    def _client_writable(self, writable: bool) -> None:
        self._is_client_full = not writable
        self._choke_upstream()

    def _upstream_writable(self, writable: bool) -> None:
        self._choke(self.client, self._client_side, not writable)

    def _choke_upstream(self) -> None:
        self._choke(self.upstream, self._upstream_side, self._is_client_full or self._outbox.is_holding)

    def _is_whole(self) -> bool:
        return bool(self._session.fatal(ChaperoneError("")))

    def _choke(self, link: Link, direction: _Direction, choked: bool) -> None:
        if choked:
            self._choked.add(link)
        else:
            self._choked.discard(link)
        if not direction.is_waiting:
            link.pause(choked)

    def _end(self, reason: str, last: bytes = b"") -> None:
        """Record what is owed, say the last words, close both sides. Runs once."""
        if self.is_over:
            return
        self.is_over = True
        if self._expiry is not None:
            self._expiry.cancel()
        is_running = self._is_cut and self._session.running() is not None
        self._holds.leave(self._log.id)  # before the session's last record
        if self._results is not None:
            try:
                self._results.flush()
            except SpoolFull:
                self._to_client.clear()
        try:
            for intent in self._session.abandoned():
                self._recorder.conclude(self._log, intent, "aborted")
            if self._unassured is not None:
                self._recorder.conclude(self._log, self._unassured, "aborted")
            if self._opened is not None:
                self._recorder.close_session(self._log, reason)
                self._outbox.owed_seq = self._recorder.next_seq - 1
        except SpoolFull:
            logger.error("session %s: its end could not be recorded", self._log.id)
            self._outbox.break_off(last)
        else:
            _hand_over(self.upstream, self._to_upstream)
            self._to_client.append(last)
            _hand_over(self._outbox, self._to_client)
        if self._opened is not None:
            self._connector.forget(self._opened, is_running=is_running)
        self._meter.leave()
        self.upstream.close()
        self._outbox.close()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._on_over(self)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("session %s failed: %s", self._log.id, type(error).__name__)
            self.fail(ChaperoneError("The gateway failed; the session is closed."))


async def worked_off(effect: Offload, timeout_s: float = OFFLOAD_TIMEOUT_S) -> object:
    """What the work of an `Offload` gives.

    Raises:
        ChaperoneError: not in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            work = effect.work()
            return await (asyncio.wrap_future(work) if isinstance(work, Future) else work)
    except TimeoutError as error:
        raise ChaperoneError("The statement took too long to be understood.") from error


def _hand_over(way: Link | Outbox, parts: list[bytes | bytearray | memoryview]) -> int:
    if not parts:
        return 0
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    parts.clear()
    way.write(data)
    return len(data)
