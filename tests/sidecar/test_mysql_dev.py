"""Agents of MariaDB and MySQL through `chaperone dev`: what passes, what is refused, and what is recorded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from fix_mysql import Server
from gated_relay import GatedRelay
from my_gateway import RULES, Gateway, execute, fetch, gateway, prepare
from pki import Authority
from ports import free_port
from pymysql.constants import CLIENT
from recordings import every_byte, read_rows
from waiting import Person

from chaperone_evidence import record

pytestmark = pytest.mark.peer

REFUSED = 1142


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


HURRY = {
    "name": "hurry", "action": "RequireApproval", "match": {"effects": ["modify"], "objects": ["orders.customers"]},
    "approval": {"groups": ["leads"], "count": 1, "wait": "1s", "validFor": "5m"},
}  # fmt: skip


@pytest.fixture(scope="module")
def relay(server: Server) -> Iterator[GatedRelay]:
    with GatedRelay(server.port) as made:
        yield made


@pytest.fixture(scope="module")
def served(server: Server, relay: GatedRelay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway at target `usual`, with others that have something wrong or a policy of their own."""
    hostile = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_hostile, args=(hostile,), daemon=True).start()
    targets: dict[str, dict[str, Any]] = {
        "usual": {},
        "other-login": {"user": "other"},
        "unverified": {"user": "fresh", "tls_mode": "Require"},
        "down": {"port": free_port()},
        "certificate": {"ca_pem": Authority().pem},
        "password": {"password": "wrong"},
        "nowhere": {"database": "nowhere"},
        "limited": {"limits": {"rowsPerCommand": 10}},
        "timed": {"limits": {"commandDuration": "3s"}},
        "asking": {"rules": [*RULES, HURRY]},
        "relayed": {"port": relay.port},
        "hostile": {"port": hostile.getsockname()[1], "tls_mode": "Disable"},
    }
    with hostile, gateway(tmp_path_factory.mktemp("gateway"), server, targets) as made:
        yield made


def _refused(connection: pymysql.connections.Connection[Any], statement: str) -> str:
    """The text of the refusal; the session must be in step afterwards."""
    with pytest.raises(pymysql.err.MySQLError) as caught, connection.cursor() as cursor:
        cursor.execute(statement)
    assert caught.value.args[0] == REFUSED, caught.value
    with connection.cursor() as cursor:
        cursor.execute("SELECT 41 + 1")
        assert cursor.fetchall() == ((42,),)
    return str(caught.value.args[1])


def test_what_policy_allows_runs_as_it_does_without_a_gateway(served: Gateway, server: Server) -> None:
    statement = "SELECT id, customer, total, made, note FROM orders WHERE id IN (1, 7) ORDER BY id"
    assert served.run(statement) == server.run("USE orders", statement)


def test_the_client_sees_the_server_that_there_is(served: Gateway, server: Server) -> None:
    with served.connect() as through, server.admin() as direct:
        assert through.get_server_info() == direct.get_server_info()


def test_refusals_are_native_name_the_rule_and_keep_the_session_in_step(served: Gateway) -> None:
    with served.connect() as agent:
        assert 'rule "never" of policy "agents/on-usual"' in _refused(agent, "DROP TABLE invoices")
        assert "orders.secrets" in _refused(agent, "SELECT * FROM secrets")
        assert "/*!" in _refused(agent, "SELECT 1 /*! FROM secrets */")
        assert "sql_mode" in _refused(agent, "SET sql_mode = 'ANSI_QUOTES'")
        assert "utf8mb4" in _refused(agent, "SET NAMES gbk")
        _refused(agent, "SELECT * INTO OUTFILE '/tmp/x' FROM orders")
        _refused(agent, "SELECT load_file('/etc/passwd')")
        _refused(agent, "CALL p()")
        _refused(agent, "PREPARE s FROM 'SELECT * FROM secrets'")
        _refused(agent, "SET GLOBAL max_connections = 1")


