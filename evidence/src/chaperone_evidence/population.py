"""Populations: the operator's word on which pods of a namespace have to have a stream, and which have none.

A population is a note (C2SP signed-note, Ed25519) by the operator's key `<cluster uid>/operator`. Its body is lines,
one a pod, sorted by the pods' uids within each kind, so that it has one form and a person can read it:

    chaperone.dev/population/<cluster uid>/<namespace>
    epoch <number, from 1 on>
    previous <SHA-256 of the whole note before, base64; of the first: 32 zeros>
    time <µs>
    covered <pod uid> <pod> <identity> <µs since which a gateway of it is admitted; 0: it has not started>
    uncovered <pod uid> <pod> <identity> <reason>
    ended <pod uid> <pod> <identity> <µs, as of covered> <reason> <exit code of the gateway, or -> <µs when it ended>
    retention <identity> <days for which its texts are kept; 0: for ever> <held, or ->

Each population names all pods there are; `ended` are those that ended since the one before. So whoever has two that
follow each other sees that no pod went silently, and whoever has the newest sees which streams there must be.

Lines of retention stand there once an identity of the namespace asks for one, and then for each; the newest population
that names an identity decides. Before there were such lines all texts were kept for ever.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from chaperone_evidence.canonical import MAX_INTEGER, decode_base64
from chaperone_evidence.errors import Malformed
from chaperone_evidence.note import Verifier, open_note

SUBJECT: Final = "chaperone.dev/population"
MAX_NOTE_BYTES: Final = 1 << 20  # some 5 000 pods, more than a namespace should have
FIRST: Final = bytes(hashlib.sha256().digest_size)  # what the first epoch says of the one before it

_DOMAIN_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME: Final = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_IDENTITY: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?"  # a label's value says whose gateway a pod has
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,15})"
_REASON: Final = r"[A-Z][A-Za-z0-9]{0,62}"
_HEAD: Final = re.compile(
    rf"{re.escape(SUBJECT)}/({_DOMAIN_LABEL})/({_DOMAIN_LABEL})\nepoch ({_NUMBER})\n"
    rf"previous ([A-Za-z0-9+/]{{43}}=)\ntime ({_NUMBER})\n"
)
_COVERED: Final = re.compile(rf"covered ({_NAME}) ({_NAME}) ({_IDENTITY}) ({_NUMBER})")
_UNCOVERED: Final = re.compile(rf"uncovered ({_NAME}) ({_NAME}) ({_IDENTITY}) ({_REASON})")
_ENDED: Final = re.compile(
    rf"ended ({_NAME}) ({_NAME}) ({_IDENTITY}) ({_NUMBER}) ({_REASON}) (-|{_NUMBER}) ({_NUMBER})"
)
_RETENTION: Final = re.compile(rf"retention ({_IDENTITY}) ({_NUMBER}) (held|-)")


class Covered(msgspec.Struct, frozen=True, order=True, gc=False):
    """A pod that has to have a stream once its gateway has started."""

    pod_uid: str
    pod: str
    identity: str
    since_us: int

    @property
    def line(self) -> str:
        """The line, without its newline."""
        return f"covered {self.pod_uid} {self.pod} {self.identity} {self.since_us}"


class Uncovered(msgspec.Struct, frozen=True, order=True, gc=False):
    """A pod that an identity selects, and that no gateway holds."""

    pod_uid: str
    pod: str
    identity: str
    reason: str

    @property
    def line(self) -> str:
        """The line, without its newline."""
        return f"uncovered {self.pod_uid} {self.pod} {self.identity} {self.reason}"


class Ended(msgspec.Struct, frozen=True, order=True, gc=False):
    """A pod that ended since the population before; `exit_code` is its gateway's, None where nobody knows it."""

    pod_uid: str
    pod: str
    identity: str
    since_us: int
    reason: str
    exit_code: int | None
    finished_us: int

    @property
    def line(self) -> str:
        """The line, without its newline."""
        code = "-" if self.exit_code is None else self.exit_code
        return (
            f"ended {self.pod_uid} {self.pod} {self.identity} {self.since_us} {self.reason} {code} {self.finished_us}"
        )


class Retention(msgspec.Struct, frozen=True, order=True, gc=False):
    """For how many days the texts of an identity are kept, 0 for ever; nothing of one that is held is erased."""

    identity: str
    days: int
    is_held: bool

    @property
    def line(self) -> str:
        """The line, without its newline."""
        return f"retention {self.identity} {self.days} {'held' if self.is_held else '-'}"


type Pod = Covered | Uncovered | Ended


