"""Says populations to the collector: at the start, when pods or identities changed, and every ten minutes.

Its own loop and errors: a collector that is away delays what it hears and nothing else. Changes wait a few seconds, so
that a roll-out is a few populations. Only the holder of the Lease speaks; should two do so for a moment, the collector
takes one, and the other one asks which it was and goes on from there.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from chaperone_operator.kube import AGENT_IDENTITIES, PODS, POPULATIONS, ApiError, Client, Object
from chaperone_operator.reconcile import population, retention
from chaperone_operator.reconcile.backlog import Backlog
from chaperone_operator.reconcile.coverage import Pod, digest, subject
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.population import Epoch
from chaperone_operator.reconcile.world import Change, World
from chaperone_operator.signing import Signer

NEWEST: Final = "newest"  # the name by which the collector gives the last epoch
SETTLE_S: Final = 5.0  # a gateway takes about as long to start, so that its pod is named when its stream comes
PERIOD_S: Final = 600.0  # how old a population gets although nothing changed

_log = logging.getLogger(__name__)


class Populating:
    """Speaks while `run` runs.

    Args:
        world: must be filled before `run`.
        settle_s: how long a change waits for others.
        period_s: between two populations of a namespace in which nothing changes.
    """

    def __init__(
        self, client: Client, world: World, leadership: Leadership, settle_s: float = SETTLE_S,
        period_s: float = PERIOD_S,
    ) -> None:  # fmt: skip
        self._client = client
        self._world = world
        self._leadership = leadership
        self._settle_s = settle_s
        self._period_s = period_s
        self._backlog = Backlog()
        self._last: dict[str, tuple[Epoch, float]] = {}  # and when it was said, by the monotonic clock
        self._acknowledged: dict[str, int] = {}  # the highest epoch that the collector has answered for
        self._told: dict[str, set[str]] = {}  # uids of pods that were said to have ended
        self._logged: dict[str, str] = {}

    def changed(self, change: Change, namespace: str) -> None:
        """Something changed in the world."""
        if change in {Change.PODS, Change.POLICY}:
            self._backlog.add((Change.PODS, namespace), self._settle_s)

    async def run(self, signer: Signer, cluster: str) -> None:
        """Speak until cancelled.

        Args:
            signer: of the operator.
            cluster: uid of kube-system.
        """
        while True:
            await self._leadership.acquired()
            self._last.clear()
            for namespace in self._world.identity_namespaces() | set(self._world.followed()):
                self._backlog.add((Change.PODS, namespace), 0.0)
            while self._leadership.is_held:
                work = await self._backlog.next()
                if self._leadership.is_held:
                    await self._do(work[1], signer, cluster)

    async def _do(self, namespace: str, signer: Signer, cluster: str) -> None:
        work = (Change.PODS, namespace)
        try:
            waits_s = await self._say(namespace, signer, cluster)
        except ApiError as error:
            self._last.pop(namespace, None)  # whatever it was: what the collector has is asked for anew
            again_s = self._backlog.failed(work)
            if error.status != 409 and self._logged.get(namespace) != str(error):
                self._logged[namespace] = str(error)  # a collector that is not installed says so each time
                _log.warning("population of %s: %s Again in %.0f s.", namespace, error, again_s)
        except Exception:  # a defect here must stop neither the others nor the operator
            _log.exception("population of %s failed; again in %.0f s", namespace, self._backlog.failed(work))
        else:
            self._logged.pop(namespace, None)
            self._backlog.done(work)
            if waits_s is not None:
                self._backlog.add(work, waits_s)

    async def _say(self, namespace: str, signer: Signer, cluster: str) -> float | None:
        """Say what is new; gives how long that may last, None where nothing is to be said of the namespace.

        Raises:
            ApiError: pods or collector cannot be asked, or the collector refuses; 409: another epoch is the next.
        """
        identities = self._world.of(AGENT_IDENTITIES, namespace)
        if namespace not in self._last:
            if not identities and not self._world.follows_pods(namespace):
                return None
            self._last[namespace] = (await self._learn(namespace, signer), float("-inf"))
        last, said_s = self._last[namespace]
        if not identities and not last.members:
            return None
        pods = await self._pods(namespace, has_identities=bool(identities))
        if pods is None:
            return None
        now_s, now_us = time.monotonic(), time.time_ns() // 1000
        subjects = sorted(filter(None, map(subject, identities)), key=lambda one: one.name)
        present = population.members(subjects, pods)
        deleted, told = self._world.gone_pods(namespace), self._told.get(namespace, set())
        over = population.ended(last.members, present, pods, deleted, told, now_us)
        terms = retention.terms(identities, last.terms)
        if not over and present == last.members and terms == last.terms and now_s < said_s + self._period_s:
            return said_s + self._period_s - now_s
        note = signer.sign(population.body(cluster, namespace, last, present, over, now_us, terms))
        if len(note.encode()) > population.MAX_NOTE_BYTES:
            raise ApiError(f"It has {len(present)} pods of agents, more than a population holds.")
        await self._client.create(POPULATIONS, _posted(namespace, note, signer), namespace)
        self._keep(namespace, Epoch(last.number + 1, population.note_hash(note), present, terms), now_s)
        self._told[namespace] = (told | over.keys()) & {pod.uid for pod in (*pods, *deleted)}
        return self._period_s

    def _keep(self, namespace: str, epoch: Epoch, said_s: float) -> None:
        self._last[namespace] = (epoch, said_s)
        self._acknowledged[namespace] = epoch.number

    async def _learn(self, namespace: str, signer: Signer) -> Epoch:
        """The newest population that the collector has."""
        try:
            found = await self._client.get(POPULATIONS, NEWEST, namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            epoch = Epoch()
        else:
            epoch = _read(found, namespace, signer)
        if epoch.number < self._acknowledged.get(namespace, 0):
            _log.error(
                "populations of %s are gone: the collector has acknowledged epoch %d and has %d now. Was its volume "
                "replaced, or brought back from a backup?", namespace, self._acknowledged[namespace], epoch.number,
            )  # fmt: skip
            self._acknowledged[namespace] = epoch.number
        return epoch

    async def _pods(self, namespace: str, *, has_identities: bool) -> list[Pod] | None:
        """Digests of all pods; None: they are not known yet, and are followed soon."""
        if self._world.follows_pods(namespace):
            return self._world.pods(namespace)
        if has_identities:
            return None
        return [digest(pod) for pod in (await self._client.list(PODS, namespace)).items]


def _posted(namespace: str, note: str, signer: Signer) -> Object:
    return {
        "apiVersion": POPULATIONS.api_version, "kind": POPULATIONS.kind, "metadata": {"namespace": namespace},
        "spec": {"note": note, "key": signer.vkey},
    }  # fmt: skip


def _read(found: Object, namespace: str, signer: Signer) -> Epoch:
    try:
        return population.read(found["spec"]["note"], namespace, signer)
    except (KeyError, TypeError, ValueError) as error:
        raise ApiError(
            f"The newest population that the collector has is not signed by this operator's key ({signer.vkey}). "
            "Restore the Secret of that key."
        ) from error
