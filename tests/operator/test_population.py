"""Populations: what the operator says of a namespace's pods, and how it says so to a real collector."""

from __future__ import annotations

import asyncio
import shutil
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_apiserver import running
from fix_collector import Sender
from fix_crds import establish
from fix_evidence_api import EvidenceApi, served
from fix_operator import Operator, installed
from gateway_stream import CLUSTER, Stream
from gateway_stream import Pod as Gateway
from hypothesis import given
from hypothesis import strategies as st
from manifests import identity
from pki import Authority

from chaperone_evidence import note
from chaperone_evidence.population import Covered, Ended, Population, Retention, Uncovered, open_population
from chaperone_operator import kubeconfig
from chaperone_operator.admission.names import CONTAINERS, IDENTITY_LABEL, INJECTED_ANNOTATION
from chaperone_operator.kube import Client
from chaperone_operator.metrics import Metrics
from chaperone_operator.reconcile import population, retention
from chaperone_operator.reconcile.backlog import Backlog
from chaperone_operator.reconcile.coverage import ENROLLED, Pod, Subject, digest, subject
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.loop import Reconciler
from chaperone_operator.reconcile.populate import Populating
from chaperone_operator.reconcile.population import Epoch, Member, Over
from chaperone_operator.reconcile.resync import Resync
from chaperone_operator.reconcile.retention import Term
from chaperone_operator.reconcile.watch import Watches
from chaperone_operator.reconcile.world import MAX_GONE, Change, World
from chaperone_operator.signing import Signer

KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
SIGNER = Signer(f"{CLUSTER}/operator", KEY)
AT, AT_US = "2026-05-01T10:00:00Z", 1_777_629_600_000_000
BASE = "/apis/evidence.chaperone.dev/v1alpha1"

type Object = dict[str, Any]


def manifest(name: str, namespace: str, *, gateway: str = "billing-agent", app: str = "billing-agent") -> Object:
    """A pod as admission leaves it; with gateway "" as it never saw it."""
    labels = {"app": app} | ({IDENTITY_LABEL: gateway} if gateway else {})
    ours = [{"name": one, "image": "example.com/ours:1"} for one in CONTAINERS] if gateway else []
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "labels": labels,
            "annotations": {INJECTED_ANNOTATION: "1"} if gateway else {},
        },
        "spec": {
            "initContainers": ours, "containers": [{"name": "agent", "image": "example.com/agent:1"}],
            "automountServiceAccountToken": False,
        },
    }  # fmt: skip


def status(phase: str, *, is_enrolled: bool = True, code: int | None = None) -> Object:
    found: Object = {"phase": phase}
    if is_enrolled:
        found["conditions"] = [{"type": ENROLLED, "status": "True", "lastTransitionTime": AT}]
    if code is not None:
        ended = {"exitCode": code, "finishedAt": AT, "startedAt": AT}
        found["initContainerStatuses"] = [{"name": "chaperone-gateway", "state": {"terminated": ended}}]
    return found


def pod(name: str, *, phase: str = "Running", uid: str = "", **more: Any) -> Pod:
    made = manifest(name, "agents", **{key: more.pop(key) for key in ("gateway", "app") if key in more})
    made["metadata"] |= {"uid": uid or f"uid-{name}", "creationTimestamp": "2026-05-02T10:00:00Z"}
    return digest(made | {"status": status(phase, **more)})


def subjects(*items: Object) -> list[Subject]:
    found = [subject(one | {"metadata": one["metadata"] | {"creationTimestamp": AT}}) for one in items]
    return [one for one in found if one is not None]


IDENTITIES = subjects(identity("billing-agent"), identity("crm-agent"))


