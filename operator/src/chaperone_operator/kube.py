"""A small Kubernetes client on aiohttp: typed calls, lists in pages, watches that notice silence.

Objects are the API's own JSON (`Object`). Every call has a timeout and a cap on what it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import msgspec

from chaperone_operator import kubeconfig

type Object = dict[str, Any]

CONNECT_TIMEOUT_S: Final = 10.0  # a healthy API server accepts in ms; load balancers drop silently
REQUEST_TIMEOUT_S: Final = 30.0  # the API server itself gives up on most requests after 60 s
WATCH_SERVER_S: Final = 300  # the server ends a watch after this; a fresh one re-balances and finds stale state
WATCH_SILENCE_S: Final = 75.0  # past this a connection is taken for dead; an idle one is merely opened anew
PAGE: Final = 500  # objects a page of a list
MAX_ANSWER_BYTES: Final = 64 << 20  # one page of the largest objects; beyond it something is wrong
MAX_EVENT_BYTES: Final = 8 << 20  # one watch event: etcd's limit is 1.5 MiB an object
MAX_CONNECTIONS: Final = 32  # watches of all kinds and the requests beside them


class Resource(msgspec.Struct, frozen=True):
    """One kind of the API, by the parts of its URL."""

    group: str  # "" is the core group
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, an object or its subresource."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)


NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace")
PODS: Final = Resource("", "v1", "pods", "Pod")
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
MUTATING_WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration"
)
VALIDATING_WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration"
)
API_SERVICES: Final = Resource("apiregistration.k8s.io", "v1", "apiservices", "APIService")
TOKEN_REVIEWS: Final = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview")
AGENT_IDENTITIES: Final = Resource("chaperone.dev", "v1alpha1", "agentidentities", "AgentIdentity")
ACCESS_TARGETS: Final = Resource("chaperone.dev", "v1alpha1", "accesstargets", "AccessTarget")
ACCESS_POLICIES: Final = Resource("chaperone.dev", "v1alpha1", "accesspolicies", "AccessPolicy")
APPROVAL_REQUESTS: Final = Resource("chaperone.dev", "v1alpha1", "approvalrequests", "ApprovalRequest")
CLUSTER_ACCESS_POLICIES: Final = Resource("chaperone.dev", "v1alpha1", "clusteraccesspolicies", "ClusterAccessPolicy")
POLICY_REVISIONS: Final = Resource("evidence.chaperone.dev", "v1alpha1", "policyrevisions", "PolicyRevision")
POPULATIONS: Final = Resource("evidence.chaperone.dev", "v1alpha1", "populations", "Population")
TALLIES: Final = Resource("evidence.chaperone.dev", "v1alpha1", "tallies", "Tally")


class ApiError(Exception):
    """The API server refused or did not answer.

    Attributes:
        status: HTTP status, 0 when there was no answer.
        reason: Kubernetes' CamelCase reason (`NotFound`, `Conflict`, `AlreadyExists`, …), "" when unknown.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Listing(msgspec.Struct, frozen=True):
    """All objects of a list call, and the version to watch from."""

    items: tuple[Object, ...]
    resource_version: str


class Change(msgspec.Struct, frozen=True):
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Object


