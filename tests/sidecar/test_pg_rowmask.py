"""Values of every type, in text and binary, alone and inside others: nothing is left, and what is sent is valid."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator
from contextlib import suppress

import asyncpg
import pytest
from fix_dev import Gateway, start, write_manifests
from fix_postgres import Postgres, holding
from raw_client import Client, client

from chaperone_sidecar.protocols.postgresql import messages as m

CARD, EMAIL = "4716892311450065", "canary.kestrel@example.org"
BITS = "".join(f"{byte:08b}" for byte in EMAIL.encode())
MOST = "canary.kestrel"
# What holds a value that detectors find, by type.
TYPES = {
    "text": f"'write to {EMAIL}'", "varchar(40)": f"'{EMAIL}'", "char(40)": f"'{EMAIL}'", "name": f"'{EMAIL}'",
    "citext": f"'{EMAIL}'", "json": f"""'{{"a": ["{EMAIL}", {CARD}]}}'""", "jsonb": f"""'{{"{EMAIL}": {CARD}}}'""",
    "xml": f"""'<a b="{EMAIL}">{EMAIL} &#60;b&#62; {CARD}</a>'""", "bytea": f"'{EMAIL}'::bytea",
    "varbit": f"B'{BITS}'", f"bit({len(BITS)})": f"B'{BITS}'", "int8": CARD, "numeric": CARD, "float8": CARD,
    "money": f"'{CARD}'::numeric::money", "hstore": f"""'"{EMAIL}"=>"{CARD}"'""", "ltree": f"'a.{CARD}.b'",
    "tsvector": f"to_tsvector('simple', '{EMAIL} {CARD}')", "tsquery": f"to_tsquery('simple', '''{EMAIL}'' & {CARD}')",
    "jsonpath": f"""'$."{EMAIL}" ? (@ == {CARD})'""", "cube": f"'({CARD}),({CARD})'", "point": f"'({CARD},1)'",
    "box": f"'({CARD},1),(2,3)'", "path": f"'[({CARD},1),(2,3)]'", "polygon": f"'(({CARD},1),(2,3))'",
    "circle": f"'<({CARD},1),2>'", "lseg": f"'[({CARD},1),(2,3)]'", "int8range": f"'[{CARD},)'",
    "numrange": f"'(,{CARD}.00)'", "int8multirange": f"'{{[1,2],[{CARD},)}}'", "nummultirange": f"'{{[1,{CARD}]}}'",
    "xid8": f"'{CARD}'", "kinds.mails": f"'[a,{EMAIL}]'",
}  # fmt: skip
# What is too short for a detector; where the column is classified it is masked like any other.
SHORT = {
    '"char"': "'Q'", "bool": "true", "int2": "31234", "int4": "612448391", "oid": "612448391", "float4": "612448.4",
    "date": "'1961-02-03'", "time": "'11:22:33'", "timetz": "'11:22:33+01'", "timestamp": "'1961-02-03 11:22:33'",
    "timestamptz": "'1961-02-03 11:22:33+00'", "interval": "'612 years 44 days'", "uuid": f"'{'61244839' * 4}'",
    "inet": "'61.24.48.39'", "cidr": "'61.24.48.0/24'", "macaddr": "'61:24:48:39:16:12'",
    "macaddr8": "'61:24:48:39:16:12:44:83'", "pg_lsn": "'61244/8391'", "tid": "'(61244,83)'", "xid": "'612448391'",
    "cid": "'612448391'", "int2vector": "'6124 4839 1'", "oidvector": "'612448391 2'",
    "pg_snapshot": "'61244:61248:61245'", "txid_snapshot": "'61244:61248:61245'", "regclass": "'pg_class'",
    "int4range": "'[612448391,)'",
    "daterange": "'[1961-02-03,)'", "tsrange": "'[1961-02-03 11:22:33,)'", "tstzrange": "'[1961-02-03 11:22:33+00,)'",
    "int4multirange": "'{[612448391,)}'", "datemultirange": "'{[1961-02-03,)}'", "line": "'{6,1,2}'",
    "kinds.mood": "'grim'", "refcursor": "'quorbly'",
}  # fmt: skip
ALL = TYPES | SHORT
# A table for each thing that is made of a type: its columns' type, and their value.
FORMS = {
    "": ("{name}", "{value}"),
    "_array": ("{name}[]", "ARRAY[{value}, NULL, {value}]::{name}[]"),
    "_bounds": ("{name}[]", "('[2:2]=' || ARRAY[{value}]::text)::{name}[]"),
    "_domain": ("kinds.{column}_d", "{value}"),
    "_domains": ("kinds.{column}_d[]", "ARRAY[{value}]::kinds.{column}_d[]"),
    "_row": ("kinds.{column}_c", "ROW({value}, 7)::kinds.{column}_c"),
    "_rows": ("kinds.{column}_c[]", "ARRAY[ROW({value}, 7)::kinds.{column}_c]"),
}
LABELS = [label for plain in (b"[Email]", b"[PaymentCard]", b"[masked]") for label in (plain, plain.hex().encode())]


def schema() -> str:
    """Two tables with columns of every type and of what is made of it; those of one are classified."""
    out = [
        "CREATE SCHEMA kinds", "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree",
        "CREATE EXTENSION cube", "CREATE TYPE kinds.mood AS ENUM ('fine', 'grim')",
        "CREATE TYPE kinds.mails AS RANGE (subtype = text, multirange_type_name = kinds.mailss)",
    ]  # fmt: skip
    columns = {f"k{number}": (name, f"({value})::{name}") for number, (name, value) in enumerate(ALL.items())}
    for column, (name, _) in columns.items():
        out += [f"CREATE DOMAIN kinds.{column}_d AS {name}", f"CREATE TYPE kinds.{column}_c AS (v {name}, n int)"]
    for form, (made, of) in FORMS.items():
        types = [f"{column} {made.format(name=name, column=column)}" for column, (name, value) in columns.items()]
        values = [of.format(name=name, column=column, value=value) for column, (name, value) in columns.items()]
        for table in ("seen", "named"):
            out += [
                f"CREATE TABLE kinds.{table}{form} ({', '.join(types)})",
                f"INSERT INTO kinds.{table}{form} VALUES ({', '.join(values)})",
            ]
    out += ["GRANT USAGE ON SCHEMA kinds TO agent_rw", "GRANT SELECT ON ALL TABLES IN SCHEMA kinds TO agent_rw"]
    return "; ".join(out)


EFFECTS = ["read", "bulk_read", "session", "transaction", "execute_code"]
RULES = [{"name": "all", "action": "Allow", "match": {"effects": EFFECTS}}]


@pytest.fixture(scope="module")
def gateway(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with holding(postgres, "kinds", schema()):
        folder = tmp_path_factory.mktemp("manifests")
        write_manifests(
            folder, postgres, rules=RULES, masks=[{"detectors": ["PaymentCard", "Email"], "method": "Redact"}],
            classified=[{"columns": ["kinds.named*.*"], "class": "person"}],
        )  # fmt: skip
        running = start(folder, tmp_path_factory.mktemp("evidence"))
        yield running
        running.stop()
    with postgres.admin() as admin:
        admin.execute("DROP EXTENSION citext, hstore, ltree, cube CASCADE")


def leaks(raw: bytes) -> list[str]:
    """What of the canaries is in bytes, however it is dressed."""
    found = []
    mail, card = MOST.encode(), CARD.encode()
    for what, needle in {
        "mail": mail, "reversed": mail[::-1], "in hex": mail.hex().encode(), "in base64": base64.b64encode(mail)[:16],
        "in bits": BITS[:112].encode(), "utf-16": MOST.encode("utf-16-le"), "card": card, "card reversed": card[::-1],
        "last digits": b"11450065", "card as int8": struct.pack(">q", int(CARD)),
        "as money": struct.pack(">q", int(CARD) * 100),
        "as float8": struct.pack(">d", int(CARD)), "as numeric": struct.pack(">4h", 4716, 8923, 1145, 65),
    }.items():  # fmt: skip
        if needle in raw or needle in raw.replace(b",", b"") or needle in raw.lower():
            found.append(what)
    return found


def places(table: str) -> Iterator[tuple[str, str, str]]:
    """All columns of a table and its variants, with the name of their type."""
    for form in FORMS:
        for number, name in enumerate(ALL):
            yield f"{table}{form}", f"k{number}", name


def row(agent: Client, table: str, column: str, form: int) -> tuple[str, bytes | None]:
    """The kinds of messages and the only value, in one format."""
    agent.send(
        m.encode_parse(b"", f"SELECT {column} FROM kinds.{table}".encode()),
        m.frame(m.BIND, b"\0\0" + b"\0\0\0\0" + b"\0\1" + form.to_bytes(2, "big")),
        m.frame(m.DESCRIBE, b"P\0"), m.frame(m.EXECUTE, b"\0" + bytes(4)), m.SYNC_FRAME,
    )  # fmt: skip
    said = agent.until("Z")
    rows = [body for kind, body in said if kind == "D"]
    assert not leaks(b"".join(body for kind, body in said if kind != "T")), (column, said)
    if not rows:
        return b"".join(body for kind, body in said if kind == "E").decode("utf-8", "replace"), None
    size = int.from_bytes(rows[0][2:6], "big", signed=True)
    return "", None if size < 0 else rows[0][6 : 6 + size]


@pytest.mark.parametrize("form", [0, 1])
def test_nothing_is_left_of_a_value_whatever_its_type(gateway: Gateway, form: int) -> None:
    with client(gateway) as agent:
        for table, column, name in places("seen"):
            why, value = row(agent, table, column, form)
            assert not why, (table, name, why)
            if name in TYPES and value is not None:
                assert any(label in value for label in LABELS), (table, name, value)
            if name in SHORT:
                assert value is not None, (table, name)


@pytest.mark.parametrize("form", [0, 1])
def test_a_classified_value_is_masked_or_null_whatever_its_type(gateway: Gateway, form: int) -> None:
    with client(gateway) as agent:
        for table, column, name in places("named"):
            why, value = row(agent, table, column, form)
            assert not why, (table, name, why)
            assert value is None or b"[person]" in value or b"[person]".hex().encode() in value, (table, name, value)


@pytest.mark.parametrize("table", ["seen", "named"])
def test_psycopg_reads_whatever_it_gets(gateway: Gateway, table: str) -> None:
    for binary in (False, True):
        with gateway.connect() as agent, agent.cursor(binary=binary) as cursor:
            for form in FORMS:
                cursor.execute(f"SELECT * FROM kinds.{table}{form}".encode())
                (found,) = cursor.fetchall()
                assert len(found) == len(ALL)


@pytest.mark.parametrize("table", ["seen", "named"])
def test_asyncpg_reads_whatever_it_gets(gateway: Gateway, table: str) -> None:
    async def read() -> int:
        agent = await asyncpg.connect(host="127.0.0.1", port=gateway.port, user="agent", database="orders", ssl=False)
        count = 0
        for name, column, _ in places(table):
            # Of some types it knows the text alone; rows of them are none that it reads.
            with suppress(asyncpg.UnsupportedClientFeatureError):
                count += len(await agent.fetch(f"SELECT {column} FROM kinds.{name}"))
        await agent.close()
        return count

    assert asyncio.run(read()) > 0.95 * len(FORMS) * len(ALL)


def test_bytes_in_the_old_form_are_read_like_any_others(gateway: Gateway) -> None:
    wide = EMAIL.encode("utf-16-le").hex()
    with gateway.connect() as agent, agent.cursor() as cursor:
        cursor.execute("SET bytea_output TO escape")
        cursor.execute("SELECT k8, 'x'::bytea FROM kinds.seen")
        assert cursor.fetchall() == [(None, b"x")]
        cursor.execute(f"SELECT '\\x{wide}'::bytea, '\\x00ff5c'::bytea".encode())
        assert cursor.fetchall() == [(None, b"\x00\xff\\")]
        cursor.execute("SELECT k8 FROM kinds.named")
        assert cursor.fetchall() == [(b"[person]",)]


def test_markup_stays_what_it_is(gateway: Gateway) -> None:
    with gateway.connect() as agent:
        for before, after in {
            f'<a b="{EMAIL}">{EMAIL}</a>': '<a b="[Email]">[Email]</a>',
            f"<a b='{EMAIL}'/>": None,  # a local part may begin with an apostrophe
            f"<!-- {EMAIL} -->": None,
            f"&#60;b&#62; {CARD[:4]}&#56;{CARD[5:]}": None,
        }.items():
            assert agent.execute("SELECT %s::xml", (before,)).fetchone() == (after,)
