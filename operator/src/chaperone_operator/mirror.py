"""A mirror of one kind of object, kept current by list and watch.

It is level-based: a lost event costs a delay, never a wrong end state. Readers look into `objects`; nothing here writes
to the API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from chaperone_operator.kube import ApiError, Client, Object, Resource

type Key = tuple[str, str]  # namespace ("" for cluster-scoped kinds) and name

FIRST_BACKOFF_S: Final = 0.5  # after a failed list or watch; doubles up to the next
LAST_BACKOFF_S: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Mirror:
    """All objects of one kind as the API server last told, kept current by `run`.

    Attributes:
        objects: by namespace and name. Read only.
        synced: set after the first whole list; unset never again.
        on_change: called in the loop with the key of each object that came, changed or went; must not block.
    """

    client: Client
    resource: Resource
    namespace: str = ""
    label_selector: str = ""
    on_change: Callable[[Key], None] | None = None
    objects: dict[Key, Object] = field(default_factory=dict)
    synced: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """List and watch for ever; faults are logged and retried with a growing pause. Ends by cancellation only."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                version = await self._list()
                backoff_s = FIRST_BACKOFF_S
                while True:
                    version = await self._watch(version)
                    await asyncio.sleep(FIRST_BACKOFF_S)  # a server that ends each watch at once is not hammered
            except ApiError as error:
                if error.status != 410:  # 410 is the server's ordinary way to ask for a new list
                    _log.warning("mirror of %s: %s Listing again in %.1f s.", self.resource.plural, error, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    async def _list(self) -> str:
        listing = await self.client.list(self.resource, self.namespace, self.label_selector)
        fresh = {key_of(item): item for item in listing.items}
        gone = self.objects.keys() - fresh.keys()
        changed = [key for key, item in fresh.items() if self._differs(key, item)]
        self.objects = fresh
        self.synced.set()
        for key in [*gone, *changed]:
            self._tell(key)
        return listing.resource_version

    async def _watch(self, version: str) -> str:
        async for change in self.client.watch(self.resource, version, self.namespace, self.label_selector):
            version = change.object.get("metadata", {}).get("resourceVersion", version)
            if change.type == "BOOKMARK":
                continue
            key = key_of(change.object)
            if change.type == "DELETED":
                self.objects.pop(key, None)
            else:
                self.objects[key] = change.object
            self._tell(key)
        return version

    def _differs(self, key: Key, item: Object) -> bool:
        known = self.objects.get(key)
        return known is None or known["metadata"].get("resourceVersion") != item["metadata"].get("resourceVersion")

    def _tell(self, key: Key) -> None:
        if self.on_change is not None:
            self.on_change(key)


def key_of(item: Object) -> Key:
    """Namespace and name of an object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
