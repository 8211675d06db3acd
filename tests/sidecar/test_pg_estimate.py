"""Estimates of rows: what is asked of the database, and which answers are believed."""

from __future__ import annotations

import pytest

from chaperone_sidecar.protocols.postgresql import estimate


def plan(rows: object, *steps: bytes) -> bytes:
    inner = b', "Plans": [' + b",".join(steps) + b"]" if steps else b""
    return b'{"Plan Rows": ' + str(rows).encode() + inner + b"}"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (plan(7), 7),
        (plan(0, plan(3)), 3),
        (plan(1, plan(1000, plan(20), plan(5000))), 5000),
        (plan("1e3"), 1000),
        (plan(-1), None),
        (plan('"7"'), None),
        (plan("null"), None),
        (b"{}", None),
        (b"7", None),
        (b"\xff", None),
    ],
)
def test_the_largest_step_of_a_plan_counts(answer: bytes, expected: int | None) -> None:
    assert estimate.rows([b'[{"Plan": ' + answer + b"}]"]) == expected


@pytest.mark.parametrize("values", [[], [b"[]"], [b"{}"], [b"["], [b'[{"Plan": {"Plan Rows": 1}}, {}]']])
def test_what_is_no_plan_is_no_estimate(values: list[bytes]) -> None:
    assert estimate.rows(values) is None


def test_the_statement_is_planned_with_its_parameters_and_never_run() -> None:
    params = b"\x00\x01\x00\x01" + b"\x00\x01\x00\x00\x00\x01x" + b"\x00\x02\x00\x01\x00\x01"
    asked = estimate.request(b"DELETE FROM t", params)
    assert b"\x00EXPLAIN (FORMAT JSON) DELETE FROM t\x00" in asked
    assert b"\x00\x01\x00\x01\x00\x01\x00\x00\x00\x01x\x00\x00E" in asked
    assert b"ANALYZE" not in asked
