"""The whole way of an approval: an agent's client, the gateway of its pod, broker, API server with webhooks, people.

Whatever is asked, the table is looked at: each command counts up, so that one that ran twice is seen, too.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import psycopg
import pytest
from fix_approvals import LEADS, OUTSIDERS, Approvals
from fix_broker import CREATOR, Pod
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres, holding
from manifests import Object, rule
from pki import Authority
from pod_gateway import WAIT_S, connect, install, ruled, serving, settings_of, until
from psycopg import errors
from raw_client import STARTUP, Client

from chaperone_evidence import entry, record
from chaperone_operator.compile import Snapshot
from chaperone_operator.kube import APPROVAL_REQUESTS, ApiError
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.protocols.postgresql.messages import SYNC_FRAME, encode_parse, encode_query

pytestmark = pytest.mark.peer

TABLES: Final = """
CREATE SCHEMA held;
CREATE TABLE held.invoices (id int PRIMARY KEY, times int DEFAULT 0);
CREATE TABLE held.free (id int PRIMARY KEY, times int DEFAULT 0);
INSERT INTO held.invoices SELECT i FROM generate_series(1, 20) i;
INSERT INTO held.free SELECT i FROM generate_series(1, 20) i;
GRANT USAGE ON SCHEMA held TO agent_rw;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA held TO agent_rw;
"""
FIX: Final = "UPDATE held.invoices SET times = times + 1 WHERE id = 7"
FIX_ONE: Final = "UPDATE held.invoices SET times = times + 1 WHERE id = %s"
FREE: Final = "UPDATE held.free SET times = times + 1 WHERE id = 1"
LONG: Final = {"wait": "40s", "validFor": "60s"}
SHORT: Final = {"wait": "1s", "validFor": "60s"}


@dataclass
class Way:
    """One pod with its gateway, the people who vote, and the table."""

    approvals: Approvals
    postgres: Postgres
    collector: Collector
    opa: Opa
    folder: Path
    pod: Pod
    identity: str = "billing-agent"
    known: set[str] = field(default_factory=set)
    restarts: int = 0

    def policy(self, *, is_suspended: bool = False, **approval: Any) -> Snapshot:
        """What touches `held.invoices` needs an approval with those settings; `held.free` and all reading do not."""
        asked = {"groups": [LEADS]} | approval
        rules: list[Object] = [
            rule("look", "Allow", ["read", "bulk_read"]),
            rule("free", "Allow", ["modify"], ["held.free"]),
            rule("fix", "RequireApproval", ["create", "modify", "delete", "bulk_write", "bulk_read"],
                 ["held.invoices"], approval=asked),
        ]  # fmt: skip
        return ruled(self.approvals.broker, self.postgres, rules, is_suspended=is_suspended)

    async def put(self, snapshot: Snapshot) -> None:
        await self.approvals.broker.put_snapshot(snapshot)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[tuple[Gateway, int]]:
        """The gateway, of another start of its container each time."""
        restarts, self.restarts = self.restarts, self.restarts + 1
        async with serving(
            self.pod, self.collector, self.opa, self.folder, restarts=restarts, identity=self.identity
        ) as (gateway, port, _):
            yield gateway, port

    @asynccontextmanager
    async def running(self, **approval: Any) -> AsyncIterator[tuple[Gateway, int]]:
        """The gateway under a policy with those settings."""
        await self.put(self.policy(**approval))
        async with self.started() as found:
            yield found

    async def requests(self) -> list[Object]:
        """All requests of this pod."""
        async with self.approvals.broker.admin() as client:
            found = (await client.list(APPROVAL_REQUESTS, self.approvals.namespace)).items
        return [one for one in found if one["spec"]["requester"]["podUID"] == self.pod.uid]

    async def asked(self) -> str:
        """The name of the next request of this pod."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for one in await self.requests():
                    name: str = one["metadata"]["name"]
                    if name not in self.known:
                        self.known.add(name)
                        return name
                await asyncio.sleep(0.05)

    async def approve(self, name: str, user: str = "lead-1") -> None:
        await self.approvals.vote(user, name)

    async def state(self, name: str, *states: str) -> str:
        """The request's state, once it is one of those."""
        async with asyncio.timeout(WAIT_S):
            while (found := (await self.approvals.stored(name))["status"].get("state")) not in states:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return str(found)

    def times(self, number: int = 7, table: str = "invoices") -> int:
        """How often a row was counted up; -1 when there is none."""
        with self.postgres.admin() as owner:
            query = f"SELECT times FROM held.{table} WHERE id = %s"
            found = owner.execute(query, (number,)).fetchone()  # type: ignore[call-overload]
        return -1 if found is None else int(found[0])

    def other(self, pod: Pod, identity: str = "billing-agent") -> Way:
        """The same for another pod."""
        folder = self.folder / pod.name
        folder.mkdir()
        return Way(self.approvals, self.postgres, self.collector, self.opa, folder, pod, identity)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory, gateway_ca: Authority) -> Iterator[Collector]:
    collector = Collector(tmp_path_factory.mktemp("collector"), gateway_ca)
    collector.start()
    yield collector
    assert collector.stop() == 0


