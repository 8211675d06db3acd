"""The one way to write a header, so that its hash means something.

Profile: a JSON object; keys are ASCII `[a-z][a-z0-9_]*` in byte order, no duplicates; no white space, no null, no
float; integers within ±(2^53−1); strings are valid UTF-8 with the shortest escapes (RFC 8785, 3.2.2.2).
"""

from __future__ import annotations

import binascii
import re
from typing import Final

import msgspec

from chaperone_evidence.errors import NotCanonical

MAX_INTEGER: Final = 2**53 - 1  # what every JSON reader keeps exactly
MAX_DEPTH: Final = 8  # a header is flat but for a few lists; deeper is not ours

_KEY: Final = re.compile(r"[a-z][a-z0-9_]*\Z")
_encoder: Final = msgspec.json.Encoder(order="sorted")

type Value = bool | int | str | list[Value] | dict[str, Value]


def encode(value: msgspec.Struct | dict[str, Value]) -> bytes:
    """The canonical bytes of a record. The caller's types must admit neither null nor float.

    Raises:
        UnicodeEncodeError: a string holds half of a surrogate pair, which has no UTF-8.
    """
    return _encoder.encode(value)


def decode(header: bytes) -> dict[str, Value]:
    """Read a header and prove that it is canonical.

    Raises:
        NotCanonical: it is not in the profile, or encoding what was read gives other bytes.
    """
    try:
        value = msgspec.json.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotCanonical(f"The header is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise NotCanonical("The header is not a JSON object.")
    _check(value, 0)
    if _encoder.encode(value) != header:
        raise NotCanonical("The header is not in canonical form (order, white space, escapes or a duplicate key).")
    return value


def decode_base64(text: str) -> bytes:
    """Read base64 in its only form: padded, and with nothing in the bits that the padding leaves over.

    Raises:
        NotCanonical: another text would be written for the same bytes, or it is no base64.
    """
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise NotCanonical("A text is not base64.") from error
    if binascii.b2a_base64(data, newline=False) != text.encode():
        raise NotCanonical("A text is not base64 in canonical form.")
    return data


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotCanonical("The header is nested too deep.")
    if isinstance(value, dict):
        for key, item in value.items():
            if not _KEY.match(key):
                raise NotCanonical(f"The key {key[:40]!r} is not allowed in a header.")
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise NotCanonical("An integer is out of range.")
    elif not isinstance(value, str):
        raise NotCanonical("The header holds null or a number that is not an integer.")
