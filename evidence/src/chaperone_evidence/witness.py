"""What a log says to a witness, and how a witness judges it (C2SP tlog-witness, `add-checkpoint`).

request = `old` SP size LF ‖ up to 63 base64 hashes, one a line ‖ LF ‖ the signed checkpoint. A witness keeps, for each
log, size and root of the last checkpoint that it signed. `judge` is its decision as a function: the caller reads that
state, judges, and stores the new one **before** it answers, all under one lock; else two requests at once could take
the log back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from chaperone_evidence import merkle, note
from chaperone_evidence.checkpoint import Checkpoint, parse_body
from chaperone_evidence.cosignature import TIMED, CheckpointSigner, Key
from chaperone_evidence.errors import BadProof, BadSignature, Malformed
from chaperone_evidence.policy import MAX_SIGNATURES, Signed, verify_signatures
from chaperone_evidence.proof import decode_hashes, encode_hashes

MAX_HASHES: Final = 63
MAX_REQUEST_BYTES: Final = 45 * MAX_HASHES + 32 + note.MAX_NOTE_BYTES
MAX_ANSWER_BYTES: Final = note.MAX_NOTE_BYTES
SIZE_MEDIA_TYPE: Final = "text/x.tlog.size"  # of the answer with status 409

type Status = Literal[200, 400, 403, 404, 409, 422]

_FORM: Final = re.compile(r"old (0|[1-9][0-9]{0,18})\n((?:[A-Za-z0-9+/]{43}=\n){0,63})\n", re.ASCII)


class AddCheckpoint(msgspec.Struct, frozen=True, gc=False):
    """A log's request: it has grown from `old` entries, here is the proof and its signed checkpoint."""

    old: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The request's body."""
        return f"old {self.old}\n{encode_hashes(self.hashes)}\n".encode() + self.checkpoint


class Seen(msgspec.Struct, frozen=True, gc=False):
    """The last checkpoint of one log that a witness has signed."""

    size: int
    root: bytes


class Judgement(msgspec.Struct, frozen=True, gc=False):
    """The answer of a witness. With status 200 the checkpoint is to be stored, then signed; else nothing changes.

    Attributes:
        status: of HTTP.
        why: one sentence for people, empty with 200.
        checkpoint: with 200.
        seen_size: with 409, what the body of the answer says: the size that the witness has seen.
    """

    status: Status
    why: str = ""
    checkpoint: Checkpoint | None = None
    seen_size: int | None = None

    @property
    def seen(self) -> Seen | None:
        """The state to store, with status 200."""
        return Seen(self.checkpoint.size, self.checkpoint.root) if self.checkpoint else None


def parse_request(data: bytes) -> AddCheckpoint:
    """Read a request.

    Raises:
        Malformed: not a request, or larger than one can be.
    """
    match = _FORM.match(data.decode("latin-1")) if len(data) <= MAX_REQUEST_BYTES else None
    if match is None:
        raise Malformed("The request does not have the form of add-checkpoint.")
    return AddCheckpoint(int(match[1]), decode_hashes(match[2]), data[match.end() :])


def judge(data: bytes, logs: Mapping[str, tuple[Key, ...]], seen: Mapping[str, Seen]) -> Judgement:
    """Decide on a request.

    Args:
        data: the request's body.
        logs: the keys of each log that the witness knows, by origin.
        seen: what it has signed last, by origin.
    """
    try:
        request = parse_request(data)
        parts = note.parse(request.checkpoint, MAX_SIGNATURES)
        checkpoint = parse_body(parts.body)
    except Malformed as error:
        return Judgement(400, str(error))
    keys = logs.get(checkpoint.origin)
    if keys is None:
        return Judgement(404, "The log is not known here.")
    try:
        signed = verify_signatures(checkpoint, parts.signatures, keys)
    except BadSignature as error:
        return Judgement(403, str(error))
    if not signed:
        return Judgement(403, "No known key of the log has signed the checkpoint.")
    if request.old > checkpoint.size:
        return Judgement(400, "The old size is above that of the checkpoint.")
    last = seen.get(checkpoint.origin, Seen(0, merkle.EMPTY_ROOT))
    if request.old != last.size:
        return Judgement(409, "The old size is not that of the last checkpoint seen.", seen_size=last.size)
    try:
        _need_growth(request, checkpoint, last)
    except BadProof as error:
        return Judgement(422, str(error))
    return Judgement(200, checkpoint=checkpoint)


def cosign(checkpoint: Checkpoint, signers: Iterable[CheckpointSigner], time_s: int) -> str:
    """The answer with status 200: the witness's signature lines.

    Raises:
        Malformed: the time is not one, or a signer's kind says no time.
    """
    lines: list[str] = []
    for signer in signers:
        if time_s <= 0 or signer.key.kind not in TIMED:
            raise Malformed("A witness signs with the time, by a key of a kind that says it.")
        lines.append(signer.sign(checkpoint, time_s))
    return "".join(lines)


def parse_answer(data: bytes, checkpoint: Checkpoint, keys: tuple[Key, ...]) -> tuple[tuple[str, Signed], ...]:
    """The lines of a witness's answer that its known keys made over this checkpoint, each with what it says.

    The lines may be added to the checkpoint's note as they are. Those of other keys are left out.

    Raises:
        Malformed: not an answer. BadSignature: a line of a known key does not verify, says no time, or there is none.
    """
    if len(data) > MAX_ANSWER_BYTES:
        raise Malformed("The answer of the witness is too long.")
    try:
        signatures = note.parse_lines(data.decode(), MAX_SIGNATURES)
    except UnicodeDecodeError as error:
        raise Malformed("The answer of the witness is not UTF-8.") from error
    found: list[tuple[str, Signed]] = []
    for one in signatures:
        for signed in verify_signatures(checkpoint, (one,), keys):
            if not signed.time_s:
                raise BadSignature(f"The signature by {one.name} says no time.")
            found.append((one.line, signed))
    if not found:
        raise BadSignature("No known key of the witness has signed the checkpoint.")
    return tuple(found)


def parse_size(data: bytes) -> int:
    """The size that a witness has seen, from its answer with status 409.

    Raises:
        Malformed: it is no size.
    """
    if re.fullmatch(rb"(0|[1-9][0-9]{0,18})\n", data) is None or int(data) > merkle.MAX_SIZE:
        raise Malformed("The answer of the witness is not a size.")
    return int(data)


def _need_growth(request: AddCheckpoint, checkpoint: Checkpoint, last: Seen) -> None:
    """Raises `BadProof` if the checkpoint does not continue what was seen."""
    if checkpoint.size == 0 and checkpoint.root != merkle.EMPTY_ROOT:
        raise BadProof("The root is not that of the empty tree.")
    if last.size:
        merkle.verify_consistency(last.size, checkpoint.size, request.hashes, last.root, checkpoint.root)
    elif request.hashes:
        raise BadProof("There is a proof from the empty tree, which proves nothing.")
