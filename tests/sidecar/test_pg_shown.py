"""What records show of a command: nothing that was a value, and all that was none."""

from __future__ import annotations

import base64
import struct

import pytest
from fix_postgres import Postgres
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.command import Access, Effect, Facts, Resolution
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import Classified as ClassifiedColumns
from chaperone_sidecar.masking.rule import MaskRule
from chaperone_sidecar.protocols.postgresql import classify as classifying
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.schema import Column, Relation, Schema
from chaperone_sidecar.protocols.postgresql.shown import Shown
from chaperone_sidecar.protocols.postgresql.tokens import tokens
from chaperone_sidecar.protocols.postgresql.vocabulary import TYPES, VOCABULARY

CARD = b"4716892311450065"
DETECTORS = Masker([MaskRule(method="Redact", detectors=("PaymentCard", "Email", "USSocialSecurity"))])
COLUMNS = Masker(
    [MaskRule(method="Redact", detectors=("PaymentCard", "Email"))],
    [ClassifiedColumns(kind="person", columns=("public.customers.name",))],
)


def schema() -> Schema:
    found = Schema()
    columns = tuple(Column(name, number, 25) for number, name in enumerate(("id", "name", "email"), 1))
    found.add("public.customers", Relation(20000, "public.customers", "r", columns))
    return found


def concealed(text: bytes) -> bytes:
    return Shown(COLUMNS, schema()).text(text, classifying.classify(text), conceals=True)


def detected(text: bytes) -> bytes:
    return Shown(DETECTORS, schema()).text(text, classifying.classify(text), conceals=False)


def shown_value(value: bytes, *, is_binary: bool, oid: int = 0) -> bytes:
    params = struct.pack(">HHHi", 1, is_binary, 1, len(value)) + value + bytes(2)
    shown = Shown(DETECTORS, schema()).params(params, (oid,), conceals=False)
    return shown[10:-2]


# --- columns --------------------------------------------------------------------------------------------------------

READABLE = {
    "SELECT id, lower(email) FROM customers WHERE name = 'Quorbly' AND id > 7":
        "SELECT id, lower(email) FROM customers WHERE name = $1 AND id > $2",
    "SELECT c.name FROM public.customers AS c JOIN customers d USING (id) WHERE c.name ~* E'qu\\'o' ORDER BY 1 LIMIT 5":
        "SELECT c.name FROM public.customers AS c JOIN customers d USING (id) WHERE c.name ~* $1 ORDER BY $2 LIMIT $3",
    "UPDATE customers SET name = $1, email = 'x' WHERE id = ANY($2::int[]) RETURNING id":
        "UPDATE customers SET name = $1, email = $3 WHERE id = ANY($2::int[]) RETURNING id",
    "INSERT INTO customers (id, name) VALUES (1, 'Quorbly'), (2, NULL) ON CONFLICT DO NOTHING":
        "INSERT INTO customers (id, name) VALUES ($1, $2), ($3, NULL) ON CONFLICT DO NOTHING",
    "SELECT name AS who, true FROM customers WHERE name = 'a' GROUP BY who -- Quorbly":
        "SELECT name AS name_1, $1 FROM customers WHERE name = $2 GROUP BY name_1",
    "BEGIN; COMMIT": "BEGIN; COMMIT",
}  # fmt: skip


@pytest.mark.parametrize("text", READABLE)
def test_a_text_without_its_values_says_what_was_done(text: str) -> None:
    assert concealed(text.encode()) == READABLE[text].encode()


