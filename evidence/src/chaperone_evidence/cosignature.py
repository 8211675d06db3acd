"""Keys that sign checkpoints, by kind (C2SP signed-note, tlog-cosignature).

| kind | signature | over |
|---|---|---|
| 0x01 Ed25519 | 64 bytes | the checkpoint's body |
| 0x04 Ed25519 cosignature/v1 | uint64be time ‖ 64 bytes | `cosignature/v1` LF `time <decimal>` LF ‖ body |
| 0x06 ML-DSA-44 subtree/v1 | uint64be time ‖ 2 420 bytes | a struct of signer's name, time, origin, range and root |

Times are seconds since 1970, at most 2^63−1. In an ML-DSA signature 0 stands for no time; a witness always gives one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from chaperone_evidence import note
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.errors import BadSignature, Malformed

ED25519: Final = note.ED25519
ED25519_COSIGNATURE: Final = 0x04
MLDSA44: Final = 0x06
TIMED: Final = frozenset({ED25519_COSIGNATURE, MLDSA44})
MAX_TIME_S: Final = 2**63 - 1
MAX_NAME_BYTES: Final = 255  # opaque cosigner_name<1..2^8-1>

_PUBLIC_BYTES: Final = {ED25519: 32, ED25519_COSIGNATURE: 32, MLDSA44: 1312}
_SIGNATURE_BYTES: Final = {ED25519: 64, ED25519_COSIGNATURE: 64, MLDSA44: 2420}
_STAMP: Final = struct.Struct(">Q")
_RANGE: Final = struct.Struct(">QQ")
_LABEL: Final = b"subtree/v1\n\0"


class Key(msgspec.Struct, frozen=True, gc=False):
    """A public key of one kind under its name."""

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        """Refuse what is no key.

        Raises:
            Malformed: an unknown kind, a key of another length, or a name that a key cannot have.
        """
        if len(self.public) != _PUBLIC_BYTES.get(self.kind):
            raise Malformed(f"A key of kind {self.kind} with {len(self.public)} bytes is not known here.")
        if len(note.need_name(self.name).encode()) > MAX_NAME_BYTES:
            raise Malformed(f"The name of a key is longer than {MAX_NAME_BYTES} bytes.")

    @property
    def id(self) -> bytes:
        """The key's id."""
        return note.key_id(self.name, self.kind, self.public)

    @property
    def vkey(self) -> str:
        """The key as text."""
        return note.format_vkey(self.name, self.kind, self.public)

    def verify(self, checkpoint: Checkpoint, data: bytes) -> int | None:
        """Check what a signature line of this key holds behind the id; returns the time that it says, if its kind does.

        Raises:
            BadSignature: the key did not sign that.
        """
        stamp = _STAMP.size if self.kind in TIMED else 0
        time_s = int.from_bytes(data[:stamp], "big")
        if len(data) != stamp + _SIGNATURE_BYTES[self.kind] or time_s > MAX_TIME_S:
            raise BadSignature(f"The signature by {self.name} does not have the form of its kind.")
        public = (MLDSA44PublicKey if self.kind == MLDSA44 else Ed25519PublicKey).from_public_bytes(self.public)
        try:
            public.verify(data[stamp:], _message(self, checkpoint, time_s))
        except InvalidSignature as error:
            raise BadSignature(f"The signature by {self.name} does not verify.") from error
        return time_s if stamp else None


def parse_key(vkey: str) -> Key:
    """Read a verifier key of any kind that signs checkpoints.

    Raises:
        Malformed: not a key, of another kind, or its id does not belong to it.
    """
    return Key(*note.split_vkey(vkey))


class CheckpointSigner:
    """A private key of one kind under its name.

    Args:
        name: of the key; a log's is its origin.
        private: the key.
        kind: `ED25519`, `ED25519_COSIGNATURE` or `MLDSA44`.

    Raises:
        Malformed: the key is not of that kind, or cannot have that name.
    """

    def __init__(self, name: str, private: Ed25519PrivateKey | MLDSA44PrivateKey, kind: int) -> None:
        self._private = private
        self.key = Key(name, kind, private.public_key().public_bytes_raw())

    def sign(self, checkpoint: Checkpoint, time_s: int) -> str:
        """The signature line, with its newline; the time counts for the kinds that say one.

        Raises:
            Malformed: the time cannot be said.
        """
        if not 0 <= time_s <= MAX_TIME_S:
            raise Malformed(f"The time {time_s} cannot be said in a signature.")
        stamp = _STAMP.pack(time_s) if self.key.kind in TIMED else b""
        made = self._private.sign(_message(self.key, checkpoint, time_s))
        return note.Signature(self.key.name, self.key.id, stamp + made).line


def sign_checkpoint(checkpoint: Checkpoint, signers: Iterable[CheckpointSigner], time_s: int) -> bytes:
    """The note of a checkpoint, signed by each.

    Raises:
        Malformed: the time cannot be said.
    """
    return f"{checkpoint.body}\n{''.join(one.sign(checkpoint, time_s) for one in signers)}".encode()


def _message(key: Key, checkpoint: Checkpoint, time_s: int) -> bytes:
    if key.kind == ED25519:
        return checkpoint.body.encode()
    if key.kind == ED25519_COSIGNATURE:
        return f"cosignature/v1\ntime {time_s}\n{checkpoint.body}".encode()
    name, origin = key.name.encode(), checkpoint.origin.encode()
    return b"".join(
        (
            _LABEL, bytes((len(name),)), name, _STAMP.pack(time_s), bytes((len(origin),)), origin,
            _RANGE.pack(0, checkpoint.size), checkpoint.root,
        )
    )  # fmt: skip
