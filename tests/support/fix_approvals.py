"""`approvals`: the broker with rules that ask for approvals, the webhooks that sign votes, and people who vote.

The webhooks run in a thread of their own and hold the ApprovalRequests of all namespaces, as the chart registers them.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from aiohttp import web
from fix_broker import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, Broker, Pod
from manifests import rule
from pki import Authority

from chaperone_operator import kubeconfig
from chaperone_operator.admission.identities import Identities
from chaperone_operator.admission.inject import Settings as Injected
from chaperone_operator.admission.server import Webhooks
from chaperone_operator.approval import Settings
from chaperone_operator.kube import (
    APPROVAL_REQUESTS,
    MUTATING_WEBHOOKS,
    VALIDATING_WEBHOOKS,
    ApiError,
    Client,
    Object,
)

LEADS: Final = "billing-leads"
OUTSIDERS: Final = "outsiders"  # have the rights of approvers, and are no approvers of any rule
REGISTRATION: Final = "approvals-test"
WAIT_S: Final = 30.0
TEXT: Final = "UPDATE invoices SET paid = true WHERE id = 7"


@dataclass
class Approvals:
    """Everything that takes part in an approval, but the gateway."""

    broker: Broker
    folder: Path
    revision: str = ""

    @property
    def namespace(self) -> str:
        """Where the agents are."""
        return self.broker.agents

    async def put_rules(self, *rules: Object, is_suspended: bool = False, **changed: Any) -> None:
        """Policy under a new revision: rule `fix` asks for an approval with those settings, others for other ones."""
        usual = Settings((LEADS,), 1, 1, 45, 600, "Optional", self_approval=False)
        settings = {
            f"{self.namespace}/billing/fix": _with(usual, **changed),
            f"{self.namespace}/billing/two": _with(usual, count=2, deny_count=2),
            f"{self.namespace}/billing/why": _with(usual, reason="Required"),
            f"{self.namespace}/billing/soon": _with(usual, valid_s=3, wait_s=1),
            f"{self.namespace}/billing/self": _with(usual, self_approval=True),
        }
        snapshot = self.broker.compiled(
            *(rules or (rule(f"read-{secrets.token_hex(4)}", "Allow", ["read"]),)), is_suspended=is_suspended
        )
        await self.broker.put_snapshot(snapshot, approvals=msgspec.json.encode(settings))
        self.revision = snapshot.revision

    async def pod(self, **changed: Any) -> Pod:
        """A pod whose gateway has its certificate, once the broker knows the policy."""
        pod = await self.broker.pod(f"approvals-{time.monotonic_ns()}", **changed)
        await pod.set_status(restarts=0)
        status, answer = await pod.exchange()
        assert status == 200, answer
        return pod

    def body(self, **changed: Any) -> Object:
        """A question about a statement of its own."""
        usual: Object = {
            "revision": self.revision,
            "policy": f"{self.namespace}/billing",
            "rule": "fix",
            "target": "orders-db",
            "session": "01j00000000000000000000000",
            "kind": "query",
            "text": TEXT,
            "binding": secrets.token_hex(32),
            "accesses": [{"effect": "modify", "object": "public.invoices"}],
            "shape": "0123456789abcdef",
            "estimated_rows": 1,
        }
        return usual | changed

    async def ask(self, pod: Pod, **changed: Any) -> tuple[str, Object]:
        """Ask for an approval: the name of the request, and the question."""
        body = self.body(**changed)
        status, answer = await pod.call("POST", "/v1/approvals", json=body)
        assert status == 200, answer
        assert answer["state"] == "Pending"
        return answer["name"], body

    def use(self, pod: Pod, name: str, body: Object, **changed: str) -> Any:
        """Spend an approval."""
        spent = {"binding": body["binding"], "revision": body["revision"]} | changed
        return pod.call("POST", f"/v1/approvals/{name}/use", json=spent)

    async def until(self, pod: Pod, name: str, is_so: Callable[[Object], bool]) -> Object:
        """What the gateway is shown, once it is so."""
        async with asyncio.timeout(WAIT_S):
            while True:
                status, answer = await pod.call("GET", f"/v1/approvals/{name}?wait=1")
                if status == 200 and is_so(answer):
                    found: Object = answer
                    return found
                await asyncio.sleep(0.2)  # a decided request is shown at once, and calls are counted

    async def state(self, pod: Pod, name: str, *states: str) -> Object:
        """What the gateway is shown, once it is in one of the states."""
        return await self.until(pod, name, lambda shown: shown["state"] in states)

    def client(self, user: str, *groups: str) -> Client:
        """A person."""
        return Client(kubeconfig.from_file(self.broker.api.kubeconfig_of(user, *groups)))

    async def vote(
        self, user: str, name: str, decision: str = "Approve", reason: str = "", groups: Any = (LEADS,)
    ) -> Object:
        """Vote, as kubectl does."""
        typed = {"decision": decision} | ({"reason": reason} if reason else {})
        return await self.patch(user, name, [{"op": "add", "path": "/status/votes/-", "value": typed}], groups)

    async def patch(self, user: str, name: str, patch: list[Object], groups: Any = (LEADS,)) -> Object:
        """A JSON patch of the status.

        Raises:
            ApiError: it was refused.
        """
        async with self.client(user, *groups) as client:
            return await client._object(  # the product's own client makes no JSON patch
                "PATCH", APPROVAL_REQUESTS.path(self.namespace, name, "status"), body=patch,  # type: ignore[arg-type]
                content_type="application/json-patch+json",
            )  # fmt: skip

    async def stored(self, name: str) -> Object:
        """The request as the API server has it."""
        async with self.broker.admin() as client:
            return await client.get(APPROVAL_REQUESTS, name, self.namespace)

    def replica(self) -> Broker:
        """Another broker of the same cluster; the caller stops it."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir()
        found = dataclasses.replace(self.broker, folder=folder, process=None)
        found.write_pair()
        found.start()
        return found


