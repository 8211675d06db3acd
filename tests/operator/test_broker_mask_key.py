"""The key of masks that hash: made once, another one in every namespace, given to gateways and told nowhere else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

import aiohttp
import pytest
from fix_broker import Broker, Pod, kubeconfig_of_broker
from manifests import identity, policy, rule, target

from chaperone_operator import kubeconfig
from chaperone_operator.broker import maskkey
from chaperone_operator.broker.errors import CannotStart
from chaperone_operator.broker.maskkey import DOMAIN, SECRET, MaskKey, MaskKeys
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import CONFIG_MAPS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS, Client, Object, Resource

pytestmark = pytest.mark.peer
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
RACERS = 5
WAIT_S = 60.0  # a gateway may ask once a second


async def master(broker: Broker) -> bytes:
    async with broker.admin() as client:
        found = await client.get(SECRETS, SECRET, broker.system)
    assert found["type"] == "Opaque"
    key = base64.b64decode(found["data"]["key"], validate=True)
    assert len(key) == 32
    return key


def derived(key: bytes, namespace: str) -> bytes:
    """Written out once more, as another program that has to give the same hashes would."""
    return hmac.new(key, b"chaperone.dev/mask-key/v1\n" + namespace.encode(), hashlib.sha256).digest()


async def enrolled(broker: Broker, namespace: str = "") -> Pod:
    pod = await broker.pod(f"hashes-{time.monotonic_ns()}", namespace)
    await pod.set_status(restarts=0)
    status, answer = await pod.exchange()
    assert status == 200, answer
    return pod


async def asked(pod: Pod) -> tuple[int, Any]:
    return await pod.call("GET", "/v1/mask-key")


def hashing(broker: Broker, namespace: str) -> Snapshot:
    masks = [{"detectors": ["Email"], "method": "Hash"}]
    found = compile_namespace(
        namespace, [identity(namespace=namespace)], [target(allowedNamespaces={"names": [namespace]})],
        [policy([rule("read", "Allow", ["read"])], namespace=namespace, masks=masks)], [],
        namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert found.is_usable, found.problems
    return found


async def elsewhere(broker: Broker) -> str:
    """Another namespace with policy and a service account."""
    async with broker.admin() as client:
        made = await client.create(NAMESPACES, {"metadata": {"generateName": "tenant-"}})
        namespace: str = made["metadata"]["name"]
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "agent"}}, namespace)
    await broker.put_snapshot(hashing(broker, namespace), namespace)
    return namespace


async def test_gateways_of_a_namespace_get_its_key_and_those_of_another_one_another(broker: Broker) -> None:
    here = derived(await master(broker), broker.agents)
    for pod in (await enrolled(broker), await enrolled(broker)):
        assert await asked(pod) == (200, {"key": base64.b64encode(here).decode()})
    namespace = await elsewhere(broker)
    foreign = await enrolled(broker, namespace)
    async with asyncio.timeout(WAIT_S):
        while (answer := await asked(foreign))[0] in {404, 429}:  # noqa: ASYNC110 - until the broker has seen the policy
            await asyncio.sleep(0.5)
    assert answer == (200, {"key": base64.b64encode(derived(await master(broker), namespace)).decode()})
    assert DOMAIN == b"chaperone.dev/mask-key/v1\n"
    async with broker.admin() as client:  # other tests count the namespaces that have policy
        await client.delete(CONFIG_MAPS, f"snapshot-{namespace}", broker.system)
    async with asyncio.timeout(WAIT_S):
        while (await asked(foreign))[0] != 404:  # noqa: ASYNC110 - until the broker has seen it
            await asyncio.sleep(0.5)


async def test_key_outlives_the_broker(broker: Broker) -> None:
    pod = await enrolled(broker)
    before = await asked(pod)
    assert broker.stop() == 0
    broker.start()
    async with asyncio.timeout(WAIT_S):
        while (after := await asked(pod))[0] == 503:  # noqa: ASYNC110 - until the broker has read the policies
            await asyncio.sleep(0.5)
    assert after == before


async def test_gateway_of_a_namespace_without_policy_gets_none(broker: Broker) -> None:
    async with broker.admin() as client:
        made = await client.create(NAMESPACES, {"metadata": {"generateName": "bare-"}})
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "agent"}}, made["metadata"]["name"])
    status, answer = await asked(await enrolled(broker, made["metadata"]["name"]))
    assert (status, answer["title"]) == (404, "No policy")


async def test_deleted_pod_and_superseded_certificate_get_no_key(broker: Broker) -> None:
    pod = await enrolled(broker)
    await pod.set_status(restarts=1)
    assert (await pod.restarted().exchange())[0] == 200
    status, answer = await asked(pod)
    assert (status, answer["title"]) == (409, "Superseded")
    async with broker.admin() as client:
        await client.delete(PODS, pod.name, broker.agents, grace_s=0)
    assert (await asked(pod))[0] == 403


async def test_too_many_calls_for_the_key_are_refused_and_calls_are_counted_by_route(broker: Broker) -> None:
    pod = await enrolled(broker)
    answers = await pod.until_limited("GET", "/v1/mask-key", 400)
    for one in answers:
        if one.status == 200:
            assert one.headers.get("Cache-Control") == "no-store"
    assert answers[-1].content_type == "application/problem+json"
    assert (answers[0].status, answers[-1].status) == (200, 429)
    assert len(answers) > 30
    async with aiohttp.ClientSession() as session, session.get(f"{broker.metrics_url}/metrics") as response:
        assert 'chaperone_broker_calls_total{route="/v1/mask-key",status="200"}' in await response.text()


async def system_of_its_own(broker: Broker, **data: str) -> str:
    """A namespace in which a broker could run; with a Secret of that content, if there is any."""
    async with broker.admin() as client:
        made = await client.create(NAMESPACES, {"metadata": {"generateName": "masks-"}})
        namespace: str = made["metadata"]["name"]
        if data:
            body: Object = {"metadata": {"name": SECRET}, "type": "Opaque", "data": data}
            await client.create(SECRETS, body, namespace)
    return namespace


async def test_replicas_that_start_at_once_end_with_one_key(broker: Broker) -> None:
    namespace = await system_of_its_own(broker)
    clients = [broker.admin() for _ in range(RACERS)]
    found = await asyncio.gather(*(_loaded(client, namespace) for client in clients))
    assert len({keys.give("agents") for keys in found}) == 1


async def _loaded(client: Client, namespace: str) -> MaskKeys:
    async with client:
        return await maskkey.load(client, namespace)


@pytest.mark.parametrize("data", [{"key": base64.b64encode(b"canary-short").decode()}, {"other": "QUJD"}], ids=str)
async def test_secret_without_a_key_is_not_guessed_at(broker: Broker, data: dict[str, str]) -> None:
    namespace = await system_of_its_own(broker, **data)
    async with broker.admin() as client:
        with pytest.raises(CannotStart, match="holds no key of 32 bytes") as raised:
            await maskkey.load(client, namespace)
    assert "canary" not in str(raised.value)


async def test_broker_without_the_right_to_make_the_secret_says_so(broker: Broker) -> None:
    namespace = await system_of_its_own(broker)  # where the broker's account has no rights
    async with Client(kubeconfig.from_file(kubeconfig_of_broker(broker.api, broker.system))) as client:
        with pytest.raises(CannotStart, match=f"The Secret {namespace}/{SECRET} cannot be read or made"):
            await maskkey.load(client, namespace)


def test_repr_of_a_key_shows_nothing() -> None:
    keys = MaskKeys(b"canary-master-key-of-32-bytes!!!")
    given = keys.give("agents")
    assert repr(given) == "MaskKey()"
    assert given.key not in repr(keys) + str(given)
    assert "canary" not in repr(keys)
    assert keys.give("agents") == given == MaskKey(given.key) != keys.give("agents2")


async def test_keys_are_in_no_log_snapshot_event_condition_or_metric(broker: Broker) -> None:
    snapshot = hashing(broker, broker.agents)
    await broker.put_snapshot(snapshot)
    pod = await enrolled(broker)
    assert (await asked(pod))[0] == 200
    key = await master(broker)
    forms = [
        form
        for raw in (key, derived(key, broker.agents))
        for form in (raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), repr(raw).encode())
    ]
    async with broker.admin() as client:
        lists = [
            (await client.list(resource, namespace)).items
            for resource, namespace in (
                (CONFIG_MAPS, broker.system), (EVENTS, broker.system), (EVENTS, broker.agents), (PODS, broker.agents),
            )
        ]  # fmt: skip
    async with aiohttp.ClientSession() as session, session.get(f"{broker.metrics_url}/metrics") as response:
        metrics = await response.read()
    config = (await pod.call("GET", "/v1/config"))[1]
    seen = [
        broker.log.read_bytes(), snapshot.bundle, snapshot.gateway, snapshot.leases, metrics,
        *(json.dumps(one).encode() for one in (*lists, config)),
    ]  # fmt: skip
    assert b"Hash" in snapshot.gateway
    for form in forms:
        assert not any(form in one for one in seen)
    await broker.put_snapshot(broker.compiled())
