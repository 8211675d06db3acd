"""Revisions of policy in evidence: which are here, whether they hold, and which the commands name that are not.

The operator's key comes from the auditor, or from the bundle, and then that is said: whoever made the bundle could have
put it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from chaperone_cli.evidence import ABSENT, MAX_TRUST_BYTES, REVISION_KEY, CannotVerify, Source, populations, proofs
from chaperone_cli.evidence import revisions as files_of
from chaperone_evidence import entry, merkle
from chaperone_evidence.completeness import Finding
from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed
from chaperone_evidence.note import Verifier, parse_vkey
from chaperone_evidence.policy import Policy
from chaperone_evidence.proof import parse_proof
from chaperone_evidence.revision import Revision, open_bodies, read_entry
from chaperone_evidence.stream import StreamReport

MAX_SHOWN: Final = 20  # lines of a kind
MAX_BYTES: Final = 1 << 30  # of all revisions of one evidence, which are in memory: ten thousand as a rule

type Name = tuple[str, str]  # namespace and revision


class Kept(msgspec.Struct):
    """What is known of the revisions of evidence."""

    sound: dict[Name, Revision] = {}
    indexes: dict[Name, int] = {}  # place in the log, of those whose proof was checked
    absent: set[Name] = set()  # of which the bundle says that the log does not have them
    vkey: str = ""
    is_given: bool = False  # the key, by the auditor
    notes: list[str] = []
    problems: list[Finding] = []


def keep(source: Source, reports: Iterable[StreamReport], key: Path | None, log: Policy | None) -> Kept:
    """Verify the revisions that are here, and look for those that the commands of verified streams name.

    Raises:
        CannotVerify: there are revisions and no key, or a file is too long. OSError: a file cannot be read.
    """
    found = Kept({}, {}, set(), "", key is not None, [], [])
    verifier: Verifier | None = None
    kept_bytes = 0
    for place, parts in files_of(source):
        verifier = verifier or _key(source, key)
        found.vkey = verifier.vkey
        _take(found, place, parts, verifier, log)
        kept_bytes += sum(map(len, parts.values()))
        if kept_bytes > MAX_BYTES:
            raise CannotVerify(f"There are more than {MAX_BYTES >> 20} MiB of policy here.")
    found.absent = set(_absent(source))
    _look(found, source, reports)
    return found


def lines(found: Kept) -> Iterator[str]:
    """What is said to people."""
    if found.vkey:
        yield f"trust: operator {found.vkey}"
        if not found.is_given:
            yield "note: this operator key lay in the bundle; give --operator-key to check against a copy of your own"
    for (namespace, name), one in sorted(found.sound.items()):
        index = found.indexes.get((namespace, name))
        place = "" if index is None else f", entry {index} of the log"
        yield f"policy {name} of {namespace}: serial {one.serial}, {len(one.identities)} identities{place}"
    yield from (f"note: {one}" for one in found.notes[:MAX_SHOWN])


def plain(found: Kept) -> dict[str, object]:
    """The same as JSON."""
    return {
        "operator": {"given": found.is_given, "vkey": found.vkey},
        "sound": [
            {"namespace": namespace, "revision": name, "serial": one.serial, "identities": list(one.identities),
             "index": found.indexes.get((namespace, name))}
            for (namespace, name), one in sorted(found.sound.items())
        ],
        "absent": [f"{namespace}/{name}" for namespace, name in sorted(found.absent)],
        "problems": [str(one) for one in found.problems],
    }  # fmt: skip


def _take(
    found: Kept, place: tuple[str, int], parts: dict[str, bytes], verifier: Verifier, log: Policy | None
) -> None:  # fmt: skip
    namespace, serial = place
    where = f"policy of {namespace}, serial {serial}"
    try:
        if parts.keys() != {"entry", "seg", "tlog-proof"}:
            raise Malformed(f"it is not here whole: {', '.join(sorted(parts))} alone")
        said = read_entry(parts["entry"])
        where = f"policy {said.revision} of {namespace}, serial {serial}"
        if (said.namespace, said.serial) != place:
            raise Malformed(f"its entry is that of serial {said.serial} of {said.namespace}")
        one = open_bodies(said, list(entry.body_frames(parts["seg"])), verifier)
        index = _find(parts, log, one.cluster)
    except EvidenceError as error:
        found.problems.append(Finding(where, str(error)))
        return
    name = (namespace, said.revision)
    if log is None:
        found.notes.append(f"the proof that the log has {where} was not checked; give --log-policy")
    else:
        found.indexes[name] = index
    found.sound[name] = one


def _find(parts: dict[str, bytes], log: Policy | None, cluster: str) -> int:
    proof = parse_proof(parts["tlog-proof"])
    if log is not None:
        if log.origin != f"chaperone.dev/log/{cluster}":
            raise BadSignature("the keys are those of another log")
        try:
            proof.verify(merkle.leaf_hash(parts["entry"]), log)
        except EvidenceError as error:
            raise BadSignature(f"nothing shows that the log has it: {error}") from error
    return proof.index


def _look(found: Kept, source: Source, reports: Iterable[StreamReport]) -> None:
    """A gateway that says which policy it began with has an operator whose revisions the log keeps."""
    is_coverage, in_log = bool(populations(source)[0]), proofs(source)
    before = 0
    for report in reports:
        if report.opened is None or is_coverage:
            continue
        for revision, seq in report.revisions.items():
            name = (report.opened.namespace, revision)
            if name in found.sound:
                continue
            what = f"record {seq} of stream {report.stream} was decided by it"
            if name in found.absent:
                found.notes.append(f"policy {revision} of {name[0]} is not in the log, says the bundle, and {what}")
            elif report.opened.policy_serial and report.stream in in_log:
                found.problems.append(Finding(f"policy {revision} of {name[0]}", f"it is not here, and {what}"))
            else:
                before += 1
    if before:
        found.notes.append(f"{before} revisions of policy that commands name are not here; nobody had to keep them")


def _absent(source: Source) -> Iterator[Name]:
    if ABSENT not in source.names():
        return
    for line in source.read(ABSENT, MAX_TRUST_BYTES).decode("ascii", errors="replace").splitlines():
        namespace, _, revision = line.partition("/")
        yield namespace, revision


def _key(source: Source, given: Path | None) -> Verifier:
    if given is None and REVISION_KEY not in source.names():
        raise CannotVerify("No operator's key is given; use --operator-key FILE (CHAPERONE_POLICY_KEY of a gateway).")
    data = given.read_bytes() if given is not None else source.read(REVISION_KEY, MAX_TRUST_BYTES)
    try:
        return parse_vkey(data.decode().strip())
    except (Malformed, UnicodeDecodeError) as error:
        raise CannotVerify(f"The file with the operator's key holds none: {error}") from error
