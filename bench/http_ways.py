"""Requests to an HTTPS API direct, by HAProxy, mitmdump and the gateway, interleaved in one run: medians and ratios.

The API (aiohttp) and all of them share this machine's cores with the client, which keeps one connection to each. Small:
a GET of 90 bytes of JSON. Body: 16 MiB of text. Masked: the same through a gateway with detectors. HAProxy and mitmdump
are measured where they are given; both end TLS and ask the API by TLS with its certificate checked, as the gateway
does.

Usage: python bench/http_ways.py [--seconds 2] [--rounds 5] [--haproxy PROGRAM] [--mitmdump PROGRAM]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_dev
from fix_http import NAME, Backend, start_backend, write_manifests
from ports import free_port
from process_usage import resident_mib

SMALL: Final = "/v1/orders"
BODY_MIB: Final = 16
BODY: Final = f"/big?size={BODY_MIB << 20}&type=text/plain"
MASKS: Final = [{"detectors": ["Email", "PaymentCard"], "method": "Redact"}]
START_LIMIT_S: Final = 60.0

_HAPROXY: Final = """
global
  nbthread 1
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
frontend agents
  bind 127.0.0.1:{port} ssl crt {pem}
  default_backend api
backend api
  server api 127.0.0.1:{backend} ssl verify required ca-file {ca} sni str(localhost) verifyhost localhost
"""


@dataclass
class Way:
    """One way to the API: a port of this machine, and the process that listens there."""

    port: int
    pid: int
    latencies_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    body_mib_s: list[float] = field(default_factory=list)
    connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> int:
        """Ask on the kept connection; the bytes of the answer."""
        if self.connection is None or self.connection.sock is None:
            self.connection = self._connected()
        self.connection.request("GET", path, headers={"Host": NAME})
        answer = self.connection.getresponse()
        if answer.status != http.client.OK:
            raise RuntimeError(f"HTTP status {answer.status}: {answer.read(300)!r}")
        return len(answer.read())

    def _connected(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context()  # what is measured is not the client's checks
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPConnection(NAME, self.port)
        connected = socket.create_connection(("127.0.0.1", self.port), timeout=START_LIMIT_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = context.wrap_socket(connected, server_hostname=NAME)
        return connection

    def measure(self, seconds: float) -> None:
        """One round."""
        self.get(SMALL)  # whose connection may have been closed meanwhile
        began = time.perf_counter()
        done = 0
        while (at := time.perf_counter()) - began < seconds:
            self.get(SMALL)
            self.latencies_s.append(time.perf_counter() - at)
            done += 1
        self.rates.append(done / (time.perf_counter() - began))
        began = time.perf_counter()
        if self.get(BODY) != BODY_MIB << 20:
            raise RuntimeError("the body is not whole")
        self.body_mib_s.append(BODY_MIB / (time.perf_counter() - began))
        if self.connection is not None:
            self.connection.close()


@contextmanager
def listening(port: int, *words: str | Path, **environment: str) -> Iterator[Way]:
    """A program that listens on a port."""
    process = subprocess.Popen([str(word) for word in words], env=os.environ | environment, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield Way(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_LIMIT_S)


def haproxy(program: str, backend: Backend, folder: Path) -> tuple[int, list[str | Path]]:
    """A port and HAProxy's command for it."""
    port, pem, config = free_port(), folder / "haproxy.pem", folder / "haproxy.cfg"
    pem.write_bytes(
        (backend.log.parent / "backend.crt").read_bytes() + (backend.log.parent / "backend.key").read_bytes()
    )
    config.write_text(_HAPROXY.format(port=port, pem=pem, backend=backend.port, ca=folder / "ca.pem"))
    return port, [program, "-db", "-q", "-f", config]


def mitmdump(program: str, backend: Backend, folder: Path) -> tuple[int, list[str | Path]]:
    """A port and mitmdump's command for it; bodies pass as they come."""
    port = free_port()
    return port, [
        program, "--quiet", "--mode", f"reverse:https://localhost:{backend.port}", "--listen-host", "127.0.0.1",
        "--listen-port", str(port), "--set", f"ssl_verify_upstream_trusted_ca={folder / 'ca.pem'}",
        "--set", "stream_large_bodies=1m", "--set", f"confdir={folder / 'mitm'}",
    ]  # fmt: skip


def gateway(backend: Backend, folder: Path, **spec: Any) -> fix_dev.Gateway:
    """`chaperone dev` before the API."""
    folder.mkdir()
    write_manifests(folder, backend, **spec)
    return fix_dev.start(folder, folder / "evidence", {"api": free_port()})


def main() -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--haproxy", help="the program; left out without it")
    parser.add_argument("--mitmdump", help="the program; left out without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "api").mkdir()
        backend = start_backend(folder / "api")
        stack.callback(backend.process.wait)
        stack.callback(backend.process.kill)
        assert backend.authority is not None
        (folder / "ca.pem").write_text(backend.authority.pem)
        ways = {"direct": Way(backend.port, backend.process.pid)}
        for what, program in (("haproxy", options.haproxy), ("mitmdump", options.mitmdump)):
            if program is not None:
                port, words = {"haproxy": haproxy, "mitmdump": mitmdump}[what](program, backend, folder)
                ways[what] = stack.enter_context(listening(port, *words))
        for what, spec in (("gateway", {}), ("masked", {"masks": MASKS})):
            opened = gateway(backend, folder / what, **spec)
            stack.callback(opened.stop)
            ways[what] = Way(opened.port, opened.process.pid)
        for _ in range(options.rounds):
            for way in ways.values():
                way.measure(options.seconds)
        print(json.dumps(summary(ways), indent=1))
    return 0


def summary(ways: dict[str, Way]) -> dict[str, dict[str, float]]:
    """Medians of the rounds, the latencies of all small requests, and ratios to the direct way."""
    direct, found = ways["direct"], {}
    for name, way in ways.items():
        cuts = statistics.quantiles(way.latencies_s, n=100)
        straight = statistics.quantiles(direct.latencies_s, n=100)
        rate, body = statistics.median(way.rates), statistics.median(way.body_mib_s)
        found[name] = {
            "small_per_s": round(rate, 1),
            "small_ratio": round(rate / statistics.median(direct.rates), 3),
            "p50_ms": round(cuts[49] * 1000, 2),
            "p50_ratio": round(cuts[49] / straight[49], 2),
            "p99_ms": round(cuts[98] * 1000, 2),
            "p99_ratio": round(cuts[98] / straight[98], 2),
            "body_mib_s": round(body, 1),
            "body_ratio": round(body / statistics.median(direct.body_mib_s), 3),
            "rss_mib": round(resident_mib(way.pid), 1),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