def test_several_statements_are_decided_as_a_whole(served: Gateway, server: Server) -> None:
    with served.connect(client_flag=CLIENT.MULTI_STATEMENTS) as agent:
        _refused(agent, "UPDATE invoices SET note = 'half' WHERE id = 9; SELECT * FROM secrets")
        with agent.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT id FROM orders WHERE id = 3; UPDATE invoices SET note = 'b' WHERE id = 8")
            assert cursor.fetchall() == ((1,),)
            assert cursor.nextset()
            assert cursor.fetchall() == ((3,),)
            assert cursor.nextset()
            assert cursor.rowcount == 1
            assert not cursor.nextset()
    assert server.run("SELECT note FROM orders.invoices WHERE id IN (8, 9) ORDER BY id") == [("b",), (None,)]


def test_the_session_follows_use_and_init_db(served: Gateway) -> None:
    with served.connect() as agent, agent.cursor() as cursor:
        cursor.execute("USE mysql")
        with pytest.raises(pymysql.err.MySQLError, match=r"mysql\.orders"):
            cursor.execute("SELECT * FROM orders")
        agent.select_db("orders")
        cursor.execute("SELECT count(*) FROM orders")
        assert cursor.fetchall() == ((1000,),)


def test_prepared_statements_in_the_binary_format(served: Gateway) -> None:
    with served.connect() as agent:
        number, columns, params = prepare(
            agent, "SELECT id, customer FROM orders WHERE id = ? OR customer = ? ORDER BY id"
        )
        assert (columns, params) == (2, 2)
        assert execute(agent, number, 3, "customer 5") == [
            b"\0\0" + (3).to_bytes(4, "little") + b"\x0acustomer 3",
            b"\0\0" + (5).to_bytes(4, "little") + b"\x0acustomer 5",
        ]
        agent._execute_command(0x19, number.to_bytes(4, "little"))
        with pytest.raises(pymysql.err.MySQLError) as gone:
            execute(agent, number, 3, "x")
        assert gone.value.args[0] == 1243


def test_rows_of_a_cursor_are_fetched_a_few_at_a_time(served: Gateway) -> None:
    before = len(served.running.records())
    with served.connect() as agent:
        number, _, _ = prepare(agent, "SELECT id FROM orders WHERE id < ? ORDER BY id")
        with pytest.raises(pymysql.err.MySQLError) as none:
            fetch(agent, number, 2)
        assert none.value.args[0] == 1421
        assert execute(agent, number, 6, flags=1) == []
        rows, is_last = fetch(agent, number, 3)
        assert ([row[2] for row in rows], is_last) == ([1, 2, 3], False)
        with agent.cursor() as cursor:  # something else meanwhile
            cursor.execute("SELECT 41 + 1")
            assert cursor.fetchall() == ((42,),)
        rows, is_last = fetch(agent, number, 9)
        assert ([row[2] for row in rows], is_last) == ([4, 5], True)
        agent._execute_command(0x1A, number.to_bytes(4, "little"))
        assert agent._read_packet().is_ok_packet()
        with pytest.raises(pymysql.err.MySQLError):
            fetch(agent, number, 1)
        # Another statement: MySQL 9.7 answers the same one without its rows, once it has had a cursor.
        other, _, _ = prepare(agent, "SELECT id FROM orders WHERE id < ? ORDER BY id")
        assert len(execute(agent, other, 3)) == 2
    made = served.running.records()[before:]
    intents = {one.command: one.kind for one in made if isinstance(one, record.CommandIntent)}
    outcomes = [(intents[one.command], one.status, one.rows) for one in made if isinstance(one, record.CommandOutcome)]
    assert [one for one in outcomes if one[0] == "fetch"] == [("fetch", "ok", 3), ("fetch", "ok", 2)]


def test_a_cursor_is_no_way_past_a_limit_of_rows(served: Gateway) -> None:
    with served.at("limited").connect() as agent:
        number, _, _ = prepare(agent, "SELECT id FROM orders")
        assert execute(agent, number, flags=1) == []
        assert len(fetch(agent, number, 8)[0]) == 8
        with pytest.raises(pymysql.err.MySQLError, match="rowsPerCommand"):
            fetch(agent, number, 8)


