"""Make catalog.json anew from real servers of all versions: `python tests/support/write_catalog.py`."""

from __future__ import annotations

import json
from typing import Any, Final

import fix_postgres
import psycopg
from fix_postgres import Postgres

from chaperone_sidecar.protocols.postgresql import relations
from chaperone_tools import postgresql_catalog, postgresql_servers
from chaperone_tools.cache import checkout

FILE: Final = checkout() / "sidecar/src/chaperone_sidecar/protocols/postgresql/catalog.json"


def ask(postgres: Postgres) -> dict[str, Any]:
    """What a server holds in its own schemas."""
    with postgres.admin("postgres") as admin:
        row = admin.execute(postgresql_catalog.QUERY).fetchone()
    assert row is not None
    answer: dict[str, Any] = row[0]
    return answer


def safe_calls(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Every safe function that this server has and that can be called with nulls: its name, and such arguments."""
    return connection.execute(
        "SELECT p.proname, array_to_string(ARRAY(SELECT 'NULL::' || format_type(t, NULL)"
        " FROM unnest(p.proargtypes) t), ', ') FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace"
        " AND prokind = 'f' AND proname = ANY (%s) AND NOT EXISTS (SELECT 1 FROM unnest(p.proargtypes) t"
        " JOIN pg_type y ON y.oid = t WHERE y.typtype = 'p')",
        [sorted(relations.CATALOG.safe_functions)],
    ).fetchall()


def main() -> None:
    """Start each server, ask it, and write the file."""
    answers = []
    for major in postgresql_servers.PINS:
        with fix_postgres.running(postgresql_servers.server(major)) as postgres:
            answers.append(ask(postgres))
    FILE.write_text(json.dumps(postgresql_catalog.catalog(answers), indent=0) + "\n")


if __name__ == "__main__":
    main()
