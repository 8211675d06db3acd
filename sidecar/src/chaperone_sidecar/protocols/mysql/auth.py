"""Proofs of a password that do not give it away, as the server's log-in plugins want them.

Spec: "mysql_native_password", "Caching_sha2_password information", MariaDB "Authentication Plugin - ed25519".
"""

from __future__ import annotations

import hashlib
from typing import Final


def native(password: bytes, nonce: bytes) -> bytes:
    """mysql_native_password."""
    if not password:
        return b""
    once = hashlib.sha1(password, usedforsecurity=False).digest()
    mixed = hashlib.sha1(nonce + hashlib.sha1(once, usedforsecurity=False).digest(), usedforsecurity=False).digest()
    return _xor(once, mixed)


def caching_sha2(password: bytes, nonce: bytes) -> bytes:
    """caching_sha2_password, the fast way: the server knows the password's hash already."""
    if not password:
        return b""
    once = hashlib.sha256(password).digest()
    return _xor(once, hashlib.sha256(hashlib.sha256(once).digest() + nonce).digest())


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


# --- client_ed25519 -------------------------------------------------------------------------------------------------
# An Ed25519 signature whose key is the SHA-512 of a password of any length, which no library of ours takes: RFC 8032
# with that one change.

_P: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, _P - 2, _P) % _P
_Y: Final = 4 * pow(5, _P - 2, _P) % _P
_X: Final = 15112221349535400772501151409588531511454012693041857206046113283949847762202

type _Point = tuple[int, int, int, int]


def ed25519(password: bytes, nonce: bytes) -> bytes:
    """client_ed25519: a signature over what the server sent. Takes some milliseconds."""
    seed = hashlib.sha512(password).digest()
    secret = int.from_bytes(seed[:32], "little") & ((1 << 254) - 8) | 1 << 254
    public = _compressed(secret)
    once = int.from_bytes(hashlib.sha512(seed[32:] + nonce).digest(), "little") % _ORDER
    first = _compressed(once)
    challenge = int.from_bytes(hashlib.sha512(first + public + nonce).digest(), "little") % _ORDER
    return first + ((once + challenge * secret) % _ORDER).to_bytes(32, "little")


def _add(left: _Point, right: _Point) -> _Point:
    a = (left[1] - left[0]) * (right[1] - right[0]) % _P
    b = (left[1] + left[0]) * (right[1] + right[0]) % _P
    c = 2 * left[3] * right[3] * _D % _P
    d = 2 * left[2] * right[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _compressed(scalar: int) -> bytes:
    """A multiple of the base point."""
    total: _Point = (0, 1, 1, 0)
    power: _Point = (_X, _Y, 1, _X * _Y % _P)
    while scalar:
        if scalar & 1:
            total = _add(total, power)
        power = _add(power, power)
        scalar >>= 1
    inverse = pow(total[2], _P - 2, _P)
    x, y = total[0] * inverse % _P, total[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")
