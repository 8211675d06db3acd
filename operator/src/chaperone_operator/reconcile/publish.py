"""Sends each snapshot that came into force to the collector, whose log keeps it: what decided can be asked again.

Its own loop and errors: nothing waits for the collector before policy comes into force, least of all a kill switch.
What was not acknowledged is sent again until it is; a snapshot that is in force when the operator starts is looked for,
and sent if it is not there. Sad path: a snapshot that came into force and was followed by another while the collector
was away is lost if the operator ends, too, before the collector is back; its decisions then count as not repeatable.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from chaperone_operator.kube import POLICY_REVISIONS, ApiError, Client, Object
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.signing import NOTES, Signer, serial

MAX_WAITING: Final = 200  # snapshots that wait for the collector: at most 240 MB, usually 10
MAX_KNOWN: Final = 100_000  # serials that are remembered as acknowledged
FIRST_RETRY_S: Final = 1.0  # doubles up to the next
LAST_RETRY_S: Final = 60.0

type Key = tuple[str, int]  # namespace and serial

_log = logging.getLogger(__name__)


class Publishing:
    """Sends while `run` runs."""

    def __init__(self, client: Client, leadership: Leadership) -> None:
        self._client = client
        self._leadership = leadership
        self._waiting: OrderedDict[Key, Mapping[str, str]] = OrderedDict()
        self._known: OrderedDict[Key, None] = OrderedDict()
        self._added = asyncio.Event()
        self._logged = ""

    def in_force(self, namespace: str, data: Mapping[str, str], signer: Signer) -> None:
        """A snapshot is stored; told each time that this is looked at, as often as that may be.

        Args:
            namespace: whose it is.
            data: `binaryData` of its ConfigMap.
            signer: of the operator.
        """
        key = (namespace, serial(data, namespace, signer))
        if not key[1] or key in self._known or key in self._waiting:
            return  # without identities nothing is signed, and nothing decides
        self._waiting[key] = {name: data[name] for name in ("bundle.tar.gz", "gateway.json", NOTES)}
        while len(self._waiting) > MAX_WAITING:
            (lost_namespace, lost_serial), _ = self._waiting.popitem(last=False)
            _log.error("revision %d of %s never reached the collector: too many wait", lost_serial, lost_namespace)
        self._added.set()

    async def run(self, signer: Signer) -> None:
        """Send until cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            await self._leadership.acquired()
            self._added.clear()
            if not self._waiting:
                await self._added.wait()
                continue
            key = next(iter(self._waiting))
            try:
                await self._send(key, signer)
            except ApiError as error:
                if not 400 <= error.status < 500 or error.status in {401, 403, 404, 408, 429}:
                    self._note(f"revisions of policy wait for the collector: {error}")
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, LAST_RETRY_S)
                    continue
                _log.error("revision %d of %s is not taken: %s", key[1], key[0], error)  # nor would it be later
            except Exception:  # a defect here must not stop the operator
                _log.exception("revision %d of %s cannot be sent", key[1], key[0])
            retry_s = FIRST_RETRY_S
            del self._waiting[key]
            self._known[key] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    async def _send(self, key: Key, signer: Signer) -> None:
        """Send one that is not there; returns once the collector has it.

        Raises:
            ApiError: it is not known to have it.
        """
        namespace, number = key
        try:
            await self._client.get(POLICY_REVISIONS, str(number), namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            await self._client.create(POLICY_REVISIONS, posted(namespace, self._waiting[key], signer.vkey), namespace)
        self._logged = ""

    def _note(self, text: str) -> None:
        if text != self._logged:  # a collector that is not installed says so each time
            self._logged = text
            _log.warning("%s", text)


def posted(namespace: str, data: Mapping[str, str], vkey: str) -> Object:
    """The object that is posted of a snapshot's `binaryData`."""
    return {
        "apiVersion": POLICY_REVISIONS.api_version, "kind": POLICY_REVISIONS.kind,
        "metadata": {"namespace": namespace},
        "spec": {
            "bundle": data["bundle.tar.gz"], "gateway": data["gateway.json"],
            "notes": data[NOTES], "key": vkey,
        },
    }  # fmt: skip
