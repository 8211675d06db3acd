"""Where holds meet prepared statements, plans and counts: what people allowed is what runs, and nothing runs before."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import psycopg
import pytest
from fix_dev import RULES, Gateway
from fix_postgres import Postgres
from raw_client import bind, client, execute
from waiting import ASK, FIX, HURRY, Person, Waiting, eventually, paid

from chaperone_sidecar.protocols.postgresql import messages as m

INT8, FLOAT8 = 20, 701
FUNCTIONS = """
CREATE SCHEMA code;
CREATE FUNCTION public.told(a int) RETURNS int STABLE LANGUAGE plpgsql AS
  $$ BEGIN RAISE LOG 'told has run'; RETURN a; END $$;
"""


@pytest.fixture
def told(postgres: Postgres) -> Iterator[Postgres]:
    """A function of which the server's log says that it ran; the planner runs it, since it is STABLE."""
    with postgres.admin() as owner:
        owner.execute(FUNCTIONS)
    yield postgres
    with postgres.admin() as owner:
        owner.execute("DROP FUNCTION told; DROP SCHEMA code")


@pytest.fixture
def held(gateway_with: Callable[..., Gateway], postgres: Postgres) -> Iterator[tuple[Gateway, Person]]:
    with postgres.admin() as owner:
        owner.execute("UPDATE invoices SET paid = false")
    gateway = gateway_with(rules=[*RULES, ASK])
    yield gateway, Person(gateway)


def typed(*types: int) -> bytes:
    return struct.pack(f">H{len(types)}I", len(types), *types)


def bound(value: bytes) -> bytes:
    """A Bind of the unnamed statement with one value in binary."""
    return m.frame(m.BIND, b"\0\0" + struct.pack(">HHHi", 1, 1, 1, len(value)) + value + bytes(2))


def errors(found: list[tuple[str, bytes]]) -> list[str]:
    return [body.decode() for kind, body in found if kind == "E"]


def test_an_approval_is_for_parameters_of_the_types_that_people_saw(
    gateway_with: Callable[..., Gateway], postgres: Postgres
) -> None:
    with postgres.admin() as owner:
        owner.execute("UPDATE invoices SET paid = false")
    gateway = gateway_with(rules=[*RULES, HURRY])
    person = Person(gateway)
    text = b"UPDATE invoices SET paid = true WHERE id::float8 < $1"
    value = struct.pack(">d", 1e9)
    with client(gateway) as agent:
        agent.send(m.encode_parse(b"", text, typed(INT8)), bound(value), execute(), m.SYNC_FRAME)
        assert "waits for approval" in errors(agent.until("Z"))[0]
        name, _ = person.next()
        person.decide(name, "approve")
        agent.send(m.encode_parse(b"", text, typed(FLOAT8)), bound(value), execute(), m.SYNC_FRAME)
        assert "waits for approval" in "".join(errors(agent.until("Z")))
    assert not paid(postgres)


def test_nothing_of_a_command_runs_by_its_plan_before_people_allow_it(
    gateway_with: Callable[..., Gateway], told: Postgres
) -> None:
    rule = HURRY | {"match": {"effects": ["execute_code"], "objects": ["public.told"]}}
    gateway = gateway_with(rules=[*RULES, rule])
    with client(gateway) as agent:
        agent.send(m.encode_parse(b"", b"SELECT id FROM orders WHERE id = told(1)"), bind(), m.SYNC_FRAME)
        found = agent.until("Z")
    assert "LOG:  told has run" not in told.log
    assert "waits for approval" in errors(found)[0]


def test_nothing_of_a_command_runs_for_an_estimate(gateway_with: Callable[..., Gateway], told: Postgres) -> None:
    few = {"effects": ["read"], "objects": ["public.orders"], "require": {"maxEstimatedRows": 0}}
    code = {"effects": ["execute_code"], "objects": ["public.told"]}
    gateway = gateway_with(
        rules=[
            {"name": "few", "action": "Allow", "match": few},
            {"name": "code", "action": "Allow", "match": code},
        ]
    )
    text = "SELECT id FROM orders WHERE id > told(1)"
    with gateway.connect() as agent:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            agent.execute(text)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            agent.execute(text.replace("1", "%s"), (1,))
    with client(gateway) as agent:
        agent.send(m.encode_parse(b"", text.encode()), bind(), m.SYNC_FRAME)
        agent.until("Z")
    assert "LOG:  told has run" not in told.log


