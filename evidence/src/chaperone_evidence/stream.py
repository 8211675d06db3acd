"""Checking one stream: its chain, its heads, its records, and the bodies kept beside it.

A stream is sound when its headers are canonical, every link follows from the one before, sequence numbers have no gap,
the first record names a key that a trusted certificate binds to the pod, every head verifies under that key and signs
exactly the entries before it, and every outcome refers to an intent of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from cryptography import x509

from chaperone_evidence import canonical, chain, entry, merkle, note, record
from chaperone_evidence.certificate import check_issued
from chaperone_evidence.errors import EvidenceError, Torn

MAX_REVISIONS: Final = 10_000  # of policy, in one stream; the first ones are looked for
MAX_OPEN_INTENTS: Final = 1_000_000  # intents of one stream that wait for an outcome; a gateway has hundreds
MAX_LISTED: Final = 1000  # records named one by one in a report; the counts go on
CLOCK_STEP_US: Final = 2_000_000  # wall and monotonic clock part by more than this between two records: it was set
SILENCE_US: Final = 60_000_000  # heads come every 10 s, also when nothing happens

type EndState = Literal["closed", "open", "continued", "unsigned", "broken"]


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong; `seq` is the entry at which it shows."""

    stream: str
    seq: int
    what: str

    def __str__(self) -> str:
        """One line for people."""
        return f"stream {self.stream} record {self.seq}: {self.what}"


class OpenIntent(msgspec.Struct, frozen=True):
    """An allowed command whose outcome the stream does not hold."""

    seq: int
    session: str
    command: str


class Logged(msgspec.Struct, frozen=True):
    """Where the log has the last entry, by its own signed word; `time_s` is seconds since 1970, 0 for none said."""

    index: int
    size: int
    root: bytes
    time_s: int
    witnesses: int


class StreamReport(msgspec.Struct):
    """What was found out about one stream."""

    stream: str
    entries: int = 0
    commands: int = 0
    denied: int = 0
    sessions: int = 0
    signed: int = 0  # entries covered by a verified head
    link: bytes = b""  # of the last entry that is sound
    leaf: bytes = b""  # its hash as a leaf of the log
    logged: Logged | None = None
    end: EndState = "unsigned"
    opened: record.StreamOpen | None = None
    head_us: int = 0  # time of the last verified head
    open_intents: int = 0
    open_listed: list[OpenIntent] = msgspec.field(default_factory=list)  # the first of them
    revisions: dict[str, int] = msgspec.field(default_factory=dict)  # of policy → the first command that one decided
    unknown: int = 0  # records of types that this version does not know
    bodies: dict[bytes, int] = msgspec.field(default_factory=dict)  # commitment → seq of the first record naming it
    sizes: dict[bytes, int] = msgspec.field(default_factory=dict)  # commitment → bytes of the text
    texts: dict[bytes, str] = msgspec.field(default_factory=dict)  # commitment → SHA-256 of the whole text it keeps
    bodies_checked: int = 0
    bodies_missing: int = 0
    bodies_erased: int = 0  # of those that are missing, see erasure.py
    missing: dict[bytes, int] = msgspec.field(default_factory=dict)  # commitment → record, of texts that are not here
    named_us: dict[bytes, int] = msgspec.field(default_factory=dict)  # commitment → time of the last record naming it
    missing_listed: list[int] = msgspec.field(default_factory=list)  # records whose text is not here, the first of them
    bodies_unnamed: int = 0  # bodies that no record names
    suspect: int = -1  # the record whose text the first unnamed body may have been
    is_whole: bool = True  # False: only its beginning and its end were looked at
    is_torn: bool = False  # the last write was cut short by a crash
    remarks: list[str] = msgspec.field(default_factory=list)  # true, not wrong, and worth knowing
    problems: list[Problem] = msgspec.field(default_factory=list)


