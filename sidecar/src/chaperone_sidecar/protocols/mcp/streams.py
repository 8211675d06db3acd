"""The old transport's streams: what a client has to hear of a message is told where it listens for answers.

A client of HTTP with SSE (2024-11-05) opens a stream, hears in its first event where to send messages, and reads
nothing of what a POST there answers. So a refusal becomes an event between those of the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urljoin, urlsplit

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import target as targets
from chaperone_sidecar.protocols.http.mask import data_of

ENDPOINT: Final = (b"event", b"endpoint")
MAX_TOLD: Final = 100  # refusals that wait for a client that does not read; of more it hears nothing


class Streams:
    """See the module; those of one target."""

    def __init__(self) -> None:
        self._open: dict[str, _Told] = {}

    def tell(self, place: str, message: bytes) -> None:
        """Tell who listens for the answers to what is sent to a place, if anybody does.

        Args:
            place: path and query, as they go on the wire.
            message: of JSON-RPC.
        """
        if (told := self._open.get(place)) is not None:
            told.add(b"event: message\ndata: " + message + b"\n\n")

    async def mixed(self, events: AsyncIterator[bytes], base: str) -> AsyncIterator[bytes]:
        """Events of a server, and between them what the gateway has to tell.

        Args:
            events: whole ones.
            base: the path that was asked for them.
        """
        told, place = _Told(), ""
        reading = _next(events)
        try:
            while True:
                await asyncio.wait((reading, told.arrived), return_when=asyncio.FIRST_COMPLETED)
                for event in told.take():
                    yield event
                if not reading.done():
                    continue
                read = reading.result()
                if read is None:
                    return
                if not place and (place := _place(read, base)):
                    self._open[place] = told
                yield read
                reading = _next(events)
        finally:
            reading.cancel()
            if self._open.get(place) is told:
                del self._open[place]


class _Told:
    """What waits for a stream."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self.arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, event: bytes) -> None:
        if len(self._events) < MAX_TOLD:
            self._events.append(event)
        if not self.arrived.done():
            self.arrived.set_result(None)

    def take(self) -> list[bytes]:
        if self.arrived.done():
            self.arrived = asyncio.get_running_loop().create_future()
        events = list(self._events)
        self._events.clear()
        return events


def _next(events: AsyncIterator[bytes]) -> asyncio.Task[bytes | None]:
    async def one() -> bytes | None:
        return await anext(events, None)

    task = asyncio.get_running_loop().create_task(one())
    # Whoever read the stream may be gone when the target breaks it off: nobody else asks what came of this.
    task.add_done_callback(_forget)
    return task


def _forget(done: asyncio.Task[bytes | None]) -> None:
    if not done.cancelled():
        done.exception()


def _place(event: bytes, base: str) -> str:
    """Where an event says that messages are sent to, as `Target.raw`; "" where it says no such thing."""
    others, data = data_of(event)
    if ENDPOINT not in [(name, value.removeprefix(b" ")) for name, _, value in (one.partition(b":") for one in others)]:
        return ""
    found = urlsplit(urljoin(base, data.decode("utf-8", "replace").strip()))
    try:
        return targets.read(found.path + (f"?{found.query}" if found.query else "")).raw
    except ProtocolError:  # what is sent there is refused for its form, and by a status of HTTP
        return ""
