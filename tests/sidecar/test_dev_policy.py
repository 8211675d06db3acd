"""Requirements and mode Observe through a real gateway, up to what the records say."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from fix_dev import Gateway

from chaperone_evidence import record

pytestmark = pytest.mark.peer

type Make = Callable[..., Gateway]

CAREFUL = [
    {
        "name": "careful",
        "action": "Allow",
        "match": {"effects": ["read"], "objects": ["public.*"], "require": {"where": True, "limit": 10}},
    },
    {"name": "sessions", "action": "Allow", "match": {"effects": ["session"]}},
]
READERS = [{"name": "read", "action": "Allow", "match": {"effects": ["read"], "objects": ["public.orders"]}}]


def intents(gateway: Gateway) -> list[record.CommandIntent]:
    return [one for one in gateway.records() if isinstance(one, record.CommandIntent)]


def test_a_statement_without_what_is_required_is_refused_and_says_what(gateway_with: Make) -> None:
    gateway = gateway_with(rules=CAREFUL)
    with gateway.connect() as connection:
        connection.execute("SELECT 1")
        connection.execute("SELECT * FROM orders WHERE id = 1 LIMIT 10")
        connection.execute("SELECT * FROM orders WHERE id = %s LIMIT 10", (1,))
        for text in ("SELECT * FROM orders WHERE id = 1 LIMIT 11", "SELECT * FROM orders WHERE true LIMIT 10"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"Rule careful of .* but only with a "):
                connection.execute(text)


def test_rows_are_those_that_the_planner_expects(gateway_with: Make) -> None:
    rule = {"effects": ["read", "modify"], "objects": ["public.*"], "require": {"maxEstimatedRows": 1}}
    gateway = gateway_with(rules=[{"name": "few", "action": "Allow", "match": rule}])
    with gateway.connect() as connection:
        for text in ("SELECT * FROM orders WHERE id = 1", "UPDATE orders SET id = id WHERE id = 1"):
            connection.execute(text)
            connection.execute(text.replace("= 1", "= %s"), (1,))
            connection.execute(text.replace("= 1", "= %s"), (1,), binary=True)
        for text in ("SELECT * FROM orders", "SELECT count(*) FROM orders", "UPDATE orders SET id = id WHERE id > 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"expects at most 1 rows\.\n"):
                connection.execute(text)
        two = "SELECT * FROM orders WHERE id = 1; SELECT * FROM orders WHERE id = 1"
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"and it gave no estimate\.\n"):
            connection.execute(two)


def test_what_an_observed_policy_would_deny_passes_and_is_recorded(gateway_with: Make) -> None:
    gateway = gateway_with(rules=READERS, mode="Observe")
    with gateway.connect() as connection:
        connection.execute("SELECT * FROM orders")
        connection.execute("CREATE TABLE IF NOT EXISTS observed (a int)")
        connection.execute("DROP TABLE observed")
        with pytest.raises(psycopg.Error):
            connection.execute("SELEC 1")
    gateway.stop()
    said = {(one.decision, one.rule, one.would, one.would_rule) for one in intents(gateway)}
    assert ("Allow", "read", "", "") in said
    assert ("Allow", "observed", "Deny", "uncovered") in said
    assert ("Deny", "uncovered", "", "") in said