class Population(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of one namespace at one time."""

    cluster: str
    namespace: str
    epoch: int
    previous: bytes
    wall_us: int
    covered: tuple[Covered, ...] = ()
    uncovered: tuple[Uncovered, ...] = ()
    ended: tuple[Ended, ...] = ()
    retention: tuple[Retention, ...] = ()

    @property
    def count(self) -> int:
        """Pods that were there."""
        return len(self.covered) + len(self.uncovered)

    @property
    def body(self) -> str:
        """The body of the note."""
        lines: tuple[Pod | Retention, ...] = (*self.covered, *self.uncovered, *self.ended, *self.retention)
        return (
            f"{SUBJECT}/{self.cluster}/{self.namespace}\nepoch {self.epoch}\n"
            f"previous {base64.b64encode(self.previous).decode()}\ntime {self.wall_us}\n"
            + "".join(f"{one.line}\n" for one in lines)
        )


def key_name(cluster: str) -> str:
    """The name of the key that signs the populations of a cluster."""
    return f"{cluster}/operator"


def note_hash(note: bytes) -> bytes:
    """By what the next population names the one of this note."""
    return hashlib.sha256(note).digest()


def open_population(note: bytes, verifier: Verifier) -> Population:
    """The population of a note that this key has signed, which is named after the population's cluster.

    Raises:
        Malformed: not a population. NotCanonical: a text in it is not written in the one way.
        BadSignature: the key did not sign it, or is another cluster's.
    """
    found = parse(open_note(note, verifier, MAX_NOTE_BYTES))
    if verifier.name != key_name(found.cluster):
        raise Malformed("The population is one of another cluster than the key that signed it.")
    return found


def parse(body: str) -> Population:
    """Read the body of a population's note; nothing is verified.

    Raises:
        Malformed: not a population, or not in its one form. NotCanonical: its hash is not written in the one way.
    """
    head = _HEAD.match(body)
    if head is None:
        raise Malformed("The note does not begin as a population does.")
    lines = body[head.end() :].split("\n")
    if lines.pop():
        raise Malformed("The population does not end in a newline.")
    covered = _take(lines, 0, _COVERED, lambda uid, pod, identity, since: Covered(uid, pod, identity, int(since)))
    uncovered = _take(lines, len(covered), _UNCOVERED, Uncovered)
    ended = _take(lines, len(covered) + len(uncovered), _ENDED, _ended)
    pods: tuple[Pod, ...] = (*covered, *uncovered, *ended)
    retention = _take(lines, len(pods), _RETENTION, lambda name, days, held: Retention(name, int(days), held == "held"))
    if len(pods) + len(retention) != len(lines):
        raise Malformed(
            f"Line {5 + len(pods) + len(retention)} of the population is not well formed, or not in its place."
        )
    if len({one.pod_uid for one in pods}) != len(pods):
        raise Malformed("The population names a pod twice.")
    cluster, namespace, epoch, previous, wall_us = head.groups()
    found = Population(
        cluster=cluster, namespace=namespace, epoch=int(epoch), previous=decode_base64(previous), wall_us=int(wall_us),
        covered=covered, uncovered=uncovered, ended=ended, retention=retention,
    )  # fmt: skip
    numbers = [found.epoch, found.wall_us, *(one.since_us for one in covered), *(one.days for one in retention)]
    numbers += [number for one in ended for number in (one.since_us, one.exit_code or 0, one.finished_us)]
    if found.epoch < 1 or max(numbers) > MAX_INTEGER:
        raise Malformed("A number of the population is out of range.")
    if (found.previous == FIRST) is not (found.epoch == 1):
        raise Malformed("The first epoch, and no other, follows none.")
    return found


def _take[One: (Covered, Uncovered, Ended, Retention)](
    lines: list[str], first: int, form: re.Pattern[str], make: Callable[..., One]
) -> tuple[One, ...]:
    """The lines of one form from `first` on, sorted by what they begin with: the uid of a pod, or an identity."""
    found: list[One] = []
    for line in lines[first:]:
        match = form.fullmatch(line)
        if match is None:
            break
        found.append(make(*match.groups()))
    _need_order(one.line.split(" ", 2)[1] for one in found)
    return tuple(found)


def _need_order(uids: Iterable[str]) -> None:
    last = ""
    for uid in uids:
        if uid <= last:
            raise Malformed("The lines of the population are not in their order.")
        last = uid


def _ended(uid: str, pod: str, identity: str, since: str, reason: str, code: str, finished: str) -> Ended:
    return Ended(uid, pod, identity, int(since), reason, None if code == "-" else int(code), int(finished))
