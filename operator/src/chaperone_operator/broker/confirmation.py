"""Which gateways have taken a suspension in: a condition of their pods, that the operator counts.

A gateway asks for what comes after the revision that it has; one that has the revision of the suspension has cut its
sessions. The condition says at what time the suspension was ordered, so one of an earlier suspension counts for none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

from chaperone_operator.broker.peer import Peer
from chaperone_operator.broker.snapshots import Snapshot
from chaperone_operator.kube import PODS, ApiError, Client, Object

CUT: Final = "chaperone.dev/SessionsCut"
MANAGER: Final = "chaperone-broker-suspension"  # of its own, or the condition of enrolment would go with each write
MAX_REMEMBERED: Final = 8192  # pods; others are written again, which changes nothing

_log = logging.getLogger(__name__)


class Confirmations:
    """Writes the condition, once for each pod and suspension."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told: OrderedDict[str, str] = OrderedDict()  # uid of the pod → time of the suspension

    async def note(self, peer: Peer, revision: str, snapshot: Snapshot) -> None:
        """A gateway works with `revision`; `snapshot` is in force. A fault here keeps nothing from the gateway."""
        suspension = snapshot.described(peer.identity).suspension if revision == snapshot.revision else None
        if suspension is None or self._told.get(peer.pod_uid) == suspension.at:
            return
        condition = {
            "type": CUT,
            "status": "True",
            "reason": "Suspended",
            "message": suspension.at,
            "lastTransitionTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        # The uid: never a namesake's status.
        body: Object = {"metadata": {"name": peer.pod, "uid": peer.pod_uid}, "status": {"conditions": [condition]}}
        try:
            await self._client.apply(
                PODS, peer.pod, body, manager=MANAGER, namespace=peer.namespace, subresource="status"
            )
        except ApiError as error:
            _log.warning("the condition %s of pod %s/%s was not written: %s", CUT, peer.namespace, peer.pod, error)
            return
        self._told[peer.pod_uid] = suspension.at
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
