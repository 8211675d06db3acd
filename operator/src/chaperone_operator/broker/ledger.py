"""The ApprovalRequests of the cluster: read from a mirror, written under the version that was read.

The API server is what all replicas of the broker agree by: whoever writes names the version that the decision was made
on, and of two that do so at once one is told so and looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

from chaperone_operator import approval
from chaperone_operator.approval import Request, State
from chaperone_operator.broker.errors import Refused
from chaperone_operator.kube import APPROVAL_REQUESTS, ApiError, Client, Object
from chaperone_operator.mirror import Key, Mirror

CONDITION: Final = "Decided"
MAX_WAITERS: Final = 4096  # gateways that wait at once, each with one held command
MAX_MESSAGE: Final = 1024  # the CRD's

_log = logging.getLogger(__name__)


class Ledger:
    """All requests, current while `run` runs.

    Attributes:
        changed: set whenever a request came or changed; whoever acts on it clears it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._mirror = Mirror(client, APPROVAL_REQUESTS, on_change=self._changed)
        self._requests: dict[Key, Request] = {}
        self._waiting: dict[Key, asyncio.Event] = {}
        self.changed = asyncio.Event()
        self.waiters = 0

    @property
    def synced(self) -> asyncio.Event:
        """Set when the first whole list has come."""
        return self._mirror.synced

    async def run(self) -> None:
        """Follow the API server for ever."""
        await self._mirror.run()

    def all(self) -> tuple[Request, ...]:
        """Every request that can be read."""
        return tuple(self._requests.values())

    def open(self, namespace: str = "") -> Iterator[Request]:
        """Requests of which something can still become; "" means of all namespaces."""
        for request in self.all():
            if request.is_open and namespace in {"", request.metadata.namespace}:
                yield request

    async def stored(self, namespace: str, name: str) -> Request:
        """A request as the API server has it at this moment.

        Raises:
            Refused: 404. ApiError: the API server does not answer.
        """
        try:
            return approval.read(await self._client.get(APPROVAL_REQUESTS, name, namespace))
        except ApiError as error:
            if error.status != 404:
                raise
        except ValueError:
            _log.error("the ApprovalRequest %s/%s cannot be read", namespace, name)
        raise Refused(404, "No such request", f"There is no approval request {name} in namespace {namespace}.")

    def seen(self, namespace: str, name: str) -> Request | None:
        """A request as this replica knows it."""
        return self._requests.get((namespace, name))

    async def known(self, namespace: str, name: str) -> Request:
        """A request as this replica knows it, else as it is stored.

        Raises:
            Refused, ApiError: as `stored`.
        """
        return self.seen(namespace, name) or await self.stored(namespace, name)

    async def settled(self, request: Request, wait_s: float) -> Request:
        """The request as soon as it is no longer Pending; as it is after `wait_s` otherwise.

        Raises:
            Refused: 503 when too many wait already; 404 when it was deleted. ApiError: as `stored`.
        """
        if self.waiters >= MAX_WAITERS:
            raise Refused(503, "Too many waiters", "Call again.", retry_after_s=5)
        namespace, name = request.metadata.namespace, request.metadata.name
        self.waiters += 1
        try:
            async with asyncio.timeout(wait_s):
                while request.status.state == State.PENDING:
                    await self._waiting.setdefault((namespace, name), asyncio.Event()).wait()
                    request = await self.known(namespace, name)
        except TimeoutError:
            return await self.known(namespace, name)
        finally:
            self.waiters -= 1
        return request

    async def make(self, body: Object, namespace: str) -> Request | None:
        """Store a new request; None when there is one of its name.

        Raises:
            ApiError: it was refused.
        """
        try:
            made = await self._client.create(APPROVAL_REQUESTS, body, namespace)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            return None
        request = approval.read(made)
        self._requests.setdefault((namespace, request.metadata.name), request)  # counted before the watch tells of it
        return request

    async def move(self, request: Request, state: State, reason: str, message: str, now_unix: float) -> Request | None:
        """Give a request another state; None when it changed since it was read.

        Args:
            request: the version on which this was decided.
            state: may be the present one: then only the tally is written.
            reason: CamelCase, for the condition.
            message: for people.
            now_unix: seconds since 1970.

        Raises:
            ApiError: it was refused for another reason.
        """
        at = approval.timestamp(now_unix)
        status: Object = {"state": state.value, "tally": str(request.tally())}
        if state != request.status.state:
            status["message"] = message[:MAX_MESSAGE]
            status["conditions"] = [
                {
                    "type": CONDITION, "status": "True", "reason": reason, "message": message,
                    "lastTransitionTime": at, "observedGeneration": 1,
                }
            ]  # fmt: skip
        if state == State.USED:
            status["usedAt"] = at
        metadata = request.metadata
        body: Object = {"metadata": {"resourceVersion": metadata.resource_version}, "status": status}
        try:
            written = await self._client.merge_patch(
                APPROVAL_REQUESTS, metadata.name, body, metadata.namespace, "status"
            )
        except ApiError as error:
            if error.reason == "NotFound":
                self._requests.pop((metadata.namespace, metadata.name), None)
            if error.reason in {"Conflict", "NotFound"}:
                return None
            raise
        return approval.read(written)

    async def delete(self, request: Request) -> None:
        """Delete a request; one that is gone is no error.

        Raises:
            ApiError: it was refused.
        """
        await self._client.delete(APPROVAL_REQUESTS, request.metadata.name, request.metadata.namespace)

    def _changed(self, key: Key) -> None:
        item = self._mirror.objects.get(key)
        self._requests.pop(key, None)
        if item is not None:
            try:
                self._requests[key] = approval.read(item)
            except ValueError as error:
                _log.error("the ApprovalRequest %s/%s cannot be read: %s", *key, error)
        self.changed.set()
        if waiting := self._waiting.pop(key, None):
            waiting.set()
