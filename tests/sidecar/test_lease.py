"""Leases: asked for once by sessions that begin together, taken over when they change, ended with their sessions."""

from __future__ import annotations

import asyncio

import pytest

from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.credentials.lease import FRESH_S, MARGIN_S, RETRY_S, UNUSED_S, Leases
from chaperone_sidecar.errors import LeaseRefused

LIFE_S = 900


class Broker:
    """Leases passwords on a clock of the test's own; waits for `go` when there is one."""

    def __init__(self) -> None:
        self.now, self.password = 1000.0, "first"
        self.asked, self.renewed, self.released = 0, 0, list[str]()
        self.refusal: LeaseRefused | None = None
        self.go: asyncio.Event | None = None

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        self.asked += 1
        if self.go is not None:
            await self.go.wait()
        if self.refusal is not None:
            raise self.refusal
        return Lease(target, session or self.password, "", int(self.now) + LIFE_S, session)

    async def renew_lease(self, lease_id: str) -> int:
        self.renewed += 1
        if self.refusal is not None:
            raise self.refusal
        return int(self.now) + LIFE_S

    async def release_lease(self, lease_id: str) -> None:
        self.released.append(lease_id)

    def leases(self) -> Leases:
        return Leases(self, lambda: self.now)


class Connection:
    """A connection to a backend."""

    def __init__(self) -> None:
        self.is_lost = False
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error, self.is_lost = error, True


async def pass_time(broker: Broker, leases: Leases, seconds: float) -> None:
    """Let time pass, look at the leases, and let what that began end."""
    broker.now += seconds
    leases.look()
    await leases.stop()


async def test_sessions_shortly_after_each_other_share_a_question() -> None:
    broker = Broker()
    leases = broker.leases()
    assert {(await leases.lease("db")).password for _ in range(100)} == {"first"}
    assert broker.asked == 1
    await leases.lease("other")
    assert broker.asked == 2


async def test_a_changed_secret_is_taken_over_by_the_next_session() -> None:
    broker = Broker()
    leases = broker.leases()
    before = await leases.lease("db")
    broker.password = "second"
    broker.now += FRESH_S - 0.1
    assert await leases.lease("db") is before
    broker.now += 0.1
    assert (await leases.lease("db")).password == "second"


async def test_a_broker_that_is_away_leaves_the_lease_at_hand_until_shortly_before_it_ends() -> None:
    broker = Broker()
    leases = broker.leases()
    await leases.lease("db")
    broker.refusal = LeaseRefused("away", is_unanswered=True)
    broker.now += LIFE_S - MARGIN_S - 1
    assert (await leases.lease("db")).password == "first"
    asked = broker.asked
    assert (await leases.lease("db")).password == "first"
    assert broker.asked == asked  # and is not asked again by each session
    broker.now += 1
    with pytest.raises(LeaseRefused):
        await leases.lease("db")


async def test_a_broker_that_hangs_keeps_a_session_that_has_a_lease_for_two_seconds() -> None:
    broker = Broker()
    leases = broker.leases()
    await leases.lease("db")
    broker.now += FRESH_S
    broker.go = asyncio.Event()
    async with asyncio.timeout(10):
        assert (await leases.lease("db")).password == "first"


async def test_a_broker_that_says_no_is_heard_by_the_next_session() -> None:
    broker = Broker()
    leases = broker.leases()
    await leases.lease("db")
    broker.refusal = LeaseRefused("no", is_final=True)
    broker.now += FRESH_S
    for _ in range(2):
        with pytest.raises(LeaseRefused):
            await leases.lease("db")
    broker.refusal = None
    assert (await leases.lease("db")).password == "first"


async def test_sessions_that_begin_together_share_one_question_and_one_that_leaves_harms_nobody() -> None:
    broker = Broker()
    broker.go = asyncio.Event()
    leases = broker.leases()
    waiting = [asyncio.create_task(leases.lease("db")) for _ in range(10)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    broker.go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.password for one in found[1:] if isinstance(one, Lease)} == {"first"}
    assert broker.asked == 1


async def test_what_the_backend_refuses_is_asked_for_anew() -> None:
    broker = Broker()
    leases = broker.leases()
    refused = await leases.lease("db")
    broker.password = "second"
    leases.forget(refused)
    assert (await leases.lease("db")).password == "second"
    leases.forget(refused)  # by another session that began before
    assert (await leases.lease("db")).password == "second"
    assert broker.asked == 2


