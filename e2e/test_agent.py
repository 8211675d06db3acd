"""An agent at work: what its developer sees, what an auditor finds, and what nobody finds anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage import HOST, NEVER, READ, SETTLE, Database, Kubectl, Object, Pod, Team, chaperone, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def agent(team: Team) -> Pod:
    """An agent that may read orders and settle invoices."""
    team.identity()
    team.policy(READ, SETTLE, NEVER)
    return team.pod()


def test_what_policy_allows_is_done_without_a_password(agent: Pod):
    done = agent.psql("SELECT count(*) FROM orders")
    assert (done.status, done.out) == (0, "4\n"), done.err
    assert agent.psql("UPDATE invoices SET paid = true WHERE id = 1").out == "UPDATE 1\n"


def test_what_no_rule_covers_is_refused_with_the_rule_to_ask_for(agent: Pod):
    done = agent.psql("SELECT * FROM secrets")
    assert done.status == 1
    assert "Ask for a rule with effects [read] and objects [public.secrets]" in done.err
    assert "not for agents" not in done.out + done.err


def test_what_a_rule_denies_is_refused_with_its_message_and_changes_nothing(agent: Pod, database: Database):
    done = agent.psql("DROP TABLE orders")
    assert "Ask the DBA on call." in done.err
    assert 'rule "never"' in done.err
    assert database.query("SELECT count(*) FROM orders") == "4"


def test_the_full_name_of_a_service_is_the_same_target(agent: Pod):
    done = agent.run("psql", f"host={HOST}.cluster.local dbname=orders sslmode=require", "-Atc", "SELECT 1 FROM orders")
    assert done.out.split() == ["1"] * 4, done.err


def test_drivers_work_in_a_pipeline_and_a_transaction(agent: Pod):
    program = f"""
import psycopg
with psycopg.connect("host={HOST} dbname=orders sslmode=verify-full") as connection:
    with connection.pipeline():
        totals = [connection.execute("SELECT cents FROM orders WHERE id = %s", (n,)) for n in (1, 2, 3)]
    print([one.fetchone()[0] for one in totals])
    try:
        with connection.transaction():
            connection.execute("UPDATE invoices SET paid = false WHERE id = 1")
            connection.execute("SELECT value FROM secrets")
    except psycopg.errors.InsufficientPrivilege as error:
        print(error.sqlstate)
    print(connection.execute("SELECT paid FROM invoices WHERE id = 1").fetchone()[0])
"""
    done = agent.python(program)
    assert done.out.split("\n")[:3] == ["[129900, 49900, 1900]", "42501", "True"], done.err


def test_the_auditor_lists_and_verifies_what_was_done(agent: Pod, team: Team, kubectl: Kubectl, tmp_path: Path):
    text = "SELECT item FROM orders WHERE id = 4"
    assert agent.psql(text).out == "relay\n"
    until(
        "the command's end is listed",
        lambda: [one["status"]["status"] for one in team.commands(command=text)] == ["Ok"],
    )
    (command,) = team.commands(command=text)
    assert (command["spec"]["decision"], command["spec"]["rule"], command["status"]["rows"]) == (
        "Allow",
        "read-orders",
        1,
    )
    session = command["spec"]["session"]

    def shown() -> Object:
        return kubectl.json("session", session, f"--namespace={team.namespace}")

    until("the session's end is listed", lambda: shown()["status"]["state"] == "Closed")
    found = shown()
    assert found["spec"]["owner"] == "On call"
    assert (found["status"]["commands"], found["status"]["denied"]) == (1, 0)
    assert found["status"]["bytesIn"] > len(text)
    table = kubectl("get", "sessions", f"--namespace={team.namespace}", "--output=wide")
    assert table.split("\n")[0].split()[:4] == ["NAME", "AGENT", "TARGET", "PROTOCOL"]
    assert text in kubectl("describe", "command", command["metadata"]["name"], f"--namespace={team.namespace}")
    proof, trust, log = (tmp_path / f"proof.{ending}" for ending in ("tar", "trust.pem", "log.policy"))

    def is_proved() -> bool:
        chaperone(kubectl, "export", f"--namespace={team.namespace}", session, f"--output={proof}")
        verified = chaperone(kubectl, "verify", str(proof), f"--trust={trust}", f"--log-policy={log}").out
        return "\nlog: record " in verified and verified.endswith("verify: OK\n")

    until("the session's proof verifies", is_proved)
    altered = proof.read_bytes().replace(b'"rows":1', b'"rows":7', 1)
    proof.write_bytes(altered)
    verified = chaperone(kubectl, "verify", str(proof), f"--trust={trust}")
    assert verified.status == 1
    assert "verify: OK" not in verified.out