class StreamVerifier:
    """Checks one stream entry by entry; memory is bounded by its sessions, its texts and the intents that wait."""

    def __init__(self, stream: str, authorities: list[x509.Certificate]) -> None:
        self.report = StreamReport(stream, link=chain.first_link(stream))
        self._authorities = authorities
        self._verifier: note.Verifier | None = None
        self._cluster = ""
        self._waiting: dict[int, tuple[str, str]] = {}
        self._sessions: dict[str, bool] = {}
        self._chunks: dict[str, int] = {}  # of a session, so far
        self._clock_us = 0
        self._is_last_said = False
        self._is_closed = False
        self._last = b""

    def add(self, data: bytes) -> None:
        """Check the next entry.

        Raises:
            EvidenceError: it does not belong here; nothing after it can be trusted.
        """
        report = self.report
        if self._is_closed:
            raise EvidenceError("it comes after the stream's signed end")
        cls, link, header = entry.split(data)
        if chain.next_link(report.link, cls, header) != link:
            raise EvidenceError("its link does not follow from the record before it")
        if cls == entry.CLASS_RECORD:
            self._record(record.decode(header))
            report.entries += 1
        elif cls == entry.CLASS_HEAD:
            self._head(header)
            report.entries += 1
            report.signed = report.entries
        else:
            raise EvidenceError(f"it has the unknown class {cls}")
        report.link = link
        self._last = data

    def jump(self, data: bytes) -> None:
        """Go on with a later head of the stream, whose signature speaks for what lies between; or with its last record.

        Raises:
            EvidenceError: it is neither, or does not verify.
        """
        report = self.report
        cls, link, header = entry.split(data)
        report.is_whole = False
        if cls == entry.CLASS_HEAD:
            head = chain.parse_head(note.parse(header).body)
            report.entries, report.link = head.count, head.link
            self.add(data)
            return
        last = record.decode(header)
        if cls != entry.CLASS_RECORD or last.seq < report.entries:
            raise EvidenceError("it is no record that comes later")
        report.entries, report.link, self._last = last.seq + 1, link, data  # only who follows it can prove this link

    def finish(self) -> StreamReport:
        """The report, when no entry is left."""
        report = self.report
        if report.problems:
            report.end = "broken"
        elif self._is_closed:
            report.end = "closed"
        elif report.signed == report.entries and report.entries:
            report.end = "open"
        report.leaf = merkle.leaf_hash(self._last)
        report.open_intents = len(self._waiting)
        for seq, (session, command) in self._waiting.items():
            if len(report.open_listed) >= MAX_LISTED:
                break
            report.open_listed.append(OpenIntent(seq, session, command))
        if report.unknown:
            report.remarks.append(f"{report.unknown} records are of types that this program does not know")
        return report

    def _record(self, found: record.Known | record.Unknown) -> None:
        report = self.report
        if found.seq != report.entries:
            raise EvidenceError(f"it says it is number {found.seq}")
        if report.entries == 0:
            self._open(found)
            return
        if self._is_last_said:
            raise EvidenceError("it comes after the record that says it is the last")
        if isinstance(found, record.CommandIntent):
            self._intent(found)
        elif isinstance(found, record.CommandOutcome):
            self._need_session(found.session)
            if self._waiting.pop(found.ref, None) != (found.session, found.command):
                raise EvidenceError(f"it is the outcome of record {found.ref}, which is no open intent of its own")
        elif isinstance(found, record.Unknown):
            report.unknown += 1
            return
        else:
            self._frame_of_commands(found)
        self._look_at_clock(found)

    def _frame_of_commands(self, found: record.Known) -> None:
        match found:
            case record.StreamOpen():
                raise EvidenceError("it opens a stream that is open")
            case record.StreamClose():
                self._is_last_said = True
            case record.SessionOpen(session=session):
                if session in self._sessions:
                    raise EvidenceError(f"session {session} is opened twice")
                self._sessions[session] = True
                self.report.sessions += 1
            case record.SessionClose(session=session):
                self._need_session(session)
                self._sessions[session] = False
                self._chunks.pop(session, None)
            case record.RecordingChunk():
                self._chunk(found)

    def _open(self, found: record.Known | record.Unknown) -> None:
        if not isinstance(found, record.StreamOpen):
            raise EvidenceError("the stream does not begin with stream.open")
        if found.stream != self.report.stream:
            raise EvidenceError(f"it opens stream {found.stream}")
        subject = check_issued(canonical.decode_base64(found.certificate), self._authorities, found.wall_us)
        said = (found.cluster, found.namespace, found.pod, found.pod_uid, found.identity, found.vkey)
        if said != (
            subject.cluster, subject.namespace, subject.pod, subject.pod_uid, subject.identity, subject.vkey,
        ):  # fmt: skip
            raise EvidenceError("its certificate belongs to another pod, identity or stream key")
        verifier = note.parse_vkey(found.vkey)
        if verifier.name != f"{found.cluster}/gateway/{found.pod_uid}":
            raise EvidenceError("its key is not named after the pod")
        self._verifier = verifier
        self._cluster = found.cluster
        self._clock_us = found.wall_us - found.mono_us
        self.report.opened = found

    def _intent(self, found: record.CommandIntent) -> None:
        report = self.report
        self._need_session(found.session)
        report.commands += 1
        if found.revision and len(report.revisions) < MAX_REVISIONS:
            report.revisions.setdefault(found.revision, found.seq)
        if found.decision == "Allow":
            if len(self._waiting) >= MAX_OPEN_INTENTS:
                raise EvidenceError("more commands are open than this program can keep")
            self._waiting[found.seq] = (found.session, found.command)
        else:
            report.denied += 1
        if isinstance(found.body, record.Commitment):
            commit = self._body(found.body, found)
            if found.body.size == found.size_bytes:
                report.texts.setdefault(commit, found.sha256)
        if isinstance(found.params, record.Commitment):
            self._body(found.params, found)

    def _chunk(self, found: record.RecordingChunk) -> None:
        self._need_session(found.session)
        expected = self._chunks.get(found.session, 0)
        if found.number != expected:
            raise EvidenceError(f"it says it is part {found.number} of its session's recording, which has {expected}")
        self._chunks[found.session] = expected + 1
        self._body(found.body, found)

    def _body(self, named: record.Commitment, by: record.Record) -> bytes:
        commit = canonical.decode_base64(named.commit)
        self.report.bodies.setdefault(commit, by.seq)
        self.report.named_us[commit] = by.wall_us
        self.report.sizes.setdefault(commit, named.size)
        return commit

    def _need_session(self, session: str) -> None:
        if not self._sessions.get(session, False):
            raise EvidenceError(f"its session {session} is not open")

    def _look_at_clock(self, found: record.Known) -> None:
        clock_us = found.wall_us - found.mono_us
        step_us = clock_us - self._clock_us
        self._clock_us = clock_us
        if not -CLOCK_STEP_US <= step_us <= CLOCK_STEP_US:
            self._remark(f"record {found.seq}: the gateway's clock was set by {step_us / 1e6:+.1f} s")

    def _head(self, header: bytes) -> None:
        if self._verifier is None:
            raise EvidenceError("the stream does not begin with stream.open")
        head = chain.parse_head(note.open_note(header, self._verifier))
        report = self.report
        if (head.cluster, head.stream) != (self._cluster, report.stream):
            raise EvidenceError("it is the head of another stream")
        if head.count != report.entries or head.link != report.link:
            raise EvidenceError(f"it signs {head.count} records with another last link than the {report.entries} here")
        if head.time_us < report.head_us:  # the chain says what came first; a clock may be set back
            back_s = (report.head_us - head.time_us) / 1e6
            self._remark(
                f"record {report.entries}: the time of this head is {back_s:.1f} s before that of the last one"
            )
        if report.head_us and head.time_us - report.head_us > SILENCE_US:
            silence_s = (head.time_us - report.head_us) // 1_000_000
            self._remark(f"record {report.entries}: no head was signed for {silence_s} s before this one")
        report.head_us = head.time_us
        self._is_closed = head.state == "closed"

    def _remark(self, text: str) -> None:
        if len(self.report.remarks) < MAX_LISTED:
            self.report.remarks.append(text)


