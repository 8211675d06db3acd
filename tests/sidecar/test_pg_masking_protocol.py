"""Masks and the state of the protocol: whatever a name stands for, rows are masked by the statement they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fix_dev import Gateway
from fix_postgres import Postgres
from raw_client import Client, client

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
MOTTOS = b"SELECT upper(motto) FROM people"


@pytest.fixture
def gateway(gateway_with: Callable[..., Gateway], postgres: Postgres) -> Iterator[Gateway]:
    with postgres.admin() as admin:
        admin.execute(SCHEMA)
    yield gateway_with(
        rules=RULES, classified=[{"columns": ["public.people.name"], "class": "person"}], unmaskable="Deny"
    )
    with postgres.admin() as admin:
        admin.execute("DROP TABLE people, noisy; DROP FUNCTION reopen")


def query(text: bytes) -> bytes:
    return m.frame(m.QUERY, text + b"\0")


def parse(name: bytes, text: bytes) -> bytes:
    return m.encode_parse(name, text)


def bind(portal: bytes, statement: bytes, *formats: int) -> bytes:
    asked = b"".join(one.to_bytes(2, "big") for one in formats)
    return m.frame(m.BIND, portal + b"\0" + statement + b"\0" + bytes(4) + len(formats).to_bytes(2, "big") + asked)


def execute(portal: bytes, most: int = 0) -> bytes:
    return m.frame(m.EXECUTE, portal + b"\0" + most.to_bytes(4, "big"))


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
            agent, parse(b"s", NAMES), bind(b"p", b"s"), m.frame(m.CLOSE, b"Ss\0"), parse(b"s", MOTTOS), execute(b"p"),
            bind(b"q", b"s"), execute(b"q"), m.SYNC_FRAME,
        )  # fmt: skip
    assert rows(found) == [b"[person]"] * 5 + [b"MOTTO %d" % number for number in range(1, 6)]


def test_the_unnamed_statement_may_be_prepared_between_bind_and_execute(gateway: Gateway) -> None:
    with client(gateway) as agent:
        found = told(agent, parse(b"", NAMES), bind(b"", b""), parse(b"", MOTTOS), execute(b""), m.SYNC_FRAME)
    assert rows(found) == [b"[person]"] * 5


@pytest.mark.parametrize("formats", [(), (0,), (1,), (1, 0)])
def test_portals_of_one_statement_have_formats_of_their_own(gateway: Gateway, formats: tuple[int, ...]) -> None:
    with client(gateway) as agent:
        found = told(
            agent, parse(b"s", b"SELECT name, motto FROM people WHERE id = 1"), describe(b"S", b"s"),
            bind(b"a", b"s", *formats), execute(b"a"), bind(b"b", b"s", 1, 1), describe(b"P", b"b"), execute(b"b"),
            bind(b"c", b"s"), execute(b"c"), m.SYNC_FRAME,
        )  # fmt: skip
    assert rows(found) == [b"[person]" + b"\0\0\0\7motto 1"] * 3


def test_a_portal_is_masked_however_often_it_is_executed_and_fetched(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, query(b"BEGIN"))
        found = told(
            agent, parse(b"", NAMES), bind(b"p", b""), execute(b"p", 2), execute(b"p", 1),
            parse(b"f", b"FETCH 1 FROM p"), bind(b"", b"f", 1), execute(b""), execute(b"p"), m.SYNC_FRAME,
        )  # fmt: skip
        assert rows(found) == [b"[person]"] * 5
        told(agent, query(b"ROLLBACK"))


def test_a_cursor_declared_anew_is_masked_by_its_new_query(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, query(b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS))
        assert rows(told(agent, query(b"FETCH 1 FROM c"))) == [b"MOTTO 1"]
        told(agent, query(b"CLOSE c"), query(b"DECLARE c CURSOR FOR SELECT upper(name) FROM people"), syncs=2)
        assert rows(told(agent, query(b"FETCH 2 FROM c"))) == [b"[person]"] * 2
        told(agent, query(b"SAVEPOINT s"), query(b"DECLARE c CURSOR FOR " + MOTTOS), query(b"ROLLBACK TO s"), syncs=3)
        assert rows(told(agent, query(b"FETCH 1 FROM c"))) in ([b"[person]"], [])
        told(agent, query(b"ROLLBACK"))


def test_a_function_that_reopens_a_cursor_shows_nothing(gateway: Gateway) -> None:
    with client(gateway) as agent:
        told(agent, query(b"BEGIN; DECLARE c CURSOR FOR " + MOTTOS))
        told(agent, query(b"SELECT reopen('c')"))
        assert rows(told(agent, query(b"FETCH 1 FROM c"))) == []
        told(agent, query(b"ROLLBACK"))


def test_results_that_a_rule_adds_are_not_shown(gateway: Gateway) -> None:
    with client(gateway) as agent:
        assert rows(told(agent, query(b"INSERT INTO noisy VALUES (1)"))) == []
        assert rows(told(agent, query(MOTTOS + b"; INSERT INTO noisy VALUES (1); " + MOTTOS)))[:1] in ([b"MOTTO 1"], [])
        assert rows(told(agent, query(NAMES + b" LIMIT 1"))) == [b"[person]"]


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
        found = rows(told(agent, query(text)))
    assert found[0] == b"MOTTO 1"
    assert found[-5:] == [b"[person]"] * 5


def test_a_text_that_fails_in_the_middle_leaves_the_next_in_step(gateway: Gateway) -> None:
    with client(gateway) as agent:
        found = told(agent, query(MOTTOS + b"; SELECT 1/0; " + NAMES), query(NAMES), query(MOTTOS), syncs=3)
    assert rows(found) == [b"MOTTO %d" % n for n in range(1, 6)] + [b"[person]"] * 5 + [
        b"MOTTO %d" % n for n in range(1, 6)
    ]


def test_columns_whose_names_are_exchanged_are_not_shown(gateway: Gateway) -> None:
    renames = (b"name TO x", b"motto TO name", b"x TO motto")
    swap = b"; ".join(b"ALTER TABLE people RENAME " + rename for rename in renames)
    with client(gateway) as agent, client(gateway) as other:
        told(agent, parse(b"s", MOTTOS), bind(b"", b"s"), execute(b""), m.SYNC_FRAME)
        told(other, query(MOTTOS))
        told(agent, query(swap))
        for one in (agent, other):
            told(one, query(b"SELECT motto, upper(motto), name FROM people"))
            told(one, query(MOTTOS))
        told(agent, bind(b"", b"s"), execute(b""), m.SYNC_FRAME)
        told(agent, query(b"BEGIN"), query(swap), query(MOTTOS), query(b"ROLLBACK"), syncs=4)
        told(agent, query(swap), query(MOTTOS), syncs=2)


def test_a_text_that_is_not_understood_shows_no_row(gateway: Gateway) -> None:
    with client(gateway) as agent:
        assert rows(told(agent, query(b"SELECT E'a' --\n'b', name FROM people"))) == []
