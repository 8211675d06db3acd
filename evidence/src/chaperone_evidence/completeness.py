"""Populations and streams of one namespace held against each other, by who has nothing but the bytes. Pure.

The chain of epochs shows that no population was left out, each population that no pod was: a pod is named until one
says that it has ended. What is to be said of a pod is judged as the collector judges it (`coverage.py`), but by the
clocks of those who signed: the operator's says since when a pod was there, the gateway's heads until when it was heard.
Whoever gives an older state of things gives itself away by heads, or a checkpoint, that are younger than the newest
population: the operator says one every ten minutes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from chaperone_evidence import canonical, entry, merkle, population, statement
from chaperone_evidence.coverage import GRACE_US, LOST_AFTER_US, Producer, Run, Said, State, Verdict, judge
from chaperone_evidence.errors import EvidenceError, Malformed
from chaperone_evidence.note import Verifier
from chaperone_evidence.population import Covered, Ended, Pod, Population, Uncovered
from chaperone_evidence.stream import StreamReport

STALE_US: Final = 900_000_000  # populations come every ten minutes; half of one more for an operator that restarts
FINE: Final = frozenset({State.COVERED, State.ENDED})


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where."""

    where: str
    what: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.where}: {self.what}"


class Named(msgspec.Struct):
    """What all populations together say of a pod. Times are the operator's; 0: never."""

    pod: str
    identity: str
    producer: Producer
    since_us: int = 0  # when its gateway was admitted
    finished_us: int = 0
    was_uncovered: bool = False  # at some time


class Heard(msgspec.Struct):
    """A pod, and what is to be said of it; `named` is None where no population knows it."""

    pod_uid: str
    pod: str
    identity: str
    named: Named | None
    verdict: Verdict
    streams: list[StreamReport]


class Coverage(msgspec.Struct):
    """What was found out about a namespace."""

    namespace: str
    epochs: tuple[int, int] = (0, 0)  # the first and the last
    times_us: list[int] = []  # of all populations, by the operator's clock
    as_of_us: int = 0
    pods: list[Heard] = []
    problems: list[Finding] = []


