"""Durable records a second: how many entries a collector acknowledges over mTLS, after their commit is on disk.

    uv run python bench/collector.py [--streams 50] [--batch 256] [--records 200000] [--rounds 5] [--data DIR]

Gateways and collector share this machine, so the clients' TLS and JSON are paid from the same cores; the collector's
CPU time per record is printed beside. All batches are chained and signed before the clock starts. Half of the records
are intents, half outcomes; a head comes every 1 000 records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from fix_collector import Collector, Sender
from gateway_stream import Pod, Stream
from pki import Authority
from process_usage import cpu_seconds

HEAD_RECORDS = 1000


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


async def send(
    collector: Collector, pod: Pod, stream: str, batches: list[tuple[int, bytes]], waits: list[float]
) -> None:
    """Send the batches one after the other, as a gateway does."""
    async with Sender(collector, pod) as sender:
        for first, data in batches:
            began = time.perf_counter()
            status, answer = await sender.post(stream, first, data)
            while status in (429, 503):
                await asyncio.sleep(0.02)
                status, answer = await sender.post(stream, first, data)
            if status != 200:
                raise SystemExit(f"refused: {answer}")
            waits.append(time.perf_counter() - began)


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One round against a fresh collector."""
    ca = Authority("gateway CA")
    each = arguments.records // arguments.streams
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        collector = Collector(Path(folder), ca)
        streams = [build(ca, number, each, arguments.batch) for number in range(arguments.streams)]
        collector.start()
        try:
            assert collector.process is not None
            pid, waits = collector.process.pid, list[float]()
            cpu, began = cpu_seconds(pid), time.perf_counter()
            await asyncio.gather(*(send(collector, pod, name, batches, waits) for pod, name, batches, _ in streams))
            seconds = time.perf_counter() - began
            cpu = cpu_seconds(pid) - cpu
            count = sum(size for *_, size in streams)
            assert collector.rows("SELECT count(*) FROM entry") == [(count,)]
        finally:
            collector.stop()
    waits.sort()
    return {
        "records_per_second": count / seconds,
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
    arguments = parser.parse_args()
    rounds = [asyncio.run(measure(arguments)) for _ in range(arguments.rounds)]
    medians = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
    print(json.dumps({"streams": arguments.streams, "batch": arguments.batch, "rounds": len(rounds), **medians}))


if __name__ == "__main__":
    main()
