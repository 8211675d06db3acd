"""The condition `CredentialReady` of AccessTargets: whether the credential could be leased the last time."""

from __future__ import annotations

import logging
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

from chaperone_operator.broker.ca import MANAGER
from chaperone_operator.kube import ACCESS_TARGETS, ApiError, Client, Object

CREDENTIAL_READY: Final = "CredentialReady"
MAX_REMEMBERED: Final = 4096  # targets whose condition is known; others are looked up again

_log = logging.getLogger(__name__)


class Conditions:
    """Writes the condition, when it is not what was written last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told: OrderedDict[str, str] = OrderedDict()  # target → message of the condition that was written last

    async def tell(self, target: str, reason: str = "", message: str = "") -> None:
        """Not ready for that reason, or ready when there is none. A fault here costs no lease."""
        if self._told.get(target) == message:
            return
        try:
            found = await self._client.get(ACCESS_TARGETS, target)
            await self._write(found, reason, message)
        except ApiError as error:
            _log.warning("the condition %s of AccessTarget %s was not written: %s", CREDENTIAL_READY, target, error)
            return
        self._told[target] = message
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)

    async def _write(self, found: Object, reason: str, message: str) -> None:
        status = "False" if message else "True"
        conditions = (found.get("status") or {}).get("conditions") or ()
        before: Object = next((one for one in conditions if one.get("type") == CREDENTIAL_READY), {})
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        condition = {
            "type": CREDENTIAL_READY,
            "status": status,
            "reason": reason or "CredentialLeased",
            "message": message or "The credential was leased.",
            "observedGeneration": found["metadata"].get("generation", 0),
            "lastTransitionTime": before.get("lastTransitionTime", now) if before.get("status") == status else now,
        }
        name = found["metadata"]["name"]
        body: Object = {"metadata": {"name": name}, "status": {"conditions": [condition]}}
        await self._client.apply(ACCESS_TARGETS, name, body, manager=MANAGER, subresource="status")
