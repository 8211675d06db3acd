"""Offline verification: trusts the bytes and the gateway CA's certificate, nothing else.

Each stream is checked alone (stream.py); here streams are judged together, for the *end* of a stream is proved by a
head at the very end or by the stream of the next process in the same pod: its first record names the one before and
its last link, and a head right after signs that. So an end that a killed process could not sign is signed by the next.
"""

from __future__ import annotations

import base64

import msgspec

from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed
from chaperone_evidence.policy import Policy
from chaperone_evidence.proof import parse_proof
from chaperone_evidence.stream import (
    BodyVerifier,
    Logged,
    Problem,
    StreamReport,
    StreamVerifier,
    verify_ends,
    verify_stream,
)

__all__ = [
    "BodyVerifier",
    "Logged",
    "Problem",
    "StreamReport",
    "StreamVerifier",
    "Verdict",
    "find_in_log",
    "join",
    "verify_ends",
    "verify_stream",
]


class Verdict(msgspec.Struct):
    """What was found out about a directory or bundle."""

    streams: list[StreamReport]  # by id, which is by time
    problems: list[Problem]  # the first bad record first
    notes: list[str]  # true, not wrong, and worth knowing


def join(reports: list[StreamReport]) -> Verdict:
    """Judge streams together; completes the reports.

    Bad records come before ends that are unproved: the latter may follow from the former, in another stream even.
    """
    verdict = Verdict(sorted(reports, key=lambda report: report.stream), [], [])
    whole = {report.stream for report in reports if not report.problems}
    known = {report.stream: report for report in verdict.streams}
    followed: dict[str, StreamReport] = {}
    for report in verdict.streams:
        opened = report.opened
        if opened is None or not opened.previous or report.signed == 0:
            continue
        before = known.get(opened.previous)
        if before is None:
            verdict.notes.append(f"stream {report.stream} follows {opened.previous}, which is not here")
        elif not _is_same_pod(report, before):
            report.problems.append(Problem(report.stream, 0, f"it follows {before.stream}, the stream of another pod"))
        elif before.stream in followed:
            other = followed[before.stream].stream
            report.problems.append(Problem(report.stream, 0, f"it follows {before.stream}, as stream {other} does"))
        else:
            followed[before.stream] = report
            _follow(before, report.stream, opened.previous_link)
    _compare_roots(verdict.streams)
    for report in verdict.streams:
        _judge(report, verdict.notes)
    verdict.problems = [
        problem
        for is_consequence in (False, True)
        for report in verdict.streams
        if (report.stream in whole) is is_consequence
        for problem in report.problems
    ]
    return verdict


def find_in_log(report: StreamReport, proof: bytes | None, policy: Policy) -> None:
    """Check that the log has a stream's last entry, whose link speaks for all before it; completes the report."""
    if report.problems:
        return  # what is no stream can be nowhere
    try:
        if proof is None:
            raise Malformed("there is no proof of it")
        cluster = report.opened.cluster if report.opened is not None else ""
        if policy.origin != f"chaperone.dev/log/{cluster}":
            raise BadSignature("the keys are those of another log")
        found = parse_proof(proof)
        opened = found.verify(report.leaf, policy)
    except EvidenceError as error:
        what = f"nothing shows that the log has it: {error}"
        report.problems.append(Problem(report.stream, report.entries - 1, what))
        return
    said = opened.checkpoint
    times = (one.time_s or 0 for one in opened.signatures)
    witnesses = {one.key.name for one in opened.signatures if one.key in policy.witnesses}
    report.logged = Logged(found.index, said.size, said.root, max(times, default=0), len(witnesses))


def _compare_roots(reports: list[StreamReport]) -> None:
    """A log has one root at each size; two that it has signed are a fork, whichever of them is the true one."""
    seen: dict[int, tuple[bytes, str]] = {}
    for report in reports:
        if report.logged is None:
            continue
        root, other = seen.setdefault(report.logged.size, (report.logged.root, report.stream))
        if root != report.logged.root:
            what = f"the log was forked: it has signed another root of {report.logged.size} entries for stream {other}"
            report.problems.append(Problem(report.stream, report.entries - 1, what))


def _is_same_pod(report: StreamReport, before: StreamReport) -> bool:
    this, that = report.opened, before.opened
    return this is None or that is None or (this.cluster, this.pod_uid) == (that.cluster, that.pod_uid)


def _follow(before: StreamReport, follower: str, link: str) -> None:
    if base64.b64encode(before.link).decode() != link:
        if not before.problems:
            what = f"its end is not the one that the following stream {follower} signed: its tail was cut or changed"
            before.problems.append(Problem(before.stream, before.entries, what))
            before.end = "broken"
        return
    if before.is_torn and len(before.problems) == 1:
        before.problems.clear()
        before.remarks.append("its last record was not written to its end; the following stream signed the one before")
        before.end = "unsigned"
    if before.end in ("unsigned", "open"):
        before.end = "continued"
        before.signed = before.entries


def _judge(report: StreamReport, notes: list[str]) -> None:
    stream = report.stream
    if report.end == "unsigned" and not report.problems:
        what = f"the {report.entries - report.signed} records from here on are under no signature"
        report.problems.append(Problem(stream, report.signed, what))
    if report.bodies_unnamed and not report.problems:
        _judge_unnamed(report)
    notes.extend(f"stream {stream}: {remark}" for remark in report.remarks)
    if report.open_intents:
        where = _some([one.seq for one in report.open_listed], report.open_intents)
        notes.append(f"stream {stream}: {report.open_intents} allowed commands have no outcome here ({where})")
    if report.bodies_missing > report.bodies_erased:
        missing = report.bodies_missing - report.bodies_erased
        where = _some(report.missing_listed, missing)
        notes.append(f"stream {stream}: {missing} texts that records name are not here ({where})")
    if report.end == "open":
        notes.append(f"stream {stream} is still open: what came after its last head is not here")


def _judge_unnamed(report: StreamReport) -> None:
    """A body that no record names is a changed one, or what a crash kept from its record."""
    if report.end != "closed" and not report.bodies_missing:
        report.remarks.append(f"{report.bodies_unnamed} texts are here whose records were not written")
        return
    what = f"its text may have been changed: {report.bodies_unnamed} texts are here that no record names"
    report.problems.append(Problem(report.stream, report.suspect, what))


def _some(seqs: list[int], count: int) -> str:
    shown = ", ".join(str(seq) for seq in seqs[:5])
    return f"records {shown}, …" if count > 5 else f"records {shown}"