class BrokenEpochs(EvidenceError):
    """The populations are no chain; `where` says at which it shows."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(what)
        self.where = where


def read_epochs(bodies: Iterable[bytes], verifier: Verifier, namespace: str) -> tuple[list[Population], bytes]:
    """The populations of a namespace, from the first on, and the last of `bodies`: salt and note of each, in order.

    Raises:
        BrokenEpochs: one is missing, twice there, another namespace's or another key's. EvidenceError: as `bodies`.
    """
    found: list[Population] = []
    before, body = population.FIRST, b""
    for number, body in enumerate(bodies, 1):
        note = body[entry.SALT_BYTES :]
        where = f"population {number} of {namespace}"
        try:
            said = population.open_population(note, verifier)
        except (EvidenceError, ValueError) as error:
            raise BrokenEpochs(where, f"it is none of this operator's: {error}") from error
        if said.namespace != namespace:
            raise BrokenEpochs(where, f"it is one of the namespace {said.namespace}")
        if said.epoch != number:
            raise BrokenEpochs(where, f"it is not here; epoch {said.epoch} stands in its place")
        if said.previous != before:
            raise BrokenEpochs(where, "it does not follow from the one before it: there are two, or one was changed")
        if found and said.wall_us < found[-1].wall_us - GRACE_US:
            raise BrokenEpochs(where, "its time is before that of the one before it")
        found.append(said)
        before = population.note_hash(note)
    if not found:
        raise BrokenEpochs(f"population 1 of {namespace}", "there is no population here")
    return found, body


def read_newest(data: bytes, said: Population, body: bytes) -> bytes:
    """The hash, as a leaf of the log, of the entry of a population whose salt and note are given.

    Raises:
        EvidenceError: the entry is another's.
    """
    found = statement.decode(entry.decode(data))
    if not isinstance(found, statement.PopulationEpoch):
        raise Malformed("the entry is that of no population")
    previous = base64.b64encode(said.previous).decode()
    if (found.namespace, found.epoch, found.previous) != (said.namespace, said.epoch, previous):
        raise Malformed(f"the entry is that of epoch {found.epoch} of {found.namespace}")
    if canonical.decode_base64(found.body.commit) != entry.body_commit(body):
        raise Malformed("the entry commits to another text")
    return merkle.leaf_hash(data)


def follow(populations: Sequence[Population]) -> dict[str, Named]:
    """What the populations say of each pod, by uid; as the collector takes them in, one after the other."""
    pods: dict[str, Named] = {}
    there: set[str] = set()
    for said in populations:
        now_us = said.wall_us
        named_now: tuple[Pod, ...] = (*said.covered, *said.uncovered, *said.ended)
        for one in named_now:
            match one:
                case Covered():
                    state, reason, since_us = Said.COVERED, "", one.since_us
                case Uncovered():
                    state, reason, since_us = Said.UNCOVERED, one.reason, 0
                case Ended():
                    state, reason, since_us = Said.ENDED, one.reason, one.since_us
            named = pods.setdefault(one.pod_uid, Named(one.pod, one.identity, Producer(Said.UNNAMED, 0, "", 0)))
            if named.producer.said is Said.ENDED and state is Said.ENDED:
                continue
            is_same = named.producer.said is state
            expected_us = named.producer.expected_us or (now_us if since_us else 0)
            named.producer = Producer(state, named.producer.said_us if is_same else now_us, reason, expected_us)
            named.pod, named.identity = one.pod, one.identity
            named.since_us = named.since_us or since_us
            named.was_uncovered |= state is Said.UNCOVERED
            named.finished_us = one.finished_us if isinstance(one, Ended) else 0
        present = {one.pod_uid for one in named_now if not isinstance(one, Ended)}
        for uid in there - {one.pod_uid for one in named_now}:
            before = pods[uid].producer
            pods[uid].producer = Producer(Said.DROPPED, now_us, "", before.expected_us)
        there = present
    return pods


def hold(
    namespace: str, populations: Sequence[Population], reports: Sequence[StreamReport], signed_us: int
) -> Coverage:
    """Hold streams, verified and joined, against populations.

    Args:
        namespace: the one that is meant.
        populations: all of it, see `read_epochs`.
        reports: of its streams.
        signed_us: when the log signed the newest population; 0: that is not known.
    """
    newest = populations[-1]
    found = Coverage(namespace, (populations[0].epoch, newest.epoch), [one.wall_us for one in populations])
    found.as_of_us = max(signed_us, newest.wall_us)
    named = follow(populations)
    by_pod: dict[str, list[StreamReport]] = {}
    for report in sorted(reports, key=lambda one: one.stream):
        if report.opened is not None:
            by_pod.setdefault(report.opened.pod_uid, []).append(report)
            found.problems += _bounds(namespace, newest.cluster, report, named.get(report.opened.pod_uid))
    for uid in (*named, *(uid for uid in by_pod if uid not in named)):
        found.pods.append(_heard(uid, named.get(uid), by_pod.get(uid, []), found.as_of_us))
    found.problems += [*_stale(found, newest, reports), *_followers(reports)]
    for one in found.pods:
        if one.verdict.state not in FINE:
            state, reason = one.verdict.state, one.verdict.reason
            what = f"{one.identity} is {state} ({reason})" if reason else f"{one.identity} is {state}"
            found.problems.append(Finding(f"pod {one.pod} {one.pod_uid}", what))
    return found


def _heard(uid: str, named: Named | None, reports: list[StreamReport], as_of_us: int) -> Heard:
    runs = [
        Run(
            is_closed=one.end == "closed", is_superseded=one.end == "continued",
            is_lost=one.end not in ("closed", "continued") and one.head_us < as_of_us - LOST_AFTER_US,
            opened_us=one.opened.wall_us if one.opened is not None else 0, seen_us=one.head_us,
        )
        for one in reports
    ]  # fmt: skip
    before = [one.opened.previous for one in reports if one.opened is not None and one.opened.previous]
    producer = named.producer if named is not None else Producer(Said.UNNAMED, 0, "", 0)
    verdict = judge(producer, runs, is_forked=len(set(before)) != len(before), now_us=as_of_us, since_us=0)
    opened = reports[0].opened if reports else None
    pod = named.pod if named is not None else opened.pod if opened is not None else ""
    identity = named.identity if named is not None else opened.identity if opened is not None else ""
    return Heard(uid, pod, identity, named, verdict, reports)


def _bounds(namespace: str, cluster: str, report: StreamReport, named: Named | None) -> Iterable[Finding]:
    """What a stream says of itself, held against what the operator says of its pod."""
    opened, where = report.opened, f"stream {report.stream} record 0"
    if opened is None:
        return
    if (opened.cluster, opened.namespace) != (cluster, namespace):
        yield Finding(
            where, f"it is of the namespace {opened.namespace} of cluster {opened.cluster}, not of {namespace}"
        )
    elif named is not None and (opened.pod, opened.identity) != (named.pod, named.identity):
        yield Finding(where, f"it is of {opened.pod} as {opened.identity}, the pod is {named.pod} as {named.identity}")
    elif named is not None and named.since_us and opened.wall_us < named.since_us - GRACE_US:
        yield Finding(where, "it begins before the pod's gateway was admitted")


def _stale(found: Coverage, newest: Population, reports: Sequence[StreamReport]) -> Iterable[Finding]:
    """Whether something here is so much younger than the newest population that there was one more."""
    if not newest.count:
        return  # nothing was there any more, and nothing had to be said
    where = f"population {newest.epoch} of {found.namespace}"
    if found.as_of_us > newest.wall_us + STALE_US:
        minutes = (found.as_of_us - newest.wall_us) // 60_000_000
        yield Finding(
            where, f"it is the newest here, and the log was signed {minutes} minutes later: newer ones are missing"
        )
        return
    for report in reports:
        if report.head_us > newest.wall_us + STALE_US:
            yield Finding(
                where, f"it is the newest here, and stream {report.stream} is younger: newer ones are missing"
            )
            return


def _followers(reports: Sequence[StreamReport]) -> Iterable[Finding]:
    known = {one.stream for one in reports}
    for one in reports:
        if one.opened is not None and one.opened.previous and one.opened.previous not in known:
            yield Finding(f"stream {one.stream} record 0", f"it follows {one.opened.previous}, which is not here")
