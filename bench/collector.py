"""Durable records a second: how many entries a collector acknowledges over mTLS, after their commit is on disk.

    uv run python bench/collector.py [--streams 50] [--batch 256] [--records 200000] [--rounds 5] [--data DIR]
        [--postgresql] [--collectors 1]

With --postgresql the log is on a PostgreSQL server, which is started here and shares the machine, too; each round is
measured on both stores, one after the other. More than one collector share that server, and the streams.
`raw_records_per_second` is what SQLite alone makes of the same records on the same disk: one table, one transaction a
batch, each synced. Gateways and collector share this machine, so the clients' TLS and JSON are paid from the same
cores; the collector's CPU time per record is printed beside, and its peak of memory. All gateways are connected, and
all batches are chained and signed, before the clock starts. Half of the records are intents, half outcomes; a head
comes every 1 000 records.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from fix_collector import Collector, Sender
from fix_evidence_server import SETTINGS, EvidenceServer, Place
from fix_postgres import running
from gateway_stream import Pod, Stream
from pki import Authority
from process_usage import cpu_seconds, peak_rss_mib, resident_mib

HEAD_RECORDS = 1000
TIMEOUT_S = 120.0
CONNECTS = 16  # handshakes at once


def build(ca: Authority, number: int, records: int, batch: int) -> tuple[Pod, str, list[tuple[int, bytes]], int]:
    """A stream of a pod of its own, cut into batches."""
    pod = Pod(ca, pod_uid=f"pod-{number}", pod=f"agent-{number}", identity=f"agent-{number % 20}")
    stream = Stream(pod)
    session = stream.open_session(f"target-{number % 7}")
    while stream.chain.count < records:
        text = f"SELECT id, total FROM orders WHERE customer = {stream.chain.count}"
        stream.conclude(session, stream.intend(session, text, with_body=False))
        if stream.chain.count % HEAD_RECORDS < 2:
            stream.head()
    stream.head()
    frames = stream.frames
    batches = [(first, b"".join(frames[first : first + batch])) for first in range(0, len(frames), batch)]
    return pod, stream.id, batches, len(frames)


async def connect(collector: Collector, pod: Pod, stream: str, slots: asyncio.Semaphore) -> Sender:
    """A gateway that is connected, and has sent nothing yet."""
    async with slots:
        sender = Sender(collector, pod, TIMEOUT_S)
        async with sender.http.get(f"{sender.base}/v1/streams/{stream}") as answer:
            await answer.read()
    return sender


async def send(sender: Sender, stream: str, batches: list[tuple[int, bytes]], waits: list[float]) -> None:
    """Send the batches one after the other, as a gateway does."""
    for first, data in batches:
        began = time.perf_counter()
        status, answer = await sender.post(stream, first, data)
        while status in (429, 503):
            await asyncio.sleep(0.02)
            status, answer = await sender.post(stream, first, data)
        if status != 200:
            raise SystemExit(f"refused: {answer}")
        waits.append(time.perf_counter() - began)


def raw_rate(path: Path, batches: list[bytes]) -> float:
    """Seconds in which SQLite alone stores batches, each in a transaction of its own."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE entry (idx INTEGER PRIMARY KEY, bytes BLOB)"
    )
    cut = [[(frame,) for frame in frames(data)] for data in batches]
    began = time.perf_counter()
    for rows in cut:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO entry (bytes) VALUES (?)", rows)
        db.execute("COMMIT")
    seconds = time.perf_counter() - began
    db.close()
    return seconds


def frames(data: bytes) -> Iterator[bytes]:
    """The entries of a batch, each behind its length in two bytes."""
    position = 0
    while position < len(data):
        end = position + 2 + int.from_bytes(data[position : position + 2])
        yield data[position + 2 : end]
        position = end


async def measure(arguments: argparse.Namespace, place: Place | None) -> dict[str, float]:
    """One round against fresh collectors: as many as asked for on a server, else one on a directory."""
    ca = Authority("gateway CA")
    each = arguments.records // arguments.streams
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        collectors = []
        for number in range(arguments.collectors if place is not None else 1):
            (Path(folder) / str(number)).mkdir()
            collectors.append(Collector(Path(folder) / str(number), ca, place=place))
        streams = [build(ca, number, each, arguments.batch) for number in range(arguments.streams)]
        for collector in collectors:
            collector.start()
        try:
            pids = [collector.process.pid for collector in collectors if collector.process is not None]
            waits, slots = list[float](), asyncio.Semaphore(CONNECTS)
            senders = await asyncio.gather(*(
                connect(collectors[number % len(collectors)], pod, name, slots)
                for number, (pod, name, _, _) in enumerate(streams)
            ))  # fmt: skip
            connected_mib = max(map(resident_mib, pids))
            cpu, began = sum(map(cpu_seconds, pids)), time.perf_counter()
            await asyncio.gather(*(
                send(sender, name, batches, waits)
                for sender, (_, name, batches, _) in zip(senders, streams, strict=True)
            ))  # fmt: skip
            seconds = time.perf_counter() - began
            cpu = sum(map(cpu_seconds, pids)) - cpu
            rss_mib = max(map(peak_rss_mib, pids))
            await asyncio.gather(*(sender.http.close() for sender in senders))
            count = sum(size for *_, size in streams)
            assert collectors[0].rows("SELECT count(*) FROM entry") == [(count,)]
        finally:
            for collector in collectors:
                collector.stop()
        raw = raw_rate(Path(folder) / "raw.db", [data for _, _, batches, _ in streams for _, data in batches])
    waits.sort()
    return {
        "records_per_second": count / seconds,
        "raw_records_per_second": count / raw,
        "collector_connected_rss_mib": connected_mib,
        "collector_peak_rss_mib": rss_mib,
        "collector_cpu_us_per_record": cpu / count * 1e6,
        "ack_p50_ms": waits[len(waits) // 2] * 1000,
        "ack_p99_ms": waits[len(waits) * 99 // 100] * 1000,
    }


def main() -> None:
    """Print the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default=None, help="where the database lies; default: the temporary directory")
    parser.add_argument("--postgresql", action="store_true", help="measure a PostgreSQL server, too")
    parser.add_argument("--collectors", type=int, default=1, help="that share the server")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        server = None
        if arguments.postgresql:
            postgres = stack.enter_context(running(settings=SETTINGS))
            server = EvidenceServer(postgres, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        rounds: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            rounds.setdefault("sqlite", []).append(asyncio.run(measure(arguments, None)))
            if server is not None:
                rounds.setdefault("postgresql", []).append(asyncio.run(measure(arguments, server.place())))
    for store, found in rounds.items():
        medians = {key: round(statistics.median(one[key] for one in found), 2) for key in found[0]}
        told = {"store": store, "streams": arguments.streams, "batch": arguments.batch, "rounds": len(found)}
        print(json.dumps(told | medians))


if __name__ == "__main__":
    main()
