"""Single values in binary format, as the server would write them in text: what a detector can look at.

Numbers too short for any detector of ours are not rendered unless a policy has patterns of its own (`is_thorough`).
Layouts are those of the server's `…send` functions.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
import struct
import uuid
from collections.abc import Callable
from typing import Final

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import kind

type Texts = list[bytes]

_INT32: Final = struct.Struct(">i")
_INT64: Final = struct.Struct(">q")
_FLOAT4: Final = struct.Struct(">f")
_FLOAT8: Final = struct.Struct(">d")
_NUMERIC: Final = struct.Struct(">hhHh")
_TIME_ZONE: Final = struct.Struct(">qi")
_INTERVAL: Final = struct.Struct(">qii")
_EPOCH: Final = datetime.datetime(2000, 1, 1)
_NEGATIVE: Final = 0x4000
_MONEY: Final = re.compile(rb'[^"{}]+')  # elements with a sign between thousands are quoted
_SPECIAL: Final = 0xC000

# The shortest number that a detector of ours takes for a value has fourteen digits.
_MANY: Final = 10**13


def malformed() -> ProtocolError:
    """The error for a value that its type does not allow."""
    return ProtocolError("The database sent a value that is not of its type.", side="upstream")


def guesses(value: bytes) -> Texts | None:
    """What a detector has to see of a value whose type nobody told; None if that cannot be said.

    Lengths of one to four bytes and of eight are numbers or texts; anything else is a text, a jsonb or a numeric.
    """
    size = len(value)
    out = bytes_texts(value)
    if size in (1, 2, 4):
        return [*out, b"%d" % int.from_bytes(value, "big", signed=True)]
    if size == 8:
        out += _int8(value, True) + _float8(value, True)
        out += _address(value)
        return out + _money(value, True)
    if value[:1] == b"\x01" and is_clean(value[1:]):
        return [*out, value[1:]]
    if size >= 8 and _NUMERIC.unpack_from(value)[0] * 2 + 8 == size:
        try:
            return out + _numeric(value, True)
        except ProtocolError:
            return None
    if size == 20 and value[:1] in (b"\x02", b"\x03"):
        return out + _address(value)
    return out if is_clean(value) else None


def is_clean(value: bytes) -> bool:
    """Whether bytes are a text as people and programs write them."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return False
    return all(char >= " " or char in "\t\n\r\f\b\v\x1b" for char in text)


def bytes_texts(value: bytes, is_thorough: bool = False) -> Texts:
    """Bytes as they stand, and as UTF-16."""
    return [value, value[::2], value[1::2]] if b"\x00" in value else [value]


def money_texts(value: bytes) -> Texts:
    """Money in text format, or an array of it: digits without the signs of a locale, with and without the fraction."""
    found: Texts = []
    for piece in _MONEY.findall(value):
        digits = bytes(byte for byte in piece if 48 <= byte <= 57)
        found += [digits, digits[:-2]] if len(digits) >= 13 else []
    return found


def _int8(value: bytes, is_thorough: bool) -> Texts:
    (number,) = _INT64.unpack(value)
    return [b"%d" % number] if is_thorough or not -_MANY < number < _MANY else []


