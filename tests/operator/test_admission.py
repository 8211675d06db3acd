"""The webhooks behind a real API server: registered by URL, failurePolicy Fail, for the namespace of the test alone."""

from __future__ import annotations

import asyncio
import base64
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import manifests
import pytest
from aiohttp import web
from fix_apiserver import ApiServer
from fix_crds import kubectl
from pki import Authority

from chaperone_operator import kubeconfig
from chaperone_operator.admission.identities import Identities
from chaperone_operator.admission.inject import Settings
from chaperone_operator.admission.server import Webhooks
from chaperone_operator.kube import AGENT_IDENTITIES, NAMESPACES, PODS, ApiError, Client, Object, Resource

pytestmark = pytest.mark.peer
TIMEOUT_S = 30.0
GROUP = "admissionregistration.k8s.io"
MUTATING = Resource(GROUP, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration")
VALIDATING = Resource(GROUP, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration")


@dataclass
class Admission:
    """Running webhooks, and the namespace that they hold."""

    api: ApiServer
    client: Client
    identities: Identities
    namespace: str
    url: str
    authority: Authority

    async def identity(self, name: str, app: str, **spec: Any) -> None:
        """Make an AgentIdentity for pods labelled `app`, and wait until the webhooks know it."""
        item = manifests.identity(name, self.namespace, selector={"matchLabels": {"app": app}}, **spec)
        item["metadata"] = {"name": name}
        await self.client.create(AGENT_IDENTITIES, item, self.namespace)
        async with asyncio.timeout(TIMEOUT_S):
            while (self.namespace, name) not in self.identities.mirror.objects:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.01)

    async def pod(self, name: str, app: str = "billing", **spec: Any) -> Object:
        """Create a pod; `ApiError` when it is refused."""
        return await self.client.create(PODS, pod(name, app, **spec), self.namespace)

    async def kubectl(self, *arguments: str) -> str:
        """Off the loop, since the webhooks answer on it."""
        return await asyncio.to_thread(kubectl, self.api, "-n", self.namespace, *arguments, is_checked=False)


def pod(name: str, app: str = "billing", **spec: Any) -> Object:
    # The API server of the tests has no ServiceAccount plug-in, which would name the account.
    usual: Object = {"containers": [{"name": "agent", "image": "example.com/agent:1"}], "serviceAccountName": "default"}
    return {"metadata": {"name": name, "labels": {"app": app}}, "spec": usual | spec}


@pytest.fixture
async def admission(crds: ApiServer, tmp_path: Path) -> AsyncIterator[Admission]:
    authority = Authority("test webhook CA")
    settings = Settings("0.1.0", "example.com/gateway:1", "example.com/opa:1", "cluster-uid", authority.pem, "key")
    async with Client(kubeconfig.from_file(crds.kubeconfig)) as client:
        identities = Identities(client)
        following = asyncio.create_task(identities.run())
        runner = web.AppRunner(Webhooks(client, identities, settings).application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_tls(authority, tmp_path)).start()
        made = await client.create(NAMESPACES, {"metadata": {"generateName": "admission-"}})
        namespace = made["metadata"]["name"]
        url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        held = Admission(crds, client, identities, namespace, url, authority)
        try:
            await held.identity("billing", "billing", ingress={"ports": [8080]})
            await _register(held)
            yield held
        finally:
            await client.delete(MUTATING, namespace)
            await client.delete(VALIDATING, namespace)
            following.cancel()
            await runner.cleanup()


def _tls(authority: Authority, folder: Path) -> ssl.SSLContext:
    key, certificate = authority.server_pair("127.0.0.1")
    (folder / "tls.key").write_bytes(key)
    (folder / "tls.crt").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


def _webhook(held: Admission, path: str, rules: list[tuple[str, list[str]]], **more: Any) -> Object:
    bundle = base64.b64encode(held.authority.pem.encode()).decode()
    return {
        "name": f"{path}.chaperone.dev",
        "clientConfig": {"url": f"{held.url}/{path}", "caBundle": bundle},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": held.namespace}},
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": resources}
            for operation, resources in rules
        ],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 30,  # the chart's are 5 s; the machine may be shared
        **more,
    }


