"""Results side by side in one run: direct, through pgbouncer, through Chaperone without masks and with.

Usage: python bench/postgresql_rows.py [--quick] [--rounds 5] [--json FILE]

A raw client asks for results of 1, 50, 10 000 and 1 000 000 wide rows (20 columns of mixed types, some 300 bytes) and
reads to ReadyForQuery, so what is measured is server and gateway. The ways are interleaved; a ratio is that of the
median times to direct. Beside it stands the gateway's CPU time a row, which other work on the machine disturbs least
(of `chaperone dev`, without OPA). Ways of the gateway: "none" has no masks, "clean" all detectors and rows without
values, "hits" the same with an e-mail address and a phone number in each row and a card in each tenth, "columns" four
classified columns and no detectors. Further: how late the first row of a slow result is (a server that sleeps between
rows), and the gateway's resident memory, sampled while a million rows pass. --quick takes about a minute: no million.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_dev
import fix_postgres
from postgresql import start_pgbouncer
from process_usage import resident_mib

from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.protocols.postgresql import messages as m

TABLES: Final = """
CREATE TABLE clean AS SELECT
    i AS id, gen_random_uuid() AS order_id, 'ORD-2025-' || lpad(i::text, 6, '0') AS number, i % 3 = 0 AS is_paid,
    (i * 1.37)::numeric(12,2) AS total, (i % 100)::smallint AS quantity, i * 1000003::bigint AS external_id,
    date '2025-01-01' + i % 300 AS ordered, timestamptz '2025-01-01 10:00:00+00' + i * interval '7 min' AS changed,
    (i % 977) / 8.0::float8 AS weight, (array['open', 'paid', 'sent', 'returned'])[1 + i % 4] AS state,
    'customer ' || i AS customer, 'Main street ' || i % 90 AS street, 'Springfield' AS city, 'DE' AS country,
    'see the order' AS contact, 'none' AS phone, jsonb_build_object('gift', i % 2 = 0, 'boxes', i % 5) AS details,
    CASE WHEN i % 4 > 0 THEN 'the order was shipped to our customer and returned because of a broken handle' END
    AS note, 'warehouse ' || i % 12 AS warehouse
    FROM generate_series(1, 10000) i;
CREATE TABLE hits AS SELECT * FROM clean;
UPDATE hits SET contact = 'jane' || id || '@shop.example.com', phone = '+49 30 ' || 1000000 + id,
    note = CASE WHEN id % 10 = 0 THEN 'paid with 4716892311450065 yesterday' ELSE note END;
CREATE TABLE hundred AS SELECT generate_series(1, 100) AS n;
CREATE TABLE slow AS SELECT i AS id, repeat('as long as what the server sends ', 300) AS note
    FROM generate_series(1, 4) i;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO agent_rw;
