"""Leases in memory: who uses them, how long they last, and what happens when they do not any more.

Theory of operation. A target has either one credential for all sessions, or each session gets one of its own. The one
for all is asked for again when a session begins `FRESH_S` or more after the last question, so a Secret that was changed
is taken over by the next session; where the broker does not answer, the one at hand serves until it ends. Sessions that
begin at one moment share one question. The one for a session is asked for once, and given back with its session's end.

Whatever sessions use is renewed at two thirds of its life. The one for all is renewed by asking anew: where another
credential comes, the sessions with the old one keep it until it ends, and no longer. When a lease ends, or the broker
says that there is none any more, its sessions end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.errors import LeaseRefused

MARGIN_S: Final = 60  # a lease is given to no new session this long before it ends
FRESH_S: Final = 5.0  # a question a session would cost the broker three calls to the API server each
PATIENCE_S: Final = 1.0  # with a broker that does not answer, while there is a lease at hand
AWAY_S: Final = 30.0  # then it is not asked again for a while: sessions, and the catalog, would wait in vain each time
KEEP_S: Final = 1.0  # between two looks at what is in use
RENEW_AT: Final = 2 / 3
RETRY_S: Final = 15.0  # before another try to renew
UNUSED_S: Final = 60.0  # a log-in takes 15 s at most; a lease that nobody uses by then is given back


class Calls(Protocol):
    """What the broker is asked; see `broker.Broker`."""

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        """A credential, or LeaseRefused."""
        ...

    async def renew_lease(self, lease_id: str) -> int:
        """Until when a session's lease lasts now, or LeaseRefused."""
        ...

    async def release_lease(self, lease_id: str) -> None:
        """A session's lease is not needed any more; silent when the broker cannot be told."""
        ...


class User(Protocol):
    """What works with a credential: a connection to a backend."""

    is_lost: bool

    def fail(self, error: Exception) -> None:
        """End it."""
        ...


@dataclass(eq=False)
class _Held:
    """One credential and who uses it. Times are seconds since 1970."""

    target: str
    session: str  # "" where it is for all
    lease: Lease
    asked_at: float
    ends_at: float
    renew_at: float
    users: list[User] = field(default_factory=list)
    is_renewing: bool = False

    def extend(self, now: float, ends_at: float) -> None:
        self.asked_at, self.ends_at = now, ends_at
        self.renew_at = now + RENEW_AT * (ends_at - now)


