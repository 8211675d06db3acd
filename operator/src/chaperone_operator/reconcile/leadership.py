"""Which replica writes: the holder of one Lease (coordination.k8s.io), renewed while it lives, given back when it ends.

Clocks of nodes are never compared. A candidate takes the Lease over when it has not *seen it change* for its whole
duration, by its own clock; the holder stops writing a good while before that, counted from before it last renewed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from chaperone_operator.kube import LEASES, ApiError, Client, Object

NAME: Final = "chaperone-operator"
DURATION_S: Final = 15  # how long the others wait after the holder's death
RENEW_S: Final = 4.0  # two renewals may fail before the holder stops writing
HOLD_S: Final = 10.0  # how long after the start of a renewal the holder still writes
CALL_TIMEOUT_S: Final = 3.0  # of one try; a slow API server is as good as none

_log = logging.getLogger(__name__)


class Leadership:
    """Candidature of one replica.

    Args:
        identity: unique among replicas and starts, such as the pod's name with a random part.
        now_s: monotonic clock.
    """

    def __init__(
        self, client: Client, namespace: str, identity: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._now_s = now_s
        self._held_until_s = float("-inf")
        self._seen: tuple[str, float] = ("", float("-inf"))
        self._held = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether this replica may write at this moment."""
        return self._now_s() < self._held_until_s

    async def acquired(self) -> None:
        """Wait until this replica may write."""
        while not self.is_held:
            self._held.clear()
            await self._held.wait()

    async def run(self) -> None:
        """Stand for ever; the Lease is given back when this is cancelled."""
        try:
            while True:
                await self.step()
                await asyncio.sleep(RENEW_S)
        finally:
            if self.is_held:
                await asyncio.shield(self._release())

    async def step(self) -> None:
        """One try to take or renew the Lease; faults are logged."""
        was_held = self.is_held
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._try()
        except (ApiError, TimeoutError) as error:
            if not (isinstance(error, ApiError) and error.reason in {"Conflict", "AlreadyExists"}):
                _log.warning("the Lease %s: %s", NAME, error or "the API server is slow")
        if self.is_held != was_held:
            _log.info("this replica writes now" if self.is_held else "another replica writes")
        if self.is_held:
            self._held.set()

    async def _try(self) -> None:
        began_s = self._now_s()
        found = await self._found()
        if found is None:
            await self._client.create(LEASES, self._lease({}, is_new=True), self._namespace)
        elif self._may_take(found):
            is_new = (found.get("spec") or {}).get("holderIdentity") != self._identity
            await self._client.replace(LEASES, NAME, self._lease(found, is_new=is_new), self._namespace)
        else:
            self._held_until_s = float("-inf")
            return
        self._held_until_s = began_s + HOLD_S

    async def _found(self) -> Object | None:
        try:
            return await self._client.get(LEASES, NAME, self._namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _may_take(self, lease: Object) -> bool:
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        version, now_s = lease["metadata"]["resourceVersion"], self._now_s()
        if version != self._seen[0]:
            self._seen = (version, now_s)
        return holder in {"", self._identity} or now_s - self._seen[1] >= DURATION_S

    def _lease(self, found: Object, *, is_new: bool) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = dict(found.get("spec") or {})
        if is_new:
            changes = int(spec.get("leaseTransitions") or 0) + (1 if found else 0)
            spec |= {"acquireTime": now, "leaseTransitions": changes}
        spec |= {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION_S, "renewTime": now}
        return {**found, "metadata": found.get("metadata") or {"name": NAME}, "spec": spec}

    async def _release(self) -> None:
        self._held_until_s = float("-inf")
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                found = await self._found()
                if found is not None and found["spec"].get("holderIdentity") == self._identity:
                    spec = found["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._client.replace(LEASES, NAME, {**found, "spec": spec}, self._namespace)
        except (ApiError, TimeoutError) as error:
            _log.warning("the Lease was not given back, the others wait %d s: %s", DURATION_S, error)
