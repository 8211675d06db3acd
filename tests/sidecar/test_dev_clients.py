"""What clients see through the gateway: psql, psycopg (sync, async, pipeline, binary), asyncpg, SQLAlchemy."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
from pathlib import Path

import asyncpg
import psycopg
import pytest
import sqlalchemy
from fix_dev import Gateway
from fix_postgres import Postgres
from psycopg import errors
from psycopg.rows import tuple_row
from waiting import cancels

pytestmark = pytest.mark.peer


def test_psql_reads_what_it_may_and_hears_why_it_may_not(dev_gateway: Gateway) -> None:
    run = subprocess.run(
        ["psql", dev_gateway.conninfo, "-At", "-c", "SELECT count(*) FROM orders", "-c", "SELECT * FROM secrets"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.stdout == "1000\n"
    assert "public.secrets" in run.stderr
    assert "AccessPolicy" in run.stderr


def test_psql_over_tls(dev_gateway: Gateway) -> None:
    run = subprocess.run(
        ["psql", dev_gateway.conninfo + " sslmode=require", "-At", "-c", "SELECT total FROM orders WHERE id = 2"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.stdout == "3.00\n", run.stderr


def test_psycopg_reads_with_parameters_in_text_and_binary(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary, row_factory=tuple_row)
            rows = cursor.execute("SELECT id, customer FROM orders WHERE id = %s", (7,)).fetchall()
            assert rows == [(7, "customer 7")]


def test_a_refused_statement_is_insufficient_privilege_with_the_rule(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        with pytest.raises(errors.InsufficientPrivilege) as refused:
            connection.execute("DROP TABLE orders")
        assert "Ask the DBA on call." in str(refused.value)
        assert "never" in (refused.value.diag.message_detail or "")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_refused_statement_aborts_the_transaction(dev_gateway: Gateway, postgres: Postgres) -> None:
    with dev_gateway.connect() as connection:
        with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
            connection.execute("INSERT INTO invoices VALUES (5001)")
            connection.execute("SELECT * FROM secrets")
        assert connection.execute("SELECT count(*) FROM invoices WHERE id = 5001").fetchone() == (0,)
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id = 5001").fetchone() == (0,)


def test_a_refused_statement_in_a_transaction_leaves_it_failed_until_rollback(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        connection.execute("BEGIN")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM secrets")
        with pytest.raises(errors.InFailedSqlTransaction):
            connection.execute("SELECT 1 FROM orders")
        connection.execute("ROLLBACK")
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1000,)


def test_denied_statement_in_pipeline_leaves_client_in_step(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        with pytest.raises(errors.InsufficientPrivilege), connection.pipeline() as pipeline:
            first = connection.execute("SELECT id FROM orders WHERE id = %s", (3,))
            connection.execute("SELECT value FROM secrets WHERE id = %s", (1,))
            connection.execute("SELECT id FROM orders WHERE id = %s", (4,))
            pipeline.sync()
        assert first.fetchone() == (3,)
        assert connection.execute("SELECT id FROM orders WHERE id = %s", (5,)).fetchone() == (5,)


def test_a_write_before_a_refusal_in_one_pipeline_is_rolled_back(dev_gateway: Gateway, postgres: Postgres) -> None:
    with dev_gateway.connect() as connection, pytest.raises(errors.InsufficientPrivilege), connection.pipeline():
        connection.execute("INSERT INTO invoices VALUES (%s)", (5002,))
        connection.execute("SELECT value FROM secrets WHERE id = %s", (1,))
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id = 5002").fetchone() == (0,)


def test_a_transaction_may_follow_a_pipeline(dev_gateway: Gateway) -> None:
    with dev_gateway.connect(autocommit=False) as connection:
        with connection.pipeline():
            totals = [connection.execute("SELECT total FROM orders WHERE id = %s", (n,)) for n in (1, 2)]
        assert [float(one.fetchone()[0]) for one in totals] == [1.5, 3.0]
        with connection.transaction():
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1000,)


def test_long_pipelines_stay_in_order(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection, connection.pipeline():
        cursors = [connection.execute("SELECT %s::int + id FROM orders WHERE id = 1", (n,)) for n in range(500)]
        assert [cursor.fetchone() for cursor in cursors] == [(n + 1,) for n in range(500)]


def test_a_syntax_error_is_refused_and_the_session_goes_on(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        with pytest.raises(errors.InsufficientPrivilege, match="does not parse"):
            connection.execute("SELEC 1")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_errors_of_the_server_come_through(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        with pytest.raises(errors.DivisionByZero):
            connection.execute("SELECT 1 / (id - id) FROM orders")
        with pytest.raises(errors.UndefinedColumn):
            connection.execute("SELECT nothing FROM orders")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_multi_statement_string_is_decided_as_a_whole(dev_gateway: Gateway, postgres: Postgres) -> None:
    with dev_gateway.connect() as connection:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("INSERT INTO invoices VALUES (5003); DROP TABLE invoices")
        connection.execute("INSERT INTO invoices VALUES (5004); DELETE FROM invoices WHERE id = 5004")
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id > 5002").fetchone() == (0,)


def test_copy_in_and_out(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY invoices (id, paid) FROM STDIN") as copy:
            for number in range(6000, 6500):
                copy.write_row((number, True))
        cursor.execute("SELECT count(*) FROM invoices WHERE id >= 6000")
        assert cursor.fetchone() == (500,)
        out = io.BytesIO()
        with cursor.copy("COPY (SELECT id FROM invoices WHERE id >= 6000 ORDER BY id) TO STDOUT") as copy:
            for block in copy:
                out.write(block)
        assert out.getvalue().split()[0] == b"6000"
        assert len(out.getvalue().split()) == 500
        cursor.execute("DELETE FROM invoices WHERE id >= 6000")
        with pytest.raises(errors.InsufficientPrivilege), cursor.copy("COPY secrets TO STDOUT") as copy:
            copy.read()
        with pytest.raises(errors.InsufficientPrivilege):
            cursor.execute("COPY orders TO PROGRAM 'cat'")
        with pytest.raises(errors.UniqueViolation), cursor.copy("COPY invoices (id) FROM STDIN") as copy:
            copy.write_row((1,))
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_server_side_cursor(dev_gateway: Gateway) -> None:
    with psycopg.connect(dev_gateway.conninfo) as connection:
        with connection.cursor("numbers") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT id FROM orders ORDER BY id")
            assert sum(row[0] for row in cursor) == 500500
        with connection.cursor("hidden") as cursor, pytest.raises(errors.InsufficientPrivilege):
            cursor.execute("SELECT * FROM secrets")


def test_cancel_reaches_the_right_backend(dev_gateway: Gateway, postgres: Postgres) -> None:
    with dev_gateway.connect() as connection:
        cancelling = cancels(connection, postgres)
        with pytest.raises(errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(100) FROM orders LIMIT 1")
        cancelling.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_cancel_with_a_key_that_was_not_given_out_does_nothing(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        with socket.create_connection(("127.0.0.1", dev_gateway.port), 20) as stranger:
            stranger.sendall(bytes.fromhex("0000001004d2162e") + (1).to_bytes(4, "big") + b"\x00\x00\x00\x00")
            assert stranger.recv(1) == b""
        assert connection.execute("SELECT 1 FROM orders LIMIT 1").fetchone() == (1,)


def test_a_client_knows_its_own_notifications_and_its_own_backend(dev_gateway: Gateway) -> None:
    with dev_gateway.connect() as connection:
        connection.execute("LISTEN news")
        connection.execute("NOTIFY news, 'mine'")
        (note,) = connection.notifies(timeout=10, stop_after=1)
        assert note.pid == connection.info.backend_pid
        assert connection.execute("SELECT pg_backend_pid()").fetchone() == (note.pid,)


async def test_asyncpg(dev_gateway: Gateway) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=dev_gateway.port, user="agent", database="orders")
    try:
        assert await connection.fetchval("SELECT count(*) FROM orders") == 1000
        statement = await connection.prepare("SELECT customer FROM orders WHERE id = $1")
        assert [await statement.fetchval(n) for n in (1, 2, 3)] == ["customer 1", "customer 2", "customer 3"]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT * FROM secrets")
        async with connection.transaction():
            rows = [row["id"] async for row in connection.cursor("SELECT id FROM orders ORDER BY id", prefetch=50)]
        assert rows == list(range(1, 1001))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.execute("DELETE FROM invoices WHERE id = 1")
                await connection.execute("TRUNCATE orders")
        assert await connection.fetchval("SELECT count(*) FROM invoices WHERE id = 1") == 1
    finally:
        await connection.close()


async def test_psycopg_async(dev_gateway: Gateway) -> None:
    async with await psycopg.AsyncConnection.connect(dev_gateway.conninfo, autocommit=True) as connection:
        cursor = await connection.execute("SELECT id FROM orders WHERE id = ANY(%s) ORDER BY id", ([1, 2],))
        assert await cursor.fetchall() == [(1,), (2,)]
        with pytest.raises(errors.InsufficientPrivilege):
            await connection.execute("SELECT value FROM secrets WHERE id = %s", (1,))


def test_sqlalchemy(dev_gateway: Gateway) -> None:
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://agent@127.0.0.1:{dev_gateway.port}/orders")
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM orders")).scalar() == 1000
        connection.execute(sqlalchemy.text("UPDATE invoices SET paid = true WHERE id = :id"), {"id": 3})
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError, match=r"public\.secrets"):
        connection.execute(sqlalchemy.text("SELECT * FROM secrets"))
    engine.dispose()


def test_a_result_of_a_hundred_megabytes_leaves_the_gateways_memory_flat(dev_gateway: Gateway) -> None:
    with psycopg.connect(dev_gateway.conninfo, autocommit=True) as connection:
        before = _rss_mib(dev_gateway)
        cursor = connection.cursor()
        total = 0
        for row in cursor.stream("SELECT repeat('x', 100000) FROM orders"):
            total += len(row[0])
        assert total == 100_000_000
        after = _rss_mib(dev_gateway)
    assert after - before < 32, f"{before} MiB before, {after} MiB after"


def _rss_mib(gateway: Gateway) -> float:
    with Path(f"/proc/{gateway.process.pid}/status").open() as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def test_prepared_names_survive_errors_as_the_server_keeps_them(dev_gateway: Gateway) -> None:
    with dev_gateway.connect(prepare_threshold=0) as connection:
        for _ in range(3):
            with pytest.raises(errors.DivisionByZero):
                connection.execute("SELECT 1 / (id - %s) FROM orders WHERE id = 1", (1,))
        assert connection.execute("SELECT 4 / (id + %s) FROM orders WHERE id = 1", (1,)).fetchone() == (2,)


def test_a_startup_parameter_that_changes_meaning_is_refused_by_name(dev_gateway: Gateway) -> None:
    with pytest.raises(psycopg.OperationalError, match='"options" is not allowed'):
        psycopg.connect(dev_gateway.conninfo + " options='-c search_path=evil'")


def test_bytes_after_the_request_for_tls_are_refused(dev_gateway: Gateway) -> None:
    request = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
    with socket.create_connection(("127.0.0.1", dev_gateway.port), 20) as client:
        client.sendall(request + b"early")
        answer = client.recv(1000)
    assert answer[:1] == b"E"
    assert b"08P01" in answer


async def test_many_sessions_at_once(dev_gateway: Gateway) -> None:
    async def one(number: int) -> int:
        connection = await asyncpg.connect(host="127.0.0.1", port=dev_gateway.port, user="agent", database="orders")
        try:
            return int(await connection.fetchval("SELECT id FROM orders WHERE id = $1", number))
        finally:
            await connection.close()

    assert await asyncio.gather(*(one(n) for n in range(1, 41))) == list(range(1, 41))


def test_the_password_is_nowhere_in_the_evidence(dev_gateway: Gateway) -> None:
    from fix_postgres import PASSWORD

    for path in dev_gateway.evidence.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
