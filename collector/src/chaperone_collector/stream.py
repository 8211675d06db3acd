"""Does a batch continue its stream? Pure: bytes and what is stored in, entries or a refusal out.

What breaks the chain is refused, because nothing after it could be trusted: a wrong number, a link that does not
follow, a head that the stream's key did not sign, anything after the signed end. What is only badly *said* (a header
that is not canonical, a record that lacks a field, an unknown type) is stored in its place with a finding: the command
that it speaks of has happened, and the chain goes on through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from cryptography import x509

from chaperone_collector.errors import ChainBroken
from chaperone_evidence import canonical, chain, entry, note, record
from chaperone_evidence.certificate import Subject, check_issued, read_subject
from chaperone_evidence.errors import EvidenceError, NotCanonical
from chaperone_evidence.ulid import is_ulid

_RECORD_PREFIX: Final = bytes((entry.VERSION, entry.CLASS_RECORD))
_MAX_FINDING_CHARS: Final = 300


class Stored(msgspec.Struct):
    """The end of a stream as it is stored; `id` is 0 for a stream that is not stored yet."""

    name: str
    id: int
    count: int
    link: bytes
    pod_uid: str
    cluster: str
    verifier: note.Verifier | None
    is_closed: bool
    head_us: int

    @property
    def acked(self) -> int:
        """The highest sequence number stored; −1 for none."""
        return self.count - 1


class Checked(msgspec.Struct, gc=False):
    """One entry that continues its stream."""

    cls: int
    data: bytes
    record: record.Known | record.Unknown | None  # None: a head, or a header that cannot be read
    head: chain.Head | None
    flaw: str  # what is wrong with what it says; empty for nothing


class Extension(msgspec.Struct):
    """A batch that was found good, and the stream's end after it."""

    before: Stored
    after: Stored
    entries: list[Checked]
    opened: record.StreamOpen | None
    subject: Subject


def unknown(name: str) -> Stored:
    """The state of a stream of which nothing is stored."""
    return Stored(name, 0, 0, chain.first_link(name), "", "", None, False, 0)


def extend(
    stored: Stored, batch: Iterable[bytes], subject: Subject, authorities: list[x509.Certificate] | None
) -> Extension:
    """Check entries that should follow `stored`, sent by the pod that `subject` names.

    Without `authorities` nobody is asked who issued the stream's certificate: that was done when the log took it in.

    Raises:
        ChainBroken: an entry does not belong here; nothing of the batch is to be stored.
    """
    after = msgspec.structs.replace(stored)
    result = Extension(stored, after, [], None, subject)
    for data in batch:
        if after.is_closed:
            raise ChainBroken("closed", f"Record {after.count} comes after the stream's signed end.")
        checked = _check(after, data)
        if checked.cls == entry.CLASS_HEAD:
            _head(after, checked, data[entry.PREFIX_BYTES :])
        elif after.count == 0:
            result.opened = _open(after, checked, subject, authorities)
        elif isinstance(checked.record, record.StreamOpen):
            raise ChainBroken("open", f"Record {after.count} opens a stream that is open.")
        after.count += 1
        after.link = data[2 : entry.PREFIX_BYTES]
        result.entries.append(checked)
    return result


def _check(state: Stored, data: bytes) -> Checked:
    if not entry.PREFIX_BYTES < len(data) <= entry.MAX_ENTRY_BYTES:
        raise ChainBroken("link", f"Record {state.count} has an impossible length of {len(data)} bytes.")
    if data[0] != entry.VERSION or data[1] not in (entry.CLASS_RECORD, entry.CLASS_HEAD):
        raise ChainBroken("link", f"Record {state.count} has a version or class that this collector does not know.")
    header = data[entry.PREFIX_BYTES :]
    if not chain.follows(state.link, data):
        raise ChainBroken("link", f"The link of record {state.count} does not follow from the record before it.")
    if data[1] == entry.CLASS_HEAD:
        return Checked(entry.CLASS_HEAD, data, None, None, "")
    try:
        found = record.decode(header)
    except NotCanonical as error:
        return Checked(entry.CLASS_RECORD, data, None, None, str(error)[:_MAX_FINDING_CHARS])
    if found.seq != state.count:
        raise ChainBroken("sequence", f"Record {state.count} says that it is number {found.seq}.")
    flaw = f"The type {found.type[:40]} is not known." if isinstance(found, record.Unknown) else ""
    return Checked(entry.CLASS_RECORD, data, found, None, flaw)


def _head(state: Stored, checked: Checked, header: bytes) -> None:
    if state.verifier is None:
        raise ChainBroken("open", "The stream does not begin with stream.open.")
    try:
        head = chain.parse_head(note.open_note(header, state.verifier))
    except (EvidenceError, ValueError) as error:
        raise ChainBroken("head", f"The head at {state.count} is refused: {error}") from error
    if (head.cluster, head.stream) != (state.cluster, state.name):
        raise ChainBroken("head", f"The head at {state.count} is that of another stream.")
    if head.count != state.count or head.link != state.link:
        raise ChainBroken("head", f"The head at {state.count} does not sign the records before it.")
    if head.time_us < state.head_us:
        checked.flaw = "The head's time is before that of the head before it."
    state.head_us = max(state.head_us, head.time_us)
    state.is_closed = head.state == "closed"
    checked.head = head


def _open(
    state: Stored, checked: Checked, subject: Subject, authorities: list[x509.Certificate] | None
) -> record.StreamOpen:
    """Bind the stream to its pod and key.

    The certificate inside the record proves the key. The one of the connection proves the pod: after a restart the new
    process, with a new key, ships what its predecessor in the same pod left.
    """
    opened = checked.record
    if not isinstance(opened, record.StreamOpen):
        raise ChainBroken("open", "The stream does not begin with a well-formed stream.open." + checked.flaw)
    if opened.stream != state.name or not is_ulid(opened.stream):
        raise ChainBroken("open", f"The first record opens stream {opened.stream[:40]}.")
    try:
        der = canonical.decode_base64(opened.certificate)
        if authorities is None:
            bound = read_subject(x509.load_der_x509_certificate(der))
        else:
            bound = check_issued(der, authorities, opened.wall_us)
        verifier = note.parse_vkey(opened.vkey)
    except (EvidenceError, ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ChainBroken("open", f"The certificate or key in the first record is refused: {error}") from error
    said = (opened.cluster, opened.namespace, opened.pod, opened.pod_uid, opened.identity)
    if (*said, opened.vkey) != (
        bound.cluster, bound.namespace, bound.pod, bound.pod_uid, bound.identity, bound.vkey,
    ):  # fmt: skip
        raise ChainBroken("open", "The first record names another pod, identity or key than its certificate.")
    if said != (subject.cluster, subject.namespace, subject.pod, subject.pod_uid, subject.identity):
        raise ChainBroken("open", "The first record names another pod or identity than the connection's certificate.")
    if verifier.name != f"{opened.cluster}/gateway/{opened.pod_uid}":
        raise ChainBroken("open", "The stream's key is not named after its pod.")
    state.verifier, state.cluster, state.pod_uid = verifier, opened.cluster, opened.pod_uid
    return opened
