"""What came into force reaches the log: with a real API server and collector, and the operator's own rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fix_apiserver import running
from fix_crds import establish
from fix_evidence_api import EvidenceApi, served
from fix_operator import Operator, installed
from manifests import Object, identity, policy, rule, target
from pki import Authority
from revised import BASE, operator

from chaperone_operator import kubeconfig
from chaperone_operator.kube import Client
from chaperone_operator.metrics import Metrics
from chaperone_operator.reconcile.backlog import Backlog
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.loop import Reconciler
from chaperone_operator.reconcile.publish import Publishing
from chaperone_operator.reconcile.resync import Resync
from chaperone_operator.reconcile.watch import Watches
from chaperone_operator.reconcile.world import Change, World

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

SIGNER = operator()


@pytest.fixture(scope="module")
def api(gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvidenceApi]:
    """Its own: the first key that a collector hears is the one that it believes from then on."""
    with running(tmp_path_factory.mktemp("api-server")) as server:
        establish(server)
        with served(server, gateway_ca, tmp_path_factory.mktemp("evidence-api")) as found:
            yield found


@pytest.fixture(scope="module")
def installation(api: EvidenceApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with installed(api.server, tmp_path_factory.mktemp("operator")) as held:
        yield held


@asynccontextmanager
async def operating(installation: Operator) -> AsyncIterator[None]:
    """A replica that leads, with the operator's own rights."""
    access = kubeconfig.find(str(installation.api.kubeconfig_of("operator")), None)
    async with Client(access) as client:

        def take(resource: Any, item: Object, is_gone: bool) -> None:
            if resource.plural == "pods":
                world.take_pod(item, is_gone=is_gone)
            else:
                world.take(resource, item, is_gone=is_gone)

        def changed(change: Change, namespace: str) -> None:
            reconciler.changed(change, namespace)

        world = World(changed)
        leadership = Leadership(client, installation.system_namespace, "replica")
        reconciler = Reconciler(
            client, world, leadership, Backlog(), Metrics(), installation.system_namespace, "replica"
        )
        publishing = Publishing(client, leadership)
        reconciler.on_stored = publishing.in_force
        resync = Resync(client, world, reconciler)

        async def reconcile() -> None:
            await resync.synced.wait()
            await reconciler.run(SIGNER)

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                for part in (leadership.run(), resync.run(), Watches(access, take).run(), publishing.run(SIGNER)):
                    group.create_task(part)
                group.create_task(reconcile())

        task = asyncio.create_task(run())
        yield
        task.cancel()
        await asyncio.wait([task])


class Place:
    """A namespace whose policy changes."""

    def __init__(self, api: EvidenceApi, installation: Operator) -> None:
        self.api, self.installation = api, installation
        self.name = installation.namespace("published")
        self.apply(identity(namespace=self.name))
        self.apply(target(allowedNamespaces={"names": [self.name]}))

    def apply(self, item: Object) -> None:
        metadata = {name: item["metadata"][name] for name in ("name", "namespace") if name in item["metadata"]}
        self.installation.apply(item | {"metadata": metadata})

    def decide(self, name: str) -> str:
        """Another policy; the revision with which it is in force, and none of those on the way there."""
        self.apply(policy([rule(name, "Allow", ["read"])], namespace=self.name))
        found: str = self.installation.eventually(self.revision, bool, 60.0)
        return found

    def revision(self) -> str:
        """With which the policy as it is now is in force; "" while it is not."""
        found = self.installation.get("accesspolicy", "billing", "-n", self.name)
        generation, status = found["metadata"]["generation"], found.get("status") or {}
        is_ready = any(
            (one["type"], one["status"], one["observedGeneration"]) == ("Ready", "True", generation)
            for one in status.get("conditions") or ()
        )
        return status["revision"] if is_ready else ""

    def published(self) -> list[str]:
        items = self.api.get(f"{BASE}/namespaces/{self.name}/policyrevisions")["items"]
        return [one["spec"]["revision"] for one in items]

    def wait_for(self, revisions: list[str]) -> None:
        self.installation.eventually(self.published, lambda found: set(revisions) <= set(found), 60.0)


async def test_what_came_into_force_is_sent_until_it_is_there_and_once(
    api: EvidenceApi, installation: Operator
) -> None:
    place = await asyncio.to_thread(Place, api, installation)
    async with operating(installation):
        first = await asyncio.to_thread(place.decide, "one")
        await asyncio.to_thread(place.wait_for, [first])
        await asyncio.to_thread(api.collector.stop)
        missed = [await asyncio.to_thread(place.decide, name) for name in ("two", "three")]
        assert len({first, *missed}) == 3  # policy does not wait for the collector
        await asyncio.to_thread(api.collector.start)
        await asyncio.to_thread(api.register)
        await asyncio.to_thread(place.wait_for, [first, *missed])
    known = await asyncio.to_thread(place.published)
    async with operating(installation):  # another leader looks first
        last = await asyncio.to_thread(place.decide, "four")
        await asyncio.to_thread(place.wait_for, [last])
    assert await asyncio.to_thread(place.published) == [*known, last]
