"""Nobody but kube-apiserver's proxy is believed: forged headers on every other kind of connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fix_collector import Collector
from fix_evidence_api import EvidenceApi
from gateway_stream import load_pair
from pki import Authority

from chaperone_collector.api.authorize import Attributes, Authorizer
from chaperone_collector.api.frontproxy import User, read_trust
from chaperone_collector.api.kubernetes import Kubernetes
from chaperone_collector.api.status import ApiError
from chaperone_collector.errors import StoreUnusable

pytestmark = pytest.mark.peer

_ADMIN = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
_SESSIONS = "/apis/evidence.chaperone.dev/v1alpha1/namespaces/agents/sessions"


def _client(ca: Authority, common_name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    return key, certificate


async def _get(
    collector: Collector,
    path: str,
    client: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None,
    headers: dict[str, str] | Sequence[tuple[str, str]],
    data: bytes | None = None,
) -> tuple[int, str]:
    """Ask; post, where there are data."""
    context = ssl.create_default_context(cadata=collector.service_ca.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if client is not None:
        load_pair(context, *client)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.request(
            "GET" if data is None else "POST",
            f"https://127.0.0.1:{collector.api_port}{path}",
            headers=headers,
            data=data,
        ) as answer,
    ):
        return answer.status, await answer.text()


async def test_the_proxy_itself_is_believed(evidence_api: EvidenceApi) -> None:
    proxy = _client(evidence_api.server.front_proxy, "front-proxy-client")
    status, _ = await _get(evidence_api.collector, _SESSIONS, proxy, _ADMIN)
    assert status == 200


async def test_headers_without_a_client_certificate_are_nothing(evidence_api: EvidenceApi) -> None:
    for path in (_SESSIONS, "/apis", "/openapi/v2", "/apis/evidence.chaperone.dev/v1alpha1"):
        status, text = await _get(evidence_api.collector, path, None, _ADMIN)
        assert status == 401
        assert "sessions" not in text


async def test_a_certificate_of_another_ca_is_refused_in_the_handshake(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    for ca in (Authority("test front-proxy CA"), gateway_ca, evidence_api.server.authority):
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await _get(evidence_api.collector, _SESSIONS, _client(ca, "front-proxy-client"), _ADMIN)


async def test_another_name_under_the_right_ca_is_refused(evidence_api: EvidenceApi) -> None:
    for name in ("metrics-server", "front-proxy-client.example", ""):
        client = _client(evidence_api.server.front_proxy, name or " ")
        status, _ = await _get(evidence_api.collector, _SESSIONS, client, _ADMIN)
        assert status == 401


async def test_the_proxy_must_name_somebody(evidence_api: EvidenceApi) -> None:
    proxy = _client(evidence_api.server.front_proxy, "front-proxy-client")
    for headers in ({}, {"X-Remote-Group": "system:masters"}, {"X-Remote-User": ""}, {"Impersonate-User": "admin"}):
        status, _ = await _get(evidence_api.collector, _SESSIONS, proxy, headers)
        assert status == 401


async def test_who_the_proxy_names_is_asked_for_by_review(evidence_api: EvidenceApi) -> None:
    """kube-apiserver has authorised the path already; the collector asks again for itself."""
    proxy = _client(evidence_api.server.front_proxy, "front-proxy-client")
    status, text = await _get(evidence_api.collector, _SESSIONS, proxy, {"X-Remote-User": "nobody"})
    assert status == 403
    assert "cannot list resource" in text
    groups = [("X-Remote-User", "somebody"), ("X-Remote-Group", "others"), ("X-Remote-Group", "auditors")]
    status, _ = await _get(evidence_api.collector, _SESSIONS, proxy, groups)
    assert status == 200
    status, _ = await _get(evidence_api.collector, _SESSIONS.replace("agents", "elsewhere"), proxy, groups)
    assert status == 403


async def test_who_posts_a_population_is_asked_for_by_review_too(evidence_api: EvidenceApi) -> None:
    proxy = _client(evidence_api.server.front_proxy, "front-proxy-client")
    path = _SESSIONS.replace("sessions", "populations")
    for client, headers, expected in (
        (None, _ADMIN, 401),
        (proxy, {}, 401),
        (proxy, {"X-Remote-User": "nobody"}, 403),
        (proxy, {"X-Remote-User": "somebody", "X-Remote-Group": "auditors"}, 403),
        (proxy, _ADMIN, 400),  # he may, and this is none
    ):
        status, text = await _get(evidence_api.collector, path, client, headers, b"{}")
        assert status == expected, text
    for other in (_SESSIONS, path + "/newest", path.replace("/namespaces/agents", "")):
        status, _ = await _get(evidence_api.collector, other, proxy, _ADMIN, b"{}")
        assert status == 405


async def test_a_user_of_many_groups_is_heard(evidence_api: EvidenceApi) -> None:
    proxy = _client(evidence_api.server.front_proxy, "front-proxy-client")
    groups = [("X-Remote-Group", f"group-{number}") for number in range(400)]
    headers = [("X-Remote-User", "somebody"), *groups, ("X-Remote-Group", "auditors")]
    status, text = await _get(evidence_api.collector, _SESSIONS, proxy, headers)
    assert status == 200, text


async def test_a_right_that_is_taken_away_ends_within_the_time_it_is_remembered(
    tmp_path: Path, evidence_api: EvidenceApi
) -> None:
    (tmp_path / "ca.crt").write_text(evidence_api.server.authority.pem)
    kubernetes = Kubernetes(evidence_api.server.url, tmp_path / "ca.crt", evidence_api.collector.folder / "token")
    now = 0.0
    authorizer = Authorizer(kubernetes, lambda: now)
    user = User("temp", "", ("system:authenticated",), ())
    asked = Attributes("list", "sessions", "", "elsewhere", "")
    binding = ("rolebinding", "temp", "-n", "elsewhere")
    try:
        with pytest.raises(ApiError, match="forbidden"):
            await authorizer.check(user, asked)
        evidence_api.kubectl("create", *binding, "--clusterrole=chaperone-auditor", "--user=temp")
        with pytest.raises(ApiError):  # a refusal is remembered as well
            await authorizer.check(user, asked)
        await _until(kubernetes, user, asked, may=True)
        now += 11
        await authorizer.check(user, asked)
        with pytest.raises(ApiError):  # and belongs to one user, group list and namespace
            await authorizer.check(User("temp2", "", user.groups, ()), asked)
        with pytest.raises(ApiError):
            await authorizer.check(user, Attributes("list", "sessions", "", "agents", ""))
        evidence_api.kubectl("delete", *binding)
        await _until(kubernetes, user, asked, may=False)
        await authorizer.check(user, asked)
        now += 11
        with pytest.raises(ApiError):
            await authorizer.check(user, asked)
    finally:
        await kubernetes.close()


async def _until(kubernetes: Kubernetes, user: User, asked: Attributes, *, may: bool) -> None:
    """Wait until kube-apiserver has taken a changed binding into account."""
    async with asyncio.timeout(30):
        while True:
            try:
                await Authorizer(kubernetes).check(user, asked)
                allowed = True
            except ApiError:
                allowed = False
            if allowed is may:
                return
            await asyncio.sleep(0.05)


async def test_an_encoded_or_doubled_path_names_nothing(evidence_api: EvidenceApi) -> None:
    proxy = _client(evidence_api.server.front_proxy, "front-proxy-client")
    base = "/apis/evidence.chaperone.dev/v1alpha1"
    for path in (
        f"{base}//sessions",
        f"{base}/namespaces/agents%2f..%2felsewhere/sessions",
        f"{base}/namespaces/AGENTS/sessions",
        f"{base}/sessions/x",
        f"{base}/namespaces/agents/commands/x/proof",
        "/",
    ):
        status, _ = await _get(evidence_api.collector, path, proxy, _ADMIN)
        assert status == 404, path


async def test_health_needs_nobody(evidence_api: EvidenceApi) -> None:
    for path in ("/healthz", "/readyz", "/livez"):
        assert await _get(evidence_api.collector, path, None, {}) == (200, "ok")


async def test_the_collector_does_not_start_when_it_cannot_know_whom_to_believe(
    tmp_path: Path, evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    server = evidence_api.server
    (tmp_path / "ca.crt").write_text(server.authority.pem)
    (tmp_path / "token").write_text("not a token")
    collector = Collector(
        tmp_path, gateway_ca, "--api-port", "0", "--kubernetes", server.url,
        "--kubernetes-ca", str(tmp_path / "ca.crt"), "--kubernetes-token", str(tmp_path / "token"),
    )  # fmt: skip
    with pytest.raises(pytest.fail.Exception, match="extension-apiserver-authentication-reader"):
        collector.start()
    assert collector.stop() == 1


@pytest.mark.parametrize("missing", ["requestheader-client-ca-file", "requestheader-username-headers"])
def test_a_configuration_without_ca_or_user_header_is_refused(missing: str) -> None:
    data = {
        "requestheader-client-ca-file": Authority("front").pem,
        "requestheader-allowed-names": '["front-proxy-client"]',
        "requestheader-username-headers": '["X-Remote-User"]',
    }
    read_trust(data)
    with pytest.raises(StoreUnusable):
        read_trust({**data, missing: "[]" if "headers" in missing else "none"})
    with pytest.raises(StoreUnusable):
        read_trust({key: value for key, value in data.items() if key != missing})
