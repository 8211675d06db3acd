"""One command or shell on its channel: decided, run at the target, masked, recorded, and ended as it ended there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from chaperone_sidecar.command import Command, Facts, unknown
from chaperone_sidecar.effects import Conclude, Intent
from chaperone_sidecar.errors import ChaperoneError, CommandRefused, Unmaskable, UpstreamUnavailable
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.ssh import answers
from chaperone_sidecar.protocols.ssh.classify import classify, needs_home, shell
from chaperone_sidecar.protocols.ssh.doors import MAX_NAME

if TYPE_CHECKING:
    from chaperone_sidecar.conduct import Status
    from chaperone_sidecar.protocols.ssh.conversation import Conversation
    from chaperone_sidecar.protocols.ssh.outputmask import OutputMask
    from chaperone_sidecar.protocols.ssh.upstream import Connection
    from chaperone_sidecar.recording.results import ResultLog

PIECE_BYTES: Final = 32 << 10
RELEASE_S: Final = 0.05  # a prompt has no line end; what is held back of one is let go after that
WATCH_S: Final = 0.25  # how often a command's duration is looked at: limits are whole seconds
END_S: Final = 10.0  # for a target to say how a command ended that has closed its output
OPEN_S: Final = 10.0  # for it to open a channel and begin a command, which needs no thought
# Programs whose output is a protocol of their own: a mask would break it without hiding anything.
_BINARY: Final = frozenset(f"command:{name}" for name in ("rsync", "git-upload-pack", "git-upload-archive", "tar"))


class Run:
    """Serves one channel.

    Args:
        conversation: the connection it belongs to.
        stdin, stdout, stderr: the client's.
    """

    def __init__(
        self,
        conversation: Conversation,
        stdin: asyncssh.SSHReader[bytes],
        stdout: asyncssh.SSHWriter[bytes],
        stderr: asyncssh.SSHWriter[bytes],
    ) -> None:
        self._conversation = conversation
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        channel: Any = stdout.channel
        self._channel = channel
        self._is_terminal: bool = channel.get_terminal_type() is not None
        self._results: ResultLog | None = None
        self._size_bytes = 0
        self._reached: Reached | None = None
        self._running: object = None
        self._why = ""

    async def serve(self) -> None:
        """Run it to its end; whatever goes wrong is told on stderr."""
        try:
            await self._serve()
        except CommandRefused as error:
            self._say(error, answers.REFUSED_STATUS)
        except (ChaperoneError, asyncssh.Error, OSError) as error:
            self._say(error, answers.FAILED_STATUS)

    def cut(self, error: ChaperoneError) -> None:
        """Say the last words; the connection is closed by whoever calls this."""
        self._say(error, answers.FAILED_STATUS)

    def _say(self, error: Exception, status: int) -> None:
        if self._channel.is_closing():
            return
        with contextlib.suppress(OSError):
            self._stderr.write(answers.line(answers.sentence(error, self._why)))
            self._channel.exit(status)

    def _wait_note(self) -> None:
        if not self._channel.is_closing():
            with contextlib.suppress(OSError):
                self._stderr.write(answers.WAITING)

    async def _serve(self) -> None:
        conversation = self._conversation
        text: str | None = self._channel.get_command()
        kind = "shell" if text is None else "exec"
        facts = shell() if text is None else await self._facts(text)
        command = conversation.shown(Command(kind, (text or "").encode(), facts))
        self._why = command.facts.why_unknown
        await self._check_maskable(command)
        intent: Intent = await self._while_open(conversation.decide(command, self._wait_note))
        await self._run(text, command, intent)

    async def _facts(self, text: str) -> Facts:
        """What the text would do; paths are whole, so that a rule for one meets it however it is written."""
        facts = classify(text)
        if not needs_home(facts):
            return facts
        home = await self._conversation.home()
        return classify(text, home) if home else unknown("The home is not known, so paths have to be whole.")

    async def _check_maskable(self, command: Command) -> None:
        conversation = self._conversation
        if conversation.masks_all and any(one.object in _BINARY for one in command.facts.accesses):
            await conversation.refuse(
                command, answers.unmaskable("its output cannot be masked, and the policy masks values at this target.")
            )

    async def _while_open[T](self, work: Any) -> T:  # noqa: ANN401 - a coroutine of any kind
        """The result of `work`; it is cancelled when the client closes the channel."""
        task, closed = asyncio.ensure_future(work), asyncio.ensure_future(self._channel.wait_closed())
        try:
            await asyncio.wait((task, closed), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise asyncssh.ConnectionLost("The client does not wait any more.")
            found: T = task.result()
            return found
        finally:
            closed.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _run(self, text: str | None, command: Command, intent: Intent) -> None:
        conversation = self._conversation
        self._running = intent
        try:
            upstream = await conversation.ready()
            async with asyncio.timeout(OPEN_S):
                stdin, stdout, stderr = await upstream.open_session(
                    text, encoding=None, request_pty=self._is_terminal, term_type=self._channel.get_terminal_type(),
                    term_size=self._channel.get_terminal_size(), term_modes=self._channel.get_terminal_modes(),
                    env={}, send_env=(),
                )  # fmt: skip
        except (asyncssh.Error, OSError) as error:  # a timeout is one of the latter
            await self._conclude(intent, "error", "open")
            why = self._why_not_open(error)
            raise UpstreamUnavailable(f'Target "{conversation.target.name}" does not run it ({why}).') from error
        self._results = conversation.new_results()
        if self._results is not None:
            self._results.begin(intent.command_id)
        programs = [one.object for one in command.facts.accesses if one.object.startswith("command:")]
        is_raw = bool(programs) and _BINARY.issuperset(programs)  # a text beside them is masked, whatever that breaks
        try:
            await self._relay(stdin, stdout, stderr, is_raw=is_raw)
        except Unmaskable as error:
            await self._conclude(intent, "refused", error.rule)
            raise
        except (asyncssh.Error, OSError):
            await self._conclude(intent, "aborted", "")
            raise
        finally:
            self._running = None
            _end_at_target(stdin.channel)
        await self._end(intent, stdin.channel)

    def _why_not_open(self, error: Exception) -> str:
        match error:
            case asyncssh.ChannelOpenError():
                return self._conversation.mask(error.reason)
            case TimeoutError():
                return "it does not answer"
            case _:
                return type(error).__name__

    async def _relay(self, stdin: Any, stdout: Any, stderr: Any, *, is_raw: bool) -> None:  # noqa: ANN401 - asyncssh's
        channel = stdin.channel
        if self._results is not None and self._is_terminal:
            width, height, *_ = self._channel.get_terminal_size()
            self._results.resize(width, height)
        outputs = [
            asyncio.ensure_future(self._pass_on(reader, writer, None if is_raw else self._conversation.output_mask()))
            for reader, writer in ((stdout, self._stdout), (stderr, self._stderr))
        ]
        takes_in = asyncio.ensure_future(self._take_in(stdin, await self._conversation.ready()))
        reaches_limit = asyncio.ensure_future(self._watch())
        is_left = asyncio.ensure_future(self._channel.wait_closed())
        try:
            pending: set[asyncio.Future[Any]] = set(outputs)
            beside: set[asyncio.Future[Any]] = {takes_in, reaches_limit, is_left}
            while pending and self._reached is None:
                done, _ = await asyncio.wait(pending | beside, return_when=asyncio.FIRST_COMPLETED)
                if is_left in done:
                    raise asyncssh.ConnectionLost("The client closed the channel.")
                for task in done:
                    task.result()
                pending -= done
                beside -= done
            if self._reached is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_S):
                        await channel.wait_closed()
        finally:
            for task in (*outputs, takes_in, reaches_limit, is_left):
                task.cancel()
            await asyncio.gather(*outputs, takes_in, reaches_limit, is_left, return_exceptions=True)

    async def _pass_on(
        self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], mask: OutputMask | None
    ) -> None:
        reading: asyncio.Future[bytes] | None = None
        try:
            while True:
                reading = reading or asyncio.ensure_future(reader.read(PIECE_BYTES))
                timeout_s = RELEASE_S if mask is not None and mask.is_holding and self._is_terminal else None
                done, _ = await asyncio.wait((reading,), timeout=timeout_s)
                if not done:
                    await self._show(writer, mask.flush() if mask is not None else b"")
                    continue
                data, reading = reading.result(), None
                if not data:
                    break
                if not self._counts(len(data)):
                    return
                await self._show(writer, mask.feed(data) if mask is not None else data)
            if mask is not None:
                await self._show(writer, mask.flush())
        finally:
            if reading is not None:
                reading.cancel()

    async def _show(self, writer: asyncssh.SSHWriter[bytes], data: bytes) -> None:
        """Record what the client is about to get, then give it."""
        if not data:
            return
        if self._results is not None:
            self._results.output(data)
            self._results.flush()
            await self._conversation.shown_is_sure()
        self._size_bytes += len(data)
        self._conversation.count_out(len(data))
        writer.write(data)
        await writer.drain()

    async def _take_in(self, stdin: Any, upstream: Connection) -> None:  # noqa: ANN401 - asyncssh's
        mask = self._conversation.output_mask(shows_binary=True)  # of what is recorded; what goes on is as it came
        while True:
            await upstream.taken()
            try:
                data = await self._stdin.read(PIECE_BYTES)
            except asyncssh.TerminalSizeChanged as change:
                if self._results is not None:
                    self._results.resize(change.width, change.height)
                stdin.channel.change_terminal_size(change.width, change.height, change.pixwidth, change.pixheight)
                continue
            except asyncssh.SignalReceived as received:
                stdin.channel.send_signal(received.signal)
                continue
            except asyncssh.BreakReceived as received:
                stdin.channel.send_break(received.msec)
                continue
            self._record_input(mask.feed(data) if mask is not None and data else data)
            if not data:
                if mask is not None:
                    self._record_input(mask.flush())
                if stdin.can_write_eof():
                    stdin.write_eof()
                return
            if not self._counts(len(data)):
                return
            self._conversation.count_in(len(data))
            try:
                stdin.write(data)
                await stdin.drain()
            except OSError:  # the program reads no more
                return

    def _record_input(self, data: bytes) -> None:
        if data and self._results is not None:
            self._results.typed(data)
            self._results.flush()

    def _counts(self, size_bytes: int) -> bool:
        """Count bytes against the limits; false where there is no room, and then the command ends."""
        reached = self._conversation.conduct.meter.take(0, size_bytes)
        if reached is not None:
            self._reached = self._reached or reached
        return reached is None

    async def _watch(self) -> None:
        """Return when a limit is reached."""
        meter = self._conversation.conduct.meter
        while self._reached is None:
            await asyncio.sleep(WATCH_S)
            if meter.is_timed:
                self._reached = self._reached or self._conversation.overdue(self._running)

    async def _end(self, intent: Intent, channel: Any) -> None:  # noqa: ANN401 - asyncssh's
        if self._reached is not None:
            await self._conclude(intent, "refused", self._reached.rule)
            self._stderr.write(answers.line(answers.limit(self._reached)))
            self._channel.exit(answers.REFUSED_STATUS)
            return
        signal, status = channel.get_exit_signal(), channel.get_exit_status()
        if signal is not None:
            name, has_dumped, message, _ = signal
            name = self._conversation.mask(name)  # any text of the target's
            await self._conclude(intent, "error", f"signal {name[:MAX_NAME]}")
            self._channel.exit_with_signal(name, has_dumped, self._conversation.mask(message), "")
        elif status is None:
            await self._conclude(intent, "error", "lost")
            raise UpstreamUnavailable(f'Target "{self._conversation.target.name}" closed the connection.')
        else:
            await self._conclude(intent, "ok" if status == 0 else "error", f"exit {status}" if status else "")
            self._channel.exit(status)

    async def _conclude(self, intent: Intent, status: Status, code: str) -> None:
        await self._conversation.conclude(Conclude(intent, status, code, 0, self._size_bytes))


def _end_at_target(channel: Any) -> None:  # noqa: ANN401 - asyncssh's
    """Close a channel; what still runs there is asked to end, for without a terminal a server lets it go on."""
    if channel.get_exit_status() is None and channel.get_exit_signal() is None:
        with contextlib.suppress(OSError):
            channel.send_signal("TERM")
    channel.abort()
