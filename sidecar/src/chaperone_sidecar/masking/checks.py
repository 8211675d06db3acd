"""What a pattern cannot say: checksums, ranges, neighbours.

A check gets the bytes, and where a pattern matched. It answers with the span that is really the thing, which may be
shorter or longer than the match, or with the offset from which the search goes on. That offset is always past the
start of the match, so a search ends; matches of patterns whose checks resume inside them are bounded in length, so it
is linear too.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from typing import Final

type Found = tuple[int, int]
type Check = Callable[[bytes, int, int], Found | int]

DIGITS: Final = frozenset(b"0123456789")
ALNUM: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_WORD: Final = ALNUM | {ord("_")}
_LETTERS: Final = ALNUM - DIGITS
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")

_BACKSLASH: Final = 0x5C
_COLON: Final = re.compile(rb":")
_MAX_COLONS: Final = 16

_NOT_DIGIT: Final = bytes(b for b in range(256) if b not in DIGITS)
_NOT_ALNUM: Final = bytes(b for b in range(256) if b not in ALNUM)
_EXTENSION: Final = re.compile(rb" ?x\d{1,6}(?!\w)")
_GROUP: Final = re.compile(rb"\d+")
_DIGITS_ONLY: Final = re.compile(rb"\d*")
_ZERO_FRACTION: Final = re.compile(rb"\.0*(?!\d)")

# A hexadecimal word this long is a hash or a key: digits inside it are not a number somebody wrote.
_HASH_CHARS: Final = 24
_TOKEN_REACH: Final = 64

# Prefix ranges (ISO/IEC 7812 as the schemes publish them) with the lengths in use; one that fits is enough.
_CARDS: Final[tuple[tuple[int, int, frozenset[int]], ...]] = (
    (4, 4, frozenset({16})),  # Visa
    (51, 55, frozenset({16})),  # Mastercard
    (2221, 2720, frozenset({16})),
    (34, 34, frozenset({15})),  # American Express
    (37, 37, frozenset({15})),
    (2131, 2131, frozenset({15})),  # JCB, old
    (1800, 1800, frozenset({15})),
    (300, 305, frozenset({14, 16})),  # Diners Club
    (309, 309, frozenset({14, 16})),
    (36, 36, frozenset({14, 16})),
    (38, 39, frozenset({14, 16})),
    (6011, 6011, frozenset({16})),  # Discover
    (644, 659, frozenset({16})),
    (3528, 3589, frozenset({16})),  # JCB
    (62, 62, frozenset({16, 17, 18, 19})),  # UnionPay
    (60, 60, frozenset({16})),  # RuPay
    (81, 82, frozenset({16})),
    (2200, 2204, frozenset({16})),  # Mir
    (50, 50, frozenset({16})),  # Maestro
    (56, 58, frozenset({16})),
)
# Numbers that the schemes allow and hardly issue: without gaps these are EANs and 64-bit keys, a tenth of which pass.
_RARE_CARDS: Final[tuple[tuple[int, int, frozenset[int]], ...]] = (
    (4, 4, frozenset({13, 19})),
    (50, 50, frozenset({18, 19})),
    (56, 58, frozenset({18, 19})),
    (6011, 6011, frozenset({19})),
    (644, 659, frozenset({19})),
    (3528, 3589, frozenset({17, 18, 19})),
)

_CARD_FIRST: Final = frozenset(b"1234568")
_NO_LENGTHS: Final[frozenset[int]] = frozenset()
_SCALES: Final = {low: 10 ** (4 - len(str(low))) for low, _, _ in _CARDS + _RARE_CARDS}  # four digits → the prefix's

# Country → length. IBAN registry of SWIFT.
_IBAN_REGISTRY: Final = (
    "AD=24 AE=23 AL=28 AT=20 AZ=28 BA=20 BE=16 BG=22 BH=22 BI=27 BR=29 BY=28 CH=21 CR=22 CY=28 CZ=24 DE=22 DJ=27 DK=18 "
    "DO=28 EE=20 EG=29 ES=24 FI=18 FK=18 FO=18 FR=27 GB=22 GE=22 GI=23 GL=18 GR=27 GT=28 HN=28 HR=21 HU=28 IE=22 IL=23 "
    "IQ=23 IS=26 IT=27 JO=30 KW=30 KZ=20 LB=28 LC=32 LI=21 LT=20 LU=20 LV=21 LY=25 MC=27 MD=24 ME=22 MK=19 MN=20 MR=27 "
    "MT=31 MU=30 NI=28 NL=18 NO=15 OM=23 PK=24 PL=28 PS=29 PT=25 QA=29 RO=24 RS=22 RU=33 SA=24 SC=31 SD=18 SE=24 SI=19 "
    "SK=24 SM=27 SO=23 ST=25 SV=28 TL=23 TN=24 TR=26 UA=29 VA=22 VG=24 XK=20"
)
IBAN_LENGTHS: Final = {item[:2].encode(): int(item[3:]) for item in _IBAN_REGISTRY.split(" ")}
# Account numbers of digits alone. Their patterns can be stricter, which matters: several codes are hexadecimal
# letters, and every other UUID would be a candidate.
_NUMERIC: Final = (
    "AE AT BA BE BI CR CZ DE DJ DK EE EG ES FI FO GL HR HU IL IS LT LY ME MN MR NO PL PT RS SD SE SI SK SO ST TL TN VA "
    "XK"
)
IBAN_NUMERIC: Final = frozenset(_NUMERIC.split(" "))

_FILE_SUFFIXES: Final = frozenset(
    {b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp", b"ico", b"css", b"js", b"ts", b"json", b"html", b"so", b"dll"}
)


def luhn(digits: bytes) -> bool:
    """Whether the last digit is the check digit of the others."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = digit - 48
        if place % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def card_lengths(digits: bytes, *, is_grouped: bool = False) -> frozenset[int]:
    """How long a card can be that begins like this."""
    if digits[0] not in _CARD_FIRST:
        return _NO_LENGTHS
    prefix = int(digits[:4])
    found: frozenset[int] = _NO_LENGTHS
    for low, high, lengths in _CARDS + _RARE_CARDS if is_grouped else _CARDS:
        if low <= prefix // _SCALES[low] <= high:
            found |= lengths
    return found


