"""`evidence_server`: a PostgreSQL that keeps what it has committed, with a schema of its own for each log."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import PASSWORD, Postgres, running

from chaperone_collector.checkpoint import make_keys
from chaperone_collector.postgresql import Server

SETTINGS = "fsync = on\nlog_statement = none\n"


@dataclass(frozen=True)
class Place:
    """A schema for one log, which is made and ended in no time, as databases are not; and the log's keys."""

    port: int
    name: str
    info_path: Path
    key_path: Path

    @property
    def info(self) -> str:
        """The string for a connection."""
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{self.name}"

    @property
    def options(self) -> list[str]:
        """Those of a collector."""
        return ["--database-file", str(self.info_path), "--log-key", str(self.key_path)]

    @property
    def server(self) -> Server:
        """As the collector sees it."""
        return Server(self.info, self.key_path)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection past the collector."""
        return psycopg.connect(self.info, autocommit=True)

    def rows(self, query: str, *values: object) -> list[Any]:
        """What the database holds."""
        with self.connect() as connection:
            return connection.execute(query.replace("?", "%s").encode(), values).fetchall()


class EvidenceServer:
    """The server."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self.postgres = postgres
        self._folder = folder
        self._numbers = itertools.count()

    def place(self) -> Place:
        """An empty schema, and fresh keys."""
        name = f"log_{next(self._numbers)}"
        with self.postgres.admin("postgres") as admin:
            admin.execute(f"CREATE SCHEMA {name}".encode())
        folder = self._folder / name
        folder.mkdir()
        made = Place(self.postgres.port, name, folder / "database", folder / "log.key")
        made.info_path.write_text(made.info + "\n")
        made.info_path.chmod(0o600)
        make_keys(made.key_path)
        return made


@pytest.fixture(scope="session")
def evidence_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvidenceServer]:
    """One for the whole run."""
    with running(settings=SETTINGS) as postgres:
        yield EvidenceServer(postgres, tmp_path_factory.mktemp("evidence-server"))
