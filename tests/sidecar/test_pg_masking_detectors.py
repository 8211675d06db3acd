"""Masks by detectors alone: nothing is refused for its lineage, and whatever is found is masked."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest
from fix_dev import Gateway
from fix_postgres import Postgres
from psycopg import sql

CARD = "4716892311450065"
MASKS = [{"detectors": ["PaymentCard", "Email"], "method": "Partial"}]
RULES = [
    {"name": "all", "action": "Allow", "match": {"effects": ["read", "bulk_read", "create", "session", "transaction"]}},
    {"name": "not-this", "action": "Deny", "match": {"effects": ["read"], "objects": ["public.secrets"]}},
    {"name": "schema", "action": "Allow", "match": {"effects": ["schema", "execute_code"]}},
]


@pytest.fixture
def gateway(gateway_with: Callable[..., Gateway]) -> Gateway:
    return gateway_with(rules=RULES, masks=MASKS)


@pytest.mark.parametrize("options", ["", "WITH (FORMAT csv, HEADER)", "WITH (FORMAT binary)"])
def test_copy_is_masked_in_every_format(gateway: Gateway, options: str) -> None:
    query = f"COPY (SELECT 1 AS id, 'card {CARD}' AS note) TO STDOUT {options}"
    with gateway.connect() as agent, agent.cursor() as cursor, cursor.copy(query) as copy:  # type: ignore[arg-type]
        data = b"".join(bytes(part) for part in copy)
    assert CARD.encode() not in data
    # Binary COPY doesn't say of which type a field is, so it could not be told that text may stand there.
    assert (b"**** **** **** 0065" in data) == ("binary" not in options)


@pytest.mark.parametrize("binary", [False, True])
def test_predicates_and_functions_stay_free(gateway: Gateway, binary: bool) -> None:
    with gateway.connect() as agent, agent.cursor(binary=binary) as cursor:
        cursor.execute("SELECT id, customer FROM orders WHERE customer LIKE 'customer 1%' ORDER BY customer LIMIT 2")
        assert cursor.fetchall() == [(1, "customer 1"), (10, "customer 10")]
        cursor.execute("SELECT lower(%s), %s::numeric, pg_backend_pid() > 0", (f"A {CARD}", CARD))
        assert cursor.fetchone() == ("a **** **** **** 0065", None, True)


def test_a_parameter_is_masked_in_the_record_whatever_its_format(gateway: Gateway) -> None:
    with gateway.connect() as agent:
        agent.execute("SELECT %s::text, %b::text, %b::bigint", (f"jane@{'example'}.org", CARD, int(CARD)))
    gateway.stop()
    kept = b"".join(path.read_bytes() for path in gateway.evidence.rglob("*") if path.is_file())
    assert b"jane@example.org" not in kept
    assert CARD.encode() not in kept
    assert int(CARD).to_bytes(8, "big") not in kept
    assert any(getattr(record, "is_masked", False) for record in gateway.records())


def test_a_denied_table_stays_denied_behind_a_view_that_a_transaction_has_changed(
    gateway: Gateway, postgres: Postgres
) -> None:
    with postgres.admin() as admin:
        admin.execute("CREATE VIEW secret_view AS SELECT value FROM secrets; GRANT SELECT ON secret_view TO agent_rw")
    try:
        with gateway.connect(autocommit=False) as agent:
            agent.execute("CREATE TABLE scratch (a int)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="secrets"):
                agent.execute("SELECT * FROM secret_view")
            agent.rollback()
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="secrets"):
                agent.execute(sql.SQL("SELECT * FROM secret_view"))
    finally:
        with postgres.admin() as admin:
            admin.execute("DROP VIEW secret_view")


def test_json_stays_json(gateway: Gateway) -> None:
    with gateway.connect() as agent:
        found = agent.execute("SELECT jsonb_build_object('card', %s::bigint, 'n', 7)", (CARD,)).fetchone()
    assert found is not None
    assert json.loads(json.dumps(found[0])) == {"card": "**** **** **** 0065", "n": 7}
