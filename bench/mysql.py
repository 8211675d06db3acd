"""MySQL side by side in one run: direct, through a plain TCP proxy, through Chaperone without masks and with.

Usage: python bench/mysql.py [--server mariadb] [--rounds 5] [--quick] [--json FILE]

A raw client asks for one row by its key, as text and as a prepared statement, and for results of 1 to 100 000 rows (6
columns, some 120 bytes), and reads to the end of the answer, so what is measured is server and gateway. The ways are
interleaved; a ratio is that of the median times to direct. p50 and p99 are of all queries of all rounds. Beside it
stands the gateway's CPU time a row. Ways of the gateway: "none" has no masks, "detectors" all detectors over rows with
an e-mail address in each tenth, "columns" one classified column. The proxy is socat, which only copies bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_mysql
import my_gateway
import pymysql
from fix_postgres import PASSWORD
from plain_relay import relay
from process_usage import cpu_seconds, resident_mib

from chaperone_sidecar.masking.detectors import BUILTIN

TABLE: Final = (
    "CREATE TABLE orders.wide (id int PRIMARY KEY, number varchar(32), contact varchar(64), total decimal(12,2), "
    "changed datetime(3), note text)"
)
ROWS: Final = 100_000
BATCH: Final = 1000
RULES: Final[list[dict[str, Any]]] = [
    {"name": "all", "action": "Allow", "match": {"effects": ["read", "bulk_read", "session", "transaction"]}}
]
TARGETS: Final[dict[str, dict[str, Any]]] = {
    "none": {"rules": RULES},
    "detectors": {"rules": RULES, "masks": [{"detectors": sorted(BUILTIN), "method": "Redact"}]},
    "columns": {"rules": RULES, "classified": [{"columns": ["orders.wide.contact"], "class": "email"}]},
}
SIZES: Final = {1: 300, 100: 60, 10_000: 4, 100_000: 1}  # rows: queries of one way in one round
WAYS: Final = ("direct", "socat", "none", "detectors", "columns")


def fill(server: fix_mysql.Server) -> None:
    """The table that is read."""
    server.run(TABLE)
    for start in range(0, ROWS, BATCH):
        values = ", ".join(
            f"({i}, 'ORD-2025-{i:06}', '{f'jane{i}@shop.example.com' if i % 10 == 0 else 'see the order'}', "
            f"{i * 1.37:.2f}, '2025-01-01 10:00:00.{i % 1000:03}', 'the order was shipped to our customer {i}')"
            for i in range(start, start + BATCH)
        )
        server.run(f"INSERT INTO orders.wide VALUES {values}")


class Client:
    """A connection that reads answers without taking them apart."""

    def __init__(self, connection: pymysql.connections.Connection[Any]) -> None:
        self._connection = connection
        self._socket = connection._sock
        self.number, _, _ = my_gateway.prepare(connection, "SELECT * FROM wide WHERE id = ?")

    def text(self, statement: str) -> None:
        """COM_QUERY."""
        self._send(b"\x03" + statement.encode())

    def prepared(self, key: int) -> None:
        """COM_STMT_EXECUTE."""
        head = b"\x17" + self.number.to_bytes(4, "little") + b"\0\1\0\0\0" + b"\0\1\x08\0"
        self._send(head + key.to_bytes(8, "little"))

    def _send(self, payload: bytes) -> None:
        self._socket.sendall(len(payload).to_bytes(3, "little") + b"\0" + payload)
        ends, data, place = 0, bytearray(), 0
        while ends < 2:
            data += self._socket.recv(1 << 18)
            while len(data) - place >= 5:
                size = int.from_bytes(data[place : place + 3], "little")
                if len(data) - place < 4 + size:
                    break
                if data[place + 4] == 0xFF:
                    raise RuntimeError(bytes(data[place + 4 : place + 4 + size]))
                ends += data[place + 4] == 0xFE and size < 9
                place += 4 + size


def compare(label: str, took: dict[str, list[float]], rows: int, cpu: dict[str, float]) -> dict[str, Any]:
    """Print one line a measurement, and give what it says."""
    direct = statistics.median(took["direct"])
    found: dict[str, Any] = {}
    for way in WAYS:
        ordered = sorted(took[way])
        median = statistics.median(ordered)
        found[way] = {
            "ratio": round(median / direct, 2),
            "p50_ms": round(median * 1000, 3),
            "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1000, 3),
            "per_second": round(1 / median),
        }
        if way in cpu:
            found[way]["cpu_us_a_row"] = round(cpu[way] * 1e6 / (rows * len(ordered)), 2)
    print(label, flush=True)
    for way, numbers in found.items():
        print("   ", f"{way:10}", "  ".join(f"{name} {value}" for name, value in numbers.items()), flush=True)
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("mariadb", "mysql"), default="mariadb")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="no results of 100 000 rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        fix_mysql.running(options.server) as server,
        tempfile.TemporaryDirectory() as folder,
        my_gateway.gateway(Path(folder), server, TARGETS, "None") as gateway,
    ):
        fill(server)
        with relay(server.port) as port:
            results = measure(server, port, gateway, options.rounds, 10_000 if options.quick else ROWS)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def measure(server: fix_mysql.Server, port: int, gateway: my_gateway.Gateway, rounds: int, most: int) -> dict[str, Any]:
    """All measurements, the ways interleaved."""
    pid = gateway.running.process.pid
    idle = resident_mib(pid)
    login = {"host": "127.0.0.1", "user": "agent_rw", "password": PASSWORD, "database": "orders", "ssl_disabled": True}
    clients = {
        "direct": Client(pymysql.connect(port=server.port, **login)),
        "socat": Client(pymysql.connect(port=port, **login)),
        **{way: Client(gateway.at(way).connect(ssl_disabled=True)) for way in TARGETS},
    }
    results: dict[str, Any] = {}
    for rows, repeats in SIZES.items():
        if rows > most:
            continue
        kinds = ("text", "prepared") if rows == 1 else ("text",)
        for kind in kinds:
            took: dict[str, list[float]] = {way: [] for way in WAYS}
            cpu = dict.fromkeys(TARGETS, 0.0)
            for _ in range(rounds):
                for way in WAYS:
                    client, before = clients[way], cpu_seconds(pid)
                    for number in range(repeats):
                        began = time.perf_counter()
                        if kind == "prepared":
                            client.prepared(number)
                        else:
                            client.text(
                                f"SELECT * FROM wide {f'WHERE id = {number}' if rows == 1 else f'LIMIT {rows}'}"
                            )
                        took[way].append(time.perf_counter() - began)
                    if way in cpu:
                        cpu[way] += cpu_seconds(pid) - before
            results[f"{rows} rows, {kind}"] = compare(f"{rows} rows, {kind}", took, rows, cpu)
    results["rss_mib"] = {"idle": round(idle), "after": round(resident_mib(pid))}
    print("RSS of the gateway (chaperone dev):", results["rss_mib"])
    return results


if __name__ == "__main__":
    main()
