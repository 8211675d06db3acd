"""One SSH connection of an agent, and the one that the gateway opens for it.

Theory of operation. The client's authentication says nothing: its pod is who it is, so any user with any key, password
or none is let in, and the user it asks for is recorded. Where people stand behind the agent, their token is the
password. The upstream is opened with the first channel; what fails then is told on that channel. Each channel is a
`Run` or SFTP (`Files`) and decided by itself: while people are asked about one, the others go on. What the client may
not have at all (forwarding, variables, other subsystems) is recorded, then refused (`doors.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from chaperone_sidecar import peer
from chaperone_sidecar.command import Command
from chaperone_sidecar.config import Target
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.effects import Conclude, Intent, Receipt
from chaperone_sidecar.errors import ChaperoneError, CommandRefused, Suspended, UpstreamUnavailable
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.ssh import answers
from chaperone_sidecar.protocols.ssh.classify import forward
from chaperone_sidecar.protocols.ssh.doors import serve
from chaperone_sidecar.protocols.ssh.run import Run
from chaperone_sidecar.protocols.ssh.server import Server
from chaperone_sidecar.protocols.ssh.shown import for_people, shown
from chaperone_sidecar.protocols.ssh.upstream import ENCRYPTION, Upstream
from chaperone_sidecar.protocols.ssh.upstream import Connection as UpstreamConnection

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker
    from chaperone_sidecar.protocols.ssh.outputmask import OutputMask
    from chaperone_sidecar.recording.results import ResultLog

logger = logging.getLogger(__name__)

LOG_IN_TIMEOUT_S: Final = 15.0
NOTE_S: Final = 1.0  # after which a client is told that its command waits
MAX_NOTING: Final = 512  # refusals that wait for a slow target or spool; who has more under way wants no answers
LAST_WORDS_S: Final = 1.0  # for them to leave before the connection is cut


class Conversation:
    """See `frontend.Conversation`.

    Args:
        services: of the gateway.
        target: where it leads.
        host_key: what the pod's known_hosts names.
        masker: the detectors of policy at this target; None where nothing is masked.
    """

    def __init__(self, services: Services, target: Target, host_key: asyncssh.SSHKey, masker: Masker | None) -> None:
        self.target = target
        self.conduct = services.conduct(target)
        self._services = services
        self._suspended = services.suspended
        self._host_key = host_key
        self._masker = masker
        self._token = b""
        self._user = ""
        self._home: str | None = None
        self.channels = 0
        self._noting = 0
        self._opening: asyncio.Task[UpstreamConnection] | None = None
        self._connection: asyncssh.SSHServerConnection | None = None
        self._upstream = Upstream(services, target, self.conduct.log.id)
        self._runs: set[Run] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_over = False

    async def take(self, connection: Any) -> None:  # noqa: ANN401 - a socket
        """See `frontend.Conversation`."""
        try:
            self._connection = await serve(
                self, connection, server_factory=lambda: Server(self), server_host_keys=[self._host_key], config=None,
                agent_forwarding=False, x11_forwarding=False,
                encryption_algs=ENCRYPTION, compression_algs=("none",), gss_host=None, public_key_auth=False,
                kbdint_auth=False, host_based_auth=False, password_auth=True, login_timeout=LOG_IN_TIMEOUT_S,
            )  # fmt: skip
        except (asyncssh.Error, OSError, TimeoutError):  # it is gone, or speaks something else
            connection.close()
            self.end("client did not log in")

    # --- for the server ----------------------------------------------------------------------------------------------

    @property
    def asks_token(self) -> bool:
        """Whether the password has to be the token of a person."""
        return self.conduct.asks_user and self._suspended is None

    def logged_in_as(self, user: str, token: bytes) -> None:
        """What the client says of itself."""
        self._user, self._token = user, token

    async def serve(self, stdin: Any, stdout: Any, stderr: Any) -> None:  # noqa: ANN401 - asyncssh's
        """Run a command or a shell on its channel."""
        run = Run(self, stdin, stdout, stderr)
        self._runs.add(run)
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            await run.serve()
        finally:
            self._runs.discard(run)
            if task is not None:
                self._tasks.discard(task)

    async def forwards(self, kind: str, to: str) -> None:
        """Refuse a door through the connection.

        Raises:
            asyncssh.ChannelOpenError: always.
        """
        why = f"forwarding ({kind}) is not done here; connect to declared targets directly."
        try:
            await self.note(Command("forward", f"{kind} {to}".encode(), forward(kind, to)), answers.not_covered(why))
        except ChaperoneError as error:
            why = str(error)
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, f"chaperone: {why}")

    # --- for channels ------------------------------------------------------------------------------------------------

    async def ready(self) -> UpstreamConnection:
        """The target's side, opened once.

        Raises:
            ChaperoneError: it cannot be, or must not.
        """
        if self.is_over:
            raise ChaperoneError("The session is over.")
        if self._opening is None:
            self._opening = self.spawn(self._open())
        connection = await asyncio.shield(self._opening)
        if self.is_over:
            raise ChaperoneError("The session is over.")
        return connection

    async def home(self) -> str:
        """Where the user's home is at the target, "" where that cannot be learnt.

        The gateway asks for itself, before any command: it is what the names of files in commands are made whole with.
        """
        if self._home is None:
            connection = await self.ready()
            try:
                async with asyncio.timeout(LOG_IN_TIMEOUT_S), connection.start_sftp_client(env={}, send_env=()) as sftp:
                    found = await sftp.realpath(".")
                self._home = found if isinstance(found, str) and found.startswith("/") else ""
            except (asyncssh.Error, OSError, TimeoutError):
                self._home = ""
        return self._home

    async def decide(self, command: Command, tell: Callable[[], None]) -> Intent:
        """Take a command the whole way to its intent; `tell` is called when that takes long.

        Raises:
            ChaperoneError: it must not run.
        """
        await self.ready()
        note = asyncio.get_running_loop().call_later(NOTE_S, tell)
        try:
            return await self.conduct.run(command, for_people(command))
        finally:
            note.cancel()

    async def refuse(self, command: Command, decision: Decision) -> None:
        """Record the refusal of a command that policy is not asked about.

        Raises:
            CommandRefused: always.
        """
        await self.note(command, decision)
        raise CommandRefused(decision)

    async def note(self, command: Command, decision: Decision) -> None:
        """Record a refusal.

        Raises:
            ChaperoneError: it cannot be.
        """
        if self._noting >= MAX_NOTING:
            self.cut(ChaperoneError(f"More than {MAX_NOTING} refusals wait to be recorded."))
        self._noting += 1
        try:
            await self.ready()
            await self.conduct.recorded(self.shown(command), decision)
        finally:
            self._noting -= 1

    async def conclude(self, effect: Conclude) -> None:
        """Record how a command ended, and wait until that is sure enough to be told.

        Raises:
            SpoolFull: it is not.
        """
        if not self.is_over:  # else the session's end has said it
            await self.conduct.told(self.conduct.conclude(effect))

    async def shown_is_sure(self) -> None:
        """Wait until what was recorded of an answer is as sure as the identity asks."""
        await self.conduct.told(Receipt(self._services.recorder.next_seq - 1))

    def shown(self, command: Command) -> Command:
        """The command with what may be seen of it."""
        return shown(command, self._masker)

    def mask(self, text: str) -> str:
        """A text of the target, as it may be seen."""
        return self.mask_bytes(text.encode()).decode("utf-8", "replace")

    def mask_bytes(self, text: bytes) -> bytes:
        """The same for one that need not be UTF-8."""
        return text if self._masker is None else self._masker.mask_text(text)

    @property
    def masks_all(self) -> bool:
        """Whether what cannot be masked must not be shown."""
        return self._masker is not None and self.target.masks.unmaskable != "Allow"

    def output_mask(self, *, shows_binary: bool = False) -> OutputMask | None:
        """A mask for one stream, where there is one."""
        if self._masker is None:
            return None
        from chaperone_sidecar.protocols.ssh.outputmask import OutputMask  # noqa: PLC0415 - with RE2, where needed

        return OutputMask(self._masker, shows_binary=shows_binary or not self.masks_all)

    def new_results(self) -> ResultLog | None:
        """Where what one channel shows is recorded, where it is."""
        return self.conduct.new_results()

    def count_in(self, size_bytes: int) -> None:
        """Bytes went to the target."""
        self.conduct.log.bytes_in += size_bytes

    def count_out(self, size_bytes: int) -> None:
        """Bytes went to the client."""
        self.conduct.log.bytes_out += size_bytes

    def overdue(self, running: object) -> Reached | None:
        """The limit that the oldest command has passed, if it is this one."""
        return self.conduct.meter.watch(running)

    def spawn(self, work: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - a coroutine of any kind
        """Run something that ends with the session."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    # --- beginning and end -------------------------------------------------------------------------------------------

    async def _open(self) -> UpstreamConnection:
        if self._suspended is not None:
            raise self._suspended
        await self.conduct.identify(self._token, self.cut)
        self.conduct.enter()
        upstream = await self._upstream.open()
        user = self.mask(self._user)
        client = peer.named(self._connection.get_extra_info("peername")) if self._connection is not None else ""
        self.conduct.open(client=client, upstream=self._upstream.address, user=user, place=(self._user, ""))
        self.spawn(self._follow(upstream))
        return upstream

    async def _follow(self, upstream: UpstreamConnection) -> None:
        await upstream.wait_closed()
        lost = UpstreamUnavailable(f'Target "{self.target.name}" closed the connection.')
        await asyncio.sleep(0)
        error = self._upstream.error
        self.cut(error if isinstance(error, ChaperoneError) else lost)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ChaperoneError):
            logger.error("session %s failed: %s", self.conduct.log.id, type(error).__name__)
            self.cut(ChaperoneError("The gateway failed; the session is closed."))

    def cut(self, error: ChaperoneError, *, is_stopping: bool = False) -> None:
        """See `frontend.Conversation`."""
        reason = str(error) if isinstance(error, Suspended) else type(error).__name__
        self.end(reason, error, is_stopping=is_stopping)

    def follow_limits(self) -> None:
        """See `frontend.Conversation`; each command asks anew."""

    def end(self, reason: str, error: ChaperoneError | None = None, *, is_stopping: bool = False) -> None:
        """Record what is owed, say the last words, if there are any, and close both sides; runs once."""
        if self.is_over:
            return
        self.is_over = True
        self.conduct.end(reason, is_stopping=is_stopping)
        self._upstream.close()
        is_told = error is not None and bool(self._runs)
        if error is not None:
            for run in tuple(self._runs):
                run.cut(error)
        if self._connection is not None:
            # OpenSSH shows nothing that it reads together with a disconnect; once it has shown it, it leaves by itself.
            asyncio.get_running_loop().call_later(LAST_WORDS_S if is_told else 0, self._leave, self._connection)
        for task in tuple(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        self._services.over(self)

    def _leave(self, connection: asyncssh.SSHServerConnection) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            connection.close()
        connection.abort()