@pytest.fixture(scope="module")
def asked_opa(approvals: Approvals, opa_with: Callable[[bytes], Opa]) -> Opa:
    """One server for all gateways, which put their bundles there one after the other."""
    return opa_with(approvals.broker.compiled().bundle)


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> Iterator[Postgres]:
    with holding(postgres, "held", TABLES):
        yield postgres


@pytest.fixture
async def way(
    approvals: Approvals, tables: Postgres, collected: Collector, asked_opa: Opa, tmp_path: Path
) -> AsyncIterator[Way]:
    with tables.admin() as owner:
        owner.execute("DELETE FROM held.invoices WHERE id > 20; UPDATE held.invoices SET times = 0")
        owner.execute("UPDATE held.free SET times = 0")
    await install(approvals.broker, tables, collected)
    pod = await approvals.broker.pod(f"way-{secrets.token_hex(4)}")
    found = Way(approvals, tables, collected, asked_opa, tmp_path, pod)
    yield found
    async with approvals.broker.admin() as client:
        for one in await found.requests():
            await client.delete(APPROVAL_REQUESTS, one["metadata"]["name"], approvals.namespace)


def held(agent: psycopg.AsyncConnection, text: str = FIX, *params: object) -> asyncio.Task[psycopg.AsyncCursor]:
    """A statement that waits for people."""
    return asyncio.create_task(agent.execute(text, params or None))  # type: ignore[arg-type]


async def ended(task: asyncio.Task[Any]) -> Any:
    """What came of it; raises what it raised."""
    async with asyncio.timeout(WAIT_S):
        return await task


# --- one command and its votes ----------------------------------------------------------------------------------------


