"""The arithmetic of limits, with a clock that stands still until it is told."""

from __future__ import annotations

import pytest

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.config import Limit, Limits
from chaperone_sidecar.decision import Action
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.limits.reached import Name, Reached


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def most(number: int) -> Limit:
    return Limit(number, "agents/billing")


def command(text: bytes = b"SELECT 1", params: bytes = b"", effect: Effect = Effect.READ) -> Command:
    return Command("query", text, Facts((Access(effect, "x"),), Resolution.SYNTACTIC), params)


def name(reached: Reached | None) -> str | None:
    return None if reached is None else reached.name


def test_without_limits_nothing_is_reached() -> None:
    meter = Meter(Quota())
    assert meter.enter() is meter.admit(command()) is meter.take(10**12, 10**15, 10**15) is meter.watch(meter) is None


def test_connections_are_counted_over_all_sessions_and_given_back_once() -> None:
    quota = Quota(Limits(connections=most(2)))
    first, second, third = Meter(quota), Meter(quota), Meter(quota)
    assert first.enter() is second.enter() is None
    assert name(third.enter()) == "connections"
    third.leave()  # was never in
    assert name(third.enter()) == "connections"
    first.leave()
    first.leave()
    assert third.enter() is None
    assert quota.connections == 2


def test_commands_of_any_minute_are_counted_over_all_sessions() -> None:
    clock = Clock()
    quota = Quota(Limits(commands_per_minute=most(3)), clock)
    one, other = Meter(quota), Meter(quota)
    for meter in (one, other, one):
        assert meter.admit(command()) is None
        clock.now_s += 10
    reached = other.admit(command())
    assert reached is not None
    assert (reached.name, reached.retry_s) == ("commandsPerMinute", 30.0)
    assert "Try again in 30 s" in reached.hint
    clock.now_s += 29.9
    assert name(one.admit(command())) == "commandsPerMinute"  # asking again does not put it off
    clock.now_s += 0.1
    assert one.admit(command()) is None
    assert name(one.admit(command())) == "commandsPerMinute"


def test_no_minute_holds_more_than_the_limit_however_commands_are_spread() -> None:
    clock, ran = Clock(), []
    quota = Quota(Limits(commands_per_minute=most(7)), clock)
    for step in range(5000):
        clock.now_s += 0.1 + (step % 7) * 0.9
        if quota.run() is None:
            ran.append(clock.now_s)
    assert all(later - earlier >= 60 for earlier, later in zip(ran, ran[7:], strict=False))
    assert len(ran) > 7 * (clock.now_s - 1000) / 60 * 0.9


@pytest.mark.parametrize(("before", "after", "passes"), [(3, 5, 2), (5, 3, 0), (3, 3, 0)])
def test_commands_of_the_last_minute_count_when_the_limit_changes(before: int, after: int, passes: int) -> None:
    quota = Quota(Limits(commands_per_minute=most(before)), Clock())
    while quota.run() is None:
        pass
    quota.use(Limits(commands_per_minute=most(after)))
    assert sum(quota.run() is None for _ in range(10)) == passes


def test_transactions_can_always_be_begun_and_ended() -> None:
    meter = Meter(Quota(Limits(commands_per_minute=most(1), bytes_per_session=most(60)), Clock()))
    assert meter.admit(command()) is None
    for _ in range(10):
        assert meter.admit(command(b"ROLLBACK", effect=Effect.TRANSACTION)) is None
    assert name(meter.admit(command(b"BEGIN; SELECT 1"))) == "commandsPerMinute"


def test_rows_are_those_of_one_command() -> None:
    meter = Meter(Quota(Limits(rows_per_command=most(5))))
    assert meter.take(5, 100) is None
    assert name(meter.take(6, 1)) == "rowsPerCommand"
    assert meter.take(5, 100) is None


def test_bytes_are_those_that_were_moved_in_both_directions() -> None:
    meter = Meter(Quota(Limits(bytes_per_session=most(100))))
    assert meter.admit(command(b"x" * 20, b"y" * 10)) is None
    assert meter.take(1, 60) is None
    assert name(meter.take(2, 11)) == "bytesPerSession"
    assert meter.bytes == 90
    assert meter.take(2, 10) is None
    assert name(meter.admit(command(b"x"))) == "bytesPerSession"


def test_a_row_that_would_pass_the_limit_is_stopped_before_it_begins() -> None:
    meter = Meter(Quota(Limits(bytes_per_session=most(1000))))
    assert name(meter.take(1, 100, ahead_bytes=901)) == "bytesPerSession"
    assert meter.take(1, 100, ahead_bytes=900) is None
    assert meter.take(1, 900) is None


def test_a_refused_command_is_not_counted_against_the_bytes() -> None:
    meter = Meter(Quota(Limits(bytes_per_session=most(100), commands_per_minute=most(1)), Clock()))
    assert meter.admit(command(b"x" * 40)) is None
    assert name(meter.admit(command(b"x" * 40))) == "commandsPerMinute"
    assert meter.bytes == 40


def test_a_command_is_watched_from_when_it_was_first_seen() -> None:
    clock, first, second = Clock(), object(), object()
    meter = Meter(Quota(Limits(command_duration_ms=most(2000)), clock))
    assert meter.watch(first) is None
    clock.now_s += 1.9
    assert meter.watch(first) is meter.watch(second) is None
    clock.now_s += 1.9
    assert meter.watch(second) is None
    clock.now_s += 0.1
    reached = meter.watch(second)
    assert name(reached) == "commandDuration"
    assert reached is not None
    assert "longer than it may (2 s)" in reached.message
    assert meter.watch(None) is meter.watch(second) is None


def test_open_sessions_follow_limits_that_change() -> None:
    quota = Quota()
    meter = Meter(quota)
    assert meter.take(100, 100) is None
    quota.use(Limits(rows_per_command=most(50), bytes_per_session=most(150)))
    assert name(meter.take(51, 1)) == "rowsPerCommand"
    assert name(meter.take(1, 51)) == "bytesPerSession"
    quota.use(Limits())
    assert meter.take(10**6, 10**6) is None


@pytest.mark.parametrize(
    "limit", ["connections", "commandsPerMinute", "rowsPerCommand", "bytesPerSession", "commandDuration"]
)
def test_every_limit_says_what_it_is_whose_it_is_and_what_to_do(limit: Name) -> None:
    reached = Reached(limit, most(7000), 2.2)
    assert "7" in reached.message
    assert reached.message.endswith(".")
    assert reached.hint.endswith(".")
    assert reached.whose == f'limits.{limit} of policy "agents/billing"'
    decision = reached.decision("r1")
    assert (decision.action, decision.policy, decision.rule) == (Action.DENY, "agents/billing", f"limit:{limit}")
    assert (decision.revision, decision.hint) == ("r1", reached.hint)
