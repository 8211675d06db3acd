"""Shipping: from the spool to the collector, in order, exactly once by (stream, number), for as long as it takes.

Streams that a former process of the pod left are shipped first and their files removed; then the living one, whose
segments are freed as the collector acknowledges them. Bodies go before the records that name them: whatever bodies the
spool holds when a batch of records is read are sent first.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from chaperone_evidence import ulid
from chaperone_sidecar.recording.cursor import Cursor
from chaperone_sidecar.recording.spool import Spool

logger = logging.getLogger(__name__)

IDLE_S: Final = 0.05  # how soon after a record its batch leaves when nothing else is under way
RETRY_FIRST_S: Final = 0.5
RETRY_LONGEST_S: Final = 10.0  # a collector that comes back is used within this time
REQUEST_TIMEOUT_S: Final = 30.0
ENTRY_PREFIX_BYTES: Final = 2  # the length before an entry
MAX_ANSWER_BYTES: Final = 64 << 10

# 401, 403: a certificate is about to be renewed; 408: the way is so slow that a request did not come to its end.
_TRANSIENT: Final = frozenset({401, 403, 408, 429, 500, 502, 503, 504})


class ShippingRefused(Exception):
    """The collector will not take this stream; trying again does not help. Its spool is kept."""


class _Unreachable(Exception):
    """The collector did not answer, or asked to be left alone; to be tried again."""


class Shipped(msgspec.Struct, frozen=True):
    """The newest record that the collector has acknowledged, byte by byte."""

    seq: int
    entry: bytes


class _Acked(msgspec.Struct):
    acked: int


class Shipper:
    """Ships everything under one evidence directory.

    Args:
        root: the directory.
        spool: the living stream's spool; told what is acknowledged.
        url: the collector, `https://host:port`.
        session: gives the HTTP session in force (its certificate is renewed from time to time).
    """

    def __init__(self, root: Path, spool: Spool, url: str, session: Callable[[], aiohttp.ClientSession]) -> None:
        self._root = root
        self._spool = spool
        self._url = url
        self._session = session
        self.acked_seq = -1
        self._last = Shipped(-1, b"")
        self._hurry = asyncio.Event()
        self._came = asyncio.Event()

    def hurry(self) -> None:
        """Somebody waits for what is in the spool: ship it now."""
        self._hurry.set()

    async def beyond(self, seq: int) -> Shipped:
        """The newest acknowledged record of the living stream, once it is one after that."""
        while self._last.seq <= seq:
            await self._came.wait()
        return self._last

    async def run(self) -> None:
        """Ship until cancelled.

        Raises:
            ShippingRefused: the living stream is refused.
        """
        for stream in self._left_behind():
            try:
                await self._ship(stream, is_living=False)
            except ShippingRefused as error:
                logger.error("stream %s is refused by the collector and stays in the spool: %s", stream, error)
            else:
                self._remove(stream)
        await self._ship(self._spool.stream, is_living=True)

    def _left_behind(self) -> list[str]:
        names = (path.name for path in (self._root / "streams").glob("*"))
        return sorted(name for name in names if ulid.is_ulid(name) and name < self._spool.stream)

    async def _ship(self, stream: str, *, is_living: bool) -> None:
        acked = _acked(await self._call("GET", f"/v1/streams/{stream}", None))
        records = Cursor(self._root / "streams" / stream, ENTRY_PREFIX_BYTES)
        bodies = Cursor(self._root / "bodies" / stream, 4)
        while True:
            batch, lengths = records.peek()
            if not lengths:
                if not is_living:
                    return
                await self._rest()
                continue
            first = records.number  # the first segments of a stream may be gone: acknowledged, and freed
            if first + len(lengths) - 1 > acked:
                await self._send_bodies(bodies)
                path = f"/v1/streams/{stream}/records?from={first}"
                acked = _acked(await self._call("POST", path, batch))
            records.advance(lengths)
            if acked < records.number - 1:
                raise ShippingRefused(f"it acknowledges {acked} after having taken {records.number - 1}")
            if is_living:
                self.acked_seq = acked
                self._last = Shipped(records.number - 1, batch[sum(lengths[:-1]) + ENTRY_PREFIX_BYTES :])
                self._came.set()
                self._came = asyncio.Event()
                self._spool.release(acked)

    async def _rest(self) -> None:
        """Until it is time to look again, or somebody hurries."""
        try:
            async with asyncio.timeout(IDLE_S):
                await self._hurry.wait()
        except TimeoutError:
            pass
        self._hurry.clear()

    async def _send_bodies(self, bodies: Cursor) -> None:
        while True:
            data, lengths = bodies.peek()
            if not lengths:
                return
            await self._call("POST", "/v1/bodies", data)
            bodies.advance(lengths)

    async def _call(self, method: str, path: str, data: bytes | None) -> bytes:
        """Ask until the collector answers: the spool is the buffer meanwhile, and its bound is the limit."""
        pause = RETRY_FIRST_S
        while True:
            try:
                return await self._once(method, path, data)
            except _Unreachable as error:
                logger.warning("the collector is not reached (%s); records stay in the spool", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_LONGEST_S)

    async def _once(self, method: str, path: str, data: bytes | None) -> bytes:
        try:
            async with self._session().request(
                method, self._url + path, data=data, timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
            ) as response:
                answer = await _whole(response.content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Unreachable(type(error).__name__) from error
        if response.status in _TRANSIENT:
            raise _Unreachable(f"status {response.status}")
        if response.status not in (200, 204):
            raise ShippingRefused(f"status {response.status}")
        return answer

    def _remove(self, stream: str) -> None:
        folders = [self._root / family / stream for family in ("streams", "bodies")]
        freed = sum(path.stat().st_size for folder in folders for path in folder.glob("*"))
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._spool.forget(freed)


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """An answer to its end, in however many pieces it comes.

    Raises:
        _Unreachable: whoever answers is no collector: it does not end.
    """
    found = bytearray()
    async for piece in content.iter_any():
        found += piece
        if len(found) > MAX_ANSWER_BYTES:
            raise _Unreachable("an answer without end")
    return bytes(found)


def _acked(answer: bytes) -> int:
    try:
        return msgspec.json.decode(answer, type=_Acked).acked
    except msgspec.DecodeError as error:
        raise ShippingRefused("its answer cannot be read") from error
