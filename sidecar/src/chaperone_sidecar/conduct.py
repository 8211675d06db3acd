"""The way of the commands of one session, the same for every protocol.

Theory of operation. A session is identified, entered, opened, and closed; each of its commands is decided, held where
policy wants people, counted against the limits, and recorded before it takes effect, and its outcome before the end of
its answer is told. A protocol whose codec is ours asks for these steps one by one through the driver's effects; one
whose library owns the sockets calls `run` for the whole way and `conclude` at its end. Either way nothing can happen
without an `Intent`, and only the recorder makes those.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from chaperone_sidecar import metrics
from chaperone_sidecar.approval.binding import Place
from chaperone_sidecar.approval.hold import Holds
from chaperone_sidecar.command import Command
from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.users import Users
from chaperone_sidecar.decision import CANCELLED, Action, Decision, changed_meanwhile
from chaperone_sidecar.effects import Admit, Ask, Conclude, Hold, Intend, Intent, Receipt
from chaperone_sidecar.errors import ChaperoneError, CommandRefused, LimitReached, SpoolFull, Unwitnessed, UserRefused
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.reached import RULE_PREFIX
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.recording.assurance import Assurance
from chaperone_sidecar.recording.recorder import Recorder, SessionLog

if TYPE_CHECKING:
    from chaperone_sidecar.recording.results import ResultLog

type Estimate = Callable[[str, Command], Awaitable[int | None]]
"""How many rows a command in a database will reach; None when nobody says."""
type Reread = Callable[[], Awaitable[Command]]
"""The command with its facts as they are now, after people were asked."""
type Status = Literal["ok", "error", "refused", "aborted"]

REFUSED: Final = "refused"

logger = logging.getLogger(__name__)


async def _not_estimated(_: str, __: Command) -> int | None:
    return None


class Conduct:
    """One session's.

    Args:
        target: what the connection's original destination belongs to.
        meter: counts what the session does against the limits of policy.
        recorder, decider, holds: the services of the process.
        users: says who is behind a token; None where nobody is asked for one.
        on_refused: told when a session is refused for want of one.
        max_result_bytes: kept of what each command shows; 0: nothing is.
        estimate: asked where policy depends on it.
    """

    def __init__(
        self,
        target: Target,
        meter: Meter,
        recorder: Recorder,
        decider: Decider,
        holds: Holds,
        users: Users | None = None,
        on_refused: Callable[[], None] = lambda: None,
        max_result_bytes: int = 0,
        estimate: Estimate = _not_estimated,
    ) -> None:
        self.target = target
        self.meter = meter
        self._recorder = recorder
        self._decider = decider
        self._holds = holds
        self._users = users
        self._on_refused = on_refused
        self._max_result_bytes = max_result_bytes
        self._estimate = estimate
        self._expiry: asyncio.TimerHandle | None = None
        self._held: set[asyncio.Task[Decision]] = set()  # several where a protocol has several channels
        self._unassured: dict[str, Intent] = {}
        self._running: dict[str, Intent] = {}  # of `run`, without an outcome yet
        self.log: SessionLog = recorder.new_session(target.name)
        self.place = Place(self.log.id, target.name, target.protocol)
        self.results: ResultLog | None = None
        """What the client is shown, from when the session is open on, where the identity has it kept."""
        self.is_open = False
        self._is_closed = False

    # --- the session --------------------------------------------------------------------------------------------------

    @property
    def asks_user(self) -> bool:
        """Whether the client is asked for the token of the person on whose behalf it acts."""
        return self._users is not None

    async def identify(self, token: bytes, on_expired: Callable[[ChaperoneError], None]) -> None:
        """Find out who is behind a token, b"" for none; `on_expired` is called when it ends.

        Raises:
            UserRefused: nobody is, and somebody has to be.
        """
        try:
            found = await self._users.identify(token) if self._users is not None else None
        except UserRefused:
            self._on_refused()
            raise
        if found is None or self._is_closed:
            return
        self.log.user = found.user
        ended = UserRefused(f'The token of user "{found.user.subject}" has expired; connect again with another one.')
        left_s = max(0.0, found.expires_at_unix - time.time())
        self._expiry = asyncio.get_running_loop().call_later(left_s, on_expired, ended)

    def enter(self) -> None:
        """Count the session as a connection.

        Raises:
            LimitReached: there are enough of them.
        """
        reached = self.meter.enter()
        if reached is not None:
            metrics.limit_reached(self.target.name, reached.name)
            raise LimitReached(reached)

    def open(
        self, *, client: str, upstream: str, user: str = "", database: str = "", application: str = "",
        role: str = "", place: tuple[str, str] | None = None,
    ) -> Receipt:  # fmt: skip
        """Record that the session opens.

        Args:
            client: its address.
            upstream: the backend's.
            user: as the client names it, as far as people may see it; so are the next two.
            database: where the protocol has them.
            application: what the client says it is.
            role: as whom the backend knows the session, where the lease says so.
            place: user and database as approvals are bound to them, where that is more than is shown.

        Raises:
            SpoolFull: no room; it must not open.
        """
        receipt = self._recorder.open_session(
            self.log, protocol=self.target.protocol, client=client, upstream=upstream, user=user, database=database,
            application=application, role=role,
        )  # fmt: skip
        if self._max_result_bytes:
            from chaperone_sidecar.recording.results import ResultLog  # noqa: PLC0415 - it loads a compressor

            self.results = ResultLog(self._recorder, self.log, self._max_result_bytes)
        bound_user, bound_database = place or (user, database)
        self.place = msgspec.structs.replace(
            self.place, user=bound_user, database=bound_database, delegated=self.log.user
        )
        self.is_open = True
        return receipt

    def new_results(self) -> ResultLog | None:
        """As `results`, apart from it, for what is shown beside other commands of the session; None where none is."""
        if not self._max_result_bytes:
            return None
        from chaperone_sidecar.recording.results import ResultLog  # noqa: PLC0415 - it loads a compressor

        return ResultLog(self._recorder, self.log, self._max_result_bytes)

    def leave(self, *, is_stopping: bool = False) -> None:
        """Nobody waits for people any more; before the session's last record."""
        self._holds.leave(self.log.id, is_stopping=is_stopping)

    def close(self, reason: str, owed: Iterable[Intent] = ()) -> None:
        """Record the outcomes that are still owed, and that the session ended; runs once.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        self._is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        self.meter.leave()
        for intent in (*owed, *self._running.values()):
            self._recorder.conclude(self.log, intent, "aborted")
        self._running.clear()
        for intent in self._unassured.values():
            self._recorder.conclude(self.log, intent, "aborted")
        if self.is_open:
            self._recorder.close_session(self.log, reason)

    def end(self, reason: str, *, is_stopping: bool = False) -> None:
        """`leave` and `close`, for those who have nothing to say where there is no room even for that."""
        self.leave(is_stopping=is_stopping)
        try:
            self.close(reason)
        except SpoolFull:
            logger.error("session %s: its end could not be recorded", self.log.id)

    # --- a command, step by step --------------------------------------------------------------------------------------

    def ask(self, effect: Ask) -> Decision | Coroutine[Any, Any, Decision]:
        """What policy says; at once where the same question was asked before."""
        found = self._decider.remembered(self.target.name, effect.command, self.log.user)
        if found is not None:
            return found
        estimate = partial(self._estimate, self.place.database, effect.command)
        return self._decider.decide(
            self.target.name, self.target.protocol, effect.command, estimate, is_approved=effect.is_approved,
            user=self.log.user,
        )  # fmt: skip

    def admit(self, effect: Admit) -> Decision:
        """Count an allowed command against the limits; the decision that stands."""
        reached = self.meter.admit(effect.command)
        if reached is None:
            return effect.decision
        metrics.limit_reached(self.target.name, reached.name)
        return reached.decision(effect.decision.revision)

    async def hold(self, effect: Hold) -> Decision:
        """Wait for people; an Allow is admitted already."""
        admit = partial(self.admit, Admit(effect.command, effect.decision))
        held = asyncio.create_task(self._holds.hold(self.place, effect.command, effect.decision, effect.shown, admit))
        self._held.add(held)
        try:
            return await held
        except asyncio.CancelledError:
            if held in self._held:  # the session ends, or the channel
                raise
        finally:
            self._held.discard(held)
        revision = effect.decision.revision
        return Decision(Action.DENY, "", CANCELLED, "the client cancelled it while it waited for approval.", revision)

    def interrupt(self) -> bool:
        """The client cancels: if people are being asked, that ends here."""
        held = tuple(self._held)
        self._held.clear()
        cancelled = [one.cancel() for one in held]
        return any(cancelled)

    def intend(self, effect: Intend) -> Intent | Coroutine[Any, Any, Intent]:
        """Record what is about to happen, or what was refused.

        Raises:
            SpoolFull: no room. Unwitnessed: it is not as sure as the identity asks.
        """
        intent = self._recorder.intend(self.log, effect.command, effect.decision)
        metrics.command(self.target.name, effect.decision.action)
        assurance = self._recorder.assurance
        return intent if assurance is None else self._assured(intent, effect.decision, assurance)

    async def _assured(self, intent: Intent, decision: Decision, assurance: Assurance) -> Intent:
        """An intent once it is sure enough for what comes next; the session does not know of it before."""
        self._unassured[intent.command_id] = intent
        try:
            if decision.action is Action.ALLOW:
                await assurance.sent(intent.receipt.seq)
            else:
                await assurance.told(intent.receipt.seq)
        except Unwitnessed:
            self._recorder.conclude(self.log, intent, REFUSED, "unwitnessed")
            raise
        finally:
            self._unassured.pop(intent.command_id, None)
        return intent

    def conclude(self, effect: Conclude) -> Receipt:
        """Record how a command ended.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        if effect.code.startswith(RULE_PREFIX):
            metrics.limit_reached(self.target.name, effect.code.removeprefix(RULE_PREFIX))
        self._running.pop(effect.intent.command_id, None)
        return self._recorder.conclude(
            self.log, effect.intent, effect.status, effect.code, effect.rows, effect.size_bytes
        )

    # --- a command, the whole way -------------------------------------------------------------------------------------

    async def run(self, command: Command, shown: str, reread: Reread | None = None) -> Intent:
        """Decide, hold, count and record a command: once this returns it may take effect.

        Args:
            command: what is to run.
            shown: all that people who are asked see of it, masked.
            reread: gives the command with its facts anew after people were asked; None where they cannot change.

        Raises:
            CommandRefused: it must not run; that is recorded. SpoolFull, Unwitnessed: it cannot be recorded.
        """
        decision = await self._decided(command)
        if decision.action is Action.REQUIRE_APPROVAL:
            decision = await self._approved(command, decision, shown, reread)
        elif decision.action is Action.ALLOW:
            decision = self.admit(Admit(command, decision))
        intent = await self.recorded(command, decision)
        if decision.action is not Action.ALLOW:
            raise CommandRefused(decision)
        self._running[intent.command_id] = intent
        return intent

    def owes(self, intent: Intent) -> bool:
        """Whether a command that `run` let pass has no outcome yet."""
        return intent.command_id in self._running

    async def refuse(self, command: Command, decision: Decision) -> None:
        """Record the refusal of a command about which policy is not asked.

        Raises:
            CommandRefused: always, once it is recorded. SpoolFull, Unwitnessed: it cannot be.
        """
        await self.recorded(command, decision)
        raise CommandRefused(decision)

    async def recorded(self, command: Command, decision: Decision) -> Intent:
        """The intent of a command, or of its refusal, as sure as the identity asks; raises as `intend`.

        Raises:
            ChaperoneError: the session has ended meanwhile.
        """
        if self._is_closed:
            raise ChaperoneError("The session is over.")
        found = self.intend(Intend(command, decision))
        return found if isinstance(found, Intent) else await found

    async def told(self, receipt: Receipt) -> None:
        """Wait until a record is as sure as it has to be before the client hears of what it says.

        Raises:
            SpoolFull: it is not kept, so the client must not hear of it.
        """
        assurance = self._recorder.assurance
        if assurance is not None:
            await assurance.told(receipt.seq)

    async def shown(self) -> None:
        """Wait until all that is recorded so far is as sure as it has to be before the client gets more of an answer.

        Raises:
            SpoolFull: it is not kept.
        """
        assurance = self._recorder.assurance
        if assurance is not None:
            await assurance.told(self._recorder.next_seq - 1)

    async def _decided(self, command: Command, *, is_approved: bool = False) -> Decision:
        found = self.ask(Ask(command, is_approved=is_approved))
        return found if isinstance(found, Decision) else await found

    async def _approved(self, command: Command, decision: Decision, shown: str, reread: Reread | None) -> Decision:
        """What stands when people have decided: an Allow only for what they saw, under the policy that asked them."""
        held = await self.hold(Hold(command, decision, shown))
        if held.action is not Action.ALLOW:
            return held
        fresh = command if reread is None else await reread()
        again = await self._decided(fresh, is_approved=True)
        is_same = fresh.facts.accesses == command.facts.accesses and again == decision
        return held if is_same else changed_meanwhile(held, again)
