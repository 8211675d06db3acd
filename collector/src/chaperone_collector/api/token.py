"""The `continue` token of a list: where the next page begins, in a log that only grows. It never expires.

It says how large the log was at page one, the last key given, and for which question; a MAC keeps callers from making
up their own. A list goes on over exactly the entries that page one saw.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec

from chaperone_collector.api.status import bad_request

KEY_BYTES: Final = 32
_MAC_BYTES: Final = 16
_DOMAIN: Final = b"chaperone.dev/continue/v1\n"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a list stands: only entries below `size`, only objects after `after`."""

    size: int
    after: int
    question: str  # hash of resource, namespace and selectors


def question(resource: str, namespace: str, labels: str, fields: str) -> str:
    """What a token belongs to."""
    text = msgspec.json.encode([resource, namespace, labels, fields])
    return hashlib.sha256(text).hexdigest()[:32]


def seal(key: bytes, place: Place) -> str:
    """The token of a place."""
    text = msgspec.json.encode(place)
    return base64.urlsafe_b64encode(_mac(key, text) + text).decode().rstrip("=")


def unseal(key: bytes, token: str, asked: str) -> Place:
    """The place of a token.

    Raises:
        ApiError: 400, not one of ours, or one of another question.
    """
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise bad_request("The continue token is not valid; list from the beginning.") from error
    mac, text = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, text)):
        raise bad_request("The continue token is not valid; list from the beginning.")
    place = msgspec.json.decode(text, type=Place)
    if place.question != asked:
        raise bad_request("The continue token belongs to a list with other selectors; list from the beginning.")
    return place


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, _DOMAIN + text, "sha256")[:_MAC_BYTES]
