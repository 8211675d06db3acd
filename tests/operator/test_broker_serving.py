"""Configuration, bundles and leases, and how the broker behaves as a server."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from typing import Any

import aiohttp
import pytest
from fix_broker import CANARY, Broker, Pod, secret
from manifests import rule
from process_usage import resident_mib
from yarl import URL

from chaperone_operator.broker.source import Header, Lease
from chaperone_operator.kube import ACCESS_TARGETS, CONFIG_MAPS, SECRETS, Object

pytestmark = pytest.mark.peer
TIMEOUT_S = 20.0
WAIT_S = 60.0  # longer than any call waits


@pytest.fixture
async def pod(broker: Broker) -> Pod:
    pod = await broker.pod(f"serving-{time.monotonic_ns()}")
    await pod.set_status(restarts=0)
    status, answer = await pod.exchange()
    assert status == 200, answer
    return pod


async def config(pod: Pod, revision: str = "", wait_s: float = 0) -> tuple[int, Any]:
    return await pod.call("GET", f"/v1/config?revision={revision}&wait={wait_s}")


async def credential_ready(broker: Broker, target: str) -> Object:
    async with broker.admin() as client:
        found = await client.get(ACCESS_TARGETS, target)
    conditions = [one for one in found["status"]["conditions"] if one["type"] == "CredentialReady"]
    assert len(conditions) == 1
    condition: Object = conditions[0]
    return condition


async def said(broker: Broker, line: str) -> None:
    """Wait until the broker has logged it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if line in broker.log.read_text():
                return
            await asyncio.sleep(0.05)


async def put(broker: Broker, body: Object) -> None:
    async with broker.admin() as client:
        await client.delete(SECRETS, body["metadata"]["name"], broker.system)
        await client.create(SECRETS, body, broker.system)


async def test_configuration_is_that_of_the_certificates_identity(broker: Broker, pod: Pod) -> None:
    status, answer = await config(pod)
    assert status == 200
    assert answer["identity"]["name"] == "billing-agent"
    assert answer["system_namespace"] == broker.system


async def test_bundle_carries_its_revision_as_tag(broker: Broker, pod: Pod) -> None:
    revision = (await config(pod))[1]["revision"]
    context = pod.context()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.get(f"{broker.url}/v1/bundle") as response:
            assert response.headers["ETag"] == f'"{revision}"'
        async with session.get(f"{broker.url}/v1/bundle", headers={"If-None-Match": f'"{revision}"'}) as response:
            assert response.status == 304


async def test_long_poll_answers_at_the_change_and_not_before(broker: Broker, pod: Pod) -> None:
    revision = (await config(pod))[1]["revision"]
    assert await config(pod, revision, 0.2) == (304, b"")
    await waiters(broker, 0)  # what another gateway waited for, which is gone by now
    waiting = asyncio.create_task(config(pod, revision, 30))
    async with asyncio.timeout(TIMEOUT_S):  # less than it would wait for
        await waiters(broker, 1)
        changed = broker.compiled(rule(f"r{time.monotonic_ns()}", "Allow", ["read"]))
        await broker.put_snapshot(changed)
        status, answer = await waiting
    assert (status, answer["revision"]) == (200, changed.revision)


async def waiters(broker: Broker, count: int) -> None:
    """Wait until so many calls wait."""
    async with asyncio.timeout(WAIT_S):
        while f"chaperone_broker_waiters {count:.1f}\n" not in await metrics(broker):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.05)


async def test_snapshot_that_cannot_be_read_leaves_the_last_one_in_force(broker: Broker, pod: Pod) -> None:
    before = (await config(pod))[1]["revision"]
    name = f"snapshot-{broker.agents}"
    async with broker.admin() as client:
        body = {"binaryData": {"bundle.tar.gz": base64.b64encode(b"rubbish").decode()}}
        await client.merge_patch(CONFIG_MAPS, name, body, broker.system)
    await said(broker, f"the ConfigMap {name} cannot be used")
    assert (await config(pod))[1]["revision"] == before
    await broker.put_snapshot(broker.compiled())


async def test_wait_that_is_no_number_is_refused(pod: Pod) -> None:
    for wait in ("x", "", "1s"):
        status, _ = await pod.call("GET", f"/v1/config?revision=&wait={wait}")
        assert status == 400


