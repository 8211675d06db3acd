"""The ledger of leases that have to be taken back: one object of coordination.k8s.io for each, in the system namespace.

An entry is written before anything is made and removed after it was taken back, so no restart loses one. It names a
pod, a target and Secrets, and holds none. All replicas see all entries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from chaperone_operator.broker.source import Entry
from chaperone_operator.kube import LEASES, ApiError, Client, Object
from chaperone_operator.mirror import Mirror

LABEL: Final = "chaperone.dev/lease"
ANNOTATION: Final = "chaperone.dev/lease"
PREFIX: Final = "chaperone-lease-"

_log = logging.getLogger(__name__)


class Taken(Exception):
    """There is an entry of that id already."""


class LeaseLedger:
    """All recorded leases, kept current by `run`.

    Args:
        client: the API server.
        namespace: where the entries are.
        on_change: called when one came, changed or went.
    """

    def __init__(self, client: Client, namespace: str, on_change: Callable[[], None]) -> None:
        self._client = client
        self._namespace = namespace
        self._mirror = Mirror(client, LEASES, namespace, f"{LABEL}=true", lambda _: on_change())

    async def run(self) -> None:
        """Follow the entries for ever."""
        await self._mirror.run()

    @property
    def synced(self) -> asyncio.Event:
        """Set when the first whole list has come."""
        return self._mirror.synced

    def entries(self) -> Iterator[Entry]:
        """What the API server last told. One that cannot be read is said and left to people."""
        for item in tuple(self._mirror.objects.values()):
            try:
                yield _entry(item)
            except (KeyError, msgspec.MsgspecError):
                _log.error(
                    "the ledger's entry %s cannot be read; what it stands for may remain", item["metadata"]["name"]
                )

    async def open(self, entry: Entry) -> None:
        """Write an entry before its credential is made.

        Raises:
            Taken: there is one of that id. ApiError: the API server does not answer.
        """
        body = _body(entry)
        body["metadata"] |= {"name": PREFIX + entry.id, "labels": {LABEL: "true"}}
        try:
            await self._client.create(LEASES, body, self._namespace)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            raise Taken from None

    async def find(self, lease_id: str) -> Entry | None:
        """The entry of an id, as the API server has it now.

        Raises:
            ApiError: the API server does not answer.
        """
        try:
            return _entry(await self._client.get(LEASES, PREFIX + lease_id, self._namespace))
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def update(self, entry: Entry) -> None:
        """Write an entry anew: another handle or another end.

        Raises:
            ApiError: `status` 404 when it was closed meanwhile.
        """
        await self._client.merge_patch(LEASES, PREFIX + entry.id, _body(entry), self._namespace)

    async def close(self, lease_id: str) -> None:
        """Remove an entry whose credential is no more.

        Raises:
            ApiError: the API server does not answer.
        """
        await self._client.delete(LEASES, PREFIX + lease_id, self._namespace)


def _body(entry: Entry) -> Object:
    now = datetime.now(UTC)
    spec = {
        "holderIdentity": f"{entry.namespace}/{entry.pod}",
        "acquireTime": f"{datetime.fromtimestamp(entry.made_at_unix, UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "renewTime": f"{now:%Y-%m-%dT%H:%M:%S.%fZ}",
        "leaseDurationSeconds": max(1, entry.expires_at_unix - int(now.timestamp())),
    }
    return {"metadata": {"annotations": {ANNOTATION: msgspec.json.encode(entry).decode()}}, "spec": spec}


def _entry(item: Object) -> Entry:
    return msgspec.json.decode(item["metadata"]["annotations"][ANNOTATION], type=Entry)