class Client:
    """Calls to one API server. Use as an async context manager, or call `close`.

    Args:
        access: address, TLS context and credential.
        agent: User-Agent of this part, for the API server's audit log.
        silence_s: how long a watch may be silent.
    """

    def __init__(self, access: kubeconfig.Access, agent: str = "chaperone", silence_s: float = WATCH_SILENCE_S) -> None:
        self._access = access
        self._agent = agent
        self._silence_s = silence_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; watches under way end with `ApiError`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, resource: Resource, name: str, namespace: str = "", subresource: str = "") -> Object:
        """One object.

        Raises:
            ApiError: `status` 404 when it does not exist.
        """
        return await self._object("GET", resource.path(namespace, name, subresource))

    async def list(
        self,
        resource: Resource,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        changed_since: str = "",
    ) -> Listing:
        """All objects, page by page; `namespace` "" means all namespaces.

        `changed_since`, a resourceVersion, is understood by `TALLIES` alone: what changed since.

        Raises:
            ApiError: also when the list changed too much while it was read (410); ask again.
        """
        items: list[Object] = []
        query = _selectors(label_selector, field_selector) | {"limit": str(PAGE)}
        if changed_since:
            query["changedSince"] = changed_since
        while True:
            page = await self._object("GET", resource.path(namespace), query=query)
            metadata = page.get("metadata") or {}
            items += page.get("items") or []
            if not metadata.get("continue"):
                return Listing(tuple(items), metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    async def create(
        self, resource: Resource, body: Object, namespace: str = "", name: str = "", subresource: str = ""
    ) -> Object:
        """Create an object, ask a review (`TOKEN_REVIEWS`), or post to a subresource of `name`.

        Raises:
            ApiError: `reason` AlreadyExists when it exists.
        """
        return await self._object("POST", resource.path(namespace, name, subresource), body=body)

    async def replace(
        self, resource: Resource, name: str, body: Object, namespace: str = "", subresource: str = ""
    ) -> Object:
        """Replace an object; with `metadata.resourceVersion` in the body only that version (compare and swap).

        Raises:
            ApiError: `reason` Conflict when another writer was faster.
        """
        return await self._object("PUT", resource.path(namespace, name, subresource), body=body)

    async def apply(
        self,
        resource: Resource,
        name: str,
        body: Object,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        force: bool = True,
    ) -> Object:
        """Server-side apply: `manager` owns exactly the fields of `body`.

        Raises:
            ApiError: `reason` Conflict when another manager owns a field and `force` is off.
        """
        metadata = {"name": name} | ({"namespace": namespace} if namespace else {}) | body.get("metadata", {})
        whole = {"apiVersion": resource.api_version, "kind": resource.kind} | body | {"metadata": metadata}
        return await self._object(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=whole,
            content_type="application/apply-patch+yaml",
            query={"fieldManager": manager, "force": "true" if force else "false"},
        )

    async def merge_patch(
        self, resource: Resource, name: str, body: Object, namespace: str = "", subresource: str = ""
    ) -> Object:
        """JSON merge patch.

        Raises:
            ApiError: the object does not exist, or the patch is invalid.
        """
        path = resource.path(namespace, name, subresource)
        return await self._object("PATCH", path, body=body, content_type="application/merge-patch+json")

    async def delete(self, resource: Resource, name: str, namespace: str = "", grace_s: int | None = None) -> None:
        """Delete an object; one that is already gone is no error. `grace_s` 0 waits for no kubelet.

        Raises:
            ApiError: any other refusal.
        """
        try:
            body = None if grace_s is None else {"gracePeriodSeconds": grace_s}
            await self._object("DELETE", resource.path(namespace, name), body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[Change]:
        """Changes after `resource_version`, until the server ends the watch (`WATCH_SERVER_S`) or falls silent.

        Either way the caller goes on by another watch from the last version seen.

        Raises:
            ApiError: `status` 410 when the version is too old: list again.
        """
        query = _selectors(label_selector, field_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_SERVER_S),
        }
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, sock_read=self._silence_s
        )
        path = resource.path(namespace)
        try:
            async with self._opened().get(
                self._access.url + path, params=query, headers=self._headers(), timeout=timeout
            ) as response:
                if response.status != 200:
                    raise _refusal(response.status, await _body(response, path), path)
                async for line in _lines(response):
                    change = _change(line, path)
                    if change.type == "ERROR":
                        raise _refusal(int(change.object.get("code", 0)), msgspec.json.encode(change.object), path)
                    yield change
        except aiohttp.SocketTimeoutError:
            return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"The watch of {path} broke off ({type(error).__name__}).") from error

    async def _object(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = self._headers()
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._opened().request(
                method, self._access.url + path, params=query, data=data, headers=headers, timeout=timeout
            ) as response:
                answer = await _body(response, path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"The API server does not answer {method} {path} ({type(error).__name__}).") from error
        if response.status >= 300:
            raise _refusal(response.status, answer, path)
        return _decode(answer, path)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._access.context, limit=MAX_CONNECTIONS)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        if token := self._access.bearer():
            headers["Authorization"] = f"Bearer {token}"
        return headers


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {}
    if label_selector:
        query["labelSelector"] = label_selector
    if field_selector:
        query["fieldSelector"] = field_selector
    return query


async def _body(response: aiohttp.ClientResponse, path: str) -> bytes:
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            raise ApiError(f"The API server's answer to {path} is over {MAX_ANSWER_BYTES} bytes.")
    return bytes(answer)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # StreamReader's own line limit is too small for objects, so lines are cut here.
    rest = bytearray()
    async for chunk in response.content.iter_any():
        rest += chunk
        while (end := rest.find(b"\n")) >= 0:
            line = bytes(rest[:end])
            del rest[: end + 1]
            if line.strip():
                yield line
        if len(rest) > MAX_EVENT_BYTES:
            raise ApiError(f"A watch event is over {MAX_EVENT_BYTES} bytes.")


def _decode(answer: bytes, path: str) -> Object:
    try:
        found: Object = msgspec.json.decode(answer, type=dict)
    except msgspec.DecodeError:
        # The decoder's text may quote the object, and the object may be a Secret.
        raise ApiError(f"The API server's answer to {path} is not a JSON object.") from None
    return found


def _change(line: bytes, path: str) -> Change:
    try:
        return msgspec.json.decode(line, type=Change)
    except msgspec.DecodeError:
        raise ApiError(f"An event of {path} cannot be read.") from None


def _refusal(status: int, answer: bytes, path: str) -> ApiError:
    """An error from a Kubernetes Status, which names objects but never quotes their content."""
    try:
        told = msgspec.json.decode(answer, type=_Status)
    except msgspec.DecodeError:
        told = _Status()
    message = told.message or f"HTTP status {status}"
    return ApiError(f"The API server refuses {path}: {message}", status, told.reason)


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""


async def read_or_make_secret(client: Client, namespace: str, name: str, make: Callable[[], Object]) -> Object:
    """The Secret of that name. When there is none yet, the object that `make` gives in a thread is stored.

    Raises:
        ApiError: it cannot be read or written.
    """
    try:
        return await client.get(SECRETS, name, namespace)
    except ApiError as error:
        if error.status != 404:
            raise
    made = await asyncio.to_thread(make)
    try:
        return await client.create(SECRETS, made, namespace)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    return await client.get(SECRETS, name, namespace)  # another replica was faster; its Secret is the one
