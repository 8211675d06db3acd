"""The facts against a real server: what is called a read writes nothing, what the server calls a write is no read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import write_catalog
from fix_postgres import PASSWORD, Postgres
from psycopg import sql as compose

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql import relations
from chaperone_sidecar.protocols.postgresql.classify import classify
from chaperone_tools import postgresql_catalog

pytestmark = pytest.mark.peer
CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "postgresql_effects.jsonl").read_text().splitlines()
]
DATABASE = "db"
STATEMENT_TIMEOUT = "2s"
# Everything the corpus names, owned by the role that runs it; `evil` writes, so that a run leaves a trace.
OBJECTS = """
CREATE SCHEMA s;
CREATE TABLE t (a int PRIMARY KEY, b int, c text, d timestamptz);
CREATE TABLE u (a int, b int); CREATE TABLE v (a int); CREATE TABLE w (a int); CREATE TABLE x (a int);
CREATE TABLE y (a int); CREATE TABLE "T" (a int); CREATE TABLE "Orders Of Today" (a int); CREATE TABLE "t " (a int);
CREATE TABLE "ｔ" (a int); CREATE TABLE "Öl" (a int); CREATE TABLE Öl2 (a int); CREATE TABLE secret (v tsvector);
CREATE TABLE s.t (a int); CREATE TABLE s.u (a int); CREATE TABLE pg_mine (a int);
CREATE SEQUENCE q; CREATE SEQUENCE s.q; CREATE SEQUENCE "Q";
CREATE TABLE trace (at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION evil(VARIADIC ints int[] DEFAULT '{}') RETURNS boolean LANGUAGE sql
    AS 'INSERT INTO public.trace DEFAULT VALUES; SELECT true';
CREATE FUNCTION s.evil(int DEFAULT 1) RETURNS int LANGUAGE sql AS 'INSERT INTO public.trace DEFAULT VALUES; SELECT 1';
CREATE FUNCTION s.plus(int, int) RETURNS int LANGUAGE sql AS 'INSERT INTO public.trace DEFAULT VALUES; SELECT 1';
CREATE OPERATOR s.+ (LEFTARG = int, RIGHTARG = int, FUNCTION = s.plus);
CREATE PROCEDURE s.p() LANGUAGE sql AS 'DELETE FROM public.w';
INSERT INTO t SELECT i, i, 'c' || i, now() FROM generate_series(1, 20) i; INSERT INTO u SELECT a, b FROM t;
INSERT INTO v SELECT a FROM t; INSERT INTO w SELECT a FROM t; INSERT INTO x SELECT a FROM t;
SELECT nextval('q');
"""
# What the server says when a statement can't be run at all here, whatever it would have done.
READ_ONLY = "25006"
WRITES = {
    Effect.CREATE, Effect.MODIFY, Effect.DELETE, Effect.BULK_WRITE, Effect.SCHEMA, Effect.DESTROY, Effect.PRIVILEGE,
    Effect.EXECUTE_CODE, Effect.EXTERNAL_IO, Effect.MAINTAIN, Effect.UNKNOWN,
}  # fmt: skip
READS = {Effect.READ, Effect.READ_SENSITIVE}


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[dict[str, Any]]:
    """A throw-away database whose owner is no superuser; how to connect as that owner."""
    role = "classified"
    with postgres.admin("postgres") as admin:
        admin.execute(compose.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(compose.Identifier(role), PASSWORD))
        admin.execute(f"CREATE DATABASE {DATABASE} OWNER {role}")
        admin.execute(f"GRANT pg_read_all_stats, pg_read_all_settings TO {role}")
    login: dict[str, Any] = {
        "host": "127.0.0.1", "port": postgres.port, "user": role, "password": PASSWORD, "dbname": DATABASE,
        "options": f"-c search_path=public -c statement_timeout={STATEMENT_TIMEOUT}",
    }  # fmt: skip
    with psycopg.connect(**login, autocommit=True) as owner:
        owner.execute(OBJECTS)
    yield login
    with postgres.admin("postgres") as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        admin.execute(f"DROP ROLE {role}")


def refusal(login: dict[str, Any], text: str, *, read_only: bool) -> str | None:
    """The SQLSTATE with which the server refuses a text in a transaction of its own; None when it runs it."""
    with contextlib.closing(psycopg.connect(**login, autocommit=True)) as connection:
        connection.execute("BEGIN READ ONLY" if read_only else "BEGIN")
        answer = connection.pgconn.exec_(text.encode())
        if answer.status in (psycopg.pq.ExecStatus.FATAL_ERROR, psycopg.pq.ExecStatus.NONFATAL_ERROR):
            return (answer.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"").decode()
        if answer.status not in (psycopg.pq.ExecStatus.COPY_OUT, psycopg.pq.ExecStatus.COPY_IN):  # closing ends a COPY
            connection.pgconn.exec_(b"COMMIT")
        return None


def snapshot(login: dict[str, Any]) -> str:
    """A digest of all rows, sequences and definitions of the database."""
    with psycopg.connect(**login, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = relnamespace WHERE relkind IN ('r', 'S', 'm') AND nspname IN ('public', 's') ORDER BY 1"
        ).fetchall()
        parts = [str(tables)]
        for (name,) in tables:
            parts += map(str, connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall())
        for catalog in ("pg_proc", "pg_class", "pg_roles", "pg_db_role_setting", "pg_largeobject_metadata"):
            parts += map(str, connection.execute(f"SELECT count(*) FROM {catalog}").fetchall())
        return "\n".join(parts)


def server_version(login: dict[str, Any]) -> int:
    with psycopg.connect(**login) as connection:
        return connection.info.server_version // 10_000


def is_read(line: dict[str, Any]) -> bool:
    return all(access.effect in READS for access in classify(line["sql"].encode()).facts.accesses)


def test_what_is_a_read_runs_read_only_and_changes_nothing(database: dict[str, Any]) -> None:
    version = server_version(database)
    before = snapshot(database)
    refused: dict[str, str] = {}
    reads = [line["sql"] for line in CORPUS if is_read(line) and line.get("since", 0) <= version]
    for text in reads:
        code = refusal(database, text, read_only=True)
        assert code != READ_ONLY, text
        if code is not None:
            refused[text] = code
        refusal(database, text, read_only=False)
    assert snapshot(database) == before
    assert len(refused) < len(reads) // 7, refused  # refused statements prove nothing


def test_what_the_server_calls_a_write_is_no_read(database: dict[str, Any]) -> None:
    written = []
    for line in CORPUS:
        if refusal(database, line["sql"], read_only=True) == READ_ONLY:
            written.append(line["sql"])
            effects = {access.effect for access in classify(line["sql"].encode()).facts.accesses}
            assert effects & WRITES or effects == {Effect.SESSION} or effects == {Effect.TRANSACTION}, line["sql"]
    assert len(written) > 100


def test_what_the_parser_refuses_here_has_the_same_answer_from_the_server(database: dict[str, Any]) -> None:
    """A text that is unknown for its syntax must not be one that the server understands."""
    for text in ("SELEC 1", "SELECT 'x", "SELECT 1 FROM", "START_REPLICATION SLOT s LOGICAL 0/0", "SELECT 1a(", "?"):
        assert "does not parse" in classify(text.encode()).facts.why_unknown
        assert refusal(database, text, read_only=False) == "42601"


def test_server_takes_a_string_after_a_comment_for_one_string(database: dict[str, Any]) -> None:
    """Why such texts are not parsed: what is a string to the parser here would be a statement to the server."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TABLE victim (a int)")
        connection.pgconn.exec_(b"SELECT E'a' -- x\n'b\\''; DROP TABLE victim; --'")
        assert connection.execute("SELECT to_regclass('victim')").fetchone() == (None,)


