"""Limits as clients meet them, in front of the real server: each one natively, told in words, recorded, and in step."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import asyncpg
import psycopg
import pytest
from fix_dev import Gateway, start, write_manifests
from fix_postgres import Postgres
from psycopg import errors
from raw_client import bind, client, execute
from waiting import LIMIT_S, cancels

from chaperone_evidence import record
from chaperone_sidecar.protocols.postgresql import messages as m

pytestmark = pytest.mark.peer

type Make = Callable[..., Gateway]

COPY_IN = b"COPY invoices (id) FROM STDIN"
DURATION = "3s"  # long enough for what is to pass on a machine that is busy
MANY = "SELECT a.id FROM orders a, orders b"  # a million rows


@pytest.fixture(scope="module")
def limited(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """The gateway with the limits that are named; what it recorded must verify in the end."""
    made: dict[str, Gateway] = {}

    def make(**limits: object) -> Gateway:
        key = str(limits)
        if key not in made:
            folder = tmp_path_factory.mktemp("manifests")
            write_manifests(folder, postgres, limits=limits)
            made[key] = start(folder, tmp_path_factory.mktemp("evidence"))
        return made[key]

    yield make
    for gateway in made.values():
        assert gateway.stop() == 0, "".join(gateway.output)
        verdict = gateway.verify()
        assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout


def outcomes(gateway: Gateway) -> list[record.CommandOutcome]:
    return [one for one in gateway.records() if isinstance(one, record.CommandOutcome)]


def codes(gateway: Gateway, since: int = 0) -> list[str]:
    """The codes of all outcomes that are errors."""
    return [one.code for one in outcomes(gateway)[since:] if one.status == "error"]


def is_idle(postgres: Postgres) -> bool:
    """Whether the database runs nothing for the agent; a cancel takes a moment."""
    end = time.monotonic() + LIMIT_S
    with postgres.admin() as admin:
        while time.monotonic() < end:
            found = admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agent_rw' AND state = 'active'"
            ).fetchone()
            if found == (0,):
                return True
            time.sleep(0.05)
    return False


def goes_on(connection: psycopg.Connection) -> bool:
    """Whether client and gateway agree on where they are."""
    return all(connection.execute("SELECT id FROM orders WHERE id = %s", (n,)).fetchone() == (n,) for n in (3, 4))


# --- connections ----------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_refused_at_the_start_and_the_others_stay(limited: Make) -> None:
    gateway = limited(connections=8)
    opened = [gateway.connect() for _ in range(8)]
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError, match="target open as it may have: 8") as refused:
            gateway.connect()
        assert "pool of at most 8" in str(refused.value)
        assert 'limits.connections of policy "agents/billing"' in str(refused.value)
    assert all(goes_on(one) for one in opened)
    opened.pop().close()
    with gateway.connect() as connection:
        assert goes_on(connection)
    for one in opened:
        one.close()


async def test_a_refused_connection_is_53300(limited: Make) -> None:
    gateway = limited(connections=1)
    with gateway.connect(), pytest.raises(asyncpg.TooManyConnectionsError, match=r"limits\.connections"):
        await asyncpg.connect(host="127.0.0.1", port=gateway.port, user="agent", database="orders")


def test_a_cancel_request_takes_no_connection(limited: Make, postgres: Postgres) -> None:
    gateway = limited(connections=1)
    with gateway.connect() as connection:
        cancelling = cancels(connection, postgres)
        with pytest.raises(errors.QueryCanceled, match="due to user request"):
            connection.execute("SELECT pg_sleep(100) FROM orders LIMIT 1")
        cancelling.join()
        assert goes_on(connection)


# --- commands -------------------------------------------------------------------------------------------------------


def test_commands_past_the_limit_are_refused_recorded_and_do_not_run(limited: Make, postgres: Postgres) -> None:
    gateway = limited(commandsPerMinute=5)
    with gateway.connect() as connection, gateway.connect() as other:
        for _ in range(5):
            connection.execute("SELECT 1")
        for one in (connection, other):
            with pytest.raises(
                errors.ConfigurationLimitExceeded,
                match="within a minute as it may run: 5",
            ) as refused:
                one.execute("DELETE FROM invoices WHERE id = %s", (7,))
            assert "Try again in " in (refused.value.diag.message_hint or "")
            assert 'rule "limit:commandsPerMinute" of policy "agents/billing"' in (
                refused.value.diag.message_detail or ""
            )
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id = 7").fetchone() == (1,)
    denied = [one for one in gateway.records() if isinstance(one, record.CommandIntent) and one.decision == "Deny"]
    assert {(one.rule, one.policy) for one in denied} == {("limit:commandsPerMinute", "agents/billing")}
    assert len(denied) == 2


def test_a_transaction_can_be_rolled_back_when_no_command_is_left(limited: Make, postgres: Postgres) -> None:
    gateway = limited(commandsPerMinute=2)
    with gateway.connect() as connection:
        with pytest.raises(errors.ConfigurationLimitExceeded), connection.transaction():
            connection.execute("INSERT INTO invoices VALUES (7001)")
            connection.execute("SELECT 1")
            connection.execute("SELECT 1")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id = 7001").fetchone() == (0,)


def test_a_pipeline_is_in_step_when_its_commands_run_out(limited: Make) -> None:
    gateway = limited(commandsPerMinute=3)
    with gateway.connect() as connection:
        with pytest.raises(errors.ConfigurationLimitExceeded), connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT id FROM orders WHERE id = %s", (n,)) for n in range(1, 7)]
            pipeline.sync()
        assert [cursor.fetchone() for cursor in cursors[:3]] == [(1,), (2,), (3,)]
        with pytest.raises(errors.ConfigurationLimitExceeded):
            connection.execute("SELECT 1")


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("rows", [101, 1000])
def test_a_result_that_passes_the_limit_ends_with_an_error(limited: Make, rows: int, binary: bool) -> None:
    gateway = limited(rowsPerCommand=100)
    since = len(outcomes(gateway))
    with gateway.connect() as connection:
        cursor = connection.cursor(binary=binary)
        for query in ("SELECT id FROM orders WHERE id <= %s", f"SELECT id FROM orders WHERE id <= {rows}"):
            assert len(cursor.execute("SELECT id FROM orders WHERE id <= %s", (100,)).fetchall()) == 100
            with pytest.raises(errors.ConfigurationLimitExceeded, match="more rows than a command may return") as cut:
                cursor.execute(query, (rows,) if "%s" in query else None)
            assert "LIMIT 100" in (cut.value.diag.message_hint or "")
            assert 'limits.rowsPerCommand of policy "agents/billing"' in (cut.value.diag.message_detail or "")
            assert goes_on(connection)
    assert codes(gateway, since) == ["limit:rowsPerCommand"] * 2
    assert all(one.rows <= 100 for one in outcomes(gateway))


@pytest.mark.parametrize("binary", [False, True])
def test_a_result_of_a_million_rows_is_cancelled_at_the_database(
    limited: Make, postgres: Postgres, binary: bool
) -> None:
    gateway = limited(rowsPerCommand=100)
    with gateway.connect() as connection:
        for query, params in ((MANY, None), (MANY + " WHERE a.id > %s", (0,))):
            with pytest.raises(errors.ConfigurationLimitExceeded) as cut:
                connection.execute(query, params, binary=binary)
            assert "The database cancelled the command." in (cut.value.diag.message_detail or "")
            assert is_idle(postgres)
            assert goes_on(connection)
        with pytest.raises(errors.ConfigurationLimitExceeded), connection.transaction():
            connection.execute("INSERT INTO invoices VALUES (7002)")
            connection.execute(MANY)
        assert connection.execute("SELECT count(*) FROM invoices WHERE id = 7002").fetchone() == (0,)
        with pytest.raises(errors.ConfigurationLimitExceeded):
            list(connection.cursor().stream(MANY))
        assert goes_on(connection)


def test_a_command_after_a_cut_one_is_never_the_one_that_is_cancelled(limited: Make) -> None:
    gateway = limited(rowsPerCommand=10)
    with gateway.connect() as connection:
        for number in range(60):  # results of all sizes, so that the cancel comes before, with and after their end
            with pytest.raises(errors.ConfigurationLimitExceeded):
                connection.execute(f"SELECT a.id FROM orders a, orders b LIMIT {11 + number * number * 50}")
            assert connection.execute("SELECT pg_sleep(0.002), count(*) FROM orders").fetchone() == ("", 1000)


def test_psql_hears_of_the_cut_and_goes_on(limited: Make) -> None:
    run = subprocess.run(
        ["psql", limited(rowsPerCommand=100).conninfo, "-At", "-c", MANY, "-c", "SELECT 1 + 1"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.stdout == "2\n"
    assert "cut by Chaperone: the result has more rows than a command may return (100)" in run.stderr


def test_each_fetch_of_a_cursor_is_a_command(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    with psycopg.connect(gateway.conninfo) as connection:
        with connection.cursor("numbers") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT id FROM orders ORDER BY id")
            assert sum(row[0] for row in cursor) == 500500
        with connection.cursor("greedy") as cursor, pytest.raises(errors.ConfigurationLimitExceeded):
            cursor.execute("SELECT id FROM orders ORDER BY id")
            cursor.fetchmany(101)
        connection.rollback()
        assert goes_on(connection)


async def test_each_execute_of_a_portal_is_a_command(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    connection = await asyncpg.connect(host="127.0.0.1", port=gateway.port, user="agent", database="orders")
    async with connection.transaction():
        rows = [row["id"] async for row in connection.cursor("SELECT id FROM orders ORDER BY id", prefetch=100)]
    assert rows == list(range(1, 1001))
    with pytest.raises(asyncpg.ConfigurationLimitExceededError):
        async with connection.transaction():
            await (await connection.cursor("SELECT id FROM orders ORDER BY id")).fetch(101)
    assert await connection.fetchval("SELECT id FROM orders WHERE id = $1", 9) == 9
    await connection.close()


def test_copy_out_counts_as_rows(limited: Make, postgres: Postgres) -> None:
    gateway = limited(rowsPerCommand=100)
    with gateway.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT id FROM orders WHERE id <= 100) TO STDOUT") as copy:
            assert len(list(copy.rows())) == 100
        for source in ("COPY orders TO STDOUT", f"COPY ({MANY}) TO STDOUT (FORMAT binary)"):
            with pytest.raises(errors.ConfigurationLimitExceeded), cursor.copy(source) as copy:
                while copy.read():
                    pass
            assert is_idle(postgres)
            assert goes_on(connection)


def test_a_cut_in_a_pipeline_leaves_the_client_in_step_or_ends_the_session(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    with gateway.connect() as connection:  # cancelled in time: the database skips what follows, as the client expects
        with pytest.raises(errors.ConfigurationLimitExceeded), connection.pipeline() as pipeline:
            first = connection.execute("SELECT id FROM orders WHERE id = %s", (3,))
            connection.execute(MANY + " WHERE a.id > %s", (0,))
            connection.execute("INSERT INTO invoices VALUES (7003)")
            pipeline.sync()
        assert first.fetchone() == (3,)
        assert connection.execute("SELECT count(*) FROM invoices WHERE id = 7003").fetchone() == (0,)
    with client(gateway) as one:  # completed before: the database has gone on with what the client takes for skipped
        one.send(
            m.encode_parse(b"", b"SELECT id FROM orders WHERE id <= 101"), bind(), execute(), bind(), execute(),
            m.SYNC_FRAME,
        )  # fmt: skip
        found = one.until("")
        assert found[-2][0] == "E"
        assert b"FATAL\0" in found[-2][1]
        assert b"53400" in found[-2][1]


def test_a_cut_before_sync_was_sent_fails_the_transaction_at_the_database_too(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    with client(gateway) as one:
        one.send(m.encode_query(b"BEGIN; INSERT INTO invoices VALUES (7004)"))
        one.until("Z")
        one.send(m.encode_parse(b"", b"SELECT id FROM orders WHERE id <= 101"), bind(), execute(), m.FLUSH_FRAME)
        found = one.until("E")
        assert [kind for kind, _ in found if kind != "D"] == ["1", "2", "E"]
        assert b"53400" in found[-1][1]
        one.send(bind(), execute(), m.SYNC_FRAME)
        assert one.until("Z") == [("Z", b"E")]
        one.send(m.encode_query(b"ROLLBACK"))
        assert one.kinds() == "CZ"


def test_a_suspended_portal_goes_on_after_a_cut_of_another_session(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    with client(gateway) as one:
        one.send(m.encode_query(b"BEGIN"))
        one.until("Z")
        one.send(m.encode_parse(b"", b"SELECT id FROM orders"), bind(b"p"), execute(b"p", 100), m.SYNC_FRAME)
        assert one.kinds() == "12" + "D" * 100 + "sZ"
        with gateway.connect() as other, pytest.raises(errors.ConfigurationLimitExceeded):
            other.execute(MANY)
        one.send(execute(b"p", 100), m.SYNC_FRAME)
        assert one.kinds() == "D" * 100 + "sZ"


def test_the_rest_of_a_string_of_statements_is_dropped_with_the_cut_one(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    with client(gateway) as one:
        one.send(m.encode_query(b"SELECT id FROM orders WHERE id <= 50; SELECT id FROM orders; SELECT 1"))
        kinds = one.kinds()
        assert kinds.startswith("T" + "D" * 50 + "CT")
        assert kinds.endswith("EZ")
        assert "C" not in kinds[53:]
        one.send(m.encode_query(b"SELECT id FROM orders; COPY invoices FROM STDIN"))
        assert one.kinds().endswith("EZ")
        one.send(m.encode_query(b"SELECT id FROM orders WHERE id = 1"))
        assert one.kinds() == "TDCZ"


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_a_session_moves_no_more_bytes_than_it_may(limited: Make) -> None:
    gateway = limited(bytesPerSession="100Ki")
    since = len(outcomes(gateway))
    with gateway.connect() as connection:
        moved = 0
        with pytest.raises(errors.ConfigurationLimitExceeded, match=r"more bytes than it may \(102400\)") as cut:
            for _ in range(20):
                moved += len(connection.execute("SELECT repeat('x', 10000) FROM orders WHERE id = 1").fetchone()[0])
        assert 80_000 < moved < 102_400
        assert "open a new session" in (cut.value.diag.message_hint or "")
        assert goes_on(connection)  # what is small enough still passes
    with gateway.connect() as connection:
        assert goes_on(connection)
    assert codes(gateway, since) == ["limit:bytesPerSession"]


@pytest.mark.parametrize("where", ["", " WHERE id > %s"])
def test_a_long_row_that_does_not_fit_is_stopped_before_it_begins(limited: Make, where: str) -> None:
    gateway = limited(bytesPerSession="900k")
    with gateway.connect() as connection:
        for size in (1_000_000, 50_000_000):
            with pytest.raises(errors.ConfigurationLimitExceeded):
                connection.execute(f"SELECT repeat('x', {size}) FROM orders{where}", (0,) if where else None)
            assert goes_on(connection)
        assert len(connection.execute("SELECT repeat('x', 600000)").fetchone()[0]) == 600_000
        with pytest.raises(errors.ConfigurationLimitExceeded):
            connection.execute("SELECT repeat('x', 600000)")
        assert goes_on(connection)


def test_bytes_that_are_copied_in_count(limited: Make, postgres: Postgres) -> None:
    gateway = limited(bytesPerSession="100Ki")
    with gateway.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY invoices (id) FROM STDIN") as copy:
            for number in range(20_000, 21_000):
                copy.write_row((number,))
        with (
            pytest.raises(errors.ConfigurationLimitExceeded, match="102400"),
            cursor.copy("COPY invoices (id) FROM STDIN") as copy,
        ):
            for number in range(30_000, 300_000):
                copy.write_row((number,))
        assert goes_on(connection)
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id >= 20000").fetchone() == (1000,)
        admin.execute("DELETE FROM invoices WHERE id >= 20000")


def test_data_that_is_sent_before_it_is_asked_for_counts_too(limited: Make, postgres: Postgres) -> None:
    gateway = limited(bytesPerSession="100Ki")
    fits = m.frame(m.COPY_DATA, b"40000\n") + m.frame(m.COPY_DONE, b"")
    rows = [b"%d\n" % number for number in range(40_001, 70_001)]  # each one new, or the server's error may come first
    parts = (b"".join(rows[begin : begin + 10_000]) for begin in range(0, len(rows), 10_000))
    many = b"".join(m.frame(m.COPY_DATA, part) for part in parts) + m.frame(m.COPY_DONE, b"")
    with client(gateway) as one:
        one.send(m.encode_query(COPY_IN), fits, m.encode_query(COPY_IN), many, m.encode_query(b"SELECT 1"))
        assert [one.kinds() for _ in range(3)] == ["GCZ", "GEZ", "TDCZ"]
    with client(gateway) as one:
        one.send(m.encode_parse(b"", COPY_IN), bind(), execute(), m.SYNC_FRAME, many, m.SYNC_FRAME)
        found = one.until("Z")
        assert "".join(kind for kind, _ in found) == "12GEZ"
        assert b"53400" in found[-2][1]
        one.send(m.encode_query(b"SELECT 1"))
        assert one.kinds() == "TDCZ"
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id >= 40000").fetchone() == (1,)
        admin.execute("DELETE FROM invoices WHERE id >= 40000")


def test_statements_and_parameters_count_and_are_refused_before_they_run(limited: Make) -> None:
    gateway = limited(bytesPerSession="10k")
    with gateway.connect() as connection:
        with pytest.raises(errors.ConfigurationLimitExceeded, match="limit:bytesPerSession"):
            connection.execute("SELECT count(*) FROM orders WHERE customer = %s", ("x" * 10_000,))
        with pytest.raises(errors.ConfigurationLimitExceeded):
            connection.execute(f"SELECT count(*) FROM orders WHERE customer = '{'x' * 10_000}'")
        assert goes_on(connection)


# --- duration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["SELECT pg_sleep(30)", "SELECT pg_sleep(30) FROM orders WHERE id = %s"])
def test_a_command_that_runs_too_long_is_cancelled(limited: Make, postgres: Postgres, query: str) -> None:
    gateway = limited(commandDuration=DURATION)
    since = len(outcomes(gateway))
    with gateway.connect() as connection:
        began = time.monotonic()
        with pytest.raises(errors.QueryCanceled, match="cut by Chaperone: the command ran longer than it may"):
            connection.execute(query, (1,) if "%s" in query else None)
        assert 2.9 < time.monotonic() - began < 29
        assert is_idle(postgres)
        assert goes_on(connection)
        time.sleep(3.5)  # idle is not a command
        assert goes_on(connection)
        with pytest.raises(errors.QueryCanceled), connection.pipeline():
            first = connection.execute("SELECT id FROM orders WHERE id = %s", (2,))
            connection.execute("SELECT pg_sleep(30)")
            connection.execute("SELECT pg_sleep(30)")
        assert first.fetchone() == (2,)
        assert goes_on(connection)
    assert codes(gateway, since) == ["limit:commandDuration"] * 2


def test_commands_of_a_pipeline_have_their_time_each(limited: Make) -> None:
    gateway = limited(commandDuration=DURATION)
    with gateway.connect() as connection:
        with connection.pipeline():
            for _ in range(5):
                last = connection.execute("SELECT pg_sleep(0.8), %s::int", (5,))
        assert last.fetchone() == ("", 5)


def test_a_stream_of_long_rows_ends_between_two_of_them(limited: Make) -> None:
    gateway = limited(commandDuration=DURATION)
    with gateway.connect() as connection:
        with pytest.raises(errors.QueryCanceled, match="cut by Chaperone"):
            for row in connection.cursor().stream("SELECT repeat('x', 1000000) FROM orders a, orders b"):
                assert len(row[0]) == 1_000_000
        assert goes_on(connection)


def test_a_copy_that_the_client_does_not_end_is_ended(limited: Make) -> None:
    gateway = limited(commandDuration=DURATION)
    with gateway.connect() as connection, connection.cursor() as cursor:
        with (
            pytest.raises(errors.QueryCanceled, match="cut by Chaperone"),
            cursor.copy("COPY invoices FROM STDIN") as c,
        ):
            c.write(b"9001\tt\n")
            time.sleep(4)
            c.write(b"9002\tt\n")
        assert goes_on(connection)
        assert connection.execute("SELECT count(*) FROM invoices WHERE id > 9000").fetchone() == (0,)


def test_sync_inside_a_copy_that_is_ended_is_ignored_as_libpq_expects(limited: Make) -> None:
    gateway = limited(commandDuration=DURATION)
    with client(gateway) as one:
        one.send(m.encode_parse(b"", COPY_IN), bind(), execute(), m.SYNC_FRAME)
        found = one.until("E")
        assert "".join(kind for kind, _ in found) == "12GE"
        assert b"57014" in found[-1][1]
        one.send(m.frame(m.COPY_DONE, b""), m.SYNC_FRAME, m.encode_query(b"SELECT 1"))
        assert one.kinds() == "Z"
        assert one.kinds() == "TDCZ"


def test_a_cut_leaves_the_unnamed_statement_alone(limited: Make) -> None:
    gateway = limited(rowsPerCommand=100)
    with client(gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT id FROM orders WHERE id <= 101"), m.SYNC_FRAME)
        assert one.kinds() == "1Z"
        for _ in range(2):
            one.send(bind(), execute(), m.FLUSH_FRAME)
            assert one.until("E")[-1][0] == "E"
            one.send(m.SYNC_FRAME)
            assert one.kinds() == "Z"