ALTER SYSTEM SET log_statement = 'none'; SELECT pg_reload_conf();
"""
RULES: Final[list[dict[str, object]]] = [
    {"name": "all", "action": "Allow", "match": {"effects": ["read", "bulk_read", "execute_code"]}},
]
CLASSIFIED: Final = {"customer": "name", "street": "address", "contact": "email", "phone": "phone"}
MASKS: Final = {
    "none": {},
    "detectors": {"masks": [{"detectors": sorted(BUILTIN), "method": "Redact"}]},
    "columns": {
        "masks": [{"columns": [f"public.*.{name}" for name in CLASSIFIED], "method": "Redact"}],
        "classified": [{"columns": [f"public.*.{name}"], "class": kind} for name, kind in CLASSIFIED.items()],
    },
}
SIZES: Final = {
    1: "SELECT * FROM {} WHERE id = 7",
    50: "SELECT * FROM {} LIMIT 50",
    10_000: "SELECT * FROM {}",
    1_000_000: "SELECT {0}.* FROM {0}, hundred",
}
REPEATS: Final = {1: 300, 50: 100, 10_000: 5, 1_000_000: 1}  # queries of one way in one round
SLEEP_S: Final = 0.2
SLOW: Final = f"SELECT id, note FROM slow WHERE pg_sleep({SLEEP_S})::text IS NOT NULL"
SAMPLE_S: Final = 0.05
LIMIT_S: Final = 300


@dataclass(frozen=True)
class Way:
    """How the rows come: to which port, and from which table."""

    name: str
    port: int
    table: str
    pid: int = 0  # of the gateway


class Client:
    """Sends one query at a time and reads its answer without looking into it."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 20)
        self._socket.sendall(m.encode_startup((("user", "agent_rw"), ("database", "orders"))))
        self._read()

    def query(self, text: str) -> tuple[int, float]:
        """Ask, and give the bytes of the answer and the seconds to its end."""
        began = time.perf_counter()
        self._socket.sendall(m.encode_query(text.encode()))
        return self._read(), time.perf_counter() - began

    def first_row_s(self, text: str) -> float:
        """Ask, and give the seconds until the first row is whole."""
        began = time.perf_counter()
        self._socket.sendall(m.encode_query(text.encode()))
        data = b""
        while not _has_row(data):
            more = self._socket.recv(1 << 20)
            if not more:
                raise RuntimeError("the connection was closed")
            data += more
        return time.perf_counter() - began

    def rows(self, text: str) -> int:
        """How many rows a query has, from its CommandComplete."""
        self._socket.sendall(m.encode_query(text.encode()))
        self._read()
        return int(self._tail[: -len(m.frame(m.READY_FOR_QUERY, b"I")) - 1].rpartition(b" ")[2])

    def _read(self) -> int:
        total, self._tail = 0, b""
        ready = m.frame(m.READY_FOR_QUERY, b"I")
        view = memoryview(self._buffer)
        while not self._tail.endswith(ready):
            count = self._socket.recv_into(self._buffer)
            if not count:
                raise RuntimeError(f"the connection was closed after {self._tail!r}")
            total += count
            self._tail = (self._tail + bytes(view[max(0, count - 64) : count]))[-64:]
        if b"SERROR" in bytes(view[:64]):
            raise RuntimeError(bytes(view[:500]))
        return total


def _has_row(data: bytes) -> bool:
    place = 0
    while place + 5 <= len(data):
        end = place + 1 + int.from_bytes(data[place + 1 : place + 5], "big")
        if data[place] == m.DATA_ROW:
            return end <= len(data)
        place = end
    return False


