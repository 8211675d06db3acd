"""Every version of PostgreSQL that we say we support, as a real server: 14, 15, 16, 17 and 18.

CHAPERONE_SESSIONS_OF_A_VERSION sets how many generated sessions are compared with each.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Final

import asyncpg
import fix_dev
import psycopg
import pytest
import write_catalog
from fix_postgres import PASSWORD
from pg_peers import Peers, everything
from pg_sessions import bind, close, describe, execute, parse, written
from pki import Authority
from psycopg import errors
from tls_relay import relay
from waiting import eventually

from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql import relations
from chaperone_tools import postgresql_catalog

pytestmark = pytest.mark.peer

SQLSTATE: Final = psycopg.pq.DiagnosticField.SQLSTATE
READ_ONLY: Final = b"25006"
SESSIONS: Final = int(os.environ.get("CHAPERONE_SESSIONS_OF_A_VERSION", "100"))


def query(text: bytes) -> bytes:
    return m.encode_query(text)


def copied(*blocks: bytes) -> bytes:
    return b"".join(m.frame(m.COPY_DATA, block) for block in blocks) + m.frame(m.COPY_DONE, b"")


ITEMS: Final = b"SELECT id, name, data FROM items WHERE id <= $1 ORDER BY id"
SEVEN: Final = (b"\0\0\0\7",)
HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
WHOLE: Final = parse(b"", ITEMS, (23,)) + bind(b"", b"", SEVEN, (1,), (1,)) + execute(b"", 0)
BROKEN: Final = parse(b"", b"SELECT 10 / $1::int") + bind(b"", b"", (b"0",), (), ()) + execute(b"", 0)

# What is sent, and the types of all messages that the server answers it with, from the first ReadyForQuery on.
DIALOGUES: Final = {
    "simple": ((query(b"SELECT 1"), query(b""), query(b"TABLE nowhere")), "TDCZIZEZ"),
    "several statements": ((query(b"SELECT 1; INSERT INTO notes VALUES (1, 'x'); SELECT 1/0; SELECT 2"),), "TDCCEZ"),
    "every extended message": (
        (parse(b"s1", ITEMS, (23,)), describe(b"S", b"s1"), bind(b"p1", b"s1", SEVEN, (1,), (0,)), m.FLUSH_FRAME,
         describe(b"P", b"p1"), execute(b"p1", 0), close(b"P", b"p1"), close(b"S", b"s1"), m.SYNC_FRAME),
        "1tT2TDDDDDDDC33Z",
    ),
    "binary both ways": ((WHOLE, m.SYNC_FRAME), "12DDDDDDDCZ"),
    "portals with row limits": (
        (query(b"BEGIN"), parse(b"", ITEMS, (23,)), bind(b"p1", b"", SEVEN, (1,), ()), execute(b"p1", 3),
         execute(b"p1", 3), execute(b"p1", 3), m.SYNC_FRAME, query(b"COMMIT")),
        "CZ12DDDsDDDsDCZCZ",
    ),
    "a pipeline": ((WHOLE, m.SYNC_FRAME) * 3, "12DDDDDDDCZ" * 3),
    "an error in a pipeline": ((WHOLE, BROKEN, WHOLE, m.SYNC_FRAME, WHOLE, m.SYNC_FRAME), "12DDDDDDDC1EZ12DDDDDDDCZ"),
    "no parameters, no rows": (
        (parse(b"s2", b"DELETE FROM notes"), describe(b"S", b"s2"), bind(b"", b"s2", (), (), ()), describe(b"P", b""),
         execute(b"", 0), m.SYNC_FRAME),
        "1tn2nCZ",
    ),
    "an empty statement": ((parse(b"", b""), bind(b"", b"", (), (), ()), execute(b"", 0), m.SYNC_FRAME), "12IZ"),
    "a cursor with hold": (
        (query(b"BEGIN; DECLARE c2 SCROLL CURSOR WITH HOLD FOR SELECT id FROM items ORDER BY id; COMMIT"),
         query(b"FETCH 2 FROM c2"), query(b"FETCH BACKWARD 1 FROM c2"), query(b"MOVE ALL FROM c2; CLOSE c2")),
        "CCCZTDDCZTDCZCCZ",
    ),
    "copy in as text": ((query(b"COPY items (id, name) FROM STDIN"), copied(b"200\ta\n", b"201\tb\n")), "GCZ"),
    "copy in as csv": ((query(b"COPY notes FROM STDIN (FORMAT csv)"), copied(b'1,"quo""ted"\n')), "GCZ"),
    "copy in as binary": (
        (parse(b"", b"COPY items (id, name) FROM STDIN (FORMAT binary)"), bind(b"", b"", (), (), ()), execute(b"", 0),
         copied(HEADER, b"\0\2\0\0\0\4\0\0\1\0\0\0\0\1z\xff\xff"), m.SYNC_FRAME),
        "12GCZ",
    ),
    "copy given up": ((query(b"COPY items FROM STDIN"), m.encode_copy_fail("no more")), "GEZ"),
    "copy that fails": ((query(b"COPY items (id, name) FROM STDIN"), copied(b"one\ta\n")), "GEZ"),
    "copy out as text": ((query(b"COPY (SELECT id FROM items WHERE id < 3) TO STDOUT"),), "HddcCZ"),
    "copy out as csv": ((query(b"COPY (SELECT 1 a) TO STDOUT (FORMAT csv, HEADER)"),), "HddcCZ"),
    "copy out as binary": ((query(b"COPY (SELECT 1) TO STDOUT (FORMAT binary)"),), "HddcCZ"),
    "notices": ((query(b"SELECT shout('a'); DO $$BEGIN RAISE WARNING 'w'; END$$"),), "TNDCNCZ"),
    "notifications": ((query(b"LISTEN news"), query(b"NOTIFY news, 'one'"), query(b"UNLISTEN *")), "CZCAZCZ"),
    "settings that are told": ((query(b"SET datestyle TO 'SQL, DMY'"), query(b"RESET datestyle")), "CSZCSZ"),
    "a failed transaction": (
        (query(b"BEGIN"), query(b"SELECT 1/0"), query(b"SELECT 1"), WHOLE, m.SYNC_FRAME, query(b"ROLLBACK")),
        "CZEZEZEZCZ",
    ),
}  # fmt: skip
# What these versions were the first to know.
NEW_STATEMENTS: Final = {
    14: (b"SELECT date_bin('15 minutes', timestamp '2024-01-01', '2024-01-01'), bit_count('\\xff'::bytea)",
         b"CREATE PROCEDURE p(OUT a int) LANGUAGE sql BEGIN ATOMIC SELECT 7; END", b"CALL p(NULL)"),
    15: (b"MERGE INTO items i USING (VALUES (1), (900)) v(id) ON i.id = v.id WHEN MATCHED THEN UPDATE SET name = 'm'"
         b" WHEN NOT MATCHED THEN INSERT (id, name) VALUES (v.id, 'made')",
         b"SELECT regexp_count('abab', 'a'), range_agg(r) FROM (VALUES (int4range(1, 3))) v(r)"),
    16: (b"SELECT any_value(name) IS NULL, 0x1F, 1_000 FROM items", b"SELECT '{}' IS JSON OBJECT",
         b"SELECT JSON_OBJECT('a': 1), JSON_ARRAYAGG(id ORDER BY id) FROM items", b"SELECT random_normal() > -99"),
    17: (b"SELECT * FROM JSON_TABLE('[{\"a\": 1}]', '$[*]' COLUMNS (a int PATH '$.a')) t",
         b"SELECT JSON_VALUE('{\"a\": 2}', '$.a'), JSON_EXISTS('{}', '$.a'), to_bin(5), random(1, 1)",
         b"MERGE INTO notes n USING items i ON n.item = i.id WHEN NOT MATCHED THEN INSERT VALUES (i.id, 'new')"
         b" RETURNING merge_action(), n.item"),
    18: (b"UPDATE items SET price = 2 WHERE id = 1 RETURNING old.price, new.price", b"SELECT casefold('A'), crc32('a')",
         b"CREATE TABLE virtual (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL)",
         b"SELECT uuid_extract_version(uuidv7()), array_sort(ARRAY[2, 1])"),
}  # fmt: skip


@pytest.mark.timeout(0 if SESSIONS > 1000 else 600)
def test_a_client_of_each_version_gets_the_servers_bytes(versioned: Peers) -> None:
    versioned.compare_generated(SESSIONS)


@pytest.mark.parametrize("name", DIALOGUES)
def test_each_kind_of_message_is_answered_as_the_server_does(versioned: Peers, name: str) -> None:
    frames, kinds = DIALOGUES[name]
    said = versioned.compare(written(*frames))
    found = "".join(kind for kind, _ in said)
    assert found.lstrip("S").startswith(kinds)


def test_statements_that_are_new_in_a_version_pass(versioned: Peers) -> None:
    texts = [text for major, these in NEW_STATEMENTS.items() for text in these if major <= versioned.major]
    said = versioned.compare(written(*map(query, texts)))
    assert [m.error_fields(body) for kind, body in said if kind == "E"] == []


def test_statements_of_a_newer_version_fail_as_the_server_says(versioned: Peers) -> None:
    texts = [text for major, these in NEW_STATEMENTS.items() for text in these if major > versioned.major]
    versioned.compare(written(*map(query, texts)))


def sleeps(versioned: Peers) -> bool:
    with versioned.postgres.admin() as admin:
        return bool(admin.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchall())


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_the_gateway_offers_each_protocol_whatever_the_server_has(
    versioned: Peers, version: str, negotiation: str
) -> None:
    """Servers before 17 know no TLS at the first byte, and those before 18 no protocol 3.2; the gateway has both."""
    arguments = {"sslmode": "require", "sslnegotiation": negotiation, "max_protocol_version": version}
    protocol = 30000 if version == "3.0" else 30002
    with versioned.gateway.connect(**arguments, min_protocol_version=version) as connection:
        assert connection.pgconn.full_protocol_version == protocol

        def cancel() -> None:
            eventually(lambda: sleeps(versioned))  # what does not run yet cannot be cancelled
            connection.cancel_safe()

        cancelling = threading.Thread(target=cancel)
        cancelling.start()
        with pytest.raises(errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        cancelling.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    straight = f"host=127.0.0.1 port={versioned.postgres.port} user=agent_rw dbname=orders password={PASSWORD}"
    if negotiation == "direct" and versioned.major < 17:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(straight, **arguments)  # type: ignore[arg-type]
    else:
        with psycopg.connect(straight, **arguments) as connection:  # type: ignore[arg-type]
            assert connection.pgconn.full_protocol_version == (protocol if versioned.major >= 18 else 30000)


async def test_asyncpg_works_with_each_version(versioned: Peers) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=versioned.gateway.port, user="agent", database="orders")
    try:
        assert await connection.fetch("SELECT $1::int4range, $2::text[], $3::jsonb", None, ["a"], "{}")
        assert connection.get_server_version().major == versioned.major
        await connection.execute("CREATE TEMP TABLE many (a int, b text)")
        await connection.copy_records_to_table("many", records=[(i, str(i)) for i in range(1000)])
        async with connection.transaction():
            found = [row["a"] async for row in connection.cursor("SELECT a FROM many ORDER BY a", prefetch=70)]
        assert found == list(range(1000))
    finally:
        await connection.close()


def test_the_gateway_binds_its_log_in_to_the_tls_channel(versioned: Peers, tmp_path: Path) -> None:
    postgres = versioned.postgres
    pair = [(postgres.directory / f"server.{end}").read_bytes() for end in ("key", "crt")]
    with relay(postgres.port, *pair) as middle:
        fix_dev.write_manifests(tmp_path, dataclasses.replace(postgres, port=middle.port), rules=everything())
        gateway = fix_dev.start(tmp_path, tmp_path / "evidence")
        with gateway.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert gateway.stop() == 0
        assert b"p\0\0" in middle.heard
        assert b"SCRAM-SHA-256-PLUS\0" in middle.heard
        assert b"p=tls-server-end-point,," in middle.heard


def test_a_man_in_the_middle_with_a_trusted_certificate_is_caught_by_the_binding(
    versioned: Peers, tmp_path: Path
) -> None:
    postgres, other = versioned.postgres, Authority("the other CA that is trusted")
    with relay(postgres.port, *other.server_pair("localhost", "127.0.0.1")) as middle:
        fix_dev.write_manifests(
            tmp_path, dataclasses.replace(postgres, port=middle.port), rules=everything(),
            ca_pem=postgres.ca_pem + other.pem,
        )  # fmt: skip
        gateway = fix_dev.start(tmp_path, tmp_path / "evidence")
        with pytest.raises(psycopg.OperationalError):
            gateway.connect()
        assert gateway.stop() == 0
        assert b"SCRAM-SHA-256-PLUS\0" in middle.heard
    assert "SCRAM channel binding check failed" in postgres.log


def test_the_table_of_functions_was_made_from_this_version(versioned: Peers) -> None:
    """Made anew by tests/support/write_catalog.py when the pinned servers change."""
    answer = write_catalog.ask(versioned.postgres)
    assert relations.CATALOG.servers[str(versioned.major)] == postgresql_catalog.fingerprint(answer)
    alone = postgresql_catalog.catalog([answer])
    assert not relations.CATALOG.safe_functions & set(alone["other_functions"])
    assert set(alone["safe_functions"]) <= relations.CATALOG.safe_functions | relations.CATALOG.other_functions
    assert set(alone["relations"]) <= relations.CATALOG.relations
    assert set(alone["operators"]) <= relations.CATALOG.operators


def test_safe_functions_change_nothing_in_this_version(versioned: Peers) -> None:
    """Each is called by a superuser with a null for every argument: none may ask to write."""
    with versioned.postgres.admin("orders") as admin:
        calls = write_catalog.safe_calls(admin)
        admin.execute("SET default_transaction_read_only = on")
        states = {
            name: admin.pgconn.exec_(f'SELECT pg_catalog."{name}"({arguments})'.encode()).error_field(SQLSTATE)
            for name, arguments in calls
        }
        assert admin.execute("SELECT 1").fetchone() == (1,)
    assert len(calls) > 1500
    assert [name for name, state in states.items() if state == READ_ONLY] == []