HIDING = [
    "/* Quorbly */ SELECT name FROM customers",
    "SELECT name FROM customers -- Quorbly",
    "SELECT /* a /* Quorbly */ Quorbly */ name FROM customers",
    "SELECT 'Quorbly",
    "SELECT name FROM customers WHERE WHERE name = Quorbly",
    "SELECT $$Quorbly$$, $a$Quorbly$a$ FROM customers",
    "DO $$BEGIN PERFORM 'Quorbly'; END$$",
    "EXECUTE find('Quorbly')",
    "CALL find('Quorbly')",
    "SELECT find_customer('Quorbly')",
    "SELECT * FROM find_customer(who => 'Quorbly')",
    "COMMENT ON TABLE customers IS 'Quorbly'",
    "CREATE TABLE t (a text DEFAULT 'Quorbly', CHECK (a <> E'Quorbly'))",
    "ALTER TABLE customers ALTER name SET DEFAULT 'Quorbly'",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT ''Quorbly'''",
    "CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT 'Quorbly'; END",
    "CREATE POLICY p ON customers USING (name = 'Quorbly')",
    "CREATE TABLE q PARTITION OF customers FOR VALUES IN ('Quorbly')",
    "NOTIFY c, 'Quorbly'",
    "SET app.x = 'Quorbly'",
    "SET app.x = Quorbly",
    "SECURITY LABEL ON TABLE customers IS 'Quorbly'",
    "PREPARE TRANSACTION 'Quorbly'",
    "COPY customers FROM STDIN WITH (NULL 'Quorbly')",
    "COPY customers TO '/tmp/Quorbly'",
    "SELECT U&'Quorbl!0079' UESCAPE '!', B'01', X'51756f72626c79', N'Quorbly'",
    'SELECT name FROM customers WHERE name = "Quorbly"',
    'SELECT name AS "Quorbly" FROM customers',
    "SELECT name FROM customers WHERE name = Quorbly",
    "SELECT E'a'\n'\\'Quorbly' FROM customers",
    "SELECT 'a\\', Quorbly, '' FROM customers",
    "SELECT '\\' Quorbly ' || '\\' Quorbly ' FROM customers",
]


@pytest.mark.parametrize("text", HIDING)
@pytest.mark.parametrize("value", ["Quorbly", "4716892311450065", "612448391"])
def test_no_value_is_left_wherever_it_stood(text: str, value: str) -> None:
    written = text.replace("Quorbly", value).replace("51756f72626c79", value.encode().hex())
    shown = concealed(written.encode())
    assert value.encode() not in shown
    assert value.encode().hex().encode() not in shown


@settings(deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=40), st.sampled_from(HIDING), st.integers(0, 200))
def test_bytes_around_and_cuts_show_no_value(before: bytes, after: bytes, text: str, cut: int) -> None:
    for written in (before + text.encode() + after, text.encode()[:cut], text.encode()[cut:] + after):
        shown = concealed(written)
        if b"Quorbly" in shown:  # an access names an object so, or the cut has made the name of one from it
            facts = classifying.classify(written).facts
            assert any("Quorbly" in access.object for access in facts.accesses)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_have_a_shown_form(data: bytes) -> None:
    assert b"".join(token.value for token in tokens(data)) == data
    detected(data)
    concealed(data)
    unread = classifying.Classified(Facts((), Resolution.NONE), (classifying.Statement("other"),))
    Shown(COLUMNS, schema()).text(data, unread, conceals=True)


@settings(deadline=None)
@given(st.text("'\"\\$aeExXuU&|/*-+_.0123456789 \n;:(),", max_size=60))
def test_texts_of_signs_have_a_shown_form_and_join_again(text: str) -> None:
    data = text.encode()
    assert b"".join(token.value for token in tokens(data)) == data
    detected(data)
    concealed(data)


def test_the_id_of_a_trace_is_kept() -> None:
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    shown = concealed(b"SELECT name FROM customers /*route='Quorbly',traceparent='%s'*/" % trace)
    assert shown == b"SELECT name FROM customers /*traceparent='%s'*/" % trace
    hidden = b"00-%s-00f067aa0ba902b7-01" % CARD.rjust(32, b"0")
    assert CARD not in concealed(b"SELECT name FROM customers /*traceparent='%s'*/" % hidden)


def test_a_text_of_another_relation_keeps_its_values_and_loses_its_comments() -> None:
    text = b"SELECT id FROM orders /* Quorbly */ WHERE customer = 'someone' -- Quorbly"
    shown = Shown(COLUMNS, schema()).text(text, classifying.classify(text), conceals=False)
    assert shown == b"SELECT id FROM orders WHERE customer = 'someone'"


def test_objects_that_are_named_by_values_are_not_shown() -> None:
    accesses = tuple(
        Access(effect, name)
        for effect, name in (
            (Effect.READ, "public.customers"),
            (Effect.READ, "public.Zyxwen Quorbly"),
            (Effect.SESSION, "channel:quorbly"),
            (Effect.MAINTAIN, "transaction:quorbly"),
            (Effect.SESSION, "setting:work_mem"),
            (Effect.READ, "public.jane@example.com"),
        )
    )
    shown = Shown(COLUMNS, schema()).facts(Facts(accesses, Resolution.SYNTACTIC), conceals=True)
    assert [access.object for access in shown.accesses] == [
        "public.customers", "[masked]", "channel:[masked]", "transaction:[masked]", "setting:work_mem", "[masked]"
    ]  # fmt: skip


def test_time_grows_with_a_text_and_not_with_its_square() -> None:
    """Each of these took minutes if it were quadratic; the limit of the run is what holds it."""
    size = 1 << 18
    unread = classifying.Classified(Facts((), Resolution.NONE), (classifying.Statement("other"),))
    for piece in (
        b"/*",
        b"'",
        b"''",
        b"$a",
        b"$a$",
        b"\\'",
        b"1,",
        b"1_",
        b"'a'||",
        b'"',
        b"E'\\",
        b"'\n",
        b"a:",
        b"U&'",
    ):
        text = piece * (size // len(piece))
        Shown(COLUMNS, schema()).text(text, unread, conceals=True)
        detected(text)


def test_what_is_behind_too_many_words_is_not_shown() -> None:
    text = b"SELECT 1" + b",1" * 60_000 + b", E'\\x34716892311450065', 2"
    shown = detected(text)
    assert shown.startswith(b"SELECT 1,1,1,1")
    assert shown.endswith(b" [25 bytes are not shown]")
    unread = classifying.Classified(Facts((), Resolution.NONE), (classifying.Statement("other"),))
    assert Shown(COLUMNS, schema()).text(text, unread, conceals=True).endswith(b" bytes are not shown]")


# --- detectors ------------------------------------------------------------------------------------------------------

DISGUISED = [
    "SELECT E'\\x34716892311450065'",
    "SELECT E'\\064716892311450065'",
    "SELECT E'\\u0034716892311450065'",
    "SELECT U&'\\0034716892311450065'",
    "SELECT U&'!0034716892311450065' UESCAPE '!'",
    "SELECT '47168923'\n'11450065'",
    "SELECT '47168923' -- half\n '11450065'",
    "SELECT '47168923' || '11450065'",
    "SELECT '47168923'::text || ('11450065'::text)",
    "SELECT 4_716_892_311_450_065",
    "SELECT 4716892311450065e0",
    "SELECT 4.716892311450065E15",
    "SELECT 0x10C1F8B7D1DC51",
    "SELECT X'34373136383932333131343530303635'",
    "SELECT B'10000110000011111100010110111110100011101110001010001'",
    "SELECT '\\x34373136383932333131343530303635'::bytea",
    "DO $$BEGIN PERFORM E'\\x34716892311450065'; END$$",
    "DO $a$BEGIN EXECUTE $b$SELECT 4_716_892_311_450_065$b$; END$a$",
    "SELECT 1 /* 4716892311450065 */",
    'SELECT 1 AS U&"\\0034716892311450065"',
    "SELECT E'\\x34716892311450065",
]
PARTS = [b"716892311450065", b"47168923", b"11450065", b"716_892", b"3437313638393233"]


@pytest.mark.parametrize("text", DISGUISED)
def test_a_value_in_the_clothes_of_sql_is_found(text: str) -> None:
    text = text.replace("0x10C1F8B7D1DC51", hex(int(CARD))).replace(
        "10000110000011111100010110111110100011101110001010001", f"{int(CARD):b}"
    )
    shown = detected(text.encode())
    assert shown != text.encode()
    for part in (*PARTS, hex(int(CARD)).encode(), f"{int(CARD):b}".encode()):
        assert part not in shown


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id, E'line\\n' || note FROM orders WHERE total > 1_000 AND customer LIKE 'O''Brien%' -- why",
        "SELECT $1::text || 'x' || 'y', 1e3, 0xff, X'ff', U&'d\\0061ta', $$body$$",
    ],
)
def test_what_is_nothing_sensitive_stays_the_very_text(text: str) -> None:
    data = text.encode()
    assert detected(data) is data


def numeric(number: int) -> bytes:
    groups = [
        int(group) for group in reversed([str(number)[::-1][i : i + 4][::-1] for i in range(0, len(str(number)), 4)])
    ]
    return struct.pack(">HhHH", len(groups), len(groups) - 1, 0, 0) + struct.pack(f">{len(groups)}H", *groups)


def array(oid: int, value: bytes) -> bytes:
    return struct.pack(">iiIiii", 1, 0, oid, 1, 1, len(value)) + value


INT8 = struct.pack(">q", int(CARD))
BINARY = {
    "int8": (20, INT8),
    "float8": (701, struct.pack(">d", int(CARD))),
    "numeric": (1700, numeric(int(CARD))),
    "int8[]": (1016, array(20, INT8)),
    "text[]": (1009, array(25, CARD)),
    "json": (114, b'{"card": "%s"}' % CARD),
    "jsonb": (3802, b'\x01{"card": "%s"}' % CARD),
    "bytea": (17, CARD),
    "bytea of UTF-16": (17, CARD.decode().encode("utf-16-le")),
    "text": (25, CARD),
    "base64": (25, base64.b64encode(CARD)),
    "composite": (2249, struct.pack(">iIi", 1, 20, 8) + INT8),
    "a type of the user's": (99999, struct.pack(">iIi", 1, 99998, 8) + INT8),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("is_typed", [True, False])
def test_a_binary_parameter_is_looked_into(name: str, is_typed: bool) -> None:
    oid, value = BINARY[name]
    shown = shown_value(value, is_binary=True, oid=oid if is_typed else 0)
    assert shown != value
    for part in (CARD, INT8, struct.pack(">d", int(CARD)), numeric(int(CARD))[8:], base64.b64encode(CARD)):
        assert part not in shown


@pytest.mark.parametrize("value", [CARD, b"4_716_892_311_450_065", b"4.716892311450065e15", hex(int(CARD)).encode()])
def test_a_number_in_a_text_parameter_is_found(value: bytes) -> None:
    assert CARD[4:] not in shown_value(value, is_binary=False)
    assert value not in shown_value(value, is_binary=False)


@pytest.mark.parametrize(
    ("oid", "value", "is_binary"),
    [
        (0, b"order 17", False), (0, b"1e3", False), (23, struct.pack(">i", 7), True),
        (20, struct.pack(">q", 12345), True),
        (701, struct.pack(">d", 0.1), True), (1009, array(25, b"books"), True), (25, b"books", True),
        (0, struct.pack(">q", 12345), True), (0, b"books", True), (2950, bytes(range(16)), True),
    ],
)  # fmt: skip
def test_a_parameter_that_is_nothing_sensitive_stays(oid: int, value: bytes, is_binary: bool) -> None:
    assert shown_value(value, is_binary=is_binary, oid=oid) == value


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 0xFFFFFFFF), st.booleans())
def test_any_parameter_has_a_shown_form(value: bytes, oid: int, is_binary: bool) -> None:
    shown_value(value, is_binary=is_binary, oid=oid)


def test_a_parameter_of_a_column_is_not_shown_and_null_is() -> None:
    params = struct.pack(">HHHi", 1, 0x4716, 2, 3) + b"Qu\xff" + struct.pack(">iHH", -1, 1, 0x8923)
    shown = Shown(COLUMNS, schema()).params(params, (), conceals=True)
    assert shown == struct.pack(">HHHi", 1, 1, 2, 8) + b"[masked]" + struct.pack(">iHH", -1, 1, 1)
    m.decode_bind(b"\0\0" + shown)


@pytest.mark.peer
def test_the_vocabulary_is_that_of_the_server(postgres: Postgres) -> None:
    with postgres.admin() as admin:
        keywords = {row[0] for row in admin.execute("SELECT word FROM pg_get_keywords()").fetchall()}
        types = {
            row[0]
            for row in admin.execute(
                "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND oid < 10000"
            ).fetchall()
        }
    assert keywords <= VOCABULARY
    assert types >= TYPES
