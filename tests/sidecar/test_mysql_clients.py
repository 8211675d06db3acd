"""Clients as agents use them, through the gateway: command lines, Connector/J and /Python, asyncmy, SQLAlchemy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncmy
import mysql.connector
import pytest
import sqlalchemy as sa
from fix_mysql import Server
from my_gateway import RULES, Gateway, gateway
from sqlalchemy.ext.asyncio import create_async_engine
from waiting import Person

from chaperone_tools import connector_j
from chaperone_tools.mysql_servers import command, server

pytestmark = pytest.mark.peer

CLIENT_TIMEOUT_S = 60
COMPILED_S = 50  # for Java to have compiled the program and asked; 3 s alone
SUPPORT = Path(__file__).parents[1] / "support"
REFUSED = "1142 refused by Chaperone: No rule allows billing-agent to read on orders.secrets"
ASKING = {
    "name": "asking", "action": "RequireApproval", "match": {"effects": ["modify"], "objects": ["orders.customers"]},
    "approval": {"groups": ["leads"], "count": 1, "wait": "30s", "validFor": "5m"},
}  # fmt: skip


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def database(request: pytest.FixtureRequest) -> Iterator[Server]:
    found: Server = request.getfixturevalue(request.param)
    found.fill()  # without what other tests have made
    yield found
    found.fill()  # what the clients have changed


@pytest.fixture(scope="module")
def served(database: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    targets: dict[str, dict[str, Any]] = {"usual": {"rules": RULES}, "asking": {"rules": [*RULES, ASKING]}}
    with gateway(tmp_path_factory.mktemp("gateway"), database, targets) as made:
        yield made


@pytest.mark.parametrize("program", ["mariadb", "mysql"])
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_the_command_line_client(served: Gateway, program: str, tls: bool) -> None:
    options = {
        ("mariadb", True): ["--ssl", "--skip-ssl-verify-server-cert"],
        ("mariadb", False): ["--skip-ssl"],
        ("mysql", True): ["--ssl-mode=REQUIRED"],
        ("mysql", False): ["--ssl-mode=DISABLED"],
    }[program, tls]
    statements = "SELECT customer FROM orders WHERE id = 4; SELECT * FROM secrets; SELECT 40 + 2;"
    done = subprocess.run(
        [*command(server(program), program), "--no-defaults", "--host=127.0.0.1", f"--port={served.port}",
         "--user=agent", "--password=anything", *options, "--force", "--batch", "--skip-column-names", "orders"],
        input=statements, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.stdout == "customer 4\n42\n", done.stderr
    assert "ERROR 1142 (42000) at line 1: refused by Chaperone: No rule allows billing-agent to read" in done.stderr


def test_connector_j(served: Gateway, database: Server) -> None:
    running = subprocess.Popen(
        ["java", "-XX:TieredStopAtLevel=1", "-cp", connector_j.jar(), SUPPORT / "ConnectorJ.java",
         str(served.port), str(served.at("asking").port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with running:
        person = Person(served.running)
        ends = time.monotonic() + COMPILED_S
        while not person.requests():
            assert running.poll() is None and time.monotonic() < ends, "it asks for nothing"
            time.sleep(0.05)
        name, request = person.next()
        assert request["text"] == "UPDATE customers SET name = ? WHERE id = ?\n-- ?1 = 'Ada L.'\n-- ?2 = '1'"
        person.decide(name, "approve")
        output, errors = running.communicate(timeout=CLIENT_TIMEOUT_S)
    told = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    assert len(told) == 6 * 9 + 2 + 3, output + errors
    expected = {
        "rows": "899", "streamed": "1000", "rolled back": "50", "updated": "8", "sent ahead": "1", "session": "true",
        "catalog": "5 1 0", "refused": f"error {REFUSED}", "too long": "error 0 Statement cancelled", "afterwards": "1",
    }  # fmt: skip
    for step, result in told.items():
        _, _, what = step.partition(" ")
        if what in expected:
            assert result.startswith(expected[what]), (step, result)
    assert "is utf8mb4" in told["opened with characterEncoding=latin1"]
    assert "sql_mode" in told["opened with sessionVariables=sql_mode='ANSI_QUOTES'"]
    assert told["held"] == "1"
    assert database.run("SELECT name FROM orders.customers WHERE id = 1") == [("Ada L.",)]


@pytest.mark.parametrize("form", ["pure", "c"])
def test_connector_python(served: Gateway, form: str) -> None:
    done = subprocess.run(
        [sys.executable, SUPPORT / "my_connector.py", str(served.port), form],
        capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:4] == ["rows: [(4, 'customer 4')]", "prepared: 899", "buffered: 1000", "batch: 50"], done.stderr
    assert [line.startswith(f"refused: {REFUSED}") for line in lines[4:6]] == [True, True]
    assert lines[6:] == ["afterwards: [(42,)]"], done.stderr


def test_a_client_that_compresses_unasked_is_told_so(served: Gateway) -> None:
    with pytest.raises(mysql.connector.Error, match="turn compression off") as caught:
        mysql.connector.connect(host="127.0.0.1", port=served.port, user="agent", compress=True, use_pure=True)
    assert caught.value.errno == 1835


async def test_asyncmy(served: Gateway) -> None:
    connection = await asyncmy.connect(host="127.0.0.1", port=served.port, user="agent", db="orders")
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT id, customer FROM orders WHERE id = %s", (5,))
        assert await cursor.fetchall() == ((5, "customer 5"),)
        with pytest.raises(asyncmy.errors.OperationalError) as caught:
            await cursor.execute("DROP TABLE orders")
        assert caught.value.args[0] == 1142
        await cursor.execute("SELECT 1")
    connection.close()


@pytest.mark.parametrize("driver", ["pymysql", "mysqlconnector"])
def test_sqlalchemy(served: Gateway, database: Server, driver: str) -> None:
    engine = sa.create_engine(f"mysql+{driver}://agent@127.0.0.1:{served.port}/orders?{_PURE.get(driver, '')}")
    orders = sa.Table("orders", sa.MetaData(), autoload_with=engine)
    assert [column.name for column in orders.columns] == ["id", "customer", "total", "made", "note"]
    with engine.begin() as connection:
        assert connection.dialect.is_mariadb == (database.name == "mariadb")
        assert connection.execute(sa.select(orders.c.customer).where(orders.c.id == 6)).scalar_one() == "customer 6"
    with engine.connect() as connection, pytest.raises(sa.exc.DatabaseError, match=r"orders\.secrets"):
        connection.execute(sa.text("SELECT * FROM secrets"))
    engine.dispose()


_PURE = {"mysqlconnector": "use_pure=true"}


async def test_sqlalchemy_over_asyncmy(served: Gateway) -> None:
    engine = create_async_engine(f"mysql+asyncmy://agent@127.0.0.1:{served.port}/orders")
    async with engine.begin() as connection:
        found = [row.id async for row in await connection.stream(sa.text("SELECT id FROM orders ORDER BY id"))]
        assert found == list(range(1, 1001))
        with pytest.raises(sa.exc.DatabaseError, match=r"orders\.secrets"):
            await connection.execute(sa.text("SELECT * FROM secrets"))
        assert (await connection.execute(sa.text("SELECT 42"))).scalar_one() == 42
    await engine.dispose()
