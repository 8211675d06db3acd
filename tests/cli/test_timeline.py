"""The order in which `chaperone follow` tells what several watches tell it, how much it keeps, and how it looks."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_cli.moments import Page, fitted
from chaperone_cli.timeline import MAX_HELD, SETTLE_S, Moment, Timeline

RESOURCES = ("sessions", "commands")


def moment(key: str, at: int, *, is_end: bool = False, text: str = "SELECT 1") -> Moment:
    time = f"2026-11-27T10:{at // 60:02}:{at % 60:02}.000000Z"
    return Moment((key, key), time, is_end, "agents/billing", "orders-db", "PostgreSQL", ((">", text), ("=", "Allow")))


def keys(moments: object) -> list[str]:
    return [one.key[0] for one in moments]  # type: ignore[attr-defined]


def test_what_settled_is_told_in_the_order_of_its_time() -> None:
    line = Timeline(RESOURCES, 0)
    line.add("commands", 9, [moment("third", 3), moment("first", 1)], 10)
    line.add("sessions", 9, [moment("second", 2)], 10)
    assert keys(line.due(10 + SETTLE_S / 2)) == []
    assert line.wait_s() is not None
    assert keys(line.due(10 + SETTLE_S)) == ["first", "second", "third"]
    assert line.wait_s() is None


def test_a_watch_that_still_tells_older_parts_of_the_log_is_waited_for() -> None:
    line = Timeline(RESOURCES, 0)
    line.add("commands", 100, [moment("late", 50)], 10)
    for second in range(10):  # the other one is far behind, and speaks
        line.add("sessions", second, [moment(f"session {second}", second)], 10 + second * SETTLE_S / 2)
    told = keys(line.due(10 + 9 * SETTLE_S / 2))
    assert "late" not in told
    line.reached("sessions", 100, 20)
    assert keys(line.due(20 + SETTLE_S))[-1] == "late"


def test_a_watch_with_nothing_to_tell_keeps_nobody_waiting() -> None:
    line = Timeline(RESOURCES, 0)
    line.add("commands", 100, [moment("only", 1)], 10)
    assert keys(line.due(10 + SETTLE_S)) == ["only"]


def test_a_watch_that_only_begins_is_waited_for_longer() -> None:
    line = Timeline(RESOURCES, 10)
    line.add("sessions", 9, [moment("opened", 1), moment("ended", 3)], 10)
    assert keys(line.due(10 + 2 * SETTLE_S)) == []
    line.add("commands", 9, [moment("command", 2)], 10 + 2 * SETTLE_S)
    assert keys(line.due(10 + 3 * SETTLE_S)) == ["opened", "command", "ended"]
    line.add("sessions", 10, [moment("more", 4)], 20)
    assert keys(line.due(20 + SETTLE_S)) == ["more"]


def test_an_end_that_comes_soon_takes_the_place_of_its_beginning() -> None:
    line = Timeline(RESOURCES, 0)
    line.add("commands", 1, [moment("one", 1, text="begun")], 10)
    line.add("commands", 2, [moment("one", 1, text="ended")], 10 + SETTLE_S / 2)
    assert [one.lines[0][1] for one in line.due(10 + SETTLE_S * 2)] == ["ended"]


def test_no_more_is_held_than_is_allowed_and_the_watch_ahead_waits() -> None:
    line = Timeline(RESOURCES, 0)
    line.add("commands", 5, [moment("first", 0)], 10)
    line.add("sessions", 3 * MAX_HELD, [moment(f"s{n}", n % 60) for n in range(MAX_HELD)], 10)
    assert line.wanted() == {"commands"}
    line.reached("commands", 4 * MAX_HELD, 10)  # now it is level, and what is too much goes at once
    assert len(keys(line.due(10))) >= 1
    assert line.wanted() == {"sessions", "commands"}


@given(
    st.lists(
        st.tuples(st.sampled_from(RESOURCES), st.integers(1, 20), st.integers(0, 3000), st.floats(0, 1)), max_size=80
    )
)
def test_everything_is_told_once(steps: list[tuple[str, int, int, float]]) -> None:
    line, now, versions, told = Timeline(RESOURCES, 0), 0.0, dict.fromkeys(RESOURCES, 0), []
    for number, (resource, growth, at, pause) in enumerate(steps):
        now += pause
        versions[resource] += growth
        line.add(resource, versions[resource], [moment(str(number), at)], now)
        told += keys(line.due(now))
    told += keys(line.all())
    assert sorted(told, key=int) == [str(number) for number in range(len(steps))]


def test_lines_say_the_day_once_and_are_no_wider_than_they_may_be() -> None:
    page = Page(is_coloured=False, has_who=True)
    first = list(page.lines(moment("a", 1, text="SELECT " + "wide, " * 60), 100))
    assert first[0] == "-- 2026-11-27 UTC --"
    assert first[1].startswith("10:00:01.000  agents/billing  orders-db     PostgreSQL  > SELECT wide, ")
    assert [line.strip()[0] for line in first[2:]] == [">", ">", "="]
    assert first[3].endswith("…")
    assert max(map(len, first)) <= 100
    assert first[4].strip() == "= Allow"
    assert first[4].index("=") == first[1].index(">")
    assert len(list(page.lines(moment("b", 2), 100))) == 2


def test_colours_are_where_they_are_asked_for_and_the_agent_cannot_add_any() -> None:
    hostile = moment("a", 1, text="SELECT \x1b[31m1")
    assert "\x1b" not in "".join(Page(is_coloured=False, has_who=False).lines(hostile, 100))
    shown = list(Page(is_coloured=True, has_who=False).lines(hostile, 100))
    assert "\x1b[31m" not in shown[1]
    assert shown[2].endswith("\x1b[32m= Allow\x1b[0m")


@pytest.mark.parametrize("text", ["選択 " * 30, "é" * 300, "a\N{COMBINING ACUTE ACCENT}" * 80, "\u202e\n\x1b[2J" * 30])
def test_wide_characters_do_not_wrap_into_a_line_of_their_own(text: str) -> None:
    shown = fitted(text, 20)
    cells = sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in shown
    )
    assert cells == 20
    assert shown.isprintable()
