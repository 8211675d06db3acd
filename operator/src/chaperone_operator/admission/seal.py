"""The seal on what was injected, so that every replica knows the work of every other one.

While Chaperone is upgraded, or its CA changes, one replica injects and another one judges, and their settings differ.
So the injecting one seals its parts with a key that follows from the service CA's, which all replicas share and nobody
else has. A seal that is copied to another pod gains nothing: injection takes out whatever bears our names first, and
what a seal vouches for is a whole injection for the same identity.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

import msgspec

_DOMAIN: Final = b"chaperone.dev/admission-seal/v1"
_encoder: Final = msgspec.json.Encoder(order="sorted")


class Seal:
    """Makes seals with the first key and checks them with any.

    Args:
        secrets: private keys of the service CA, the one that signs first.
    """

    def __init__(self, *secrets: bytes) -> None:
        self._keys = tuple(hmac.digest(secret, _DOMAIN, hashlib.sha256) for secret in secrets)

    def make(self, parts: dict[str, Any]) -> str:
        """The seal of what was injected."""
        return self._made(self._keys[0], parts)

    def holds(self, parts: dict[str, Any], seal: str) -> bool:
        """Whether a replica of this installation made the seal for exactly these parts."""
        return any(hmac.compare_digest(self._made(key, parts), seal) for key in self._keys)

    def _made(self, key: bytes, parts: dict[str, Any]) -> str:
        return hmac.digest(key, _encoder.encode(parts), hashlib.sha256).hex()
