"""ULIDs in lower case: 26 characters that sort by time and fit a Kubernetes name."""

from __future__ import annotations

from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
RANDOM_BYTES: Final = 10
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits at a time
_SHIFTS: Final = range(120, -1, -10)


def encode(time_ms: int, random: bytes) -> str:
    """The ULID of a time (milliseconds since 1970) and ten random bytes.

    Raises:
        ValueError: the time has more than 48 bits, or the random bytes are not ten.
    """
    if len(random) != RANDOM_BYTES or time_ms >> 48:
        raise ValueError("A ULID is made of a time of 48 bits and ten random bytes.")
    number = (time_ms << 80) | int.from_bytes(random, "big")
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])


def time_ms(text: str) -> int:
    """The time in a ULID, in milliseconds since 1970.

    Raises:
        ValueError: it is none.
    """
    if not is_ulid(text):
        raise ValueError("It is no ULID.")
    found = 0
    for character in text[:10]:
        found = found << 5 | _ALPHABET.index(character)
    return found


def is_ulid(text: str) -> bool:
    """Whether the text has the form of a ULID of ours."""
    return len(text) == 26 and text[0] in "01234567" and all(character in _ALPHABET for character in text)