class BodyVerifier:
    """Checks the bodies of one stream against the commitments in its records."""

    def __init__(self, report: StreamReport) -> None:
        self._report = report
        self._missing = dict(report.bodies)
        self._last_seq = -1  # the record that named the body before
        self.checked = 0

    def add(self, body: bytes) -> None:
        """Check one body (salt and plain text)."""
        report = self._report
        commit = entry.body_commit(body)
        seq = report.bodies.get(commit)
        if seq is None:
            if not report.bodies_unnamed:
                report.suspect = self._next_missing(len(body) - entry.SALT_BYTES)
            report.bodies_unnamed += 1
            return
        self._missing.pop(commit, None)
        self._last_seq = seq
        self.checked += 1
        expected = report.texts.get(commit)
        if expected is not None and hashlib.sha256(body[entry.SALT_BYTES :]).hexdigest() != expected:
            report.problems.append(Problem(report.stream, seq, "its hash is not that of the text kept"))

    def finish(self) -> None:
        """Write into the report what was found, when no body is left."""
        report = self._report
        report.bodies_checked = self.checked
        report.bodies_missing, report.missing = len(self._missing), self._missing
        report.missing_listed = sorted(set(self._missing.values()))[:MAX_LISTED]
        if report.bodies_unnamed and report.suspect not in self._missing.values():  # its text came later
            report.suspect = min(self._missing.values(), default=report.entries)

    def unreadable(self, problem: EvidenceError) -> None:
        """Note that the bodies end here because a frame cannot be read."""
        if isinstance(problem, Torn) and not self._missing:
            self._report.remarks.append("the last text was not written to its end; no record names it")
            return
        what = f"its text cannot be read, nor those after it: {problem}"
        self._report.problems.append(Problem(self._report.stream, self._next_missing(), what))

    def _next_missing(self, size: int = -1) -> int:
        """The record whose text should come next: bodies are kept in the order of the records that name them first.

        Some texts may be withheld; of those that are missing, one of that size is likelier to be the one that is here.
        """
        later = [(seq, commit) for commit, seq in self._missing.items() if seq > self._last_seq]
        fitting = [one for one in later if self._report.sizes.get(one[1]) == size]
        return min(fitting or later, default=(self._report.entries, b""))[0]