async def test_identity_without_policy_is_told_so(broker: Broker) -> None:
    pod = await broker.pod("stranger", labels={"chaperone.dev/identity": "stranger"}, told="stranger")
    assert (await pod.exchange())[0] == 200
    for path in ("/v1/config", "/v1/bundle"):
        status, answer = await pod.call("GET", path)
        assert (status, answer["title"]) == (404, "No such identity")
        assert "stranger" in answer["detail"]
    assert (await pod.lease())[0] == 404


async def test_lease_gives_the_credential_for_fifteen_minutes(broker: Broker, pod: Pod) -> None:
    status, answer = await pod.lease()
    assert status == 200
    assert (answer["username"], answer["password"]) == ("reader", CANARY)
    assert answer["ca_pem"].startswith("-----BEGIN CERTIFICATE")
    assert 14 * 60 < answer["expires_at_unix"] - time.time() <= 15 * 60
    assert (await credential_ready(broker, "orders-db"))["status"] == "True"


@pytest.mark.parametrize(
    ("wanted", "fragment"),
    [
        ("idle-db", "No policy lets AgentIdentity billing-agent do anything at AccessTarget idle-db"),
        ("foreign-db", "There is no AccessTarget foreign-db for AgentIdentity billing-agent"),
        ("../orders-db", "There is no AccessTarget ../orders-db"),
    ],
)
async def test_lease_for_a_target_that_policy_does_not_grant_is_refused(pod: Pod, wanted: str, fragment: str) -> None:
    status, answer = await pod.lease(wanted)
    assert (status, answer["title"], answer["status"]) == (403, "Lease refused", 403)
    assert fragment in answer["detail"]


async def test_lease_of_another_identitys_target_is_refused(broker: Broker) -> None:
    other = await broker.pod("no-grant", labels={"chaperone.dev/identity": "other-agent"}, told="other-agent")
    assert (await other.exchange())[0] == 200
    status, answer = await other.lease("orders-db")
    assert (status, answer["title"]) == (403, "Lease refused")


@pytest.mark.parametrize(
    ("broken", "reason", "fragment"),
    [
        (None, "SecretMissing", "does not exist"),
        (secret("orders-db-reader", "Opaque", username="a", password=CANARY), "WrongSecretType", "basic-auth"),
        (secret("orders-db-reader", username="a", password=""), "SecretIncomplete", "needs username and password"),
    ],
    ids=["missing", "wrong type", "incomplete"],
)
async def test_secret_that_cannot_be_leased_is_named_in_answer_and_condition(
    broker: Broker, pod: Pod, broken: Object | None, reason: str, fragment: str
) -> None:
    async with broker.admin() as client:
        await client.delete(SECRETS, "orders-db-reader", broker.system)
        if broken is not None:
            await client.create(SECRETS, broken, broker.system)
    status, answer = await pod.lease()
    assert (status, answer["title"]) == (424, "Credential not ready")
    assert f"The Secret {broker.system}/orders-db-reader, which AccessTarget orders-db names" in answer["detail"]
    assert fragment in answer["detail"]
    assert CANARY not in json.dumps(answer)
    condition = await credential_ready(broker, "orders-db")
    assert (condition["status"], condition["reason"]) == ("False", reason)
    assert condition["message"] == answer["detail"]
    await put(broker, secret("orders-db-reader", username="reader", password=CANARY))
    assert (await pod.lease())[0] == 200
    assert (await credential_ready(broker, "orders-db"))["status"] == "True"


async def test_missing_ca_secret_is_named(broker: Broker, pod: Pod) -> None:
    await put(broker, secret("orders-db-ca", "Opaque", **{"ca.crt": "no certificate"}))
    status, answer = await pod.lease()
    assert status == 424
    assert f"{broker.system}/orders-db-ca" in answer["detail"]
    await put(broker, secret("orders-db-ca", "kubernetes.io/tls", **{"tls.crt": broker.service_ca.pem, "tls.key": ""}))
    status, answer = await pod.lease()
    assert status == 200
    assert answer["ca_pem"] == broker.service_ca.pem


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"target": 3}', b'{"target": null}', b"\xff", b"{}"])
async def test_body_of_another_shape_is_refused(pod: Pod, body: bytes) -> None:
    status, answer = await pod.call("POST", "/v1/leases", data=body)
    assert (status, answer["title"]) == (400, "Bad request")