def test_types_of_a_refused_execution_are_not_those_of_the_next(served: Gateway) -> None:
    """The server has not seen them: an execution that names none would be shown otherwise than it runs."""
    with served.at("asking").connect() as agent:
        number, _, _ = prepare(agent, "UPDATE customers SET score = ? WHERE id = 1")
        with pytest.raises(pymysql.err.MySQLError, match="waits for approval"):
            execute(agent, number, 5)
        agent._execute_command(0x17, number.to_bytes(4, "little") + b"\0\1\0\0\0" + b"\0\0" + bytes(8))
        with pytest.raises(pymysql.err.MySQLError, match="of which types"):
            agent._read_packet()


def test_data_that_is_sent_ahead_of_an_execution_is_part_of_it(served: Gateway, server: Server) -> None:
    with served.connect() as agent:
        number, _, _ = prepare(agent, "UPDATE invoices SET note = ? WHERE id = 7")
        for piece in (b"long ", b"data"):
            agent._execute_command(0x18, number.to_bytes(4, "little") + b"\0\0" + piece)
        agent._execute_command(0x17, number.to_bytes(4, "little") + b"\0\1\0\0\0" + b"\0\1\xfc\0")
        assert agent._read_packet().is_ok_packet()
    assert server.run("SELECT note FROM orders.invoices WHERE id = 7") == [("long data",)]
    assert b"long data" in every_byte(served.running.evidence)


def test_a_prepared_statement_is_refused_when_it_is_prepared(served: Gateway) -> None:
    with served.connect() as agent:
        with pytest.raises(pymysql.err.MySQLError) as caught:
            prepare(agent, "SELECT * FROM secrets WHERE id = ?")
        assert caught.value.args[0] == REFUSED
        agent.ping(reconnect=False)


@pytest.mark.parametrize(
    ("command", "body"),
    [(0x11, b"root\0\0orders\0"), (0x12, bytes(10)), (0x1E, bytes(10)), (0x15, bytes(18)), (0x0C, b"\1\0\0\0"),
     (0x04, b"secrets\0"), (0x09, b""), (0x0A, b""), (0x08, b""), (0x20, b""), (0xFA, bytes(8)),
     (0x7F, b"")],
    ids=["CHANGE_USER", "BINLOG_DUMP", "BINLOG_DUMP_GTID", "REGISTER_SLAVE", "PROCESS_KILL", "FIELD_LIST", "STATISTICS",
         "PROCESS_INFO", "SHUTDOWN", "CLONE", "STMT_BULK_EXECUTE", "unknown"],
)  # fmt: skip
def test_commands_that_are_not_covered_are_refused(served: Gateway, command: int, body: bytes) -> None:
    with served.connect() as agent:
        agent._execute_command(command, body)
        with pytest.raises(pymysql.err.MySQLError, match="not passed on") as caught:
            agent._read_packet()
        assert caught.value.args[0] == REFUSED
        agent.ping(reconnect=False)


def test_attributes_of_a_query_that_were_not_offered_hide_no_text(served: Gateway) -> None:
    with served.connect() as agent:
        agent._execute_command(0x03, b"\0\1SELECT * FROM secrets")
        with pytest.raises(pymysql.err.MySQLError, match="NUL") as caught:
            agent._read_packet()
        assert caught.value.args[0] == REFUSED
        agent.ping(reconnect=False)


def test_code_of_somebodys_own_is_not_called_by_the_name_of_a_function_of_the_server(
    served: Gateway, server: Server
) -> None:
    """Before a space, or in backticks, `count` is a function of the database."""
    server.run("CREATE FUNCTION orders.count(a int) RETURNS text DETERMINISTIC RETURN 'code ran'")
    assert server.run("USE orders", "SELECT count (1), `count`(1)") == [("code ran", "code ran")]
    with served.connect() as agent:
        for call in ("count (1)", "`count`(1)"):
            assert "execute_code on function:count" in _refused(agent, f"SELECT {call} FROM orders")