def _money(value: bytes, is_thorough: bool) -> Texts:
    (number,) = _INT64.unpack(value)
    if not is_thorough and -_MANY < number < _MANY:
        return []
    return [b"%d" % number, b"%d" % (abs(number) // 100)]


def _integer(value: bytes, is_thorough: bool) -> Texts:
    if len(value) not in (2, 4, 8):
        raise malformed()
    return [b"%d" % int.from_bytes(value, "big", signed=True), b"%d" % int.from_bytes(value, "big")]


def _float8(value: bytes, is_thorough: bool) -> Texts:
    (number,) = _FLOAT8.unpack(value)
    return [_written(number)] if is_thorough or not -_MANY < number < _MANY else []


def _float4(value: bytes, is_thorough: bool) -> Texts:
    (number,) = _FLOAT4.unpack(value)
    return [_written(number), b"%.9g" % number]


def _written(number: float) -> bytes:
    if math.isfinite(number) and abs(number) < 1e19 and number == int(number):
        return b"%d" % int(number)
    return repr(number).encode()


def _floats(value: bytes, is_thorough: bool) -> Texts:
    """Points, lines, boxes, circles: coordinates, after a head of 0, 1, 4 or 5 bytes."""
    start = len(value) % 8
    out: Texts = []
    for place in range(start, len(value), 8):
        out += _float8(value[place : place + 8], is_thorough)
    return out


def _numeric(value: bytes, is_thorough: bool) -> Texts:
    count, weight, sign, scale = _NUMERIC.unpack_from(value)
    if count < 0 or len(value) != 8 + 2 * count or scale < 0:
        raise malformed()
    if sign & _SPECIAL == _SPECIAL or (weight < 3 and not is_thorough):
        return []
    groups = struct.unpack_from(f">{count}h", value, 8)
    if groups and (min(groups) < 0 or max(groups) > 9999):
        raise malformed()
    if weight < 0:
        whole, fraction = b"0", b"0000" * (-weight - 1) + b"".join([b"%04d" % group for group in groups])
    else:
        digits = b"".join([b"%04d" % group for group in groups]).ljust(4 * (weight + 1), b"0")
        whole, fraction = digits[: 4 * (weight + 1)].lstrip(b"0") or b"0", digits[4 * (weight + 1) :]
    fraction = fraction[:scale].ljust(scale, b"0")
    return [(b"-" if sign & _NEGATIVE else b"") + whole + (b"." + fraction if fraction else b"")]


def _inet(value: bytes, is_thorough: bool) -> Texts:
    family, _, _, size = value[:4]
    if family not in (2, 3) or size != len(value) - 4 or size != (4 if family == 2 else 16):
        raise malformed()
    return [str(ipaddress.ip_address(value[4:])).encode()]


def _address(value: bytes) -> Texts:
    try:
        return _inet(value, True)
    except (ProtocolError, ValueError):
        return []


def _date(value: bytes, is_thorough: bool) -> Texts:
    (days,) = _INT32.unpack(value)
    try:
        return [datetime.date.fromordinal(730120 + days).isoformat().encode()]
    except (ValueError, OverflowError):
        return [b"%d" % days]


def _timestamp(value: bytes, is_thorough: bool) -> Texts:
    (micros,) = _INT64.unpack(value)
    try:
        return [(_EPOCH + datetime.timedelta(microseconds=micros)).isoformat(" ").encode()]
    except OverflowError:
        return [b"%d" % micros]


def _time(value: bytes, is_thorough: bool) -> Texts:
    micros = _TIME_ZONE.unpack(value)[0] if len(value) == 12 else _INT64.unpack(value)[0]
    try:
        return [(_EPOCH + datetime.timedelta(microseconds=micros)).time().isoformat().encode()]
    except OverflowError:
        raise malformed() from None


def _interval(value: bytes, is_thorough: bool) -> Texts:
    micros, days, months = _INTERVAL.unpack(value)
    return [b"%d mons %d days %d" % (months, days, micros), b"%d" % (micros // 1_000_000)]


def _uuid(value: bytes, is_thorough: bool) -> Texts:
    return [str(uuid.UUID(bytes=value)).encode()]


def _mac(value: bytes, is_thorough: bool) -> Texts:
    if len(value) not in (6, 8):
        raise malformed()
    return [value.hex(":").encode()]


def _bits(value: bytes, is_thorough: bool) -> Texts:
    (count,) = _INT32.unpack_from(value)
    if not 0 <= count <= 8 * (len(value) - 4) or len(value) - 4 != (count + 7) // 8:
        raise malformed()
    return ["".join([f"{byte:08b}" for byte in value[4:]])[:count].encode(), *bytes_texts(value[4:])]


def _boolean(value: bytes, is_thorough: bool) -> Texts:
    return [b"t" if value != b"\x00" else b"f"]


def _raw(value: bytes, is_thorough: bool) -> Texts:
    return [value]


def _versioned(value: bytes, is_thorough: bool) -> Texts:
    if value[:1] != b"\x01":
        raise malformed()
    return [value[1:]]


def _snapshot(value: bytes, is_thorough: bool) -> Texts:
    if len(value) % 8 != 4:
        raise malformed()
    return [text for place in range(4, len(value), 8) for text in _int8(value[place : place + 8], is_thorough)]


def _count(value: bytes, item_bytes: int) -> int:
    """How many items a value says that it has, each of `item_bytes` at least."""
    count: int = _INT32.unpack_from(value)[0]
    if not 0 <= count <= (len(value) - 4) // item_bytes:
        raise malformed()
    return count


def _tsvector(value: bytes, is_thorough: bool) -> Texts:
    out: Texts = []
    place = 4
    for _ in range(_count(value, 3)):
        end = value.index(b"\x00", place)
        out.append(value[place:end])
        place = end + 3 + 2 * int.from_bytes(value[end + 1 : end + 3], "big")
    return out


def _tsquery(value: bytes, is_thorough: bool) -> Texts:
    out: Texts = []
    place = 4
    for _ in range(_count(value, 2)):
        if value[place] == 1:  # an operand: weight, whether a prefix, text
            end = value.index(b"\x00", place + 3)
            out.append(value[place + 3 : end])
            place = end + 1
        else:  # an operator; of a phrase with its distance
            place += 4 if value[place + 1] == 4 else 2
    return out


def _hstore(value: bytes, is_thorough: bool) -> Texts:
    """Keys and values."""
    out: Texts = []
    place = 4
    for _ in range(2 * _count(value, 8)):
        (size,) = _INT32.unpack_from(value, place)
        place += 4
        if size >= 0:
            out.append(value[place : place + size])
            place += size
    if place != len(value):
        raise malformed()
    return out


# Types of extensions, by their names.
EXTENSIONS: Final[dict[str, Callable[[bytes, bool], Texts]]] = {
    "citext": _raw, "cube": _floats, "hstore": _hstore,
    **dict.fromkeys(("ltree", "lquery", "ltxtquery"), _versioned),
}  # fmt: skip
# OID → what renders it.
SCALARS: Final[dict[int, Callable[[bytes, bool], Texts]]] = {
    kind.JSONB: _versioned, kind.BYTEA: bytes_texts, kind.MONEY: _money,
    16: _boolean, 18: _raw, 20: _int8, 21: _integer, 23: _integer, 26: _integer, 27: _raw, 28: _integer, 29: _integer,
    600: _floats, 601: _floats, 602: _floats, 603: _floats, 604: _floats, 628: _floats, 718: _floats,
    650: _inet, 869: _inet, 700: _float4, 701: _float8, 774: _mac, 829: _mac, 1082: _date, 1083: _time,
    1114: _timestamp, 1184: _timestamp, 1186: _interval, 1266: _time, 1560: _bits, 1562: _bits, 1700: _numeric,
    2278: _raw, 2950: _uuid, 2970: _snapshot, 3220: _integer, 3614: _tsvector, 3615: _tsquery, 4072: _versioned,
    5038: _snapshot, 5069: _integer,
    **dict.fromkeys((24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191), _integer),
}  # fmt: skip
