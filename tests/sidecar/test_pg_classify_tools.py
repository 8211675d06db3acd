"""What real programs send: hardly any of it is unknown.

The statements were recorded between the programs and a PostgreSQL 15 with objects of every kind, one line for texts
that differ in numbers and strings alone: psql 15 (its backslash commands), pg_dump 15 and what it writes, the other
client programs, pgJDBC 42.7 (all of DatabaseMetaData, as Metabase and DBeaver ask it), SQLAlchemy 2.1 (reflection and
ORM), Alembic, Django 6.1 (migrations, introspection, admin), pgAdmin 9.18 (its tree, its dashboard, its query tool),
psycopg 3, psycopg2 and asyncpg (types, cursors, COPY).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.postgresql.classify import classify

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "postgresql_tools.jsonl").read_text().splitlines()
]
TOLERATED_SHARE = 0.005
# Unknown for a reason: the statement reaches what its text does not name.
RIGHTLY_UNKNOWN = (" CASCADE",)
# What a program does when it only looks: nothing of this may need more than the right to read.
LOOKING = ("psql", "pgjdbc", "pgAdmin", "SQLAlchemy")


def is_unknown(sql: str) -> bool:
    return Access(Effect.UNKNOWN) in classify(sql.encode()).facts.accesses


def test_hardly_any_statement_of_real_programs_is_unknown() -> None:
    totals = Counter(line["tool"] for line in CORPUS)
    unknown = [line for line in CORPUS if is_unknown(line["sql"]) and not line["sql"].endswith(RIGHTLY_UNKNOWN)]
    found = Counter(line["tool"] for line in unknown)
    for tool, total in totals.items():
        print(f"{tool}: {found[tool]} of {total} unknown")
    print(f"all: {len(unknown)} of {len(CORPUS)}, {100 * len(unknown) / len(CORPUS):.2f} %")
    assert len(CORPUS) > 1200
    assert len(unknown) <= TOLERATED_SHARE * len(CORPUS), [line["sql"] for line in unknown]


@pytest.mark.parametrize("tool", LOOKING)
def test_catalog_queries_of_tools_need_no_more_than_reading(tool: str) -> None:
    """A query of the catalog that runs code, by the facts, would be refused by a policy for reading."""
    for line in CORPUS:
        if line["tool"] == tool and "pg_catalog." in line["sql"]:
            for access in classify(line["sql"].encode()).facts.accesses:
                if access.effect is Effect.EXECUTE_CODE and access.object.startswith("pg_catalog."):
                    assert access.object == "pg_catalog.pg_tablespace_location", line["sql"]  # shows a path
