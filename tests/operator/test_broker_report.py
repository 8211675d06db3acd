"""Which policy a pod has in force: what its gateway says is on the pod, written when it changes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fix_broker import Broker, Pod
from manifests import Object

from chaperone_operator.broker.report import IN_FORCE
from chaperone_operator.kube import PODS
from chaperone_operator.reconcile.coverage import digest

pytestmark = pytest.mark.peer
TIMEOUT_S = 30.0
FIRST, SECOND = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
async def pod(broker: Broker) -> Pod:
    pod = await broker.pod(f"reports-{time.monotonic_ns()}")
    await pod.set_status(restarts=0)
    status, answer = await pod.exchange()
    assert status == 200, answer
    return pod


async def say(pod: Pod, query: str) -> None:
    status, answer = await pod.call("GET", f"/v1/config?wait=0&{query}")
    assert status == 200, answer


async def stored(pod: Pod) -> Object:
    async with pod.broker.admin() as client:
        return await client.get(PODS, pod.name, pod.namespace)


def condition(found: Object) -> dict[str, Any]:
    return next((one for one in found["status"].get("conditions", ()) if one["type"] == IN_FORCE), {})


async def settled(pod: Pod, message: str) -> Object:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await stored(pod)
            told = condition(found)
            if told and told.get("message", "") == message:  # the API server leaves an empty one out
                return found
            await asyncio.sleep(0.05)


async def test_a_pod_says_which_revision_is_in_force_and_the_operator_reads_it(pod: Pod) -> None:
    await say(pod, f"revision={SECOND}&in_force={FIRST}")
    found = await settled(pod, FIRST)
    assert condition(found)["status"] == "True"
    assert digest(found).revision == FIRST
    assert digest(found).is_enrolled  # what others wrote there stays
    await say(pod, f"revision={SECOND}&in_force={SECOND}")
    assert digest(await settled(pod, SECOND)).revision == SECOND
    await say(pod, "revision=&in_force=")
    found = await settled(pod, "")
    assert (condition(found)["status"], digest(found).revision) == ("False", "")
    await say(pod, f"revision={FIRST}")  # a gateway of before knows one revision only
    assert digest(await settled(pod, FIRST)).revision == FIRST


async def test_what_was_said_before_is_not_written_again(broker: Broker, pod: Pod) -> None:
    await say(pod, f"in_force={FIRST}")
    version = (await settled(pod, FIRST))["metadata"]["resourceVersion"]
    other = await broker.pod(f"reports-{time.monotonic_ns()}")
    await other.set_status(restarts=0)
    assert (await other.exchange())[0] == 200
    for _ in range(3):
        await say(pod, f"in_force={FIRST}")
    await say(pod, "in_force=' OR 1=1")  # no revision
    await say(other, f"in_force={FIRST}")  # behind all of these in the queue
    await settled(other, FIRST)
    assert (await stored(pod))["metadata"]["resourceVersion"] == version