def test_no_file_of_the_client_is_ever_asked_for(served: Gateway, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1\tcanary\n")
    with served.connect(local_infile=True) as agent:
        _refused(agent, f"LOAD DATA LOCAL INFILE '{tmp_path / 'secret'}' INTO TABLE invoices")
        assert not agent.server_capabilities & CLIENT.LOCAL_FILES
        assert not agent.server_capabilities & CLIENT.COMPRESS


def test_a_reset_connection_is_pinned_again(served: Gateway) -> None:
    with served.connect() as agent, agent.cursor() as cursor:
        cursor.execute("SELECT @@sql_mode, @@character_set_results")
        before = cursor.fetchall()
        cursor.execute("SET sql_mode = 'STRICT_ALL_TABLES'")
        agent._execute_command(0x1F, b"")
        assert agent._read_packet().is_ok_packet()
        cursor.execute("SELECT @@sql_mode, @@character_set_results")
        assert cursor.fetchall() == before
        cursor.execute("SELECT count(*) FROM orders")
        assert cursor.fetchall() == ((1000,),)


def test_kill_query_reaches_this_pods_sessions_alone(served: Gateway, server: Server) -> None:
    with served.connect() as agent, served.connect() as other:
        outcome = []

        def run() -> None:
            try:
                with agent.cursor() as cursor:
                    cursor.execute("SELECT sleep(86400) FROM orders WHERE id = 1")
                    outcome.append(cursor.fetchall())
            except pymysql.err.MySQLError as error:
                outcome.append(error.args[0])

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():  # one that comes before the statement runs ends nothing
            with other.cursor() as cursor:
                cursor.execute(f"KILL QUERY {agent.thread_id()}")
            thread.join(0.5)
        assert outcome in ([1317], [((1,),)])  # a sleep that is ended may tell 1
        foreign = server.run("SELECT connection_id()")[0][0]
        with pytest.raises(pymysql.err.MySQLError) as caught, other.cursor() as cursor:
            cursor.execute(f"KILL QUERY {foreign}")
        assert caught.value.args[0] == 1094
        _refused(other, f"KILL {foreign}")


def test_a_transaction_stays_open_after_a_refusal_and_nothing_later_is_decided_otherwise(
    served: Gateway, server: Server
) -> None:
    """As after an error of the server's: what was refused never got there, and left nothing behind here either."""
    before = len(served.running.records())
    with served.connect() as agent, agent.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE invoices SET note = 'inside' WHERE id = 4")
        for statement in ("SELECT * FROM secrets", "SET NAMES gbk", "USE `a b`", "COMMIT; DROP TABLE orders"):
            _refused(agent, statement)
        with pytest.raises(pymysql.err.MySQLError):
            prepare(agent, "SELECT * FROM secrets")
        cursor.execute("SELECT note FROM invoices WHERE id = 4")
        assert cursor.fetchall() == (("inside",),)
        _refused(agent, "SELECT * FROM secrets")
        cursor.execute("ROLLBACK")
        cursor.execute("SELECT count(*) FROM orders")
    assert server.run("SELECT note FROM orders.invoices WHERE id = 4") == [(None,)]
    intents = [one for one in served.running.records()[before:] if isinstance(one, record.CommandIntent)]
    began = next(place for place, one in enumerate(intents) if one.accesses[0].object == "transaction:begin")
    ended = next(place for place, one in enumerate(intents) if one.accesses[0].object == "transaction:rollback")
    assert [one.in_transaction for one in intents[began + 1 : ended + 2]] == [True] * (ended - began) + [False]


def _is_waiting(server: Server, note: str) -> bool:
    """Whether the server has an UPDATE that sets this note."""
    found = server.run("SELECT info FROM information_schema.processlist WHERE info LIKE 'UPDATE invoices%'")
    return any(note in str(info) for (info,) in found)


def _until(is_so: Callable[[], bool], limit_s: float) -> bool:
    until = time.monotonic() + limit_s
    while not (found := is_so()) and time.monotonic() < until:
        pass
    return found


def test_a_kill_that_comes_late_ends_no_later_statement(served: Gateway, server: Server, relay: GatedRelay) -> None:
    """The statement that it was sent for ends by itself, and the next one waits until the server has answered it."""
    with served.at("relayed").connect() as agent, served.at("relayed").connect() as other:

        def run(statement: str, told: list[object]) -> threading.Thread:
            def work() -> None:
                try:
                    with agent.cursor() as cursor:
                        cursor.execute(statement)
                        told.append(cursor.rowcount)
                except pymysql.err.MySQLError as error:
                    told.append(error.args[0])

            thread = threading.Thread(target=work)
            thread.start()
            return thread

        def kill() -> None:
            with other.cursor() as cursor:
                cursor.execute(f"KILL QUERY {agent.thread_id()}")

        for number in range(3):
            victim, innocent = list[object](), list[object]()
            with server.admin(autocommit=False) as owner, owner.cursor() as lock:
                lock.execute("SELECT * FROM orders.invoices WHERE id = 10 FOR UPDATE")
                first = run(f"UPDATE invoices SET note = 'victim {number}' WHERE id = 10", victim)
                assert _until(lambda: _is_waiting(server, "victim"), 30)
                relay.close_gate()
                killing = threading.Thread(target=kill)
                killing.start()
                assert relay.arrived.wait(30)
                owner.rollback()
                first.join(60)
                lock.execute("SELECT * FROM orders.invoices WHERE id = 10 FOR UPDATE")
                second = run(f"UPDATE invoices SET note = 'innocent {number}' WHERE id = 10", innocent)
                assert not _until(lambda: _is_waiting(server, "innocent"), 0.2)
                relay.open_gate()
                killing.join(60)
                assert _until(lambda: _is_waiting(server, "innocent"), 30)
                owner.rollback()
                second.join(60)
            assert (victim, innocent) == ([1], [1])


def test_kills_under_load_end_no_statement_that_nobody_named(served: Gateway) -> None:
    """A session that is never named runs on, whatever becomes of its neighbour's statements."""
    with served.connect() as named, served.connect() as unnamed, served.connect() as killer:
        over = threading.Event()

        def kill() -> None:
            with killer.cursor() as cursor:
                while not over.is_set():
                    cursor.execute(f"KILL QUERY {named.thread_id()}")

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            for number in range(60):
                with unnamed.cursor() as cursor:
                    cursor.execute("SELECT %s FROM orders WHERE id = 1", (number,))
                    assert cursor.fetchall() == ((number,),)
                try:
                    with named.cursor() as cursor:
                        cursor.execute("SELECT %s FROM orders WHERE id = 1", (number,))
                        assert cursor.fetchall() == ((number,),)
                except pymysql.err.MySQLError as error:
                    assert error.args[0] == 1317
        finally:
            over.set()
            thread.join(60)


def test_tls_towards_the_client(served: Gateway) -> None:
    with served.connect(ssl={"check_hostname": False, "verify_mode": "none"}, ssl_verify_cert=False) as agent:
        assert agent._secure
        with agent.cursor() as cursor:
            cursor.execute("SELECT customer FROM orders WHERE id = 2")
            assert cursor.fetchall() == (("customer 2",),)


def test_log_ins_of_the_server(served: Gateway) -> None:
    """MariaDB's ed25519; at MySQL caching_sha2_password, which the second time knows the password's hash."""
    for _ in range(2):
        assert served.at("other-login").run("SELECT count(*) FROM orders") == [(1000,)]


def test_a_password_is_not_given_to_a_server_that_is_not_verified(served: Gateway, server: Server) -> None:
    if server.name == "mysql":
        with pytest.raises(pymysql.err.MySQLError, match="only a server that TLS has verified"):
            served.at("unverified").connect()
    else:  # whose plugin never asks for the password itself
        assert served.at("unverified").run("SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("down", "cannot be reached"),
        ("certificate", "certificate that is not accepted"),
        ("password", "password in its credential is wrong"),
        ("nowhere", "database does not exist"),
    ],
)
def test_what_is_wrong_with_the_server_is_told_natively(served: Gateway, name: str, told: str) -> None:
    with pytest.raises(pymysql.err.MySQLError, match=told):
        served.at(name).connect()


