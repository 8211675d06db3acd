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
import socket
from collections.abc import Callable
from typing import Any, Final

import msgspec

from chaperone_sidecar import metrics
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.connector import Connector
from chaperone_sidecar.direction import Direction
from chaperone_sidecar.effects import (
    Admit,
    Ask,
    CancelUpstream,
    Close,
    Conclude,
    Effects,
    Hold,
    Identify,
    Intend,
    Offload,
    Opened,
    OpenUpstream,
    Receipt,
    SessionEffect,
    StartTls,
    ToClient,
    ToUpstream,
    Wait,
)
from chaperone_sidecar.errors import ChaperoneError, SpoolFull, Suspended, UpstreamUnavailable
from chaperone_sidecar.link import Link
from chaperone_sidecar.offload import worked_off
from chaperone_sidecar.outbox import Outbox
from chaperone_sidecar.recording.recorder import Recorder
from chaperone_sidecar.session import Session

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 15.0  # from connect to a session that is open; a client on the same node needs milliseconds
WATCH_S: Final = 0.25  # how often the present command's duration is looked at: limits are whole seconds
CUT_TIMEOUT_S: Final = 10.0  # a backend that has not ended a cancelled command by then is left alone with it


class Driver:
    """Runs one session.

    Args:
        session: the protocol's session.
        conduct: the way of its commands.
        connector: opens the backend.
        recorder: of the process.
        accept_context: makes the TLS context towards the client.
        on_over: told when the session is over.
        shown_client: what records may show of a name that the client gives itself.
        greet: what a session says before its client does, where the protocol begins so.
    """

    def __init__(
        self,
        session: Session,
        conduct: Conduct,
        connector: Connector,
        recorder: Recorder,
        accept_context: Callable[[], Any],
        on_over: Callable[[Driver], None],
        shown_client: Callable[[str], str],
        greet: Callable[[], Effects[None]] | None = None,
    ) -> None:
        self.target = conduct.target
        self._greet = greet
        self._session = session
        self._conduct = conduct
        self._meter = conduct.meter
        self._connector = connector
        self._recorder = recorder
        self._accept_context = accept_context
        self._on_over = on_over
        self._shown_client = shown_client
        self._log = conduct.log
        self._opened: Opened | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._to_upstream: list[bytes | bytearray | memoryview] = []
        self._to_client: list[bytes | bytearray | memoryview] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._is_client_full = False
        self._choked: set[Link] = set()
        self._is_watching = False
        self._is_cut = False
        self.is_over = False
        self._client_side = Direction(self, session.from_client)
        self._upstream_side = Direction(self, session.from_upstream)
        self.client = Link(self._client_lost, self._start)
        self.upstream = Link(self._upstream_lost)
        self._client_side.link = self.client
        self._outbox = Outbox(self.client, recorder, self._is_whole, self._choke_upstream, self.fail)
        self._handlers: dict[type, Callable[[Any], object]] = {
            Ask: conduct.ask,
            Admit: conduct.admit,
            Intend: conduct.intend,
            Conclude: self._conclude,
            ToUpstream: self._send_upstream,
            ToClient: self._send_client,
            Hold: conduct.hold,
            StartTls: self._start_tls,
            Identify: self._identify,
            OpenUpstream: self._open,
            CancelUpstream: self._cancel,
            Wait: self._wait,
            Offload: self._offload,
            Close: self._close,
        }

    async def take(self, connection: socket.socket) -> None:
        """Serve an accepted connection.

        Raises:
            OSError: it is gone.
        """
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self.client, connection)

    def cut(self, error: ChaperoneError, *, is_stopping: bool = False) -> None:
        """End the session from outside with a native last word; its backend stops working.

        `is_stopping`: because the gateway stops, so that what it waits for is asked for again by the next start.
        """
        self._is_cut = True
        if is_stopping:
            self._conduct.leave(is_stopping=True)
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
            if self._conduct.results is not None:
                try:
                    self._conduct.results.flush()
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
        if self._conduct.results is not None and not self._is_recorded(words, error):
            self._to_client.clear()
        self._end(str(error) if isinstance(error, Suspended) else type(error).__name__, words)

    def _is_recorded(self, words: bytes, error: Exception) -> bool:
        """Whether what the client has not got yet, and the last words after it, are in the spool.

        Our own words are said also where they are not: that the session ends for want of room is in its last record.
        """
        if self._conduct.results is None or isinstance(error, SpoolFull):
            return False
        try:
            self._session.show(words)
            self._conduct.results.flush()
        except SpoolFull:
            return False
        return True

    def is_choked(self, link: Link) -> bool:
        """Whether reading from `link` has to wait for the other side to drain."""
        return link in self._choked

    # --- effects ----------------------------------------------------------------------------------------------------

    def _conclude(self, effect: Conclude) -> Receipt:
        receipt = self._conduct.conclude(effect)
        self._outbox.owed_seq = receipt.seq
        return receipt

    def _send_upstream(self, effect: ToUpstream) -> None:
        if effect.receipt.seq >= self._recorder.next_seq:
            raise AssertionError("Bytes for upstream name a record that is not in the spool.")
        self._to_upstream.append(effect.data)

    def _send_client(self, effect: ToClient) -> None:
        if self._conduct.results is not None:
            self._session.show(effect.data)
        self._to_client.append(effect.data)

    def _start_tls(self, effect: StartTls) -> None:
        self.commit()
        self.client.accept_tls(self._accept_context(), effect.received, effect.alpn)

    def _identify(self, effect: Identify) -> object:
        return self._conduct.identify(effect.token, self.cut)

    def _open(self, effect: OpenUpstream) -> object:
        self._conduct.enter()
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
        receipt = self._conduct.open(
            client=self.client.peer, upstream=address, user=user, database=database, application=application,
            place=(effect.user, effect.database), role=opened.role,
        )  # fmt: skip
        self._outbox.owed_seq = receipt.seq
        if self._conduct.results is not None:
            self._session.record(self._conduct.results)
        self._opened = msgspec.structs.replace(opened, receipt=receipt)
        self._connector.on_cancel(self._opened, self._conduct.interrupt)
        self._upstream_side.link = self.upstream
        self.upstream.deliver_to(self._upstream_side.deliver, self._upstream_writable)
        self.follow_limits()
        if early:
            self._upstream_side.deliver(early)
        return self._opened

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
        self._deadline = asyncio.get_running_loop().call_later(START_TIMEOUT_S, self._check_started)
        if self._greet is not None:
            self._client_side.run(self._greet())

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

    def _choke(self, link: Link, direction: Direction, choked: bool) -> None:
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
        if self._deadline is not None:
            self._deadline.cancel()  # it would keep a short session's 100 KiB until then
        is_running = self._is_cut and self._session.running() is not None
        self._conduct.leave()
        if self._conduct.results is not None:
            try:
                self._conduct.results.flush()
            except SpoolFull:
                self._to_client.clear()
        try:
            self._conduct.close(reason, self._session.abandoned())
        except SpoolFull:
            logger.error("session %s: its end could not be recorded", self._log.id)
            self._outbox.break_off(last)
        else:
            if self._opened is not None:
                self._outbox.owed_seq = self._recorder.next_seq - 1
            _hand_over(self.upstream, self._to_upstream)
            self._to_client.append(last)
            _hand_over(self._outbox, self._to_client)
        if self._opened is not None:
            self._connector.forget(self._opened, is_running=is_running)
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


def _hand_over(way: Link | Outbox, parts: list[bytes | bytearray | memoryview]) -> int:
    if not parts:
        return 0
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    parts.clear()
    way.write(data)
    return len(data)
