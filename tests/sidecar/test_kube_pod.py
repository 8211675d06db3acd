"""Kubernetes through a gateway as it runs in a pod: the kill switch, records that are synced or witnessed.

The broker, OPA, the collector and the API server are real; the credential is a token that the broker asks for.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from evidence_directory import read_records
from failing_disk import fail_disk
from fix_broker import ROLE_BINDINGS, ROLES, Broker, secret
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres
from forwarding import POD, Forwarder, forwarding
from manifests import Object, identity, policy, rule, target
from pod_gateway import SEVERAL, install, running, until
from ports import free_port

from chaperone_evidence import record
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import CONFIG_MAPS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
GROUP = "rbac.authorization.k8s.io"
LIMITED = {"classified": [{"columns": ["public.customers.email"], "class": "email"}]}  # a target that is another one
RULES = [
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "delete"]},
    {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"], "resourceNames": ["worker"]},
]


@pytest.fixture
async def place(broker: Broker, collector_with: Callable[..., Collector]) -> tuple[str, Collector]:
    """A namespace with an account that may do things to ConfigMaps, and a collector that takes records."""
    collector = collector_with()
    async with broker.admin() as client:
        namespace: str = (await client.create(NAMESPACES, {"metadata": {"generateName": "kube-"}}))["metadata"]["name"]
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "worker"}}, namespace)
        work = [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        ]
        user = f"system:serviceaccount:{broker.system}:chaperone-broker"
        for name, rules, subject in (
            ("broker", RULES, {"kind": "User", "apiGroup": GROUP, "name": user}),
            ("worker", work, {"kind": "ServiceAccount", "name": "worker", "namespace": namespace}),
        ):
            named = {"metadata": {"name": name}}
            await client.create(ROLES, named | {"rules": rules}, namespace)
            reference = {"apiGroup": GROUP, "kind": "Role", "name": name}
            await client.create(ROLE_BINDINGS, named | {"subjects": [subject], "roleRef": reference}, namespace)
        ca = secret("cluster-ca", "Opaque", **{"ca.crt": broker.api.authority.pem})
        await client.apply(SECRETS, "cluster-ca", ca, manager="test", namespace=broker.system)
        trust = await client.get(CONFIG_MAPS, "chaperone-trust", broker.system)
    (collector.folder / "gateway-ca.crt").write_text(trust["data"]["gateway-ca.crt"])
    return namespace, collector


def compiled(
    broker: Broker, namespace: str, *more: Object, is_suspended: bool = False, durability: str = "Written"
) -> Snapshot:
    """A policy that lets the identity do everything to ConfigMaps, and reach pods, of that namespace.

    `more` are targets beside the API server, at which it may read.
    """
    cluster = target(
        "cluster", protocol="Kubernetes", hosts=["kubernetes.default.svc"],
        upstream={"host": "kubernetes.default.svc", "port": int(broker.api.url.rpartition(":")[2])},
        tls={"mode": "VerifyFull", "caSecretRef": {"name": "cluster-ca"}, "serverName": "localhost"},
        credential={"kubernetesToken": {"serviceAccount": "worker", "namespace": namespace}},
        allowedNamespaces={"names": [broker.agents]},
    )  # fmt: skip
    rules = [
        rule("maps", "Allow", ["read", "create", "modify", "delete"], [f"{namespace}.core.configmaps.*"]),
        rule("pods", "Allow", ["read", "tunnel"], [f"{namespace}.core.pods*.*", "path:*"]),
    ]
    policies = [policy(rules, namespace=broker.agents, targets=[{"name": "cluster"}])]
    if more:
        reads = [rule("read", "Allow", ["read", "session"])]
        targets = [{"name": one["metadata"]["name"]} for one in more]
        policies.append(policy(reads, "within", namespace=broker.agents, targets=targets))
    subject = identity(namespace=broker.agents, suspended=is_suspended, evidence={"durability": durability})
    snapshot = compile_namespace(
        broker.agents, [subject], [cluster, *more], policies, [], namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    return snapshot


class Agent:
    """One connection of an agent."""

    def __init__(self, port: int, namespace: str) -> None:
        self.path = f"/api/v1/namespaces/{namespace}/configmaps"
        context = ssl._create_unverified_context()  # noqa: S323 - who the gateway is, is tested elsewhere
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60)
        plain = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._connection.sock = context.wrap_socket(plain, server_hostname="kubernetes.default.svc")

    def ask(self, method: str, path: str = "", content: Any = None) -> tuple[int, dict[str, Any]]:
        """One request's answer."""
        raw = None if content is None else json.dumps(content)
        self._connection.request(method, self.path + path, raw, {"Content-Type": "application/json"} if raw else {})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def make(self, name: str) -> tuple[int, dict[str, Any]]:
        """Create a ConfigMap."""
        return self.ask("POST", content={"metadata": {"name": name}})

    def watch(self) -> http.client.HTTPResponse:
        """Begin to follow ConfigMaps."""
        self._connection.request("GET", f"{self.path}?watch=1")
        return self._connection.getresponse()

    def close(self) -> None:
        """Go."""
        self._connection.close()


