"""Several collector processes on one PostgreSQL database: one log, whoever writes, dies, or is away for a while."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from fix_collector import Collector, Sender
from fix_evidence_server import SETTINGS, EvidenceServer, Place
from fix_postgres import restarted, start
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector import tree
from chaperone_evidence import entry, merkle

LIMIT_S = 60.0
LOOK_S = 0.1
POURED = 1200

type Started = Callable[..., Collector]


def whole(place: Place) -> int:
    """Whether the log has no gap, nothing twice, one tree, and what it signed; returns its size."""
    rows = place.rows("SELECT idx, bytes FROM entry ORDER BY idx")
    assert [idx for idx, _ in rows] == list(range(len(rows)))
    streams = place.rows("SELECT s.count, count(e.seq), max(e.seq) + 1 FROM stream s "
                         "JOIN entry e ON e.stream = s.id GROUP BY s.id, s.count")  # fmt: skip
    assert all(said == there == last for said, there, last in streams)
    root = merkle.root(merkle.leaf_hash(data) for _, data in rows)
    db = place.server.open_reader()
    db.begin_read()
    assert tree.read_root(db, len(rows)) == root
    for size, signed in db.execute("SELECT size, root FROM checkpoint").fetchall():
        assert tree.read_root(db, size) == signed
    db.close()
    return len(rows)


class Poured:
    """A stream that is sent to one collector after another; what was acknowledged is remembered."""

    def __init__(self, ca: Authority, number: int) -> None:
        self.pod = Pod(ca, pod_uid=f"uid-{number}", pod=f"agent-{number}", identity=f"agent-{number % 3}")
        self.stream = Stream(self.pod)
        self.session = self.stream.open_session()
        self.sent: list[bytes] = []
        self.acked = -1

    def more(self) -> tuple[int, bytes]:
        """A batch."""
        for _ in range(20):
            self.stream.conclude(self.session, self.stream.intend(self.session, with_body=False))
        self.sent += self.stream.frames
        return self.stream.take()

    async def send(self, collector: Collector, first: int, data: bytes) -> int:
        """Send frames as a gateway does, which comes again when it is told to; the last status."""
        async with Sender(collector, self.pod) as sender, asyncio.timeout(LIMIT_S):
            while True:
                status, answer = await sender.post(self.stream.id, first, data)
                if status != 503:
                    break
                await asyncio.sleep(0.1)
        if status == 200:
            self.acked = max(self.acked, answer["acked"])
        return status

    async def go_on(self, collector: Collector) -> None:
        """Send what the collector says that it lacks; nothing acknowledged may be among that."""
        async with Sender(collector, self.pod) as sender:
            stored = await sender.acked(self.stream.id)
        assert stored >= self.acked
        if stored + 1 < len(self.sent):
            assert await self.send(collector, stored + 1, b"".join(self.sent[stored + 1 :])) == 200

    def check(self, place: Place) -> None:
        """The log has what was sent, byte by byte."""
        rows = place.rows("SELECT e.bytes FROM entry e JOIN stream s ON s.id = e.stream WHERE s.name = ? ORDER BY seq",
                          self.stream.id)  # fmt: skip
        assert [entry.frame(row[0]) for row in rows] == self.sent


async def test_collectors_take_turns_with_one_stream_and_many_at_once(
    collector_with: Started, evidence_server: EvidenceServer, gateway_ca: Authority
) -> None:
    place = evidence_server.place()
    pair = [collector_with(place=place) for _ in range(2)]
    one = Poured(gateway_ca, 0)
    for number in range(20):  # the rest of a session, its intents, its chain: each in another process's memory
        assert await one.send(pair[number % 2], *one.more()) == 200
    intent = one.stream.intend(one.session, with_body=False)
    one.sent += one.stream.frames
    assert await one.send(pair[0], *one.stream.take()) == 200
    one.stream.conclude(one.session, intent)
    one.stream.close_session(one.session, 401)
    one.sent += one.stream.frames
    assert await one.send(pair[1], *one.stream.take()) == 200
    assert place.rows("SELECT commands, ended_us IS NOT NULL FROM session") == [(401, True)]
    assert place.rows("SELECT count(*) FROM outcome") == [(401,)]
    assert place.rows("SELECT * FROM finding") == []
    many = [Poured(gateway_ca, number) for number in range(1, 9)]

    async def pour(poured: Poured) -> None:
        for number in range(6):
            assert await poured.send(pair[number % 2], *poured.more()) == 200

    await asyncio.gather(*map(pour, many))
    for poured in (one, *many):
        poured.check(place)
    assert whole(place) == sum(len(poured.sent) for poured in (one, *many))


async def test_a_batch_that_comes_to_both_at_once_is_stored_once(
    collector_with: Started, evidence_server: EvidenceServer, gateway_ca: Authority
) -> None:
    place = evidence_server.place()
    pair = [collector_with(place=place) for _ in range(2)]
    poured = Poured(gateway_ca, 0)
    for _ in range(10):
        batch = poured.more()
        answers = await asyncio.gather(*(poured.send(collector, *batch) for collector in (*pair, *pair)))
        assert 200 in answers
        assert set(answers) <= {200, 409}
        await poured.go_on(pair[1])
    assert poured.acked == len(poured.sent) - 1
    assert place.rows("SELECT * FROM quarantine") == []
    poured.check(place)
    whole(place)


async def test_receipts_come_from_the_one_that_does_not_sign(
    collector_with: Started, evidence_server: EvidenceServer, gateway_ca: Authority
) -> None:
    """With the usual pause, which is longer than a request waits, next to none would be 200 at once.

    One that a busy machine keeps waiting is told so, and asks again.
    """
    place = evidence_server.place()
    pair = [collector_with(place=place) for _ in range(2)]
    first: list[int] = []
    for number, collector in enumerate(pair):
        poured = Poured(gateway_ca, number)
        for _ in range(3):
            assert await poured.send(collector, *poured.more()) == 200
            async with Sender(collector, poured.pod) as sender, asyncio.timeout(LIMIT_S):
                url = f"{sender.base}/v1/streams/{poured.stream.id}/receipt?seq={poured.acked}"
                statuses: list[int] = []
                while 200 not in statuses:
                    async with sender.http.get(url) as answer:
                        assert answer.status in (200, 503), await answer.text()
                        statuses.append(answer.status)
            first.append(statuses[0])
    assert first.count(200) > 3


async def test_kill_9_of_one_under_load_loses_nothing_that_was_acknowledged(
    collector_with: Started, evidence_server: EvidenceServer, gateway_ca: Authority
) -> None:
    place = evidence_server.place()
    pair = [collector_with(place=place) for _ in range(2)]
    streams = [Poured(gateway_ca, number) for number in range(4)]
    await _pour_until(streams, pair, pair[0].kill)
    for poured in streams:
        await poured.go_on(pair[1])
    await _signed(place)  # by the one that is left
    for poured in streams:
        poured.check(place)
    whole(place)


async def _pour_until(streams: list[Poured], collectors: list[Collector], end: Callable[[], object]) -> None:
    """Pour streams into collectors in turn, and end something once enough was acknowledged."""
    enough = asyncio.Event()
    before = sum(poured.acked for poured in streams)

    async def pour(number: int, poured: Poured) -> None:
        async with Sender(collectors[number % len(collectors)], poured.pod) as sender:
            while True:
                first, data = poured.more()
                try:
                    status, answer = await sender.post(poured.stream.id, first, data)
                except (OSError, TimeoutError, aiohttp.ClientError):
                    return
                if status != 200:
                    assert status == 503, answer
                    return
                poured.acked = answer["acked"]
                if sum(one.acked for one in streams) - before > POURED:
                    enough.set()
                    if ended.is_set():
                        return

    ended = asyncio.Event()
    tasks = [asyncio.create_task(pour(*pair)) for pair in enumerate(streams)]
    async with asyncio.timeout(LIMIT_S):
        await enough.wait()
        await asyncio.to_thread(end)
        ended.set()
        await asyncio.gather(*tasks)


@pytest.fixture
def own_server() -> Iterator[tuple[EvidenceServer, list[subprocess.Popen[bytes]]]]:
    """A server that the test may end."""
    with tempfile.TemporaryDirectory(prefix="chaperone-pg-") as folder, tempfile.TemporaryDirectory() as places:
        Path(folder).chmod(0o755)
        postgres, process = start(Path(folder), settings=SETTINGS)
        running = [process]
        try:
            yield EvidenceServer(postgres, Path(places)), running
        finally:
            running[-1].send_signal(signal.SIGQUIT)
            running[-1].wait(LIMIT_S)


async def test_a_server_that_crashes_and_comes_back_costs_nobody_an_entry(
    collector_with: Started,
    own_server: tuple[EvidenceServer, list[subprocess.Popen[bytes]]],
    gateway_ca: Authority,
) -> None:
    server, running = own_server
    place = server.place()
    pair = [collector_with(place=place) for _ in range(2)]
    streams = [Poured(gateway_ca, number) for number in range(4)]

    def crash() -> None:
        running[-1].send_signal(signal.SIGQUIT)
        running[-1].wait(LIMIT_S)

    await _pour_until(streams, pair, crash)
    async with Sender(pair[0], streams[0].pod) as sender:
        status, answer = await sender.post(streams[0].stream.id, 0, b"".join(streams[0].sent[:2]))
        assert (status, answer["title"]) == (503, "Busy")
    running.append(restarted(server.postgres))
    for number, poured in enumerate(streams):
        await _back(pair[number % 2], poured)
        await poured.go_on(pair[number % 2])
        poured.check(place)
    assert all(collector.process is not None and collector.process.poll() is None for collector in pair)
    await _signed(place)
    whole(place)


async def _back(collector: Collector, poured: Poured) -> None:
    """Wait until the collector reaches its server again."""
    async with Sender(collector, poured.pod) as sender, asyncio.timeout(LIMIT_S):
        for _ in range(round(LIMIT_S / LOOK_S)):
            async with sender.http.get(f"{sender.base}/v1/streams/{poured.stream.id}") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(LOOK_S)
    pytest.fail("the collector does not reach its server")


async def _signed(place: Place) -> None:
    """Wait until all of the log is signed."""
    for _ in range(round(LIMIT_S / LOOK_S)):
        if place.rows("SELECT (SELECT count(*) FROM entry) = (SELECT max(size) FROM checkpoint)") == [(True,)]:
            return
        await asyncio.sleep(LOOK_S)
    pytest.fail("nobody signs the log")
