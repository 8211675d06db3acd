"""How far a statement reaches by its words: what WHERE counts as one, and which LIMIT is known."""

from __future__ import annotations

import pytest

from chaperone_sidecar.command import Extent
from chaperone_sidecar.protocols.postgresql.classify import ClassifyCache, classify
from chaperone_sidecar.protocols.postgresql.resolution import resolve
from chaperone_sidecar.protocols.postgresql.schema import Schema


def extent(text: str, effect: str = "read", name: str = "public.t") -> Extent:
    """What is known of one access of a text."""
    facts = classify(text.encode()).facts
    at = [(access.effect.value, access.object) for access in facts.accesses].index((effect, name))
    return facts.extents[at] if facts.extents else Extent()


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM t WHERE id = 1",
        "SELECT * FROM t WHERE id = $1",
        "SELECT * FROM t JOIN u ON t.id = u.id WHERE u.name = 'x'",
        "SELECT * FROM u LEFT JOIN (u AS v JOIN t ON true) ON true WHERE t.id = 1",
        "SELECT * FROM t WHERE id = 1 AND true",
        "SELECT * FROM t WHERE id = 1 OR name = 'x'",
        "SELECT * FROM t WHERE NOT (id = 1 OR true = false AND name = 'x')",
        "SELECT * FROM t WHERE deleted_at IS NULL",
        "SELECT * FROM t WHERE NOT (deleted_at IS NOT NULL)",
        "SELECT * FROM t WHERE id IN (SELECT id FROM u)",
        "SELECT * FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id)",
        "SELECT * FROM t WHERE name LIKE 'x%'",
        "SELECT * FROM t WHERE coalesce(name, '') = ''",
        "SELECT * FROM (SELECT * FROM t WHERE id = 1) AS s",
        "WITH s AS (SELECT * FROM t WHERE id = 1) SELECT * FROM s",
        "SELECT * FROM t WHERE id = 1 UNION SELECT * FROM t WHERE id = 2",
        "SELECT * FROM t WHERE id = 1; SELECT * FROM t WHERE id = 2",
        "INSERT INTO u SELECT * FROM t WHERE id = 1",
        "SELECT (SELECT name FROM t WHERE id = 1)",
    ],
)
def test_a_condition_on_what_rows_hold_is_a_where(text: str) -> None:
    assert extent(text).has_where


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM t",
        "SELECT * FROM t WHERE true",
        "SELECT * FROM t WHERE 1 = 1",
        "SELECT * FROM t WHERE id = id",
        "SELECT * FROM t WHERE t.id = id",
        "SELECT * FROM t WHERE id = 1 OR true",
        "SELECT * FROM t WHERE NOT (id = 1 AND false)",
        "SELECT * FROM t WHERE NOT (id <> id)",
        "SELECT * FROM t WHERE id IS NOT NULL",
        "SELECT * FROM t WHERE id IS NULL OR id IS NOT NULL",
        "SELECT * FROM t WHERE EXISTS (SELECT u.id FROM u)",
        "SELECT * FROM t WHERE now() > '2020-01-01'",
        "SELECT * FROM t WHERE $1",
        "SELECT * FROM t HAVING count(id) > 1",
        "SELECT * FROM t JOIN u ON t.id = u.id",
        "SELECT * FROM (SELECT * FROM t) AS s WHERE s.id = 1",
        "WITH s AS (SELECT * FROM t) SELECT * FROM s WHERE id = 1",
        "SELECT * FROM t WHERE id = 1 UNION SELECT * FROM t",
        "SELECT * FROM t WHERE id = 1; SELECT * FROM t",
        "SELECT * FROM t; SELECT * FROM t WHERE id = 1",
        "SELECT (SELECT max(id) FROM t) FROM u WHERE id = 1",
        "SELECT * FROM t AS a, t AS b, LATERAL (SELECT * FROM t) AS c WHERE a.id = 1",
        "COPY t TO STDOUT",
        "SELECT * FROM t WHERE " + "NOT " * 60 + "id = 1",
    ],
)
def test_what_holds_for_every_row_is_none(text: str) -> None:
    assert not extent(text).has_where


