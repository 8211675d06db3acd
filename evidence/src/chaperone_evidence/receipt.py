"""Receipts of the log in COSE (RFC 9942, RFC9162_SHA256): for tools that do not read C2SP's proofs.

COSE_Sign1 with tag 18: protected {alg EdDSA, kid the C2SP key id, vds RFC9162_SHA256} · unprotected {vdp: {inclusion:
[[tree size, leaf index, path]]}} · no payload · signature. What is signed is the root, which is not in the receipt: it
has to be computed from the entry and the path, so nobody can check the one and forget the other.

The CBOR of such a receipt has one form (RFC 8949, 4.2.1), and only that form is read. The log signs roots that it has
also signed as checkpoints, with the same Ed25519 key; no text of a note is a COSE Sig_structure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chaperone_evidence import merkle
from chaperone_evidence.cosignature import ED25519
from chaperone_evidence.errors import BadSignature, Malformed
from chaperone_evidence.policy import Policy

MEDIA_TYPE: Final = 'application/cose; cose-type="cose-sign1"'
MAX_BYTES: Final = 4096  # the path in a tree of 2^63 entries takes 2 142

ALG: Final = 1  # RFC 9052, 3.1
KID: Final = 4
VDS: Final = 395  # RFC 9942
VDP: Final = 396
EDDSA: Final = -8  # RFC 9053, 2.2
RFC9162_SHA256: Final = 1
INCLUSION: Final = -1

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)  # major types, RFC 8949, 3.1
_NULL: Final = b"\xf6"
_KID_AT: Final = 5  # in the protected header
_KID_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """That the entry with some leaf hash is entry `index` of a tree of `size`; not yet verified."""

    size: int
    index: int
    hashes: tuple[bytes, ...]
    key_id: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The receipt's bytes."""
        path = _head(_ARRAY, len(self.hashes)) + b"".join(_bytes(one) for one in self.hashes)
        proof = _head(_ARRAY, 3) + _int(self.size) + _int(self.index) + path
        proofs = _head(_MAP, 1) + _int(INCLUSION) + _head(_ARRAY, 1) + _bytes(proof)
        unprotected = _head(_MAP, 1) + _int(VDP) + proofs
        parts = (_bytes(_protected(self.key_id)), unprotected, _NULL, _bytes(self.signature))
        return _head(_TAG, 18) + _head(_ARRAY, len(parts)) + b"".join(parts)

    def verify(self, leaf: bytes, policy: Policy) -> None:
        """Check the receipt for an entry's leaf hash.

        Raises:
            BadProof: the path cannot be one of that tree. BadSignature: no Ed25519 key of the log signed the root that
                entry and path lead to.
        """
        root = merkle.inclusion_root(leaf, self.index, self.size, self.hashes)
        keys = [key for key in policy.log if key.kind == ED25519 and key.id == self.key_id]
        if not keys:
            raise BadSignature("The receipt is not by a key of the log.")
        try:
            Ed25519PublicKey.from_public_bytes(keys[0].public).verify(self.signature, to_be_signed(self.key_id, root))
        except InvalidSignature as error:
            raise BadSignature("The log did not sign that the entry is where the receipt says.") from error


def make(
    index: int, size: int, hashes: tuple[bytes, ...], root: bytes, key_id: bytes, sign: Callable[[bytes], bytes]
) -> Receipt:
    """The receipt of an entry; `sign` is the Ed25519 key's with that id."""
    return Receipt(size, index, hashes, key_id, sign(to_be_signed(key_id, root)))


def to_be_signed(key_id: bytes, root: bytes) -> bytes:
    """The Sig_structure (RFC 9052, 4.4) of a receipt over a root."""
    text = b"Signature1"
    parts = (_head(_TEXT, len(text)) + text, _bytes(_protected(key_id)), _bytes(b""), _bytes(root))
    return _head(_ARRAY, len(parts)) + b"".join(parts)


def parse(data: bytes) -> Receipt:
    """Read a receipt.

    Raises:
        Malformed: it is none, or not in the one form.
    """
    if len(data) > MAX_BYTES:
        raise Malformed("The receipt is too long.")
    reader = _Reader(data)
    reader.need(_TAG, 18)
    reader.need(_ARRAY, 4)
    protected = reader.bytes()
    key_id = protected[_KID_AT : _KID_AT + _KID_BYTES]  # whether it is there, the comparison says
    for major, value in ((_MAP, 1), (_UNSIGNED, VDP), (_MAP, 1), (_NEGATIVE, -1 - INCLUSION), (_ARRAY, 1)):
        reader.need(major, value)
    inner = _Reader(reader.bytes())
    inner.need(_ARRAY, 3)
    size, index, count = inner.head(_UNSIGNED), inner.head(_UNSIGNED), inner.head(_ARRAY)
    if count > MAX_BYTES // merkle.HASH_BYTES:
        raise Malformed("The path of the receipt is too long.")
    hashes = tuple(inner.bytes() for _ in range(count))
    reader.take(len(_NULL))
    found = Receipt(size, index, hashes, key_id, reader.bytes())
    if len(key_id) != _KID_BYTES or len(found.signature) != _SIGNATURE_BYTES or found.encode() != data:
        raise Malformed("The bytes do not have the form of a receipt.")
    return found


class _Reader:
    """Takes CBOR items off the front; what it accepts too much of, the comparison with the one form refuses."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise Malformed("The receipt is cut off.")
        self._at += count
        return found

    def head(self, major: int) -> int:
        first = self.take(1)[0]
        if first >> 5 != major:
            raise Malformed("The bytes do not have the form of a receipt.")
        rest = first & 31
        if rest < 24:
            return rest
        if rest > 27:
            raise Malformed("The bytes do not have the form of a receipt.")
        return int.from_bytes(self.take(1 << (rest - 24)), "big")

    def need(self, major: int, value: int) -> None:
        if self.head(major) != value:
            raise Malformed("The bytes do not have the form of a receipt.")

    def bytes(self) -> bytes:
        return self.take(self.head(_BYTES))


def _protected(key_id: bytes) -> bytes:
    fields = ((ALG, _int(EDDSA)), (KID, _bytes(key_id)), (VDS, _int(RFC9162_SHA256)))
    return _head(_MAP, len(fields)) + b"".join(_int(label) + value for label, value in fields)


def _head(major: int, value: int) -> bytes:
    """An item's head, as short as it can be."""
    if value < 24:
        return bytes((major << 5 | value,))
    exponent = next(one for one in range(4) if value < 1 << (8 << one))
    return bytes((major << 5 | 24 + exponent,)) + value.to_bytes(1 << exponent, "big")


def _int(value: int) -> bytes:
    return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)


def _bytes(value: bytes) -> bytes:
    return _head(_BYTES, len(value)) + value