def test_safe_functions_run_read_only_whatever_their_arguments(database: dict[str, Any]) -> None:
    """Each safe function, called with a null for every argument, or with plain values where it must have one."""
    with psycopg.connect(**database, autocommit=True) as connection:
        calls = write_catalog.safe_calls(connection)
        before = snapshot(database)
        connection.execute("SET default_transaction_read_only = on")
        for name, arguments in calls:
            text = f'SELECT pg_catalog."{name}"({arguments})'
            answer = connection.pgconn.exec_(text.encode())
            assert answer.error_field(psycopg.pq.DiagnosticField.SQLSTATE) != READ_ONLY.encode(), text
        assert len(calls) > 1500
    assert snapshot(database) == before


def test_nothing_called_safe_is_unsafe_on_the_machines_own_server(postgres: Postgres) -> None:
    """test_pg_versions says the same, and more, of the server of each version that the data was made from."""
    current = postgresql_catalog.catalog([write_catalog.ask(postgres)])
    assert not relations.CATALOG.safe_functions & set(current["other_functions"])


def test_unqualified_name_means_what_the_server_takes_it_for(database: dict[str, Any]) -> None:
    with psycopg.connect(**database) as connection:
        for name in ("t", "T", '"T"', "pg_class", "s.t", "Öl", '"t "', "db.public.t", "pg_mine", 'U&"\\0074"'):
            answer = connection.execute(f"SELECT tableoid::regclass::oid FROM {name} LIMIT 1").fetchone()
            oid = answer[0] if answer else None
            if oid is None:  # an empty table says nothing of itself
                connection.execute(f"CREATE VIEW which AS SELECT 1 FROM {name}")
                row = connection.execute(
                    "SELECT refobjid FROM pg_depend d JOIN pg_rewrite r ON r.oid = objid"
                    " WHERE ev_class = 'which'::regclass AND refobjid <> 'which'::regclass AND deptype = 'n'"
                ).fetchone()
                connection.execute("DROP VIEW which")
                oid = row[0] if row else None
            row = connection.execute(
                "SELECT nspname || '.' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE c.oid = %s",
                [oid],
            ).fetchone()
            objects = {access.object for access in classify(f"SELECT * FROM {name}".encode()).facts.accesses}
            assert row is not None
            assert row[0] in objects, name
