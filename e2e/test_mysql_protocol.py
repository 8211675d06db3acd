"""MySQL in a real pod: what an agent's clients see, what people decide, what an auditor finds, how it is cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from javas import java, make_java, put_java
from servers import CARD, DOWN, FORGED, SHOP, Servers
from stage import Kubectl, Object, Pod, Ran, Team, chaperone, replayed, until
from voting import LEADS, Held, may_vote, pending, person

from chaperone_tools import connector_j

pytestmark = pytest.mark.cluster

RULES: tuple[Object, ...] = (
    {"name": "look", "action": "Allow",
     "match": {"effects": ["read"], "objects": ["orders.orders", "orders.customers"]}},
    {"name": "session", "action": "Allow", "match": {"effects": ["session", "transaction"]}},
    {"name": "catalog", "action": "Allow", "match": {"effects": ["read"], "objects": ["information_schema.*"]}},
    {"name": "settle", "action": "RequireApproval",
     "match": {"effects": ["read", "modify"], "objects": ["orders.invoices"]},
     "approval": {"groups": [LEADS], "wait": "60s", "validFor": "2m"}},
    {"name": "never", "action": "Deny", "match": {"effects": ["destroy", "privilege"]},
     "message": "Ask the DBA on call."},
)  # fmt: skip
MOST_ROWS = 50
MASKED = "SELECT o.note, c.email FROM orders o JOIN customers c ON c.id = o.id WHERE o.id = "
REFUSED = "DROP TABLE orders"
LONG = "SELECT a.id FROM orders a, orders b, orders c, orders d"  # 81 rows
AFTER = "SELECT item FROM orders WHERE id = 2"
CA = "/etc/chaperone-trust/ca.crt"
MASKS = [{"detectors": ["PaymentCard"], "method": "Redact"}]
CONNECT = f"""
import pymysql
def connect():
    return pymysql.connect(host="{SHOP}", database="orders", user="anyone", autocommit=True,
                           ssl_ca="{CA}", ssl_verify_identity=True)
"""
# The four steps with one driver each: rows, or the error. Connector/Python prepares the first, so its rows are binary.
DRIVERS = f"""
import asyncio, json, ssl, sys
if "c" in sys.argv[2:]:
    import _mysql_connector  # before the other libssl
WHERE = dict(host="{SHOP}", user="anyone")
def steps(run):
    found = []
    for statement, values in (("{MASKED}%s", (1,)), ("{REFUSED}", ()), ("{LONG}", ()), ("{AFTER}", ())):
        try:
            found.append([list(row) for row in run(statement, values)])
        except Exception as error:
            error = getattr(error, "orig", error)
            found.append(getattr(error, "errno", None) or error.args[0])
    print(json.dumps(found))
def pymysql_():
    import pymysql
    connection = pymysql.connect(**WHERE, database="orders", ssl_ca="{CA}", ssl_verify_identity=True)
    def run(statement, values):
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()
    steps(run)
def connector(form):
    import mysql.connector
    connection = mysql.connector.connect(
        **WHERE, database="orders", ssl_ca="{CA}", ssl_verify_identity=True, use_pure=form == "pure")
    def run(statement, values):
        with connection.cursor(prepared=bool(values)) as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()
    steps(run)
def asyncmy_():
    import asyncmy
    loop = asyncio.new_event_loop()
    verified = ssl.create_default_context(cafile="{CA}")
    connection = loop.run_until_complete(asyncmy.connect(**WHERE, db="orders", ssl=verified))
    async def asked(statement, values):
        async with connection.cursor() as cursor:
            await cursor.execute(statement, values or None)
            return await cursor.fetchall()
    steps(lambda statement, values: loop.run_until_complete(asked(statement, values)))
def sqlalchemy_():
    import sqlalchemy
    engine = sqlalchemy.create_engine("mysql+pymysql://anyone@{SHOP}/orders", connect_args=dict(
        ssl_ca="{CA}", ssl_verify_identity=True))
    with engine.connect() as connection:
        steps(lambda statement, values: connection.exec_driver_sql(statement, values).fetchall())
dict(pymysql=pymysql_, connector=connector, asyncmy=asyncmy_, sqlalchemy=sqlalchemy_)[sys.argv[1]](*sys.argv[2:])
"""
# What a server says first; the gateway takes a connection to anywhere, and sends nothing on.
GREETING = """
import socket, sys
with socket.create_connection((sys.argv[1], 3306), timeout=float(sys.argv[2])) as connection:
    print(connection.recv(256))
