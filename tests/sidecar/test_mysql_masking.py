"""Masked values of MariaDB and MySQL: what a client sees, in both formats, and that no trick shows one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from fix_mysql import Server
from my_gateway import Gateway, execute, fetch, gateway, prepare
from pymysql.constants import CLIENT
from recordings import every_byte, read_rows
from waiting import Person

from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql import rows

pytestmark = pytest.mark.peer

CORPUS = Path(__file__).parents[1] / "corpora" / "mysql_masking.jsonl"
CANARIES = (b"ada@example.com", b"bob@example.com", b"ADA@EXAMPLE", b"moc.elpmaxe@")
EFFECTS = [
    "read",
    "create",
    "modify",
    "delete",
    "bulk_write",
    "schema",
    "session",
    "transaction",
    "execute_code",
    "destroy",
]
ALL = [{"name": "all", "action": "Allow", "match": {"effects": EFFECTS}}]
CARD = "4111111111111111"
ASKING = {
    "name": "ask", "action": "RequireApproval", "match": {"effects": ["modify"], "objects": ["orders.invoices"]},
    "approval": {"groups": ["leads"], "count": 1, "wait": "1s", "validFor": "5m"},
}  # fmt: skip


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    found.run(
        "CREATE TABLE orders.cards (id int, number bigint, word varchar(99), raw varbinary(99), doc json)",
        f"INSERT INTO orders.cards VALUES (1, {CARD}, 'pay {CARD} now', '{CARD}', '{{\"n\": \"{CARD}\"}}')",
        "CREATE TABLE orders.accounts (id int, Email varchar(64), `gr\u00f6\u00dfe` int)",
        "INSERT INTO orders.accounts VALUES (1, 'ada@example.com', 170)",
    )
    return found


@pytest.fixture(scope="module")
def masked(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway at a target with classified columns; `found` is one whose values are looked at."""
    columns = [{"columns": ["orders.customers.email"], "class": "email"}]
    masks = [{"columns": ["orders.customers.born"], "method": "Redact"}]
    detectors = [{"detectors": ["Email", "PaymentCard"], "method": "Redact"}]
    targets: dict[str, dict[str, Any]] = {
        "columns": {"rules": ALL, "classified": columns, "masks": masks},
        "found": {"rules": ALL, "masks": detectors},
        "redacting": {"rules": ALL, "unmaskable": "Redact", "masks": [
            {"columns": ["orders.customers.email"], "method": "Redact"},
        ]},
        "capital": {"rules": ALL, "masks": [
            {"columns": ["orders.accounts.Email", "orders.accounts.Gr\u00f6\u00dfe"], "method": "Redact"},
        ]},
        "asking": {"rules": [*ALL, ASKING], "masks": detectors},
    }  # fmt: skip
    with gateway(tmp_path_factory.mktemp("gateway"), server, targets) as made:
        yield made
        seen = every_byte(made.running.evidence)
        assert not any(canary in seen for canary in CANARIES)
        assert CARD.encode() not in seen


def test_a_classified_column_is_masked_whatever_it_is_called(masked: Gateway) -> None:
    shown = [(1, "[Email]"), (2, "[Email]")]
    for statement in (
        "SELECT id, email FROM customers ORDER BY id",
        "SELECT c.id, c.email AS name FROM customers AS c ORDER BY c.id",
        "SELECT `id`, EMAIL score FROM `orders`.`customers` ORDER BY 1 + id",
    ):
        assert masked.run(statement) == shown, statement
    assert masked.run("SELECT * FROM customers WHERE id = 1") == [(1, "Ada", "[Email]", None, 7)]


def test_rows_of_a_cursor_are_masked(masked: Gateway) -> None:
    for statement in ("SELECT * FROM customers WHERE id = ?", "SELECT id, email AS id2 FROM customers WHERE id = ?"):
        with masked.connect() as agent:
            number, _, _ = prepare(agent, statement)
            assert execute(agent, number, 1, flags=1) == []
            ((row,), _) = fetch(agent, number, 1)
            assert b"[Email]" in row
            assert b"ada@" not in row
    with masked.at("found").connect() as agent:
        number, _, _ = prepare(agent, "SELECT word FROM cards")
        assert execute(agent, number, flags=1) == []
        ((row,), _) = fetch(agent, number, 1)
        assert row == b"\0\0\x15pay [PaymentCard] now"