@pytest.mark.parametrize(
    ("text", "effect", "expected"),
    [
        ("UPDATE t SET a = 1 WHERE id = 1", "modify", True),
        ("UPDATE t SET a = 1 WHERE id = 1 RETURNING *", "read", True),
        ("UPDATE t SET a = (SELECT max(a) FROM t) WHERE id = 1", "read", False),
        ("UPDATE t SET a = 1", "modify", False),
        ("UPDATE t SET a = 1 WHERE true", "modify", False),
        ("UPDATE t SET a = 1 WHERE id = id", "modify", False),
        ("UPDATE t SET a = 1 WHERE CURRENT OF c", "modify", True),
        ("UPDATE t SET a = u.a FROM u WHERE u.id = t.id", "modify", True),
        ("UPDATE u SET a = t.a FROM t WHERE u.id = t.id", "read", True),
        ("DELETE FROM t WHERE id = 1", "delete", True),
        ("DELETE FROM t USING u WHERE u.id = t.id", "delete", True),
        ("DELETE FROM t USING u", "delete", False),
        ("DELETE FROM t WHERE id = 1; DELETE FROM t", "delete", False),
        ("WITH d AS (DELETE FROM t) SELECT * FROM u WHERE id = 1", "delete", False),
        ("SELECT * FROM t WHERE id = 1 FOR UPDATE OF t", "modify", True),
        ("SELECT * FROM t FOR UPDATE OF t", "modify", False),
        ("INSERT INTO t VALUES (1) ON CONFLICT (id) DO UPDATE SET a = 1 WHERE t.id = 1", "modify", False),
        ("MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE", "delete", False),
    ],
)
def test_each_effect_has_the_where_of_the_statement_that_has_it(text: str, effect: str, expected: bool) -> None:
    assert extent(text, effect).has_where is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM t LIMIT 10", 10),
        ("SELECT * FROM t LIMIT (10) OFFSET 20", 10),
        ("SELECT * FROM t LIMIT 0", 0),
        ("SELECT * FROM t FETCH FIRST 7 ROWS ONLY", 7),
        ("SELECT * FROM t FETCH FIRST ROW ONLY", 1),
        ("SELECT * FROM t UNION SELECT * FROM u LIMIT 3", 3),
        ("SELECT * FROM (SELECT * FROM t) AS s LIMIT 3", 3),
        ("SELECT * FROM t LIMIT 5; SELECT * FROM t LIMIT 9", 9),
        ("SELECT * FROM t LIMIT 5; SELECT * FROM t", None),
        ("SELECT * FROM t", None),
        ("SELECT * FROM t LIMIT ALL", None),
        ("SELECT * FROM t LIMIT NULL", None),
        ("SELECT * FROM t LIMIT $1", None),
        ("SELECT * FROM t LIMIT 5 + 5", None),
        ("SELECT * FROM t LIMIT -5", None),
        ("SELECT * FROM t LIMIT 10.5", None),
        ("SELECT * FROM t LIMIT '10'", None),
        ("SELECT * FROM t LIMIT 99999999999", None),
        ("SELECT * FROM t ORDER BY id FETCH FIRST 7 ROWS WITH TIES", None),
        ("SELECT * FROM (SELECT * FROM t LIMIT 3) AS s", None),
        ("SELECT * FROM t UNION (SELECT * FROM u LIMIT 3)", None),
        ("INSERT INTO u SELECT * FROM t LIMIT 3", None),
        ("COPY (SELECT * FROM t LIMIT 3) TO STDOUT", None),
        ("EXPLAIN ANALYZE SELECT * FROM t LIMIT 3", None),
    ],
)
def test_limit_is_the_statements_own_number(text: str, expected: int | None) -> None:
    assert extent(text).limit == expected


def test_a_limit_says_nothing_of_what_is_written() -> None:
    assert extent("WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d LIMIT 1", "delete").limit is None
    assert extent("SELECT * FROM t LIMIT 1 FOR UPDATE", "modify").limit is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT * FROM t LIMIT 10", "SELECT * FROM t LIMIT 20"),
        ("SELECT * FROM t LIMIT(10)", "SELECT * FROM t LIMIT(20)"),
        ("select * from t limit  ( (10) )", "select * from t limit  ( (20) )"),
        ("SELECT * FROM t OFFSET 1 LIMIT 10", "SELECT * FROM t OFFSET 1 LIMIT 20"),
        ("SELECT * FROM t FETCH FIRST 10 ROWS ONLY", "SELECT * FROM t FETCH FIRST 20 ROWS ONLY"),
        ("SELECT * FROM t FETCH NEXT (10) ROWS ONLY", "SELECT * FROM t FETCH NEXT (20) ROWS ONLY"),
    ],
)
def test_texts_of_different_limits_share_no_facts(one: str, other: str) -> None:
    cache = ClassifyCache()
    cache.keep(one.encode(), classify(one.encode()))
    assert cache.find(other.encode()) is None


def test_texts_that_differ_in_values_share_them_beside_a_limit() -> None:
    cache = ClassifyCache()
    cache.keep(b"SELECT * FROM t WHERE id = 1 LIMIT 10", classify(b"SELECT * FROM t WHERE id = 1 LIMIT 10"))
    found = cache.find(b"SELECT * FROM t WHERE id = 2 LIMIT 10")
    assert found is not None
    assert found.facts == classify(b"SELECT * FROM t WHERE id = 2 LIMIT 10").facts


def test_what_was_looked_up_keeps_the_extents_of_what_is_named() -> None:
    facts = classify(b"SELECT * FROM t WHERE id = 1 LIMIT 2").facts
    schema = Schema()
    schema.add("public.t", None)
    assert resolve(facts, schema).extents == facts.extents == (Extent(has_where=True, limit=2),)