async def test_another_policy_keeps_no_lease_not_even_one_under_way() -> None:
    broker = Broker()
    broker.go = asyncio.Event()
    leases = broker.leases()
    early = asyncio.create_task(leases.lease("db"))
    await asyncio.sleep(0)
    leases.clear()
    broker.go.set()
    found = await early
    await leases.lease("db")
    assert broker.asked == 2
    connection = Connection()
    leases.use(found, connection)  # a session that was beginning then is none the worse
    assert connection.error is None


async def test_open_sessions_are_kept_by_renewal_and_cost_a_question_each_ten_minutes() -> None:
    broker = Broker()
    leases, connections = broker.leases(), [Connection() for _ in range(20)]
    for connection in connections:
        leases.use(await leases.lease("db"), connection)
    for _ in range(120):
        await pass_time(broker, leases, 60)
    assert [one.error for one in connections] == [None] * 20
    assert broker.asked == 1 + 2 * 60 / 10


async def test_sessions_with_a_password_that_was_changed_last_as_long_as_their_lease() -> None:
    broker = Broker()
    leases, old, new = broker.leases(), Connection(), Connection()
    leases.use(await leases.lease("db"), old)
    broker.password = "second"
    await pass_time(broker, leases, LIFE_S * 0.7)
    leases.use(await leases.lease("db"), new)
    await pass_time(broker, leases, LIFE_S * 0.3 - 1)
    assert old.error is None
    await pass_time(broker, leases, 1)
    assert "was changed, or could not be renewed; connect again" in str(old.error)
    assert new.error is None


async def test_sessions_end_with_a_lease_that_could_not_be_renewed() -> None:
    broker = Broker()
    leases, connection = broker.leases(), Connection()
    leases.use(await leases.lease("db"), connection)
    broker.refusal = LeaseRefused("away", is_unanswered=True)
    await pass_time(broker, leases, LIFE_S - 1)
    assert connection.error is None
    asked = broker.asked
    await pass_time(broker, leases, 0.5)
    assert broker.asked == asked  # it is asked again after a pause
    await pass_time(broker, leases, 0.5)
    assert isinstance(connection.error, LeaseRefused)


async def test_sessions_end_at_once_when_the_broker_takes_their_lease_back() -> None:
    for session in ("", "one"):
        broker = Broker()
        leases, connection = broker.leases(), Connection()
        leases.use(await leases.lease("db", session), connection)
        broker.refusal = LeaseRefused("policy says no.", is_final=True)
        await pass_time(broker, leases, LIFE_S * 0.7)
        assert "was withdrawn: policy says no." in str(connection.error)


async def test_a_session_has_a_lease_of_its_own_that_is_renewed_and_given_back() -> None:
    broker = Broker()
    leases, one, two = broker.leases(), Connection(), Connection()
    leases.use(await leases.lease("db", "one"), one)
    leases.use(await leases.lease("db", "two"), two)
    await pass_time(broker, leases, LIFE_S * 0.7)
    assert (broker.asked, broker.renewed) == (2, 2)
    leases.let_go(one)
    await leases.stop()
    assert broker.released == ["one"]
    await pass_time(broker, leases, LIFE_S * 0.7)
    assert (broker.renewed, two.error) == (3, None)


async def test_a_lease_without_a_session_is_given_back() -> None:
    broker = Broker()
    leases, cut = broker.leases(), Connection()
    leases.forget(await leases.lease("db", "refused"))
    await leases.lease("db", "never used")
    leases.use(await leases.lease("db", "cut"), cut)
    cut.is_lost = True  # and nobody said so
    await pass_time(broker, leases, UNUSED_S)
    assert sorted(broker.released) == ["cut", "never used", "refused"]


async def test_a_refused_renewal_is_tried_again() -> None:
    broker = Broker()
    leases, connection = broker.leases(), Connection()
    leases.use(await leases.lease("db", "one"), connection)
    broker.refusal = LeaseRefused("away", is_unanswered=True)
    await pass_time(broker, leases, LIFE_S * 0.7)
    broker.refusal = None
    await pass_time(broker, leases, RETRY_S)
    await pass_time(broker, leases, LIFE_S * 0.4)
    assert (broker.renewed, connection.error) == (2, None)


def test_repr_of_a_lease_shows_nothing() -> None:
    assert "secret" not in repr(Lease("secret", "secret", "secret", 7))
