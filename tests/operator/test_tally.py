"""Use in statuses: what gateways recorded at a real collector, written by the operator with its own rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from fix_operator import Operator
from gateway_stream import Pod, Stream
from manifests import cluster_policy, identity, policy, rule
from pki import Authority

from chaperone_operator import kubeconfig
from chaperone_operator.kube import Client
from chaperone_operator.metrics import Metrics
from chaperone_operator.reconcile.backlog import Backlog
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.loop import Reconciler
from chaperone_operator.reconcile.tally import Counter, Tallies, Tallying, identity_status, policy_status
from chaperone_operator.reconcile.world import KINDS, Change, World
from chaperone_operator.signing import Signer

SIGNER = Signer("cluster-uid/operator", Ed25519PrivateKey.generate())
RULES = [rule("read-orders", "Allow", ["read"], ["public.orders"]), rule("never", "Deny", ["destroy"])]


def tallied(*counters: tuple[Any, ...]) -> Tallies:
    found = Tallies()
    for one in counters:
        found.take(Counter(*one))
    return found


def test_a_rule_that_never_fired_is_shown_with_nothing() -> None:
    found = tallied(
        ("Rule", "agents", "agents/billing", "read-orders", "Allow", 4, "2026-01-01T00:00:00.5Z"),
        ("Rule", "agents", "agents/billing", "read-orders", "RequireApproval", 1, "2026-01-02T00:00:00.0Z"),
        ("Rule", "agents", "agents/billing", "gone", "Allow", 9, "2026-01-03T00:00:00.0Z"),
    )
    assert policy_status(found, policy(RULES)) == {
        "rules": [
            {"name": "read-orders", "fired": 5, "lastFired": "2026-01-02T00:00:00.0Z"},
            {"name": "never", "fired": 0},
        ],
        "fired": 5,
        "neverFired": 1,
    }


def test_what_an_observed_rule_would_have_decided_is_not_what_it_decided() -> None:
    found = tallied(("Would", "agents", "agents/billing", "never", "Deny", 3, "2026-01-01T00:00:00.0Z"))
    status = policy_status(found, policy(RULES, mode="Observe"))
    assert status["rules"][1] == {
        "name": "never", "fired": 0, "would": 3, "lastWould": "2026-01-01T00:00:00.0Z"
    }  # fmt: skip
    assert (status["fired"], status["neverFired"]) == (0, 1)


def test_a_cluster_policy_has_the_sum_and_no_namespace_counts_for_another() -> None:
    found = tallied(
        ("Rule", "agents", "guardrail", "never", "Deny", 2, "2026-01-01T00:00:00.0Z"),
        ("Rule", "others", "guardrail", "never", "Deny", 5, "2026-01-03T00:00:00.0Z"),
        ("Rule", "others", "agents/billing", "never", "Deny", 7, "2026-01-03T00:00:00.0Z"),
    )
    (_, never) = policy_status(found, cluster_policy(RULES, "guardrail"))["rules"]
    assert never == {"name": "never", "fired": 7, "lastFired": "2026-01-03T00:00:00.0Z"}
    assert policy_status(found, policy(RULES))["fired"] == 0


def test_a_counter_that_comes_again_replaces_what_it_said() -> None:
    first = ("Identity", "agents", "billing-agent", "", "Allow", 4, "2026-01-01T00:00:00.0Z")
    later = (*first[:5], 6, "2026-01-05T00:00:00.0Z")
    denied = ("Identity", "agents", "billing-agent", "", "Deny", 2, "2026-01-02T00:00:00.0Z")
    item = identity("billing-agent", "agents")
    assert identity_status(tallied(first, denied, later), item) == {
        "denials": 2, "lastActivity": "2026-01-05T00:00:00.0Z"
    }  # fmt: skip
    assert identity_status(tallied(), item) == {"denials": 0}


def worked(stream: Stream, namespace: str, guardrail: str, reads: int) -> None:
    session = stream.open_session()
    for number in range(reads):
        stream.intend(session, f"SELECT {number}", policy=f"{namespace}/billing")
    stream.intend(session, "DROP TABLE orders", decision="Deny", policy=guardrail, rule="never")
    stream.head()


@pytest.fixture
async def operating(installation: Operator) -> AsyncIterator[Callable[[], Awaitable[asyncio.Task[None]]]]:
    """Start what reconciles and what tells of use, with the operator's own rights."""
    tasks: list[asyncio.Task[None]] = []
    access = kubeconfig.find(str(installation.api.kubeconfig_of("operator")), None)
    async with Client(access) as client:

        async def start() -> asyncio.Task[None]:
            def changed(change: Change, namespace: str) -> None:
                reconciler.changed(change, namespace)

            world = World(changed)
            leadership = Leadership(client, installation.system_namespace, f"replica-{len(tasks)}")
            reconciler = Reconciler(
                client, world, leadership, Backlog(), Metrics(), installation.system_namespace, "replica"
            )
            for resource in KINDS:
                world.replace(resource, await client.list(resource))

            async def run() -> None:
                async with asyncio.TaskGroup() as group:
                    parts = (leadership.run(), reconciler.run(SIGNER), Tallying(client, world, leadership, 0.5).run())
                    for part in parts:
                        group.create_task(part)

            tasks.append(asyncio.create_task(run()))
            return tasks[-1]

        yield start
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_statuses_say_how_often_rules_fired_and_go_on_after_a_restart(
    installation: Operator,
    evidence_api: EvidenceApi,
    gateway_ca: Authority,
    operating: Callable[[], Awaitable[asyncio.Task[None]]],
) -> None:
    await asyncio.to_thread(evidence_api.register)
    namespace = await asyncio.to_thread(installation.namespace, "tally")
    guardrail = f"guardrail-{namespace}"
    floor = cluster_policy([RULES[1]], guardrail, subjects=[{"identity": "*", "namespace": namespace}])
    for item in (identity("billing-agent", namespace), policy(RULES, "billing", namespace), floor):
        named = {key: item["metadata"][key] for key in ("name", "namespace") if item["metadata"].get(key)}
        await asyncio.to_thread(installation.apply, item | {"metadata": named})

    def fired() -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for kind, name, where in (("ap", "billing", ("-n", namespace)), ("cap", guardrail, ())):
            status = installation.get(kind, name, *where).get("status") or {}
            found += [(one["name"], one["fired"]) for one in status.get("rules") or ()]
        return found

    async def come(*wanted: tuple[str, int]) -> None:
        await asyncio.to_thread(installation.eventually, fired, lambda found: found == list(wanted), 75.0)

    pod = Pod(gateway_ca, namespace=namespace, pod_uid=f"uid-{namespace}")
    stream = Stream(pod)
    async with Sender(evidence_api.collector, pod) as sender:
        first = await operating()
        await come(("read-orders", 0), ("never", 0), ("never", 0))
        worked(stream, namespace, guardrail, 3)
        await sender.ship(stream)
        await come(("read-orders", 3), ("never", 0), ("never", 1))
        seen = await asyncio.to_thread(installation.eventually, lambda: _seen(installation, namespace), bool)
        assert seen["denials"] == 1
        assert seen["lastActivity"].startswith("20")
        await asyncio.to_thread(  # what the reconciling loop writes stands beside
            installation.eventually, lambda: installation.condition("accesspolicy", "billing", namespace), bool
        )
        shown = await asyncio.to_thread(installation.kubectl, "get", "ap", "-n", namespace, "-o", "wide")
        heads, cells = shown.strip().split("\n")
        assert heads.split()[-3:-1] == ["FIRED", "NEVER-FIRED"]
        assert cells.split()[-3:-1] == ["3", "1"]
        for _ in range(5):  # others may write the status meanwhile, but not for ever
            version = await asyncio.to_thread(_version, installation, namespace)
            await asyncio.sleep(1.5)  # three looks in which nothing changes
            if await asyncio.to_thread(_version, installation, namespace) == version:
                break
        else:
            pytest.fail("what did not change is written again and again")
        first.cancel()
        await asyncio.wait([first])
        worked(stream, namespace, guardrail, 2)
        await sender.ship(stream)
        await operating()
        await come(("read-orders", 5), ("never", 0), ("never", 2))


def _seen(installation: Operator, namespace: str) -> dict[str, Any]:
    """The identity's status once its denial has come."""
    found: dict[str, Any] = installation.get("agentidentity", "billing-agent", "-n", namespace).get("status") or {}
    return found if found.get("denials") else {}


def _version(installation: Operator, namespace: str) -> str:
    found: str = installation.get("ap", "billing", "-n", namespace)["metadata"]["resourceVersion"]
    return found