"""


@pytest.fixture(scope="module")
def agent(team: Team, servers: Servers) -> Pod:
    """An agent that may look, has to ask before it settles, and whose answers are masked and kept."""
    team.identity(evidence={"results": "Full"})
    team.policy(
        *RULES, targets=("e2e-shop", "e2e-down", "e2e-forged"), masks=MASKS, limits={"rowsPerCommand": MOST_ROWS}
    )
    may_vote(team)
    return team.pod()


def ask(agent: Pod, statement: str) -> Ran:
    """What Debian's `mariadb` says, as one types it: no user, no password, and the server's certificate checked."""
    return agent.run("mariadb", f"--host={SHOP}", "--batch", "--skip-column-names", "orders", f"--execute={statement}")


def test_what_policy_allows_is_done_without_a_password_and_masked(agent: Pod):
    done = ask(agent, "SELECT id, item, note FROM orders WHERE id < 3 ORDER BY id")
    assert (done.status, done.out) == (0, "1\tengine\tpaid with [PaymentCard]\n2\tcompiler\t\n"), done.err
    done = ask(agent, "SELECT name, email FROM customers WHERE id = 1")
    assert done.out == "Ada\t[Email]\n", done.err
    done = agent.run("env", "SSL_CERT_FILE=/dev/null", "mariadb", f"--host={SHOP}", "--execute=SELECT 1")
    assert done.status == 1 and "TLS/SSL error" in done.err  # so what is above was verified by the pod's CA


def test_what_is_refused_names_the_rule_and_changes_nothing(agent: Pod, servers: Servers):
    done = ask(agent, "DROP TABLE orders")
    assert done.status == 1
    assert "ERROR 1142 (42000)" in done.err
    assert "Ask the DBA on call." in done.err and 'rule "never"' in done.err
    assert servers.query("SELECT count(*) FROM orders.orders") == "3"
    done = ask(agent, "SELECT value FROM secrets")
    assert "Ask for a rule with effects [read] and objects [orders.secrets]" in done.err
    assert "not for agents" not in done.out + done.err


@pytest.mark.parametrize(
    "client",
    ["pymysql", "asyncmy", "sqlalchemy", "connector pure", "connector c"],
    ids=lambda one: one.replace(" ", "-"),
)
def test_each_driver_gets_masked_rows_native_refusals_and_goes_on(agent: Pod, client: str):
    done = agent.python(DRIVERS, *client.split())
    assert done.status == 0, done.err
    assert json.loads(done.out) == [[["paid with [PaymentCard]", "[Email]"]], 1142, 1226, [["compiler"]]]


def test_connector_j_gets_masked_rows_native_refusals_and_goes_on(
    agent: Pod, tmp_path_factory: pytest.TempPathFactory
):  # fmt: skip
    put_java(agent, make_java(tmp_path_factory.mktemp("java"), [connector_j.jar()]))
    done = agent.run(*java("Rows", SHOP, f"{MASKED}?", REFUSED, LONG, AFTER))
    assert done.out.splitlines() == [
        "paid with [PaymentCard]|[Email]|", "error 1142", "error 1226", "compiler|"
    ], done.err  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ("mariadb", "--quick"),
        ("mysql", "--quick", "--ssl-mode=VERIFY_IDENTITY", f"--ssl-ca={CA}", "--user=anyone"),
    ],
    ids=["mariadb", "mysql"],
)
def test_each_command_line_gets_masked_rows_native_refusals_and_goes_on(agent: Pod, command: tuple[str, ...]):
    typed = f"{MASKED}1; {REFUSED}; {LONG}; {AFTER};"
    done = agent.run(*command, f"--host={SHOP}", "--force", "--batch", "--skip-column-names", "orders", stdin=typed)
    lines = done.out.splitlines()
    assert (lines[0], lines[-1]) == ("paid with [PaymentCard]\t[Email]", "compiler"), done.err
    assert len(lines) <= 2 + MOST_ROWS
    assert [line.split(":")[0] for line in done.err.splitlines() if line.startswith("ERROR")] == [
        "ERROR 1142 (42000) at line 1",
        "ERROR 1226 (42000) at line 1",
    ], done.err


@pytest.mark.parametrize(
    ("host", "port", "told"),
    [(DOWN, 3307, "cannot be reached"), (FORGED, 3306, "certificate that is not accepted")],
    ids=["down", "forged"],
)
def test_what_is_wrong_with_the_server_is_told_natively(agent: Pod, host: str, port: int, told: str):
    done = agent.run("mariadb", f"--host={host}", f"--port={port}", "--execute=SELECT 1")
    assert done.status == 1
    assert told in done.err


def test_drivers_prepare_and_recover_from_a_refusal_in_a_transaction(agent: Pod):
    program = (
        CONNECT
        + """
