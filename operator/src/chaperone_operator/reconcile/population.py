"""Populations: what the operator vouches for of each namespace's pods, so that a stream that is missing is missed.

A population is a note (C2SP signed-note) by the key that signs policy. It names every pod that has to have a stream,
every pod that an identity selects and no gateway holds, and what ended since the population before; its lines are
described in `chaperone_evidence.population`. Epochs grow by one, and each names the hash of the note before it, so
nobody can take one out. The collector keeps them in its log; which one is the newest is asked of it, and believed only
if this operator's key has signed it.

Pure: key and time are told.
"""

from __future__ import annotations

import base64
import hashlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from chaperone_operator.reconcile.coverage import Pod, Subject, who
from chaperone_operator.reconcile.retention import Term
from chaperone_operator.signing import Signer

SUBJECT: Final = "chaperone.dev/population"
FIRST: Final = bytes(32)  # what the first epoch says of the one before it
MAX_NOTE_BYTES: Final = 1 << 20
MAX_INTEGER: Final = 2**53 - 1  # what every reader of numbers keeps exactly
DELETED: Final = "Deleted"  # why a pod ended that did not end by itself
NOT_SELECTED: Final = "NotSelected"  # it runs, and is no agent's any more: identities or labels have changed

_REASON: Final = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")


class Member(msgspec.Struct, frozen=True):
    """A pod that is there.

    Attributes:
        since_us: when its gateway was admitted, 0 for never.
        reason: why no gateway holds it, "" where one does.
    """

    pod: str
    identity: str
    since_us: int = 0
    reason: str = ""


class Over(msgspec.Struct, frozen=True):
    """A pod that ended; what is not known is None or 0."""

    member: Member
    reason: str
    exit_code: int | None
    finished_us: int


class Epoch(msgspec.Struct, frozen=True):
    """The newest population of a namespace; number 0 for none."""

    number: int = 0
    hash: bytes = FIRST
    members: Mapping[str, Member] = {}
    terms: Mapping[str, Term] = {}  # of retention, by identity


def members(subjects: Sequence[Subject], pods: Iterable[Pod]) -> dict[str, Member]:
    """The pods that have not ended, by uid: those that are an agent's, or should be."""
    found = {}
    for pod in pods:
        whose = None if pod.is_over else who(subjects, pod)
        if whose is not None:
            identity, why = whose
            found[pod.uid] = Member(pod.name, identity, 0 if why else micros(pod.enrolled_at), why or "")
    return found


def ended(
    last: Mapping[str, Member],
    present: Mapping[str, Member],
    there: Iterable[Pod],
    deleted: Iterable[Pod],
    told: Iterable[str],
    now_us: int,
) -> dict[str, Over]:
    """What ended since the population before, by uid.

    Args:
        last: the members of that.
        present: the members now.
        there: all pods.
        deleted: pods as they were before they went, where that was seen.
        told: uids of those that were said to have ended; pods that lived between two populations are said once.
        now_us: stands for a time that is not known.
    """
    pods = {pod.uid: pod for pod in there}
    alive = {uid for uid, pod in pods.items() if not pod.is_over}
    known = {pod.uid: pod for pod in deleted} | pods
    brief = {pod.uid: Member(pod.name, pod.identity) for pod in known.values() if pod.identity and pod.uid not in told}
    gone = {uid: member for uid, member in (brief | dict(last)).items() if uid not in present}
    found = {}
    for uid, member in gone.items():
        pod = known.get(uid)
        if pod is None:
            found[uid] = Over(member, DELETED, None, now_us)
        elif uid in alive:
            found[uid] = Over(member, NOT_SELECTED, None, now_us)
        else:
            found[uid] = _over(member, pod, now_us)
    return found


def _over(member: Member, pod: Pod, now_us: int) -> Over:
    """How a pod ended, as it was seen last. What is in a pod's status may be anybody's who may write that."""
    since_us = member.since_us or micros(pod.enrolled_at)
    reason = pod.end_reason if pod.is_over and _REASON.fullmatch(pod.end_reason) else DELETED
    code = pod.exit_code if pod.exit_code is not None and pod.exit_code >= 0 else None
    return Over(msgspec.structs.replace(member, since_us=since_us), reason, code, micros(pod.finished_at) or now_us)


def body(
    cluster: str,
    namespace: str,
    last: Epoch,
    present: Mapping[str, Member],
    over: Mapping[str, Over],
    now_us: int,
    terms: Mapping[str, Term] = types.MappingProxyType({}),
) -> str:
    """The body of the note that follows `last`."""
    lines = [
        f"{SUBJECT}/{cluster}/{namespace}", f"epoch {last.number + 1}",
        f"previous {base64.b64encode(last.hash).decode()}", f"time {now_us}",
    ]  # fmt: skip
    pods = sorted(present.items())
    lines += [f"covered {uid} {one.pod} {one.identity} {one.since_us}" for uid, one in pods if not one.reason]
    lines += [f"uncovered {uid} {one.pod} {one.identity} {one.reason}" for uid, one in pods if one.reason]
    for uid, one in sorted(over.items()):
        code = "-" if one.exit_code is None else one.exit_code
        member = one.member
        lines.append(
            f"ended {uid} {member.pod} {member.identity} {member.since_us} {one.reason} {code} {one.finished_us}"
        )
    for identity, term in sorted(terms.items()):
        lines.append(f"retention {identity} {term.days} {'held' if term.is_held else '-'}")
    return "".join(f"{line}\n" for line in lines)


def read(note: str, namespace: str, signer: Signer) -> Epoch:
    """The population of a note that this signer made.

    Raises:
        ValueError: it is another's, of another namespace, or no population.
    """
    subject, number, _, _, *said = signer.body(note).splitlines()
    if not subject.startswith(f"{SUBJECT}/") or subject.rpartition("/")[2] != namespace:
        raise ValueError("The note is no population of this namespace.")
    found, terms = {}, {}
    for line in said:
        if line.startswith("retention "):
            _, name, days, held = line.split(" ")
            terms[name] = Term(int(days), held == "held")
            continue
        kind, uid, pod, identity, more, *_ = line.split(" ")
        if kind == "covered":
            found[uid] = Member(pod, identity, int(more))
        elif kind == "uncovered":
            found[uid] = Member(pod, identity, 0, more)
    return Epoch(int(number.removeprefix("epoch ")), note_hash(note), found, terms)


def note_hash(note: str) -> bytes:
    """By what the next population names this one."""
    return hashlib.sha256(note.encode()).digest()


def micros(text: str) -> int:
    """Microseconds since 1970 of a time as the API says it; 0 for none, and for one that no population can hold."""
    try:
        found = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return 0
    exact = int(found.timestamp()) * 1_000_000
    return exact if 0 <= exact <= MAX_INTEGER else 0
