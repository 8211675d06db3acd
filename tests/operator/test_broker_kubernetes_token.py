"""Tokens of service accounts: made, used and taken back at a real API server."""

from __future__ import annotations

import asyncio
import ssl
import time

import aiohttp
import pytest
from fix_broker import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES, Broker, Pod
from leasing import delete, enrolled, leased, ledger, put_target, refused, session

from chaperone_operator.compile.credential import Place
from chaperone_operator.kube import NAMESPACES, SECRETS, SERVICE_ACCOUNTS, ApiError, Object, Resource

pytestmark = pytest.mark.peer

PLACE = Place("kubernetes.default.svc", 443, "", "VerifyFull", "")
SELF_REVIEWS = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview")


@pytest.fixture
async def apps(broker: Broker) -> str:
    """A namespace with a service account that may impersonate, for which the broker may make tokens."""
    group = "rbac.authorization.k8s.io"
    async with broker.admin() as client:
        namespace: str = (await client.create(NAMESPACES, {"metadata": {"generateName": "apps-"}}))["metadata"]["name"]
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "reader"}}, namespace)
        rules = [
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "delete"]},
            {
                "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"],
                "resourceNames": ["reader", "missing"],
            },
        ]  # fmt: skip
        named = {"metadata": {"name": "chaperone-broker"}}
        user = f"system:serviceaccount:{broker.system}:chaperone-broker"
        reference = {"apiGroup": group, "kind": "Role", "name": "chaperone-broker"}
        await client.create(ROLES, named | {"rules": rules}, namespace)
        subject = {"kind": "User", "apiGroup": group, "name": user}
        await client.create(ROLE_BINDINGS, named | {"subjects": [subject], "roleRef": reference}, namespace)
        cluster = {"metadata": {"name": f"impersonates-{namespace}"}}
        may = [{"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]}]
        await client.create(CLUSTER_ROLES, cluster | {"rules": may})
        holder = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
        role = {"apiGroup": group, "kind": "ClusterRole", "name": f"impersonates-{namespace}"}
        await client.create(CLUSTER_ROLE_BINDINGS, cluster | {"subjects": [holder], "roleRef": role})
    return namespace


async def who(pod: Pod, lease: Object) -> tuple[int, Object]:
    """Who the API server takes the holder of a lease for."""
    headers = [("Authorization", f"Bearer {lease['token']}")]
    if lease["impersonate"] is not None:
        headers.append(("Impersonate-User", lease["impersonate"]["user"]))
        headers += [("Impersonate-Group", group) for group in lease["impersonate"]["groups"]]
    api = pod.broker.api
    context = ssl.create_default_context(cadata=api.authority.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    body = {"apiVersion": SELF_REVIEWS.api_version, "kind": SELF_REVIEWS.kind}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.post(api.url + SELF_REVIEWS.path(), json=body, headers=headers) as response,
    ):
        answer: Object = await response.json()
        return response.status, (answer.get("status") or {}).get("userInfo") if response.status < 300 else answer


async def token_of(pod: Pod, credential: Object) -> Object:
    """A lease of that credential."""
    await put_target(pod.broker, credential, PLACE)
    wanted = "impersonate" in credential
    return await leased(pod, lambda one: one["kind"] == "token" and (one["impersonate"] is not None) == wanted)


async def until_worthless(pod: Pod, lease: Object) -> None:
    """The API server remembers for ten seconds which tokens were good."""
    async with asyncio.timeout(60):
        while True:
            if (await who(pod, lease))[0] == 401:
                return
            await asyncio.sleep(0.5)


def token(namespace: str, account: str = "reader", **more: object) -> Object:
    return {"kubernetesToken": {"serviceAccount": account, "namespace": namespace}, **more}


async def test_token_is_the_accounts_and_dies_with_its_session(broker: Broker, apps: str) -> None:
    pod = await enrolled(broker)
    lease = await token_of(pod, token(apps))
    assert 9 * 60 < lease["expires_at_unix"] - time.time() <= 10 * 60 + 5
    status, user = await who(pod, lease)
    assert (status, user["username"]) == (201, f"system:serviceaccount:{apps}:reader")
    assert lease["id"] in await ledger(broker)
    assert (await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204
    async with broker.admin() as client:
        with pytest.raises(ApiError) as gone:
            await client.get(SECRETS, f"chaperone-lease-{lease['id']}", apps)
    assert gone.value.status == 404
    await until_worthless(pod, lease)
    assert lease["token"] not in broker.log.read_text()


async def test_token_dies_with_its_pod(broker: Broker, apps: str) -> None:
    pod = await enrolled(broker)
    lease = await token_of(pod, token(apps))
    await delete(pod)
    await until_worthless(pod, lease)


async def test_holder_impersonates_the_identity_or_whom_the_target_names(broker: Broker, apps: str) -> None:
    pod = await enrolled(broker)
    lease = await token_of(pod, token(apps, impersonate={"groups": ["agents"]}))
    status, user = await who(pod, lease)
    assert (status, user["username"]) == (201, f"chaperone:{broker.agents}:billing-agent")
    assert set(user["groups"]) == {"agents", "system:authenticated"}


async def test_the_cluster_itself_is_never_impersonated(broker: Broker, apps: str) -> None:
    pod = await enrolled(broker)
    await token_of(pod, token(apps))
    await put_target(broker, token(apps, impersonate={"groups": ["system:masters"]}), PLACE)
    assert "it must not" in await refused(pod, 424)
    async with broker.admin() as client:
        found = await client.list(SECRETS, apps)
    assert len(found.items) == 1  # nothing was made for what is refused


@pytest.mark.parametrize("account", ["missing", "forbidden"])
async def test_account_without_rights_or_that_is_missing_is_said_and_leaves_nothing(
    broker: Broker, apps: str, account: str
) -> None:
    pod = await enrolled(broker)
    await put_target(broker, token(apps, account), PLACE)
    one = session()
    told = await refused(pod, 424, session=one)
    assert f"makes no token for the service account {apps}/{account}" in told
    assert "create on serviceaccounts/token" in told
    async with broker.admin() as client:
        assert (await client.list(SECRETS, apps)).items == ()
    assert one not in await ledger(broker)
