"""Offline verification of streams: trusts the bytes and the gateway CA's certificate, nothing else.

A stream is sound when its headers are canonical, every link follows from the one before, sequence numbers have no gap,
the first record names a key that a trusted certificate binds to the pod, every head verifies under that key and signs
exactly the entries before it, and every outcome refers to an intent of its own. Its *end* is proved by a head at the
very end, or by the next stream of the pod, whose signed first record repeats the last link.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from cryptography import x509

from chaperone_evidence import canonical, chain, entry, note, record
from chaperone_evidence.certificate import check_issued
from chaperone_evidence.errors import EvidenceError

MAX_OPEN_INTENTS: Final = (
    1_000_000  # intents that may wait for their outcome in one stream; more is not verifiable here
)

type EndState = Literal["closed", "open", "continued", "unsigned"]


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong; `seq` is the entry at which it shows (−1: the stream as a whole)."""

    stream: str
    seq: int
    what: str

    def __str__(self) -> str:
        """One line for people."""
        return f"stream {self.stream} record {self.seq}: {self.what}"


class StreamReport(msgspec.Struct):
    """What was found out about one stream."""

    stream: str
    entries: int = 0
    commands: int = 0
    denied: int = 0
    sessions: int = 0
    signed: int = 0  # entries covered by a verified head
    link: bytes = b""
    end: EndState = "unsigned"
    opened: record.StreamOpen | None = None
    open_intents: int = 0  # allowed commands whose outcome the stream does not hold
    bodies: dict[bytes, int] = msgspec.field(default_factory=dict)  # commitment → seq of the first record naming it
    texts: dict[bytes, str] = msgspec.field(default_factory=dict)  # commitment → SHA-256 of the whole text it keeps
    bodies_checked: int = 0
    bodies_missing: int = 0
    problems: list[Problem] = msgspec.field(default_factory=list)


class Verdict(msgspec.Struct):
    """What was found out about a directory or bundle."""

    streams: list[StreamReport]
    problems: list[Problem]
    notes: list[str]  # true, not wrong, and worth knowing


class StreamVerifier:
    """Checks one stream entry by entry; memory is bounded by the intents that wait for an outcome."""

    def __init__(self, stream: str, authorities: list[x509.Certificate]) -> None:
        self.report = StreamReport(stream, link=chain.first_link(stream))
        self._authorities = authorities
        self._verifier: note.Verifier | None = None
        self._cluster = ""
        self._waiting: dict[int, tuple[str, str]] = {}
        self._sessions: dict[str, bool] = {}
        self._head_time_us = 0
        self._closed = False

    def add(self, data: bytes) -> None:
        """Check the next entry.

        Raises:
            EvidenceError: it does not belong here; nothing after it can be trusted.
        """
        report = self.report
        if self._closed:
            raise EvidenceError("it comes after the stream's signed end")
        parsed = entry.decode(data)
        if chain.next_link(report.link, parsed.cls, parsed.header) != parsed.link:
            raise EvidenceError("its link does not follow from the record before it")
        if parsed.cls == entry.CLASS_RECORD:
            self._record(record.decode(parsed.header), parsed.header)
        elif parsed.cls == entry.CLASS_HEAD:
            self._head(parsed.header)
        else:
            raise EvidenceError(f"it has the unknown class {parsed.cls}")
        report.link = parsed.link
        report.entries += 1
        if parsed.cls == entry.CLASS_HEAD:
            report.signed = report.entries

    def finish(self) -> StreamReport:
        """The report, when no entry is left."""
        report = self.report
        if self._closed:
            report.end = "closed"
        elif report.signed == report.entries and report.entries:
            report.end = "open"
        report.open_intents = len(self._waiting)
        return report

    def _record(self, found: record.Known | record.Unknown, header: bytes) -> None:
        report = self.report
        if found.seq != report.entries:
            raise EvidenceError(f"it says it is number {found.seq}")
        if report.entries == 0:
            self._open(found)
            return
        match found:
            case record.StreamOpen():
                raise EvidenceError("it opens a stream that is open")
            case record.SessionOpen(session=session):
                if session in self._sessions:
                    raise EvidenceError(f"session {session} is opened twice")
                self._sessions[session] = True
                report.sessions += 1
            case record.SessionClose(session=session):
                self._need_session(session)
                self._sessions[session] = False
            case record.CommandIntent():
                self._intent(found)
            case record.CommandOutcome():
                self._need_session(found.session)
                if self._waiting.pop(found.ref, None) != (found.session, found.command):
                    raise EvidenceError(f"it is the outcome of record {found.ref}, which is no open intent of its own")
            case _:
                canonical.decode(header)

    def _open(self, found: record.Known | record.Unknown) -> None:
        if not isinstance(found, record.StreamOpen):
            raise EvidenceError("the stream does not begin with stream.open")
        if found.stream != self.report.stream:
            raise EvidenceError(f"it opens stream {found.stream}")
        try:
            der = base64.b64decode(found.certificate, validate=True)
        except binascii.Error as error:
            raise EvidenceError("its certificate is not base64") from error
        subject = check_issued(der, self._authorities, found.wall_us)
        said = (found.cluster, found.namespace, found.pod, found.pod_uid, found.identity, found.vkey)
        if said != (
            subject.cluster, subject.namespace, subject.pod, subject.pod_uid, subject.identity, subject.vkey,
        ):  # fmt: skip
            raise EvidenceError("its certificate belongs to another pod, identity or stream key")
        self._verifier = note.parse_vkey(found.vkey)
        if self._verifier.name != f"{found.cluster}/gateway/{found.pod_uid}":
            raise EvidenceError("its key is not named after the pod")
        self._cluster = found.cluster
        self.report.opened = found

    def _intent(self, found: record.CommandIntent) -> None:
        report = self.report
        self._need_session(found.session)
        report.commands += 1
        if found.decision == "Allow":
            if len(self._waiting) >= MAX_OPEN_INTENTS:
                raise EvidenceError("more commands are open than this program can keep")
            self._waiting[found.seq] = (found.session, found.command)
        else:
            report.denied += 1
        for commitment in (found.body, found.params):
            if isinstance(commitment, record.Commitment):
                report.bodies.setdefault(_commit(commitment.commit), found.seq)
        if isinstance(found.body, record.Commitment) and found.body.size == found.size_bytes:
            report.texts.setdefault(_commit(found.body.commit), found.sha256)

    def _need_session(self, session: str) -> None:
        if not self._sessions.get(session, False):
            raise EvidenceError(f"its session {session} is not open")

    def _head(self, header: bytes) -> None:
        if self._verifier is None:
            raise EvidenceError("the stream does not begin with stream.open")
        head = chain.parse_head(note.open_note(header, self._verifier))
        report = self.report
        if (head.cluster, head.stream) != (self._cluster, report.stream):
            raise EvidenceError("it is the head of another stream")
        if head.count != report.entries or head.link != report.link:
            raise EvidenceError(f"it signs {head.count} records with another last link than the {report.entries} here")
        if head.time_us < self._head_time_us:
            raise EvidenceError("its time is before that of the head before it")
        self._head_time_us = head.time_us
        self._closed = head.state == "closed"


