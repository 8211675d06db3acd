"""Names of objects, and how times and durations are written."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS: Final = 13  # 65 bits: every index, and names sort as the log does
_NAMESPACE: Final = uuid.UUID("6e2f9a52-6f60-5e0b-9c3e-3f4e0a5c1d77")  # of uids; never changes
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_YEAR: Final = 365 * _DAY


def index_name(prefix: str, idx: int) -> str:
    """The name of the object whose entry has this index."""
    return prefix + "".join(_ALPHABET[(idx >> shift) & 31] for shift in range(5 * (_DIGITS - 1), -1, -5))


def name_index(prefix: str, name: str) -> int | None:
    """The index in such a name; None when it is none."""
    digits = name.removeprefix(prefix)
    if len(digits) != _DIGITS or len(name) != _DIGITS + len(prefix) or any(one not in _ALPHABET for one in digits):
        return None
    idx = 0
    for digit in digits:
        idx = idx << 5 | _ALPHABET.index(digit)
    return idx if idx < 1 << 63 else None


def uid(stream: str, seq: int) -> str:
    """The uid of the object that begins with this record."""
    return str(uuid.uuid5(_NAMESPACE, f"{stream}/{seq}"))


def seconds(wall_us: int) -> str:
    """A `metav1.Time`."""
    return _moment(wall_us).isoformat(timespec="seconds") + "Z"


def micros(wall_us: int) -> str:
    """A `metav1.MicroTime`."""
    return _moment(wall_us).isoformat(timespec="microseconds") + "Z"


def duration(us: int) -> str:
    """A length of time as kubectl shows it: two units at most, the finer one only while it matters."""
    total = max(0, us) // 1_000_000
    minutes, hours, days, years = total // _MINUTE, total // _HOUR, total // _DAY, total // _YEAR
    if total < 2 * _MINUTE:
        return f"{total}s"
    if minutes < 10:
        return _two(minutes, "m", total % _MINUTE, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 2920:
        return _two(years, "y", days % 365, "d")
    return f"{years}y"


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first}{first_unit}{second}{second_unit}" if second else f"{first}{first_unit}"


def _moment(wall_us: int) -> datetime:
    """In UTC, which is not said again by its `isoformat`: that is twice as fast as `strftime`."""
    try:
        return datetime.fromtimestamp(wall_us / 1_000_000, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return datetime(1970, 1, 1)  # a gateway's clock that names no date of ours