def is_card_number(digits: bytes, *, is_grouped: bool = False) -> bool:
    """Prefix, length and check digit of a payment card."""
    length = len(digits)
    if digits.count(digits[-1:]) == length or length not in card_lengths(digits, is_grouped=is_grouped):
        return False
    return luhn(digits)


def payment_card(data: bytes, start: int, end: int) -> Found | int:
    """Digits in one piece, or in the groups cards are printed in."""
    text = data[start:end]
    left = _left(data, start)
    if text.isdigit():
        if left in DIGITS or _at(data, end) in DIGITS:
            return _past_digits(data, start)
        if not is_card_number(text) or _is_fraction(data, start, end) or _is_in_hash(data, start, end):
            return end
        return start, end
    if left in ALNUM or text[0] not in _CARD_FIRST:
        return start + 1
    digits = text.translate(None, _NOT_DIGIT)
    lengths = card_lengths(digits, is_grouped=True)
    count = len(digits)
    if not lengths or digits.count(digits[:1]) == count:
        return start + 1
    for stop in _group_ends(data, start, end):
        if count in lengths and _at(data, stop) not in ALNUM and is_card_number(digits[:count], is_grouped=True):
            return start, stop
        group = stop
        while data[group - 1] in DIGITS and group > start:  # the length of the last group
            group -= 1
        count -= stop - group
    return start + 1


def iban(data: bytes, start: int, end: int) -> Found | int:
    """Length of the country, then the remainder by 97; whatever follows in the same word makes it something else."""
    if _left(data, start) in ALNUM:
        return start + 1
    length = IBAN_LENGTHS.get(data[start : start + 2].upper(), 0)
    count, stop = 0, start
    while count < length and stop < len(data):
        if data[stop] in ALNUM:
            count += 1
        elif data[stop] not in b" -" or data[stop - 1] in b" -":
            break
        stop += 1
    if not length or count < length or _at(data, stop) in ALNUM:
        return start + 1
    account = data[start:stop].translate(None, _NOT_ALNUM).upper()
    number = int("".join(str(int(chr(c), 36)) for c in account[4:] + account[:4]))
    return (start, stop) if number % 97 == 1 else start + 1


def us_social_security(data: bytes, start: int, end: int) -> Found | int:
    """Ranges never given out are no numbers of anybody; a bare number counts only after the word."""
    digits = data[start:end].translate(None, _NOT_DIGIT)
    first = end - 9 if len(digits) == 9 and data[end - 9 : end].isdigit() else start
    if _at(data, end) in _WORD or _left(data, first) in _WORD - {ord("_")}:
        return start + 1
    if first == start and (_joins(data, start - 1, -1) or _joins(data, end, 1)):
        return start + 1
    if first == start and data[start + 3] != data[start + 6]:
        return start + 1
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if area in (b"000", b"666") or area[0] == ord("9") or group == b"00" or serial == b"0000":
        return start + 1
    return first, end


def email(data: bytes, start: int, end: int) -> Found | int:
    """An address; not a file name such as icon@2x.png."""
    text = data[start:end]
    if b"@" not in text:  # "alice at example.com": only when the value is nothing else, prose has it too
        return (start, end) if start == 0 and end == len(data) else start + 1
    if text.rpartition(b".")[2].lower() in _FILE_SUFFIXES:
        return end
    return start, end


def phone(data: bytes, start: int, end: int) -> Found | int:
    """At least as many digits as a number can have, and nothing that makes it a part of something longer."""
    if data[start] in _LETTERS:  # "tel": the number stands at the end
        return (end - 10, end) if _at(data, end) not in _WORD and data[end - 11] not in b"+" else start + 1
    left = _left(data, start)
    if left in _WORD or left == ord("+") or _joins(data, start - 1, -1, b"./:"):
        return start + 1
    if left == ord("-") and _at(data, start - 2) in _WORD:  # SKU-212-555-0187
        return start + 1
    for stop in _group_ends(data, start, end):
        extension = _EXTENSION.match(data, stop)
        if extension is None and (_at(data, stop) in _WORD or _joins(data, stop, 1, b".-/:")):
            continue
        text = data[start:stop]
        digits = text.translate(None, _NOT_DIGIT)
        bare = len(digits) + text.startswith(b"+") == len(text)
        if (9 if bare else 8) <= len(digits) <= 15:
            return start, extension.end() if extension else stop
    return start + 1