def verify_stream(stream: str, entries: Iterable[bytes], authorities: list[x509.Certificate]) -> StreamReport:
    """Check a stream; the first bad record ends it and is the report's problem."""
    verifier = StreamVerifier(stream, authorities)
    try:
        for data in entries:
            verifier.add(data)
    except EvidenceError as error:
        verifier.report.problems.append(Problem(stream, verifier.report.entries, str(error)))
    return verifier.finish()


def join(reports: list[StreamReport]) -> Verdict:
    """Judge streams together: an unsigned end is proved by the stream that follows it in the same pod."""
    verdict = Verdict(sorted(reports, key=lambda report: report.stream), [], [])
    known = {report.stream: report for report in verdict.streams}
    for report in verdict.streams:
        opened = report.opened
        if opened is None or not opened.previous or report.signed == 0:
            continue
        before = known.get(opened.previous)
        if before is None:
            verdict.notes.append(f"stream {report.stream} follows {opened.previous}, which is not here")
            continue
        if base64.b64encode(before.link).decode() != opened.previous_link:
            what = (
                f"its end is not the one that the following stream {report.stream} signed: its tail was cut or changed"
            )
            before.problems.append(Problem(before.stream, before.entries, what))
        elif before.end in ("unsigned", "open"):
            before.end = "continued"
            before.signed = before.entries
    for report in verdict.streams:
        if report.entries == 0 and not report.problems:
            report.problems.append(Problem(report.stream, 0, "the stream is empty"))
        if report.end == "unsigned" and not report.problems:
            what = f"the {report.entries - report.signed} records from here on are under no signature"
            report.problems.append(Problem(report.stream, report.signed, what))
        if report.open_intents:
            verdict.notes.append(f"stream {report.stream}: {report.open_intents} allowed commands have no outcome here")
        if report.end == "open":
            verdict.notes.append(f"stream {report.stream} is still open: what came after its last head is not here")
        verdict.problems.extend(report.problems)
    return verdict


class BodyVerifier:
    """Checks the bodies of one stream against the commitments in its records."""

    def __init__(self, report: StreamReport) -> None:
        self._report = report
        self._missing = dict(report.bodies)
        self.checked = 0

    def add(self, body: bytes) -> None:
        """Check one body (salt and plain text); one that nothing names is a problem."""
        commit = entry.body_commit(body)
        seq = self._report.bodies.get(commit)
        if seq is None:
            self._report.problems.append(
                Problem(self._report.stream, self._report.entries, "a body is here that no record names")
            )
            return
        self._missing.pop(commit, None)
        expected = self._report.texts.get(commit)
        if expected is not None and hashlib.sha256(body[entry.SALT_BYTES :]).hexdigest() != expected:
            self._report.problems.append(Problem(self._report.stream, seq, "its hash is not that of the text kept"))
        self.checked += 1

    def missing(self) -> int:
        """How many bodies that records name are not here."""
        return len(self._missing)


def _commit(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise EvidenceError("its commitment is not base64") from error
