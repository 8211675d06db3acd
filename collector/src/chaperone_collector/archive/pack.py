r"""Packs: the bodies that a segment's entries name, each encrypted. Pure.

    pack  = "chappak\x01" ‖ SHA-256(origin) ‖ uint64be first ‖ frames
    frame = uint64be number of the key ‖ commitment(32) ‖ uint32be length ‖ body

Key 0 is none: the notes of populations say nothing that entries do not say, and are not encrypted. Otherwise the body
is AES-256-GCM. Its nonce follows from key and commitment, which stands for one body only: a pack that is made again
after a crash is the same, byte for byte, and no nonce serves twice.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from chaperone_collector.archive.segment import origin_hash
from chaperone_collector.errors import RestoreRefused

MAGIC: Final = b"chappak\x01"
PLAIN: Final = 0
_HEAD: Final = struct.Struct(">8s32sQ")
_FRAME: Final = struct.Struct(">Q32sI")
_NONCE_BYTES: Final = 12
_NONCE_DOMAIN: Final = b"chaperone.dev/pack-nonce/v1\n"


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """One body as it lies in a pack."""

    key: int
    commit: bytes
    data: bytes


def name(first: int) -> str:
    """The name of the pack beside the segment that begins there."""
    return f"{first:016x}.pack"


def seal(number: int, key: bytes, commit: bytes, body: bytes) -> Sealed:
    """Encrypt a body."""
    return Sealed(number, commit, AESGCM(key).encrypt(_nonce(key, commit), body, _bound(number, commit)))


def unseal(sealed: Sealed, key: bytes) -> bytes:
    """Decrypt a body; the caller compares it with its commitment.

    Raises:
        RestoreRefused: it was changed, or the key is another.
    """
    try:
        return AESGCM(key).decrypt(_nonce(key, sealed.commit), sealed.data, _bound(sealed.key, sealed.commit))
    except InvalidTag as error:
        raise RestoreRefused(f"The body {sealed.commit.hex()} was changed, or its key is another.") from error


def encode(first: int, bodies: list[Sealed], origin: str) -> bytes:
    """The object."""
    parts = [_HEAD.pack(MAGIC, origin_hash(origin), first)]
    for one in bodies:
        parts += (_FRAME.pack(one.key, one.commit, len(one.data)), one.data)
    return b"".join(parts)


def decode(data: bytes, first: int, origin: str) -> Iterator[Sealed]:
    """Read an object.

    Raises:
        RestoreRefused: it is none, of another segment, or cut.
    """
    if data[: _HEAD.size] != _HEAD.pack(MAGIC, origin_hash(origin), first):
        raise RestoreRefused(f"The object is not the pack of the segment at {first}.")
    position = _HEAD.size
    while position < len(data):
        begin = position + _FRAME.size
        if begin > len(data):
            raise RestoreRefused(f"The pack of the segment at {first} is cut.")
        key, commit, length = _FRAME.unpack_from(data, position)
        position = begin + length
        if position > len(data):
            raise RestoreRefused(f"The pack of the segment at {first} is cut.")
        yield Sealed(key, commit, data[begin:position])


def _nonce(key: bytes, commit: bytes) -> bytes:
    return hmac.digest(key, _NONCE_DOMAIN + commit, "sha256")[:_NONCE_BYTES]


def _bound(number: int, commit: bytes) -> bytes:
    return number.to_bytes(8, "big") + commit