def test_who_is_named_and_as_what() -> None:
    pods = [
        pod("runs"),
        pod("starts", phase="Pending", is_enrolled=False),
        pod("passed-by", is_enrolled=False),
        pod("orphan", gateway="gone-agent", app="nobody"),
        pod("bare", gateway=""),
        pod("nobodys", gateway="", app="nobody"),
        pod("over", phase="Succeeded"),
    ]
    twice = subjects(identity("billing-agent"), identity("too", selector={"matchLabels": {"app": "billing-agent"}}))
    assert population.members(IDENTITIES, pods) == {
        "uid-runs": Member("runs", "billing-agent", AT_US),
        "uid-starts": Member("starts", "billing-agent"),
        "uid-passed-by": Member("passed-by", "billing-agent", 0, "NotEnrolled"),
        "uid-orphan": Member("orphan", "gone-agent", AT_US),
        "uid-bare": Member("bare", "billing-agent", 0, "NotInjected"),
    }
    assert population.members(twice, [pods[4]])["uid-bare"].reason == "TwoIdentities"


def test_whoever_was_named_and_is_not_there_has_ended() -> None:
    last = {name: Member(name, "billing-agent", 5) for name in ("uid-a", "uid-b", "uid-c", "uid-d")}
    pods = [
        pod("a"), pod("b", phase="Failed", code=137), pod("c", phase="Succeeded", code=0),
        pod("brief", phase="Succeeded"), pod("told", phase="Succeeded"), pod("bare", gateway="", phase="Failed"),
    ]  # fmt: skip
    present = population.members(IDENTITIES, pods)
    assert population.ended(last, present, pods[:3], pods[3:], {"uid-told"}, 99) == {
        "uid-b": Over(last["uid-b"], "Failed", 137, AT_US),
        "uid-c": Over(last["uid-c"], "Succeeded", 0, AT_US),
        "uid-d": Over(last["uid-d"], "Deleted", None, 99),
        "uid-brief": Over(Member("brief", "billing-agent", AT_US), "Succeeded", None, 99),
    }


def test_a_pod_that_is_nobodys_any_more_has_not_been_deleted() -> None:
    bare = pod("bare", gateway="")
    last = population.members(IDENTITIES, [bare])
    over = population.ended(last, population.members([], [bare]), [bare], [], (), 99)
    assert over == {"uid-bare": Over(last["uid-bare"], "NotSelected", None, 99)}


_pods = st.lists(
    st.builds(
        lambda uid, phase, is_enrolled, code, gateway, app: pod(
            f"pod-{uid}", uid=uid, phase=phase, is_enrolled=is_enrolled, code=code, gateway=gateway, app=app
        ),
        st.sampled_from([f"u{number}" for number in range(6)]), st.sampled_from(["Pending", "Running", "Failed"]),
        st.booleans(), st.none() | st.integers(-1, 255), st.sampled_from(["", "billing-agent", "gone-agent"]),
        st.sampled_from(["billing-agent", "crm-agent", "nobody"]),
    ),
    unique_by=lambda one: one.uid,
)  # fmt: skip


@given(_pods, _pods, _pods)
def test_no_pod_goes_without_a_word_and_each_note_is_in_its_form(
    before: list[Pod], after: list[Pod], deleted: list[Pod]
) -> None:
    last = Epoch(1, population.note_hash("x"), population.members(IDENTITIES, before))
    present = population.members(IDENTITIES, after)
    over = population.ended(last.members, present, after, deleted, (), 99)
    found = verified(SIGNER.sign(population.body(CLUSTER, "agents", last, present, over, 99)))
    now = {one.pod_uid for one in (*found.covered, *found.uncovered)}
    ends = {one.pod_uid for one in found.ended}
    assert last.members.keys() <= now | ends
    assert {one.uid for one in after if one.identity and not one.is_over} <= now
    assert not now & ends


def test_what_nobody_should_have_written_into_a_pod_spoils_no_population() -> None:
    strange = manifest("odd", "agents", gateway="Odd_Agent.x") | {"status": status("Failed", code=-1)}
    strange["metadata"] |= {"uid": "uid-odd"}
    strange["status"] |= {"reason": "no word at all"}
    strange["status"]["conditions"][0]["lastTransitionTime"] = "9999-01-01T00:00:00Z"
    over = population.ended({}, {}, [digest(strange)], [], (), 99)
    text = population.body(CLUSTER, "agents", Epoch(), {}, over, 99)
    (ended,) = verified(SIGNER.sign(text)).ended
    assert ended == Ended("uid-odd", "odd", "Odd_Agent.x", 0, "Deleted", None, AT_US)


