"""Masks and the state of the protocol: whatever a name stands for, rows are masked by the statement they come from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from fix_dev import Gateway
from fix_postgres import Postgres
from raw_client import Client, bind, client, execute

from chaperone_evidence import record
from chaperone_sidecar.protocols.postgresql import messages as m

SECRET = b"Quorbly"
SCHEMA = """
CREATE TABLE people (id int, name text, motto text);
INSERT INTO people SELECT g, 'Quorbly ' || g, 'motto ' || g FROM generate_series(1, 5) g;
ALTER TABLE people OWNER TO agent_rw;
CREATE TABLE noisy (id int); ALTER TABLE noisy OWNER TO agent_rw;
CREATE RULE tell AS ON INSERT TO noisy DO ALSO SELECT name FROM people;
CREATE FUNCTION reopen(c refcursor) RETURNS refcursor LANGUAGE plpgsql AS
  $$ BEGIN CLOSE c; OPEN c FOR SELECT upper(name) FROM people; RETURN c; END $$;
CREATE FUNCTION told(id int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN id; END $$;
"""
RULES = [
    {
        "name": "all",
        "action": "Allow",
        "match": {
            "effects": [
                "read", "bulk_read", "create", "modify", "schema", "session", "transaction", "execute_code", "unknown",
            ]
        },
    }
]  # fmt: skip
NAMES = b"SELECT name FROM people"
NULL = b""  # of one column: no bytes follow its length
UPPER_NAMES = b"SELECT upper(name) FROM people"
MOTTOS = b"SELECT upper(motto) FROM people"


CLASSIFIED = [{"columns": ["public.people.name"], "class": "person"}]


@pytest.fixture
def people(postgres: Postgres) -> Iterator[Postgres]:
    with postgres.admin() as admin:
        admin.execute(SCHEMA)
    yield postgres
    with postgres.admin() as admin:
        admin.execute("SET client_min_messages TO error; DROP TABLE people, noisy CASCADE; DROP FUNCTION reopen, told")


@pytest.fixture
def gateway(gateway_with: Callable[..., Gateway], people: Postgres) -> Gateway:
    return gateway_with(rules=RULES, classified=CLASSIFIED, unmaskable="Deny")


@pytest.fixture
def swapping(gateway_with: Callable[..., Gateway], people: Postgres) -> Gateway:
    """One whose agent may make views of what is classified."""
    decide = {"effects": ["read_sensitive"], "objects": ["public.people.name"]}
    rules = [*RULES, {"name": "decide", "action": "Allow", "match": decide}]
    return gateway_with(rules=rules, classified=CLASSIFIED, unmaskable="Deny")


@pytest.fixture
def redacting(gateway_with: Callable[..., Gateway], people: Postgres) -> Gateway:
    """One that shows what it does not know as NULL."""
    return gateway_with(rules=RULES, classified=CLASSIFIED, unmaskable="Redact")


def describe(kind: bytes, name: bytes) -> bytes:
    return m.frame(m.DESCRIBE, kind + name + b"\0")


def told(agent: Client, *frames: bytes, syncs: int = 1) -> list[tuple[str, bytes]]:
    """What comes back, which is searched for the secret."""
    agent.send(*frames)
    found = [message for _ in range(syncs) for message in agent.until("Z")]
    assert SECRET.lower() not in b"".join(body for _, body in found).lower()
    return found


def rows(found: list[tuple[str, bytes]]) -> list[bytes]:
    return [body[6:] for kind, body in found if kind == "D"]


def test_a_statement_prepared_anew_does_not_change_the_portal_that_stands(gateway: Gateway) -> None:
    with client(gateway) as agent:
        found = told(
            agent, m.encode_parse(b"s", NAMES), bind(b"p", b"s"), m.frame(m.CLOSE, b"Ss\0"),
            m.encode_parse(b"s", MOTTOS), execute(b"p"),
            bind(b"q", b"s"), execute(b"q"), m.SYNC_FRAME,
        )  # fmt: skip
    assert rows(found) == [b"[person]"] * 5 + [b"MOTTO %d" % number for number in range(1, 6)]


def test_the_unnamed_statement_may_be_prepared_between_bind_and_execute(gateway: Gateway) -> None:
    with client(gateway) as agent:
        found = told(
            agent, m.encode_parse(b"", NAMES), bind(b"", b""), m.encode_parse(b"", MOTTOS), execute(b""), m.SYNC_FRAME
        )
    assert rows(found) == [b"[person]"] * 5


@pytest.mark.parametrize("formats", [(), (0,), (1,), (1, 0)])
def test_portals_of_one_statement_have_formats_of_their_own(gateway: Gateway, formats: tuple[int, ...]) -> None:
    with client(gateway) as agent:
        found = told(
            agent, m.encode_parse(b"s", b"SELECT name, motto FROM people WHERE id = 1"), describe(b"S", b"s"),
            bind(b"a", b"s", *formats), execute(b"a"), bind(b"b", b"s", 1, 1), describe(b"P", b"b"), execute(b"b"),
            bind(b"c", b"s"), execute(b"c"), m.SYNC_FRAME,
        )  # fmt: skip
    assert rows(found) == [b"[person]" + b"\0\0\0\7motto 1"] * 3


def test_a_portal_is_masked_however_often_it_is_executed_and_fetched(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, m.encode_query(b"BEGIN"))
        found = told(
            agent, m.encode_parse(b"", NAMES), bind(b"p", b""), execute(b"p", 2), execute(b"p", 1),
            m.encode_parse(b"f", b"FETCH 1 FROM p"), bind(b"", b"f", 1), execute(b""), execute(b"p"), m.SYNC_FRAME,
        )  # fmt: skip
        assert rows(found) == [b"[person]"] * 5
        told(agent, m.encode_query(b"ROLLBACK"))


def test_a_cursor_declared_anew_is_masked_by_its_new_query(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, m.encode_query(b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS))
        assert rows(told(agent, m.encode_query(b"FETCH 1 FROM c"))) == [b"MOTTO 1"]
        told(
            agent,
            m.encode_query(b"CLOSE c"),
            m.encode_query(b"DECLARE c CURSOR FOR SELECT upper(name) FROM people"),
            syncs=2,
        )
        assert rows(told(agent, m.encode_query(b"FETCH 2 FROM c"))) == [b"[person]"] * 2
        told(
            agent,
            m.encode_query(b"SAVEPOINT s"),
            m.encode_query(b"DECLARE c CURSOR FOR " + MOTTOS),
            m.encode_query(b"ROLLBACK TO s"),
            syncs=3,
        )
        assert rows(told(agent, m.encode_query(b"FETCH 1 FROM c"))) in ([b"[person]"], [])
        told(agent, m.encode_query(b"ROLLBACK"))


def test_a_function_that_reopens_a_cursor_shows_nothing(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, m.encode_query(b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS))
        told(agent, m.encode_query(b"SELECT reopen('c')"))
        assert rows(told(agent, m.encode_query(b"FETCH 1 FROM c"))) == []
        told(agent, m.encode_query(b"ROLLBACK"))


def test_results_that_a_rule_adds_are_not_shown(gateway: Gateway) -> None:
    with client(gateway) as agent:
        assert rows(told(agent, m.encode_query(b"INSERT INTO noisy VALUES (1)"))) == []
        assert rows(told(agent, m.encode_query(MOTTOS + b"; INSERT INTO noisy VALUES (1); " + MOTTOS)))[:1] in (
            [b"MOTTO 1"],
            [],
        )
        assert rows(told(agent, m.encode_query(NAMES + b" LIMIT 1"))) == [b"[person]"]


@pytest.mark.parametrize(
    "text",
    [
        b";;" + MOTTOS + b";; ;" + NAMES + b";",
        MOTTOS + b" /* ; */ ; -- ;\n" + NAMES,
        MOTTOS + b"; UPDATE people SET id = id WHERE id = 1; " + NAMES,
        MOTTOS + b"; COPY people (id) TO STDOUT; SELECT; " + NAMES,
    ],
)
def test_statements_of_one_text_keep_their_plans(gateway: Gateway, text: bytes) -> None:
    with client(gateway) as agent:
        found = rows(told(agent, m.encode_query(text)))
    assert found[0] == b"MOTTO 1"
    assert found[-5:] == [b"[person]"] * 5


def test_a_text_that_fails_in_the_middle_leaves_the_next_in_step(gateway: Gateway) -> None:
    with client(gateway) as agent:
        found = told(
            agent,
            m.encode_query(MOTTOS + b"; SELECT 1/0; " + NAMES),
            m.encode_query(NAMES),
            m.encode_query(MOTTOS),
            syncs=3,
        )
    assert rows(found) == [b"MOTTO %d" % n for n in range(1, 6)] + [b"[person]"] * 5 + [
        b"MOTTO %d" % n for n in range(1, 6)
    ]


def test_columns_whose_names_are_exchanged_are_not_shown(gateway: Gateway) -> None:
    renames = (b"name TO x", b"motto TO name", b"x TO motto")
    swap = b"; ".join(b"ALTER TABLE people RENAME " + rename for rename in renames)
    with client(gateway) as agent, client(gateway) as other:
        told(agent, m.encode_parse(b"s", MOTTOS), bind(b"", b"s"), execute(b""), m.SYNC_FRAME)
        told(other, m.encode_query(MOTTOS))
        told(agent, m.encode_query(swap))
        for one in (agent, other):
            told(one, m.encode_query(b"SELECT motto, upper(motto), name FROM people"))
            told(one, m.encode_query(MOTTOS))
        told(agent, bind(b"", b"s"), execute(b""), m.SYNC_FRAME)
        told(
            agent,
            m.encode_query(b"BEGIN"),
            m.encode_query(swap),
            m.encode_query(MOTTOS),
            m.encode_query(b"ROLLBACK"),
            syncs=4,
        )
        told(agent, m.encode_query(swap), m.encode_query(MOTTOS), syncs=2)


def test_a_text_that_is_not_understood_shows_no_row(gateway: Gateway) -> None:
    with client(gateway) as agent:
        assert rows(told(agent, m.encode_query(b"SELECT E'a' --\n'b', name FROM people"))) == []


def test_a_statement_over_many_of_the_servers_own_tables_is_answered(gateway: Gateway) -> None:
    tables = b"class attribute type namespace index constraint proc trigger sequence depend enum rewrite".split()
    text = b" UNION ALL ".join(b"SELECT count(*) FROM pg_catalog.pg_" + table for table in tables)
    with client(gateway) as agent:
        assert len(rows(told(agent, m.encode_query(text)))) == len(tables)


# --- names that SQL changes -----------------------------------------------------------------------------------------


def run(text: bytes) -> bytes:
    """One statement by the extended protocol."""
    return m.encode_parse(b"", text) + bind() + execute()


def test_a_statement_that_sql_replaced_does_not_come_back_with_a_late_answer(gateway: Gateway) -> None:
    swap = run(b"DEALLOCATE s"), run(b"PREPARE s AS " + UPPER_NAMES)
    with client(gateway) as agent:
        told(agent, m.encode_parse(b"s", MOTTOS), *swap, m.SYNC_FRAME)
        told(agent, run(b"SELECT 1/0"), m.frame(m.CLOSE, b"Ss\0"), m.SYNC_FRAME)  # skipped: s is what it was
        assert rows(told(agent, bind(b"", b"s"), execute(), m.SYNC_FRAME)) == []


def test_a_portal_that_sql_replaced_does_not_come_back_with_a_late_answer(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, m.encode_query(b"BEGIN"), m.encode_parse(b"s", MOTTOS), m.SYNC_FRAME, syncs=2)
        told(
            agent, bind(b"p", b"s"), run(b"CLOSE p"), run(b"DECLARE p CURSOR FOR " + UPPER_NAMES), run(b"SAVEPOINT a"),
            run(b"SELECT 1/0"), m.frame(m.CLOSE, b"Pp\0"), m.SYNC_FRAME,
        )  # fmt: skip
        told(agent, m.encode_query(b"ROLLBACK TO a"), execute(b"p"), m.SYNC_FRAME, syncs=2)
        told(agent, m.encode_query(b"ROLLBACK"))


def test_what_a_fetch_has_begun_to_show_stays_masked_when_its_cursor_is_declared_anew(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, m.encode_query(b"BEGIN; DECLARE c CURSOR FOR " + UPPER_NAMES))
        told(agent, m.encode_parse(b"f", b"FETCH 5 FROM c"), bind(b"p", b"f"), execute(b"p", 1), m.FLUSH_FRAME,
             run(b"CLOSE c"), run(b"DECLARE c CURSOR FOR " + MOTTOS), execute(b"p"), m.SYNC_FRAME)  # fmt: skip
        told(agent, m.encode_query(b"ROLLBACK"))


# --- code that opens cursors ----------------------------------------------------------------------------------------

REOPEN = b"SELECT reopen('c')"


def test_a_cursor_that_a_function_opened_shows_nothing(redacting: Gateway) -> None:
    with client(redacting) as agent:
        told(agent, m.encode_query(b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS))
        told(agent, m.encode_query(REOPEN))
        assert set(rows(told(agent, m.encode_query(b"FETCH ALL FROM c")))) == {NULL}
        told(agent, m.encode_query(b'MOVE 0 FROM c; FETCH ALL IN "<unnamed portal 1>"; ROLLBACK'))


def test_a_function_that_reopens_a_cursor_in_the_text_that_reads_it_shows_nothing(redacting: Gateway) -> None:
    texts = b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS, b"SELECT reopen('c'); FETCH 2 FROM c", b"ROLLBACK"
    with client(redacting) as agent:
        told(agent, *map(m.encode_query, texts), syncs=3)
        told(agent, m.encode_query(b"; ".join(texts)))


def test_a_portal_that_a_function_reopened_shows_nothing(redacting: Gateway) -> None:
    with client(redacting) as agent:
        told(agent, m.encode_query(b"BEGIN"), m.encode_parse(b"s", MOTTOS), m.SYNC_FRAME, syncs=2)
        told(agent, bind(b"c", b"s"), run(REOPEN), execute(b"c"), m.SYNC_FRAME)
        told(agent, m.encode_query(b"ROLLBACK"))


@pytest.mark.parametrize("read", [m.encode_query(b"FETCH 1 FROM d"), run(b"FETCH 1 FROM d") + m.SYNC_FRAME])
def test_a_cursor_that_runs_code_when_it_is_read_leaves_no_other_known(redacting: Gateway, read: bytes) -> None:
    with client(redacting) as agent:
        told(agent, m.encode_query(b"BEGIN; DECLARE d CURSOR FOR " + REOPEN))
        told(agent, m.encode_query(b"DECLARE c CURSOR FOR " + MOTTOS))
        told(agent, read)
        assert set(rows(told(agent, m.encode_query(b"FETCH ALL FROM c")))) == {NULL}
        told(agent, m.encode_query(b"ROLLBACK"))


def test_a_portal_is_read_to_its_end_though_its_statement_runs_code(redacting: Gateway) -> None:
    with client(redacting) as agent:
        told(agent, m.encode_query(b"BEGIN"))
        told(agent, m.encode_parse(b"", b"SELECT motto, told(id) FROM people"), bind(b"p"), m.SYNC_FRAME)
        found = told(agent, execute(b"p", 1), execute(b"p", 2), m.SYNC_FRAME)
        assert [row[:7] for row in rows(found)] == [b"motto %d" % number for number in range(1, 4)]
        told(agent, m.encode_query(b"ROLLBACK"))


def test_waiting_and_locking_change_neither_the_schema_nor_names(redacting: Gateway) -> None:
    with client(redacting) as agent:
        told(agent, m.encode_query(b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS))
        told(agent, m.encode_query(b"SELECT pg_sleep(0), pg_advisory_xact_lock(7), pg_try_advisory_xact_lock(7)"))
        assert rows(told(agent, m.encode_query(b"FETCH 1 FROM c"))) == [b"MOTTO 1"]
        assert rows(told(agent, m.encode_query(MOTTOS + b" LIMIT 1"))) == [b"MOTTO 1"]
        told(agent, m.encode_query(b"ROLLBACK"))


# --- relations that become others while a statement is under way ----------------------------------------------------

ZOO = "CREATE OR REPLACE VIEW zoo AS SELECT id, {}::text AS motto FROM people; GRANT SELECT ON zoo TO agent_rw"
HARMLESS, HARMFUL = ZOO.format("motto"), ZOO.format("name")
MADE = b"CREATE OR REPLACE VIEW zoo AS SELECT id, %b::text AS motto FROM people"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
ZOO_READS = {
    "a view": b"SELECT motto FROM zoo",
    "an expression": b"SELECT upper(motto) FROM zoo",
    "no row": b"SELECT id FROM zoo WHERE motto LIKE 'motto%'",
    "COPY": b"COPY (SELECT motto FROM zoo) TO STDOUT",
}


def until_it_waits(admin: psycopg.Connection) -> None:
    deadline = time.monotonic() + 20
    while admin.execute(WAITING).fetchone() == (0,):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("swap", [[HARMFUL], [HARMFUL, HARMLESS]], ids=["swapped", "swapped and changed back"])
def test_a_view_that_another_changes_while_a_statement_waits_shows_nothing(
    gateway: Gateway, people: Postgres, swap: list[str]
) -> None:
    with people.admin() as owner, people.admin() as admin, client(gateway) as agent:
        admin.execute(HARMLESS)
        for text in ZOO_READS.values():
            for frames in (m.encode_query(text), run(text) + m.SYNC_FRAME):
                told(agent, frames)  # its plan is known
                with owner.transaction():
                    owner.execute("LOCK TABLE zoo IN ACCESS EXCLUSIVE MODE")
                    agent.send(frames)
                    until_it_waits(admin)
                    for one in swap:
                        owner.execute(one)
                found = told(agent)
                assert [kind for kind, _ in found if kind in "DdE"] == ["E"], (text, frames)
                owner.execute(HARMLESS)
                told(agent, frames)  # refused at most once more


def test_a_view_that_another_session_of_the_gateway_changes_shows_nothing(swapping: Gateway, people: Postgres) -> None:
    with client(swapping) as agent, client(swapping) as other, people.admin() as admin:
        for text in ZOO_READS.values():
            told(other, m.encode_query(MADE % b"motto"))
            told(agent, m.encode_query(text))
            told(other, m.encode_query(b"BEGIN; " + MADE % b"name"))
            agent.send(m.encode_query(text))
            until_it_waits(admin)
            told(other, m.encode_query(b"COMMIT"))
            assert [kind for kind, _ in told(agent) if kind in "DdE"] == ["E"], text


def test_a_view_that_the_text_itself_changes_shows_nothing(swapping: Gateway) -> None:
    with client(swapping) as agent:
        told(agent, m.encode_query(MADE % b"motto"))
        for text in ZOO_READS.values():
            told(agent, m.encode_query(b"; ".join((MADE % b"name", text, MADE % b"motto"))))
        assert len(rows(told(agent, m.encode_query(b"BEGIN; " + MADE % b"motto" + b"; COMMIT; SELECT 1")))) == 1


def test_a_table_that_becomes_a_view_while_a_statement_waits_shows_nothing(gateway: Gateway, people: Postgres) -> None:
    with people.admin() as owner, people.admin() as admin, client(gateway) as agent:
        owner.execute("CREATE TABLE zoo AS SELECT id, motto FROM people; GRANT SELECT ON zoo TO agent_rw")
        for text in (b"SELECT motto FROM zoo", b"SELECT upper(motto) FROM zoo"):
            told(agent, m.encode_query(text))
            with owner.transaction():
                owner.execute("LOCK TABLE zoo IN ACCESS EXCLUSIVE MODE")
                agent.send(m.encode_query(text))
                until_it_waits(admin)
                owner.execute("ALTER TABLE zoo RENAME TO animals; " + HARMFUL)
            told(agent)
            owner.execute("DROP VIEW zoo; ALTER TABLE animals RENAME TO zoo")
            told(agent, m.encode_query(text))
        owner.execute("DROP TABLE zoo")


@pytest.mark.parametrize("text", [b"SELECT name, motto FROM people", b"SELECT upper(name), motto FROM people"])
def test_rows_are_shown_though_the_catalog_was_forgotten_meanwhile(
    gateway: Gateway, people: Postgres, text: bytes
) -> None:
    with people.admin() as owner, people.admin() as admin, client(gateway) as agent, client(gateway) as other:
        admin.execute(HARMLESS)
        told(agent, m.encode_query(text))
        for frames in (m.encode_query(text), run(text) + m.SYNC_FRAME):
            with owner.transaction():
                owner.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
                agent.send(frames)
                until_it_waits(admin)
                told(other, m.encode_query(b"CREATE VIEW another AS SELECT 1 AS one"))  # DDL: all is forgotten
                told(other, m.encode_query(b"DROP VIEW another"))
            assert rows(told(agent)) == [b"[person]\0\0\0\7motto %d" % number for number in range(1, 6)]


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"rowsPerCommand": 300}, {"bytesPerSession": 12_000}, None], ids=str)
def test_how_long_masked_values_are_decides_neither_what_is_shown_nor_what_is_recorded(
    gateway_with: Callable[..., Gateway], people: Postgres, limits: dict[str, int] | None
) -> None:
    with people.admin() as admin:
        for table, length in (("short", 1), ("large", 5000)):
            admin.execute(f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (id int, name text)")
            admin.execute(f"GRANT SELECT ON {table} TO agent_rw")
            admin.execute(f"INSERT INTO {table} SELECT g, repeat('x', {length}) FROM generate_series(1, 1000) g")
        classified = [{"columns": ["public.short.name", "public.large.name"], "class": "person"}]
        gateway = gateway_with(rules=RULES, classified=classified, unmaskable="Deny", limits=limits)
        shown = []
        for table in (b"short", b"large"):
            text = b"SELECT id, name FROM " + table
            found = []
            for frames in (
                m.encode_query(text),
                run(text) + m.SYNC_FRAME,
                m.encode_query(b"COPY " + table + b" (id, name) TO STDOUT"),
            ):
                with client(gateway) as agent:
                    found += [(kind, body) for kind, body in told(agent, frames) if kind in "DdEC"]
            shown.append(found)
        assert shown[0] == shown[1]
        outcomes = [
            (one.status, one.code, one.rows, one.bytes)
            for one in gateway.records()
            if isinstance(one, record.CommandOutcome)
        ]
        assert len(outcomes) == 6
        assert outcomes[:3] == outcomes[3:]
        admin.execute("DROP TABLE short, large")
