"""The kill switch from a person's command to the agent's sessions: nothing on the way is made up but the fence.

The API server with the webhooks, the operator's process, the broker's, OPA, a pod's gateway, PostgreSQL, the collector
and `kubectl chaperone` as a person types it. How long it took is printed.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from evidence_directory import read_records
from fix_apiserver import ApiServer
from fix_broker import Broker
from fix_collector import Collector
from fix_opa import Opa
from fix_operator import WATCHED, Operator, registrations, service
from fix_postgres import Postgres
from manifests import policy, rule, target
from pod_gateway import connect, install, running, until
from ports import free_ports
from psycopg import errors

from chaperone_evidence import record
from chaperone_sidecar.gateway import Gateway

type Agent = psycopg.AsyncConnection[Any]

pytestmark = pytest.mark.peer

RESPONDER = "responder-1"
REASON = "it reads what it should not"
NAME = "billing-agent"
FIX = "UPDATE invoices SET paid = true WHERE id = 1"


@pytest.fixture(scope="module")
def operator_of_broker(crds: ApiServer, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator where the broker is, with the webhooks that sign suspensions."""
    held = Operator(crds, broker.system, tmp_path_factory.mktemp("operator"))
    port = free_ports(1)[0]
    registered = registrations(broker.system, port)
    for one in registered:
        one["webhooks"] = [webhook for webhook in one["webhooks"] if "suspension" in webhook["name"]]
    rules = [{"apiGroups": ["chaperone.dev"], "resources": ["agentidentities"], "verbs": ["get", "list", "patch"]}]
    group = "rbac.authorization.k8s.io"
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": "responder-test"}
    metadata: dict[str, Any] = {"name": "responder-test"}
    held.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": broker.agents, "labels": WATCHED}},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": metadata, "roleRef": reference,
            "subjects": [{"apiGroup": group, "kind": "User", "name": RESPONDER}],
        },
        service(broker.system), *registered,
    )  # fmt: skip
    try:
        held.start(f"--kubeconfig={broker.api.kubeconfig}", port=port)
        yield held
    finally:
        held.end()
        for one in registered:
            held.kubectl("delete", one["kind"].lower(), "chaperone", "--ignore-not-found", is_checked=False)
        held.kubectl("delete", "accesspolicy,agentidentity", "--all", "-n", broker.agents)
        asyncio.run(broker.put_snapshot(broker.compiled()))


@pytest.fixture
async def declared(operator_of_broker: Operator, broker: Broker, postgres: Postgres) -> AsyncIterator[str]:
    """Identity, target and policy in force; gives the revision."""
    held, namespace = operator_of_broker, broker.agents
    database = target(
        "kill-db", port=postgres.port, hosts=["kill-db.data.svc"],
        upstream={"host": "kill-db.data.svc", "port": postgres.port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "real-ca"}},
        credential={"secretRef": {"name": "real-writer"}}, allowedNamespaces={"names": [namespace]},
    )  # fmt: skip
    rules = [
        rule("read", "Allow", ["read", "execute_code"]),
        rule("copy", "Allow", ["bulk_read", "bulk_write", "create"]),
        rule("fix", "RequireApproval", ["modify"], approval={"groups": ["billing-leads"], "wait": "5m"}),
    ]
    await asyncio.to_thread(held.apply, *map(_plain, (_identity(namespace), database, _policy(rules, namespace))))
    found = await asyncio.to_thread(
        held.eventually,
        lambda: held.get("accesspolicy", "billing", "-n", namespace).get("status", {}),
        lambda status: any(one["status"] == "True" for one in status.get("conditions", ())),
    )
    yield found["revision"]
    await asyncio.to_thread(held.kubectl, "delete", "accesspolicy,agentidentity", "--all", "-n", namespace)


def _identity(namespace: str) -> dict[str, Any]:
    spec = {"selector": {"matchLabels": {"chaperone.dev/identity": NAME}}, "owner": {"name": "Billing on-call"}}
    return {
        "apiVersion": "chaperone.dev/v1alpha1", "kind": "AgentIdentity",
        "metadata": {"name": NAME, "namespace": namespace}, "spec": spec,
    }  # fmt: skip


