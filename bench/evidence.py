"""Records a second: how fast a gateway chains and an auditor verifies, each on one core.

    uv run python bench/evidence.py [--records 100000] [--rounds 5]

Times are CPU times, so that others on the machine count less. `…_to_hash_ratio` is the time beside that of bare SHA-256
over the same bytes in the same round, so machines can be compared. Half
of the records are intents, half outcomes; a head comes every 1 000 records. Verification is that of `chaperone verify`
from a directory on disk, its texts included.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import msgspec
from evidence_directory import write_stream
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_cli import evidence as source
from chaperone_cli.verify import judge
from chaperone_evidence import entry, record, ulid
from chaperone_evidence.chain import Chain

HEAD_RECORDS = 1000
TEXT = "SELECT id, total, paid FROM orders WHERE customer = %d AND created > now() - interval '7 days'"


def records(count: int) -> list[record.Record]:
    """Alternating intents and outcomes, as they reach the chain."""
    session = ulid.encode(1_763_940_000_000, os.urandom(10))
    made: list[record.Record] = []
    for seq in range(0, count, 2):
        command = ulid.encode(1_763_940_000_000 + seq, os.urandom(10))
        commit = base64.b64encode(hashlib.sha256(command.encode()).digest()).decode()
        made.append(
            record.CommandIntent(
                seq=seq, wall_us=1_763_940_000_000_000 + seq, mono_us=seq, session=session, command=command,
                target="orders-db", kind="query", decision="Allow", sha256=hashlib.sha256(b"x").hexdigest(),
                size_bytes=90, accesses=(record.AccessEntry("read", "public.orders"),), resolution="syntactic",
                policy="agents/billing", rule="read-orders", revision="0123456789abcdef",
                body=record.Commitment(commit, 90),
            )
        )  # fmt: skip
        made.append(
            record.CommandOutcome(
                seq=seq + 1, wall_us=1_763_940_000_000_000 + seq, mono_us=seq, session=session, command=command,
                ref=seq, status="ok", rows=3, bytes=300, duration_us=1500,
            )
        )  # fmt: skip
    return made


def measure_append(made: list[record.Record], pod: Pod) -> dict[str, float]:
    """One pass of the chain over records that exist already; and the hash alone over the same bytes."""
    chain = Chain(pod.cluster, ulid.encode(1_763_940_000_000, os.urandom(10)))
    frames = []
    began = time.process_time()
    for one in made:
        frames.append(chain.append_record(one))
    seconds = time.process_time() - began
    began = time.process_time()
    for one in made:
        chain.append_record(msgspec.structs.replace(one, seq=chain.count, wall_us=1, mono_us=1))
    stamped = time.process_time() - began
    return {
        "append_us": seconds / len(made) * 1e6,
        "stamp_and_append_us": stamped / len(made) * 1e6,
        "append_to_hash_ratio": seconds / hash_seconds(frames),
        "record_bytes": sum(map(len, frames)) / len(frames),
    }


def measure_verify(directory: Path, ca: Authority, count: int) -> dict[str, float]:
    """`judge` over a directory with one closed stream."""
    began = time.process_time()
    verdict = judge(source.Directory(directory), [ca.certificate])
    seconds = time.process_time() - began
    assert not verdict.problems, verdict.problems
    assert sum(report.entries for report in verdict.streams) == count
    frames = [data for path in directory.glob("streams/*/*") for data in entry.frames(path.read_bytes())]
    return {"verify_records_per_second": count / seconds, "verify_to_hash_ratio": seconds / hash_seconds(frames)}


def hash_seconds(frames: list[bytes]) -> float:
    """What SHA-256 alone takes."""
    began = time.process_time()
    for data in frames:
        hashlib.sha256(data).digest()
    return time.process_time() - began


def build(folder: Path, ca: Authority, count: int) -> tuple[Pod, int]:
    """A directory with a closed stream of about that many records."""
    pod = Pod(ca)
    stream = Stream(pod)
    session = stream.open_session()
    while stream.chain.count < count:
        stream.conclude(session, stream.intend(session, TEXT % stream.chain.count))
        if stream.chain.count % HEAD_RECORDS < 2:
            stream.head()
    stream.close_session(session, 1)
    stream.close()
    total = stream.chain.count
    write_stream(folder, stream)
    return pod, total


def main() -> None:
    """Print the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    ca = Authority("gateway CA")
    with tempfile.TemporaryDirectory() as folder:
        pod, total = build(Path(folder), ca, arguments.records)
        made = records(arguments.records)
        rounds = [measure_append(made, pod) | measure_verify(Path(folder), ca, total) for _ in range(arguments.rounds)]
    medians = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
    print(json.dumps({"records": total, "rounds": len(rounds), **medians}))


if __name__ == "__main__":
    main()
