"""What statements of MySQL count as, and which of them masks cannot be kept for: one line a case in tests/corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.masking.rule import Classified as ClassifiedColumns
from chaperone_sidecar.masking.rule import Masks
from chaperone_sidecar.protocols.mysql.classify import classify
from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.plan import Columns
from chaperone_sidecar.protocols.mysql.reading import lowered
from chaperone_sidecar.protocols.mysql.tokens import MAX_DEPTH, MAX_TEXT_BYTES, Unreadable, tokenize

CORPORA = Path(__file__).parents[1] / "corpora"
ORDERS = Context("orders")
MASKED = Columns(Masks(classified=(ClassifiedColumns(("orders.customers.email",), "email"),)))


def _lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (CORPORA / name).read_text().splitlines()]


def _accesses(text: str, context: Context = ORDERS) -> list[str]:
    return [f"{one.effect} {one.object}".strip() for one in classify(text.encode(), context).facts.accesses]


@pytest.mark.parametrize("case", _lines("mysql_effects.jsonl"), ids=lambda case: str(case["sql"])[:60])
def test_effects(case: dict[str, object]) -> None:
    facts = classify(str(case["sql"]).encode(), ORDERS).facts
    assert [f"{one.effect} {one.object}".strip() for one in facts.accesses] == case["accesses"]
    assert (Access(Effect.UNKNOWN) in facts.accesses) == bool(facts.why_unknown)
    if "where" in case:
        assert (facts.extents[0].has_where, facts.extents[0].limit) == (case["where"], case["limit"])
    else:
        assert not facts.extents


@pytest.mark.parametrize("case", _lines("mysql_masking.jsonl"), ids=lambda case: str(case["sql"])[:60])
def test_masks_that_cannot_be_kept_are_told(case: dict[str, object]) -> None:
    found = MASKED.check(classify(str(case["sql"]).encode(), ORDERS).plan)
    assert str(case["why"]) in found
    assert bool(case["why"]) == bool(found)


def test_names_are_folded_where_the_server_folds_them() -> None:
    assert _accesses("select a from Big.Table1") == ["read Big.Table1"]
    assert _accesses("select a from Big.Table1", Context("orders", folds_tables=True)) == ["read big.table1"]


@pytest.mark.parametrize("folds", [True, False])
def test_a_mask_keeps_its_column_however_policy_and_server_write_its_name(folds: bool) -> None:
    masks = lowered(Masks(classified=(ClassifiedColumns(("Shop.Customers.EMail",), "email"),)))
    plan = classify(b"select upper(email) from Shop.Customers", Context("orders", folds_tables=folds)).plan
    assert "is masked" in Columns(masks).check(plan)


def test_without_a_database_an_unqualified_table_is_unknown() -> None:
    assert _accesses("select a from t", Context("")) == ["unknown"]
    assert _accesses("select a from x.t", Context("")) == ["read x.t"]


def test_use_changes_the_database_of_what_follows() -> None:
    assert classify(b"use other", ORDERS).database == "other"


@pytest.mark.parametrize(
    "text",
    [b"select '\xff'", b"select '\x00'", b"select \xe2\x80\x8b1", b"select " + b"(" * (MAX_DEPTH + 1),
     b"-" * (MAX_TEXT_BYTES + 1)],
    ids=["not UTF-8", "NUL", "space of no width", "deep", "long"],
)  # fmt: skip
def test_texts_that_cannot_be_read_for_sure_are_unknown(text: bytes) -> None:
    assert classify(text, ORDERS).facts.accesses[0].effect is Effect.UNKNOWN


@pytest.mark.parametrize("call", ["", "lower"], ids=["parentheses", "calls"])
def test_what_is_nested_as_deep_as_is_let_through_is_read(call: str) -> None:
    text = f"select {f'{call}(' * MAX_DEPTH}a{')' * MAX_DEPTH} from orders"
    assert _accesses(text) == ["read orders.orders"]


@pytest.mark.parametrize("before", ["", "explain ", "create table x as "], ids=["query", "explained", "stored"])
@pytest.mark.parametrize(
    "rest",
    ["- " * 2500 + "a from t", "a from t where a" + " and a" * 2500, "a b c d from t"],
    ids=["signs", "chain", "malformed"],
)
def test_what_the_second_reader_cannot_read_is_unknown(before: str, rest: str) -> None:
    assert "unknown" in _accesses(f"{before}select {rest}")


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="select*from'`\"\\/-# \n()@?!;abt1,.=xX_", max_size=60))
@example("select 1 /*! , secret */")
@example("/*M!100100 drop table t */")
@example("select '\\'/*' , 1 /*!*/")
def test_any_text_gives_facts(text: str) -> None:
    facts = classify(text.encode(), ORDERS).facts
    assert facts.accesses
    assert bool(facts.why_unknown) == (Access(Effect.UNKNOWN) in facts.accesses)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_tokens_cover_the_text_but_for_spaces_and_comments(text: str) -> None:
    try:
        tokens = tokenize(text)
    except Unreadable:
        return
    place = 0
    for token in tokens:
        between = text[place : token.start].strip(" \t\r\n\v\f")
        assert not between or between.startswith(("#", "--", "/*"))
        assert token.end > token.start
        place = token.end


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["a", "select", "'x'", "(", ")", ",", "from", "t", "where", "=", "1", "union", "?", "."]),
        max_size=25,
    )
)
def test_a_read_never_hides_what_stands_behind_it(words: list[str]) -> None:
    """Whatever stands before it, a DROP in the same text is a destroy or makes the text unknown."""
    found = classify((" ".join(words) + "; drop table other").encode(), ORDERS).facts
    effects = {one.effect for one in found.accesses}
    assert Effect.DESTROY in effects or Effect.UNKNOWN in effects


def test_results_keep_their_character_set() -> None:
    """Without one, values would come in the character sets of their columns, and no detector would know them."""
    found = classify(b"SET character_set_results = NULL, autocommit = 1 -- NULL", ORDERS)
    assert found.sent(b"SET character_set_results = NULL, autocommit = 1 -- NULL") == (
        b"SET character_set_results = utf8mb4, autocommit = 1 -- NULL"
    )
    several = "SELECT '€'; SET character_set_results=NULL; SET @a = NULL".encode()
    assert classify(several, ORDERS).sent(several) == several.replace(b"results=NULL", b"results=utf8mb4")
