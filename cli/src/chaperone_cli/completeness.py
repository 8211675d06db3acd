"""What `chaperone verify` says of a bundle of a namespace's coverage: a line for each pod, and whether one was silent.

The operator's key comes from the auditor, or from the bundle, and then that is said: whoever made the bundle could have
put it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from chaperone_cli.evidence import (
    MAX_TRUST_BYTES,
    OPERATOR_KEY,
    POPULATION_PROOF,
    CannotVerify,
    Source,
    bodies,
    entries,
    populations,
    segments,
)
from chaperone_evidence import entry
from chaperone_evidence.completeness import BrokenEpochs, Coverage, Finding, Heard, hold, read_epochs, read_newest
from chaperone_evidence.errors import EvidenceError, Malformed
from chaperone_evidence.note import Verifier, parse_vkey
from chaperone_evidence.policy import Policy
from chaperone_evidence.population import Population
from chaperone_evidence.proof import parse_proof
from chaperone_evidence.silence import Answer, ask, choose, look
from chaperone_evidence.verify import Verdict

MAX_SHOWN: Final = 20  # lines of a kind; all of them are in the JSON


class Asked(msgspec.Struct, frozen=True):
    """Did this identity do nothing between these times, in microseconds since 1970?"""

    identity: str
    from_us: int
    until_us: int


class Completeness(msgspec.Struct):
    """What was found out about a namespace, and the answer to what was asked."""

    coverage: Coverage
    vkey: str
    is_given: bool  # the key, by the auditor
    notes: list[str] = []
    asked: Asked | None = None
    answer: Answer | None = None


def read_asked(identity: str, begin: str, end: str) -> Asked | None:
    """The question of a command line; None for none.

    Raises:
        CannotVerify: a part of it is missing, or a time is none.
    """
    if not (identity or begin or end):
        return None
    if not (identity and begin and end):
        raise CannotVerify("Whether an identity did nothing is asked with all of --identity, --from and --to.")
    found = Asked(identity, _micros(begin), _micros(end))
    if found.from_us >= found.until_us:
        raise CannotVerify("--from is not before --to.")
    return found


def cover(
    source: Source, verdict: Verdict, key: Path | None, log: Policy | None, asked: Asked | None
) -> Completeness | None:
    """Hold the streams of a verdict against the populations of a source; None where it has none.

    Raises:
        CannotVerify: there is no key, or a question and nothing to answer it from. OSError: a file cannot be read.
    """
    namespace, names = populations(source)
    if not namespace and OPERATOR_KEY not in source.names():
        if asked is not None:
            raise CannotVerify("There are no populations here; fetch them with chaperone export --coverage.")
        return None
    verifier = _key(source, key)
    found = Completeness(Coverage(namespace), verifier.vkey, key is not None)
    try:
        said, last = read_epochs(bodies(source, names, f"populations of {namespace}"), verifier, namespace)
        signed_us = _find_in_log(source, namespace, said[-1], last, log, found)
        found.coverage = hold(namespace, said, verdict.streams, signed_us)
    except BrokenEpochs as error:
        found.coverage.problems.append(Finding(error.where, str(error)))
    except EvidenceError as error:
        found.coverage.problems.append(Finding(f"populations of {namespace}", str(error)))
    else:
        if asked is not None:
            found.asked, found.answer = asked, _answer(source, verdict, found.coverage, asked)
    return found


def lines(found: Completeness) -> Iterator[str]:
    """What is said to people."""
    coverage = found.coverage
    yield f"trust: operator {found.vkey}"
    if not found.is_given:
        yield "note: this operator key lay in the bundle; give --operator-key to check against a copy of your own"
    if coverage.pods or coverage.as_of_us:
        first, last = coverage.epochs
        yield f"populations {coverage.namespace}: epochs {first} to {last}, as of {moment(coverage.as_of_us)}"
    yield from (f"note: {one}" for one in found.notes)
    yield from map(_pod, coverage.pods)
    if found.answer is not None and found.asked is not None:
        yield from _said(found.asked, found.answer)


def plain(found: Completeness) -> dict[str, object]:
    """The same as JSON."""
    coverage = found.coverage
    answer = {} if found.answer is None else {"silence": {
        "proved": found.answer.is_proved, "did": found.answer.did, "missing": found.answer.missing,
    }}  # fmt: skip
    return {
        "namespace": coverage.namespace, "operator": {"given": found.is_given, "vkey": found.vkey},
        "epochs": list(coverage.epochs), "as_of_us": coverage.as_of_us,
        "pods": [
            {
                "pod_uid": one.pod_uid, "pod": one.pod, "identity": one.identity, "state": str(one.verdict.state),
                "reason": one.verdict.reason, "streams": [report.stream for report in one.streams],
                "gaps": [
                    {"state": str(span.state), "from_us": span.from_us, "until_us": span.until_us}
                    for span in one.verdict.spans
                ],
            }
            for one in coverage.pods
        ],
        **answer,
    }  # fmt: skip


def moment(us: int) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _micros(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CannotVerify(f"{text!r} is no time; write it as 2026-11-27T10:00:00Z.") from error
    if found.tzinfo is None:
        raise CannotVerify(f"{text!r} says no time zone; write it as 2026-11-27T10:00:00Z.")
    return int(found.timestamp() * 1e6)


def _key(source: Source, given: Path | None) -> Verifier:
    if given is None and OPERATOR_KEY not in source.names():
        raise CannotVerify("No operator's key is given; use --operator-key FILE (CHAPERONE_POLICY_KEY of a gateway).")
    data = given.read_bytes() if given is not None else source.read(OPERATOR_KEY, MAX_TRUST_BYTES)
    try:
        return parse_vkey(data.decode().strip())
    except (Malformed, UnicodeDecodeError) as error:
        raise CannotVerify(f"The file with the operator's key holds none: {error}") from error


def _find_in_log(
    source: Source, namespace: str, newest: Population, body: bytes, log: Policy | None, found: Completeness
) -> int:
    """When the log signed the newest population, in microseconds; 0: that is not known.

    Raises:
        BrokenEpochs: nothing shows that it did.
    """
    where, name = f"population {newest.epoch} of {namespace}", f"populations/{namespace}/newest.entry"
    try:
        if name not in source.names() or POPULATION_PROOF not in source.names():
            raise Malformed("there is no proof of it")
        leaf = read_newest(source.read(name, entry.MAX_ENTRY_BYTES), newest, body)
        if log is None:
            found.notes.append("the proof that the log has the newest population was not checked; give --log-policy")
            return 0
        if log.origin != f"chaperone.dev/log/{newest.cluster}":
            raise Malformed("the keys are those of another log")
        opened = parse_proof(source.read(POPULATION_PROOF, MAX_TRUST_BYTES)).verify(leaf, log)
    except EvidenceError as error:
        raise BrokenEpochs(where, f"nothing shows that the log has it: {error}") from error
    return max((one.time_s or 0 for one in opened.signatures), default=0) * 1_000_000


def _answer(source: Source, verdict: Verdict, coverage: Coverage, asked: Asked) -> Answer:
    names = segments(source)
    sound = {one.stream for one in verdict.streams if not one.problems and one.is_whole}
    spans = {
        stream: look(entries(source, names[stream][0], f"stream {stream}"), asked.from_us, asked.until_us)
        for stream in choose(coverage, asked.identity)
        if stream in sound
    }
    return ask(coverage, asked.identity, asked.from_us, asked.until_us, spans)


def _pod(heard: Heard) -> str:
    verdict = heard.verdict
    told = f"{verdict.state} ({verdict.reason})" if verdict.reason else str(verdict.state)
    stream = "stream <none>"
    if heard.streams:
        last = heard.streams[-1]
        stream = f"stream {last.stream}, last record {last.entries - 1} seen {moment(last.head_us)}"
    return f"pod {heard.pod} {heard.pod_uid} as {heard.identity}: {told}, {stream}, {len(verdict.spans)} gaps"


def _said(asked: Asked, answer: Answer) -> Iterator[str]:
    what = f"{asked.identity} did nothing from {moment(asked.from_us)} to {moment(asked.until_us)}"
    if answer.is_proved:
        yield f"silence: {what}: proved, of {answer.pods} pods"
        return
    yield f"silence: {what}: {'NO' if answer.did else 'NOT PROVED'}"
    reasons = answer.did + answer.missing
    yield from (f"silence: {one}" for one in reasons[:MAX_SHOWN])
    if len(reasons) > MAX_SHOWN:
        yield f"silence: {len(reasons) - MAX_SHOWN} more; --json shows all"
