"""What is kept of commands, where masks are: no value is in the evidence or the log, whatever it is written as."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator

import psycopg
import pytest
from fix_dev import Gateway
from fix_postgres import Postgres
from pg_sessions import bind, parse
from raw_client import Client, execute

from chaperone_evidence import record
from chaperone_sidecar.protocols.postgresql import messages as m

CARD, SSN, EMAIL, NAME = 4716892311450065, "612-44-8391", "canary.kestrel@example.org", "Zyxwen Quorbly"
SCHEMA = """
CREATE TABLE people (id int PRIMARY KEY, name text, email text, ssn text, card bigint);
CREATE TABLE parts (id int, label text);
GRANT ALL ON people, parts TO agent_rw;
"""
RULES = [
    {
        "name": "all",
        "action": "Allow",
        "match": {
            "effects": [
                "read", "read_sensitive", "bulk_read", "create", "modify", "bulk_write", "schema", "session",
                "transaction", "maintain",
            ],
        },
    },
    {"name": "code", "action": "Allow", "match": {"effects": ["execute_code", "unknown", "privilege"]}},
]  # fmt: skip
CLASSIFIED = [{"columns": ["public.people.name", "public.people.email", "public.people.ssn"], "class": "person"}]
MASKS = [{"detectors": ["PaymentCard", "USSocialSecurity", "Email"], "method": "Redact"}]


@pytest.fixture
def gateway(gateway_with: Callable[..., Gateway], postgres: Postgres) -> Iterator[Gateway]:
    """Columns are masked as a whole, and detectors look at the rest."""
    with postgres.admin() as admin:
        admin.execute(SCHEMA)
    yield gateway_with(rules=RULES, masks=MASKS, classified=CLASSIFIED, unmaskable="Allow")
    with postgres.admin() as admin:
        admin.execute("DROP TABLE people, parts")


@pytest.fixture
def detecting(gateway_with: Callable[..., Gateway], postgres: Postgres) -> Iterator[Gateway]:
    """Detectors alone."""
    with postgres.admin() as admin:
        admin.execute(SCHEMA)
    yield gateway_with(rules=RULES, masks=MASKS)
    with postgres.admin() as admin:
        admin.execute("DROP TABLE people, parts")


def forms(value: bytes) -> Iterator[bytes]:
    """A value as somebody would look for it."""
    yield from (value, value[::-1], value.hex().encode(), value.hex().upper().encode())
    yield from (value.decode().encode("utf-16-le"), value.decode().encode("utf-16-be"))
    for offset in range(3):  # base64 of a text somewhere in which the value stands
        coded = base64.b64encode(bytes(offset) + value)
        yield coded[(0, 2, 3)[offset] : len(coded) - (len(coded) % 4 or 4)]


def left(gateway: Gateway, *canaries: bytes) -> list[bytes]:
    """Canaries that the evidence or the log holds; the gateway is stopped for it."""
    assert gateway.stop() == 0, "".join(gateway.output)
    kept = b"".join(path.read_bytes() for path in gateway.evidence.rglob("*") if path.is_file())
    kept += "".join(gateway.output).encode()
    groups = (4716, 8923, 1145, 65)
    numbers = [
        struct.pack(">q", CARD), struct.pack("<q", CARD), struct.pack(">d", CARD), b"%x" % CARD, f"{CARD:_}".encode(),
        struct.pack(">4h", *groups), f"{CARD:b}".encode(),
    ]  # fmt: skip
    sought = [*(form for canary in canaries for form in forms(canary)), *numbers]
    return [one for one in sought if one.lower() in kept.lower()]


def texts(gateway: Gateway) -> bytes:
    """All bodies that are kept."""
    return b"".join(path.read_bytes() for path in gateway.evidence.rglob("*") if path.is_file())


def opened(gateway: Gateway, **parameters: str) -> Client:
    one = Client(gateway.port)
    one.send(m.encode_startup(tuple({"user": "agent", "database": "orders", **parameters}.items())))
    one.until("Z")
    return one


def asked(agent: Client, text: str) -> None:
    agent.send(m.encode_query(text.encode()))
    agent.until("Z")


NAMED = [
    f"SELECT id FROM people WHERE name = '{NAME}' /* {NAME} */ -- {EMAIL}",
    f"/* a /* {SSN} */ {NAME} */ SELECT id FROM people",
    f"SELECT 'not closed {NAME}",
    f"SELEC id FROM people WHERE name = '{NAME}' AND ssn = {SSN}",
    f"SELECT id FROM people WHERE name = '{NAME}' {'-' * 3}{'x' * 33_000}",
    f'SELECT id FROM people WHERE email = "{EMAIL}"',
    "SELECT id FROM people WHERE name = Quorbly",
    f'SELECT id AS "{NAME}" FROM people',
    f'SELECT id FROM "{NAME}"',
    f"PREPARE find_one AS SELECT id FROM people WHERE name = '{NAME}'",
    f"EXECUTE find_one('{NAME}')",
    f"DO $body$BEGIN PERFORM 1 FROM people WHERE name = '{NAME}'; END$body$",
    f"CALL find('{NAME}')",
    f"SELECT find_customer('{NAME}', {CARD})",
    f"SELECT * FROM find_customer(E'\\x5ayxwen {NAME}')",
    f"COMMENT ON TABLE parts IS '{NAME}'",
    f"CREATE TABLE kept (a text DEFAULT '{NAME}', CHECK (a <> '{EMAIL}'))",
    f"ALTER TABLE parts ALTER label SET DEFAULT '{NAME}'",
    f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT '{NAME}'$$",
    f"CREATE POLICY p ON people USING (name = '{NAME}')",
    f"NOTIFY news, '{NAME}'",
    f"SELECT pg_notify('{NAME}', '{NAME}')",
    f"SET app.x = '{NAME}'",
    f"SET application_name = '{NAME}'",
    f"SECURITY LABEL ON TABLE people IS '{NAME}'",
    f"PREPARE TRANSACTION '{NAME}'",
    f"SAVEPOINT \"{NAME}\"",
    f"INSERT INTO people VALUES (1, '{NAME}', U&'{EMAIL}', $${SSN}$$, {CARD})",
    f"BEGIN; CREATE TABLE fresh (a text); SELECT '{NAME}'; ROLLBACK",
    f"SET standard_conforming_strings = off; SELECT '\\' || {NAME}'",
]  # fmt: skip


def test_no_value_of_a_classified_column_is_kept(gateway: Gateway) -> None:
    for text in NAMED:
        agent = opened(gateway)
        asked(agent, text)
        agent.send(parse(b"", text.encode()), bind(b"", b"", (), (), ()), execute(), m.SYNC_FRAME)
        agent.until("Z")
        agent.close()
    assert left(gateway, b"Quorbly", NAME.encode(), EMAIL.encode(), SSN.encode(), str(CARD).encode()) == []
    assert gateway.verify().stdout.endswith("verify: OK\n")


def test_no_bound_value_of_a_classified_column_is_kept(gateway: Gateway) -> None:
    with gateway.connect() as agent:
        agent.execute("INSERT INTO people VALUES (%s, %s, %b, %s, %b)", (1, NAME, EMAIL, SSN, CARD))
        agent.execute("SELECT id FROM people WHERE name = ANY(%b) AND card = %b", ([NAME], float(CARD)))
        with pytest.raises(psycopg.Error):
            agent.execute("SELECT id FROM people WHERE name = %s AND", (NAME,))
    assert left(gateway, b"Quorbly", EMAIL.encode(), SSN.encode(), str(CARD).encode()) == []


def test_copied_data_and_a_function_calls_arguments_are_not_kept(gateway: Gateway) -> None:
    agent = opened(gateway)
    agent.send(m.encode_query(b"COPY people (id, name) FROM STDIN"))
    agent.send(m.frame(m.COPY_DATA, f"7\t{NAME}\n".encode()), m.frame(m.COPY_DONE, b""))
    agent.until("Z")
    arguments = struct.pack(">IHHH", 1598, 0, 1, len(NAME) >> 16) + struct.pack(">H", len(NAME)) + NAME.encode()
    agent.send(m.frame(m.FUNCTION_CALL, arguments + bytes(2)))
    agent.until("Z")
    agent.close()
    assert left(gateway, b"Quorbly", NAME.encode()) == []


def test_what_a_client_calls_itself_is_not_kept(gateway: Gateway) -> None:
    opened(gateway, user=NAME, application_name=EMAIL).close()
    opened(gateway, user=EMAIL, database=NAME, application_name=NAME).close()
    opened(gateway, application_name="psql").close()
    assert left(gateway, b"Quorbly", EMAIL.encode()) == []
    found = [one for one in gateway.records() if isinstance(one, record.SessionOpen)]
    assert [(one.user, one.database, one.application) for one in found] == [
        ("[masked]", "orders", "[masked]"), ("[masked]", "[masked]", "[masked]"), ("[masked]", "orders", "psql"),
    ]  # fmt: skip


def test_what_was_done_can_still_be_read(gateway: Gateway) -> None:
    with gateway.connect() as agent:
        agent.execute("SELECT p.id, lower(p.email) FROM people AS p WHERE p.name = 'x' AND p.id >= 7 ORDER BY id")
        agent.execute("SELECT label FROM parts /* why */ WHERE label LIKE 'gear %' AND id = 12")
        agent.execute("UPDATE parts SET label = %s WHERE id = %b", ("cog wheel", 31_337))
    assert gateway.stop() == 0
    kept = texts(gateway)
    assert b"SELECT p.id, lower(p.email) FROM people AS p WHERE p.name = $1 AND p.id >= $2 ORDER BY id" in kept
    assert b"SELECT label FROM parts WHERE label LIKE 'gear %' AND id = 12" in kept
    assert b"cog wheel" in kept
    accesses = [access for one in gateway.records() if isinstance(one, record.CommandIntent) for access in one.accesses]
    assert {"public.people", "public.parts"} <= {access.object for access in accesses}


DETECTED = [
    f"SELECT '{CARD}'", f"SELECT {CARD} -- {EMAIL}", "SELECT E'\\x34716892311450065'",
    "SELECT U&'\\0034716892311450065'",
    "SELECT '47168923'\n'11450065'", "SELECT '47168923' || '11450065'", f"SELECT {CARD:_}", f"SELECT 0x{CARD:x}",
    f"SELECT {CARD}e0", f"SELECT X'{CARD:x}', B'{CARD:b}'", f"SELECT 'not closed {EMAIL}", f"SELEC {CARD} {SSN}",
    f"DO $$BEGIN PERFORM E'\\x34716892311450065', '{EMAIL}'; END$$", f'SELECT 1 FROM "{EMAIL}"',
    f"NOTIFY news, '{SSN}'", f"SELECT pg_notify('{EMAIL}', '')",
    f"SELECT '{base64.b64encode(EMAIL.encode()).decode()}'",
    f"SELECT '\\x{str(CARD).encode().hex()}'::bytea",
]  # fmt: skip
PARTS = (b"716892311450065", b"47168923", b"11450065")


def test_what_detectors_know_is_not_kept_however_sql_writes_it(detecting: Gateway) -> None:
    agent = opened(detecting, application_name=EMAIL)
    for text in DETECTED:
        asked(agent, text)
    agent.close()
    assert left(detecting, EMAIL.encode(), SSN.encode(), str(CARD).encode(), *PARTS) == []


def test_bound_values_that_detectors_know_are_not_kept_and_others_are(detecting: Gateway) -> None:
    numeric = struct.pack(">HhHH4h", 4, 3, 0, 0, 4716, 8923, 1145, 65)
    array = struct.pack(">iiIiii", 1, 0, 20, 1, 1, 8) + struct.pack(">q", CARD)
    values = (struct.pack(">d", CARD), numeric, array, struct.pack(">q", CARD))
    agent = opened(detecting)
    for types in ((701, 1700, 1016, 20), (0, 0, 0, 0)):
        text = b"SELECT $1::float8, $2::numeric, $3::int8[], $4::int8"
        agent.send(parse(b"", text, types), bind(b"", b"", values, (1,), ()), execute(), m.SYNC_FRAME)
        agent.until("Z")
    uuid = b"\x01\xb3uuid of parts\xff"
    agent.send(parse(b"u", b"SELECT $1::uuid"), m.frame(m.DESCRIBE, b"Su\0"), m.SYNC_FRAME)  # the backend says its type
    agent.until("Z")
    agent.send(bind(b"", b"u", (uuid,), (1,), ()), execute(), m.SYNC_FRAME)
    agent.until("Z")
    agent.close()
    assert left(detecting, str(CARD).encode()) == []
    assert uuid in texts(detecting)


def test_without_masks_a_text_is_kept_as_it_is(gateway_with: Callable[..., Gateway]) -> None:
    gateway = gateway_with(rules=RULES)
    text = f"SELECT '{CARD}' /* {EMAIL} */"
    with gateway.connect(application_name=NAME) as agent:
        agent.execute(text)  # type: ignore[arg-type]
    assert gateway.stop() == 0
    assert text.encode() in texts(gateway)
    assert any(isinstance(one, record.SessionOpen) and one.application == NAME for one in gateway.records())