def verified(text: str) -> Population:
    return open_population(text.encode(), note.parse_vkey(SIGNER.vkey))


def test_the_note_is_what_the_evidence_library_reads() -> None:
    present = {
        "u3": Member("runs", "billing-agent", AT_US), "u1": Member("starts", "billing-agent"),
        "u2": Member("bare", "billing-agent", 0, "ExistedBefore"),
    }  # fmt: skip
    over = {"u0": Over(Member("gone", "billing-agent", 7), "Failed", 1, 9)}
    last = Epoch(4, population.note_hash("before"), {})
    text = SIGNER.sign(population.body(CLUSTER, "agents", last, present, over, 99))
    found = verified(text)
    assert found == Population(
        cluster=CLUSTER, namespace="agents", epoch=5, previous=last.hash, wall_us=99,
        covered=(Covered("u1", "starts", "billing-agent", 0), Covered("u3", "runs", "billing-agent", AT_US)),
        uncovered=(Uncovered("u2", "bare", "billing-agent", "ExistedBefore"),),
        ended=(Ended("u0", "gone", "billing-agent", 7, "Failed", 1, 9),),
    )  # fmt: skip
    assert population.read(text, "agents", SIGNER) == Epoch(5, population.note_hash(text), present)


def test_terms_of_retention_are_what_the_evidence_library_reads() -> None:
    terms = {"crm": Term(0, is_held=True), "billing-agent": Term(400)}
    last = Epoch(4, population.note_hash("before"), {})
    text = SIGNER.sign(population.body(CLUSTER, "agents", last, {}, {}, 99, terms))
    assert verified(text).retention == (
        Retention("billing-agent", 400, is_held=False), Retention("crm", 0, is_held=True)
    )  # fmt: skip
    assert population.read(text, "agents", SIGNER) == Epoch(5, population.note_hash(text), {}, terms)


@pytest.mark.parametrize(("text", "days"), [("", 0), ("1d", 1), ("400d", 400), ("13w", 91), ("2y", 732)])
def test_durations_are_days_and_a_year_is_never_short_of_one(text: str, days: int) -> None:
    assert retention.days(text) == days


@pytest.mark.parametrize("text", ["0d", "01d", "1", "d", "1m", "1 d", "10000d", "-1d", "1d\n", "forever"])
def test_what_is_no_duration_erases_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of"):
        retention.days(text)
    item = identity(evidence={"retention": text})
    assert retention.terms([item], {}) == {}
    assert retention.terms([item], {"billing-agent": Term(400)}) == {"billing-agent": Term(400)}


def test_terms_are_said_once_one_asks_and_then_of_each() -> None:
    plain, kept = identity("plain"), identity("kept", evidence={"retention": "30d", "legalHold": True})
    assert retention.terms([plain], {}) == {}
    assert retention.terms([plain, kept], {}) == {"plain": Term(), "kept": Term(30, is_held=True)}
    assert retention.terms([plain], {"plain": Term(30)}) == {"plain": Term()}  # taken back: that is said, too
    assert retention.terms([], {"gone": Term(30)}) == {}  # what was said of it last stays in force


def test_only_an_own_population_of_the_namespace_is_gone_on_from() -> None:
    text = SIGNER.sign(population.body(CLUSTER, "agents", Epoch(), {}, {}, 99))
    other = Signer(f"{CLUSTER}/operator", Ed25519PrivateKey.generate())
    policy = SIGNER.sign("chaperone.dev/policy\nagents/billing\n1\n0\n0\n0\n")
    for note_, namespace, key in (
        (text, "agents", other), (text, "others", SIGNER), (text.replace("epoch 1", "epoch 2"), "agents", SIGNER),
        (policy, "agents", SIGNER), ("", "agents", SIGNER),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="note"):
            population.read(note_, namespace, key)


