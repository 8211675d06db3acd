"""Texts of the server: what may be made of a value is not shown, what speaks of the client's own words is."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import psycopg.errors
import pytest
from fix_dev import Gateway
from fix_postgres import Postgres, holding
from hypothesis import given
from hypothesis import strategies as st
from raw_client import Client, client

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import Classified, MaskRule, Unmaskable
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql import sqlstate, textmask

CANARY = "Quorbly"
CODE = "QUORB"
NUMBER = "612448391"
SCHEMA = f"""
CREATE SCHEMA told;
CREATE TABLE told.people (id int PRIMARY KEY, name text, number bigint);
INSERT INTO told.people VALUES (1, '{CANARY}', {NUMBER});
CREATE TABLE told.plain (id int PRIMARY KEY, word text CHECK (word <> 'bad'), CONSTRAINT plain_fk CHECK (id < 1000));
INSERT INTO told.plain VALUES (1, 'x');
CREATE FUNCTION told.who() RETURNS text LANGUAGE sql AS 'SELECT name FROM told.people';
CREATE FUNCTION told.how_many() RETURNS bigint LANGUAGE sql AS 'SELECT number FROM told.people';
CREATE FUNCTION told.inlined(v text) RETURNS regclass LANGUAGE sql AS 'SELECT v::regclass';
CREATE FUNCTION told.field(which text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN CASE which
    WHEN 'column' THEN RAISE 'x' USING COLUMN = told.who();
    WHEN 'table' THEN RAISE 'x' USING TABLE = told.who();
    WHEN 'schema' THEN RAISE 'x' USING SCHEMA = told.who();
    WHEN 'constraint' THEN RAISE 'x' USING CONSTRAINT = told.who();
    WHEN 'datatype' THEN RAISE 'x' USING DATATYPE = told.who();
    WHEN 'hint' THEN RAISE 'x' USING HINT = told.who(), ERRCODE = '42P01';
    WHEN 'detail' THEN RAISE 'x' USING DETAIL = told.who(), ERRCODE = '23505';
    WHEN 'message' THEN RAISE 'relation "%" does not exist', told.who() USING ERRCODE = '42P01';
    WHEN 'sqlstate' THEN RAISE 'x' USING ERRCODE = upper(left(told.who(), 5));
    WHEN 'warning' THEN RAISE WARNING '%', told.who() USING ERRCODE = upper(left(told.who(), 5));
    WHEN 'assert' THEN ASSERT false, told.who();
    WHEN 'dynamic' THEN EXECUTE 'SELECT 1 FROM ' || told.who();
    WHEN 'dynamic command' THEN EXECUTE 'DROP TABLE ' || told.who();
    WHEN 'constraint name' THEN
        EXECUTE format('CREATE TEMP TABLE made (a int CONSTRAINT %I CHECK (a > 0))', told.who());
        INSERT INTO made VALUES (-1);
    WHEN 'again' THEN BEGIN PERFORM told.who()::int; EXCEPTION WHEN others THEN RAISE; END;
    WHEN 'again by text' THEN BEGIN PERFORM told.who()::int; EXCEPTION WHEN others THEN
        RAISE EXCEPTION '%', SQLERRM USING ERRCODE = SQLSTATE; END;
  END CASE; END $$;
CREATE DOMAIN told.checked AS text CHECK (told.inlined(told.who() || VALUE) IS NULL);
CREATE TYPE told.pair AS (a told.checked, b int);
GRANT ALL ON SCHEMA told TO agent_rw;
GRANT ALL ON ALL TABLES IN SCHEMA told TO agent_rw;
CREATE EXTENSION dblink SCHEMA told;
CREATE FUNCTION told.afar() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$
  SELECT told.dblink_exec(format('host=127.0.0.1 port=%s user=postgres password=%s dbname=orders',
    current_setting('port'), 'canary-7f3a9c-password'), 'DROP TABLE ' || quote_ident(told.who())) $$;
"""
FIELDS = (
    "column", "table", "schema", "constraint", "datatype", "hint", "detail", "message", "sqlstate", "warning", "assert",
    "dynamic", "dynamic command", "constraint name", "again", "again by text",
)  # fmt: skip
HIDING = [
    *(f"SELECT told.field('{which}')" for which in FIELDS),
    "SELECT name::int FROM told.people",
    "SELECT name::regclass FROM told.people",
    "SELECT name::regtype FROM told.people",
    "SELECT name::regrole FROM told.people",
    "SELECT name::regproc FROM told.people",
    "SELECT name::regnamespace FROM told.people",
    "SELECT name::regconfig FROM told.people",
    "SELECT (name || '.x')::regclass FROM told.people",
    "SELECT nextval(name::regclass) FROM told.people",
    "SELECT nextval(name) FROM told.people",
    "SELECT has_table_privilege(name, 'SELECT') FROM told.people",
    "SELECT has_table_privilege(name, 'told.people', 'SELECT') FROM told.people",
    "SELECT set_config(name, 'x', false) FROM told.people",
    "SELECT set_config('work_mem', name, false) FROM told.people",
    "SELECT set_config('role', name, false) FROM told.people",
    "SELECT set_config('application_name', name, false) FROM told.people",
    "SELECT set_config('TimeZone', name || '5', false) FROM told.people",
    "SELECT set_config('DateStyle', name, false) FROM told.people",
    "SELECT current_setting(name) FROM told.people",
    "SELECT to_tsvector(name::regconfig, 'x') FROM told.people",
    "SELECT now() AT TIME ZONE name FROM told.people",
    "SELECT date_trunc(name, now()) FROM told.people",
    "SELECT to_char(now(), 'x') || extract(name FROM now()) FROM told.people",
    "SELECT convert_to('x', name) FROM told.people",
    "SELECT digest('x', name) FROM told.people",
    "SELECT encode('x', name) FROM told.people",
    "SELECT name::json FROM told.people",
    "SELECT name::xml::text::jsonb FROM told.people",
    "SELECT ('{' || name)::int[] FROM told.people",
    "SELECT regexp_replace('x', '(' || name, '') FROM told.people",
    "SELECT query_to_xml('SELECT ' || name, true, true, '') FROM told.people",
    "SELECT lo_get(number::oid) FROM told.people",
    "SELECT pg_read_file(name) FROM told.people",
    "SELECT lpad('x', 1, name)::inet FROM told.people",
    "SELECT told.inlined(name) FROM told.people",
    "SELECT told.inlined(told.who())",
    "SELECT 'a'::told.checked",
    "SELECT '(a,1)'::told.pair",
    "SELECT told.afar()",
    "SELECT format('%' || name) FROM told.people",
    f"SELECT name::regclass FROM told.people -- \"{CANARY.lower()}\"",
    "DO $$ BEGIN RAISE NOTICE '%', told.who(); END $$",
    "INSERT INTO told.plain SELECT id, name FROM told.people",
    "INSERT INTO told.plain SELECT number, name FROM told.people",
    "UPDATE told.plain SET id = 5000, word = told.who()",
    "COPY (SELECT name::int FROM told.people) TO STDOUT",
]  # fmt: skip
SHOWING = {
    'SELECT * FROM "Frumpet"': 'relation "Frumpet" does not exist',
    "SELECT frumpet FROM told.plain": 'column "frumpet" does not exist',
    "SELECT frumpet(1)": "function frumpet(integer) does not exist",
    "SELEC 1": 'syntax error at or near "SELEC"',
    "SELECT 'frumpet'::int": "invalid_text_representation: the text is masked, because columns of this target are",
    "SELECT name::int FROM told.people":
        "invalid_text_representation: the text is masked, because columns of this target are",
    "SELECT told.field('message')": "undefined_table: a function of the database raised this; its text is masked, "
        "because columns of this target are",
    "DROP TABLE frumpet": 'table "frumpet" does not exist',
    "DROP TABLE IF EXISTS frumpet": 'table "frumpet" does not exist, skipping',
    "EXECUTE frumpet": 'prepared statement "frumpet" does not exist',
    "BEGIN; FETCH frumpet": 'cursor "frumpet" does not exist',
    "SAVEPOINT frumpet": "SAVEPOINT can only be used in transaction blocks",
    "INSERT INTO told.plain VALUES (1, 'x')": 'duplicate key value violates unique constraint "plain_pkey"',
    "INSERT INTO told.plain VALUES (NULL, 'x')":
        'null value in column "id" of relation "plain" violates not-null constraint',
    "INSERT INTO told.plain VALUES (3, 'bad')":
        'new row for relation "plain" violates check constraint "plain_word_check"',
    "SELECT * FROM pg_catalog.pg_authid": "permission denied for table pg_authid",
    "SET TRANSACTION READ ONLY; DELETE FROM told.plain": "cannot execute DELETE in a read-only transaction",
    "SET statement_timeout = 20; SELECT pg_sleep(5)": "canceling statement due to statement timeout",
}  # fmt: skip
EFFECTS = [
    "read", "bulk_read", "create", "modify", "bulk_write", "delete", "destroy", "schema", "session", "transaction",
    "execute_code", "external_io", "privilege", "unknown", "read_sensitive",
]  # fmt: skip
RULES = [{"name": "all", "action": "Allow", "match": {"effects": EFFECTS}}]
COLUMNS = [{"columns": ["told.people.name", "told.people.number"], "class": "person"}]

NAMED = Masker(classified=[Classified(("told.people.name",), "person")])
FOUND = Masker([MaskRule("Redact", detectors=("Email", "PaymentCard"))])
BOTH = Masker([MaskRule("Redact", detectors=("Email",))], [Classified(("told.people.name",), "person")])


@pytest.fixture(scope="module")
def people(postgres: Postgres) -> Iterator[Postgres]:
    with holding(postgres, "told", SCHEMA) as server:
        yield server


@pytest.fixture
def gateway(gateway_with: Callable[..., Gateway], people: Postgres) -> Gateway:
    """Nothing is refused, so that all that the database says has to be masked."""
    return gateway_with(rules=RULES, classified=COLUMNS, unmaskable="Allow")


def heard(agent: Client, sql: str) -> tuple[list[tuple[str, bytes]], bytes]:
    """What the server says of one text; rows are not looked at here."""
    agent.send(m.encode_query(sql.encode()), m.encode_query(b"ROLLBACK"))
    said = agent.until("Z") + agent.until("Z")
    texts = [(kind, body) for kind, body in said if kind in "ENSA"]
    return texts, b"".join(body for _, body in texts)


def clothes(value: str) -> list[bytes]:
    """A value as it is, and as somebody would hide it."""
    plain = value.encode()
    return [plain, plain.lower(), plain[::-1], plain.hex().encode(), base64.b64encode(plain)[:8]]


def test_what_may_be_made_of_a_value_is_not_shown(gateway: Gateway) -> None:
    spoken = 0
    with client(gateway) as agent:
        for sql in HIDING:
            texts, raw = heard(agent, sql)
            assert not any(worn in raw for value in (CANARY, NUMBER) for worn in clothes(value)), (sql, raw)
            assert CODE.encode() not in raw, (sql, raw)
            assert b"Chaperone" not in raw, (sql, raw)
            for kind, body in texts:
                if kind in "EN":
                    said = m.error_fields(body)
                    assert len(said["C"]) == 5, sql
                    assert said["M"], sql
            spoken += bool(texts)
    assert spoken > 0.9 * len(HIDING), "these statements are here for what the database says to them"
    gateway.stop()
    kept = b"".join(path.read_bytes() for path in gateway.evidence.rglob("*") if path.is_file())
    assert CODE.encode() not in kept, "a made-up SQLSTATE is recorded"


def test_what_speaks_of_the_clients_own_words_is_shown(gateway: Gateway) -> None:
    with client(gateway) as agent:
        for sql, text in SHOWING.items():
            texts, _ = heard(agent, sql)
            assert text in [m.error_fields(body).get("M") for _, body in texts], (sql, texts)


def test_a_payload_of_another_session_is_not_shown(gateway_with: Callable[..., Gateway], people: Postgres) -> None:
    gateway = gateway_with(rules=RULES, classified=COLUMNS)
    with client(gateway) as agent, people.admin() as admin:
        agent.send(m.encode_query(b"LISTEN told"))
        agent.until("Z")
        admin.execute("SELECT pg_notify('told', name), pg_notify('told', '') FROM told.people")
        found = agent.until("A") + agent.until("A")
    assert [body[4:] for kind, body in found if kind == "A"] == [b"told\0[masked]\0", b"told\0\0"]


@pytest.mark.parametrize(
    ("unmaskable", "shown"), [("Deny", b"[masked]"), ("Redact", b"[masked]"), ("Allow", b"payload")]
)
def test_policy_may_show_payloads(unmaskable: Unmaskable, shown: bytes) -> None:
    head = b"\0\0\0\7told\0"
    raw = m.frame(m.NOTIFICATION_RESPONSE, head + b"payload\0")
    assert textmask.mask_notification(raw, NAMED, unmaskable) == m.frame(m.NOTIFICATION_RESPONSE, head + shown + b"\0")
    assert textmask.mask_notification(raw, FOUND, unmaskable) == raw


def error(**fields: str | bytes) -> bytes:
    body = b"".join(
        key.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\0" for key, value in fields.items()
    )
    return m.frame(m.ERROR_RESPONSE, body + b"\0")


def fields(raw: bytes) -> dict[str, str]:
    assert int.from_bytes(raw[1:5], "big") == len(raw) - 1
    return m.error_fields(raw[5:])


@pytest.mark.parametrize(
    "text",
    ["a — dash of „Quorbly“", "« Quorbly »", "‚Quorbly‘", "‹Quorbly›", "「Quorbly」", "Quorbly ohne Zeichen", "–"],
)
@pytest.mark.parametrize("code", ["42P01", "22P02", "XX000", "23505", "P0001"])
def test_no_language_shows_a_value(text: str, code: str) -> None:
    said = fields(textmask.mask_error(error(S="FEHLER", V="ERROR", C=code, M=text, R="anything"), NAMED))
    assert "Quorbly" not in str(said)
    assert said["C"] == code
    assert said["M"].startswith(sqlstate.CONDITIONS[code.encode()].decode())


@pytest.mark.parametrize(
    "text", [b"caf\xe9 jane@example.org", b"\x83\x5c", b"\xff", b"x" * 70_000 + b" jane@example.org"]
)
def test_what_no_detector_can_read_is_not_shown(text: bytes) -> None:
    assert fields(textmask.mask_error(error(C="22P02", M=text), FOUND))["M"] == "[masked]"


@pytest.mark.parametrize("inside", ["W", "q", "p"])
@pytest.mark.parametrize("routine", ["parserOpenTable", "aclcheck_error", "exec_stmt_raise", "PLy_elog_impl"])
def test_a_context_makes_a_text_one_of_a_function(inside: str, routine: str) -> None:
    said = {
        "V": "ERROR",
        "C": "42P01",
        "M": "of Quorbly",
        "P": "5",
        "F": "gram.y",
        "R": routine,
        "L": "1",
        "H": "Quorbly",
    }
    raw = error(**said, t="Quorbly", **{inside: "1"})
    shown = fields(textmask.mask_error(raw, NAMED))
    assert set(shown) == {"V", "C", "M", "F", "R"}
    assert "Quorbly" not in shown["M"]


def test_a_field_said_twice_is_not_believed() -> None:
    raw = error(V="ERROR", C="42P01", M="of Quorbly", P="5", F="gram.y")[:-1] + b"MQuorbly\0\0"
    raw = m.frame(m.ERROR_RESPONSE, raw[5:])
    assert b"Quorbly" not in textmask.mask_error(raw, NAMED)
    once = textmask.mask_error(error(V="ERROR", C="42P01", M="of Frumpet", P="5", F="gram.y"), NAMED)
    assert b"Frumpet" in once


@pytest.mark.parametrize(
    ("zone", "is_shown"),
    [("UTC", True), ("Europe/Berlin", True), ("America/Port-au-Prince", True), ("America/Argentina/La_Rioja", True),
     ("Etc/GMT+5", True), ("<Quorbly>5", False), ("Quorbly5", False), ("Quorbly-5x", False)],
)  # fmt: skip
def test_a_zone_is_shown_where_it_is_the_name_of_one(zone: str, is_shown: bool) -> None:
    raw = m.frame(m.PARAMETER_STATUS, b"TimeZone\0" + zone.encode() + b"\0")
    assert (zone.encode() in textmask.mask_parameter_status(raw, NAMED)) == is_shown


def test_every_code_that_a_client_knows_is_known() -> None:
    known = {code for code in vars(psycopg.errors)["_sqlcodes"] if len(code) == 5 and code.isupper() | code.isdigit()}
    assert {code for code in known if code[0].isdigit() or code[:2] in ("F0", "HV", "P0", "XX")} <= {
        code.decode() for code in sqlstate.CONDITIONS
    }


@given(st.binary(max_size=120), st.sampled_from("ENSA"), st.sampled_from([NAMED, FOUND, BOTH]))
def test_any_bytes_end_in_a_frame_or_an_error_of_its_own(body: bytes, kind: str, masker: Masker) -> None:
    raw = m.frame(ord(kind), body)
    try:
        once = mask(raw, masker)
    except ProtocolError:
        return
    assert int.from_bytes(once[1:5], "big") == len(once) - 1
    assert mask(once, masker) == once


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(
    st.dictionaries(st.sampled_from("SVCMDHPpqWFLRcdnst"), WORD, max_size=8),
    st.sampled_from("MDHqWcdnst"),
    st.sampled_from([NAMED, BOTH]),
)
def test_a_value_is_gone_wherever_it_stands(said: dict[str, str], place: str, masker: Masker) -> None:
    said |= {place: said.get(place, "") + "Quorbly", "R": "numeric_in", "F": "numeric.c"}
    once = textmask.mask_error(error(**said), masker)
    assert b"Quorbly" not in once
    assert textmask.mask_error(once, masker) == once


def mask(raw: bytes, masker: Masker) -> bytes:
    if raw[:1] == b"A":
        return textmask.mask_notification(raw, masker, "Deny")
    return (textmask.mask_parameter_status if raw[:1] == b"S" else textmask.mask_error)(raw, masker)
