"""COPY through the gateway, in every form that it takes: a server reads it back, row by row, and no value is left."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from fix_dev import Gateway, start, write_manifests
from fix_postgres import Postgres, holding

CARD, EMAIL, NAME = "4716892311450065", "canary.kestrel@example.org", "Quorbly"
SCHEMA = f"""
CREATE SCHEMA copied;
CREATE TABLE copied.people (id int, name text, "a ""note"",\t|\n;" text, number numeric, raw bytea,
                            doc jsonb, tags text[], empty text, mark text);
INSERT INTO copied.people VALUES
  (1, '{NAME}', 'to {EMAIL}, "now"', {CARD}, '{EMAIL}', '{{"a": "{EMAIL}"}}', '{{"{EMAIL}",b}}', '', '\\N'),
  (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (3, '{NAME}', E'two\\nlines|;\\t\\\\ {EMAIL} ''x''\\r', 5, '\\x00', '[]', '{{}}', '', '\\.'),
  (4, '', 'nothing', 4, '\\xff', '1', '{{NULL,"NULL"}}', 'NULL', '-'),
  (5, 'a|b;c,d', '|;,"\\''', 1, '', '"\\""', '{{"|"}}', E'\\\\', E'\\t');
CREATE TABLE copied.back (LIKE copied.people);
GRANT USAGE ON SCHEMA copied TO agent_rw;
GRANT SELECT ON copied.people TO agent_rw;
"""
# Options of COPY TO, and those of COPY FROM that read what it wrote.
OPTIONS = [
    "", "FORMAT text", "FORMAT text, DELIMITER '|'", "DELIMITER ';', NULL 'NULL'", "DELIMITER E'\\x08'", "NULL ''",
    "NULL '-'", "HEADER", "HEADER true, DELIMITER ','", "DELIMITER ' '",
    "FORMAT csv", "FORMAT csv, HEADER", "FORMAT csv, DELIMITER E'\\t'", "FORMAT csv, DELIMITER '|', QUOTE ''''",
    "FORMAT csv, ESCAPE '\\'", "FORMAT csv, QUOTE '|', ESCAPE '~'", "FORMAT csv, FORCE_QUOTE *",
    "FORMAT csv, NULL 'NULL'",
    "FORMAT csv, FORCE_QUOTE (name, mark), NULL '\\N'", "FORMAT csv, HEADER, QUOTE '%', DELIMITER ';', NULL 'none'",
    "FORMAT csv, NULL 'quorbly'", "FORMAT binary",
]  # fmt: skip
OLD = ["CSV HEADER", "BINARY", "DELIMITER '|' NULL ''", "CSV QUOTE '|' FORCE QUOTE name"]
FORCED = re.compile(r",? FORCE.QUOTE (?:\*|\w+|\([^)]*\))")  # nothing that COPY FROM knows
REFUSED = [
    "DELIMITER '\"'",
    "NULL 'Quorbly'",
    "ENCODING 'LATIN1'",
    "FORMAT csv, ENCODING 'UTF8'",
]
EFFECTS = ["read", "bulk_read", "session", "transaction"]


@pytest.fixture(scope="module")
def copied(postgres: Postgres) -> Iterator[Postgres]:
    with holding(postgres, "copied", SCHEMA) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(copied: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("manifests")
    write_manifests(
        folder, copied, rules=[{"name": "all", "action": "Allow", "match": {"effects": EFFECTS}}],
        masks=[{"detectors": ["PaymentCard", "Email"], "method": "Redact"}],
        classified=[{"columns": ["copied.people.name"], "class": "person"}],
    )  # fmt: skip
    running = start(folder, tmp_path_factory.mktemp("evidence"))
    yield running
    running.stop()


def taken(agent: psycopg.Connection, sql: str) -> bytes:
    with agent.cursor() as cursor, cursor.copy(sql.encode()) as copy:
        return b"".join(bytes(part) for part in copy)


def read_back(postgres: Postgres, data: bytes, options: str) -> list[tuple[object, ...]]:
    with postgres.admin() as admin:
        admin.execute("TRUNCATE copied.back")
        with admin.cursor() as cursor, cursor.copy(f"COPY copied.back FROM STDIN {options}".encode()) as copy:
            copy.write(data)
        return admin.execute("SELECT * FROM copied.back ORDER BY id").fetchall()


def masked(row: tuple[object, ...], is_binary: bool) -> tuple[object, ...]:
    """A row as the masks let it be; binary COPY does not say which values may be any text."""
    found = list(row)
    found[1] = None if row[1] is None else "[person]"
    if EMAIL in str(row[2]):
        found[2] = str(row[2]).replace(EMAIL, "[Email]")
    if row[0] == 1:
        found[3:7] = [None, b"[Email]", {"a": "[Email]"}, ["[Email]", "b"]]
        if is_binary:
            found[4] = found[6] = None
    return tuple(found)


def check(gateway: Gateway, postgres: Postgres, options: str) -> None:
    sql, back = f"COPY copied.people TO STDOUT {options}", FORCED.sub("", options)
    with gateway.connect() as agent, postgres.admin() as admin:
        data, plain = taken(agent, sql), taken(admin, sql)
    for canary in (CARD, EMAIL, NAME, EMAIL.encode().hex(), "kestrel"):
        assert canary.encode() not in data, (options, data)
    is_binary = "binary" in options.lower()
    assert read_back(postgres, data, back) == [masked(row, is_binary) for row in read_back(postgres, plain, back)]


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_copied_is_read_back_but_for_what_is_masked(gateway: Gateway, copied: Postgres, options: str) -> None:
    check(gateway, copied, f"WITH ({options})" if options else "")


@pytest.mark.parametrize("options", OLD)
def test_the_old_way_to_say_options_is_known(gateway: Gateway, copied: Postgres, options: str) -> None:
    check(gateway, copied, options)


def test_how_a_masked_value_is_quoted_says_nothing_of_it(gateway: Gateway, copied: Postgres) -> None:
    sql = "COPY (SELECT name FROM copied.people WHERE name IS NOT NULL) TO STDOUT WITH (FORMAT csv, NULL '{}')"
    unasked = "COPY (SELECT name FROM copied.people) TO STDOUT WITH (FORMAT csv, NULL '{}')"
    with gateway.connect() as agent:
        for guess in (NAME, "", "none"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                taken(agent, sql.format(guess))  # it decides by the column
            assert sorted(taken(agent, unasked.format(guess)).split()) == sorted(
                [b'"[person]"'] * 4 + guess.encode().split()
            )


@pytest.mark.parametrize("options", REFUSED)
def test_forms_in_which_values_cannot_be_told_are_refused(gateway: Gateway, options: str) -> None:
    with gateway.connect() as agent, pytest.raises(psycopg.errors.InsufficientPrivilege):
        taken(agent, f"COPY copied.people TO STDOUT WITH ({options})")


def test_a_header_that_has_to_match_is_still_that_of_the_table(gateway: Gateway, copied: Postgres) -> None:
    for form in ("text", "csv"):
        with gateway.connect() as agent:
            data = taken(agent, f"COPY copied.people TO STDOUT WITH (FORMAT {form}, HEADER)")
        assert len(read_back(copied, data, f"WITH (FORMAT {form}, HEADER MATCH)")) == 5
