"""What a session did and what was shown in it, read from a bundle or from the cluster, as one sequence of items.

From a bundle each record is verified before it is given on, and a text or a part of a recording is the one that its
record commits to, or it is not here. From the cluster the collector is believed: `chaperone export` is the other way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, Any, Final

import msgspec

from chaperone_cli.evidence import Source, bodies, entries, proofs, segments
from chaperone_cli.kubectl import EVIDENCE_PATH, CannotAsk, Cluster, pipe, place
from chaperone_cli.policy_history import Texts
from chaperone_cli.say import progress
from chaperone_cli.verify import Trust
from chaperone_evidence import entry, frames, record, ulid
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.stream import Problem, StreamReport, StreamVerifier
from chaperone_evidence.verify import Verdict, find_in_log, join

MAX_ANSWER_BYTES: Final = 16 << 30  # of a recording: hours of results at their limit
ANSWER_TIMEOUT_S: Final = 3600.0
MAX_LINE_BYTES: Final = 16 << 20  # a statement of 1 MiB with its parameters, both at their worst in JSON


class Broken(Exception):
    """A stream does not hold at a place; nothing after it is given on."""


class NoSession(Exception):
    """There is no such session in a bundle."""


class Head(msgspec.Struct, frozen=True):
    """Who acted."""

    session: str
    namespace: str
    identity: str
    owner: str
    pod: str
    stream: str


class Item(msgspec.Struct, frozen=True):
    """A record of the session. Texts are None where they are not here; `problem` says why a chunk has no frames."""

    record: record.Known | record.Unknown
    text: bytes | None = None
    params: bytes | None = None
    frames: tuple[frames.Known, ...] = ()
    problem: str = ""


class Bundle:
    """A session in an evidence directory or bundle.

    Args:
        source: where the evidence is.
        trust: the gateway's CA, and the log's keys if the log is to be looked at.
        session: its id.
    """

    def __init__(self, source: Source, trust: Trust, session: str) -> None:
        self._source = source
        self._trust = trust
        self._session = session
        self.head: Head | None = None
        self.verdict: Verdict | None = None  # when everything was read

    def __iter__(self) -> Iterator[Item]:
        """Items in the order of the stream.

        Raises:
            Broken: a record does not hold. NoSession. CannotVerify: the files are no evidence.
        """
        names, in_log = segments(self._source), proofs(self._source)
        reports: list[StreamReport] = []
        try:
            for number, (stream, (of_entries, of_bodies)) in enumerate(names.items(), 1):
                label = f"stream {number} of {len(names)}"
                verifier = StreamVerifier(stream, self._trust.authorities)
                texts = Texts(bodies(self._source, of_bodies, label))
                try:
                    yield from self._stream(entries(self._source, of_entries, label), verifier, texts)
                except EvidenceError as error:
                    raise Broken(str(Problem(stream, verifier.report.entries, str(error)))) from error
                report = verifier.finish()
                if self._trust.log is not None:
                    find_in_log(report, in_log.get(stream), self._trust.log)
                reports.append(report)
        finally:
            progress("")
        if self.head is None:
            raise NoSession(f"There is no session {self._session} here.")
        self.verdict = join(reports)

    def _stream(self, found: Iterator[bytes], verifier: StreamVerifier, texts: Texts) -> Iterator[Item]:
        for data in found:
            verifier.add(data)
            kind, _, header = entry.split(data)
            if kind != entry.CLASS_RECORD:
                continue
            known = record.decode(header)
            item = _item(known, texts)
            if getattr(known, "session", "") != self._session:
                continue
            opened = verifier.report.opened
            if self.head is None and opened is not None:
                self.head = Head(
                    self._session, opened.namespace, opened.identity, opened.owner, opened.pod, opened.stream
                )
            yield item


def _item(known: record.Known | record.Unknown, texts: Texts) -> Item:
    if isinstance(known, record.CommandIntent):
        return Item(known, texts.find(known.body), texts.find(known.params))
    if not isinstance(known, record.RecordingChunk):
        return Item(known)
    body = texts.take(known.body)
    if body is None:
        return Item(known, problem="its body is not here")
    try:
        return Item(known, frames=tuple(frames.read(body, known)))
    except EvidenceError as error:  # it is what the gateway recorded all the same
        return Item(known, problem=str(error))


class Served:
    """A session as the collector serves it.

    Args:
        file: the answer of `sessions/recording`.
        session: its id.
    """

    def __init__(self, file: IO[bytes], session: str) -> None:
        self._file = file
        try:
            found: dict[str, Any] = msgspec.json.decode(file.readline(MAX_LINE_BYTES))["session"]
            spec = found["spec"]
            self.head = Head(
                session, found["metadata"]["namespace"], spec["identity"], spec.get("owner", ""), spec.get("pod", ""),
                spec.get("stream", ""),
            )  # fmt: skip
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise CannotAsk("The collector's answer cannot be read.") from error

    def __iter__(self) -> Iterator[Item]:
        """Items in the order of the log.

        Raises:
            CannotAsk: the answer is cut or cannot be read.
        """
        line = self._file.readline(MAX_LINE_BYTES)
        while line:
            try:
                said = _line.decode(line)
                known = record.decode(bytes(said.record))
                shown: list[frames.Known] = []
                expected = known.frames if isinstance(known, record.RecordingChunk) and not said.problem else 0
                line = self._file.readline(MAX_LINE_BYTES)
                while line and len(shown) < expected and not line.startswith(b'{"kind":"record"'):
                    shown.append(frames.decode(line.rstrip(b"\n")))
                    line = self._file.readline(MAX_LINE_BYTES)
            except (msgspec.DecodeError, EvidenceError) as error:
                raise CannotAsk(f"The collector's answer cannot be read: {error}") from error
            is_body_here = isinstance(known, record.CommandIntent) and "text" in said.texts
            yield Item(
                known, said.texts["text"] if is_body_here else None, said.texts.get("params"), tuple(shown),
                said.problem,
            )  # fmt: skip


class _Line(msgspec.Struct, tag="record", tag_field="kind"):
    index: int
    record: msgspec.Raw
    texts: dict[str, bytes] = {}
    problem: str = ""


_line: Final = msgspec.json.Decoder(_Line)


def fetch(cluster: Cluster, namespace: str, session: str, file: IO[bytes], from_s: float = 0) -> Served:
    """Ask the cluster for a session; `file` holds the answer.

    Raises:
        CannotAsk: kubectl fails, or the answer cannot be read.
    """
    if not ulid.is_ulid(session):
        raise CannotAsk(f'"{session}" is not the name of a session.')
    path = f"{EVIDENCE_PATH}/namespaces/{place(cluster, namespace)}/sessions/{session}/recording"
    query = f"?from={from_s:.6f}" if from_s else ""
    pipe(cluster.command("get", "--raw", path + query), file, MAX_ANSWER_BYTES, ANSWER_TIMEOUT_S)
    file.seek(0)
    return Served(file, session)


def temporary() -> IO[bytes]:
    """Where an answer is kept while it is read; it is gone with its last reader."""
    return tempfile.TemporaryFile()