def test_an_intent_is_recorded_before_and_an_outcome_after(served: Gateway) -> None:
    before = len(served.running.records())
    served.run("UPDATE invoices SET note = 'recorded' WHERE id = 5")
    made = served.running.records()[before:]
    opened = next(one for one in made if isinstance(one, record.SessionOpen))
    intent = [one for one in made if isinstance(one, record.CommandIntent)][-1]
    outcome = [one for one in made if isinstance(one, record.CommandOutcome)][-1]
    assert (opened.protocol, intent.kind, outcome.status, outcome.rows) == ("MySQL", "query", "ok", 1)
    assert opened.seq < intent.seq < outcome.seq


def test_what_the_client_was_shown_is_recorded_in_both_formats(served: Gateway) -> None:
    assert served.run("SELECT id, customer FROM orders WHERE id = 321") == [(321, "customer 321")]
    with served.connect() as agent:
        number, _, _ = prepare(agent, "SELECT id, customer FROM orders WHERE id = ?")
        assert len(execute(agent, number, 322)) == 1
    rows = read_rows(served.running.evidence)
    assert ("321", "customer 321") in rows
    assert ("322", "customer 322") in rows


def test_limits_are_told_natively_and_keep_the_session_in_step(served: Gateway) -> None:
    with served.at("limited").connect() as agent, agent.cursor() as cursor:
        for statement in ("SELECT id FROM orders", "SELECT o.id FROM orders o, orders p"):
            with pytest.raises(pymysql.err.MySQLError, match="rowsPerCommand"):
                cursor.execute(statement)
        cursor.execute("SELECT id FROM orders LIMIT 3")
        assert len(cursor.fetchall()) == 3
    with served.at("timed").connect() as agent, agent.cursor() as cursor:
        with pytest.raises(pymysql.err.MySQLError, match="commandDuration"):
            cursor.execute("SELECT sleep(86400) FROM orders WHERE id = 1")
        cursor.execute("SELECT id FROM orders LIMIT 3")
        assert len(cursor.fetchall()) == 3


