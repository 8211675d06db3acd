"""Lineage by its text: the corpus of rules, precision on ordinary statements, and that nothing raises or takes long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import MaskRule
from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql.lineage import Lineage, trace
from chaperone_sidecar.protocols.postgresql.plan import Planner
from chaperone_sidecar.protocols.postgresql.schema import Column, NotLookedUp, Relation, Schema, Type

CORPORA = Path(__file__).parents[1] / "corpora"
RULES = [json.loads(line) for line in (CORPORA / "postgresql_lineage.jsonl").read_text().splitlines()]
TEXT, INT, NUMERIC, JSONB, ADDRESS = 25, 23, 1700, 3802, 16400
CLASSIFIED = "public.c.email"


def relation(oid: int, name: str, columns: dict[str, int], kind: Any = "r", **more: Any) -> Relation:
    numbered = tuple(Column(column, number, of) for number, (column, of) in enumerate(columns.items(), 1))
    return Relation(oid, f"public.{name}", kind, numbered, **more)


def known() -> Schema:
    schema = Schema()
    for made in (
        relation(1, "c", {"id": INT, "email": TEXT, "name": TEXT, "doc": JSONB, "home": ADDRESS, "tags": 1009}),
        relation(2, "o", {"id": INT, "c_id": INT, "total": NUMERIC, "note": TEXT}),
        relation(3, "v", {"id": INT, "mail": TEXT}, "v", definition="SELECT id, email FROM public.c WHERE email <> ''"),
        relation(4, "vv", {"id": INT, "m": TEXT}, "v", definition="SELECT v.id, lower(v.mail) AS m FROM public.v"),
        relation(5, "mv", {"email": TEXT}, "m", definition="SELECT email FROM public.c"),
        relation(6, "p", {"id": INT, "email": TEXT}, "p", children=("public.k",)),
        relation(7, "k", {"id": INT, "email": TEXT}, parents=("public.p",)),
        relation(8, "f", {"id": INT, "email": TEXT}, "f"),
        relation(9, "address", {"street": TEXT, "city": TEXT}, "c"),
        relation(10, "vf", {"x": TEXT}, "v", definition="SELECT owners(email) FROM public.c"),
        relation(11, "vb", {"x": TEXT}, "v", definition="not sql"),
    ):
        schema.add(made.name, made)
    schema.add("public.missing", None)
    schema.add_type(ADDRESS, Type(ADDRESS, "public.address", "c", relation=9))
    return schema


def traced(text: str, schema: Schema | None = None) -> Lineage:
    return trace(grammar.parse(text.encode())[0]["stmt"], schema or known())


def short(names: frozenset[str]) -> list[str]:
    return sorted(name.removeprefix("public.") for name in names)


def shown(lineage: Lineage) -> list[str] | None:
    """The outputs as the corpus writes them: origins; `=` before a column as it stands, `?` before an opaque one."""
    if lineage.outputs is None:
        return None
    return [
        ("?" if output.is_opaque else "=" if output.is_direct else "") + " ".join(short(output.origins))
        for output in lineage.outputs
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["sql"][:80])
def test_rule(rule: dict[str, Any]) -> None:
    lineage = traced(rule["sql"])
    assert shown(lineage) == rule["outputs"]
    assert short(lineage.deciding) == rule["deciding"]
    assert lineage.is_opaque == rule.get("is_opaque", False), lineage.why
    assert bool(lineage.why) >= lineage.is_opaque


def test_the_corpus_is_large_enough_to_hold_the_rules() -> None:
    assert len(RULES) >= 150


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id, email FROM c WHERE id = 1 ORDER BY id",
        "SELECT c.id, c.email, o.total FROM c JOIN o ON o.c_id = c.id WHERE o.total > 10 ORDER BY o.id DESC LIMIT 20",
        "SELECT count(*) FROM c",
        "SELECT name, count(*), sum(total) FROM c JOIN o ON o.c_id = c.id GROUP BY name HAVING sum(total) > 5",
        "UPDATE o SET note = 'paid' WHERE id = 7 RETURNING id",
        "UPDATE c SET email = 'new@x' WHERE id = $1",
        "INSERT INTO c (id, email) VALUES ($1, $2) RETURNING id",
        "INSERT INTO c (id, email) VALUES (1, 'a') ON CONFLICT (id) DO UPDATE SET email = excluded.email",
        "DELETE FROM c WHERE id IN (1, 2, 3)",
        "SELECT * FROM c WHERE id = ANY ($1) LIMIT 21",
        "SELECT lower(email) AS e, coalesce(email, 'none'), email || ' (' || name || ')' FROM c WHERE id < 10",
        "SELECT row_to_json(q) FROM (SELECT id, email FROM c) q",
        "SELECT json_agg(json_build_object('id', id, 'email', email)) FROM c WHERE name = 'x'",
        'SELECT "c"."id", "c"."email" FROM "c" WHERE "c"."id" = 1 LIMIT 21',
        "SELECT anon_1.c_id, anon_1.email FROM (SELECT c.id AS c_id, c.email AS email FROM c LIMIT 10) AS anon_1",
        "SELECT DISTINCT name FROM c",
        "WITH r AS (SELECT * FROM o WHERE id > 5) SELECT c.email, r.* FROM r JOIN c ON c.id = r.c_id",
        "SELECT id, row_number() OVER (PARTITION BY name ORDER BY id) FROM c",
        "SELECT EXISTS (SELECT 1 FROM c WHERE id = 4)",
        "COPY c TO STDOUT",
    ],
)
def test_ordinary_statements_neither_decide_by_a_classified_column_nor_are_opaque(text: str) -> None:
    lineage = traced(text)
    assert CLASSIFIED not in lineage.deciding
    assert not lineage.is_opaque
    assert not any(output.is_opaque for output in lineage.outputs or ())


class Anything(Schema):
    """A schema in which every relation is a table with the columns that are asked for most."""

    def relation(self, name: str) -> Relation | None:
        return relation(1, name.partition(".")[2], {"id": INT, "a": INT, "b": TEXT, "name": TEXT})

    def type(self, oid: int) -> Type | None:
        raise NotLookedUp(f"type {oid}")


def corpus() -> list[str]:
    texts = []
    for path in sorted(CORPORA.glob("postgresql_*.jsonl")):
        texts += [json.loads(line).get("sql", "") for line in path.read_text().splitlines()]
    return texts


def test_no_statement_of_the_corpora_raises() -> None:
    statements = 0
    for text in corpus():
        try:
            parsed = grammar.parse(text.encode())
        except grammar.ParseError:
            continue
        for raw in parsed:
            for schema in (known(), Anything()):
                try:
                    trace(raw["stmt"], schema)
                except NotLookedUp:
                    continue
                statements += 1
    assert statements > 1500


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + ",".join(["email"] * 4600) + " FROM c",
        "SELECT " + "||".join(["email"] * 4500) + " FROM c",
        "SELECT " + "(" * 2000 + "email" + ")" * 2000 + " FROM c",
        "SELECT " + "lower(" * 2000 + "email" + ")" * 2000 + " FROM c",
        "SELECT id FROM c WHERE " + " OR ".join(["email='a'"] * 2000),
        "SELECT id FROM c WHERE id IN (" + ",".join(["1"] * 15000) + ")",
        " UNION ALL ".join(["SELECT * FROM c"] * 1000),
        "SELECT * FROM " + ",".join(["c"] * 8000),
        "SELECT 1 FROM c " + "NATURAL JOIN c ".replace("c ", "c x{} ") * 1200,
        "WITH " + ",".join(f"w{i} AS (SELECT * FROM c)" for i in range(900)) + " SELECT 1",
        "SELECT * FROM " + "(SELECT * FROM " * 300 + "c" + ") s" * 300,
        "INSERT INTO c VALUES " + ",".join(["(1,'a')"] * 4000),
        "SELECT " + ",".join(["row_to_json(c)"] * 1600) + " FROM c",
        "WITH RECURSIVE "
        + ",".join(f"w{i}(a) AS (SELECT 1 UNION ALL SELECT a FROM w{i})" for i in range(500))
        + " SELECT 1",
        "SELECT " + "CASE WHEN id=1 THEN " * 500 + "email" + " END" * 500 + " FROM c",
    ],
    ids=lambda text: text[:40],
)
def test_a_hostile_text_ends_soon(text: str) -> None:
    text = text.replace("{}", "")
    try:
        statement = grammar.parse(text.encode()[: grammar.INLINE_BYTES])[0]["stmt"]
    except grammar.ParseError:
        return  # as good as an end
    schema = known()
    spent = [1.0]
    while min(spent) >= 0.1 and len(spent) < 20:  # a neighbour on the same core costs up to half of a turn's speed
        begin = time.process_time()
        trace(statement, schema)
        spent.append(time.process_time() - begin)
    assert min(spent) < 0.1


@pytest.mark.parametrize("method", ["Hash", "Partial"])
@pytest.mark.parametrize(
    "expression", ["left(email, 1)", "length(email)", "email || ''", "coalesce(email, 'a')", "count(email)", "(c)"]
)
def test_what_derives_from_a_column_shows_no_part_and_no_hash(method: str, expression: str) -> None:
    planner = Planner(Masker([MaskRule(method, (CLASSIFIED,))], key=b"k" * 32), "Deny")
    tree = grammar.parse(f"SELECT email, {expression} FROM c GROUP BY c.id".encode())[0]["stmt"]
    classes = planner.plan(tree, trace(tree, known()), {}).classes
    assert classes is not None
    assert [found.method if found is not None else None for found in classes] == [method, "Redact"]


def test_views_over_views_are_followed_and_bounded() -> None:
    schema = known()
    before = "public.c"
    for number in range(40):
        made = relation(100 + number, f"n{number}", {"email": TEXT}, "v", definition=f"SELECT email FROM {before}")
        schema.add(made.name, made)
        before = made.name
    near, far = traced("SELECT email FROM n5", schema), traced("SELECT email FROM n39", schema)
    assert near.outputs is not None
    assert far.outputs is not None
    assert CLASSIFIED in near.outputs[0].origins
    assert far.outputs[0].is_opaque


def test_what_was_not_looked_up_is_asked_for() -> None:
    with pytest.raises(NotLookedUp, match=r"public\.elsewhere"):
        traced("SELECT 1 FROM elsewhere")