def test_the_binary_format_is_masked_as_the_text_format_is(masked: Gateway) -> None:
    with masked.connect() as agent:
        number, _, _ = prepare(agent, "SELECT id, email, born, score FROM customers WHERE id = ?")
        (row,) = execute(agent, number, 1)
        # The day is NULL; the label stands for the text.
        assert row == b"\0" + bytes([1 << 4]) + (1).to_bytes(4, "little") + b"\x07[Email]" + (7).to_bytes(4, "little")


@pytest.mark.parametrize(
    "case", [json.loads(line) for line in CORPUS.read_text().splitlines()], ids=lambda case: case["sql"][:60]
)
def test_no_statement_shows_a_masked_value(masked: Gateway, case: dict[str, str]) -> None:
    with masked.connect(autocommit=False) as agent, agent.cursor() as cursor:
        shown = ""
        with contextlib.suppress(pymysql.err.MySQLError):
            cursor.execute(case["sql"])
            shown = str(cursor.fetchall())
            assert not case["why"]
        agent.rollback()
    assert "@example" not in shown.lower()


def test_a_view_is_not_read_where_columns_are_masked(masked: Gateway) -> None:
    with pytest.raises(pymysql.err.MySQLError, match="is a view"):
        masked.run("SELECT contact FROM people")


def test_an_error_of_the_server_quotes_no_masked_value(masked: Gateway) -> None:
    with pytest.raises(pymysql.err.IntegrityError) as caught:
        masked.run("UPDATE customers SET email = 'ada@' 'example.com' WHERE id = 2")
    assert caught.value.args == (1062, "The server's message is not shown, because it may quote a masked value.")


def test_what_code_shows_is_not_known_where_columns_are_masked(masked: Gateway, server: Server) -> None:
    server.run("CREATE PROCEDURE orders.show_all() SELECT email AS e FROM orders.customers")
    with pytest.raises(pymysql.err.MySQLError, match="unmaskable"):
        masked.run("CALL show_all()")


def test_detectors_find_values_in_both_formats(masked: Gateway) -> None:
    found = masked.at("found")
    (row,) = found.run("SELECT number, word, raw, doc FROM cards")
    assert row[:3] == (None, "pay [PaymentCard] now", b"[PaymentCard]")
    assert json.loads(row[3]) == {"n": "[PaymentCard]"}
    with found.connect() as agent:
        number, _, _ = prepare(agent, "SELECT number, word, raw, doc FROM cards WHERE id = ?")
        (raw,) = execute(agent, number, 1)
        assert CARD.encode() not in raw
        assert int(CARD).to_bytes(8, "little") not in raw
        assert raw[1] & 1 << 2  # the number is NULL
    assert found.run("SELECT email FROM customers ORDER BY id") == [("[Email]",), ("[Email]",)]
    assert found.run("SELECT contact FROM people WHERE id = 1") == [("[Email]",)]


@pytest.mark.parametrize("statement", ["SELECT * FROM accounts", "SELECT id, EMAIL, `GR\u00d6\u00dfE` FROM accounts"])
def test_letters_of_a_columns_name_may_be_large_or_small_in_policy_and_table(masked: Gateway, statement: str) -> None:
    assert masked.at("capital").run(statement) == [(1, "[masked]", None)]
    with pytest.raises(pymysql.err.MySQLError, match="unmaskable"):
        masked.at("capital").run("SELECT `gr\u00f6\u00dfe` + 1 FROM accounts")


def test_redact_shows_a_view_with_every_value_null(masked: Gateway) -> None:
    redacting = masked.at("redacting")
    for statement in ("SELECT * FROM people", "SELECT id, contact AS score FROM people LIMIT 2"):
        assert redacting.run(statement) == [(None, None), (None, None)]
        with redacting.connect() as agent:
            number, _, _ = prepare(agent, statement)
            assert execute(agent, number) == [b"\0\x0c", b"\0\x0c"]
    assert redacting.run("SELECT id, email FROM customers WHERE id = 1") == [(1, "[masked]")]