async def test_approved_command_runs_once_and_the_next_of_its_kind_is_asked_for_again(way: Way) -> None:
    async with way.running(**LONG) as (gateway, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        assert (await way.approvals.stored(name))["spec"]["text"] == FIX
        assert way.times() == 0
        await way.approve(name)
        assert (await ended(task)).rowcount == 1
        assert await way.state(name, "Used") == "Used"
        assert way.times() == 1
        again = held(agent)
        second = await way.asked()
        await way.approvals.vote("lead-1", second, "Deny", "once is enough")
        with pytest.raises(errors.InsufficientPrivilege, match=r"Denied by lead-1 \(once is enough\)"):
            await ended(again)
        assert way.times() == 1
        assert await (await agent.execute("SELECT 1")).fetchone() == (1,)
        gateway.write_head()
        await until(lambda: len(_course(way)) == 6)
    assert _course(way) == [
        ("request", name, "fix"), ("outcome", name, "Used"), ("intent", name, "Allow"),
        ("request", second, "fix"), ("outcome", second, "Denied"), ("intent", "", "Deny"),
    ]  # fmt: skip


def _course(way: Way) -> list[tuple[str, str, str]]:
    """What the collector has of a pod's approvals, and of the commands that needed any."""
    found: list[tuple[str, str, str]] = []
    query = "SELECT e.bytes FROM entry e JOIN stream s ON s.id = e.stream WHERE s.pod_uid = ? ORDER BY e.idx"
    for (raw,) in way.collector.rows(query, way.pod.uid):
        cls, _, header = entry.split(raw)
        match record.decode(header) if cls == entry.CLASS_RECORD else None:
            case record.ApprovalRequest() as one:
                found.append(("request", one.approval, one.rule))
            case record.ApprovalOutcome() as one:
                found.append(("outcome", one.approval, one.state))
            case record.CommandIntent(rule="fix") as one:
                found.append(("intent", one.approval, one.decision))
            case _:
                pass
    return found


async def test_command_that_nobody_decides_in_time_does_not_run_however_late_it_is_approved(way: Way) -> None:
    async with way.running(wait="1s", validFor="3s") as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        with pytest.raises(errors.InsufficientPrivilege, match=f'waits for approval as request "{name}"') as refused:
            await ended(task)
        assert "Send the very same command again" in str(refused.value.diag.message_hint)
        await way.state(name, "Expired")
        with pytest.raises(ApiError, match=r"\[decided\]|\[expired\]"):
            await way.approve(name)
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        assert await way.asked() != name
        assert way.times() == 0


async def test_approval_that_was_not_used_in_time_is_worth_nothing(way: Way) -> None:
    async with way.running(wait="1s", validFor="4s") as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await ended(task)
        await way.approve(name)
        await way.state(name, "Expired")
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        assert way.times() == 0


async def test_ticket_is_good_for_the_same_bytes_and_parameters_once(way: Way) -> None:
    async with way.running(**SHORT) as (_, port), await connect(port) as agent:
        for text, params in ((FIX, None), (FIX_ONE, (8,))):
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(text, params)
            name = await way.asked()
            await way.approve(name)
            await way.state(name, "Approved")
            others = (FIX + " ", None) if params is None else (FIX_ONE, (9,))
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(*others)
            assert await way.asked() != name
            assert await way.state(name, "Approved") == "Approved"
            async with await connect(port) as later:  # another session of the same pod
                assert (await later.execute(text, params)).rowcount == 1
            assert await way.state(name, "Used") == "Used"
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(text, params)
            assert await way.asked() != name
        assert [way.times(number) for number in (7, 8, 9)] == [1, 1, 0]


async def test_ticket_of_another_pod_or_identity_is_not_good(way: Way) -> None:
    broker = way.approvals.broker
    twin = way.other(await broker.pod(f"{way.pod.name}-twin"))
    stranger = way.other(
        await broker.pod(
            f"{way.pod.name}-stranger", labels={"chaperone.dev/identity": "other-agent"}, told="other-agent"
        ),
        "other-agent",
    )
    async with (
        way.running(**SHORT) as (_, port), twin.started() as (_, near), stranger.started() as (_, far),
        await connect(port) as agent, await connect(near) as same, await connect(far) as other,
    ):  # fmt: skip
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        name = await way.asked()
        await way.approve(name)
        await way.state(name, "Approved")
        for one in (same, other):
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await one.execute(FIX)
        assert name not in {await twin.asked(), await stranger.asked()}
        assert way.times() == 0
        await agent.execute(FIX)
        assert way.times() == 1


async def test_whoever_asks_does_not_approve_nor_does_an_outsider(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        account = f"system:serviceaccount:{way.approvals.namespace}:agent"
        for user in (CREATOR, "Billing on-call", account):
            with pytest.raises(ApiError, match=r"\[own-request\]"):
                await way.approve(name, user)
        with pytest.raises(ApiError, match=r"\[not-an-approver\]"):
            await way.approvals.vote("outsider-2", name, groups=(OUTSIDERS,))
        assert not task.done()
        assert way.times() == 0
        await way.approvals.vote("lead-1", name, "Deny")
        with pytest.raises(errors.InsufficientPrivilege, match="Denied by lead-1"):
            await ended(task)
        assert way.times() == 0


async def test_two_of_three_have_to_approve(way: Way) -> None:
    async with way.running(count=2, denyCount=2, **LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        await way.approve(name, "lead-1")
        await way.approvals.vote("lead-2", name, "Deny")
        with pytest.raises(ApiError, match=r"\[voted\]"):
            await way.approve(name, "lead-1")
        assert not task.done()
        assert way.times() == 0
        await way.approve(name, "lead-3")
        await ended(task)
        assert way.times() == 1


async def test_two_who_approve_at_once_release_one_command_once(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        votes = await asyncio.gather(
            way.approve(name, "lead-1"), way.approve(name, "lead-2"), return_exceptions=True
        )  # fmt: skip
        late = [one for one in votes if one is not None]
        assert len(late) < 2
        assert all("[decided]" in str(one) for one in late)
        await ended(task)
        assert way.times() == 1
        with pytest.raises(ApiError, match=r"\[decided\]"):
            await way.approve(name, "lead-3")


@asynccontextmanager
async def _skewed(way: Way, skew_s: int) -> AsyncIterator[int]:
    """The port of the pod's gateway, in a process whose clock is wrong by so much."""
    await way.put(way.policy(wait="1s", validFor="10s"))
    await way.pod.set_status(restarts=0)
    told = await settings_of(way.pod, way.collector, way.opa, way.folder)
    settings = way.folder / "settings.json"
    settings.write_bytes(msgspec.json.encode(told, enc_hook=str))
    program = Path(__file__).parents[1] / "support" / "skewed_gateway.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(settings), str(skew_s), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await asyncio.wait_for(process.stdout.readline(), WAIT_S))
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("skew_s", [-7200, 7200])
async def test_clock_of_the_gateway_neither_ends_an_approval_nor_lengthens_it(way: Way, skew_s: int) -> None:
    async with _skewed(way, skew_s) as port, await connect(port) as agent:
        for ending, times in (("Used", 1), ("Expired", 1)):
            with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
                await agent.execute(FIX)
            name = await way.asked()
            await way.approve(name)
            await way.state(name, "Approved")
            if ending == "Used":
                await agent.execute(FIX)
            assert await way.state(name, "Used", "Expired") == ending
            assert way.times() == times
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        assert way.times() == 1


# --- what changes while a command waits -------------------------------------------------------------------------------


async def test_restart_of_the_gateway_loses_the_wait_and_not_the_ticket(way: Way) -> None:
    await way.put(way.policy(**LONG))
    async with way.started() as (gateway, port):
        agent = await connect(port)
        task = held(agent)
        name = await way.asked()
        gateway.close("the container restarts")
        with pytest.raises(psycopg.Error, match="the container restarts"):
            await ended(task)
    await way.approve(name)
    assert way.times() == 0
    async with way.started() as (_, port), await connect(port) as agent:
        await agent.execute(FIX)
        assert way.times() == 1
        task = held(agent)
        second = await way.asked()
        await way.approvals.vote("lead-1", second, "Deny")
        with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
            await ended(task)
        assert way.times() == 1


async def test_restart_of_the_broker_is_waited_for(way: Way) -> None:
    broker = way.approvals.broker
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        place = broker.url.rsplit(":", 1)[1]
        assert broker.stop() == 0
        await way.approve(name)
        assert way.times() == 0
        broker.start("--port", place)
        await ended(task)
        assert await way.state(name, "Used") == "Used"
        assert way.times() == 1


async def test_policy_that_changes_meanwhile_releases_nothing(way: Way) -> None:
    async with way.running(**LONG) as (gateway, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        changed = way.policy(wait="1s", validFor="50s")
        await way.put(changed)
        with pytest.raises(errors.InsufficientPrivilege, match=f'request "{name}" is Cancelled'):
            await ended(task)
        await until(lambda: gateway.config.revision == changed.revision)
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        approved = await way.asked()
        await way.approve(approved)
        await way.state(approved, "Approved")
        back = way.policy(**LONG)
        await way.put(back)
        await way.state(approved, "Cancelled")
        await until(lambda: gateway.config.revision == back.revision)
        task = held(agent)
        await way.approvals.vote("lead-1", await way.asked(), "Deny")
        with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
            await ended(task)
        assert way.times() == 0


async def test_suspended_identity_loses_its_session_and_runs_nothing(way: Way) -> None:
    async with way.running(**LONG) as (gateway, port), await connect(port) as agent:
        task = held(agent)
        name = await way.asked()
        await way.put(way.policy(is_suspended=True, **LONG))
        with pytest.raises(psycopg.Error, match="is suspended"):
            await ended(task)
        await until(lambda: not gateway.config.targets)
        await way.state(name, "Cancelled")
        with pytest.raises(ApiError, match=r"\[decided\]"):
            await way.approve(name)
        with pytest.raises(psycopg.Error):
            await agent.execute("SELECT 1")
        assert way.times() == 0


# --- the protocol -----------------------------------------------------------------------------------------------------


async def test_refusal_in_a_transaction_lets_its_locks_go(way: Way) -> None:
    async with way.running(**SHORT) as (_, port), await connect(port, autocommit=False) as agent:
        await agent.execute(FREE)
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        with way.postgres.admin() as owner:
            owner.execute("SET lock_timeout = '10s'")
            owner.execute("UPDATE held.free SET times = 40 WHERE id = 1")
        with pytest.raises(errors.InFailedSqlTransaction):
            await agent.execute("SELECT 1")
        await agent.rollback()
        assert (way.times(), way.times(1, "free")) == (0, 40)


async def test_approved_command_of_a_transaction_ends_with_it(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port, autocommit=False) as agent:
        for end, times in ((agent.rollback, 0), (agent.commit, 1)):
            await agent.execute(FREE)
            task = held(agent)
            await way.approve(await way.asked())
            await ended(task)
            await end()
            assert (way.times(), way.times(1, "free")) == (times, times)


AROUND: Final = ("SELECT 1", f"{FREE} RETURNING id", f"{FIX} RETURNING id", "SELECT 2", f"{FREE} RETURNING id")


async def _piped(
    agent: psycopg.AsyncConnection, texts: tuple[str, ...] = AROUND
) -> tuple[list[Any], type[psycopg.Error] | None]:
    """The row that each command of a pipeline gives, None where it gives none; and the first error."""
    cursors, error = [], None
    try:
        async with agent.pipeline():
            for text in texts:
                cursors.append(await agent.execute(text))  # type: ignore[call-overload]
    except psycopg.Error as raised:
        error = type(raised)
    return [await one.fetchone() if one.pgresult is not None else None for one in cursors], error


async def test_pipeline_stays_in_step_around_a_command_that_waited(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        for decision, answers in (
            ("Approve", ([(1,), (1,), (7,), (2,), (1,)], None)),
            ("Deny", ([(1,), (1,), None, None, None], errors.InsufficientPrivilege)),
        ):
            task = asyncio.create_task(_piped(agent))
            await way.approvals.vote("lead-1", await way.asked(), decision)
            assert await ended(task) == answers
            assert await (await agent.execute("SELECT 3")).fetchone() == (3,)
            # What is refused in a pipeline takes back all of it, since it is one transaction.
            assert (way.times(), way.times(1, "free")) == (1, 2)


async def test_pipeline_that_has_run_something_is_held_no_longer_than_a_transaction(way: Way) -> None:
    async with way.running(wait="60s", validFor="2m") as (_, port), await connect(port) as agent:
        task = asyncio.create_task(_piped(agent))
        await way.asked()
        async with asyncio.timeout(40):  # of the 60 s for which the lock on `held.free` would be kept
            assert (await task)[1] is errors.InsufficientPrivilege
        assert (way.times(), way.times(1, "free")) == (0, 0)


async def test_command_behind_one_that_failed_is_asked_of_nobody(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        texts = ("SELECT 1 / (id - 1) FROM held.free WHERE id = 1", FIX)
        assert (await ended(asyncio.create_task(_piped(agent, texts))))[1] is errors.DivisionByZero
        assert await way.requests() == []
        assert way.times() == 0


async def test_query_sent_behind_one_that_begins_a_transaction_is_held_as_in_it(way: Way) -> None:
    def ask(port: int) -> list[tuple[str, bytes]]:
        client = Client(port)
        client.send(STARTUP)
        client.until("Z")
        client.send(encode_parse(b"", FIX.encode()), SYNC_FRAME)  # so that it is known at once what the text means
        client.until("Z")
        client.send(encode_query(f"BEGIN; {FREE}".encode()), encode_query(FIX.encode()))
        client.until("Z")
        try:
            return client.until("Z")  # waits 20 s at most
        finally:
            client.close()

    async with way.running(wait="60s", validFor="2m") as (_, port):
        (kind, message), (_, state) = await asyncio.to_thread(ask, port)
        assert (kind, state) == ("E", b"E")
        assert b"waits for approval" in message
    assert (way.times(), way.times(1, "free")) == (0, 0)


async def test_portal_that_is_resumed_is_one_command(way: Way) -> None:
    text = "UPDATE held.invoices SET times = times + 1 RETURNING id"
    async with way.running(**LONG) as (_, port):
        agent = await asyncpg.connect(host="127.0.0.1", port=port, user="me", database="orders", ssl=False)
        try:
            for answered in (1, 2):
                async with agent.transaction():
                    cursor = await agent.cursor(text)
                    task = asyncio.create_task(cursor.fetch(6))
                    await way.approve(await way.asked())
                    rows = list(await ended(task))
                    while found := await ended(asyncio.create_task(cursor.fetch(6))):
                        rows += found
                    assert len(rows) == 20
                assert len(await way.requests()) == answered  # another portal is another command
                assert {way.times(number) for number in range(1, 21)} == {answered}
        finally:
            await agent.close(timeout=WAIT_S)


async def test_text_of_several_statements_is_approved_as_one(way: Way) -> None:
    text = f"{FREE}; {FIX}; UPDATE held.invoices SET times = times + 1 WHERE id = 8"
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        for decision, times in (("Deny", 0), ("Approve", 1)):
            task = held(agent, text)
            name = await way.asked()
            assert (await way.approvals.stored(name))["spec"]["text"] == text
            assert way.times(1, "free") == 0
            await way.approvals.vote("lead-1", name, decision)
            if decision == "Deny":
                with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
                    await ended(task)
            else:
                await ended(task)
            assert [way.times(), way.times(8), way.times(1, "free")] == [times] * 3


async def _copied_in(agent: psycopg.AsyncConnection) -> None:
    async with agent.cursor() as cursor, cursor.copy("COPY held.invoices (id, times) FROM STDIN") as copy:
        await copy.write_row((21, 0))


async def _copied_out(agent: psycopg.AsyncConnection) -> int:
    async with agent.cursor() as cursor, cursor.copy("COPY held.invoices TO STDOUT") as copy:
        return len([row async for row in copy.rows()])


async def test_copy_is_held_both_ways(way: Way) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        for work, result in ((_copied_in, None), (_copied_out, 21)):
            task: asyncio.Task[Any] = asyncio.create_task(work(agent))
            await way.approvals.vote("lead-1", await way.asked(), "Deny")
            with pytest.raises(errors.InsufficientPrivilege, match="Denied"):
                await ended(task)
            assert way.times(21) == (-1 if result is None else 0)
            task = asyncio.create_task(work(agent))
            await way.approve(await way.asked())
            assert await ended(task) == result
            assert way.times(21) == 0
            assert await (await agent.execute("SELECT 1")).fetchone() == (1,)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [17_000, 600_000])
async def test_text_that_nobody_could_be_shown_is_refused(way: Way, size: int) -> None:
    async with way.running(**LONG) as (_, port), await connect(port) as agent:
        with pytest.raises(errors.InsufficientPrivilege, match="longer than the 16384 bytes") as refused:
            await agent.execute(f"{FIX} /*{'x' * size}*/")
        assert "shorter" in str(refused.value.diag.message_hint)
        assert await way.requests() == []
        assert way.times() == 0
        assert await (await agent.execute("SELECT 1")).fetchone() == (1,)


async def test_more_than_people_can_read_is_refused_at_once(way: Way) -> None:
    async with way.running(**LONG) as (_, port):
        agents = [await connect(port) for _ in range(6)]
        tasks = [held(agent, FIX_ONE, number) for number, agent in enumerate(agents[:5], 1)]
        names = [await way.asked() for _ in tasks]
        with pytest.raises(errors.InsufficientPrivilege, match="5 approval requests of this pod wait"):
            await agents[5].execute(FIX_ONE, (6,))
        assert [way.times(number) for number in range(1, 7)] == [0] * 6
        for name in names:
            await way.approve(name)
        for task in tasks:
            await ended(task)
        assert [way.times(number) for number in range(1, 7)] == [1] * 5 + [0]
        task = held(agents[5], FIX_ONE, 6)
        await way.approve(await way.asked())
        await ended(task)
        assert way.times(6) == 1
        for agent in agents:
            await agent.close()