with connect() as connection, connection.cursor() as cursor:
    connection.begin()
    cursor.execute("SELECT item FROM orders WHERE id = %s", (2,))
    print(cursor.fetchone()[0])
    try:
        cursor.execute("SELECT value FROM secrets")
    except pymysql.err.OperationalError as error:
        print(error.args[0])
    cursor.execute("SELECT count(*) FROM orders")
    print(cursor.fetchone()[0])
    connection.commit()
"""
    )
    done = agent.python(program)
    assert done.out.split() == ["compiler", "1142", "3"], done.err


def test_what_a_lead_approves_runs_and_what_one_denies_does_not(
    kubectl: Kubectl, team: Team, agent: Pod, servers: Servers, tmp_path: Path
):
    lead = person(kubectl, tmp_path, "lead-1", LEADS)
    settle, paid = "UPDATE invoices SET paid = true WHERE id = 2", "SELECT paid FROM orders.invoices WHERE id = 2"
    for decide, wanted in (("deny", "0"), ("approve", "1")):
        held = Held(lambda: ask(agent, settle))
        name = pending(kubectl, team)
        assert servers.query(paid) == "0"
        voted = chaperone(lead, decide, name, "-n", team.namespace, "--yes", "--reason", "the test says so")
        assert voted.status == 0, voted.err
        assert settle in voted.out
        done = held.end()
        assert (done.status, servers.query(paid)) == (int(decide == "deny"), wanted), done.err
        assert ("Denied by lead-1 (the test says so)" in done.err) == (decide == "deny")


def test_prepared_statement_waits_with_its_parameters(
    kubectl: Kubectl, team: Team, agent: Pod, servers: Servers, tmp_path: Path
):
    program = f"""
import mysql.connector
connection = mysql.connector.connect(host="{SHOP}", user="anyone", database="orders", ssl_ca="{CA}", autocommit=True)
with connection.cursor(prepared=True) as cursor:
    cursor.execute("UPDATE invoices SET paid = true WHERE id = %s", (3,))
    print(cursor.rowcount)
"""
    held = Held(lambda: agent.python(program))
    voted = chaperone(
        person(kubectl, tmp_path, "lead-1", LEADS), "approve", pending(kubectl, team), "-n", team.namespace, "--yes"
    )
    assert "WHERE id = ?" in voted.out and "-- ?1 = '3'" in voted.out, voted.err
    done = held.end()
    assert (done.out, servers.query("SELECT paid FROM orders.invoices WHERE id = 3")) == ("1\n", "1"), done.err


def test_auditor_lists_and_replays_what_was_done_and_shown(agent: Pod, team: Team, kubectl: Kubectl):
    text = "SELECT id, note FROM orders WHERE id = 1"
    assert ask(agent, text).status == 0
    until("the command is listed", lambda: bool(team.commands(command=text)))
    command = team.commands(command=text)[-1]
    assert (command["spec"]["decision"], command["spec"]["rule"]) == ("Allow", "look")
    session = command["spec"]["session"]
    listed = kubectl("get", "sessions", session, f"--namespace={team.namespace}", "--no-headers").split()
    assert listed[1:4] == ["billing", "e2e-shop", "MySQL"]
    shown = replayed(team, session, text, "paid with [PaymentCard]")
    assert CARD not in shown + kubectl("get", "sessions,commands", "-ojson", f"--namespace={team.namespace}")


def test_nothing_goes_around_the_gateway(agent: Pod, servers: Servers, free_pod: Pod):
    (address, *_) = servers.database.addresses
    assert "MariaDB" in free_pod.run("python3", "-c", GREETING, address, "30").out  # it does answer
    done = agent.run("python3", "-c", GREETING, address, "3")
    assert "MariaDB" not in done.out, done.out


def test_suspended_identity_is_cut_off_with_a_word_and_comes_back(agent: Pod, team: Team):
    one = "SELECT 1 FROM orders WHERE id = 1"
    typed = f"(echo '{one};'; until test -e /tmp/go; do sleep 0.1; done; echo '{one};')"
    client = f"mariadb --host={SHOP} --batch --skip-column-names --unbuffered --skip-reconnect orders"
    live = Held(lambda: agent.run("sh", "-c", f"{typed} | {client} | tee /tmp/said"))
    until("the session is open", lambda: agent.run("cat", "/tmp/said").out == "1\n")
    team.identity(suspended=True)
    until("new sessions are told", lambda: 'AgentIdentity "billing" is suspended by' in ask(agent, one).err)
    agent.run("touch", "/tmp/go")
    done = live.end()
    assert done.out == "1\n"
    assert "ERROR 1142 (42000)" in done.err and 'AgentIdentity "billing" is suspended by' in done.err, done.err
    team.identity(evidence={"results": "Full"})
    until("it works again", lambda: ask(agent, one).out == "1\n")