def _with(settings: Settings, **changed: Any) -> Settings:
    return msgspec.structs.replace(settings, **changed)


class Signing:
    """The webhooks of approvals, in a thread."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self._broker = broker
        self._folder = folder
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.authority = Authority("approvals' webhook CA")
        self.port = 0

    def start(self) -> None:
        """Serve."""
        self._thread.start()
        assert self._started.wait(WAIT_S)

    def stop(self) -> None:
        """End."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._serve())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _serve(self) -> web.AppRunner:
        settings = Injected("1", "gateway", "opa", "uid", "ca", "key", system_namespace=self._broker.system)
        client = Client(kubeconfig.from_file(self._broker.api.kubeconfig))
        runner = web.AppRunner(Webhooks(client, Identities(client), settings).application(), access_log=None)
        await runner.setup()
        key, certificate = self.authority.server_pair("127.0.0.1")
        (self._folder / "tls.key").write_bytes(key)
        (self._folder / "tls.crt").write_bytes(certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context).start()
        self.port = runner.addresses[0][1]
        self._started.set()
        return runner


def registrations(signing: Signing) -> list[tuple[Any, Object]]:
    """As charts/chaperone/templates/webhooks.yaml registers them, by URL, and more patient: they share a process."""
    bundle = base64.b64encode(signing.authority.pem.encode()).decode()

    def webhook(path: str, *rules: tuple[str, str]) -> Object:
        return {
            "name": f"{path}.chaperone.dev",
            "clientConfig": {"url": f"https://127.0.0.1:{signing.port}/{path}", "caBundle": bundle},
            "rules": [
                {"apiGroups": ["chaperone.dev"], "apiVersions": ["v1alpha1"], "operations": [operation],
                 "resources": [resource]}
                for operation, resource in rules
            ],
            "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 30,
        }  # fmt: skip

    status = ("UPDATE", "approvalrequests/status")
    mutator = webhook("mutate-approval", status)
    validator = webhook("validate-approval", ("CREATE", "approvalrequests"), ("UPDATE", "approvalrequests"), status)
    metadata = {"metadata": {"name": REGISTRATION}}
    return [
        (MUTATING_WEBHOOKS, metadata | {"webhooks": [mutator]}),
        (VALIDATING_WEBHOOKS, metadata | {"webhooks": [validator]}),
    ]


