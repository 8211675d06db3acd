"""Is everybody heard who has to be? What populations say of a pod, held against the streams that came. Pure.

| state | when |
|---|---|
| Covered | a population names it, and its stream is signed on |
| Missing | its gateway was admitted a minute ago or more, and no stream came |
| Uncovered | a population says that no gateway holds it, and why |
| Silent | its stream was not signed for half a minute, or is over while the pod is not |
| Lost | the log states that its stream fell silent without an end |
| Ended | a population says so, and each of its streams has an end that is proved |
| Truncated | it ended, and a stream of it has no signed end: what came after the last record is not known |
| Forked | it said two different things in one place |
| Unknown | it has a stream, and no population names it (any more) |
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

GRACE_US: Final = 60_000_000  # between what is said and what has to come
SILENT_AFTER_US: Final = 30_000_000  # three heads that did not come
LOST_AFTER_US: Final = 60_000_000  # six heads that did not come: nobody waits for them any more


class Said(StrEnum):
    """What the newest population says of a pod."""

    UNNAMED = "Unnamed"  # nothing yet, and none before it
    COVERED = "Covered"
    UNCOVERED = "Uncovered"
    ENDED = "Ended"
    DROPPED = "Dropped"  # nothing any more, and none said that it had ended


class State(StrEnum):
    """Whether a pod is heard."""

    COVERED = "Covered"
    MISSING = "Missing"
    UNCOVERED = "Uncovered"
    SILENT = "Silent"
    LOST = "Lost"
    ENDED = "Ended"
    TRUNCATED = "Truncated"
    FORKED = "Forked"
    UNKNOWN = "Unknown"


class Producer(msgspec.Struct, frozen=True):
    """What populations say of a pod. Times are those of who judges; 0: never."""

    said: Said
    said_us: int  # since when
    reason: str
    expected_us: int  # since when there has to be a stream


class Run(msgspec.Struct, frozen=True):
    """A stream of the pod."""

    is_closed: bool  # by a signed head
    is_superseded: bool  # the next one proves its end
    is_lost: bool  # the log states it
    opened_us: int  # by the gateway's clock
    seen_us: int

    @property
    def has_end(self) -> bool:
        """Whether nothing can have followed that is not here."""
        return self.is_closed or self.is_superseded


class Span(msgspec.Struct, frozen=True):
    """A time in which the pod was not heard; `until_us` 0: it lasts."""

    state: State
    from_us: int
    until_us: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """What is to be said of the pod."""

    state: State
    reason: str = ""
    spans: tuple[Span, ...] = ()


def judge(producer: Producer, runs: Sequence[Run], *, is_forked: bool, now_us: int, since_us: int) -> Verdict:
    """Compare.

    Args:
        producer: what populations say.
        runs: the pod's streams, in the order in which they began.
        is_forked: whether one of them is.
        now_us: the collector's clock.
        since_us: when the collector began to listen; before it nobody could be heard.
    """
    verdict = _judge(producer, runs, now_us, since_us)
    return Verdict(State.FORKED, "", verdict.spans) if is_forked else verdict


def _judge(producer: Producer, runs: Sequence[Run], now_us: int, since_us: int) -> Verdict:
    match producer.said:
        case Said.UNNAMED:
            return Verdict(State.UNKNOWN, producer.reason)
        case Said.DROPPED:
            return Verdict(State.UNKNOWN, "NoLongerNamed")
        case Said.UNCOVERED:
            return Verdict(State.UNCOVERED, producer.reason, (Span(State.UNCOVERED, producer.said_us),))
        case Said.ENDED:
            return _ended(producer, runs)
    return _covered(producer, runs, now_us, since_us)


def _ended(producer: Producer, runs: Sequence[Run]) -> Verdict:
    over_us = producer.said_us
    if not runs:
        if not producer.expected_us:
            return Verdict(State.ENDED, producer.reason)
        return Verdict(State.MISSING, producer.reason, (Span(State.MISSING, producer.expected_us, over_us),))
    if runs[-1].seen_us > over_us + GRACE_US:
        return Verdict(State.UNKNOWN, "AliveAfterItsEnd")
    cut = tuple(
        Span(State.TRUNCATED, one.seen_us, _resumed(runs[number + 1 :], max(over_us, one.seen_us)))
        for number, one in enumerate(runs)
        if not one.has_end
    )
    return Verdict(State.TRUNCATED if cut else State.ENDED, producer.reason, cut)


def _covered(producer: Producer, runs: Sequence[Run], now_us: int, since_us: int) -> Verdict:
    if not runs:
        if not producer.expected_us:
            return Verdict(State.COVERED, "NotStarted")
        if max(producer.expected_us, since_us) > now_us - GRACE_US:
            return Verdict(State.COVERED)
        return Verdict(State.MISSING, "", (Span(State.MISSING, producer.expected_us),))
    lost = tuple(
        Span(State.LOST, one.seen_us, _resumed(runs[number + 1 :], 0)) for number, one in enumerate(runs) if one.is_lost
    )
    last = runs[-1]
    if last.is_lost:
        return Verdict(State.LOST, "", lost)
    if max(last.seen_us, since_us) < now_us - SILENT_AFTER_US:
        silent = Span(State.SILENT, last.seen_us)
        return Verdict(State.SILENT, "Closed" if last.is_closed else "", (*lost, silent))
    return Verdict(State.COVERED, "", lost)


def _resumed(later: Sequence[Run], otherwise_us: int) -> int:
    """When the pod was heard again."""
    return later[0].opened_us if later else otherwise_us
