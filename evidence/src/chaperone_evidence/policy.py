"""Whose signatures make a checkpoint believable.

`Policy` says it, `open_checkpoint` applies it. Signatures of unknown keys are passed over, one of a known key that does
not verify refuses the whole note (C2SP signed-note). A witness counts once, however many kinds of keys it signs with.
"""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_evidence import note
from chaperone_evidence.checkpoint import Checkpoint, parse_body
from chaperone_evidence.cosignature import TIMED, Key
from chaperone_evidence.errors import BadProof, BadSignature, Malformed
from chaperone_evidence.merkle import EMPTY_ROOT

MAX_SIGNATURES: Final = 16  # C2SP signed-note: at least so many are accepted; one of ML-DSA takes half a millisecond


class Signed(msgspec.Struct, frozen=True, gc=False):
    """A verified signature; `time_s` is seconds since 1970, None where the kind says no time."""

    key: Key
    time_s: int | None


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A checkpoint that satisfies a policy, and the signatures by its keys."""

    checkpoint: Checkpoint
    signatures: tuple[Signed, ...]


class Policy(msgspec.Struct, frozen=True, gc=False):
    """Which log is meant, and whose signatures make its checkpoints believable.

    Attributes:
        origin: of the log.
        log: the log's keys.
        log_quorum: how many of them must have signed. A log signs with Ed25519 and ML-DSA-44; who asks for both is safe
            as long as either is.
        witnesses: keys of witnesses, of kinds that say a time.
        witness_quorum: how many witnesses, told apart by name, must have signed.
    """

    origin: str
    log: tuple[Key, ...]
    log_quorum: int = 1
    witnesses: tuple[Key, ...] = ()
    witness_quorum: int = 0

    def __post_init__(self) -> None:
        """Refuse a policy that nothing or anything could satisfy.

        Raises:
            Malformed: a quorum is out of reach; a witness's key says no time; or keys are not distinct. An Ed25519
                cosignature does not name its maker, so one key under two names would let one witness count as two.
        """
        if not 1 <= self.log_quorum <= len(self.log):
            raise Malformed(f"{self.log_quorum} of {len(self.log)} keys of the log cannot be asked for.")
        if not 0 <= self.witness_quorum <= len({key.name for key in self.witnesses}):
            raise Malformed(f"{self.witness_quorum} witnesses cannot be asked for: there are fewer.")
        if any(key.kind not in TIMED for key in self.witnesses):
            raise Malformed("The key of a witness is not of a kind that says a time.")
        keys = self.log + self.witnesses
        if len({key.public for key in keys}) != len(keys) or len({(key.name, key.id) for key in keys}) != len(keys):
            raise Malformed("One key is in the policy twice.")


def verify_signatures(
    checkpoint: Checkpoint, signatures: tuple[note.Signature, ...], keys: tuple[Key, ...]
) -> tuple[Signed, ...]:
    """The signatures by known keys, all of which must verify; those by others are passed over.

    Raises:
        BadSignature: one by a known key does not verify.
    """
    known = {(key.name, key.id): key for key in keys}
    signed: list[Signed] = []
    for one in signatures:
        key = known.get((one.name, one.id))
        if key is not None:
            signed.append(Signed(key, key.verify(checkpoint, one.data)))
    return tuple(signed)


def open_checkpoint(data: bytes, policy: Policy) -> Opened:
    """Read a signed checkpoint and apply a policy to it.

    Raises:
        Malformed: not a checkpoint, or too many signatures. BadSignature: of another log, a known key's signature does
            not verify, or too few keys have signed. BadProof: it says that the empty tree has another root than it has.
    """
    parts = note.parse(data, MAX_SIGNATURES)
    checkpoint = parse_body(parts.body)
    if checkpoint.origin != policy.origin:
        raise BadSignature("The checkpoint is of another log.")
    signed = verify_signatures(checkpoint, parts.signatures, policy.log + policy.witnesses)
    by_log = {one.key for one in signed if one.key in policy.log}
    by_witness = {one.key.name for one in signed if one.key in policy.witnesses and one.time_s}
    if len(by_log) < policy.log_quorum:
        raise BadSignature(f"{len(by_log)} keys of the log have signed the checkpoint, {policy.log_quorum} must.")
    if len(by_witness) < policy.witness_quorum:
        raise BadSignature(f"{len(by_witness)} witnesses have signed the checkpoint, {policy.witness_quorum} must.")
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise BadProof("The checkpoint gives the empty tree another root than it has.")
    return Opened(checkpoint, signed)
