"""Commands that wait for people: held on the live connection, released once, refused with a ticket; real everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from fix_dev import RULES, Gateway
from fix_postgres import Postgres
from waiting import ASK, FIX, HURRY, WAIT_S, Person, Waiting, eventually, paid

from chaperone_evidence import record


@pytest.fixture
def held(gateway_with: Callable[..., Gateway], postgres: Postgres) -> Iterator[tuple[Gateway, Person]]:
    with postgres.admin() as owner:
        owner.execute("UPDATE invoices SET paid = false")
    gateway = gateway_with(rules=[*RULES, ASK])
    yield gateway, Person(gateway)


def test_an_approved_command_runs_and_a_denied_one_does_not(held: tuple[Gateway, Person], postgres: Postgres) -> None:
    gateway, person = held
    with gateway.connect() as agent:
        waiting = Waiting(agent, FIX)
        name, request = person.next()
        assert request["text"] == FIX
        assert request["rule"] == "fix-invoices"
        assert not paid(postgres)
        person.decide(name, "approve")
        assert waiting.end() is None
        assert paid(postgres)

        waiting = Waiting(agent, "UPDATE invoices SET paid = false WHERE id = 1")
        name, _ = person.next(2)
        person.decide(name, "deny")
        error = waiting.end()
        assert error is not None
        assert error.sqlstate == "42501"
        assert name in str(error)
        assert paid(postgres)


def test_bound_parameters_are_shown_and_bound(held: tuple[Gateway, Person], postgres: Postgres) -> None:
    gateway, person = held
    with gateway.connect() as agent:
        waiting = Waiting(agent, "UPDATE invoices SET paid = %s WHERE id = %s", (True, 1))
        name, request = person.next()
        lines = str(request["text"]).splitlines()
        assert lines[0].startswith("UPDATE invoices SET paid = $1")
        assert lines[1] in ("-- $1 = true", "-- $1 = 't'")
        assert "1" in lines[2]
        person.decide(name, "approve")
        assert waiting.end() is None
        assert paid(postgres)

        other = Waiting(agent, "UPDATE invoices SET paid = %s WHERE id = %s", (False, 1))
        name, _ = person.next(2)  # other parameters are another command
        person.decide(name, "deny")
        assert other.end() is not None
        assert paid(postgres)


def test_a_ticket_lets_the_same_command_pass_once(gateway_with: Callable[..., Gateway], postgres: Postgres) -> None:
    with postgres.admin() as owner:
        owner.execute("UPDATE invoices SET paid = false")
    gateway = gateway_with(rules=[*RULES, HURRY])
    person = Person(gateway)
    with gateway.connect() as agent, pytest.raises(psycopg.Error, match="waits for approval") as refused:
        agent.execute(FIX)
    name, _ = person.next()
    assert name in str(refused.value)
    assert "Send the very same command again" in str(refused.value.diag.message_hint)
    person.decide(name, "approve")
    with gateway.connect() as agent:  # another connection
        with pytest.raises(psycopg.Error, match="waits for approval"):
            agent.execute(FIX + " ")  # another byte is another command
        agent.execute(FIX)
        assert paid(postgres)
        with pytest.raises(psycopg.Error, match="waits for approval"):
            agent.execute(FIX)
    assert len(person.requests()) == 3


def test_a_refusal_in_a_transaction_lets_its_locks_go(gateway_with: Callable[..., Gateway], postgres: Postgres) -> None:
    rules = [rule for rule in RULES if rule["name"] != "work-on-invoices"]
    rules.append({"name": "lock", "action": "Allow", "match": {"effects": ["maintain", "read"]}})
    gateway = gateway_with(rules=[*rules, HURRY])
    with gateway.connect(autocommit=False) as agent, postgres.admin() as owner:
        agent.execute("LOCK TABLE invoices IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(psycopg.Error, match="waits for approval"):
            agent.execute(FIX)
        owner.execute("SET lock_timeout = '30s'")
        owner.execute("SELECT * FROM invoices")  # nobody is in the way any more
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            agent.execute("SELECT 1")
        agent.rollback()


def test_a_client_that_cancels_or_goes_runs_nothing(held: tuple[Gateway, Person], postgres: Postgres) -> None:
    gateway, person = held
    with gateway.connect() as agent:
        waiting = Waiting(agent, FIX)
        name, _ = person.next()
        agent.cancel_safe(timeout=WAIT_S)
        error = waiting.end()
        assert error is not None
        assert error.sqlstate == "57014"
        person.decide(name, "approve")
        assert not paid(postgres)
        assert agent.execute("SELECT count(*) FROM orders").fetchone() is not None  # the session goes on

    agent = gateway.connect()
    Waiting(agent, FIX + ";")
    name, _ = person.next(2)
    agent.pgconn.finish()  # type: ignore[attr-defined]
    # Of both sessions: an approval would still count for one that is not over.
    eventually(lambda: sum(isinstance(one, record.SessionClose) for one in gateway.records()) == 2)
    person.decide(name, "approve")
    gateway.stop()
    assert not paid(postgres)


def test_what_was_asked_and_what_came_of_it_is_in_the_evidence(
    held: tuple[Gateway, Person], postgres: Postgres
) -> None:
    gateway, person = held
    with gateway.connect() as agent:
        waiting = Waiting(agent, FIX)
        name, _ = person.next()
        person.decide(name, "approve")
        assert waiting.end() is None
    assert gateway.stop() == 0
    found = [
        one
        for one in gateway.records()
        if isinstance(one, record.ApprovalRequest | record.ApprovalOutcome | record.CommandIntent)
    ]
    asked, outcome, intent = found
    assert isinstance(asked, record.ApprovalRequest)
    assert isinstance(outcome, record.ApprovalOutcome)
    assert isinstance(intent, record.CommandIntent)
    assert (asked.approval, outcome.approval, intent.approval) == (name, name, name)
    assert (asked.rule, outcome.state, intent.decision) == ("fix-invoices", "Used", "Allow")
    verdict = gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout


def test_what_the_database_made_another_command_meanwhile_does_not_run(
    gateway_with: Callable[..., Gateway], postgres: Postgres
) -> None:
    rule = ASK | {"match": {"effects": ["modify", "read"], "objects": ["public.due"]}}
    gateway = gateway_with(rules=[*RULES, rule])
    person = Person(gateway)
    with postgres.admin() as owner:
        owner.execute("UPDATE invoices SET paid = false")
        owner.execute("CREATE TABLE later (LIKE invoices); INSERT INTO later VALUES (1, false)")
        owner.execute("CREATE VIEW due AS SELECT id, paid FROM invoices; GRANT ALL ON due TO agent_rw")
    try:
        with gateway.connect() as agent, postgres.admin() as owner:
            waiting = Waiting(agent, "UPDATE due SET paid = true WHERE id = 1")
            name, request = person.next()
            assert {"effect": "modify", "object": "public.due", "through": ""} in request["accesses"]  # type: ignore[operator]
            owner.execute("CREATE OR REPLACE VIEW due AS SELECT id, paid FROM later")
            person.decide(name, "approve")
            error = waiting.end()
            assert error is not None
            assert "has changed since request" in str(error)
            assert owner.execute("SELECT bool_or(paid) FROM later").fetchone() == (False,)
            assert not paid(postgres)
    finally:
        with postgres.admin() as owner:
            owner.execute("DROP VIEW due; DROP TABLE later")
