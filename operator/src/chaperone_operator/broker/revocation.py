"""Takes leases back when nobody may have them any more.

Theory of operation. Each entry of the ledger is looked at whenever something changed that may concern it (the ledger, a
pod, a policy) and every `LOOK_S`. It is taken back when its time is up, when its pod ended or runs another start of
the gateway, and when policy does not grant the target any more or the target has another credential: so the kill switch
reaches the credential itself, not only the gateway. What fails is tried again, later each time, and stays in the
ledger. Every replica does this; taking back what is gone already is no error.

What a mirror says may be old. Pod and entry are asked for once more before a lease goes; a policy counts against a
lease only `SETTLE_S` after it was made, by when a replica that lags behind the one that gave it has caught up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from typing import Final

from chaperone_operator.broker import pod as pods
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.lease import Leases
from chaperone_operator.broker.lease_ledger import LeaseLedger
from chaperone_operator.broker.postgresql_role import PostgresqlRoles
from chaperone_operator.broker.snapshots import Snapshots
from chaperone_operator.broker.source import Entry, NotRevoked
from chaperone_operator.kube import PODS, ApiError, Client
from chaperone_operator.mirror import Mirror

LOOK_S: Final = 5.0
SETTLE_S: Final = 5
SWEEP_S: Final = 300.0  # between two looks for roles that no ledger knows; the first is at the start
FIRST_PAUSE_S: Final = 2.0  # after a lease that could not be taken back; doubles
LONGEST_PAUSE_S: Final = 300.0
MAX_AT_ONCE: Final = 8  # of one target, so that one that is away holds up no other

_log = logging.getLogger(__name__)


class Revocations:
    """Looks after the ledger.

    Args:
        client: the API server.
        ledger, leases, snapshots: those of this broker.
        roles: the source of PostgreSQL roles, whose servers are looked through for what no ledger knows.
        changed: set when there is something to look at.
    """

    def __init__(
        self,
        client: Client,
        ledger: LeaseLedger,
        leases: Leases,
        snapshots: Snapshots,
        roles: PostgresqlRoles,
        changed: asyncio.Event,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._leases = leases
        self._snapshots = snapshots
        self._roles = roles
        self._changed = changed
        self._pods = Mirror(client, PODS, "", pods.IDENTITY_LABEL, lambda _: changed.set())
        self._pauses: dict[str, tuple[float, float]] = {}  # id → when to try again, and the pause after that
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_AT_ONCE))
        self._working: dict[str, asyncio.Task[None]] = {}  # by id
        snapshots.on_change = changed.set

    async def run(self) -> None:
        """Look after the ledger for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pods.run())
            tasks.create_task(self._sweep())
            while True:
                self._changed.clear()
                self._look(tasks)
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def _look(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to take back whatever has to be by now."""
        if not self._ledger.synced.is_set():
            return
        entries = {entry.id: entry for entry in self._ledger.entries()}
        self._pauses = {one: pause for one, pause in self._pauses.items() if one in entries}
        self._working = {one: task for one, task in self._working.items() if not task.done()}
        for one in entries.keys() - self._working.keys():
            self._working[one] = tasks.create_task(self._look_at(entries[one]))

    async def _look_at(self, entry: Entry) -> None:
        try_at, pause_s = self._pauses.get(entry.id, (0.0, FIRST_PAUSE_S))
        if time.monotonic() < try_at:
            return
        try:
            why = await self._why(entry)
            if not why or await self._ledger.find(entry.id) != entry:  # changed since: it is looked at again
                return
            async with self._turns[entry.target]:
                await self._leases.revoke(entry)
        except (NotRevoked, ApiError) as error:
            reason = str(error)
        except Exception as error:  # the last line of defence: one lease must not stop the others
            reason = type(error).__name__
        else:
            pod = f"{entry.namespace}/{entry.pod}"
            _log.info("lease %s of %s for pod %s was taken back: %s", entry.id, entry.target, pod, why)
            return
        self._pauses[entry.id] = (time.monotonic() + pause_s, min(2 * pause_s, LONGEST_PAUSE_S))
        _log.warning("lease %s of %s is not taken back yet: %s", entry.id, entry.target, reason)

    async def _why(self, entry: Entry) -> str:
        """Why a lease has to be taken back; "" when it has not."""
        now = time.time()
        if entry.expires_at_unix <= now:
            return "its time is up"
        if (
            self._snapshots.synced.is_set()
            and now - entry.made_at_unix > SETTLE_S
            and self._snapshots.granted(entry.namespace, entry.identity, entry.target) != entry.reference
        ):
            return "policy does not grant it any more"
        if self._pods.synced.is_set() and _is_over(self._pods.objects.get((entry.namespace, entry.pod)), entry):
            try:
                found = await self._client.get(PODS, entry.pod, entry.namespace)
            except ApiError as error:
                if error.status != 404:
                    raise
                return "its pod is gone"
            return "its pod is another one, or its gateway was restarted" if _is_over(found, entry) else ""
        return ""

    async def _sweep(self) -> None:
        """Look for roles that no ledger knows, at each server of which a policy speaks."""
        await self._snapshots.synced.wait()
        await self._ledger.synced.wait()
        while True:
            for target, reference in self._snapshots.references().items():
                if reference.kind != "postgresqlRole":
                    continue
                try:
                    count = await self._roles.sweep(reference, target, (one.id for one in self._ledger.entries()))
                except (NotRevoked, ApiError) as error:
                    _log.warning("roles of ours at %s are not looked through: %s", target, error)
                else:
                    if count:
                        _log.warning("%d roles at %s that no ledger knew were dropped", count, target)
            await asyncio.sleep(SWEEP_S)


def _is_over(pod: object, entry: Entry) -> bool:
    """Whether a pod is not the living one, in the same start of its gateway, that got the lease."""
    if not isinstance(pod, dict) or pod["metadata"].get("uid") != entry.pod_uid:
        return True
    if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        return True
    try:
        last = pods.enrolment(pod)
    except Refused:
        return True
    return last is None or last.keys != entry.keys
