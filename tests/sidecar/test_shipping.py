"""From the gateway's spool to the real collector: nothing lost, nothing doubled, order kept, space freed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from fix_collector import Collector
from gateway_stream import Pod
from pki import Authority
from spooled import begin, work

from chaperone_evidence import ulid
from chaperone_sidecar.recording import shipper as shipping
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.shipper import Shipper
from chaperone_sidecar.recording.spool import Spool

pytestmark = pytest.mark.peer

WAIT_S = 60.0


@asynccontextmanager
async def shipping_to(collector: Collector, pod: Pod, root: Path, spool: Spool) -> AsyncIterator[Shipper]:
    """A shipper that runs for the block."""
    connector = aiohttp.TCPConnector(ssl=pod.client_tls(collector.service_ca.pem))
    async with aiohttp.ClientSession(connector=connector) as http:
        shipper = Shipper(root, spool, collector.ingest, lambda: http)
        task = asyncio.create_task(shipper.run())
        try:
            yield shipper
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(shipper: Shipper, seq: int) -> None:
    """Wait until the collector has acknowledged that record."""
    async with asyncio.timeout(WAIT_S):
        while shipper.acked_seq < seq:  # noqa: ASYNC110 - the shipper has no event for it, and needs none
            await asyncio.sleep(0.02)


def stored(collector: Collector) -> int:
    """Entries that the collector holds."""
    (row,) = collector.rows("SELECT count(*) FROM entry")
    return int(row[0])


@pytest.fixture
def running(collector_with: Callable[..., Collector]) -> Collector:
    return collector_with()


async def test_everything_arrives_once_and_the_spool_is_freed(running: Collector, tmp_path: Path) -> None:
    pod = Pod(running.gateway_ca)
    recorder, spool = begin(pod, tmp_path)
    async with shipping_to(running, pod, tmp_path, spool) as shipper:
        for _ in range(4):
            work(recorder, 2000, size=400)
            await until(shipper, recorder.next_seq - 1)
        assert stored(running) == recorder.next_seq
        assert spool.used_bytes <= 8 << 20


async def test_a_collector_that_was_away_loses_and_doubles_nothing(running: Collector, tmp_path: Path) -> None:
    pod = Pod(running.gateway_ca)
    recorder, spool = begin(pod, tmp_path)
    async with shipping_to(running, pod, tmp_path, spool) as shipper:
        work(recorder, 300)
        await until(shipper, 10)
        running.kill()
        work(recorder, 300)
        await asyncio.sleep(2 * shipping.RETRY_FIRST_S)
        work(recorder, 300)
        ports = list(running.ports)
        running.more = ("--api-port", "-1", "--ingest-port", str(ports[-2]))
        running.start()
        await until(shipper, recorder.next_seq - 1)
    assert stored(running) == recorder.next_seq
    sequence = [row[0] for row in running.rows("SELECT seq FROM entry ORDER BY idx")]
    assert sequence == list(range(recorder.next_seq))


async def test_the_stream_of_a_killed_process_is_shipped_by_the_next_one(running: Collector, tmp_path: Path) -> None:
    first = Pod(running.gateway_ca)
    recorder, dead_spool = begin(first, tmp_path)
    work(recorder, 100)
    second = Pod(running.gateway_ca)
    next_recorder, spool = begin(second, tmp_path)
    async with shipping_to(running, second, tmp_path, spool) as shipper:
        await until(shipper, next_recorder.next_seq - 1)
    assert stored(running) == recorder.next_seq + next_recorder.next_seq
    assert not (tmp_path / "streams" / dead_spool.stream).exists()
    assert not (tmp_path / "bodies" / dead_spool.stream).exists()


class Slow:
    """A collector at the end of a bad way: it answers in pieces, and not each time."""

    def __init__(self, says_no: int) -> None:
        self.url, self._says_no, self.count = "", says_no, 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1]) if length else 0)
                entries = re.search(rb"/records\?from=(\d+)", head)
                if entries and self._says_no:
                    self._says_no -= 1
                    writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
                    continue
                if entries:
                    self.count = int(entries[1]) + number_of(body)
                told = b'{"acked":%d}' % (self.count - 1)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told[:4])
                await writer.drain()
                await asyncio.sleep(0.05)  # so that the rest comes by itself
                writer.write(told[4:])


def number_of(body: bytes) -> int:
    """How many entries there are in a batch."""
    count = 0
    while body:
        body = body[shipping.ENTRY_PREFIX_BYTES + int.from_bytes(body[: shipping.ENTRY_PREFIX_BYTES], "big") :]
        count += 1
    return count


async def test_a_slow_way_is_tried_again_and_answers_come_in_pieces(
    gateway_ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "RETRY_FIRST_S", 0.05)
    pod = Pod(gateway_ca)
    recorder, spool = begin(pod, tmp_path)
    work(recorder, 20)
    slow = Slow(says_no=2)
    async with slow.listening(), aiohttp.ClientSession() as http:
        shipper = Shipper(tmp_path, spool, slow.url, lambda: http)
        task = asyncio.create_task(shipper.run())
        await until(shipper, recorder.next_seq - 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert slow.count == recorder.next_seq


class Ahead(Ids):
    """Of a machine whose clock is wrong by a day."""

    def ulid(self, after: str = "") -> str:
        found = super().ulid(after)
        return ulid.encode(ulid.time_ms(found) + 86_400_000, self.random(ulid.RANDOM_BYTES))


async def test_the_stream_of_a_killed_process_is_shipped_though_its_clock_was_ahead(
    running: Collector, tmp_path: Path
) -> None:
    first = Pod(running.gateway_ca)
    recorder, dead_spool = begin(first, tmp_path, ids=Ahead())
    work(recorder, 100)
    second = Pod(running.gateway_ca)
    next_recorder, spool = begin(second, tmp_path)
    assert spool.stream > dead_spool.stream
    async with shipping_to(running, second, tmp_path, spool) as shipper:
        await until(shipper, next_recorder.next_seq - 1)
    assert stored(running) == recorder.next_seq + next_recorder.next_seq
    assert not (tmp_path / "streams" / dead_spool.stream).exists()


async def test_the_tail_of_a_killed_process_is_shipped_though_its_first_segments_are_gone(
    running: Collector, tmp_path: Path
) -> None:
    first = Pod(running.gateway_ca)
    recorder, dead_spool = begin(first, tmp_path)
    async with shipping_to(running, first, tmp_path, dead_spool) as shipper:
        work(recorder, 4000)
        await until(shipper, recorder.next_seq - 1)
    left = sorted(path.name for path in (tmp_path / "streams" / dead_spool.stream).glob("*.seg"))
    assert left[0] > f"{2000:016d}.seg"
    work(recorder, 20)  # nobody has heard of these
    second = Pod(running.gateway_ca)
    next_recorder, spool = begin(second, tmp_path)
    async with shipping_to(running, second, tmp_path, spool) as shipper:
        await until(shipper, next_recorder.next_seq - 1)
    assert stored(running) == recorder.next_seq + next_recorder.next_seq
    assert not (tmp_path / "streams" / dead_spool.stream).exists()
