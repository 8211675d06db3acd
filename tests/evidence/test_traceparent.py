"""What is taken for a trace context, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence.traceparent import of_application, of_statement, parse

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = GOOD.replace("4bf9", "5bf9")


@pytest.mark.parametrize(
    "header",
    [
        GOOD.upper(), GOOD[:-1], GOOD + "0", GOOD + "\n", " " + GOOD, "01" + GOOD[2:], "ff" + GOOD[2:],
        "00-" + "0" * 32 + GOOD[35:], GOOD[:36] + "0" * 16 + "-01", GOOD.replace("-", "_"), GOOD.replace("4", "\u0664"),
        "",
    ],
)  # fmt: skip
def test_what_is_not_valid_to_the_letter_is_none(header: str) -> None:
    assert parse(header) is None
    assert of_statement(f"SELECT 1 /*traceparent='{header}'*/") is None or header == " " + GOOD


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT 1 /*traceparent='{GOOD}'*/", f"SELECT 1 /*db='x%20y',traceparent='{GOOD}'*/;\n",
        f"/* traceparent='{GOOD}' , route='a' */ SELECT 1", f"/*traceparent='{GOOD}'*/",
        f"SELECT '/*', 1 /*traceparent='{GOOD}'*/", "x" * 5000 + f"/*traceparent='{GOOD}'*/",
    ],
)  # fmt: skip
def test_the_comment_at_either_end_of_a_statement_is_read(text: str) -> None:
    found = of_statement(text)
    assert found is not None
    assert (found.header, found.is_sampled) == (GOOD, True)


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT '/*traceparent=''{GOOD}''*/'", f"SELECT 1 /*traceparent='{GOOD}'*/ + 1",
        f"SELECT 1 /*traceparent='{GOOD}',traceparent='{OTHER}'*/",
        f"/*traceparent='{OTHER}'*/ SELECT 1 /*traceparent='{GOOD}'*/", f"SELECT 1 /*see traceparent='{GOOD}'*/",
        f"SELECT 1 /*traceparent={GOOD}*/", f"SELECT 1 -- traceparent='{GOOD}'",
        f"SELECT 1 /* /*traceparent='{GOOD}'*/ */",
        GOOD, "", "*/", "/*/",
    ],
)  # fmt: skip
def test_what_may_be_a_quoted_text_or_names_two_traces_is_none(text: str) -> None:
    assert of_statement(text) is None


def test_an_application_is_named_after_its_trace() -> None:
    for name in (GOOD, f"traceparent='{GOOD}'", f"app='x',traceparent='{GOOD}'"):
        assert of_application(name) == parse(GOOD)
    for name in ("psql", f"psql {GOOD}", f"{GOOD},{OTHER}", ""):
        assert of_application(name) is None


@given(st.text() | st.lists(st.sampled_from(["/*", "*/", "'", ",", ";", "traceparent=", GOOD, OTHER])).map("".join))
def test_any_text_is_read_without_harm(text: str) -> None:
    assert of_statement(text) in (None, parse(GOOD), parse(OTHER))
    assert of_application(text) in (None, parse(GOOD), parse(OTHER))
