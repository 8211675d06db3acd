"""Whatever is done to a bundle, both verifiers find it, and name the same record."""

from __future__ import annotations

import re

import pytest
from tampered_scene import Judges, Scene
from tampering import BEGIN, CASES, DOCUMENT, END, Case, Result, ask, row, table

FOUND: dict[str, str] = {}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("tampering"))


@pytest.fixture(scope="module")
def judges(scene: Scene) -> Judges:
    return Judges(scene)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_found_by_both_at_the_same_record(scene: Scene, judges: Judges, case: Case) -> None:
    results = ask(judges, scene, case)
    assert results
    for number, one in enumerate(results):
        _check(number, one)
    FOUND[case.name] = row(case, results)


def _check(number: int, one: Result) -> None:
    assert one.verdict == one.tried.expected, (number, one.output)
    assert one.companion == (one.tried.companion or one.tried.expected), (number, one.companion_output)
    if one.tried.note:
        assert re.search(one.tried.note, one.output), (number, one.output)
        assert one.tried.companion or re.search(one.tried.note, one.companion_output), (number, one.companion_output)


def test_the_table_in_the_documentation_says_what_was_found() -> None:
    assert len(FOUND) == len(CASES), "the cases have to run before this test"
    made = table([FOUND[case.name] for case in CASES])
    said = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    assert said == made, "write it anew: uv run python tests/support/tampering.py"