def test_a_hostile_server_gets_no_file(served: Gateway) -> None:
    """LOCAL INFILE in answer to a plain query: the client's library would send any file that is named."""
    with (
        served.at("hostile").connect(local_infile=True) as agent,
        pytest.raises(pymysql.err.MySQLError, match="file of the client"),
        agent.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")


def _hostile(listening: socket.socket) -> None:
    while listening.fileno() >= 0:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_serve_hostile, args=(connection,), daemon=True).start()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def _serve_hostile(connection: socket.socket) -> None:
    from chaperone_sidecar.protocols.mysql import messages as m

    def say(sequence: int, *payloads: bytes) -> None:
        connection.sendall(b"".join(m.packet(sequence + index, one) for index, one in enumerate(payloads)))

    capabilities = 0xFFFFFFFF & ~m.CLIENT_SSL
    say(0, m.Handshake(b"8.0.99", 1, b"n" * 20, capabilities, m.NATIVE).encode())
    _received(connection)
    say(2, m.Ok().encode())
    while data := _received(connection):
        if b"SET NAMES" in data:
            say(1, m.Ok().encode())
        elif b"sql_mode" in data:
            column = m.encode_column(m.Column("", "", "", "a", "", 45, 253, 0))
            row = b"".join(map(m.encode_text, (b"", b"0", b"utf8mb4", b"utf8mb4", b"orders", b"utf8mb4_general_ci")))
            say(1, b"\x06", *[column] * 6, m.Eof().encode(), row, m.Eof().encode())
        else:
            say(1, b"\xfb/etc/passwd")


def test_what_people_must_allow_waits_for_them_and_gets_a_ticket(served: Gateway, server: Server) -> None:
    person = Person(served.running)
    statement = "UPDATE customers SET score = score + 1 WHERE id = 2"
    before = server.run("SELECT score FROM orders.customers WHERE id = 2")[0][0]
    with served.at("asking").connect() as agent:
        assert "waits for approval" in _refused(agent, statement)
        name, request = person.next(len(person.requests()))
        assert (request["text"], request["protocol"]) == (statement, "MySQL")
        person.decide(name, "approve")
        with agent.cursor() as cursor:
            cursor.execute(statement)
            assert cursor.rowcount == 1
        assert "waits for approval" in _refused(agent, statement)
    assert server.run("SELECT score FROM orders.customers WHERE id = 2")[0][0] == before + 1
