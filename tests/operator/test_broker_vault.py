"""Credentials of Vault's API: a real broker, a real API server, a real OpenBao and the database that it looks after."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
from fix_bao import ROOT_TOKEN, Bao, running
from fix_broker import CLUSTER_ROLE_BINDINGS, ROLE_BINDINGS, ROLES, Broker, secret
from fix_postgres import PASSWORD, Postgres
from leasing import delete, enrolled, leased, ledger, put_target, refused, until

from chaperone_operator.compile.credential import Place
from chaperone_operator.kube import SECRETS, SERVICE_ACCOUNTS, Object

pytestmark = pytest.mark.peer

KEPT = "canary-kept-in-vault-91"
PLACE = Place("db.example", 5432, "", "VerifyFull", "db.example")
TOKEN_LOGIN: Object = {"tokenSecretRef": {"name": "vault-token"}}
POLICY = """
path "secret/data/apps/*" {capabilities = ["read"]}
path "database/creds/reader" {capabilities = ["read"]}
path "sys/leases/renew" {capabilities = ["update"]}
path "sys/leases/revoke" {capabilities = ["update"]}
"""


@pytest.fixture(scope="module")
def bao(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """A server with a secret, and a database engine for the test's PostgreSQL."""
    with running(tmp_path_factory.mktemp("bao")) as server:
        server.call("POST", "secret/data/apps/orders", data={"username": "orders", "password": KEPT})
        server.call("POST", "secret/data/apps/half", data={"username": "orders", "password": 7})
        server.call("PUT", "sys/policies/acl/broker", policy=POLICY)
        server.call("POST", "sys/mounts/database", type="database")
        where = f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{postgres.port}/orders?sslmode=disable"
        server.call(
            "POST", "database/config/orders", plugin_name="postgresql-database-plugin", allowed_roles="reader",
            connection_url=where, username="postgres", password=PASSWORD,
        )  # fmt: skip
        make = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; "
        make += 'GRANT pg_read_all_data TO "{{name}}"'
        server.call(
            "POST", "database/roles/reader", db_name="orders", creation_statements=[make], default_ttl="20m",
            max_ttl="24h",
        )  # fmt: skip
        yield server


@pytest.fixture
async def ready(broker: Broker, bao: Bao) -> Broker:
    """A broker with a token and the CA of the server."""
    made = bao.call("POST", "auth/token/create", policies=["broker"], ttl="24h")["auth"]["client_token"]
    async with broker.admin() as client:
        for one in (
            secret("vault-token", "Opaque", token=made),
            secret("vault-ca", "Opaque", **{"ca.crt": bao.ca_pem}),
        ):
            await client.apply(SECRETS, one["metadata"]["name"], one, manager="test", namespace=broker.system)
    return broker


def kv(bao: Bao, path: str = "apps/orders", login: Object = TOKEN_LOGIN) -> Object:
    return {"vaultKv": {"address": bao.address, "login": login, "path": path, "caSecretRef": {"name": "vault-ca"}}}


def database(bao: Bao, login: Object = TOKEN_LOGIN) -> Object:
    return {
        "vaultDatabase": {
            "address": bao.address, "login": login, "role": "reader", "caSecretRef": {"name": "vault-ca"},
        }
    }  # fmt: skip


def is_vaults(lease: Object) -> bool:
    return str(lease["username"]).startswith("v-")


def may_log_in(postgres: Postgres, lease: Object) -> bool:
    try:
        psycopg.connect(
            host="127.0.0.1", port=postgres.port, user=lease["username"], password=lease["password"], dbname="orders"
        ).close()
    except psycopg.OperationalError:
        return False
    return True


async def test_secret_of_a_key_value_engine_is_read_at_the_moment(ready: Broker, bao: Bao) -> None:
    pod = await enrolled(ready)
    await put_target(ready, kv(bao), PLACE)
    lease = await leased(pod, lambda one: one["username"] == "orders")
    assert (lease["kind"], lease["password"]) == ("password", KEPT)
    bao.call("POST", "secret/data/apps/orders", data={"username": "orders", "password": KEPT + "-changed"})
    assert (await leased(pod))["password"] == KEPT + "-changed"
    bao.call("POST", "secret/data/apps/orders", data={"username": "orders", "password": KEPT})
    assert KEPT not in ready.log.read_text()


@pytest.mark.parametrize(
    ("path", "words"),
    [("apps/missing", "HTTP status 404"), ("other/orders", "HTTP status 403"), ("apps/half", "needs username and")],
)
async def test_secret_that_cannot_be_read_is_said(ready: Broker, bao: Bao, path: str, words: str) -> None:
    pod = await enrolled(ready)
    await put_target(ready, kv(bao, path), PLACE)
    told = ""
    while words not in told:
        told = await refused(pod, 424)
    assert path in told


async def test_server_is_known_by_its_ca(ready: Broker, bao: Bao) -> None:
    pod = await enrolled(ready)
    credential = kv(bao)
    credential["vaultKv"]["caSecretRef"] = {"name": "orders-db-ca"}
    await put_target(ready, credential, PLACE)
    told = ""
    while "cannot be reached" not in told:
        told = await refused(pod, 424)
    assert ROOT_TOKEN not in told + ready.log.read_text()


