"""A broker that leases a target with a credential of the test's own, and pods that ask for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import msgspec
from fix_broker import Broker, Pod
from manifests import Object, identity, policy, rule, target

from chaperone_evidence import ulid
from chaperone_operator.compile import compile_namespace
from chaperone_operator.compile.credential import Credential, Place, reference
from chaperone_operator.kube import ACCESS_TARGETS, LEASES, PODS

TARGET = "leased"
WAIT_S = 60.0
NOT_NOW = {403, 429, 503}  # policy is not known yet, the pod has asked too often, the broker has just been started
_revisions: dict[str, str] = {}  # of the policy that was put last, by the broker's namespace


def session() -> str:
    """A new session's ULID."""
    return ulid.encode(time.time_ns() // 1_000_000, os.urandom(ulid.RANDOM_BYTES))


async def put_target(
    broker: Broker, credential: Object, place: Place, ca_secret: str = "", *, rules: bool = True
) -> None:
    """Policy that grants `billing-agent` a target with that credential, wherever it is; without rules, nothing.

    A target never leads to loopback, so the place of a test's server is written past the compiler. Its revision is
    another one each time, by which `leased` and `refused` know a broker that has not heard of it yet.
    """
    allowed: Object = {"allowedNamespaces": {"names": [broker.agents]}}
    effect = "Allow" if rules else "Deny"
    snapshot = compile_namespace(
        broker.agents,
        [identity(namespace=broker.agents), identity("other-agent", namespace=broker.agents)],
        [target(TARGET, **allowed), target(tls={"caSecretRef": {"name": "orders-db-ca"}}, **allowed)],
        [
            policy(
                [rule(f"r{time.monotonic_ns()}", effect, ["read"])],
                namespace=broker.agents,
                targets=[{"name": TARGET}, {"name": "orders-db"}],
            )
        ],
        [],
        namespace_labels={},
        system_namespace=broker.system,
    )
    assert snapshot.is_usable, snapshot.problems
    leases = msgspec.json.decode(snapshot.leases)
    for granted in leases.values():
        if TARGET in granted:
            granted[TARGET] = reference(msgspec.convert(credential, Credential), ca_secret, place)
    async with broker.admin() as client:
        await client.apply(ACCESS_TARGETS, TARGET, {"spec": target(TARGET)["spec"]}, manager="test")
    await broker.put_snapshot(msgspec.structs.replace(snapshot, leases=msgspec.json.encode(leases)))
    _revisions[broker.system] = snapshot.revision


async def enrolled(broker: Broker, name: str = "") -> Pod:
    """A pod whose gateway has its certificate."""
    pod = await broker.pod(name or f"leasing-{time.monotonic_ns()}")
    await pod.set_status(restarts=0)
    status, answer = await pod.exchange()
    assert status == 200, answer
    return pod


async def _heard(pod: Pod) -> None:
    """Wait until the pod's broker has heard of the policy that was put last: an earlier one leases the target, too."""
    asked = f"/v1/config?revision={_revisions[pod.broker.system]}&in_force=untold&wait=0"
    while (await pod.call("GET", asked))[0] != 304:  # noqa: ASYNC110 - it is told to another process
        await asyncio.sleep(0.2)


async def leased(pod: Pod, is_wanted: Callable[[Object], bool] = lambda _: True, **more: str) -> Object:
    """A lease of the target; asked for once the broker has seen the policy, and until it gives one that is wanted."""
    async with asyncio.timeout(WAIT_S):
        await _heard(pod)
        while True:
            status, answer = await pod.lease(TARGET, **({"session": session()} | more))
            if status == 200 and is_wanted(answer):
                found: Object = answer
                return found
            assert status == 200 or status in NOT_NOW, answer
            await asyncio.sleep(0.1 if status == 200 else 0.5)


async def refused(pod: Pod, wanted: int, **more: str) -> str:
    """Why the target is not leased; asked for once the broker has seen the policy, until the answer has that status."""
    async with asyncio.timeout(WAIT_S):
        await _heard(pod)
        while True:
            status, answer = await pod.lease(TARGET, **({"session": session()} | more))
            if status == wanted:
                found: str = answer["detail"]
                return found
            await asyncio.sleep(0.2)


async def ledger(broker: Broker) -> set[str]:
    """Ids of the leases that have to be taken back."""
    async with broker.admin() as client:
        found = await client.list(LEASES, broker.system, "chaperone.dev/lease=true")
    return {item["metadata"]["name"].removeprefix("chaperone-lease-") for item in found.items}


async def struck(broker: Broker, *leases: Object) -> None:
    """Wait until leases that were taken back are struck out of the ledger, which is the last step of it."""
    async with asyncio.timeout(WAIT_S):
        while {one["id"] for one in leases} & await ledger(broker):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.2)


async def delete(pod: Pod) -> None:
    """End a pod at once."""
    async with pod.broker.admin() as client:
        await client.delete(PODS, pod.name, pod.namespace, grace_s=0)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    async with asyncio.timeout(WAIT_S):
        while not await asyncio.to_thread(is_so):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.1)
