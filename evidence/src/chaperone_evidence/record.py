"""The records of a stream (entries of class 1). Empty fields are left out of the header.

Times are `wall_us` (microseconds since 1970 by the gateway's clock) and `mono_us` (its monotonic clock).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from chaperone_evidence import canonical
from chaperone_evidence.errors import NotCanonical

type Integer = Annotated[int, msgspec.Meta(ge=-canonical.MAX_INTEGER, le=canonical.MAX_INTEGER)]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", gc=False):
    """What every record says."""

    seq: Integer
    wall_us: Integer
    mono_us: Integer


class StreamOpen(Record, frozen=True, kw_only=True, tag="stream.open"):
    """The first record: who writes this stream, and with which keys."""

    stream: str
    cluster: str
    namespace: str
    pod: str
    pod_uid: str
    identity: str
    vkey: str
    certificate: str  # DER, base64; binds vkey and pod to the gateway CA
    node: str = ""
    service_account: str = ""
    identity_uid: str = ""
    owner: str = ""
    gateway_version: str = ""
    durability: str = ""
    revision: str = ""
    policy_serial: Integer = 0  # of the operator's note on it; 0 where nobody signs policy, as in development
    previous: str = ""  # the stream of the process before this one in the same pod
    previous_link: str = ""  # base64 of its last link


class StreamClose(Record, frozen=True, kw_only=True, tag="stream.close"):
    """The last record of a gateway that stops in order."""

    reason: str


class Delegated(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The person on whose behalf the agent acts, as the issuer's token said."""

    issuer: str
    subject: str
    email: str = ""


class SessionOpen(Record, frozen=True, kw_only=True, tag="session.open"):
    """A client is connected to a backend."""

    session: str
    target: str
    protocol: str
    client: str = ""
    upstream: str = ""
    user: str = ""  # as the client named itself; the backend's user is the credential's
    database: str = ""
    application: str = ""
    role: str = ""  # the backend's user, under which its own counters count
    delegated: Delegated | msgspec.UnsetType = msgspec.UNSET


class SessionClose(Record, frozen=True, kw_only=True, tag="session.close"):
    """A client's connection ended."""

    session: str
    reason: str
    commands: Integer = 0
    denied: Integer = 0
    bytes_in: Integer = 0
    bytes_out: Integer = 0


class AccessEntry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One effect on one object; `through` names the object of the command that leads to it, where it is implied."""

    effect: str
    object: str = ""
    through: str = ""


class Commitment(msgspec.Struct, frozen=True, gc=False):
    """What a record holds of a body."""

    commit: str  # base64 of the commitment
    size: Integer  # bytes of the plain text that is kept
    alg: Literal["sha256-salted"] = "sha256-salted"


class Use(msgspec.Struct, frozen=True, gc=False):
    """How often a rule that may be used only so often had been used."""

    rule: str
    count: Integer


class Circumstances(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a decision depended on beside what the command does: whoever asks policy again has to say the same."""

    minute: Integer | msgspec.UnsetType = msgspec.UNSET  # since 1970, that was asked about
    rows: Integer | msgspec.UnsetType = msgspec.UNSET  # the backend's estimate
    uses: tuple[Use, ...] = ()


class CommandIntent(Record, frozen=True, kw_only=True, tag="command.intent"):
    """A command is about to reach the backend, or was refused."""

    session: str
    command: str
    target: str
    kind: str
    decision: str
    sha256: str  # of the text as it is kept
    size_bytes: Integer
    accesses: tuple[AccessEntry, ...] = ()
    resolution: str = ""
    policy: str = ""
    rule: str = ""
    revision: str = ""
    approval: str = ""  # the request by which people allowed it
    would: str = ""  # the action, if policies that are only observed were in force and it were another; and whose
    would_policy: str = ""
    would_rule: str = ""
    in_transaction: bool = False
    statements: Integer = 1  # that the backend begins to run by it and counts; -1: not known
    is_masked: bool = (
        False  # text and parameters as kept lack values that masks hide; hash and size are of what is kept
    )
    body: Commitment | msgspec.UnsetType = msgspec.UNSET
    params: Commitment | msgspec.UnsetType = msgspec.UNSET  # of the bound parameters as sent
    subject: str = ""  # on whose behalf; the session's `delegated` says more
    circumstances: Circumstances | msgspec.UnsetType = msgspec.UNSET  # where it depended on any


