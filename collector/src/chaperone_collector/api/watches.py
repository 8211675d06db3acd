"""Sending a watch: who may have how many open, and its events as they come."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from chaperone_collector.api import render, watch
from chaperone_collector.api.question import Question, read_flag, read_timeout, read_version
from chaperone_collector.api.status import ApiError, bad_request
from chaperone_collector.metrics import Metrics
from chaperone_collector.store import Store

log = logging.getLogger(__name__)

MAX_WATCHES: Final = 512
MAX_WATCHES_PER_USER: Final = 64
WRITE_TIMEOUT_S: Final = 60.0  # a reader that takes nothing for that long is cut off


class Order(msgspec.Struct, frozen=True):
    """What a watch was asked for: from which version on, whether what is there comes first, whether bookmarks come."""

    since: int
    timeout_s: float
    initial: bool
    bookmarks: bool


def read_order(query: Mapping[str, str], size: int) -> Order:
    """Read the parameters of a watch of a log with `size` entries.

    Raises:
        ApiError: they contradict each other, or a version is none.
    """
    initial = read_flag(query, "sendInitialEvents")
    bookmarks = read_flag(query, "allowWatchBookmarks")
    if initial and (not bookmarks or query.get("resourceVersionMatch") != "NotOlderThan"):
        raise bad_request("sendInitialEvents needs allowWatchBookmarks=true and resourceVersionMatch=NotOlderThan")
    return Order(read_version(query.get("resourceVersion", ""), size), read_timeout(query), initial, bookmarks)


class Watches:
    """The watches that are open.

    Args:
        store: the log.
        metrics: where they are counted.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._open: Counter[str] = Counter()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all of them, so that their connections can be closed."""
        self._stopping.set()

    def admit(self, user: str) -> None:
        """Refuse one more when there are too many.

        Raises:
            ApiError: there are.
        """
        if self._open.total() >= MAX_WATCHES or self._open[user] >= MAX_WATCHES_PER_USER:
            raise ApiError(429, "TooManyRequests", "too many watches are open; close one", retry_after_s=5)

    async def send(
        self, request: web.Request, user: str, reader: watch.Reader, question: Question, order: Order,
        form: render.Form, columns: list[dict[str, Any]],
    ) -> web.StreamResponse:  # fmt: skip
        """Send events until the caller goes, the time is over, or the collector stops."""
        since = 0 if order.initial else order.since
        view = watch.Watch(self._store, reader, question, since, initial=order.initial)
        self._open[user] += 1
        self._metrics.watches.inc()
        try:
            return await self._events(request, view, order, form, question.resource, columns)
        finally:
            self._metrics.watches.dec()
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]

    async def _events(
        self, request: web.Request, view: watch.Watch, order: Order, form: render.Form, resource: str,
        columns: list[dict[str, Any]],
    ) -> web.StreamResponse:  # fmt: skip
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        stopped = asyncio.ensure_future(self._stopping.wait())
        events = view.events(order.timeout_s)
        try:
            while True:
                following = asyncio.ensure_future(anext(events, None))
                await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    await asyncio.wait((following,))
                    break
                event = following.result()
                if event is None:
                    break
                if event.found is not None:
                    line = watch.encode(event.type, render.render_one(form, columns, event.found))
                    columns = []  # only the first table of a watch says its columns
                elif order.bookmarks:
                    shown = render.render_bookmark(form, resource, event.version, ends_initial=event.ends_initial)
                    line = watch.encode(event.type, shown)
                else:
                    continue
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await answer.write(line)
        except (ConnectionError, TimeoutError):
            log.info("a watch ended: its reader is gone or takes nothing")
        finally:
            stopped.cancel()
            await events.aclose()
        return answer
