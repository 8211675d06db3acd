"""Coverage: what populations say held against what came. Pure; the clock is told."""

from __future__ import annotations

import pytest

from chaperone_evidence.coverage import GRACE_US, SILENT_AFTER_US, Producer, Run, Said, Span, State, judge

NOW = 10_000_000_000
OLD = NOW - GRACE_US - 1  # a grace ago
ALIVE = Run(is_closed=False, is_superseded=False, is_lost=False, opened_us=OLD, seen_us=NOW - 5_000_000)
CLOSED = Run(is_closed=True, is_superseded=False, is_lost=False, opened_us=OLD, seen_us=OLD)
SUCCEEDED = Run(is_closed=False, is_superseded=True, is_lost=False, opened_us=1, seen_us=2)
CUT = Run(is_closed=False, is_superseded=False, is_lost=False, opened_us=5, seen_us=OLD)
LOST = Run(is_closed=False, is_superseded=False, is_lost=True, opened_us=5, seen_us=7)


def said(state: Said, *, said_us: int = OLD, reason: str = "", expected_us: int = 0) -> Producer:
    return Producer(state, said_us, reason, expected_us)


def judged(producer: Producer, *runs: Run, is_forked: bool = False, since_us: int = 0) -> tuple[State, str]:
    found = judge(producer, runs, is_forked=is_forked, now_us=NOW, since_us=since_us)
    return found.state, found.reason


@pytest.mark.parametrize("producer", [said(one) for one in Said])
@pytest.mark.parametrize("runs", [(), (ALIVE,), (LOST, ALIVE)])
def test_a_fork_is_told_whatever_else_is(producer: Producer, runs: tuple[Run, ...]) -> None:
    assert judged(producer, *runs, is_forked=True) == (State.FORKED, "")


def test_who_is_not_named_is_unknown() -> None:
    assert judged(said(Said.UNNAMED), ALIVE) == (State.UNKNOWN, "")
    assert judged(said(Said.DROPPED), ALIVE) == (State.UNKNOWN, "NoLongerNamed")
    assert judged(said(Said.DROPPED)) == (State.UNKNOWN, "NoLongerNamed")


def test_a_pod_without_a_gateway_is_uncovered_even_if_it_has_a_stream() -> None:
    assert judged(said(Said.UNCOVERED, reason="TwoIdentities"), ALIVE) == (State.UNCOVERED, "TwoIdentities")


def test_a_stream_has_a_minute_from_when_the_gateway_was_admitted() -> None:
    assert judged(said(Said.COVERED)) == (State.COVERED, "NotStarted")
    assert judged(said(Said.COVERED, expected_us=OLD)) == (State.MISSING, "")
    assert judged(said(Said.COVERED, expected_us=OLD + 2)) == (State.COVERED, "")
    assert judged(said(Said.COVERED, expected_us=OLD), since_us=NOW) == (State.COVERED, "")  # nobody could be heard


def test_who_says_nothing_is_silent_and_then_lost() -> None:
    quiet = Run(is_closed=False, is_superseded=False, is_lost=False, opened_us=5, seen_us=NOW - SILENT_AFTER_US - 1)
    assert judged(said(Said.COVERED), ALIVE) == (State.COVERED, "")
    assert judged(said(Said.COVERED), quiet) == (State.SILENT, "")
    assert judged(said(Said.COVERED), quiet, since_us=NOW) == (State.COVERED, "")
    assert judged(said(Said.COVERED), CLOSED) == (State.SILENT, "Closed")
    assert judged(said(Said.COVERED), LOST) == (State.LOST, "")


def test_a_stream_that_was_lost_before_stays_a_gap() -> None:
    found = judge(said(Said.COVERED), (LOST, ALIVE), is_forked=False, now_us=NOW, since_us=0)
    assert found.state == State.COVERED
    assert found.spans == (Span(State.LOST, 7, OLD),)


def test_an_end_is_one_when_each_stream_has_one() -> None:
    assert judged(said(Said.ENDED, reason="Deleted"), SUCCEEDED, CLOSED) == (State.ENDED, "Deleted")
    assert judged(said(Said.ENDED, reason="Deleted"), CUT) == (State.TRUNCATED, "Deleted")
    assert judged(said(Said.ENDED, reason="Deleted"), LOST, CLOSED) == (State.TRUNCATED, "Deleted")
    found = judge(said(Said.ENDED), (LOST, CUT), is_forked=False, now_us=NOW, since_us=0)
    assert found.spans == (Span(State.TRUNCATED, 7, 5), Span(State.TRUNCATED, OLD, OLD))


def test_an_end_without_a_stream_is_one_only_if_none_was_expected() -> None:
    assert judged(said(Said.ENDED, reason="Deleted")) == (State.ENDED, "Deleted")
    assert judged(said(Said.ENDED, reason="Deleted", expected_us=5)) == (State.MISSING, "Deleted")


def test_who_is_said_to_have_ended_and_goes_on_is_unknown() -> None:
    late = Run(is_closed=False, is_superseded=False, is_lost=False, opened_us=5, seen_us=OLD + GRACE_US + 1)
    assert judged(said(Said.ENDED), late) == (State.UNKNOWN, "AliveAfterItsEnd")
