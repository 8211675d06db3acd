"""Lineage against a real server: what is said to have no part in an answer has none.

Databases that differ only in the values of classified columns get the same generated queries. Where `trace` says that
no classified column decides, all of them must end alike, with as many rows, and with the same values in every column
that has no classified origin. CHAPERONE_QUERIES says how many queries.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from fix_postgres import Postgres
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_queries import CLASSIFIED, Writer

from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql.lineage import trace
from chaperone_sidecar.protocols.postgresql.schema import Column, NotLookedUp, Relation, Schema

NAMES = ("c", "o", "v", "c2", "o2")
pytestmark = pytest.mark.peer
QUERIES = int(os.environ.get("CHAPERONE_QUERIES", "200"))
CANCELED = "57014"
OBJECTS = """
CREATE TABLE c (id int, email text, name text, n int, team int, doc jsonb);
CREATE TABLE o (id int, customer_id int, total numeric, note text, team int);
CREATE VIEW v AS SELECT c.id, c.email AS mail, c.name FROM c WHERE c.id <> 99;
INSERT INTO o VALUES (1, 1, 1.5, 'a@b', 1), (2, 1, 0, '12', 1), (3, 2, -3, '', 2), (4, NULL, 2, NULL, NULL),
    (0, 3, 9, 'x', 0);
