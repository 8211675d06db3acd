"""What the demo judges, held against what README shows of it; each judgement can fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chaperone_tools.demo.story import Story
from chaperone_tools.demo.task import FOLLOW, judge_timeline

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def timeline() -> list[str]:
    found = re.search(rf"\$ {' '.join(FOLLOW)}\n(.+?)\n```", README, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def judged(lines: list[str]) -> list[str]:
    story = Story({})
    judge_timeline(story, lines)
    return story.failures


def test_readme_shows_a_timeline_that_the_demo_would_accept(timeline: list[str]) -> None:
    assert judged(timeline) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("= Deny by worker/never", "= Allow by worker/look", "DELETE /apis/apps"),
        ("approved as", "", "DELETE FROM invoices"),
        ("  HTTP  ", "  SSH   ", "GET /v1/payments/4"),
        ("id = ?", "id = ?" + " " * 60, "wider than 100"),
        ("1 of billing-leads", "1 of on-call", "what people were asked"),
        ("by grace", "by eve", "what people were asked"),
        ("= Deny by tickets/never", "= Allow by tickets/call", "tool:delete_ticket"),
        ("21:35:58.733", "21:35:01.733", "not in the order"),
    ],
)
def test_a_timeline_that_is_other_than_said_is_not_accepted(timeline: list[str], old: str, new: str, said: str) -> None:
    changed = [line.replace(old, new) for line in timeline]
    assert changed != timeline
    (failure,) = judged(changed)
    assert said in failure


def test_a_command_that_is_missing_is_named(timeline: list[str]) -> None:
    place = next(number for number, line in enumerate(timeline) if "tail -n 3" in line)
    (failure,) = judged(timeline[:place] + timeline[place + 2 :])
    assert "tail -n 3" in failure