class CommandOutcome(Record, frozen=True, kw_only=True, tag="command.outcome"):
    """How a command ended."""

    session: str
    command: str
    ref: Integer  # seq of the intent
    status: str  # ok, error, refused, aborted
    code: str = ""
    rows: Integer = 0
    bytes: Integer = 0
    duration_us: Integer = 0
    subject: str = ""


class RecordingChunk(Record, frozen=True, kw_only=True, tag="recording.chunk"):
    """Part of what the client was shown, written before it was; frames.py says what the body holds.

    `number` counts the session's chunks from 0. The times are of its first and last frame, since the session was opened
    by the monotonic clock.
    """

    session: str
    number: Integer = 0
    frames: Integer = 0
    first_us: Integer = 0
    last_us: Integer = 0
    codec: str
    body: Commitment  # over the bytes as they are kept: compressed
    command: str = ""  # what was shown belongs to none


class ApprovalRequest(Record, frozen=True, kw_only=True, tag="approval.request"):
    """A command waits for people; `binding` is what their word will be bound to."""

    session: str
    approval: str
    target: str
    binding: str
    policy: str
    rule: str
    revision: str
    accesses: tuple[AccessEntry, ...] = ()
    subject: str = ""  # on whose behalf


class ApprovalOutcome(Record, frozen=True, kw_only=True, tag="approval.outcome"):
    """What came of the wait in this session.

    Used is an approval that the next intent names; Approved, one that could not be used; Pending, none in time.
    """

    session: str
    approval: str
    state: str
    message: str = ""  # who decided, and why


class IdentitySuspension(Record, frozen=True, kw_only=True, tag="identity.suspension"):
    """Every access of the agent was taken away (Suspended), or given again (Resumed)."""

    state: str
    by: str = ""  # the user, as the API server names it
    at: str = ""  # RFC 3339, of the API server's side
    reason: str = ""
    revision: str = ""
    sessions: Integer = 0  # that were open, and are cut


class EgressDenied(Record, frozen=True, kw_only=True, tag="egress.denied"):
    """Connections to a destination that no target declares; or to a target, by a suspended agent or without a user."""

    network: str
    address: str
    port: Integer
    reason: str
    count: Integer = 1


class DnsDenied(Record, frozen=True, kw_only=True, tag="dns.denied"):
    """Questions for a name that no target declares."""

    name: str
    qtype: str
    count: Integer = 1


class Unknown(msgspec.Struct, frozen=True):
    """A record of a type that this version does not know; its header is still covered by the chain."""

    type: str
    seq: int


type Known = (
    StreamOpen
    | StreamClose
    | SessionOpen
    | SessionClose
    | CommandIntent
    | CommandOutcome
    | RecordingChunk
    | ApprovalRequest
    | ApprovalOutcome
    | IdentitySuspension
    | EgressDenied
    | DnsDenied
)

_decoder: Final[msgspec.json.Decoder[Known]] = msgspec.json.Decoder(Known.__value__)


def commitments(found: Known | Unknown) -> tuple[Commitment, ...]:
    """The bodies that a record names."""
    match found:
        case CommandIntent(body=body, params=params):
            return tuple(one for one in (body, params) if isinstance(one, Commitment))
        case RecordingChunk(body=body):
            return (body,)
    return ()


def decode(header: bytes) -> Known | Unknown:
    """Read a canonical header.

    Raises:
        NotCanonical: the header is not canonical, or a known type lacks or mistypes a field.
    """
    try:
        likely: Known = _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # an unknown type, or wrong: said below
        return _decode_slowly(header)
    # What encodes to the same bytes from typed fields is canonical. What does not may still be (a default that was
    # written out), and is rare enough to be looked at value by value.
    return likely if canonical.encode(likely) == header else _decode_slowly(header)


def _decode_slowly(header: bytes) -> Known | Unknown:
    value = canonical.decode(header)
    kind, seq = value.get("type"), value.get("seq")
    if not isinstance(kind, str) or not isinstance(seq, int) or isinstance(seq, bool):
        raise NotCanonical("The header names neither its type nor its sequence number.")
    try:
        known: Known = _decoder.decode(header)
    except msgspec.ValidationError as error:
        if kind in TYPES:
            raise NotCanonical(f"The record {kind} is not well formed: {error}.") from error
        return Unknown(kind, seq)
    return known


TYPES: Final = frozenset(
    {
        "stream.open",
        "stream.close",
        "session.open",
        "session.close",
        "command.intent",
        "command.outcome",
        "recording.chunk",
        "approval.request",
        "approval.outcome",
        "identity.suspension",
        "egress.denied",
        "dns.denied",
    }
)
