"""What evidence tells of commands: each intent with its session, and with its text where that is kept.

Streams are read once, from their beginning to their end. Texts are kept in the order in which records name them first,
so records and texts are joined as they are read; of texts that records name again the last ones are remembered.
Nothing is verified here: that is what `chaperone verify` is for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final

import msgspec

from chaperone_cli.evidence import Source, bodies, entries, segments
from chaperone_cli.say import progress
from chaperone_evidence import canonical, entry, record
from chaperone_evidence.errors import EvidenceError

MAX_TEXT_BYTES: Final = 64 << 20  # of texts that may be named again; a gateway remembers 256 of a session
MAX_SESSIONS: Final = 100_000  # of one stream that are open


class Seen(msgspec.Struct, frozen=True, gc=False):
    """A command, as evidence has it; `text` is None where it is not kept, or not here."""

    namespace: str
    identity: str
    protocol: str
    intent: record.CommandIntent
    text: bytes | None
    stream: str = ""


class History:
    """The commands of evidence.

    Args:
        source: where the evidence is.
        has_texts: whether texts are read, too.
    """

    def __init__(self, source: Source, *, has_texts: bool) -> None:
        self._source = source
        self._has_texts = has_texts
        self.faults: list[str] = []  # streams that could not be read to their end, and why

    def __iter__(self) -> Iterator[Seen]:
        names = segments(self._source)
        try:
            for number, (stream, (of_entries, of_bodies)) in enumerate(names.items(), 1):
                label = f"stream {number} of {len(names)}"
                texts = Texts(bodies(self._source, of_bodies, label) if self._has_texts else iter(()))
                try:
                    yield from self._stream(stream, entries(self._source, of_entries, label), texts)
                except EvidenceError as error:
                    self.faults.append(f"stream {stream} is read up to here only: {error}")
        finally:
            progress("")

    def _stream(self, stream: str, found: Iterator[bytes], texts: Texts) -> Iterator[Seen]:
        opened: record.StreamOpen | None = None
        protocols: OrderedDict[str, str] = OrderedDict()
        for data in found:
            kind, _, header = entry.split(data)
            if kind != entry.CLASS_RECORD:
                continue
            match record.decode(header):
                case record.StreamOpen() as first:
                    opened = first
                case record.SessionOpen(session=session, protocol=protocol):
                    protocols[session] = protocol
                    if len(protocols) > MAX_SESSIONS:
                        protocols.popitem(last=False)
                case record.SessionClose(session=session):
                    protocols.pop(session, None)
                case record.CommandIntent() as intent if opened is not None:
                    text = texts.find(intent.body)
                    texts.find(intent.params)
                    protocol = protocols.get(intent.session, "")
                    yield Seen(opened.namespace, opened.identity, protocol, intent, text, stream)
                case record.RecordingChunk(body=body):
                    texts.take(body)
                case _:
                    pass


class Texts:
    """The texts of one stream, found in the order in which they are named."""

    def __init__(self, found: Iterator[bytes]) -> None:
        self._found = found
        self._next: tuple[bytes, bytes] | None = None
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._size_bytes = 0

    def find(self, named: record.Commitment | msgspec.UnsetType) -> bytes | None:
        """A text, None when it is not here."""
        if isinstance(named, msgspec.UnsetType):
            return None
        commit = canonical.decode_base64(named.commit)
        kept = self._kept.get(commit)
        if kept is not None:
            self._kept.move_to_end(commit)
            return kept
        text = self.take(named)
        if text is None:
            return None
        self._kept[commit] = text
        self._size_bytes += len(text)
        while self._size_bytes > MAX_TEXT_BYTES:
            self._size_bytes -= len(self._kept.popitem(last=False)[1])
        return text

    def take(self, named: record.Commitment) -> bytes | None:
        """A body that no later record names again, as parts of recordings; None when it is not here."""
        if self._next is None:
            self._next = self._take()
        if self._next is None or self._next[0] != canonical.decode_base64(named.commit):
            return None
        (_, body), self._next = self._next, None
        return body

    def _take(self) -> tuple[bytes, bytes] | None:
        body = next(self._found, None)
        return None if body is None else (entry.body_commit(body), body[entry.SALT_BYTES :])


class Tally:
    """How often each of a few things happened, and of too many different ones how many more there were."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.counts: Counter[str] = Counter()

    def add(self, what: str) -> None:
        """Count it."""
        if what in self.counts or len(self.counts) < self._limit:
            self.counts[what] += 1
        else:
            self.counts["other reasons"] += 1