async def names(broker: Broker, namespace: str) -> set[str]:
    """Of the ConfigMaps that there are."""
    async with broker.admin() as client:
        found = await client.list(CONFIG_MAPS, namespace)
    return {one["metadata"]["name"] for one in found.items} - {"kube-root-ca.crt"}


def told(answer: tuple[int, dict[str, Any]]) -> tuple[int, str, str]:
    """Status, reason and message of a refusal."""
    status, content = answer
    assert content["kind"] == "Status"
    return status, content["reason"], content["message"]


async def test_a_suspension_ends_a_watch_and_says_who_to_what_comes(
    broker: Broker, place: tuple[str, Collector], opa_with: Callable[[bytes], Opa], tmp_path: Path
) -> None:
    namespace, collector = place
    snapshot = compiled(broker, namespace)
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "kube-cut") as (gateway, port, _):
        waiting, agent = [await asyncio.to_thread(Agent, port, namespace) for _ in range(2)]
        assert (await asyncio.to_thread(waiting.make, "seen"))[0] == 201
        events = await asyncio.to_thread(agent.watch)
        assert b'"ADDED"' in await asyncio.to_thread(events.readline)
        rest = asyncio.create_task(asyncio.to_thread(read_to_the_end, events))
        await broker.put_snapshot(compiled(broker, namespace, is_suspended=True))
        assert await rest == "broken off"  # which no client takes for the end of an answer
        assert gateway.config.suspension is not None
        await asyncio.to_thread(refused_or_closed, waiting)
        later = await asyncio.to_thread(Agent, port, namespace)
        status, reason, message = told(await asyncio.to_thread(later.make, "never"))
        assert (status, reason) == (403, "Forbidden")
        assert "is suspended" in message
        for one in (waiting, agent, later):
            one.close()
    assert await names(broker, namespace) == {"seen"}
    found = read_records(tmp_path / "spool")
    intent = next(one for one in found if isinstance(one, record.CommandIntent) and one.kind == "watch")
    ended = next(one for one in found if isinstance(one, record.CommandOutcome) and one.command == intent.command)
    assert ended.status in ("aborted", "error")
    reasons = [one.reason for one in found if isinstance(one, record.SessionClose)]
    assert sum("is suspended" in one for one in reasons) >= 2, reasons


def database(broker: Broker, name: str, port: int, host: str = "orders-db.data.svc") -> Object:
    """A target that is a database at a port."""
    return target(
        name, port=port, upstream={"host": host, "port": port, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "localhost", "caSecretRef": {"name": "real-ca"}},
        credential={"secretRef": {"name": "real-writer"}}, allowedNamespaces={"names": [broker.agents]},
    )  # fmt: skip


def config_of(port: int, folder: Path) -> Path:
    """A kubeconfig for the gateway."""
    path = folder / "agent.kubeconfig"
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "agent",
        "contexts": [{"name": "agent", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {"token": "worth-nothing"}}],
    }  # fmt: skip
    path.write_text(json.dumps(config))
    return path


