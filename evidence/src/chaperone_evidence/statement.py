"""What the log's own keeper says: entries without a stream, so that their link is 32 zeros.

They stand between the records of gateways in the one tree, and are signed with it by the next checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from chaperone_evidence import canonical
from chaperone_evidence.entry import LINK_BYTES, MAX_ENTRY_BYTES, PREFIX_BYTES, Entry
from chaperone_evidence.errors import NotCanonical
from chaperone_evidence.record import Commitment, Integer

CLASS_POPULATION: Final = 3
CLASS_STATEMENT: Final = 4
CLASS_POLICY: Final = 5
CLASS_READ: Final = 6
CLASS_OPERATION: Final = 8
CLASS_ERASURE: Final = 9
NO_LINK: Final = bytes(LINK_BYTES)
MAX_HEADER_BYTES: Final = MAX_ENTRY_BYTES - PREFIX_BYTES


class Statement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", gc=False):
    """What every statement says: when, in microseconds since 1970 by the keeper's clock."""

    wall_us: Integer


class EvidenceRead(Statement, frozen=True, kw_only=True, tag="evidence.read"):
    """Somebody read evidence: class 6. Written before the answer was given."""

    user: str
    verb: str
    resource: str  # with its subresource, as Kubernetes names them
    rows: Integer  # objects that were given
    groups: list[str] = msgspec.field(default_factory=list)
    namespace: str = ""  # empty: all
    name: str = ""
    query: str = ""  # as it was sent; its end may be cut


class StreamLost(Statement, frozen=True, kw_only=True, tag="stream.lost"):
    """A gateway fell silent and left its stream without an end: class 4.

    What it recorded and never sent is not here; `count` and `link` say up to where everything is.
    """

    stream: str
    namespace: str
    pod: str
    pod_uid: str
    count: Integer  # records of it that the keeper has
    link: str  # base64, of the last of them
    seen_us: Integer  # when the last of them came, by the keeper's clock


class PopulationEpoch(Statement, frozen=True, kw_only=True, tag="population.epoch"):
    """The operator named the pods of a namespace (`population.py`): class 3. The body is its note."""

    namespace: str
    epoch: Integer
    previous: str  # base64, the hash of the note before
    count: Integer  # pods that it names, those that ended not counted
    body: Commitment


class PolicyRevision(Statement, frozen=True, kw_only=True, tag="policy.revision"):
    """Policy came into force (`revision.py`): class 5. The bodies are what the operator made and signed."""

    namespace: str
    revision: str
    serial: Integer
    identities: Integer  # that have a signed configuration in it
    bundle_sha256: str  # hex, of the bundle's content; notes name it
    bundle: Commitment
    gateway: Commitment
    notes: Commitment


class DrillAttempt(msgspec.Struct, frozen=True, gc=False):
    """Something that a bucket has to refuse, and what it answered."""

    action: str
    answer: str  # its error code; "done" where it did it
    refused: bool


class WormDrill(Statement, frozen=True, kw_only=True, tag="worm.drill"):
    """The keeper tried to delete and change a probe in the bucket that holds the log's second copy: class 8."""

    endpoint: str
    bucket: str
    mode: str  # COMPLIANCE or GOVERNANCE
    enforced: bool  # everything was refused, and the probe is what it was
    attempts: list[DrillAttempt]


class BodiesErased(Statement, frozen=True, kw_only=True, tag="bodies.erased"):
    """Texts of an identity were erased in the transaction that wrote this: class 9.

    They are those of sessions whose last record came before `until_us` by the keeper's clock. Who has the records can
    make `hash` again from what they commit to (`erased_hash`).
    """

    namespace: str
    identity: str
    until_us: Integer
    count: Integer
    hash: str  # base64, of the texts' commitments
    retention_days: Integer  # what the operator asked for, in the population of this epoch
    minimum_days: Integer  # what the keeper was told to keep at least; the longer of both was in force
    epoch: Integer


class ReportMade(Statement, frozen=True, kw_only=True, tag="report.made"):
    """The keeper stated, for a day or a month that is over, what its log holds of it: class 8. The body is the report.

    It is about the entries from `first` to before `end`, and rests on the checkpoint of `size` entries.
    """

    kind: str  # Daily or Monthly
    period: str  # 2026-11-26 or 2026-11, in UTC by the keeper's clock
    first: Integer
    end: Integer
    size: Integer
    root: str  # base64
    exceptions: Integer
    sha256: str  # hex, of the report alone
    body: Commitment


type Known = EvidenceRead | StreamLost | PopulationEpoch | PolicyRevision | WormDrill | BodiesErased | ReportMade

_ERASED_DOMAIN: Final = b"chaperone.dev/erased/v1\n"
_decoder: Final[msgspec.json.Decoder[Known]] = msgspec.json.Decoder(Known.__value__)
_CLASSES: Final[dict[type[Known], int]] = {
    EvidenceRead: CLASS_READ, StreamLost: CLASS_STATEMENT, PopulationEpoch: CLASS_POPULATION,
    PolicyRevision: CLASS_POLICY, BodiesErased: CLASS_ERASURE,
    WormDrill: CLASS_OPERATION, ReportMade: CLASS_OPERATION,
}  # fmt: skip


def erased_hash(commits: Iterable[bytes]) -> bytes:
    """By what a certificate names the texts that were erased: SHA-256 over their commitments in order."""
    return hashlib.sha256(b"".join((_ERASED_DOMAIN, *sorted(commits)))).digest()


def encode(said: Known) -> Entry:
    """The entry of a statement.

    Raises:
        UnicodeEncodeError: a string holds half of a surrogate pair.
    """
    return Entry(_CLASSES[type(said)], NO_LINK, canonical.encode(said))


def decode(found: Entry) -> Known:
    """Read a statement.

    Raises:
        NotCanonical: its header is not in the one form, is no statement, or stands in another's class.
    """
    canonical.decode(found.header)
    try:
        said: Known = _decoder.decode(found.header)
    except (msgspec.DecodeError, ValueError) as error:
        raise NotCanonical(f"The entry is no statement: {error}.") from error
    if _CLASSES[type(said)] != found.cls or found.link != NO_LINK:
        raise NotCanonical("The statement stands in an entry of another kind.")
    return said
