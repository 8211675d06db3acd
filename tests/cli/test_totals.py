"""`chaperone totals` against real servers: what agents do through a gateway agrees, and what goes past it shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import fix_dev
import fix_postgres
import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result
from evidence_directory import read_records
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from fix_postgres import PASSWORD, Postgres
from gateway_stream import Pod, Stream
from pki import Authority
from waiting import eventually

from chaperone_cli.main import main
from chaperone_cli.report import check as checking
from chaperone_cli.report import tables
from chaperone_cli.totals.compare import need_comparable
from chaperone_cli.totals.reckon import MINTED, Command, Session, reckon, unnamed
from chaperone_cli.totals.snapshot import FORMAT, CannotRead, Counter, Server, Snapshot, read
from chaperone_evidence import record
from chaperone_tools import postgresql_servers

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

SETTINGS = "shared_preload_libraries = 'pg_stat_statements'\n"
PREPARED = {
    "name": "prepared", "action": "Allow", "match": {"effects": ["execute_code"], "objects": ["prepared:once"]},
}  # fmt: skip
COUNTED_WITHIN_S: Final = 60.0
COUNTED = (record.SessionOpen, record.SessionClose, record.CommandIntent, record.CommandOutcome)


class Ground:
    """A server with counters, an agent's gateway in front of it, and a collector that gets its records."""

    def __init__(self, api: EvidenceApi, ca: Authority, postgres: Postgres, folder: Path, name: str) -> None:
        self.api, self.postgres, self.folder, self.name = api, postgres, folder, name
        self.target, self.pod_ca = f"{name}-db", ca
        self.pod = Pod(ca, pod=f"{name}-0", pod_uid=f"uid-{name}")
        self.stream = Stream(self.pod)
        self.sent = 0
        self.places: dict[int, int] = {}
        with postgres.admin() as admin:
            admin.execute("CREATE EXTENSION pg_stat_statements")
            admin.execute(f"CREATE ROLE witness LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_read_all_stats")
        (folder / "manifests").mkdir()
        fix_dev.write_manifests(folder / "manifests", postgres, rules=[*fix_dev.RULES, PREPARED])
        self.gateway = fix_dev.start(folder / "manifests", folder / "evidence")
        assert self.gateway.process.poll() is None, "".join(self.gateway.output)

    def ship(self) -> None:
        """What the gateway has recorded since, into the collector, with its own times.

        All of its agents have gone by then, which it records last of each, some time after they went.
        """
        eventually(lambda: self.recorded(record.SessionOpen) == self.recorded(record.SessionClose))
        found = [one for one in read_records(self.gateway.evidence) if isinstance(one, COUNTED)]
        for one in found[self.sent :]:
            self.stream.now_us = one.wall_us - 1000  # `add` counts a millisecond on
            changes: dict[str, Any] = {"target": self.target} if hasattr(one, "target") else {}
            if isinstance(one, record.CommandOutcome):
                changes["ref"] = self.places[one.ref]
            self.places[one.seq] = self.stream.add(msgspec.structs.replace(one, **changes))
        self.sent = len(found)
        self.stream.head()

        async def send() -> None:
            async with Sender(self.api.collector, self.pod) as sender:
                await sender.ship(self.stream)

        asyncio.run(send())

    def recorded(self, kind: type[record.Record]) -> int:
        return sum(isinstance(one, kind) for one in read_records(self.gateway.evidence))

    def run(self, *arguments: str, group: str = "totals") -> Result:
        """A command of `chaperone`, as an auditor who is a witness at the server and may list evidence."""
        kubectl = Path(self.api.command()[0]).parent
        environment = {
            "PATH": f"{kubectl}:{os.environ['PATH']}", "PGHOST": "localhost", "PGPORT": str(self.postgres.port),
            "PGUSER": "witness", "PGPASSWORD": PASSWORD, "PGDATABASE": "orders",
        }  # fmt: skip
        return CliRunner(env=environment).invoke(main, [group, *arguments])

    def take(self, name: str) -> Path:
        """A snapshot."""
        path = self.folder / f"{name}.json"
        done = self.run("take", "-o", str(path))
        assert done.exit_code == 0, done.stderr
        return path

    def compare(self, before: Path, after: Path, *more: str) -> tuple[int, dict[str, Any], str]:
        """Exit status, the row of the agents' role, and what is printed. One machine has one clock."""
        self.ship()
        found = self.folder / "totals.json"
        done = self.run("compare", str(before), str(after), self.target, "--skew", "0", "-o", str(found),
                        "--kubeconfig", str(self.api.server.kubeconfig), *more)  # fmt: skip
        assert done.exit_code in (0, 1), done.stderr
        (row,) = [one for one in json.loads(found.read_text())["rows"] if one["role"] == "agent_rw"]
        return done.exit_code, row, done.stdout

    def past_the_gateway(self) -> psycopg.Connection:
        """What nobody should have: the agents' credential, straight to the server."""
        return psycopg.connect(
            host="127.0.0.1", port=self.postgres.port, user="agent_rw", password=PASSWORD, dbname="orders",
            autocommit=True,
        )  # fmt: skip