"""
# Per database: e-mail, number and document of customers 1, 2, 3, 0, and of one without team.
VARIANTS = [
    [("ann@a", 1, '{"k": "v"}'), ("bob@b", 2, '{"k": 1}'), ("cy@c", 3, "[]"), ("1", 0, "7"), ("x", 5, "null")],
    [(None, None, None), (None, None, None), (None, None, None), (None, None, None), (None, None, None)],
    [("", 0, '""'), ("12", 0, '"12"'), ("12", 12, "{}"), ("12", 12, "{}"), ("\\x00", -1, '["a", "b"]')],
    [
        ("ann@a", 1, '{"k": "v"}'),
        ("ann@a", 1, '{"k": "v"}'),
        ("a", 2147483647, "1"),
        ("'", -2147483648, "2"),
        (None, 0, "3"),
    ],
]


@pytest.fixture(scope="module")
def databases(postgres: Postgres) -> Iterator[list[psycopg.Connection[Any]]]:
    connections = []
    for number, variant in enumerate(VARIANTS):
        name = f"lineage_{number}"
        with postgres.admin("postgres") as admin:
            admin.execute(f"CREATE DATABASE {name}")
        connection = postgres.admin(name)
        connection.execute(OBJECTS)
        for key, (email, number_value, document) in enumerate(variant):
            connection.execute(
                "INSERT INTO c VALUES (%s, %s, %s, %s, %s, %s)",
                [
                    (1, 2, 3, 0, 4)[key],
                    email,
                    ("A", "b", None, "12", "")[key],
                    number_value,
                    (1, 2, 1, 0, None)[key],
                    document,
                ],
            )
        connection.execute("CREATE TABLE c2 AS SELECT * FROM c; CREATE TABLE o2 AS SELECT * FROM o")
        connection.execute("SET statement_timeout = '20s'")
        connections.append(connection)
    yield connections
    for connection in connections:
        connection.close()
    with postgres.admin("postgres") as admin:
        for number in range(len(VARIANTS)):
            admin.execute(f"DROP DATABASE lineage_{number} WITH (FORCE)")


def schema_of(connection: psycopg.Connection[Any]) -> Schema:
    schema = Schema()
    for name in (*NAMES, "q"):
        row = connection.execute(
            "SELECT c.oid, relkind::text, CASE WHEN relkind = 'v' THEN pg_get_viewdef(c.oid) ELSE '' END FROM pg_class c"  # noqa: E501
            " WHERE oid = to_regclass(%s)",
            [f"public.{name}"],
        ).fetchone()
        if row is None:
            schema.add(f"public.{name}", None)
            continue
        oid, kind, definition = row
        columns = connection.execute(
            "SELECT attname, attnum::int, atttypid::int FROM pg_attribute WHERE attrelid = %s AND attnum > 0 ORDER BY 2",  # noqa: E501
            [oid],
        ).fetchall()
        definition = definition.replace("FROM c", "FROM public.c")
        schema.add(
            f"public.{name}",
            Relation(int(oid), f"public.{name}", kind, tuple(Column(*column) for column in columns), definition),
        )
    return schema


def run(connection: psycopg.Connection[Any], text: str) -> psycopg.pq.abc.PGresult:
    connection.pgconn.exec_(b"BEGIN")
    try:
        return connection.pgconn.exec_(text.encode())
    finally:
        connection.pgconn.exec_(b"ROLLBACK")


def state(answer: Any) -> str:
    return (answer.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"").decode()


def rows(answer: Any, columns: list[int]) -> list[tuple[bytes | None, ...]]:
    return [tuple(answer.get_value(line, column) for column in columns) for line in range(answer.ntuples)]


def test_what_has_no_part_in_an_answer_has_none(databases: list[psycopg.Connection[Any]]) -> None:
    schema = schema_of(databases[0])
    by_oid = {schema.relation(f"public.{name}").oid: f"public.{name}" for name in NAMES}
    count: Counter[str] = Counter()

    @settings(
        max_examples=QUERIES, derandomize="CHAPERONE_QUERIES" not in os.environ, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random="CHAPERONE_QUERIES" in os.environ))
    def check(random: Random) -> None:
        text, is_ordered = Writer(random).statement()
        lineage = trace(grammar.parse(text.encode())[0]["stmt"], schema)
        count["all"] += 1
        first = run(databases[0], text)
        if first.nfields and not state(first):
            outputs = lineage.outputs
            assert outputs is not None, (text, lineage.why)
            assert len(outputs) == first.nfields, text
            for place, output in enumerate(outputs):
                assert output.name == (first.fname(place) or b"").decode(), text
                table = by_oid.get(first.ftable(place))
                if table is not None:
                    column = schema.relation(table).columns[first.ftablecol(place) - 1].name
                    assert f"{table}.{column}" in output.origins, (text, output)
        if lineage.is_opaque or lineage.deciding & CLASSIFIED:
            count["decided"] += 1
            return
        assert lineage.outputs is not None, text
        shown = [
            place
            for place, output in enumerate(lineage.outputs)
            if not output.is_opaque and not output.origins & CLASSIFIED
        ]
        count["failed" if state(first) else "free"] += 1
        if len(shown) < len(lineage.outputs) and not state(first):
            count["masked"] += 1
        for other in databases[1:]:
            answer = run(other, text)
            if CANCELED in (state(first), state(answer)):  # how long it takes is not traced
                count["slow"] += 1
                return
            assert state(answer) == state(first), (text, state(first), state(answer))
            assert answer.ntuples == first.ntuples, text
            one, two = rows(first, shown), rows(answer, shown)
            if is_ordered:
                assert one == two, text
            else:
                assert Counter(one) == Counter(two), text

    check()
    print(dict(count))
    assert count["free"] > count["all"] // 5, count
    assert count["slow"] < count["all"] // 50, count
    assert count["masked"] > count["all"] // 20, count


def test_what_tools_ask_of_the_catalogue_is_hardly_ever_opaque(postgres: Postgres) -> None:
    schema = Schema()
    with postgres.admin() as admin:
        for oid, name, kind, columns in admin.execute(
            "SELECT c.oid::int, n.nspname || '.' || relname, relkind::text,"
            " array_agg(attname || ' ' || atttypid::int ORDER BY attnum) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute ON attrelid = c.oid AND attnum > 0"
            " WHERE nspname IN ('pg_catalog', 'information_schema') AND relkind IN ('r', 'v') GROUP BY 1, 2, 3"
        ).fetchall():
            numbered = [column.split() for column in columns]
            schema.add(
                name, Relation(oid, name, kind, tuple(Column(n, i, int(t)) for i, (n, t) in enumerate(numbered)))
            )
    count: Counter[str] = Counter()
    for line in (Path(__file__).parents[1] / "corpora" / "postgresql_tools.jsonl").read_text().splitlines():
        with contextlib.suppress(grammar.ParseError):
            for raw in grammar.parse(json.loads(line)["sql"].encode()):
                if "SelectStmt" not in raw["stmt"]:
                    continue
                try:
                    lineage = trace(raw["stmt"], schema)
                except NotLookedUp:
                    continue
                count["all"] += 1
                if lineage.is_opaque or any(output.is_opaque for output in lineage.outputs or ()):
                    count[lineage.why] += 1
    print(count.most_common(15))
    assert count["all"] > 300
    opaque = count.total() - count["all"]
    assert opaque < count["all"] // 10, count.most_common(10)