async def test_database_credentials_are_renewed_and_revoked_with_their_session(
    ready: Broker, bao: Bao, postgres: Postgres
) -> None:
    pod = await enrolled(ready)
    await put_target(ready, database(bao), PLACE)
    lease, other = await leased(pod, is_vaults), await leased(pod, is_vaults)
    assert lease["username"] != other["username"]
    assert 19 * 60 < lease["expires_at_unix"] - time.time() <= 20 * 60 + 1
    assert may_log_in(postgres, lease)
    assert {lease["id"], other["id"]} <= await ledger(ready)
    status, answer = await pod.call("POST", "/v1/leases/renew", json={"id": lease["id"]})
    assert (status, answer["expires_at_unix"] >= lease["expires_at_unix"]) == (200, True)
    assert (await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204
    assert not may_log_in(postgres, lease)
    assert may_log_in(postgres, other)
    assert lease["id"] not in await ledger(ready)
    assert lease["password"] not in ready.log.read_text()


async def test_database_credentials_end_with_their_pod_whatever_became_of_the_broker(
    ready: Broker, bao: Bao, postgres: Postgres
) -> None:
    pod = await enrolled(ready)
    await put_target(ready, database(bao), PLACE)
    lease = await leased(pod, is_vaults)
    assert ready.process is not None
    ready.process.kill()
    ready.process.wait(20)
    await delete(pod)
    assert may_log_in(postgres, lease)
    ready.start()
    await until(lambda: not may_log_in(postgres, lease))


async def test_lease_that_cannot_be_revoked_now_is_revoked_later(ready: Broker, bao: Bao, postgres: Postgres) -> None:
    pod = await enrolled(ready)
    await put_target(ready, database(bao), PLACE)
    lease = await leased(pod, is_vaults)
    bao.call("PUT", "sys/policies/acl/broker", policy=POLICY.replace("sys/leases/revoke", "sys/leases/none"))
    assert (await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204
    assert lease["id"] in await ledger(ready)
    bao.call("PUT", "sys/policies/acl/broker", policy=POLICY)
    await delete(pod)
    await until(lambda: not may_log_in(postgres, lease))


async def test_broker_shows_itself_by_its_service_account(ready: Broker, bao: Bao) -> None:
    group = "rbac.authorization.k8s.io"
    user = {"kind": "User", "apiGroup": group, "name": f"system:serviceaccount:{ready.system}:chaperone-broker"}
    rule = {
        "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"],
        "resourceNames": ["chaperone-broker"],
    }  # fmt: skip
    named, reference = {"metadata": {"name": "own-token"}}, {"apiGroup": group, "kind": "Role", "name": "own-token"}
    async with ready.admin() as client:
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "chaperone-broker"}}, ready.system)
        await client.create(ROLES, named | {"rules": [rule]}, ready.system)
        await client.create(ROLE_BINDINGS, named | {"subjects": [user], "roleRef": reference}, ready.system)
        reviewer = {"metadata": {"name": "reviewer"}}
        await client.create(SERVICE_ACCOUNTS, reviewer, ready.system)
        role = {"apiGroup": group, "kind": "ClusterRole", "name": "system:auth-delegator"}
        holder = {"kind": "ServiceAccount", "name": "reviewer", "namespace": ready.system}
        await client.create(CLUSTER_ROLE_BINDINGS, reviewer | {"subjects": [holder], "roleRef": role})
        asked: Object = {"spec": {"expirationSeconds": 3600}}
        token = await client.create(SERVICE_ACCOUNTS, asked, ready.system, "reviewer", "token")
    bao.call("POST", "sys/auth/kubernetes", type="kubernetes")
    bao.call(
        "POST", "auth/kubernetes/config", kubernetes_host=ready.api.url, kubernetes_ca_cert=ready.api.authority.pem,
        token_reviewer_jwt=token["status"]["token"],
    )  # fmt: skip
    bao.call(
        "POST", "auth/kubernetes/role/chaperone", bound_service_account_names=["chaperone-broker"],
        bound_service_account_namespaces=[ready.system], audience="vault", token_policies=["broker"], token_ttl="24h",
    )  # fmt: skip
    pod = await enrolled(ready)
    await put_target(ready, kv(bao, login={"kubernetesRole": "chaperone"}), PLACE)
    assert (await leased(pod, lambda one: one["username"] == "orders"))["password"] == KEPT
    # Its token is revoked under its hands; it shows itself anew.
    for accessor in bao.call("LIST", "auth/token/accessors")["data"]["keys"]:
        about = bao.call("POST", "auth/token/lookup-accessor", accessor=accessor)["data"]
        if about["path"].startswith("auth/kubernetes"):
            bao.call("POST", "auth/token/revoke-accessor", accessor=accessor)
    assert (await leased(pod))["password"] == KEPT
    await put_target(ready, kv(bao, login={"kubernetesRole": "another"}), PLACE)
    assert "HTTP status 40" in await refused(pod, 424)
