"""Windows of time: when a policy or a rule is in force, by the clock on the wall of a time zone.

A window that ends at or before its beginning goes over midnight, and belongs to the days on which it begins. Whether a
minute is inside is decided in `engine.rego` alone.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Iterable, Iterator
from typing import Any, Final

from chaperone_operator.compile.model import Window

MAX_WINDOWS: Final = 10  # of a policy or a rule; a year's calendar belongs elsewhere
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

DAY_MINUTES: Final = 24 * 60

_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_DAY_WORDS: Final = "Mon, Tue, Wed, Thu, Fri, Sat, Sun or a range such as Mon-Fri"


def problems(windows: tuple[Window, ...] | None, at: str) -> Iterator[tuple[str, str]]:
    """What is wrong with windows: a reason, and a message that begins with the field."""
    if windows is None:
        return
    if not windows:
        yield "NoWindow", f"{at}: empty, so it is never in force; name a window or leave it out."
    if len(windows) > MAX_WINDOWS:
        yield "TooManyWindows", f"{at}: more than {MAX_WINDOWS}."
    for index, entry in enumerate(windows):
        here = f"{at}[{index}]"
        if entry.days is not None and not entry.days:
            yield "EmptyWindow", f"{here}.days: empty, so it is never inside; leave it out to mean every day."
        for day in entry.days or ():
            if days(day) is None:
                yield "BadWindow", f"{here}.days: {day!r} is not {_DAY_WORDS}."
        begin, end = minute(entry.begin), minute(entry.end)
        if begin is None or entry.begin == "24:00":
            yield "BadWindow", f"{here}.from: {entry.begin!r} is no time such as 07:00, up to 23:59."
        if end is None:
            yield "BadWindow", f"{here}.to: {entry.end!r} is no time such as 19:00, up to 24:00."
        if begin is not None and begin == end:
            yield "EmptyWindow", f"{here}: from and to are both {entry.begin}; a whole day is 00:00 to 24:00."
        if entry.timezone not in _zones():
            yield (
                "UnknownTimezone",
                f"{here}.timezone: {entry.timezone!r} is no time zone; write a name such as Europe/Berlin, or UTC.",
            )


def told(windows: Iterable[Window]) -> list[dict[str, Any]]:
    """Windows as the engine reads them: days from Monday (0), minutes of the day."""
    return [
        {
            "days": sorted({day for text in entry.days or ("Mon-Sun",) for day in days(text) or ()}),
            "from": minute(entry.begin),
            "to": minute(entry.end),
            "zone": entry.timezone,
        }
        for entry in windows
    ]


def never_meet(one: tuple[Window, ...] | None, other: tuple[Window, ...] | None) -> bool:
    """Whether no minute of the week is in windows of both; False where zones differ, or that is not plain to see."""
    both = (*(one or ()), *(other or ()))
    if not one or not other or len({entry.timezone for entry in both}) > 1 or [*problems(both, "")]:
        return False
    return not _minutes(one) & _minutes(other)


def _minutes(windows: tuple[Window, ...]) -> set[int]:
    """The minutes of the week, from Monday's first."""
    found: set[int] = set()
    for entry in told(windows):
        length = (entry["to"] - entry["from"]) % DAY_MINUTES or DAY_MINUTES
        for day in entry["days"]:
            begin = day * DAY_MINUTES + entry["from"]
            found.update(minute % (DAY_MINUTES * len(DAYS)) for minute in range(begin, begin + length))
    return found


def days(text: str) -> tuple[int, ...] | None:
    """The days of one text, Monday is 0; a range may go over the weekend. None when it is none."""
    first, dash, last = text.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        return None
    begin = DAYS.index(first)
    count = (DAYS.index(last) - begin) % len(DAYS) if dash else 0
    return tuple((begin + offset) % len(DAYS) for offset in range(count + 1))


def minute(text: str) -> int | None:
    """The minute of the day, None when it is none."""
    if _TIME.fullmatch(text) is None:
        return None
    hour, _, rest = text.partition(":")
    return int(hour) * 60 + int(rest)


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