@contextlib.contextmanager
def standing(api: EvidenceApi, ca: Authority, folder: Path, major: int, more: str = "") -> Iterator[Ground]:
    """The ground, on a server of a version."""
    with fix_postgres.running(postgresql_servers.server(major), SETTINGS + more) as postgres:
        ground = Ground(api, ca, postgres, folder, f"totals-{major}-{len(more)}")
        try:
            yield ground
        finally:
            ground.gateway.stop()


@pytest.fixture(scope="module")
def ground(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    """On the newest version."""
    with standing(evidence_api, gateway_ca, tmp_path_factory.mktemp("totals"), 18) as found:
        yield found


def work_well(ground: Ground) -> None:
    """Statements of all kinds, none of which fails."""
    with ground.gateway.connect() as agent:
        agent.execute("SELECT count(*) FROM orders")
        agent.execute("SELECT * FROM orders WHERE id = %s", (7,))
        agent.execute("SELECT 1; SELECT 2; UPDATE invoices SET paid = true WHERE id = 3")
        agent.execute("")
        for number in range(3):
            agent.execute("SELECT total FROM orders WHERE id = %s", (number,), prepare=True)
        with agent.pipeline():
            for number in range(5):
                agent.execute("UPDATE invoices SET paid = true WHERE id = %s", (number,))
        agent.execute("PREPARE once AS SELECT id FROM orders WHERE id = $1")
        agent.execute("EXECUTE once(1)")
        agent.execute("DEALLOCATE once")
        with agent.cursor().copy("COPY orders TO STDOUT") as out:
            assert sum(len(bytes(one)) for one in out) > 1000
        with agent.cursor().copy("COPY invoices (id, paid) FROM STDIN") as into:
            into.write("1001\tf\n1002\tt\n")
        agent.execute("DELETE FROM invoices WHERE id > 1000")
    with ground.gateway.connect(autocommit=False) as agent:
        with agent.cursor(name="slow") as cursor:
            cursor.itersize = 100
            assert len(list(cursor.execute("SELECT id FROM orders WHERE id <= 250"))) == 250
        agent.execute("SELECT id FROM orders WHERE id = %s", (1,))
        agent.rollback()
    asyncio.run(_fetch_in_parts(ground.gateway.port))


async def _fetch_in_parts(port: int) -> None:
    agent = await asyncpg.connect(host="127.0.0.1", port=port, user="agent", database="orders", ssl=False)
    try:
        async with agent.transaction():
            found = [row async for row in agent.cursor("SELECT id FROM orders WHERE id <= 120", prefetch=50)]
        assert len(found) == 120
    finally:
        await agent.close()


def work_badly(ground: Ground) -> None:
    """Statements that fail or are refused, one by one and inside transactions and pipelines."""
    with ground.gateway.connect() as agent:
        for text, parameters in (
            ("SELECT nothing FROM orders", None), ("SELECT 1 / (id - 1) FROM orders", None),
            ("SELECT 1 / (id - %s) FROM orders", (1,)), ("DROP TABLE orders", None),
            ("SELECT value FROM secrets WHERE id = %s", (1,)), ("SELECT 1; SELECT 1 / 0", None),
        ):  # fmt: skip
            with pytest.raises(psycopg.Error):
                agent.execute(text, parameters)
        with pytest.raises(psycopg.Error), agent.pipeline():
            agent.execute("SELECT id FROM orders WHERE id = %s", (1,))
            agent.execute("SELECT nothing FROM orders WHERE id = %s", (1,))
            agent.execute("SELECT id FROM orders WHERE id = %s", (2,))
        with pytest.raises(psycopg.Error), agent.transaction():
            agent.execute("UPDATE invoices SET paid = false WHERE id = %s", (5,))
            agent.execute("SELECT id FROM orders WHERE id = %s", (5,))
            agent.execute("SELECT nothing FROM orders WHERE id = %s", (5,))


def test_what_goes_through_the_gateway_agrees_to_the_call(ground: Ground) -> None:
    """No reserve: nothing failed and nothing crossed a border, so both sides are one number."""
    before = ground.take("before-well")
    work_well(ground)
    status, row, shown = ground.compare(before, ground.take("after-well"))
    assert (status, row["verdict"]) == (0, "Agrees"), shown
    assert row["recorded_least"] == row["recorded_most"] > 25, shown
    assert (row["difference_least"], row["difference_most"]) == (0, 0), shown
    assert row["lookups"] > 0  # the gateway's own questions about relations


def test_failures_and_refusals_agree_within_what_cannot_be_known(ground: Ground) -> None:
    before = ground.take("before-badly")
    work_badly(ground)
    status, row, shown = ground.compare(before, ground.take("after-badly"))
    assert (status, row["verdict"]) == (0, "Agrees"), shown
    assert row["difference_most"] - row["difference_least"] < 12, shown


def test_a_session_past_the_gateway_shows_with_exactly_its_calls(ground: Ground) -> None:
    before = ground.take("before-bypass")
    work_well(ground)
    with ground.past_the_gateway() as bypass:
        for _ in range(4):
            bypass.execute("SELECT 41")
        bypass.execute("SELECT customer FROM orders WHERE id = %s", (9,))
        bypass.execute("EXPLAIN (FORMAT JSON) SELECT 1")
    status, row, shown = ground.compare(before, ground.take("after-bypass"))
    assert (status, row["verdict"]) == (1, "BackendHasMore"), shown
    assert row["difference_least"] == 5  # what is explained may be an estimate of the gateway's
    assert row["difference_most"] == 6, shown
    assert "BackendHasMore" in shown


def test_counters_that_were_reset_are_no_agreement(ground: Ground) -> None:
    before = ground.take("before-reset")
    work_well(ground)
    with ground.postgres.admin() as admin:
        admin.execute("SELECT pg_stat_statements_reset()")
    status, row, shown = ground.compare(before, ground.take("after-reset"))
    assert (status, row["verdict"]) == (1, "NotComparable"), shown
    assert "reset at" in row["why"]


def reset_one(ground: Ground) -> None:
    """Forget one kind of statement of the agents."""
    with ground.postgres.admin() as admin:
        done = admin.execute(
            "SELECT pg_stat_statements_reset(userid, dbid, queryid) FROM pg_stat_statements "
            "WHERE userid = 'agent_rw'::regrole AND query LIKE 'SELECT count(%'"
        )
        assert done.rowcount == 1


def test_counters_of_one_statement_that_were_reset_are_no_agreement(ground: Ground) -> None:
    """As many calls as were forgotten do not hide: this version says when each counter began."""
    work_well(ground)
    before = ground.take("before-partial")
    reset_one(ground)
    with ground.past_the_gateway() as bypass:
        bypass.execute("SELECT count(*) FROM orders")
    after = ground.take("after-partial")
    status, row, shown = ground.compare(before, after)
    assert (status, row["verdict"]) == (1, "BackendHasMore"), shown
    reset_one(ground)
    status, row, shown = ground.compare(after, ground.take("last-partial"))
    assert (status, row["verdict"]) == (1, "NotComparable"), shown


def test_a_package_has_the_comparison_and_its_check_reckons_it_again(ground: Ground) -> None:
    """And a session past the gateway that stays open at a snapshot does not explain itself."""
    before = ground.take("before-package")
    work_well(ground)
    with ground.past_the_gateway() as bypass:
        bypass.execute("BEGIN")
        middle = ground.take("middle-package")
        status, row, shown = ground.compare(before, middle)
        assert (status, row["difference_least"], row["difference_most"]) == (1, 1, 1), shown
        bypass.execute("SELECT 41")
    status, row, shown = ground.compare(middle, ground.take("after-package"))
    assert (status, row["difference_least"], row["difference_most"]) == (1, 2, 2), shown
    folder, today = ground.folder / "package", datetime.now(UTC)
    (ground.folder / "ca.pem").write_text(ground.pod_ca.pem)
    done = ground.run(
        "soc2", "--from", f"{today - timedelta(days=1):%Y-%m-%d}", "--to", f"{today:%Y-%m-%d}", "-A", "-o", str(folder),
        "--trust", str(ground.folder / "ca.pem"), "--totals", str(ground.folder / "totals.json"), "--sample", "1",
        "--kubeconfig", str(ground.api.server.kubeconfig), group="report",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (row,) = [one for one in tables.read(folder, tables.TOTALS) if one["role"] == "agent_rw"]
    assert (row["verdict"], row["difference_least"], row["difference_most"]) == ("BackendHasMore", "2", "2")
    assert "count more than is recorded" in (folder / "report.html").read_text()
    assert not [one for one in checking.check(folder).problems if one.file == tables.TOTALS]
    table = folder / tables.TOTALS
    table.write_text(table.read_text().replace("BackendHasMore", "Agrees"))
    found = [one.what for one in checking.check(folder).problems if one.file == tables.TOTALS]
    assert "agent_rw of totals/0001.json is not here, or not as the records say" in found


def test_a_reader_without_the_right_gets_no_snapshot(ground: Ground) -> None:
    with ground.postgres.admin() as admin:
        admin.execute("REVOKE pg_read_all_stats FROM witness")
    done = ground.run("take", "-o", str(ground.folder / "none.json"))
    with ground.postgres.admin() as admin:
        admin.execute("GRANT pg_read_all_stats TO witness")
    assert done.exit_code == 1
    assert "pg_read_all_stats" in done.stderr
    assert not (ground.folder / "none.json").exists()


def counted(path: Path) -> int:
    """The sessions of a snapshot, of everybody."""
    return sum(one["sessions"] for one in json.loads(path.read_text())["databases"])


def test_the_oldest_version_agrees_and_says_when_it_forgot(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    """And a database without the extension gives no more than a bound."""
    with standing(evidence_api, gateway_ca, tmp_path, 14, "pg_stat_statements.max = 100\n") as ground:
        before = ground.take("before")
        work_well(ground)
        between = ground.take("between")
        status, row, shown = ground.compare(before, between)
        assert (status, row["verdict"], row["difference_least"], row["difference_most"]) == (0, "Agrees", 0, 0), shown
        with ground.postgres.admin() as admin:
            for number in range(200):
                admin.execute("SELECT " + ", ".join(["1"] * (number + 1)))
        status, row, shown = ground.compare(between, ground.take("after"))
        assert (status, row["verdict"]) == (1, "NotComparable"), shown
        assert "forgot" in row["why"]
        with ground.postgres.admin() as admin:
            admin.execute("DROP EXTENSION pg_stat_statements")
        bound = [ground.take("bound-1")]
        with ground.gateway.connect() as agent:
            agent.execute("SELECT 1")
        ends = time.monotonic() + COUNTED_WITHIN_S
        while counted(bound[-1]) == counted(bound[0]):  # a backend reports its session some time after it has ended
            assert time.monotonic() < ends
            bound[1:] = [ground.take("bound-2")]
        ground.ship()
        done = ground.run("compare", *map(str, bound), ground.target, "--kubeconfig", str(ground.api.server.kubeconfig))
        assert done.exit_code == 1
        assert "NOT COMPARABLE by role" in done.stdout
        assert "1 are recorded" in done.stdout


def test_snapshots_that_cannot_be_compared_are_refused(ground: Ground) -> None:
    first, second = ground.take("first"), ground.take("second")
    whole = second.read_text()
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "two servers": lambda one: one["server"].update(system_identifier="7"),
        "track is none": lambda one: one["settings"].update({"pg_stat_statements.track": "none"}),
        "track_utility off": lambda one: one["settings"].update({"pg_stat_statements.track_utility": "off"}),
        "not of the format": lambda one: one.update(format="another"),
        "is no time": lambda one: one.update(began="yesterday"),
        "is no snapshot": lambda one: one.update(counters=[{"calls": "many"}]),
        "not later": lambda one: one.update(began=json.loads(first.read_text())["began"]),
    }
    for why, change in changes.items():
        changed = json.loads(whole)
        change(changed)
        second.write_text(json.dumps(changed))
        with pytest.raises(CannotRead, match=why):
            need_comparable(read(first)[0], read(second)[0])
    done = ground.run("compare", str(second), str(first), ground.target)
    assert done.exit_code == 2, done.stdout
    assert "CANNOT COMPARE" in done.stderr


# The reckoning alone


def _snapshot(minute: int, calls: dict[tuple[int, str], int], **more: Any) -> Snapshot:
    """Counters of roles, by number and name, at a minute of an hour."""
    counters = [Counter(user_id=number, user=name, database_id=1, query_id=1, calls=n)
                for (number, name), n in calls.items()]  # fmt: skip
    return Snapshot(
        format=FORMAT, program="0", began=f"2026-11-27T10:{minute:02d}:00.000000Z",
        ended=f"2026-11-27T10:{minute:02d}:01.000000Z", server=Server("1", 180000, ""), witness="pg_stat_statements",
        counters=counters, **more,
    )  # fmt: skip


def _command(role: str, clock: str = "10:05:00", **changes: Any) -> Command:
    return msgspec.structs.replace(
        Command(role=role, kind="query", decision="Allow", statements=1, status="Ok", code="", in_transaction=False,
                decided=f"2026-11-27T{clock}.000000Z", duration_us=1000), **changes,
    )  # fmt: skip


def test_roles_of_one_session_are_one_row_with_those_that_are_gone() -> None:
    """Their names are not known any more when the second snapshot is taken."""
    roles = [f"chp_01m8dz2c5dk7gp79nh41ensm8{letter}" for letter in "ab"]
    before = _snapshot(0, {(1, "postgres"): 5})
    after = _snapshot(10, {(1, "postgres"): 9, (7, ""): 2, (8, roles[1]): 1})
    sessions = [Session(role, "2026-11-27T10:04:00.000000Z", "2026-11-27T10:06:00.000000Z") for role in roles]
    commands = [_command(roles[0]), _command(roles[0]), _command(roles[1])]
    (row,) = reckon(before, after, sessions, commands, (), 0)
    assert (row.role, row.calls, row.recorded_least, row.verdict) == (MINTED, 3, 3, "Agrees")
    assert unnamed(before, after, [row]) == {"postgres": 4}
    (row,) = reckon(before, after, sessions, commands[1:], (), 0)
    assert (row.difference_least, row.verdict) == (1, "BackendHasMore")


def test_a_role_that_nobody_should_use_is_asked_for_by_name() -> None:
    before, after = _snapshot(0, {}), _snapshot(10, {(3, "agent"): 2})
    (row,) = reckon(before, after, [], [], ["agent"], 0)
    assert (row.role, row.difference_least, row.verdict) == ("agent", 2, "BackendHasMore")


def test_records_without_a_call_and_clocks_that_differ() -> None:
    before, after = _snapshot(0, {(3, "agent"): 7}), _snapshot(10, {(3, "agent"): 8})
    sessions = [Session("agent", "2026-11-27T09:00:00.000000Z", "")]
    inside = [_command("agent"), _command("agent")]
    (row,) = reckon(before, after, sessions, inside, (), 0)
    assert (row.verdict, row.difference_least, row.difference_most) == ("RecordedHasMore", -1, -1)
    (row,) = reckon(before, after, sessions, [*inside[:1], _command("agent", "10:00:02")], (), 0)
    assert row.verdict == "RecordedHasMore"
    (row,) = reckon(before, after, sessions, [*inside[:1], _command("agent", "10:00:02")], (), 5_000_000)
    assert (row.verdict, row.recorded_least, row.recorded_most) == ("Agrees", 1, 2)  # it may have come before
    (row,) = reckon(before, after, sessions, [*inside[:1], _command("agent", "09:59:50")], (), 5_000_000)
    assert (row.recorded_least, row.recorded_most) == (1, 1)


def test_what_a_command_can_have_been_at_least_and_at_most() -> None:
    before, after = _snapshot(0, {}), _snapshot(10, {(3, "agent"): 1})
    for changes, least, most in (
        ({"statements": 3}, 3, 3), ({"decision": "Deny", "status": "Refused"}, 0, 0), ({"kind": "parse"}, 0, 0),
        ({"status": "Error", "code": "22012", "statements": 3}, 0, 2), ({"status": "Error", "code": "22012"}, 0, 0),
        ({"status": "Error", "code": "maxRows", "statements": 3}, 0, 3), ({"status": "Aborted"}, 0, 1),
        ({"status": "Pending", "duration_us": None}, 0, 1),
    ):  # fmt: skip
        (row,) = reckon(before, after, [], [_command("agent", **changes)], (), 0)
        assert (row.recorded_least, row.recorded_most) == (least, most), changes
    (row,) = reckon(before, after, [], [_command("agent", statements=-1)], (), 0)
    assert row.verdict == "NotComparable"
    (row,) = reckon(before, after, [], [_command("")], (), 0)
    assert (row.verdict, row.why) == ("NotComparable", "the gateway that recorded these sessions did not say the role")