async def _register(held: Admission) -> None:
    mutating = [("CREATE", ["pods"]), ("UPDATE", ["pods/ephemeralcontainers"])]
    validating = [("CREATE", ["pods"]), ("UPDATE", ["pods", "pods/ephemeralcontainers", "pods/resize"])]
    connecting = [("CONNECT", ["pods/exec", "pods/attach", "pods/portforward"])]
    metadata = {"metadata": {"name": held.namespace}}
    mutator = _webhook(held, "mutate-pod", mutating, reinvocationPolicy="IfNeeded")
    validators = [_webhook(held, "validate-pod", validating), _webhook(held, "validate-exec", connecting)]
    await held.client.create(MUTATING, metadata | {"webhooks": [mutator]})
    await held.client.create(VALIDATING, metadata | {"webhooks": validators})
    async with asyncio.timeout(TIMEOUT_S):  # the API server follows its registrations with a delay
        while True:
            try:
                made = await held.pod("probe")
                await held.client.delete(PODS, "probe", held.namespace, grace_s=0)
                if len(made["spec"].get("initContainers", ())) != 3:
                    continue
                forged = pod("forged", "other")
                forged["metadata"]["labels"]["chaperone.dev/identity"] = "billing"
                await held.client.create(PODS, forged, held.namespace)
                await held.client.delete(PODS, "forged", held.namespace, grace_s=0)
            except ApiError as error:
                if "reserved-label" in str(error):
                    return
            await asyncio.sleep(0.05)


async def test_agents_pod_is_injected_and_passes_validation(admission: Admission) -> None:
    made = await admission.pod("agent")
    assert [one["name"] for one in made["spec"]["initContainers"]] == [
        "chaperone-fence",
        "chaperone-gateway",
        "chaperone-opa",
    ]
    assert made["metadata"]["labels"] == {"app": "billing", "chaperone.dev/identity": "billing"}
    assert made["metadata"]["annotations"]["chaperone.dev/injected"] == "0.1.0"
    assert made["metadata"]["annotations"]["chaperone.dev/created-by"] == "admin"
    [agent] = made["spec"]["containers"]
    assert agent["securityContext"]["capabilities"]["drop"] == ["NET_RAW"]
    assert "/etc/chaperone-trust" in {one["mountPath"] for one in agent["volumeMounts"]}


async def test_identity_without_ingress_is_injected_too(admission: Admission) -> None:
    await admission.identity("quiet", "quiet")
    assert len((await admission.pod("quiet", "quiet"))["spec"]["initContainers"]) == 3


async def test_pod_of_nobody_is_left_alone(admission: Admission) -> None:
    made = await admission.pod("web", "web", hostNetwork=True)
    assert "initContainers" not in made["spec"]


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"hostNetwork": True}, "host-network"),
        ({"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}, "host-path"),
        ({"securityContext": {"runAsUser": 64138}}, "reserved-id"),
        ({"initContainers": [{"name": "chaperone-gateway", "image": "evil:1"}]}, "reserved-name"),
    ],
)
async def test_pod_that_cannot_be_fenced_is_refused_with_the_reason(
    admission: Admission, spec: Object, rule: str
) -> None:
    with pytest.raises(ApiError) as refused:
        await admission.pod("bad", **spec)
    assert refused.value.status == 403
    assert f"[{rule}]" in str(refused.value)


async def test_pod_of_two_identities_is_refused(admission: Admission) -> None:
    await admission.identity("second", "billing")
    with pytest.raises(ApiError, match=r"\[two-identities\] AgentIdentities billing, second"):
        await admission.pod("both")


async def test_forged_gateway_outside_any_identity_is_refused(admission: Admission) -> None:
    gateway = {"name": "chaperone-gateway", "image": "evil:1"}
    with pytest.raises(ApiError, match="reserved-name"):
        await admission.pod("forged", "web", initContainers=[gateway])
    creator = pod("forged", "web")
    creator["metadata"]["annotations"] = {"chaperone.dev/created-by": "somebody-else"}
    with pytest.raises(ApiError, match=r"reserved-label.*created-by"):
        await admission.client.create(PODS, creator, admission.namespace)
    source = {"serviceAccountToken": {"audience": "chaperone-broker", "path": "token"}}
    with pytest.raises(ApiError, match="broker-token"):
        await admission.pod("forged", "web", volumes=[{"name": "t", "projected": {"sources": [source]}}])


async def test_update_may_not_touch_what_was_injected(admission: Admission) -> None:
    await admission.pod("agent")
    for change in (
        {"metadata": {"labels": {"chaperone.dev/identity": None}}},
        {"metadata": {"labels": {"chaperone.dev/identity": "other"}}},
        {"metadata": {"annotations": {"chaperone.dev/injected": None}}},
        {"metadata": {"annotations": {"chaperone.dev/created-by": "somebody-else"}}},
    ):
        with pytest.raises(ApiError, match="injected-changed"):
            await admission.client.merge_patch(PODS, "agent", change, admission.namespace)
    patch = '[{"op":"replace","path":"/spec/initContainers/1/image","value":"evil:1"}]'
    assert "injected-changed" in await admission.kubectl("patch", "pod", "agent", "--type=json", "-p", patch)
    own: Object = {"metadata": {"labels": {"stage": "test"}}}
    await admission.client.merge_patch(PODS, "agent", own, admission.namespace)