def _policy(
    rules: list[dict[str, Any]], namespace: str, name: str = "billing", where: str = "kill-db"
) -> dict[str, Any]:
    return policy(rules, name, namespace, targets=[{"name": where}])


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    kept = {key: item["metadata"][key] for key in ("name", "namespace") if key in item["metadata"]}
    return {**item, "metadata": kept}


async def chaperone(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`kubectl chaperone`, as the responder types it."""
    binaries = os.environ.get("CHAPERONE_BIN", f"{os.environ['HOME']}/.cache/chaperone/bin")
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "chaperone_cli.main", *arguments, "-n", broker.agents]
    command += ["--kubeconfig", str(broker.api.kubeconfig_of(RESPONDER))]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


async def ended(work: asyncio.Task[Any]) -> tuple[float, BaseException | None]:
    """When a statement ended, and how."""
    await asyncio.wait([work])
    return time.monotonic(), work.exception()


async def bundle_of(broker: Broker, operator: Operator) -> bytes:
    name = f"snapshot-{broker.agents}"
    found = await asyncio.to_thread(operator.get, "configmap", name, "-n", broker.system)
    return base64.b64decode(found["binaryData"]["bundle.tar.gz"])


@dataclass
class Running:
    """A gateway under that policy, whose records go to a collector."""

    gateway: Gateway
    port: int
    opa: Opa
    collector: Collector


@pytest.fixture
async def pod(
    broker: Broker, operator_of_broker: Operator, declared: str, collector_with: Callable[..., Collector],
    opa_with: Callable[[bytes], Opa], postgres: Postgres, tmp_path: Path,
) -> AsyncIterator[Running]:  # fmt: skip
    held, collector = operator_of_broker, collector_with()
    # Pods do not end by themselves here, and the identity counts its own.
    await asyncio.to_thread(held.kubectl, "delete", "pod", "--all", "-n", broker.agents, "--force", "--grace-period=0")
    await install(broker, postgres, collector)
    opa = opa_with(await bundle_of(broker, held))
    async with running(broker, collector, opa, tmp_path, f"kill-{secrets.token_hex(4)}") as (gateway, port, _):
        assert gateway.config.revision == declared
        await _until_covered(held, broker)
        yield Running(gateway, port, opa, collector)


async def _query(agent: Agent) -> None:
    await agent.execute("SELECT pg_sleep(600)")


async def _copy_in(agent: Agent) -> None:
    async with agent.cursor() as cursor, cursor.copy("COPY invoices (id, paid) FROM STDIN") as copy:
        await copy.write("".join(f"{number}\tf\n" for number in range(1000, 11_000)))
        await _addressed(agent)


async def _copy_out(agent: Agent) -> None:
    text = "COPY (SELECT pg_sleep(0.01), a.customer FROM orders a, orders b) TO STDOUT"
    async with agent.cursor() as cursor, cursor.copy(text) as copy:
        async for _ in copy:
            pass


async def _copy_out_unread(postgres: Postgres, agent: Agent) -> None:
    """Asks for gigabytes and reads one row until the backend is gone: every buffer on the way is full."""
    text = "COPY (SELECT repeat(a.customer, 500) FROM orders a, orders b) TO STDOUT"
    async with agent.cursor() as cursor, cursor.copy(text) as copy:
        await copy.read()
        await _gone(postgres, agent.info.backend_pid)
        async for _ in copy:
            pass


async def _idle(agent: Agent) -> None:
    await _addressed(agent)
    await agent.execute("SELECT 1")


async def _transaction(agent: Agent) -> None:
    await agent.execute("BEGIN")
    await agent.execute("SELECT count(*) FROM orders")
    await _idle(agent)


async def _hold(agent: Agent) -> None:
    await agent.execute(FIX)


async def _addressed(agent: Agent) -> None:
    """Until something comes that the client did not ask for; libpq itself does not look."""
    loop, come = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(agent.fileno(), come.set)
    try:
        await come.wait()
    finally:
        loop.remove_reader(agent.fileno())


async def _gone(postgres: Postgres, backend: int) -> float:
    """When that process had ended."""
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    with postgres.admin() as admin:
        await until(lambda: not admin.execute(query, [backend]).fetchall())
    return time.monotonic()


BEGUN = {
    "query": (_query, "state = 'active' AND query LIKE 'SELECT pg_sleep(600)%%'"),
    "COPY in": (_copy_in, "wait_event = 'ClientRead' AND state = 'active' AND query LIKE 'COPY invoices%%'"),
    "COPY out": (_copy_out, "state = 'active' AND query LIKE 'COPY (SELECT pg_sleep%%'"),
    "idle": (_idle, "state = 'idle'"),
    "transaction": (_transaction, "state = 'idle in transaction'"),
    "hold": (_hold, "state = 'idle'"),
    "COPY out, unread": (_copy_out_unread, "wait_event = 'ClientWrite' AND query LIKE 'COPY (SELECT repeat%%'"),
}
"""What sessions do, and by what one sees at their backends that they do it."""


async def test_suspend_cuts_whatever_sessions_do_refuses_what_comes_and_says_who(
    broker: Broker, operator_of_broker: Operator, pod: Running, postgres: Postgres, tmp_path: Path
) -> None:
    held, gateway = operator_of_broker, pod.gateway
    works: dict[str, asyncio.Task[tuple[float, BaseException | None]]] = {}
    pids: dict[str, int] = {}  # a connection that is closed tells none
    with postgres.admin() as admin:
        for name, (work, looks) in BEGUN.items():
            agent = await connect(pod.port)
            pids[name] = agent.info.backend_pid
            start = partial(work, postgres) if work is _copy_out_unread else work
            works[name] = asyncio.create_task(ended(asyncio.create_task(start(agent))))
            seen = f"SELECT 1 FROM pg_stat_activity WHERE pid = %s AND {looks}"
            await until(lambda: admin.execute(seen, [pids[name]]).fetchall() != [])  # noqa: B023
    await asyncio.to_thread(held.eventually, lambda: _states(held, broker), lambda found: found == ["Pending"])
    assert not [name for name, work in works.items() if work.done()]
    backends = {name: asyncio.create_task(_gone(postgres, pid)) for name, pid in pids.items()}

    began, began_unix = time.monotonic(), time.time()
    done = await chaperone(broker, "suspend", NAME, "--reason", REASON, "--yes")
    confirmed = time.monotonic()
    assert done.returncode == 0, done.stdout + done.stderr
    stamp = (await asyncio.to_thread(held.get, "agentidentity", NAME, "-n", broker.agents))["spec"]["suspension"]
    assert (stamp["by"], stamp["reason"]) == (RESPONDER, REASON)
    told = f'AgentIdentity "{NAME}" is suspended by {RESPONDER} since {stamp["at"]} ({REASON}).'
    ordered = began + datetime.fromisoformat(stamp["at"]).timestamp() - began_unix
    print(f"ordered {ordered - began:.2f} s after the command was typed, in whole seconds of the clock")
    for name, work in works.items():
        (at, error), gone = await work, await backends[name]
        print(f"{name}: told {at - ordered:.2f} s, backend gone {gone - ordered:.2f} s after the order")
        # A client that sends COPY data reads nothing meanwhile, so libpq may find the connection closed first.
        expected = psycopg.Error if name == "COPY in" else errors.InsufficientPrivilege
        assert isinstance(error, expected), (name, error)
        if isinstance(error, errors.InsufficientPrivilege):
            assert (error.diag.severity, told in str(error)) == ("FATAL", True)
    assert f"{broker.agents}/{NAME}: 1 of 1 gateways confirmed" in done.stdout
    print(f"confirmed {confirmed - began:.2f} s after the command was typed: {done.stdout}")
    with pytest.raises(psycopg.OperationalError, match="is suspended by responder-1"):
        await connect(pod.port)
    await asyncio.to_thread(held.eventually, lambda: _states(held, broker), lambda found: found == ["Cancelled"])

    condition = await asyncio.to_thread(held.condition, "agentidentity", NAME, broker.agents)
    assert (condition["status"], condition["reason"]) == ("False", "Suspended")  # written with what was confirmed
    assert f"suspended by {RESPONDER} at {stamp['at']}: {REASON}" in condition["message"]
    await asyncio.to_thread(
        held.eventually,
        lambda: held.get("events.events.k8s.io", "-n", broker.agents)["items"],
        lambda found: any(one["reason"] == "Suspended" and RESPONDER in one["note"] for one in found),
    )

    assert (await chaperone(broker, "suspend", NAME, "--reason", "again", "-y")).stdout.startswith("suspend: nothing")
    done = await chaperone(broker, "resume", NAME, "--reason", "it was the wrong one", "-y")
    assert done.returncode == 0, done.stdout + done.stderr
    await until(lambda: gateway.config.suspension is None)
    async with await connect(pod.port) as agent:
        assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
    gateway.write_head()
    await until(
        lambda: pod.collector.rows("SELECT count(*) FROM session WHERE ended_us IS NOT NULL")[0][0] > len(BEGUN)
    )
    found = read_records(tmp_path / "spool")
    [suspended, resumed] = [one for one in found if isinstance(one, record.IdentitySuspension)]
    assert (suspended.state, suspended.by, suspended.at, suspended.reason, suspended.sessions) == (
        "Suspended", RESPONDER, stamp["at"], REASON, len(BEGUN),
    )  # fmt: skip
    assert resumed.state == "Resumed"
    cut = [one for one in found if isinstance(one, record.SessionClose) and one.reason == told]
    assert len(cut) == len(BEGUN)
    assert all(one.seq > suspended.seq for one in cut)
    aborted = [one for one in found if isinstance(one, record.CommandOutcome) and one.status == "aborted"]
    assert len({one.session for one in aborted}) == 4  # the query and the three COPY
    refused = [one for one in found if isinstance(one, record.EgressDenied)]
    assert {(one.address, one.reason) for one in refused} == {("kill-db", "suspended")}


async def test_neither_a_broken_policy_nor_an_opa_that_hangs_shields_an_agent(
    broker: Broker, operator_of_broker: Operator, declared: str, pod: Running
) -> None:
    held = operator_of_broker
    agent = await connect(pod.port)
    pod.opa.process.send_signal(19)  # SIGSTOP: from now on it loads nothing
    try:
        more = _policy([rule("more", "Allow", ["delete"])], broker.agents, "more")
        await asyncio.to_thread(held.apply, _plain(more))
        await asyncio.to_thread(_wait_other_revision, held, broker, declared)
        broken = _policy([rule("read", "Allow", ["read"])], broker.agents, "broken", "nowhere")
        await asyncio.to_thread(held.apply, _plain(broken))
        await asyncio.to_thread(held.eventually, lambda: held.condition("accesspolicy", "broken", broker.agents), bool)
        began = time.monotonic()
        await asyncio.to_thread(
            held.kubectl, "patch", "agentidentity", NAME, "-n", broker.agents, "--type=merge",
            "-p", '{"spec":{"suspended":true}}',
        )  # fmt: skip
        await until(lambda: pod.gateway.config.suspension is not None)
        print(f"cut {time.monotonic() - began:.2f} s after the patch")
        with pytest.raises(psycopg.Error, match="is suspended by admin"):
            await agent.execute("SELECT 1")
    finally:
        pod.opa.process.send_signal(18)
    condition = await asyncio.to_thread(  # the operator stores what gateways follow before it says so
        held.eventually,
        lambda: held.condition("agentidentity", NAME, broker.agents),
        lambda found: found.get("reason") == "Suspended",
    )
    assert "AccessPolicy broken" in condition["message"]


def _states(held: Operator, broker: Broker) -> list[str]:
    found = held.get("approvalrequests", "-n", broker.agents)["items"]
    return [one["status"]["state"] for one in found]


async def _until_covered(held: Operator, broker: Broker) -> None:
    """Until the operator has seen the one pod of this test, and that those of others are gone."""
    await asyncio.to_thread(
        held.eventually,
        lambda: held.get("agentidentity", NAME, "-n", broker.agents)["status"]["pods"],
        lambda pods: pods["covered"] == 1,
    )


def _wait_other_revision(held: Operator, broker: Broker, revision: str) -> None:
    held.eventually(
        lambda: held.get("configmap", f"snapshot-{broker.agents}", "-n", broker.system)["metadata"]["annotations"],
        lambda found: found["chaperone.dev/revision"] != revision,
    )
