"""Approval: where a command waits for a human.

Theory of operation. A command for which policy wants an approval is laid before the desk, bound to its exact bytes.
For `wait` it stays on the live connection. If the word comes in that time, the limits are asked, the approval is *used*
(the desk gives it out once), its use is recorded, and the command goes on. Else the command is refused with a ticket:
the same command of the same identity passes once when the approval has come by then, because the desk finds the request
again. A client that goes or cancels, or whose session is ended, withdraws its request: people are not asked for what
nobody waits for. A gateway that stops withdraws none, so its restart loses nothing but the wait. Whatever goes wrong on
the way is a Deny that says so, and each request that is recorded has one outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from chaperone_sidecar.approval.binding import Place, binding, shape
from chaperone_sidecar.approval.desk import Desk, Request, State, Ticket
from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.errors import ApprovalUnavailable, SpoolFull

MAX_WAIT_IN_TRANSACTION_S: Final = 10  # it holds locks that others wait for
POLL_S: Final = 20  # one question to the desk waits at most so long
PAUSE_S: Final = 1.0  # after a question that was not answered: a broker's restart takes seconds
MAX_SHOWN_BYTES: Final = 16_384  # the broker keeps no more of a text, and nobody can approve what is not shown whole
MAX_HELD: Final = 64  # commands that wait at once in one pod; people cannot keep up with more
WITHDRAW_S: Final = 30.0  # for which the desk is told that nobody waits; after that a request ends by its expiry
GONE: Final = "the client does not wait for it any more."
STOPPED: Final = "the gateway stops; the request stays."

type Revision = Callable[[], str]
type Admit = Callable[[], Decision]
"""Counts the command against the limits: a Deny when one is reached."""

logger = logging.getLogger(__name__)


class Log(Protocol):
    """Where the course of a request is recorded."""

    def request_approval(self, session: str, name: str, request: Request) -> None:
        """Record that people are asked.

        Raises:
            SpoolFull: no room.
        """
        ...

    def resolve_approval(self, session: str, name: str, state: str, message: str) -> None:
        """Record what came of it, as far as this session waited.

        Raises:
            SpoolFull: no room.
        """
        ...


class Holds:
    """The commands of one gateway that wait for people.

    Args:
        desk: keeps the requests; None where nobody can be asked.
        log: records.
        revision: the revision of policy in force now.
        key: of the namespace, where something is masked: a binding must not tell what the text hides.
        now: monotonic clock, seconds.
    """

    def __init__(
        self, desk: Desk | None, log: Log, revision: Revision, key: Callable[[], bytes],
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._desk = desk
        self._log = log
        self._revision = revision
        self._key = key
        self._now = now
        self._held = 0
        self._waiting: list[tuple[str, str]] = []  # session and request that has no outcome yet, once for each command
        self._withdrawing: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def hold(self, place: Place, command: Command, decision: Decision, shown: str, admit: Admit) -> Decision:
        """What stands at the end of the wait: Allow with the approval's name, or Deny with what to do.

        It is cancelled when the client waits no longer. `shown` is what people see of the command; `admit` is called
        before an approval is used, so that none is spent on what a limit refuses.
        """
        if self._desk is None:
            return _denied(decision, "nobody can be asked for an approval here.", "Run it where a broker is.")
        if self._held >= MAX_HELD:
            return _denied(
                decision,
                f"{MAX_HELD} commands of this pod wait for an approval already.",
                "Wait until some are decided.",
            )
        if len(shown.encode()) > MAX_SHOWN_BYTES:
            return _denied(
                decision,
                f"it needs an approval, and its text with its parameters is longer than the {MAX_SHOWN_BYTES} bytes "
                "that people can be shown.",
                "Nothing was executed. Send shorter commands.",
            )
        self._held += 1
        try:
            request = _request(place, command, decision, shown, self._key())
            return await self._wait(self._desk, place, command, request, decision, admit)
        except ApprovalUnavailable as error:
            return _denied(decision, str(error), "Nothing was executed. Try again, or ask the platform team.")
        except SpoolFull:
            return _denied(decision, "the approval cannot be recorded, because the gateway's spool is full.", "")
        finally:
            self._held -= 1

    def leave(self, session: str, *, is_stopping: bool = False) -> None:
        """A session waits no longer: record it now and, unless the gateway stops, withdraw its requests soon."""
        self._is_stopping = self._is_stopping or is_stopping
        for one, name in tuple(self._waiting):
            if one == session:
                self._leave(session, name, is_stopping=is_stopping)

    def _leave(self, session: str, name: str, *, is_stopping: bool = False) -> None:
        """As `leave`, for one request; nothing where the session has left already."""
        state, message = (State.PENDING, STOPPED) if is_stopping else (State.CANCELLED, GONE)
        try:
            if not self._ends(session, name, state, message):
                return
        except SpoolFull:
            logger.error("session %s: the end of its wait for %s could not be recorded", session, name)
        if self._desk is not None and not is_stopping and not self._is_awaited(name):
            self._begin(self._withdraw(self._desk, name))

    def _ends(self, session: str, name: str, state: State, message: str) -> bool:
        """Record what came of a request; false where that was done."""
        if (session, name) not in self._waiting:
            return False
        self._waiting.remove((session, name))
        self._log.resolve_approval(session, name, state, message)
        return True

    def _is_awaited(self, name: str) -> bool:
        return any(one == name for _, one in self._waiting)

    async def _wait(
        self, desk: Desk, place: Place, command: Command, request: Request, decision: Decision, admit: Admit
    ) -> Decision:
        ticket = await self._asked(desk, place.session, request)
        self._log.request_approval(place.session, ticket.name, request)
        self._waiting.append((place.session, ticket.name))
        try:
            ticket = await self._decided(desk, ticket, command)
            if (place.session, ticket.name) not in self._waiting:
                return _denied(decision, GONE, "")  # the session has left, and that is recorded
            if ticket.state is State.APPROVED:
                if self._revision() != decision.revision:
                    ticket = msgspec.structs.replace(
                        ticket, state=State.CANCELLED, message="policy has changed meanwhile."
                    )
                else:
                    admitted = admit()
                    if admitted.action is Action.DENY:
                        self._ends(place.session, ticket.name, ticket.state, admitted.message)
                        return admitted
                    used = await desk.use(ticket.name, request)
                    if used.state is State.USED:  # the record is to say who approved, not that it was used
                        used = msgspec.structs.replace(used, message=ticket.message)
                    ticket = used
        except ApprovalUnavailable as error:
            self._ends(place.session, ticket.name, ticket.state, str(error))
            raise
        except asyncio.CancelledError:
            self._leave(place.session, ticket.name)
            raise
        self._ends(place.session, ticket.name, ticket.state, ticket.message)
        return _outcome(decision, ticket)

    async def _asked(self, desk: Desk, session: str, request: Request) -> Ticket:
        """Ask the desk; where the client goes meanwhile, what was made is recorded and withdrawn all the same.

        Where the gateway stops meanwhile, what was made stays: the next start asks for it, finds it and records it.
        """
        asking = asyncio.ensure_future(desk.ask(request))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if self._is_stopping:
                asking.cancel()
            else:
                self._begin(self._withdraw_unseen(desk, asking, session, request))
            raise

    async def _withdraw_unseen(
        self, desk: Desk, asking: asyncio.Future[Ticket], session: str, request: Request
    ) -> None:
        try:
            ticket = await asking
        except ApprovalUnavailable:
            return
        try:
            self._log.request_approval(session, ticket.name, request)
            self._log.resolve_approval(session, ticket.name, State.CANCELLED, GONE)
        except SpoolFull as error:
            logger.error("session %s: that it asked for %s could not be recorded: %s", session, ticket.name, error)
        if not self._is_awaited(ticket.name):
            await self._withdraw(desk, ticket.name)

    async def _withdraw(self, desk: Desk, name: str) -> None:
        try:
            async with asyncio.timeout(WITHDRAW_S):
                while True:
                    try:
                        await desk.withdraw(name)
                    except ApprovalUnavailable as error:
                        if not error.is_unanswered:
                            raise
                        await asyncio.sleep(PAUSE_S)
                    else:
                        return
        except (ApprovalUnavailable, TimeoutError) as error:
            logger.warning("%s could not be withdrawn: %s", name, str(error) or "no answer")

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._withdrawing.add(task)
        task.add_done_callback(self._withdrawing.discard)

    async def _decided(self, desk: Desk, ticket: Ticket, command: Command) -> Ticket:
        wait_s = min(ticket.wait_s, MAX_WAIT_IN_TRANSACTION_S) if command.in_transaction else ticket.wait_s
        until = self._now() + wait_s
        while ticket.state is State.PENDING and (left := until - self._now()) > 0:
            try:
                ticket = await desk.follow(ticket.name, min(POLL_S, max(1, round(left))))
            except ApprovalUnavailable as error:
                # A broker's restart, or a renewed certificate, cuts the question; the request is still there.
                if not error.is_unanswered:
                    raise
                await asyncio.sleep(min(PAUSE_S, left))
        return ticket


def _request(place: Place, command: Command, decision: Decision, shown: str, key: bytes) -> Request:
    facts = command.facts if command.shown_facts is None else command.shown_facts
    return Request(
        place.session, place.target, place.protocol, command.kind, shown, binding(place, command, key),
        shape(place, command.kind, facts), facts.accesses, decision.policy, decision.rule, decision.revision,
        user=place.delegated,
    )  # fmt: skip


def _outcome(decision: Decision, ticket: Ticket) -> Decision:
    if ticket.state is State.USED:
        return msgspec.structs.replace(decision, action=Action.ALLOW, approval=ticket.name)
    if ticket.state is State.PENDING:
        until = datetime.fromtimestamp(ticket.expires_at_unix, UTC)
        return _denied(
            decision,
            f'it waits for approval as request "{ticket.name}".',
            "Nothing was executed. Send the very same command again once people have approved it: it then passes "
            f"once, until {until:%H:%M:%S} UTC.",
        )
    if ticket.state is State.DENIED:
        return _denied(decision, f'request "{ticket.name}": {ticket.message or "denied."}', "Do something else.")
    return _denied(decision, f'request "{ticket.name}" is {ticket.state}: {ticket.message}', "Send the command anew.")


def _denied(decision: Decision, message: str, hint: str) -> Decision:
    return msgspec.structs.replace(decision, action=Action.DENY, message=message, hint=hint)