@pytest.fixture(scope="module")
def approvals(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Approvals]:
    """Policy, webhooks and people; policy is put back afterwards."""
    folder = tmp_path_factory.mktemp("approvals")
    signing = Signing(broker, folder)
    signing.start()
    held = Approvals(broker, folder)
    try:
        asyncio.run(_prepare(held, signing))
        yield held
    finally:
        asyncio.run(_clear(held))
        signing.stop()


async def _prepare(held: Approvals, signing: Signing) -> None:
    async with held.broker.admin() as client:
        for resource, body in registrations(signing):
            await client.create(resource, body)
        await _grant(client)
        async with asyncio.timeout(WAIT_S):  # the API server follows its registrations with a delay
            while not await _is_held(client, held):  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.05)
    await held.put_rules()


async def _is_held(client: Client, held: Approvals) -> bool:
    name = f"apr-{secrets.token_hex(4)}"
    try:
        await client.create(APPROVAL_REQUESTS, request(name), held.namespace)
    except ApiError as error:
        return "broker-only" in str(error)
    await client.delete(APPROVAL_REQUESTS, name, held.namespace)
    return False


async def _clear(held: Approvals) -> None:
    async with held.broker.admin() as client:
        for resource in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
            await client.delete(resource, REGISTRATION)
        for item in (await client.list(APPROVAL_REQUESTS, held.namespace)).items:
            await client.delete(APPROVAL_REQUESTS, item["metadata"]["name"], held.namespace)
    await held.broker.put_snapshot(held.broker.compiled())


async def _grant(client: Client) -> None:
    """The ClusterRole chaperone-approver, bound to both groups in every namespace."""
    group = "chaperone.dev"
    rules = [
        {"apiGroups": [group], "resources": ["approvalrequests"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [group], "resources": ["approvalrequests/status"], "verbs": ["get", "patch"]},
    ]
    name = "chaperone-approver-test"
    await client.apply(CLUSTER_ROLES, name, {"rules": rules}, manager="test")
    rbac = "rbac.authorization.k8s.io"
    body: Object = {
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "Group", "apiGroup": rbac, "name": one} for one in (LEADS, OUTSIDERS)],
    }
    await client.apply(CLUSTER_ROLE_BINDINGS, name, body, manager="test")


def request(name: str, **spec: Any) -> Object:
    """An ApprovalRequest that passes the schema."""
    usual: Object = {
        "requester": {
            "identity": "billing-agent", "pod": "billing-0", "podUID": "uid", "serviceAccount": "agent",
            "createdBy": "creator", "owner": {"name": "Billing on-call"},
        },
        "excluded": ["system:serviceaccount:agents:agent", "creator"],
        "session": "01j00000000000000000000000", "target": "orders-db", "protocol": "PostgreSQL", "kind": "query",
        "text": TEXT, "binding": "0" * 64, "accesses": [{"effect": "modify", "object": "public.invoices"}],
        "effects": ["modify"], "policy": "agents/billing", "rule": "fix", "revision": "0123456789abcdef",
        "approval": {
            "groups": [LEADS], "count": 1, "denyCount": 1, "waitSeconds": 45, "validForSeconds": 600,
            "reason": "Optional", "selfApproval": False,
        },
        "createdAt": "2026-01-01T00:00:00Z", "expiresAt": "2099-01-01T00:00:00Z", "shape": "0123456789abcdef",
    }  # fmt: skip
    return {
        "apiVersion": APPROVAL_REQUESTS.api_version, "kind": "ApprovalRequest", "metadata": {"name": name},
        "spec": usual | spec,
    }  # fmt: skip
