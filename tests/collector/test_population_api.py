"""Populations and coverages as operators and auditors meet them: kubectl, kube-apiserver and collector, all real."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_apiserver import running
from fix_collector import Sender
from fix_evidence_api import EvidenceApi, served
from gateway_stream import Pod, Stream
from pki import Authority
from population_speaker import BASE, Speaker, operator_key

from chaperone_collector.errors import Refused
from chaperone_collector.population import Given, admit
from chaperone_collector.schema import MIGRATIONS, open_writer
from chaperone_evidence import entry, statement
from chaperone_evidence.population import (
    FIRST,
    Covered,
    Ended,
    Population,
    Uncovered,
    note_hash,
    open_population,
)

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

NOW_US = time.time_ns() // 1000


@pytest.fixture(scope="module")
def api(gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvidenceApi]:
    """Its own, for the first key that a collector hears is the one that it believes from then on."""
    with (
        running(tmp_path_factory.mktemp("api-server")) as server,
        served(server, gateway_ca, tmp_path_factory.mktemp("evidence-api")) as found,
    ):
        yield found


@pytest.fixture
def speaker(api: EvidenceApi, request: pytest.FixtureRequest) -> Speaker:
    """The operator, for a namespace of this test."""
    return Speaker(api, f"ns-{abs(hash(request.node.name)) % 10**8}")


def covered(uid: str, since_us: int = NOW_US, identity: str = "billing-agent") -> Covered:
    return Covered(uid, f"pod-{uid}", identity, since_us)


def pod_of(ca: Authority, speaker: Speaker, uid: str) -> Pod:
    return Pod(ca, namespace=speaker.namespace, pod=f"pod-{uid}", pod_uid=uid)


async def heard(api: EvidenceApi, pod: Pod, *steps: Callable[[Stream], None], previous: Stream | None = None) -> Stream:
    """A stream of the pod, sent to where it is."""
    stream = Stream(pod, previous=previous)
    stream.head()
    for step in steps:
        step(stream)
    async with Sender(api.collector, pod) as sender:
        await sender.ship(stream)
    return stream


async def beat(api: EvidenceApi, stream: Stream) -> None:
    """Another head, as a gateway sends one each ten seconds: after thirty without one it is silent."""
    stream.head("idle")
    async with Sender(api.collector, stream.pod) as sender:
        await sender.ship(stream)


def states(speaker: Speaker) -> dict[str, str]:
    listed = speaker.api.get(f"{BASE}/namespaces/{speaker.namespace}/coverages")
    return {
        one["metadata"]["name"]: " ".join(filter(None, (one["status"]["state"], one["status"].get("reason"))))
        for one in listed["items"]
    }


def one_coverage(speaker: Speaker, uid: str) -> Any:
    return speaker.api.get(f"{BASE}/namespaces/{speaker.namespace}/coverages/{uid}")


def test_a_population_is_in_the_log_and_verifies_with_what_the_api_gives(speaker: Speaker) -> None:
    api = speaker.api
    first = speaker.say(covered("a1"), Uncovered("a2", "old", "billing-agent", "ExistedBefore"))
    second = speaker.say(covered("a1"), Ended("a2", "old", "billing-agent", 0, "Deleted", None, NOW_US))
    newest = api.get(f"{BASE}/namespaces/{speaker.namespace}/populations/newest")
    assert newest == second
    assert (newest["metadata"]["name"], newest["status"]["pods"], newest["spec"]["previous"]) == (
        "2", 1, first["status"]["hash"],
    )  # fmt: skip
    note = newest["spec"]["note"].encode()
    said = open_population(note, speaker.signer.verifier)
    assert [one.reason for one in said.ended] == ["Deleted"]
    assert base64.b64decode(newest["status"]["hash"]) == note_hash(note)
    (row,) = api.collector.rows("SELECT class, bytes FROM entry WHERE idx = ?", newest["status"]["index"])
    held = statement.decode(entry.decode(bytes(row[1])))
    assert isinstance(held, statement.PopulationEpoch)
    assert (row[0], held.namespace, held.epoch, held.previous) == (
        statement.CLASS_POPULATION, speaker.namespace, 2, first["status"]["hash"],
    )  # fmt: skip
    commit = entry.body_commit(base64.b64decode(newest["spec"]["salt"]) + note)
    assert base64.b64decode(held.body.commit) == commit


def test_epochs_are_listed_by_name(speaker: Speaker) -> None:
    for _ in range(3):
        speaker.say(covered("a1"))
    where = ("get", "populations", "-n", speaker.namespace)
    head, *rows = speaker.api.kubectl(*where).splitlines()
    assert head.split() == ["NAME", "PODS", "RECEIVED", "AGE"]
    assert [row.split()[:2] for row in rows] == [["1", "1"], ["2", "1"], ["3", "1"]]
    assert speaker.api.kubectl(*where, "2", "-o", "jsonpath={.spec.epoch}") == "2"
    listed = speaker.api.kubectl(*where, "--field-selector", "metadata.name=newest", "-o", "name")
    assert listed.split() == ["population.evidence.chaperone.dev/3"]
    assert "NotFound" in speaker.api.run(*where, "4").stderr


@pytest.mark.parametrize("wrong", ["back", "ahead", "again", "forked"])
def test_another_epoch_than_the_next_is_told_which_is(speaker: Speaker, wrong: str) -> None:
    speaker.say(covered("a1"))
    said = speaker.say(covered("a1"))
    epoch, previous = {
        "back": (1, bytes(32)), "ahead": (4, speaker.previous), "again": (2, speaker.previous),
        "forked": (3, b"x" * 32),
    }[wrong]  # fmt: skip
    done = speaker.post(speaker.note(epoch=epoch, previous=previous))
    assert done.returncode != 0
    assert f"has epoch 3 and follows {said['status']['hash']}" in done.stderr
    assert speaker.api.get(f"{BASE}/namespaces/{speaker.namespace}/populations/newest") == said
    speaker.say(covered("a1"))  # the next one


def test_another_key_is_refused_and_logged(speaker: Speaker) -> None:
    speaker.say(covered("a1"))
    thief = Speaker(speaker.api, speaker.namespace, operator_key(2))
    thief.epoch, thief.previous = speaker.epoch, speaker.previous
    done = thief.post(thief.note(covered("a1")))
    assert "another key" in done.stderr
    elsewhere = Speaker(speaker.api, speaker.namespace + "-x", operator_key(2))
    assert "another key" in elsewhere.post(elsewhere.note()).stderr  # one key for the whole cluster
    assert f"a population of {speaker.namespace} is refused" in speaker.api.collector.log.read_text()
    assert thief.signer.verifier.vkey in speaker.api.collector.log.read_text()
    with_ours = thief.post(thief.note(covered("a1")), key=speaker.signer.verifier.vkey)
    assert "does not verify" in with_ours.stderr or "not signed by" in with_ours.stderr


async def test_the_operator_of_another_cluster_is_refused(api: EvidenceApi, gateway_ca: Authority) -> None:
    await heard(api, Pod(gateway_ca, namespace="abroad", pod_uid="u1"))  # says which cluster the log is of
    abroad = Speaker(api, "abroad", operator_key(1, "another-cluster"))
    done = await asyncio.to_thread(abroad.post, abroad.note())
    assert done.returncode != 0
    assert "another" in done.stderr
    signed_by_ours = Speaker(api, "abroad").signer.sign(abroad.note().decode().split("\n\n")[0] + "\n")
    done = await asyncio.to_thread(abroad.post, signed_by_ours, key=operator_key().verifier.vkey)
    assert "another cluster" in done.stderr


def test_a_log_that_has_streams_believes_no_other_clusters_operator(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db")
    signer = operator_key(1, "another-cluster")
    said = Population(cluster="another-cluster", namespace="agents", epoch=1, previous=FIRST, wall_us=1)
    given = Given(said, signer.sign(said.body), signer.verifier.vkey, bytes(32))
    add_stream(database, "s1", "u1", 5)
    with pytest.raises(Refused, match="This log is of the cluster c,"):
        admit(database, given)
    assert database.execute("SELECT count(*) FROM meta").fetchone() == (0,)  # nor is its key remembered
    database.close()


def add_stream(database: sqlite3.Connection, name: str, pod_uid: str, seen_us: int) -> None:
    database.execute(
        "INSERT INTO stream (name, cluster, namespace, pod, pod_uid, identity, owner, node, service_account, vkey, "
        "revision, previous, opened_us, count, link, seen_us) "
        "VALUES (?,'c','agents','p',?,'i','','','','','','',1,1,x'00',?)",
        (name, pod_uid, seen_us),
    )


def test_what_is_no_population_is_refused(speaker: Speaker) -> None:
    note = speaker.note(covered("a1"))
    elsewhere = Speaker(speaker.api, speaker.namespace + "-x")
    for done in (
        elsewhere.post(note),
        speaker.post(note.replace(b"pod-a1", b"pod-a2")),
        speaker.post(b"no note\n"),
        speaker.post(note, kind="Session"),
        speaker.post(note, metadata={"namespace": "another"}),
        speaker.post(note, more=1),
        speaker.post(speaker.signer.sign("chaperone.dev/policy\nagents/billing\n1\n0\n0\n0\n")),
        speaker.post(b"x" * (1 << 20)),
        speaker.post(b"x" * (3 << 20)),
    ):
        assert done.returncode != 0, done.stdout
    assert "a population has at most" in speaker.post(b"x" * (5 << 19)).stderr
    assert states(speaker) == {}
    path = f"{BASE}/namespaces/{speaker.namespace}/populations"
    for verb in ("delete", "replace"):
        assert speaker.api.run(verb, "--raw", path, *(["-f", "-"] if verb == "replace" else [])).returncode != 0
    assert speaker.api.run("create", "--raw", f"{path}?dryRun=All", "-f", "-", given="{}").returncode != 0


def test_only_who_may_create_populations_says_one(speaker: Speaker) -> None:
    done = speaker.post(speaker.note(), user="somebody")
    assert "Forbidden" in done.stderr
    assert states(speaker) == {}


def test_of_two_operators_that_race_one_goes_on(speaker: Speaker) -> None:
    speaker.say(covered("a1"))
    notes = [speaker.note(covered("a1", NOW_US + number)) for number in range(6)]
    codes: list[int] = []
    racing = [threading.Thread(target=lambda note=note: codes.append(speaker.post(note).returncode)) for note in notes]
    for one in racing:
        one.start()
    for one in racing:
        one.join()
    assert sorted(codes) == [0, 1, 1, 1, 1, 1]
    rows = speaker.api.collector.rows("SELECT epoch FROM population WHERE namespace = ?", speaker.namespace)
    assert sorted(rows) == [(1,), (2,)]


async def test_states_of_pods_that_are_and_were(speaker: Speaker, gateway_ca: Authority) -> None:
    api = speaker.api
    pods = {uid: pod_of(gateway_ca, speaker, uid) for uid in ("good", "cut", "ended", "forked", "unnamed", "gone")}
    there = [covered(uid) for uid in ("good", "cut", "ended", "forked", "gone")]
    await asyncio.to_thread(
        speaker.say, *there, covered("young", 0), Uncovered("bare", "pod-bare", "billing-agent", "TwoIdentities")
    )
    streams = {uid: await heard(api, pods[uid]) for uid in ("good", "cut", "gone", "unnamed")}
    await heard(api, pods["ended"], Stream.close)
    first = await heard(api, pods["forked"])
    for _ in range(2):
        await heard(api, pods["forked"], previous=first)
    assert await asyncio.to_thread(states, speaker) == {
        "good": "Covered", "cut": "Covered", "ended": "Covered", "forked": "Forked", "gone": "Covered",
        "young": "Covered NotStarted", "bare": "Uncovered TwoIdentities", "unnamed": "Unknown",
    }  # fmt: skip
    over = [
        Ended(uid, f"pod-{uid}", "billing-agent", since_us, "Failed", 137, NOW_US)
        for uid, since_us in (("cut", NOW_US), ("ended", NOW_US), ("young", 0), ("brief", NOW_US))
    ]
    await asyncio.to_thread(speaker.say, covered("good"), covered("forked"), *over)  # "gone" and "bare": not a word
    await beat(api, streams["good"])
    assert await asyncio.to_thread(states, speaker) == {
        "good": "Covered", "cut": "Truncated Failed", "ended": "Ended Failed", "forked": "Forked",
        "gone": "Unknown NoLongerNamed", "bare": "Unknown NoLongerNamed", "young": "Ended Failed",
        "brief": "Missing Failed", "unnamed": "Unknown",
    }  # fmt: skip
    cut = await asyncio.to_thread(one_coverage, speaker, "cut")
    assert (cut["status"]["exitCode"], cut["status"]["lastSeq"], cut["spec"]["identity"]) == (137, 1, "billing-agent")
    (gap,) = cut["status"]["gaps"]
    assert gap["state"] == "Truncated"
    assert gap["from"] <= gap["until"]


async def test_a_batch_that_forks_its_stream_shows(speaker: Speaker, gateway_ca: Authority) -> None:
    pod = pod_of(gateway_ca, speaker, "two-faced")
    await asyncio.to_thread(speaker.say, covered("two-faced"))
    stream = await heard(speaker.api, pod)
    other = Stream(pod)
    _, data = other.take()
    async with Sender(speaker.api.collector, pod) as sender:
        status, _ = await sender.post(stream.id, 0, data)
    assert status == 409
    assert await asyncio.to_thread(states, speaker) == {"two-faced": "Forked"}


async def test_coverages_are_a_table_and_can_be_selected(speaker: Speaker, gateway_ca: Authority) -> None:
    await asyncio.to_thread(
        speaker.say, covered("a1"), covered("a2", identity="crm-agent"),
        Uncovered("a3", "old", "billing-agent", "ExistedBefore"),
    )  # fmt: skip
    stream = await heard(speaker.api, pod_of(gateway_ca, speaker, "a1"))

    def cells(*more: str) -> list[list[str]]:
        text = speaker.api.kubectl("get", "coverages", "-n", speaker.namespace, *more)
        return [line.split() for line in text.splitlines()]

    head, *rows = await asyncio.to_thread(cells)
    assert head == ["POD", "IDENTITY", "STREAM", "STATE", "LASTSEQ", "LASTSEEN", "GAPS"]
    assert [row[:5] for row in rows] == [
        ["pod-a1", "billing-agent", stream.id, "Covered", "1"],
        ["pod-a2", "crm-agent", "<none>", "Covered", "<none>"],
        ["old", "billing-agent", "<none>", "Uncovered", "(ExistedBefore)"],
    ]
    assert [row[-1] for row in rows] == ["0", "0", "1"]
    _, *rows = await asyncio.to_thread(cells, "--field-selector", "status.state!=Covered")
    assert [row[0] for row in rows] == ["old"]
    _, *rows = await asyncio.to_thread(cells, "--field-selector", "spec.identity=crm-agent,status.state=Covered")
    assert [row[0] for row in rows] == ["pod-a2"]
    _, *rows = await asyncio.to_thread(cells, "--chunk-size", "1")
    assert [row[0] for row in rows] == ["pod-a1", "pod-a2", "old"]
    reads = await asyncio.to_thread(speaker.api.get, f"{BASE}/namespaces/{speaker.namespace}/reads")
    assert {one["spec"]["resource"] for one in reads["items"]} == {"coverages"}


async def test_a_restart_of_the_collector_forgets_nothing(speaker: Speaker, gateway_ca: Authority) -> None:
    api = speaker.api
    said = await asyncio.to_thread(speaker.say, covered("a1"), covered("a2"))
    stream = await heard(api, pod_of(gateway_ca, speaker, "a1"))
    before = await asyncio.to_thread(states, speaker)
    api.collector.kill()
    await asyncio.to_thread(api.collector.start)
    await asyncio.to_thread(api.register)
    assert await asyncio.to_thread(states, speaker) == before
    newest = await asyncio.to_thread(api.get, f"{BASE}/namespaces/{speaker.namespace}/populations/newest")
    assert newest == said
    thief = Speaker(api, speaker.namespace, operator_key(2))
    thief.epoch, thief.previous = speaker.epoch, speaker.previous
    assert "another key" in (await asyncio.to_thread(thief.post, thief.note())).stderr
    await asyncio.to_thread(speaker.say, covered("a1"))
    await beat(api, stream)
    assert await asyncio.to_thread(states, speaker) == {"a1": "Covered", "a2": "Unknown NoLongerNamed"}


@pytest.mark.slow
async def test_who_never_comes_is_missing_and_who_stops_is_silent_then_lost(
    speaker: Speaker, gateway_ca: Authority
) -> None:
    await asyncio.to_thread(speaker.say, covered("never"), covered("quiet"))
    await heard(speaker.api, pod_of(gateway_ca, speaker, "quiet"))
    seen: dict[str, list[str]] = {"never": [], "quiet": []}
    async with asyncio.timeout(200):
        while seen["never"][-1:] != ["Missing"] or seen["quiet"][-1:] != ["Lost"]:
            for uid, state in (await asyncio.to_thread(states, speaker)).items():
                if seen[uid][-1:] != [state]:
                    seen[uid].append(state)
            await asyncio.sleep(1)
    assert seen == {"never": ["Covered", "Missing"], "quiet": ["Covered", "Silent", "Lost"]}
    await heard(speaker.api, pod_of(gateway_ca, speaker, "quiet"))
    found = await asyncio.to_thread(one_coverage, speaker, "quiet")
    assert found["status"]["state"] == "Covered"
    (gap,) = found["status"]["gaps"]  # what is not known of the first stream stays
    assert gap["state"] == "Lost"
    assert gap["until"] > gap["from"]


def test_pods_of_before_are_known_after_an_upgrade(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db", MIGRATIONS[:2])
    for name, pod_uid, seen_us in (("s1", "u1", 5), ("s2", "u1", 9), ("s3", "u2", 7)):
        add_stream(database, name, pod_uid, seen_us)
    database.close()
    database = open_writer(tmp_path / "evidence.db")
    rows = database.execute("SELECT pod_uid, state, reason, met_us FROM producer ORDER BY id").fetchall()
    assert rows == [("u1", "Unnamed", "BeforePopulations", 5), ("u2", "Unnamed", "BeforePopulations", 7)]
    database.close()
