"""How often one caller may call."""

from __future__ import annotations

import pytest

from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.limit import MAX_CALLERS, Limit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_burst_is_spent_and_comes_back_with_time() -> None:
    clock = Clock()
    limit = Limit(per_minute=6, burst=2, clock=clock)
    limit.take("a")
    limit.take("a")
    with pytest.raises(Refused) as refused:
        limit.take("a")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 11)
    limit.take("b")
    clock.now = 10.0
    limit.take("a")
    with pytest.raises(Refused):
        limit.take("a")


def test_refused_calls_do_not_postpone_the_next_admitted_one() -> None:
    clock = Clock()
    limit = Limit(per_minute=60, burst=1, clock=clock)
    limit.take("a")
    for tenth in range(1, 10):
        clock.now = tenth / 10
        with pytest.raises(Refused):
            limit.take("a")
    clock.now = 1.0
    limit.take("a")


def test_memory_is_bounded_and_the_busy_caller_is_not_the_one_forgotten() -> None:
    limit = Limit(per_minute=1, burst=1, clock=Clock())
    limit.take("busy")
    for caller in range(MAX_CALLERS - 1):
        limit.take(str(caller))
    with pytest.raises(Refused):
        limit.take("busy")
    limit.take("one more")
    with pytest.raises(Refused):
        limit.take("busy")
