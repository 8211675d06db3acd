"""Watches: what changed since a version of the log, and then what changes.

A watch is a cursor over the log. It never falls out of a window: whatever version a caller names is still there, so a
watch never ends with 410. Changes of one session between two looks are one event.

Versions in the stream of events never go back, and nothing below the version of an event that was sent is still to
come: a caller may break off anywhere and resume from the last version seen.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec

from chaperone_collector.api.commands import Commands
from chaperone_collector.api.evidencereports import EvidenceReports
from chaperone_collector.api.question import Found, Question
from chaperone_collector.api.reads import Reads
from chaperone_collector.api.sessions import Sessions, is_mutable, matches
from chaperone_collector.store import Store

WINDOW_ENTRIES: Final = 5000  # of the log looked at in one read
WINDOW_SESSIONS: Final = 500
BOOKMARK_S: Final = 30.0  # how far a caller that resumes has to look again, in time
MAX_REMEMBERED: Final = 10_000  # sessions of one watch whose fitting is remembered
SETTLE_S: Final = 0.05  # commits come every few milliseconds under load; one look takes several

type Reader = Sessions | Commands | Reads | EvidenceReports


class Event(msgspec.Struct, frozen=True):
    """ADDED, MODIFIED or DELETED; BOOKMARK has no object and says how far the watch is."""

    type: str
    found: Found | None
    version: int
    ends_initial: bool = False


class Watch:
    """One watch.

    Args:
        store: the log.
        question: what fits.
        since: size of the log that the caller has seen.
        initial: whether the caller asked to be told when what was there at the start is complete.
    """

    def __init__(self, store: Store, reader: Reader, question: Question, since: int, *, initial: bool) -> None:
        self._store = store
        self._reader = reader
        self._question = question
        self._cursor = since
        self._began = since
        self._initial = initial
        self._told: OrderedDict[int, bool] = OrderedDict()  # session → whether it fitted when last seen

    async def events(self, timeout_s: float) -> AsyncGenerator[Event]:
        """Events until the time is over."""
        ends = time.monotonic() + timeout_s
        until = self._store.size
        bookmark_at = time.monotonic() + BOOKMARK_S
        while True:
            while self._cursor < until:
                for event in await self._window(until):
                    yield event
            if self._initial:
                self._initial = False
                yield Event("BOOKMARK", None, self._cursor, ends_initial=True)
            now = time.monotonic()
            if now >= bookmark_at:
                bookmark_at = now + BOOKMARK_S
                yield Event("BOOKMARK", None, self._cursor)
            if now >= ends:
                return
            until = await self._store.grown(self._cursor, min(ends, bookmark_at) - now)
            if until > self._cursor:
                await asyncio.sleep(SETTLE_S)
                until = self._store.size

    async def _window(self, until: int) -> list[Event]:
        since, reader, question = self._cursor, self._reader, self._question
        if not isinstance(reader, Sessions):
            end = min(until, since + WINDOW_ENTRIES)
            found = await self._store.read(lambda db: reader.changes(db, question, since, end))
            self._cursor = end
            return [Event("ADDED" if one.idx >= since else "MODIFIED", one, one.changed + 1) for one in found]
        sessions, more = await self._store.read(lambda db: reader.changes(db, question, since, WINDOW_SESSIONS))
        # The read may have seen entries beyond `until`; what it returned is never told twice.
        seen = sessions[-1].changed + 1 if sessions else until
        self._cursor = more if more is not None else max(until, seen)
        return [event for one in sessions if (event := self._session(one, since)) is not None]

    def _session(self, one: Found, since: int) -> Event | None:
        fits = matches(self._question, one)
        is_new = one.idx >= since
        if not is_mutable(self._question):
            return Event("ADDED" if is_new else "MODIFIED", one, one.changed + 1) if fits else None
        # What is not remembered may have fitted when the caller listed it, if it was there then.
        fitted = self._told.pop(one.idx, one.idx < self._began)
        self._told[one.idx] = fits
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        if fits:
            return Event("MODIFIED" if fitted else "ADDED", one, one.changed + 1)
        return Event("DELETED", one, one.changed + 1) if fitted else None


def encode(kind: str, value: dict[str, Any]) -> bytes:
    """One line of the answer."""
    return msgspec.json.encode({"type": kind, "object": value}) + b"\n"
