"""Which policy each pod's gateway says it has in force: a condition of its pod, that the operator counts.

A gateway says so whenever it asks for what comes next. It is written when it changes, and not faster than a bound: a
policy of a thousand pods changes for all of them at once, and what counts for them is decided elsewhere. What this
replica wrote is believed for a while only, since another one may have heard of another revision meanwhile. It is the
gateway's word through the broker: an aid for whoever rolls a policy out, no proof.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from chaperone_operator.broker.peer import Peer
from chaperone_operator.kube import PODS, ApiError, Client, Object

IN_FORCE: Final = "chaperone.dev/PolicyInForce"
MANAGER: Final = "chaperone-broker-policy"  # of its own, or other conditions of the broker would go with each write
PAUSE_S: Final = 0.05  # between two pods: 20 a second and replica, so 1000 pods take less than a minute
BELIEVED_S: Final = 600.0  # then the pod is looked at again: 1000 pods are two reads a second
MAX_REMEMBERED: Final = 8192  # pods; what is forgotten is looked at again
_REVISION: Final = re.compile(r"[0-9a-f]{16}")

_log = logging.getLogger(__name__)


class Reports:
    """Writes the condition, while `run` runs.

    Args:
        client: may read pods and patch their status.
        now_s: monotonic clock.
    """

    def __init__(self, client: Client, now_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._now_s = now_s
        self._due: OrderedDict[str, tuple[Peer, str]] = OrderedDict()  # by uid of the pod
        # By uid of the pod: what it has, and until when that is believed.
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._wanted = asyncio.Event()

    def note(self, peer: Peer, revision: str) -> None:
        """A gateway works with `revision`, "" when nothing is in force there."""
        if revision and not _REVISION.fullmatch(revision):
            return
        known, until_s = self._known.get(peer.pod_uid, (None, 0.0))
        if known == revision and self._now_s() < until_s:
            self._due.pop(peer.pod_uid, None)
            return
        if peer.pod_uid in self._due or len(self._due) < MAX_REMEMBERED:
            self._due[peer.pod_uid] = (peer, revision)
            self._wanted.set()

    async def run(self) -> None:
        """Write what is due until cancelled."""
        while True:
            await self._wanted.wait()
            if not self._due:
                self._wanted.clear()
                continue
            uid, (peer, revision) = self._due.popitem(last=False)
            try:
                await self._tell(peer, revision)
            except ApiError as error:
                # The gateway's next question brings it back.
                _log.warning("the condition %s of pod %s/%s: %s", IN_FORCE, peer.namespace, peer.pod, error)
            else:
                self._remember(uid, revision)
            await asyncio.sleep(PAUSE_S)

    async def _tell(self, peer: Peer, revision: str) -> None:
        pod = await self._client.get(PODS, peer.pod, peer.namespace)
        conditions = (pod.get("status") or {}).get("conditions") or ()
        stands = next((one.get("message", "") for one in conditions if one.get("type") == IN_FORCE), None)
        if pod["metadata"]["uid"] != peer.pod_uid or stands == revision:
            return
        condition = {
            "type": IN_FORCE,
            "status": "True" if revision else "False",
            "reason": "InForce" if revision else "NothingInForce",
            "message": revision,
            "lastTransitionTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        # The uid: never a namesake's status.
        body: Object = {"metadata": {"name": peer.pod, "uid": peer.pod_uid}, "status": {"conditions": [condition]}}
        await self._client.apply(PODS, peer.pod, body, manager=MANAGER, namespace=peer.namespace, subresource="status")

    def _remember(self, uid: str, revision: str) -> None:
        self._known[uid] = (revision, self._now_s() + BELIEVED_S)
        self._known.move_to_end(uid)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