@pytest.mark.parametrize(
    "statement",
    ["SELECT id FROM people WHERE contact LIKE 'a%'", "SELECT id FROM people ORDER BY contact",
     "SELECT contact AS x FROM people ORDER BY x", "SELECT contact FROM people ORDER BY 1",
     "SELECT DISTINCT contact FROM people", "SELECT contact, count(*) FROM people GROUP BY contact",
     "SELECT upper(contact) FROM people", "SELECT p.id FROM people p JOIN people q ON p.contact < q.contact",
     "SELECT p.contact FROM people p, orders", "SELECT x FROM (SELECT contact AS x FROM people) d",
     "SELECT contact FROM people UNION ALL SELECT note FROM orders", "EXPLAIN SELECT contact FROM people",
     "SELECT 1; SELECT contact FROM people", "CALL p()", "SELECT exp(ascii(email) * 8) FROM customers",
     "SELECT * FROM (SELECT * FROM customers) d", "INSERT INTO invoices (id, note) SELECT id, contact FROM people"],
    ids=lambda statement: statement[:50],
)  # fmt: skip
def test_redact_is_deny_where_more_than_values_would_tell(masked: Gateway, statement: str) -> None:
    with pytest.raises(pymysql.err.MySQLError, match="unmaskable"):
        masked.at("redacting").run(statement, client_flag=CLIENT.MULTI_STATEMENTS)


def test_redact_nulls_what_the_server_names_no_table_of(masked: Gateway, server: Server) -> None:
    """MySQL names none for what a ROLLUP groups by; MariaDB does."""
    statement = "SELECT * FROM customers GROUP BY id WITH ROLLUP"
    rows = masked.at("redacting").run("SET sql_mode = ''", statement)
    assert [row[1:3] for row in rows] == [("Ada", "[masked]"), ("Bob", "[masked]"), ("Bob", "[masked]")]
    assert [row[0] for row in rows] == ([1, 2, None] if server.name == "mariadb" else [None] * 3)
    if server.name == "mysql":
        with pytest.raises(pymysql.err.MySQLError, match="unmaskable"):
            masked.run("SET sql_mode = ''", statement)


def test_an_expression_tells_of_a_value_by_its_error_even_where_it_shows_none(server: Server) -> None:
    """Why what is computed from a masked column is refused and not redacted."""
    asked = "SELECT exp(if(email LIKE '{}%', 1000, 1)) IS NULL FROM orders.customers WHERE id = 1"
    assert server.run(asked.format("b")) == [(0,)]
    with pytest.raises(pymysql.err.MySQLError) as caught:
        server.run(asked.format("a"))
    assert caught.value.args[0] == 1690


def test_people_see_the_parameters_of_what_waits_masked(masked: Gateway) -> None:
    person = Person(masked.running)
    with masked.at("asking").connect() as agent:
        number, _, _ = prepare(agent, "UPDATE invoices SET note = ? WHERE id = ?")
        with pytest.raises(pymysql.err.MySQLError, match="waits for approval"):
            execute(agent, number, f"card {CARD}", 3)
    _, request = person.next(len(person.requests()))
    assert request["text"] == (
        "UPDATE invoices SET note = ? WHERE id = ?\n-- ?1 = 'card [PaymentCard]'\n-- ?2 = '3'"
    )  # fmt: skip


def test_what_is_recorded_is_what_the_client_was_shown(masked: Gateway) -> None:
    """In both formats, with masks of both kinds: the rows of the recording are those of the client's own packets."""
    statement = "SELECT id, name, email, born, score FROM customers WHERE id = "
    for target, shown in (
        ("columns", ("1", "Ada", "[Email]", None, "7")),
        ("found", ("1", "Ada", "[Email]", "1815-12-10", "7")),
    ):
        before = len(read_rows(masked.running.evidence))
        with masked.at(target).connect() as agent:
            agent._execute_command(0x03, statement + "1")
            text = [agent._read_packet().get_all_data() for _ in range(9)][7]
            number, _, _ = prepare(agent, statement + "?")
            (binary,) = execute(agent, number, 1)
        columns = [m.Column("", "", "", "", "", 0, kind, 0) for kind in (3, 253, 253, 10, 3)]
        cells = [None if cell is None else cell.decode() for cell in rows.text_cells(text, 5)]
        values = zip(rows.binary_cells(binary, columns), columns, strict=True)
        assert tuple(cells) == shown
        assert tuple(None if one is None else rows.shown(one, column).decode() for one, column in values) == shown
        assert read_rows(masked.running.evidence)[before:] == [shown] * 2