def ipv4(data: bytes, start: int, end: int) -> Found | int:
    """Four numbers up to 255 and no fifth; loopback and "any" are nobody's address."""
    if _left(data, start) in _WORD or _at(data, end) in DIGITS or _joins(data, end, 1) or _joins(data, start - 1, -1):
        return start + 1
    try:
        address = ipaddress.IPv4Address(data[start:end].decode())
    except ValueError:
        return start + 1
    return end if address.is_loopback or address.is_unspecified else (start, end)


def ipv6(data: bytes, start: int, end: int) -> Found | int:
    """What `ipaddress` reads, with a digit and two groups at least: `a::text` is a cast.

    The match is the whole word of digits and colons; groups before the address ("ad:") may be something else.
    """
    text = data[start:end].rstrip(b".")
    if text.endswith(b":") and not text.endswith(b"::"):
        text = text[:-1]
    stop = start + len(text)
    if _at(data, stop) in _WORD or text.count(b":") > _MAX_COLONS:
        return end
    if b":::" in text or text.count(b"::") > 1:
        return end
    for first in [0, *(colon.end() for colon in _COLON.finditer(text, 0, max(text.find(b"::"), 0)))]:
        if (first or _left(data, start) not in _WORD) and _is_ipv6(text[first:]):
            return start + first, stop
    return end


def _is_ipv6(text: bytes) -> bool:
    if not DIGITS.intersection(text) or sum(1 for group in text.split(b":") if group) < 2:
        return False
    try:
        address = ipaddress.IPv6Address(text.decode())
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def jwt(data: bytes, start: int, end: int) -> Found | int:
    """A header that is JSON and names an algorithm; a signature may be missing."""
    header = data[start:end].partition(b".")[0]
    try:
        plain = base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4))
    except (binascii.Error, ValueError):
        return end
    return (start, end) if b'"alg"' in plain else end


def word(data: bytes, start: int, end: int) -> Found | int:
    """A token with a prefix of its own: nothing else to know but that it is not inside a longer word."""
    if _left(data, start) in ALNUM or _at(data, end) in ALNUM:
        return end
    return start, end


def private_key(data: bytes, start: int, end: int) -> Found | int:
    """From BEGIN to the end of END; to the end of the value when END is missing."""
    if data[start:end].startswith(b"AGE-"):
        return start, end
    closing = data.find(b"-----END", end)
    if closing < 0:
        return start, len(data)
    dashes = data.find(b"-----", closing + 8)
    return start, len(data) if dashes < 0 else dashes + 5


def anything(data: bytes, start: int, end: int) -> Found | int:
    """No check: custom patterns mean what they say. An empty match is none."""
    return (start, end) if end > start else start + 1


def _at(data: bytes, place: int) -> int:
    return data[place] if 0 <= place < len(data) else -1


def _left(data: bytes, start: int) -> int:
    r"""The byte before a match, or -1; the letter of an escape (`\n`, as in JSON and COPY) is not part of a word."""
    if start >= 2 and data[start - 2] == _BACKSLASH and data[start - 1] in b"nrtbfv":
        return -1
    return _at(data, start - 1)


def _group_ends(data: bytes, start: int, end: int) -> list[int]:
    """The ends of the groups of digits in a match, last first: the pattern may have taken what follows for one more."""
    return [start + group.end() for group in reversed(list(_GROUP.finditer(data[start:end])))]


def _past_digits(data: bytes, start: int) -> int:
    found = _DIGITS_ONLY.match(data, start)
    return max(found.end() if found else 0, start + 1)


def _joins(data: bytes, place: int, step: int, signs: bytes = b".-") -> bool:
    """Whether a sign at this place ties the match to another digit."""
    return _at(data, place) in signs and _at(data, place + step) in DIGITS if 0 <= place < len(data) else False


def _is_fraction(data: bytes, start: int, end: int) -> bool:
    """Whether the digits are those after a decimal point, or have some after theirs that are not all zero."""
    if _joins(data, start - 1, -1, b"."):
        return True
    return _joins(data, end, 1, b".") and _ZERO_FRACTION.match(data, end) is None


def _is_in_hash(data: bytes, start: int, end: int) -> bool:
    """Whether the digits stand in a long hexadecimal word."""
    if _at(data, start - 1) not in _HEX and _at(data, end) not in _HEX:
        return False
    first, last = start, end
    while start - first < _TOKEN_REACH and _at(data, first - 1) in ALNUM:
        first -= 1
    while last - end < _TOKEN_REACH and _at(data, last) in ALNUM:
        last += 1
    return last - first >= _HASH_CHARS and _HEX.issuperset(data[first:last])