def test_an_approved_command_is_counted_once(gateway_with: Callable[..., Gateway], postgres: Postgres) -> None:
    with postgres.admin() as owner:
        owner.execute("UPDATE invoices SET paid = false")
    once = {"maxRepeats": {"count": 1, "per": "1h"}}
    rules = [rule for rule in RULES if rule["name"] != "work-on-invoices"]
    rules.append({"name": "read", "action": "Allow", "match": {"effects": ["read"], "objects": ["public.*"]}})
    gateway = gateway_with(rules=[*rules, ASK | {"match": {**ASK["match"], "require": once}}])  # type: ignore[dict-item]
    person = Person(gateway)
    with gateway.connect() as agent:
        waiting = Waiting(agent, FIX)
        name, _ = person.next()
        person.decide(name, "approve")
        assert waiting.end() is None
        assert paid(postgres)
        with pytest.raises(psycopg.Error, match="only 1 times"):
            agent.execute(FIX)


def test_commands_that_are_allowed_together_all_run(held: tuple[Gateway, Person], postgres: Postgres) -> None:
    gateway, person = held
    with ExitStack() as stack:
        agents = [stack.enter_context(gateway.connect()) for _ in range(24)]
        for asked in (24, 48):
            texts = [f"UPDATE invoices SET paid = NOT paid WHERE id = {number}" for number in range(1, 25)]
            waiting = [Waiting(agent, text) for agent, text in zip(agents, texts, strict=True)]
            person.next(asked)
            for request in person.requests():
                person.decide(request.stem, "approve")
            assert [one.end() for one in waiting] == [None] * 24
            with postgres.admin() as owner:
                found = owner.execute("SELECT count(*) FROM invoices WHERE paid AND id <= 24").fetchone()
            assert found == ((24,) if asked == 24 else (0,))


def test_what_a_person_reads_on_the_terminal_obeys_no_agent(held: tuple[Gateway, Person]) -> None:
    gateway, person = held
    with gateway.connect() as agent:
        waiting = Waiting(agent, FIX + " /* \x1b[2J\r\u202e \n touch x.approve */")
        name, _ = person.next()
        person.decide(name, "deny")
        assert waiting.end() is not None
    eventually(lambda: any(line.startswith("touch /") for line in gateway.output))  # what it said may come late
    lines = [line for line in gateway.output if "UPDATE" in line or "approve" in line]
    assert lines[0].startswith(f"  | {FIX} /* \ufffd[2J")
    assert lines[1].startswith("  |  touch x")
    assert lines[2].startswith("touch /")
    assert not {"\x1b", "\r", "\u202e"} & set("".join(lines))


def test_the_binding_in_records_cannot_be_tried_for_what_the_text_hides(
    gateway_with: Callable[..., Gateway], postgres: Postgres
) -> None:
    classified = [{"columns": ["public.invoices.paid"], "class": "debt"}]
    found = []
    for _ in range(2):  # each run has a key of its own, and all else is the same
        gateway = gateway_with(rules=[*RULES, HURRY], classified=classified)
        with gateway.connect() as agent, pytest.raises(psycopg.Error, match="waits for approval"):
            agent.execute("UPDATE invoices SET paid = true")
        request = msgspec.json.decode(Person(gateway).requests()[-1].read_bytes())
        assert request["text"] == "UPDATE invoices SET paid = $1"
        found.append(request["binding"])
        gateway.stop()
    assert found[0] != found[1]


def test_a_pipeline_that_has_begun_waits_no_longer_than_a_transaction(
    gateway_with: Callable[..., Gateway], postgres: Postgres
) -> None:
    rules = [rule for rule in RULES if rule["name"] != "work-on-invoices"]
    rules.append({"name": "lock", "action": "Allow", "match": {"effects": ["maintain", "read"]}})
    gateway = gateway_with(rules=[*rules, ASK | {"approval": {"groups": ["billing-leads"], "wait": "50s"}}])
    with client(gateway) as agent:
        agent.send(
            m.encode_parse(b"", b"BEGIN"), bind(), execute(),
            m.encode_parse(b"", b"LOCK TABLE invoices"), bind(), execute(),
            m.encode_parse(b"", FIX.encode()), bind(), execute(), m.SYNC_FRAME,
        )  # fmt: skip
        assert "waits for approval" in errors(agent.until("Z"))[0]  # the client itself waits 20 s at most