async def test_running_pod_does_not_become_an_agent_by_its_labels(admission: Admission) -> None:
    await admission.pod("late", "web")
    change = {"metadata": {"labels": {"app": "billing"}}}
    with pytest.raises(ApiError, match="label-change"):
        await admission.client.merge_patch(PODS, "late", change, admission.namespace)


async def test_ephemeral_container_is_held_to_the_same_rules(admission: Admission) -> None:
    await admission.pod("agent")
    bad = {"name": "bad", "image": "debug:1", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}
    ours = {"name": "ours", "image": "debug:1", "volumeMounts": [{"name": "chaperone-token", "mountPath": "/t"}]}
    for container, rule in ((bad, "capability"), (ours, "our-volume")):
        with pytest.raises(ApiError, match=rf"\[{rule}\]"):
            await _debug(admission, container)
    done = await _debug(admission, {"name": "good", "image": "debug:1"})
    [good] = done["spec"]["ephemeralContainers"]
    assert good["securityContext"]["capabilities"]["drop"] == ["NET_RAW"]


async def _debug(admission: Admission, container: Object) -> Object:
    body: Object = {"spec": {"ephemeralContainers": [container]}}
    return await admission.client.merge_patch(PODS, "agent", body, admission.namespace, "ephemeralcontainers")


async def test_nobody_enters_our_containers_and_no_port_is_forwarded(admission: Admission) -> None:
    await admission.pod("agent")
    await admission.pod("web", "web")
    for name in ("agent", "web"):
        running: Object = {"status": {"phase": "Running"}, "spec": {}}
        await admission.client.merge_patch(PODS, name, running, admission.namespace, "status")
    for container in ("chaperone-fence", "chaperone-gateway", "chaperone-opa"):
        assert "[our-container]" in await admission.kubectl("exec", "agent", "-c", container, "--", "true")
    assert "[our-container]" in await admission.kubectl("attach", "agent", "-c", "chaperone-gateway")
    assert "[port-forward]" in await admission.kubectl("port-forward", "agent", ":8181")
    for arguments in (("exec", "agent", "-c", "agent", "--", "true"), ("port-forward", "web", ":80")):
        assert "Chaperone refuses" not in await admission.kubectl(*arguments)


async def test_unreadable_identity_stops_new_pods_of_its_namespace_with_the_reason(admission: Admission) -> None:
    key = (admission.namespace, "broken")
    admission.identities.mirror.objects[key] = {"metadata": {"name": "broken", "namespace": key[0]}, "spec": {}}
    assert admission.identities.mirror.on_change is not None
    admission.identities.mirror.on_change(key)
    with pytest.raises(ApiError, match=r"\[not-known\] AgentIdentity .*/broken cannot be read"):
        await admission.pod("agent")


async def test_nothing_is_admitted_before_the_identities_are_known(admission: Admission) -> None:
    admission.identities.mirror.synced.clear()
    with pytest.raises(ApiError, match=r"\[not-known\] The AgentIdentities have not been read yet"):
        await admission.pod("agent")


async def test_what_is_no_review_is_refused(admission: Admission) -> None:
    context = ssl.create_default_context(cadata=admission.authority.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.post(f"{admission.url}/mutate-pod", data=b"{") as response:
            assert response.status == 400
        request = {"uid": "1", "operation": "CREATE", "resource": {"group": "", "resource": "secrets"}}
        async with session.post(f"{admission.url}/validate-pod", json={"request": request}) as response:
            answer = (await response.json())["response"]
            assert not answer["allowed"]
            assert "correct its registration" in answer["status"]["message"]


async def test_webhooks_answer_fast(admission: Admission) -> None:
    context = ssl.create_default_context(cadata=admission.authority.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    request = {"uid": "1", "operation": "CREATE", "namespace": admission.namespace, "object": pod("agent")}
    review = {"request": request | {"resource": {"group": "", "version": "v1", "resource": "pods"}}}
    took_ms = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        for _ in range(300):
            began = time.perf_counter()
            async with session.post(f"{admission.url}/mutate-pod", json=review) as response:
                assert (await response.json())["response"]["allowed"]
            took_ms.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(took_ms, n=100)
    print(f"mutate-pod over TLS: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")
    assert cuts[98] < 500, "the registrations give up after 5 s"
