"""Certificates of gateways: who gets one, how often, and what it says. Real tokens, real TLS, a real API server."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fix_broker import Broker, Pod, pod_manifest
from pki import Authority

from chaperone_evidence.certificate import check_issued
from chaperone_operator.broker.ca import SECRET
from chaperone_operator.kube import CONFIG_MAPS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS
from chaperone_sidecar.config import decode
from chaperone_sidecar.credentials.broker import Broker as GatewaySide

pytestmark = pytest.mark.peer


async def enrolled(broker: Broker, name: str, **changed: Any) -> Pod:
    pod = await broker.pod(name, **changed)
    await pod.set_status(restarts=0)
    status, answer = await pod.exchange()
    assert status == 200, answer
    return pod


async def gateway_ca(broker: Broker) -> x509.Certificate:
    async with broker.admin() as client:
        found = await client.get(CONFIG_MAPS, "chaperone-trust", broker.system)
    return x509.load_pem_x509_certificate(found["data"]["gateway-ca.crt"].encode())


async def test_certificate_binds_pod_identity_and_stream_key_for_an_hour(broker: Broker) -> None:
    pod = await enrolled(broker, "binds")
    certificate = x509.load_pem_x509_certificate(pod.certificate.encode())
    der = certificate.public_bytes(serialization.Encoding.DER)
    subject = check_issued(der, [await gateway_ca(broker)], time.time_ns() // 1000)
    assert (subject.cluster, subject.namespace, subject.pod, subject.pod_uid) == (
        broker.cluster, broker.agents, "binds", pod.uid,
    )  # fmt: skip
    assert (subject.identity, subject.vkey) == ("billing-agent", pod.vkey)
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


async def test_gateway_and_broker_understand_each_other(broker: Broker, tmp_path: Path) -> None:
    pod = await broker.pod("both-sides")
    token = tmp_path / "token"
    token.write_text(await pod.token())
    gateway = GatewaySide(broker.url, broker.service_ca.pem, token, lambda context: aiohttp.TCPConnector(ssl=context))
    await gateway.enroll(pod.vkey)
    first = gateway.certificate_der
    await gateway.enroll(pod.vkey)  # over mTLS
    assert gateway.certificate_der != first
    given = await gateway.config("", "", 0)
    assert given is not None
    config = decode(given.config)
    assert [target.name for target in config.targets] == ["idle-db", "orders-db"]
    assert await gateway.config(config.revision, "", 1) is None
    assert len(await gateway.bundle(config.revision)) > 1000
    lease = await gateway.lease("orders-db")
    assert (lease.username, lease.password) == ("reader", "canary-password-7f1c")
    assert "BEGIN CERTIFICATE" in lease.ca_pem
    key = await gateway.mask_key()
    assert len(key) == 32
    assert await gateway.mask_key() == key
    await gateway.stop()


async def test_token_of_another_audience_is_refused(broker: Broker) -> None:
    pod = await broker.pod("audience")
    for audience in ("https://kubernetes.default.svc", "chaperone-collector"):
        status, answer = await pod.exchange(await pod.token(audience))
        assert (status, answer["title"]) == (401, "Unknown caller")
    assert "audience chaperone-broker" in answer["detail"]


async def test_token_that_is_bound_to_no_pod_is_refused(broker: Broker) -> None:
    pod = await broker.pod("unbound")
    status, answer = await pod.exchange(await pod.token(is_bound=False))
    assert (status, answer["title"]) == (403, "Not a pod's token")


@pytest.mark.parametrize("token", ["x", "a.b.c", "é", "y" * 7000])
async def test_forged_token_is_refused(broker: Broker, token: str) -> None:
    pod = Pod(broker, broker.agents, "forged", "0" * 36, "agent")
    status, _ = await pod.exchange(token)
    assert status == 401


async def test_no_token_and_no_certificate_is_refused(broker: Broker) -> None:
    pod = Pod(broker, broker.agents, "nobody", "0" * 36, "agent")
    for method, path, body in (
        ("POST", "/v1/certificates", {"csr": pod.csr, "stream_key": pod.vkey}),
        ("GET", "/v1/config", None),
        ("GET", "/v1/bundle", None),
        ("POST", "/v1/leases", {"target": "orders-db"}),
        ("GET", "/v1/mask-key", None),
    ):
        status, answer = await pod.call(method, path, json=body)
        assert (status, answer["title"]) == (401, "Unknown caller")


async def test_token_of_a_deleted_pod_is_refused(broker: Broker) -> None:
    pod = await broker.pod("deleted")
    token = await pod.token()
    async with broker.admin() as client:
        await client.delete(PODS, "deleted", broker.agents, grace_s=0)
    status, _ = await pod.exchange(token)
    assert status in {401, 403}  # the API server forgets the token with the pod


INJECTED = pod_manifest("x")["spec"]["initContainers"]


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"labels": {}}, "has no label chaperone.dev/identity"),
        ({"labels": {"chaperone.dev/identity": "other-agent"}}, "was changed after injection"),
        ({"told": ""}, "was changed after injection"),
        ({"init": INJECTED[1:]}, "lacks the containers"),
        ({"init": INJECTED[:1]}, "lacks the containers"),
        ({"init": [INJECTED[0], {"name": "chaperone-gateway", "image": "x"}, INJECTED[2]]}, "lacks the containers"),
        (
            {"spec": {"containers": [{"name": "agent", "image": "a", "volumeMounts": INJECTED[1]["volumeMounts"]}]}},
            "mounts a token for the broker",
        ),
    ],
    ids=["no label", "label of another", "not told", "no fence", "no gateway", "no sidecar", "agent has the token"],
)
async def test_pod_that_was_not_injected_as_it_says_is_refused(
    broker: Broker, changed: dict[str, Any], fragment: str
) -> None:
    pod = await broker.pod(f"unfit-{time.monotonic_ns()}", **changed)
    status, answer = await pod.exchange()
    assert (status, answer["title"]) == (403, "Pod refused")
    assert fragment in answer["detail"]


async def test_pod_that_has_ended_is_refused(broker: Broker) -> None:
    pod = await broker.pod("ended")
    async with broker.admin() as client:
        await client.merge_patch(PODS, "ended", {"status": {"phase": "Failed"}}, broker.agents, "status")
    status, answer = await pod.exchange()
    assert (status, answer["detail"]) == (403, f"The pod {broker.agents}/ended has ended.")


async def test_stream_key_of_another_pod_is_refused(broker: Broker) -> None:
    pod, other = await broker.pod("one-pod"), await broker.pod("other-pod")
    status, answer = await pod.exchange(stream_key=other.vkey)
    assert (status, answer["title"]) == (400, "Bad stream key")
    assert pod.uid in answer["detail"]


async def test_malformed_stream_key_is_refused(broker: Broker) -> None:
    pod = await broker.pod("bad-vkey")
    name, identifier, key = pod.vkey.split("+", 2)
    token = await pod.token()
    for tail in (f"+00000000+{key}", f"+{identifier}+AAAA", f"+{identifier}", "", f"+{identifier}+{key}="):
        status, answer = await pod.exchange(token, stream_key=name + tail)
        assert (status, answer["title"]) == (400, "Bad stream key"), tail


def csr_of(key: Any) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


async def test_request_with_another_kind_of_key_is_refused(broker: Broker) -> None:
    pod = await broker.pod("bad-csr")
    token = await pod.token()
    others = [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
    for csr in (*map(csr_of, others), "", "x" * 9000):
        status, answer = await pod.exchange(token, csr=csr)
        assert (status, answer["title"]) == (400, "Bad request")


async def test_names_in_the_request_are_not_read(broker: Broker) -> None:
    pod = await broker.pod("named")
    forged = x509.UniformResourceIdentifier(f"spiffe://chaperone.dev/{broker.cluster}/ns/x/pod/y/z/identity/admin")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([forged]), critical=False)
        .sign(pod.tls_key, hashes.SHA256())
    )
    status, answer = await pod.exchange(csr=request.public_bytes(serialization.Encoding.PEM).decode())
    assert status == 200
    names = x509.load_pem_x509_certificate(answer["certificate"].encode()).extensions
    uris = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert forged not in list(uris)


async def test_token_is_exchanged_once_for_each_start_of_the_gateway(broker: Broker) -> None:
    pod = await enrolled(broker, "once")
    thief = pod.restarted()  # the pod's token with other keys, while the gateway runs
    status, answer = await thief.exchange()
    assert (status, answer["title"]) == (409, "Already exchanged")
    assert (await pod.lease())[0] == 200
    await pod.set_status(restarts=1)
    again = pod.restarted()
    assert (await again.exchange())[0] == 200
    assert (await pod.restarted().exchange())[0] == 409


async def test_lost_answer_can_be_asked_for_again_with_the_same_keys(broker: Broker) -> None:
    pod = await enrolled(broker, "lost")
    assert (await pod.exchange())[0] == 200
    other_tls = pod.restarted()
    other_tls.signer_key = pod.signer_key
    assert (await other_tls.exchange())[0] == 409


async def test_later_exchange_takes_the_certificate_before_out_of_use(broker: Broker) -> None:
    pod = await enrolled(broker, "superseded")
    await pod.set_status(restarts=1)
    again = pod.restarted()
    assert (await again.exchange())[0] == 200
    for status, answer in (await pod.renew(), await pod.lease()):
        assert (status, answer["title"]) == (409, "Superseded")
    assert (await again.renew())[0] == 200
    assert (await again.lease())[0] == 200


async def test_of_many_exchanges_at_once_one_wins(broker: Broker) -> None:
    pod = await broker.pod("race")
    await pod.set_status(restarts=0)
    rivals = [pod.restarted() for _ in range(5)]
    token = await pod.token()
    answers = await asyncio.gather(*(rival.exchange(token) for rival in rivals))
    assert sorted(status for status, _ in answers) == [200, 409, 409, 409, 409]


async def test_exchange_is_remembered_when_the_broker_is_restarted(broker: Broker) -> None:
    pod = await enrolled(broker, "remembered")
    assert broker.stop() == 0
    broker.start()
    assert (await pod.restarted().exchange())[0] == 409
    assert (await pod.renew())[0] == 200


async def test_record_that_somebody_changed_is_not_guessed_at(broker: Broker) -> None:
    pod = await enrolled(broker, "changed")
    async with broker.admin() as client:
        found = await client.get(PODS, "changed", broker.agents)
        for condition in found["status"]["conditions"]:
            condition["message"] = "start=0"
        await client.replace(PODS, "changed", found, broker.agents, "status")
    status, answer = await pod.exchange()
    assert (status, answer["title"]) == (409, "Unreadable enrolment")


async def test_certificate_is_renewed_for_its_own_keys_only(broker: Broker) -> None:
    pod, other = await enrolled(broker, "own-keys"), await broker.pod("own-keys-other")
    for changed in ({"stream_key": other.vkey}, {"stream_key": pod.restarted().vkey}, {"csr": other.csr}):
        status, answer = await pod.renew(**changed)
        assert (status, answer["title"]) == (403, "Other keys")
    status, answer = await pod.renew()
    assert status == 200
    assert answer["expires_at_unix"] > time.time() + 3500


async def test_certificate_of_a_deleted_pod_is_not_renewed(broker: Broker) -> None:
    pod = await enrolled(broker, "gone")
    async with broker.admin() as client:
        await client.delete(PODS, "gone", broker.agents, grace_s=0)
    assert (await pod.renew())[0] == 403
    assert (await pod.lease())[0] == 403
    await broker.pod("gone")  # the same name, another pod
    assert (await pod.renew())[0] == 403


async def test_pod_whose_label_is_changed_gets_no_more_leases(broker: Broker) -> None:
    pod = await enrolled(broker, "relabelled")
    async with broker.admin() as client:
        body = {"metadata": {"labels": {"chaperone.dev/identity": "other-agent"}}}
        await client.merge_patch(PODS, "relabelled", body, broker.agents)
    assert (await pod.lease())[0] == 403
    assert (await pod.renew())[0] == 403


async def broker_key(broker: Broker) -> ec.EllipticCurvePrivateKey:
    async with broker.admin() as client:
        found = await client.get(SECRETS, SECRET, broker.system)
    key = serialization.load_pem_private_key(base64.b64decode(found["data"]["tls.key"]), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


@pytest.mark.parametrize("is_expired", [True, False], ids=["expired", "of another CA"])
async def test_certificate_that_does_not_verify_ends_the_handshake(broker: Broker, is_expired: bool) -> None:
    pod = await broker.pod(f"bad-certificate-{is_expired}".lower())
    authority = Authority()
    if is_expired:
        authority.key = await broker_key(broker)
        authority.name = (await gateway_ca(broker)).subject
    uri = f"spiffe://chaperone.dev/{broker.cluster}/ns/{broker.agents}/pod/{pod.name}/{pod.uid}/identity/billing-agent"
    start = datetime.now(UTC) - timedelta(hours=2) if is_expired else datetime.now(UTC)
    certificate = authority.gateway(uri, pod.vkey, pod.tls_key.public_key(), start=start)
    pod.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await pod.call("GET", "/v1/config")


async def test_certificate_runs_out_on_an_open_connection(broker: Broker) -> None:
    pod = await enrolled(broker, "runs-out")
    authority = Authority()
    authority.key, authority.name = await broker_key(broker), (await gateway_ca(broker)).subject
    uri = f"spiffe://chaperone.dev/{broker.cluster}/ns/{broker.agents}/pod/{pod.name}/{pod.uid}/identity/billing-agent"
    short = authority.gateway(uri, pod.vkey, pod.tls_key.public_key(), life=timedelta(seconds=10))
    context = pod.context(certificate=short.public_bytes(serialization.Encoding.PEM).decode())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.get(f"{broker.url}/v1/config") as response:
            assert response.status == 200
        async with asyncio.timeout(60):
            while True:
                async with session.get(f"{broker.url}/v1/config?revision=&wait=0") as response:
                    status, answer = response.status, await response.json(content_type=None)
                if status != 200:
                    break
                await asyncio.sleep(1)  # which is as often as a gateway may ask
    assert (status, answer["title"]) == (401, "Certificate expired")


async def test_too_many_exchanges_of_a_pod_are_refused(broker: Broker) -> None:
    pod = await enrolled(broker, "too-many")
    token = await pod.token()
    answers = [await pod.exchange(token) for _ in range(8)]
    assert answers[-1][0] == 429
    assert answers[-1][1]["title"] == "Too many calls"


async def test_gateway_ca_is_made_once_and_published(broker: Broker) -> None:
    before = await gateway_ca(broker)
    assert broker.stop() == 0
    broker.start()
    assert await gateway_ca(broker) == before
    assert before.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3000)


async def test_account_of_another_name_cannot_use_the_pods_token(broker: Broker) -> None:
    async with broker.admin() as client:
        made = await client.create(NAMESPACES, {"metadata": {"generateName": "elsewhere-"}})
        namespace = made["metadata"]["name"]
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "agent"}}, namespace)
    foreign = await broker.pod("elsewhere", namespace)
    assert (await foreign.exchange())[0] == 200  # its own namespace, its own certificate
    status, answer = await foreign.lease()
    assert (status, answer["title"]) == (404, "No policy")