async def test_policy_and_suspension_reach_into_an_open_port_forward(
    broker: Broker, place: tuple[str, Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres, tmp_path: Path
) -> None:
    namespace, collector = place
    await install(broker, postgres, collector)
    async with broker.admin() as client:
        pod = {"metadata": {"name": POD}, "spec": {"nodeName": "here", "containers": [{"name": "c", "image": "i"}]}}
        await client.create(PODS, pod, namespace)
        status = {"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}
        await client.merge_patch(PODS, POD, status, namespace, "status")
    orders, spread = database(broker, "orders-db", postgres.port), database(broker, "spread", free_port(), SEVERAL)
    snapshot = compiled(broker, namespace, orders, spread)
    await broker.put_snapshot(snapshot)
    opa = opa_with(snapshot.bundle)
    async with running(broker, collector, opa, tmp_path, "kube-ports") as (gateway, port, seen):
        here = ipaddress.ip_address("127.0.0.1")
        assert await gateway.targets_at(frozenset({here}), spread["spec"]["port"]) == ()  # it leads elsewhere, too
        assert await gateway.targets_at(frozenset({here, here + 1}), spread["spec"]["port"]) != ()

        def first(kubectl: Forwarder) -> psycopg.Connection:
            connection = kubectl.connect()
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1000,)
            return connection

        def broken(connection: psycopg.Connection, why: str | None = None) -> None:
            with pytest.raises(psycopg.Error, match=why):
                connection.execute("SELECT count(*) FROM orders")

        forwarder = forwarding(config_of(port, tmp_path), tmp_path, postgres.port, namespace=namespace)
        kubectl = await asyncio.to_thread(forwarder.__enter__)
        try:
            connection = await asyncio.to_thread(first, kubectl)
            await broker.put_snapshot(
                changed := compiled(broker, namespace, orders | {"spec": orders["spec"] | LIMITED})
            )
            await until(lambda: seen[-1].revision == changed.revision)
            await asyncio.to_thread(broken, connection, "is no longer as it was")
            connection = await asyncio.to_thread(first, kubectl)  # within the same port-forward
            await broker.put_snapshot(compiled(broker, namespace, orders, is_suspended=True))
            await until(lambda: gateway.suspended is not None)
            await asyncio.to_thread(broken, connection)  # it hears why where kubectl has passed that on in time
            await asyncio.to_thread(kubectl.until, "lost connection to pod")
        finally:
            await asyncio.to_thread(forwarder.__exit__, None, None, None)
    found = read_records(tmp_path / "spool")
    (intent,) = [
        one for one in found if isinstance(one, record.CommandIntent) and "portforward" in one.accesses[0].object
    ]
    ended = next(one for one in found if isinstance(one, record.CommandOutcome) and one.command == intent.command)
    assert (ended.status, ended.code) == ("error", "Suspended")
    within = [one for one in found if isinstance(one, record.SessionOpen) and one.client.startswith("port-forward ")]
    assert [one.target for one in within] == ["orders-db", "orders-db"]
    closed = {one.session: one.reason for one in found if isinstance(one, record.SessionClose)}
    assert "is suspended" in closed[within[1].session]


def read_to_the_end(events: http.client.HTTPResponse) -> str:
    """How a watch ends."""
    try:
        events.read()
    except (http.client.IncompleteRead, ConnectionError, ssl.SSLError):
        return "broken off"
    return "ended"


def refused_or_closed(agent: Agent) -> None:
    """A connection without a request was closed, and no request passes on it."""
    with pytest.raises((http.client.HTTPException, ConnectionError, ssl.SSLError)):
        agent.make("never")


async def test_with_a_disk_that_fails_nothing_runs_any_more_and_the_client_hears_why(
    broker: Broker, place: tuple[str, Collector], opa_with: Callable[[bytes], Opa], tmp_path: Path
) -> None:
    namespace, collector = place
    snapshot = compiled(broker, namespace, durability="Synced")
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "kube-sync") as (_, port, _):
        agent = await asyncio.to_thread(Agent, port, namespace)
        assert (await asyncio.to_thread(agent.make, "synced"))[0] == 201
        assert fail_disk(tmp_path / "spool") >= 2
        status, reason, message = told(await asyncio.to_thread(agent.make, "lost"))
        assert (status, reason) == (503, "ServiceUnavailable")
        assert "spool failed" in message
        agent.close()
    assert await names(broker, namespace) == {"synced"}


async def test_nothing_runs_while_the_collector_is_away_and_the_client_hears_why(
    broker: Broker, place: tuple[str, Collector], opa_with: Callable[[bytes], Opa], tmp_path: Path
) -> None:
    namespace, collector = place
    snapshot = compiled(broker, namespace, durability="Witnessed")
    await broker.put_snapshot(snapshot)
    async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "kube-witness") as (_, port, _):
        agent = await asyncio.to_thread(Agent, port, namespace)
        assert (await asyncio.to_thread(agent.make, "witnessed"))[0] == 201
        collector.kill()
        status, reason, message = told(await asyncio.to_thread(agent.make, "alone"))
        assert (status, reason) == (503, "ServiceUnavailable")
        assert "no receipt of the evidence log" in message
        collector.more = ("--api-port", "-1", "--ingest-port", str(collector.ports[-2]))  # where it listened before
        collector.start()
        await until(lambda: collector.rows("SELECT count(*) FROM entry")[0][0] > 0)
        assert (await asyncio.to_thread(agent.make, "again"))[0] == 201
        agent.close()
    assert await names(broker, namespace) == {"witnessed", "again"}
    codes = [
        (one.status, one.code)
        for one in read_records(tmp_path / "spool")
        if isinstance(one, record.CommandOutcome) and one.code
    ]
    assert codes == [("refused", "unwitnessed")]
