"""The period of a report: days, in UTC. Times of records are RFC 3339 in UTC, so that they compare as texts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class BadPeriod(Exception):
    """The period cannot be asked for; the text says why."""


class Period(msgspec.Struct, frozen=True):
    """From the beginning of one moment to just before another, as RFC 3339 texts."""

    since: str
    until: str

    def holds(self, moment: object) -> bool:
        """Whether a time of a record is in it."""
        return isinstance(moment, str) and self.since <= moment < self.until

    def overlaps(self, first: object, last: object) -> bool:
        """Whether a time from `first` to `last` (empty: it lasts) has a part in it."""
        begins = str(first or "")
        return begins < self.until and (not last or str(last) >= self.since)

    def is_whole(self, first: object, last: object) -> bool:
        """Whether such a time lies in it from its beginning to its end."""
        return self.holds(first) and self.holds(last)


def days(first: str, last: str) -> Period:
    """The days from one to the other, both included.

    Raises:
        BadPeriod: one is no day, or the last comes before the first.
    """
    try:
        begin, end = date.fromisoformat(first), date.fromisoformat(last) + timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise BadPeriod(f"A day is written as 2026-03-31: {error}") from error
    if end <= begin:
        raise BadPeriod(f"The period ends on {last}, before it begins.")
    return Period(*(f"{one:%Y-%m-%d}T00:00:00.000000Z" for one in (begin, end)))


def now() -> str:
    """This moment."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def micros(wall_us: int) -> str:
    """A time of a record, as the evidence API writes it."""
    return f"{_EPOCH + timedelta(microseconds=wall_us):%Y-%m-%dT%H:%M:%S.%fZ}"