def verify_stream(
    stream: str, entries: Iterable[bytes], authorities: list[x509.Certificate], bodies: Iterable[bytes] | None = None
) -> StreamReport:
    """Check a stream, and the bodies kept beside it if there are any.

    The first bad record ends the stream and is the report's problem. Either iterable may raise `EvidenceError` where it
    cannot be read.
    """
    verifier = StreamVerifier(stream, authorities)
    report = verifier.report
    try:
        for data in entries:
            verifier.add(data)
    except EvidenceError as error:
        report.problems.append(Problem(stream, report.entries, str(error)))
        report.is_torn = isinstance(error, Torn)
    if report.entries == 0 and not report.problems:
        report.problems.append(Problem(stream, 0, "the stream is empty"))
    verifier.finish()
    if bodies is not None:
        checker = BodyVerifier(report)
        try:
            for body in bodies:
                checker.add(body)
        except EvidenceError as error:
            checker.unreadable(error)
        checker.finish()
    return report


def verify_ends(stream: str, entries: Iterable[bytes], authorities: list[x509.Certificate]) -> StreamReport:
    """Check a stream of which there are only the first record, the last head and, behind that, the last record."""
    verifier = StreamVerifier(stream, authorities)
    report = verifier.report
    try:
        for number, data in enumerate(entries):
            (verifier.jump if number else verifier.add)(data)
    except EvidenceError as error:
        report.problems.append(Problem(stream, report.entries, str(error)))
    if report.entries == 0 and not report.problems:
        report.problems.append(Problem(stream, 0, "the stream is empty"))
    report.remarks.append("its first record and its last head are here; what was recorded between them is not")
    return verifier.finish()
