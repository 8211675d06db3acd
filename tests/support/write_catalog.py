"""Make catalog.json anew from real servers of all versions: `python tests/support/write_catalog.py`."""

from __future__ import annotations

import json
from typing import Any, Final

import fix_postgres
from fix_postgres import Postgres

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


def main() -> None:
    """Start each server, ask it, and write the file."""
    answers = []
    for major in postgresql_servers.PINS:
        with fix_postgres.running(postgresql_servers.server(major)) as postgres:
            answers.append(ask(postgres))
    FILE.write_text(json.dumps(postgresql_catalog.catalog(answers), indent=0) + "\n")


if __name__ == "__main__":
    main()