class Leases:
    """The leases of one gateway.

    Args:
        broker: gives them.
        now: the clock, in seconds since 1970.
    """

    def __init__(self, broker: Calls, now: Callable[[], float] = time.time) -> None:
        self._broker = broker
        self._now = now
        self._current: dict[str, _Held] = {}  # by target: what the next session gets
        self._held: dict[int, _Held] = {}  # by identity of the lease: all that are current or in use
        self._asking: dict[str, asyncio.Task[_Held]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        """The credential of a target, or of one session there, for whose key a certificate may be made.

        Raises:
            LeaseRefused: the broker says no, or cannot be reached.
        """
        if session:
            return self._hold(target, session, await self._broker.lease(target, session, public_key)).lease
        held, now = self._current.get(target), self._now()
        if held is None or held.ends_at - MARGIN_S <= now:
            return (await self._ask(target)).lease
        if held.asked_at + FRESH_S > now:
            return held.lease
        try:
            async with asyncio.timeout(PATIENCE_S):
                return (await self._ask(target)).lease
        except TimeoutError:
            pass
        except LeaseRefused as error:
            if not error.is_unanswered:
                raise
        held.asked_at = self._now() + AWAY_S - FRESH_S
        return held.lease

    def forget(self, lease: Lease) -> None:
        """The backend refused it, or there was no log-in: no session gets it any more."""
        held = self._held.get(id(lease))
        if held is None:
            return
        if self._current.get(held.target) is held:
            del self._current[held.target]
        if held.session:  # one for all may be that of a session that is just beginning
            self._drop(held)

    def use(self, lease: Lease, user: User) -> None:
        """A connection works with it from now on; it is failed when the lease ends."""
        held = self._held.get(id(lease))
        if held is None:
            user.fail(_ended("The credential was withdrawn while the session began; connect again."))
        else:
            held.users.append(user)

    def let_go(self, user: User) -> None:
        """A connection is over."""
        for held in tuple(self._held.values()):
            if user in held.users:
                held.users.remove(user)
                if held.session:
                    self._drop(held)

    def clear(self) -> None:
        """Another policy is in force: what it grants, and with which credential, is asked anew."""
        self._current.clear()
        self._asking.clear()  # an answer under way still serves those who wait for it

    async def keep(self) -> None:
        """Renew what is in use and end what has ended, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_S)
            self.look()

    def look(self) -> None:
        """End sessions whose lease has ended, and begin to renew what is due."""
        now = self._now()
        for held in tuple(self._held.values()):
            held.users = [user for user in held.users if not user.is_lost]
            if held.ends_at <= now:
                self._end(held, "was changed, or could not be renewed")
            elif not held.users:
                if held.asked_at + UNUSED_S <= now and self._current.get(held.target) is not held:
                    self._drop(held)
            elif held.renew_at <= now and not held.is_renewing:
                held.is_renewing = True
                self._spawn(self._renew(held))

    async def _ask(self, target: str) -> _Held:
        asking = self._asking.get(target)
        if asking is None:
            asking = self._asking[target] = asyncio.get_running_loop().create_task(self._ask_broker(target))
            asking.add_done_callback(lambda done: self._asked(target, done))
        return await asyncio.shield(asking)  # a client that goes away takes nobody else's answer with it

    def _asked(self, target: str, done: asyncio.Task[_Held]) -> None:
        if not done.cancelled():
            done.exception()  # those who waited have it, if any still did
        if self._asking.get(target) is done:
            del self._asking[target]

    async def _ask_broker(self, target: str) -> _Held:
        task = asyncio.current_task()
        try:
            lease = await self._broker.lease(target)
        except LeaseRefused as error:
            if not error.is_unanswered and self._asking.get(target) is task:
                self._current.pop(target, None)
            raise
        held = self._current.get(target)
        if held is not None and held.lease.is_same_credential(lease):
            held.extend(self._now(), lease.expires_at_unix)
            return held
        held = self._hold(target, "", lease)
        if self._asking.get(target) is task:  # else the policy changed meanwhile
            self._current[target] = held
        return held

    def _hold(self, target: str, session: str, lease: Lease) -> _Held:
        now, ends_at = self._now(), lease.expires_at_unix
        held = _Held(target, session, lease, now, ends_at, 0.0)
        held.extend(now, ends_at)
        self._held[id(lease)] = held
        return held

    async def _renew(self, held: _Held) -> None:
        try:
            if held.session:
                held.extend(self._now(), await self._broker.renew_lease(held.lease.id))
            else:
                fresh = await self._broker.lease(held.target)
                if held.lease.is_same_credential(fresh):
                    held.extend(self._now(), fresh.expires_at_unix)
                else:
                    held.renew_at = held.ends_at  # it is another one now; this one serves until it ends
        except LeaseRefused as error:
            held.renew_at = self._now() + RETRY_S
            if error.is_final:
                self._end(held, f"was withdrawn: {error}")
        finally:
            held.is_renewing = False

    def _end(self, held: _Held, why: str) -> None:
        users, held.users = held.users, []
        self.forget(held.lease)
        self._drop(held)
        for user in users:
            user.fail(_ended(f'The credential of target "{held.target}" {why}; connect again.'))

    def _drop(self, held: _Held) -> None:
        if self._held.pop(id(held.lease), None) is not None and held.session:
            self._spawn(self._broker.release_lease(held.lease.id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Wait until what was given back is told."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*self._tasks, return_exceptions=True)


def _ended(message: str) -> LeaseRefused:
    return LeaseRefused(message, is_final=True)