async def test_body_over_the_cap_is_refused(pod: Pod) -> None:
    status, _ = await pod.call("POST", "/v1/leases", json={"target": "x" * 20_000})
    assert status == 413


async def test_unknown_route_is_a_problem_too(pod: Pod) -> None:
    for method, path in (("GET", "/"), ("GET", "/metrics"), ("DELETE", "/v1/config")):
        status, answer = await pod.call(method, path)
        assert status == answer["status"]
        assert status in {404, 405}


async def test_too_many_leases_of_a_pod_are_refused(pod: Pod) -> None:
    answers = await pod.until_limited("POST", "/v1/leases", 700, json={"target": "nowhere"})
    assert answers[0].status == 403
    assert answers[-1].status == 429
    assert len(answers) > 60
    assert answers[-1].headers.get("Retry-After") is not None


async def metrics(broker: Broker) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{broker.metrics_url}/metrics") as response:
        return await response.text()


async def test_metrics_and_health_are_served_apart(broker: Broker, pod: Pod) -> None:
    text = await metrics(broker)
    assert 'chaperone_broker_calls_total{route="/v1/certificates",status="200"}' in text
    assert "chaperone_broker_snapshots 1.0" in text
    assert pod.uid not in text
    assert "billing-agent" not in text
    async with aiohttp.ClientSession() as session:
        for path in ("/healthz", "/readyz"):
            async with session.get(broker.metrics_url + path) as response:
                assert response.status == 200


async def test_renewed_serving_certificate_holds_for_new_connections(broker: Broker, pod: Pod) -> None:
    fresh = broker.write_pair()
    host, port = "127.0.0.1", int(broker.url.rsplit(":", 1)[1])
    async with asyncio.timeout(WAIT_S):
        while True:
            context = ssl.create_default_context(cadata=broker.service_ca.pem)
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            shown = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.close()
            if shown == fresh:
                break
            await asyncio.sleep(0.2)
    (broker.folder / "tls.crt").write_text("rubbish")
    await said(broker, "the new serving certificate cannot be used")
    assert (await config(pod))[0] == 200
    broker.write_pair()


async def test_old_tls_is_not_spoken(broker: Broker) -> None:
    context = ssl.create_default_context(cadata=broker.service_ca.pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    port = int(broker.url.rsplit(":", 1)[1])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=context)


def test_repr_of_a_lease_shows_nothing() -> None:
    header = Header("Authorization", f"Bearer {CANARY}", "https", "api", 443, "/")
    for lease in (
        Lease("a", "password", 7, username="reader", password=CANARY),
        Lease("a", "token", 7, token=CANARY),
        Lease("a", "certificate", 7, certificate=CANARY),
        Lease("a", "header", 7, header=header),
    ):
        assert CANARY not in repr(lease)
        assert "reader" not in repr(lease)
    assert CANARY not in repr(header)


async def test_a_connection_that_waits_costs_the_broker_little_memory(broker: Broker, pod: Pod) -> None:
    """The chart gives the broker 256 MiB, and a thousand gateways wait at once."""
    assert broker.stop() == 0
    broker.start()  # one that does not live on memory that earlier connections have left behind
    assert broker.process is not None
    async with asyncio.timeout(WAIT_S):
        while (await config(pod))[0] != 200:  # noqa: ASYNC110 - until it has read the policies
            await asyncio.sleep(0.5)
    place, context, count = URL(broker.url), pod.context(), 200
    before = resident_mib(broker.process.pid)
    async with asyncio.timeout(WAIT_S):
        opened = [await asyncio.open_connection(place.host, place.port, ssl=context) for _ in range(count)]
        for _, writer in opened:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: broker\r\n\r\n")
        assert {await reader.readline() for reader, _ in opened} == {b"HTTP/1.1 404 Not Found\r\n"}
    grown = resident_mib(broker.process.pid) - before
    for _, writer in opened:
        writer.close()
    assert 1 < grown < count * 0.15, grown
