"""The reconciling loop: takes work, compiles, stores the snapshot, writes what the status of each object should say.

Level-based: a round looks at everything that its key names, never at what an event said. Only the holder of the Lease
writes; a replica that loses it stops before its next write. What is written is compared with what stands there first,
so that a round over an unchanged namespace writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from chaperone_operator import notice
from chaperone_operator.compile import Problem, suspension
from chaperone_operator.compile.check import alone
from chaperone_operator.kube import (
    ACCESS_POLICIES,
    ACCESS_TARGETS,
    AGENT_IDENTITIES,
    CLUSTER_ACCESS_POLICIES,
    CONFIG_MAPS,
    NAMESPACES,
    PODS,
    ApiError,
    Client,
    Object,
    Resource,
)
from chaperone_operator.metrics import Metrics
from chaperone_operator.reconcile import snapshot, status
from chaperone_operator.reconcile.backlog import Backlog, Work
from chaperone_operator.reconcile.condition import Condition, is_current, merged, turned
from chaperone_operator.reconcile.coverage import Coverage, coverage, pod_security, subject
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.world import Change, World
from chaperone_operator.signing import Signer, signed

MANAGER: Final = "chaperone-operator"
PODS_SETTLE_S: Final = 1.0  # a rollout changes many pods; their count may lag a second

_log = logging.getLogger(__name__)


class Reconciler:
    """Keeps snapshots and statuses as they should be, while `run` runs.

    Args:
        world: must be filled before `run`.
        instance: this replica, for events.
    """

    def __init__(
        self,
        client: Client,
        world: World,
        leadership: Leadership,
        backlog: Backlog,
        metrics: Metrics,
        system_namespace: str,
        instance: str,
    ) -> None:
        self._client = client
        self._world = world
        self._leadership = leadership
        self._backlog = backlog
        self._metrics = metrics
        self._system_namespace = system_namespace
        self._instance = instance
        self._in_force: dict[str, status.InForce] = {}
        self._compiled: dict[str, set[tuple[str, int]]] = {}  # of policies what is in force: uid and generation
        self.on_stored: Callable[[str, Mapping[str, str], Signer], None] = lambda *_: None  # at each look at a snapshot

    async def run(self, signer: Signer) -> None:
        """Work until cancelled; what is stored is signed by `signer`."""
        while True:
            await self._leadership.acquired()
            self.everything()
            while self._leadership.is_held:
                work = await self._backlog.next()
                if self._leadership.is_held:
                    await self._do(work, signer)

    def everything(self) -> None:
        """Put all there is into the backlog."""
        for namespace in self._world.policy_namespaces() | self._in_force.keys():
            self._backlog.add((Change.POLICY, namespace))
        self._backlog.add((Change.EVERYTHING, ""))

    def changed(self, change: Change, namespace: str) -> None:
        """Something changed in the world."""
        if change == Change.EVERYTHING:
            self.everything()
        elif change == Change.PODS:
            self._backlog.add((change, namespace), PODS_SETTLE_S)
        elif namespace in self._in_force or namespace in self._world.policy_namespaces():
            self._backlog.add((change, namespace))

    async def leftovers(self) -> None:
        """Look again at namespaces that have a snapshot, whether or not anything else of them is left.

        Raises:
            ApiError: the snapshots cannot be listed.
        """
        found = await self._client.list(CONFIG_MAPS, self._system_namespace, f"{snapshot.LABEL}=true")
        for item in found.items:
            name = item["metadata"]["name"]
            if name.startswith(snapshot.PREFIX):
                self._backlog.add((Change.POLICY, name.removeprefix(snapshot.PREFIX)))

    async def _do(self, work: Work, signer: Signer) -> None:
        change, namespace = work
        with self._metrics.round(change):
            try:
                if change == Change.EVERYTHING:
                    await self._shared()
                elif change == Change.PODS:
                    await self._identities(namespace)
                elif change == Change.STATUS:
                    await self._statuses(namespace)
                else:
                    await self._namespace(namespace, signer)
            except ApiError as error:
                _log.warning("%s of %s: %s Again in %.0f s.", *work, error, self._backlog.failed(work))
                self._metrics.failures.inc()
            except Exception:  # a defect in one namespace must not stop the kill switch of another
                _log.exception("%s of %s failed; again in %.0f s", *work, self._backlog.failed(work))
                self._metrics.failures.inc()
            else:
                self._backlog.done(work)
        self._metrics.backlog.set(len(self._backlog))

    async def _namespace(self, namespace: str, signer: Signer) -> None:
        if self._world.labels(namespace) is None:
            if not await self._exists(namespace):
                await self._forget(namespace)
            return  # else the event of it is on its way
        carrier = await self._stored(namespace)
        stored = None if carrier is None else dict(carrier.get("binaryData") or {})
        is_ours = namespace in self._world.policy_namespaces()
        if (is_ours or stored is not None) and not self._world.follows_pods(namespace):
            self._world.replace_pods(namespace, (await self._client.list(PODS, namespace)).items)
        declared = self._world.declared(namespace)
        if declared is None or not (is_ours or declared.alive):
            await self._forget(namespace)
            return
        # In a thread: a large namespace takes longer to compile than an admission request may wait.
        found = await asyncio.to_thread(snapshot.outcome, declared, stored, self._system_namespace)
        if found.data is not None:
            data = signed(found.data, namespace, found.revision, stored, signer, time.time_ns() // 1_000_000)
            found = msgspec.structs.replace(found, data=data)
        if found.data is not None and found.data != stored and self._leadership.is_held:
            # Over the version that was read: were another replica to write too, serials would not grow.
            version = carrier["metadata"]["resourceVersion"] if carrier is not None else ""
            await self._client.apply(
                CONFIG_MAPS,
                f"{snapshot.PREFIX}{namespace}",
                snapshot.config_map(namespace, found, version),
                manager=MANAGER,
                namespace=self._system_namespace,
            )
            _log.info("revision %s is in force in %s", found.revision, namespace)
        if found.data is not None and self._leadership.is_held:
            self.on_stored(namespace, found.data, signer)
        before = self._in_force.get(namespace)
        self._in_force[namespace] = status.InForce(found.revision, found.is_latest, found.problems)
        self._metrics.not_compiling.set(sum(not one.is_latest for one in self._in_force.values()))
        self._compiled[namespace] = {_age(policy) for policy in declared.policies}
        self._backlog.add((Change.STATUS, namespace), 0.0)  # by itself, or a large namespace's would delay the next one
        if before is None or before.problems != found.problems:
            self._backlog.add((Change.EVERYTHING, ""))

    async def _exists(self, namespace: str) -> bool:
        try:
            await self._client.get(NAMESPACES, namespace)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _forget(self, namespace: str) -> None:
        """Nothing of this namespace is ours any more."""
        if self._leadership.is_held and await self._stored(namespace) is not None:
            await self._client.delete(CONFIG_MAPS, f"{snapshot.PREFIX}{namespace}", self._system_namespace)
        self._in_force.pop(namespace, None)
        self._compiled.pop(namespace, None)
        self._world.forget_pods(namespace)

    async def _stored(self, namespace: str) -> Object | None:
        try:
            return await self._client.get(CONFIG_MAPS, f"{snapshot.PREFIX}{namespace}", self._system_namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _statuses(self, namespace: str) -> None:
        for policy in self._world.of(ACCESS_POLICIES, namespace):
            if _age(policy) in self._compiled.get(namespace, ()):  # else it changed since, and is compiled next
                await self._policy(policy)
        await self._identities(namespace)

    async def _policy(self, policy: Object) -> None:
        metadata = policy["metadata"]
        force = self._in_force[metadata["namespace"]]
        condition = status.ready("AccessPolicy", metadata["namespace"], metadata["name"], force)
        more = {"revision": force.revision} if condition.is_true else {}
        await self._write(ACCESS_POLICIES, policy, [condition], more)

    async def _identities(self, namespace: str) -> None:
        force = self._in_force.get(namespace)
        labels = self._world.labels(namespace)
        if force is None or labels is None:
            return
        identities = self._world.of(AGENT_IDENTITIES, namespace)
        subjects = {item["metadata"]["name"]: subject(item) for item in identities}
        for item in identities:
            name = item["metadata"]["name"]
            mine = subjects[name]
            others = [one for other, one in subjects.items() if one is not None and other != name]
            is_suspended, change = suspension.is_suspended(item), suspension.last_change(item)
            cut_at = change.at if is_suspended else ""
            pods = self._world.pods(namespace)
            found = coverage(mine, others, pods, cut_at, force.revision) if mine else Coverage(0, ())
            conditions = status.identity_conditions(
                namespace, name, force, found, pod_security(labels), is_suspended=is_suspended,
                change=change,
            )  # fmt: skip
            more: dict[str, Any] = {"pods": status.pods(found)}
            if force.revision:
                more["revision"] = force.revision
            await self._write(AGENT_IDENTITIES, item, conditions, more)

    async def _shared(self) -> None:
        everywhere = [one for force in self._in_force.values() for one in force.problems]
        await self._shared_kind(ACCESS_TARGETS, everywhere)
        await self._shared_kind(CLUSTER_ACCESS_POLICIES, everywhere)

    async def _shared_kind(self, resource: Resource, everywhere: Iterable[Problem]) -> None:
        found: dict[str, list[Problem]] = {}
        for problem in everywhere:
            if problem.kind == resource.kind:
                found.setdefault(problem.name, []).append(problem)
        for item in self._world.all(resource):
            name = item["metadata"]["name"]
            mine = [*alone({"apiVersion": resource.api_version, "kind": resource.kind, **item}), *found.get(name, ())]
            await self._write(resource, item, [status.shared_ready(mine)], {})

    async def _write(
        self, resource: Resource, item: Object, conditions: Sequence[Condition], more: dict[str, Any]
    ) -> None:
        metadata = item["metadata"]
        observed = item.get("status") or {}
        generation = metadata.get("generation", 0)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        wanted = {
            "observedGeneration": generation,
            "conditions": merged(conditions, observed, generation, now),
            **more,
        }
        if is_current(wanted, observed) or not self._leadership.is_held:
            return
        body: Object = {"metadata": {"uid": metadata["uid"]}, "status": wanted}  # the uid: never a namesake's status
        namespace = metadata.get("namespace", "")
        try:
            written = await self._client.apply(
                resource, metadata["name"], body, manager=MANAGER, namespace=namespace, subresource="status"
            )
        except ApiError as error:
            if error.status == 404 or error.reason == "Conflict":
                return  # it went, or a namesake came; the event of that is on its way
            raise
        self._world.take(resource, written, is_gone=False)
        about = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        for one in turned(conditions, observed):
            try:
                await notice.post(
                    self._client, about, reason=one.reason, action=f"{one.type}{'' if one.is_true else 'Not'}",
                    note=one.message, instance=self._instance, is_warning=not one.is_true,
                )  # fmt: skip
            except ApiError as error:
                _log.warning("an event of %s %s was not taken: %s", resource.kind, metadata["name"], error)


def _age(item: Object) -> tuple[str, int]:
    return item["metadata"]["uid"], item["metadata"].get("generation", 0)
