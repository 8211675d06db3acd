"""Whole lists, now and then: the first picture of the world, and the repair of what watches lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from chaperone_operator.kube import PODS, ApiError, Client
from chaperone_operator.reconcile.loop import Reconciler
from chaperone_operator.reconcile.world import KINDS, World

LIST_PERIOD_S: Final = 60.0  # our own kinds and Namespaces are few
PODS_EVERY: Final = 5  # lists: pods are many
ROUND_EVERY: Final = 10  # lists: every namespace is reconciled although nothing changed
RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)


class Resync:
    """Lists everything periodically.

    Attributes:
        synced: set after the first whole picture.
    """

    def __init__(self, client: Client, world: World, reconciler: Reconciler, period_s: float = LIST_PERIOD_S) -> None:
        self._client = client
        self._world = world
        self._reconciler = reconciler
        self._period_s = period_s
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """List until cancelled; faults are logged and tried again."""
        count = 0
        while True:
            try:
                await self._lists(count)
            except ApiError as error:
                _log.warning("resync: %s Again in %.0f s.", error, RETRY_S)
                await asyncio.sleep(RETRY_S)
                continue
            self.synced.set()
            count += 1
            await asyncio.sleep(self._period_s)

    async def _lists(self, count: int) -> None:
        for resource in KINDS:
            self._world.replace(resource, await self._client.list(resource))
        if count % PODS_EVERY == 0:
            for namespace in self._world.followed():
                self._world.replace_pods(namespace, (await self._client.list(PODS, namespace)).items)
        if count % ROUND_EVERY == 0:
            self._reconciler.everything()
            await self._reconciler.leftovers()