def test_deleted_pods_are_remembered_as_they_were_at_last() -> None:
    told: list[tuple[Change, str]] = []
    world = World(lambda change, namespace: told.append((change, namespace)))
    made = manifest("a", "agents")
    made["metadata"] |= {"uid": "u1", "creationTimestamp": AT}
    world.replace_pods("agents", [made])
    world.take_pod(made | {"status": status("Failed", code=3)}, is_gone=True)
    assert [(one.uid, one.exit_code) for one in world.gone_pods("agents")] == [("u1", 3)]
    made["metadata"] |= {"uid": "u2"}
    world.replace_pods("agents", [made])
    world.replace_pods("agents", [])  # a list that shows what no event told
    assert [one.uid for one in world.gone_pods("agents")] == ["u1", "u2"]
    for number in range(MAX_GONE):
        made["metadata"] |= {"uid": f"v{number}"}
        world.replace_pods("agents", [made])
    assert len(world.gone_pods("agents")) == MAX_GONE
    assert "u1" not in {one.uid for one in world.gone_pods("agents")}  # the oldest went
    world.forget_pods("agents")
    assert world.gone_pods("agents") == []


# With a real API server and a real collector


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


type Start = Callable[..., Awaitable[asyncio.Task[None]]]


@pytest.fixture
async def operating(installation: Operator) -> AsyncIterator[Start]:
    """Start replicas, with the operator's own rights."""
    async with _operating(installation) as start:
        yield start


@asynccontextmanager
async def _operating(installation: Operator) -> AsyncIterator[Start]:
    tasks: list[asyncio.Task[None]] = []
    access = kubeconfig.find(str(installation.api.kubeconfig_of("operator")), None)
    admin = kubeconfig.find(str(installation.api.kubeconfig), None)
    async with Client(access) as client, Client(admin) as everywhere:

        async def start(signer: Signer = SIGNER, lease: str = "", period_s: float = 600.0) -> asyncio.Task[None]:
            def changed(change: Change, namespace: str) -> None:
                reconciler.changed(change, namespace)
                populating.changed(change, namespace)

            def take(resource: Any, item: Object, is_gone: bool) -> None:
                if resource.plural == "pods":
                    world.take_pod(item, is_gone=is_gone)
                else:
                    world.take(resource, item, is_gone=is_gone)

            world = World(changed)
            # With a Lease of its own, which it has no rights to, a replica leads beside another.
            place = (everywhere, lease) if lease else (client, installation.system_namespace)
            leadership = Leadership(*place, f"replica-{len(tasks)}")
            reconciler = Reconciler(
                client, world, leadership, Backlog(), Metrics(), installation.system_namespace, "replica"
            )
            resync = Resync(client, world, reconciler)
            populating = Populating(client, world, leadership, 1.0, period_s)

            async def say() -> None:
                await resync.synced.wait()
                await populating.run(signer, CLUSTER)

            async def run() -> None:
                async with asyncio.TaskGroup() as group:
                    for part in (leadership.run(), resync.run(), Watches(access, take).run(), reconciler.run(signer)):
                        group.create_task(part)
                    group.create_task(say())

            tasks.append(asyncio.create_task(run()))
            return tasks[-1]

        yield start
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Namespace:
    """A namespace with agents, as its people see it."""

    def __init__(self, api: EvidenceApi, installation: Operator, name: str) -> None:
        self.api, self.installation = api, installation
        self.name = installation.namespace(name)

    def declare(self, name: str = "billing-agent", **spec: Any) -> None:
        item = identity(name, self.name, **spec)
        self.installation.apply(item | {"metadata": {"name": name, "namespace": self.name}})

    def run(self, name: str, phase: str = "", **more: Any) -> str:
        """A pod; returns its uid."""
        shape = {key: more.pop(key) for key in ("gateway", "app") if key in more}
        self.api.kubectl("create", "-f", "-", given=_yaml(manifest(name, self.name, **shape)))
        if phase:
            self.set(name, phase, **more)
        found: str = self.installation.get("pod", name, "-n", self.name)["metadata"]["uid"]
        return found

    def set(self, name: str, phase: str, **more: Any) -> None:
        patch = _yaml({"status": status(phase, **more)})
        self.api.kubectl("patch", "pod", name, "-n", self.name, "--subresource=status", "--patch", patch)

    def delete(self, *names: str) -> None:
        self.api.kubectl("delete", "pod", "-n", self.name, "--grace-period=0", "--force", *names)

    def notes(self) -> list[Population]:
        items = self.api.get(f"{BASE}/namespaces/{self.name}/populations")["items"]
        return [verified(one["spec"]["note"]) for one in items]

    def states(self) -> dict[str, str]:
        items = self.api.get(f"{BASE}/namespaces/{self.name}/coverages")["items"]
        return {
            one["spec"]["pod"]: " ".join(filter(None, (one["status"]["state"], one["status"].get("reason"))))
            for one in items
        }

    async def come[T](self, ask: Callable[[], T], is_good: Callable[[T], bool]) -> T:
        return await asyncio.to_thread(self.installation.eventually, ask, is_good, 60.0)


