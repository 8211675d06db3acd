"""`chaperone convert`: an evidence directory or bundle as lines of JSON for other people's systems, offline.

Each entry is verified before it is written. The first that does not hold ends the work: what stands before it is
written, and the place is named. Of texts only the trace is taken that a statement's comment names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from chaperone_cli.evidence import CannotVerify, Source, bodies, entries, open_source, segments
from chaperone_cli.policy_history import Texts
from chaperone_cli.say import progress, say
from chaperone_cli.verify import CANNOT, FINDINGS, OK, Trust, fingerprint, read_trust
from chaperone_evidence import entry, record
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.ocsf import Place, Records, place_of
from chaperone_evidence.stream import Problem, StreamVerifier
from chaperone_evidence.traceparent import Trace, of_statement

type Form = Literal["ocsf", "jsonl"]

FORMS: Final = ("ocsf", "jsonl")


class _Broken(Exception):
    """A stream does not hold at a place."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))


class _Line(msgspec.Struct, omit_defaults=True):
    """A record as it is, and where it stands; hashes are hex digits."""

    stream: str
    sequence: int
    link: str
    leaf_hash: str
    record: msgspec.Raw
    traceparent: str = ""


def run(evidence: Path, trust: Path | None, form: Form, output: Path | None) -> int:
    """Convert, and say what was written; returns the exit status."""
    written = 0
    try:
        with open_source(evidence) as source, _sink(output) as sink:
            anchor = read_trust(source, trust)
            _say_trust(anchor)
            for line in _lines(source, anchor, form):
                sink.write(line + b"\n")
                written += 1
    except _Broken as error:
        say(f"convert: FAILED at {error}; the {written} records before it are written", err=True)
        return FINDINGS
    except (CannotVerify, OSError) as error:
        say(f"convert: CANNOT CONVERT: {error} ({written} records were written)", err=True)
        return CANNOT
    say(f"convert: OK, {written} records", err=True)
    return OK


def _say_trust(trust: Trust) -> None:
    if trust.is_given:
        return
    for certificate in trust.authorities:
        say(f"trust: {certificate.subject.rfc4514_string()} SHA-256 {fingerprint(certificate)}", err=True)
    say("note: this gateway CA lay beside the evidence; give --trust to check against a copy of your own", err=True)


@contextmanager
def _sink(output: Path | None) -> Iterator[IO[bytes]]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Readable by its owner alone: records name people, and objects of databases.
    with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        yield file


def _lines(source: Source, trust: Trust, form: Form) -> Iterator[bytes]:
    names = segments(source)
    try:
        for number, (stream, (of_entries, of_bodies)) in enumerate(names.items(), 1):
            label = f"stream {number} of {len(names)}"
            verifier = StreamVerifier(stream, trust.authorities)
            texts = Texts(bodies(source, of_bodies, label))
            try:
                yield from _stream(entries(source, of_entries, label), verifier, texts, form)
            except EvidenceError as error:
                raise _Broken(Problem(stream, verifier.report.entries, str(error))) from error
            _say_end(verifier)
    finally:
        progress("")


def _stream(found: Iterator[bytes], verifier: StreamVerifier, texts: Texts, form: Form) -> Iterator[bytes]:
    report, reader = verifier.report, Records()
    for data in found:
        seq, before = report.entries, report.link
        verifier.add(data)
        kind, _, header = entry.split(data)
        if kind != entry.CLASS_RECORD:
            continue
        known = record.decode(header)
        trace = _trace(known, texts)
        place = place_of(report.stream, seq, before, data)
        event = reader.event(known, place, trace)
        trace = trace or reader.trace_of(getattr(known, "session", ""))
        yield msgspec.json.encode(event if form == "ocsf" else _line(place, trace))
    if not report.entries:
        raise EvidenceError("the stream is empty")


def _trace(found: record.Known | record.Unknown, texts: Texts) -> Trace | None:
    if isinstance(found, record.RecordingChunk):
        texts.take(found.body)
    if not isinstance(found, record.CommandIntent):
        return None
    text = texts.find(found.body)
    texts.find(found.params)
    return None if text is None else of_statement(text.decode(errors="replace"))


def _line(place: Place, trace: Trace | None) -> _Line:
    return _Line(
        place.stream, place.seq, place.link.hex(), place.leaf.hex(), msgspec.Raw(place.header),
        trace.header if trace else "",
    )  # fmt: skip


def _say_end(verifier: StreamVerifier) -> None:
    report = verifier.finish()
    if report.signed != report.entries:
        open_records = report.entries - report.signed
        say(f"note: stream {report.stream}: its last {open_records} records are not signed yet", err=True)
