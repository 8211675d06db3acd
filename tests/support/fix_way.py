"""`way`: the whole way of an approval: an agent's client, the gateway of its pod, broker, API server, people.

Each command counts up in a table, so that one that ran twice is seen, too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from evidence_directory import read_records
from fix_approvals import LEADS, Approvals
from fix_broker import Pod
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres, holding
from manifests import Object, rule
from pki import Authority
from pod_gateway import WAIT_S, install, ruled, serving, until

from chaperone_evidence import entry, record
from chaperone_operator.compile import Snapshot
from chaperone_operator.kube import APPROVAL_REQUESTS
from chaperone_sidecar.gateway import Gateway

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

    def policy(self, *, is_suspended: bool = False, limits: Object | None = None, **approval: Any) -> Snapshot:
        """What touches `held.invoices` needs an approval with those settings; `held.free` and all reading do not."""
        asked = {"groups": [LEADS]} | approval
        rules: list[Object] = [
            rule("look", "Allow", ["read", "bulk_read"]),
            rule("free", "Allow", ["modify"], ["held.free"]),
            rule("fix", "RequireApproval", ["create", "modify", "delete", "bulk_write", "bulk_read"],
                 ["held.invoices"], approval=asked),
        ]  # fmt: skip
        more = {} if limits is None else {"limits": limits}
        return ruled(self.approvals.broker, self.postgres, rules, is_suspended=is_suspended, **more)

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

    async def made(self) -> str:
        """The name of the next request of this pod, of which its gateway may not have heard yet."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for one in await self.requests():
                    name: str = one["metadata"]["name"]
                    if name not in self.known:
                        self.known.add(name)
                        return name
                await asyncio.sleep(0.05)

    async def asked(self) -> str:
        """The name of the next request of this pod, once its gateway waits for it."""
        name = await self.made()
        await until(lambda: name in self.recorded())
        return name

    def recorded(self) -> list[str]:
        """The request of each command that waits or waited, as the gateway recorded it."""
        found = read_records(self.folder / "spool")
        return [one.approval for one in found if isinstance(one, record.ApprovalRequest)]

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
def held_tables(postgres: Postgres) -> Iterator[Postgres]:
    with holding(postgres, "held", TABLES):
        yield postgres


@pytest.fixture
async def way(
    approvals: Approvals, held_tables: Postgres, collected: Collector, asked_opa: Opa, tmp_path: Path
) -> AsyncIterator[Way]:
    with held_tables.admin() as owner:
        owner.execute("DELETE FROM held.invoices WHERE id > 20; UPDATE held.invoices SET times = 0")
        owner.execute("UPDATE held.free SET times = 0")
    await install(approvals.broker, held_tables, collected)
    pod = await approvals.broker.pod(f"way-{secrets.token_hex(4)}")
    found = Way(approvals, held_tables, collected, asked_opa, tmp_path, pod)
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


def course(way: Way) -> list[tuple[str, str, str]]:
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