def _yaml(item: Object) -> str:
    text: str = yaml.safe_dump(item)
    return text


@pytest.fixture
async def place(api: EvidenceApi, installation: Operator) -> Namespace:
    return await asyncio.to_thread(Namespace, api, installation, "population")


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_pods_are_named_from_their_first_to_their_last_day(
    place: Namespace, operating: Start, gateway_ca: Authority
) -> None:
    await asyncio.to_thread(place.run, "older", "Running", gateway="", is_enrolled=False)
    await asyncio.to_thread(place.declare)
    uid = await asyncio.to_thread(place.run, "good", "Running")
    await asyncio.to_thread(place.run, "starts")
    await operating()
    await place.come(place.states, lambda found: found == {
        "older": "Uncovered ExistedBefore", "good": "Covered", "starts": "Covered NotStarted",
    })  # fmt: skip
    stream = Stream(Gateway(gateway_ca, namespace=place.name, pod="good", pod_uid=uid))
    stream.head()
    async with Sender(place.api.collector, stream.pod) as sender:
        await sender.ship(stream)
        await asyncio.to_thread(place.set, "good", "Running", code=137)
        await asyncio.to_thread(place.delete, "good", "older")
        await place.come(place.states, lambda found: found == {
            "older": "Ended Deleted", "good": "Truncated Deleted", "starts": "Covered NotStarted",
        })  # fmt: skip
    notes = await asyncio.to_thread(place.notes)
    assert [one.epoch for one in notes] == list(range(1, len(notes) + 1))
    over = {one.pod: one for said in notes for one in said.ended}
    assert {name: one.exit_code for name, one in over.items()} == {"good": 137, "older": None}
    assert over["good"].since_us == AT_US
    assert [one.pod for one in notes[-1].covered] == ["starts"]


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_how_long_texts_are_kept_is_said_when_it_changes(place: Namespace, operating: Start) -> None:
    await asyncio.to_thread(place.declare, evidence={"retention": "13w"})
    await operating()
    first = await place.come(place.notes, lambda notes: bool(notes) and bool(notes[-1].retention))
    assert first[-1].retention == (Retention("billing-agent", 91, is_held=False),)
    await asyncio.to_thread(place.declare, evidence={"legalHold": True})
    held = (Retention("billing-agent", 0, is_held=True),)
    await place.come(place.notes, lambda notes: notes[-1].retention == held)
    rows = place.api.collector.rows("SELECT days, held FROM retention WHERE namespace = ?", place.name)
    assert rows == [(0, 1)]


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_a_rollout_is_a_few_populations_and_rest_is_none(place: Namespace, operating: Start) -> None:
    await asyncio.to_thread(place.declare)
    await operating()
    await place.come(place.notes, bool)
    names = [f"roll-{number}" for number in range(12)]
    given = "---\n".join(_yaml(manifest(name, place.name)) for name in names)
    await asyncio.to_thread(place.api.kubectl, "create", "-f", "-", given=given)
    found = await place.come(place.notes, lambda notes: len(notes[-1].covered) == len(names))
    assert len(found) < 8
    await asyncio.to_thread(place.set, "roll-0", "Pending", is_enrolled=False)  # nothing that is said of it
    await asyncio.to_thread(place.run, "last")
    after = await place.come(place.notes, lambda notes: len(notes[-1].covered) == len(names) + 1)
    assert len(after) <= len(found) + 2


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_it_is_said_again_though_nothing_changes_and_a_new_leader_goes_on(
    place: Namespace, operating: Start
) -> None:
    await asyncio.to_thread(place.declare)
    await asyncio.to_thread(place.run, "stays")
    first = await operating(period_s=2.0)
    found = await place.come(place.notes, lambda notes: len(notes) >= 3)
    assert all(one.covered == found[-1].covered for one in found[-2:])
    first.cancel()
    await asyncio.wait([first])
    await asyncio.to_thread(place.delete, "stays")  # while nobody looks
    before = len(await asyncio.to_thread(place.notes))
    await operating()
    after = await place.come(place.notes, lambda notes: len(notes) > before)
    assert [one.epoch for one in after] == list(range(1, len(after) + 1))
    assert [one.pod for one in after[before].ended] == ["stays"]
    assert await asyncio.to_thread(place.states) == {"stays": "Ended Deleted"}


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_two_leaders_that_race_leave_one_chain(place: Namespace, operating: Start) -> None:
    def told_to_go_on() -> int:
        with urllib.request.urlopen(f"{place.api.collector.metrics}/metrics", timeout=10) as answer:  # noqa: S310
            lines = answer.read().decode().splitlines()
        name = 'chaperone_collector_api_requests_total{code="409",resource="populations",verb="create"} '
        return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))

    def asked() -> int:  # what the newest one is: at a start, and after each time that another was faster
        items = place.api.get(f"{BASE}/namespaces/{place.name}/reads")["items"]
        return sum((one["spec"]["resource"], one["spec"]["verb"]) == ("populations", "get") for one in items)

    before = await asyncio.to_thread(told_to_go_on)
    await asyncio.to_thread(place.declare)
    await operating(period_s=0.5)
    await operating(period_s=0.5, lease=place.name)
    await place.come(told_to_go_on, lambda count: count >= before + 3)
    await place.come(asked, lambda count: count >= 5)
    found = await place.come(place.notes, lambda notes: len(notes) >= 8)
    assert [one.epoch for one in found] == list(range(1, len(found) + 1))


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_a_collector_that_is_away_is_told_everything_later(place: Namespace, operating: Start) -> None:
    await asyncio.to_thread(place.declare)
    await asyncio.to_thread(place.run, "before")
    await operating()
    await place.come(place.states, lambda found: found == {"before": "Covered NotStarted"})
    place.api.collector.kill()
    await asyncio.to_thread(place.delete, "before")
    await asyncio.to_thread(place.run, "brief", "Succeeded", code=0)
    await asyncio.to_thread(place.delete, "brief")
    await asyncio.to_thread(place.api.collector.start)
    await asyncio.to_thread(place.api.register)
    await place.come(place.states, lambda found: found == {"before": "Ended Deleted", "brief": "Missing Succeeded"})


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_an_operator_that_lost_its_key_says_so_and_nothing_of_it_is_stored(
    place: Namespace, operating: Start, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(place.declare)
    first = await operating()
    await place.come(place.notes, bool)
    first.cancel()
    await asyncio.wait([first])
    before = await asyncio.to_thread(place.notes)
    await asyncio.to_thread(place.run, "unheard")
    await operating(Signer(f"{CLUSTER}/operator", Ed25519PrivateKey.generate()))
    await place.come(lambda: caplog.text, lambda text: "not signed by this operator's key" in text)
    assert await asyncio.to_thread(place.notes) == before


@pytest.mark.peer
@pytest.mark.timeout(240)
async def test_a_collector_that_lost_populations_is_reported(
    place: Namespace, operating: Start, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(place.declare)
    await operating(period_s=1.0)
    await place.come(place.notes, lambda notes: len(notes) >= 3)
    place.api.collector.kill()
    shutil.rmtree(place.api.collector.data)  # a volume that was replaced
    await asyncio.to_thread(place.api.collector.start)
    await asyncio.to_thread(place.api.register)
    await place.come(lambda: caplog.text, lambda text: f"populations of {place.name} are gone" in text)
    found = await place.come(place.notes, lambda notes: len(notes) >= 2)
    assert [one.epoch for one in found[:2]] == [1, 2]