def prepare(postgres: fix_postgres.Postgres) -> None:
    """Make the tables; agents need no password at the server, as at the gateway."""
    with postgres.admin() as admin:
        for statement in TABLES.split(";"):
            if statement.strip():
                admin.execute(statement)
    hba = postgres.directory / "data" / "pg_hba.conf"
    hba.write_text("host all agent_rw 127.0.0.1/32 trust\n" + hba.read_text())
    with postgres.admin() as admin:
        admin.execute("SELECT pg_reload_conf()")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(ways: list[Way], size: int, rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Times of one size of result, all ways in turn in every round."""
    clients = {way.name: Client(way.port) for way in ways}
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    amounts: dict[str, int] = {}
    medians: dict[str, list[float]] = {way.name: [] for way in ways}
    cpu = {way.name: 0.0 for way in ways}
    for way in ways:
        text = SIZES[size].format(way.table)
        found = clients[way.name].rows(text) if size <= 10_000 else size
        if found != size:
            raise RuntimeError(f"{way.name} gave {found} rows instead of {size}")
    for _ in range(rounds):
        for way in ways:
            taken = []
            before_s = cpu_s(way.pid) if way.pid else 0.0
            for _ in range(repeats):
                amounts[way.name], last_s = clients[way.name].query(SIZES[size].format(way.table))
                taken.append(last_s)
            cpu[way.name] += cpu_s(way.pid) - before_s if way.pid else 0.0
            times[way.name] += taken
            medians[way.name].append(statistics.median(taken))
    direct = medians["direct"]
    # Clean and masked rows have other lengths, so each is compared with its own table's direct way.
    results = {}
    for way in ways:
        base = medians["direct hits"] if way.table == "hits" else direct
        taken = sorted(times[way.name])
        middle = statistics.median(taken)
        results[way.name] = {
            "rows_s": size / middle,
            "mb_s": amounts[way.name] / middle / 1e6,
            "to_direct": statistics.median(one / other for one, other in zip(base, medians[way.name], strict=True)),
            "cpu_us": cpu[way.name] / (rounds * repeats * size) * 1e6,
            "p50_ms": middle * 1e3,
            "p99_ms": taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1e3,
        }
    return results


def table(title: str, results: dict[str, dict[str, float]]) -> None:
    """Print one size."""
    print(f"\n{title}")
    print(f"{'':12}{'rows/s':>12}{'MB/s':>9}{'to direct':>11}{'CPU µs/row':>12}{'p50 ms':>11}{'p99 ms':>11}")
    for name, one in results.items():
        print(
            f"{name:12}{one['rows_s']:12.0f}{one['mb_s']:9.1f}{one['to_direct']:11.2f}{one['cpu_us']:12.2f}{one['p50_ms']:11.3f}"
            f"{one['p99_ms']:11.3f}",
            flush=True,
        )


def highest_rss(pid: int, work: Callable[[], object]) -> float:
    """The most that was resident while something went on, in MiB."""
    samples = [resident_mib(pid)]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_S):
            samples.append(resident_mib(pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        work()
    finally:
        is_over.set()
        sampler.join()
    return max(samples)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no million rows, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    root = Path(tempfile.mkdtemp(prefix="chaperone-bench-"))
    for name in ("pg", "bouncer", *MASKS):
        (root / name).mkdir()
    root.chmod(0o755)
    (root / "pg").chmod(0o755)
    postgres, server = fix_postgres.start(root / "pg")
    processes = [server]
    gateways: dict[str, fix_dev.Gateway] = {}
    results: dict[str, object] = {}
    try:
        prepare(postgres)
        port, bouncer = start_pgbouncer(postgres, root / "bouncer", tls=False)
        processes.insert(0, bouncer)
        for name, masks in MASKS.items():
            fix_dev.write_manifests(root / name, postgres, rules=RULES, tls_mode="Disable", **masks)  # type: ignore[arg-type]
            gateways[name] = fix_dev.start(root / name, root / name / "evidence")
        ways = [
            Way("direct", postgres.port, "clean"),
            Way("direct hits", postgres.port, "hits"),
            Way("pgbouncer", port, "clean"),
            Way("none", gateways["none"].port, "clean", gateways["none"].process.pid),
            Way("clean", gateways["detectors"].port, "clean", gateways["detectors"].process.pid),
            Way("hits", gateways["detectors"].port, "hits", gateways["detectors"].process.pid),
            Way("columns", gateways["columns"].port, "clean", gateways["columns"].process.pid),
        ]
        for size in (1, 50, 10_000):
            found = measure(ways, size, rounds, REPEATS[size] // (3 if options.quick else 1))
            table(f"{size} rows", found)
            results[str(size)] = found
        print("\nfirst row of a slow result, ms later than direct")
        first: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                first[way.name].append(Client(way.port).first_row_s(SLOW) * 1e3)
        late = {name: statistics.median(taken) - statistics.median(first["direct"]) for name, taken in first.items()}
        results["first_row_late_ms"] = late
        print("  ".join(f"{name} {taken:.1f}" for name, taken in late.items() if not name.startswith("direct")))
        if not options.quick:
            results["1000000"] = found = measure(ways, 1_000_000, min(rounds, 3), 1)
            table("1000000 rows", found)
        size = 10_000 if options.quick else 1_000_000
        print(f"\nresident memory of the gateway (chaperone dev), MiB: before, at most during {size} rows, after")
        for way in ways[3:]:
            before, client = resident_mib(way.pid), Client(way.port)
            most = highest_rss(way.pid, lambda: client.query(SIZES[size].format(way.table)))  # noqa: B023
            after = resident_mib(way.pid)
            results.setdefault("rss_mib", {})[way.name] = [before, most, after]  # type: ignore[index]
            print(f"{way.name:12}{before:9.1f}{most:9.1f}{after:9.1f}")
    finally:
        for gateway in gateways.values():
            gateway.stop()
        for process in processes:
            process.terminate()
            process.wait(30)
    for name, gateway in gateways.items():
        print(f"{name:12}{gateway.verify().stdout.splitlines()[-1]}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
