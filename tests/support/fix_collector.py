"""`collector_with`: real collector processes on free loopback ports; `gateway_ca`: the CA of their gateways."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fix_evidence_server import EvidenceServer, Place
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import entry

START_TIMEOUT_S = 90.0  # 2 s alone; the machine may be shared
STOP_TIMEOUT_S = 60.0
SERVICE = "chaperone-evidence.chaperone-system.svc"


class Collector:
    """One collector process; it may be ended and started again on the same data."""

    def __init__(self, folder: Path, gateway_ca: Authority, *more: str, place: Place | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.place = place
        self.service_ca = Authority("service CA")
        self.gateway_ca = gateway_ca
        self.more = more or ("--api-port", "-1")
        self.process: subprocess.Popen[bytes] | None = None
        self.ports: list[int] = []
        (folder / "tls").mkdir()
        self.write_pair()
        (folder / "gateway-ca.crt").write_text(gateway_ca.pem)
        self.log = folder / "collector.log"

    def write_pair(self) -> None:
        """A new server certificate."""
        key, certificate = self.service_ca.server_pair("localhost", "127.0.0.1", SERVICE)
        (self.folder / "tls" / "tls.key").write_bytes(key)
        (self.folder / "tls" / "tls.crt").write_bytes(certificate)

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        before = self.log.stat().st_size if self.log.exists() else 0
        arguments = [sys.executable, "-m", "chaperone_collector.main"]
        arguments += ["--data", str(self.data)] if self.place is None else self.place.options
        arguments += ["--tls-dir", str(self.folder / "tls"), "--gateway-ca", str(self.folder / "gateway-ca.crt")]
        arguments += ["--bind", "127.0.0.1", "--ingest-port", "0", "--metrics-port", "0", *self.more]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(arguments, stdout=out, stderr=out, env={**os.environ})
        pause = threading.Event()
        ends = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends and self.process.poll() is None:
            text = self.log.read_bytes()[before:].decode()
            if " ready, " in text:
                self.ports = [int(port) for port in re.findall(r"listening on \[\('127\.0\.0\.1', (\d+)\)\]", text)]
                return
            pause.wait(0.02)
        pytest.fail(f"the collector did not start; its log:\n{self.log.read_text()[-4000:]}")

    @property
    def ingest(self) -> str:
        """Base URL of the gateways' side."""
        return f"https://127.0.0.1:{self.ports[-2]}"

    @property
    def api_port(self) -> int:
        """Port of the aggregated API."""
        return self.ports[0]

    @property
    def metrics(self) -> str:
        """Base URL of the metrics."""
        return f"http://127.0.0.1:{self.ports[-1]}"

    def kill(self) -> None:
        """End it as a crash does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        """End it in order; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def rows(self, query: str, *values: object) -> list[Any]:
        """What the database holds."""
        if self.place is not None:
            return self.place.rows(query, *values)
        connection = sqlite3.connect(f"file:{self.data / 'evidence.db'}?mode=ro", uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


class Sender:
    """A gateway's connection to a collector."""

    def __init__(self, collector: Collector, pod: Pod, timeout_s: float = 30) -> None:
        self.base = collector.ingest
        connector = aiohttp.TCPConnector(ssl=pod.client_tls(collector.service_ca.pem))
        self.http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s))

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    async def post(self, stream: str, first: int, data: bytes) -> tuple[int, dict[str, Any]]:
        """Send a batch."""
        url = f"{self.base}/v1/streams/{stream}/records?from={first}"
        async with self.http.post(url, data=data) as answer:
            return answer.status, await answer.json(content_type=None)

    async def put(self, commit: bytes, body: bytes) -> int:
        """Send a body."""
        async with self.http.put(f"{self.base}/v1/bodies/{commit.hex()}", data=body) as answer:
            return answer.status

    async def acked(self, stream: str) -> int:
        """What is stored of a stream."""
        async with self.http.get(f"{self.base}/v1/streams/{stream}") as answer:
            assert answer.status == 200, await answer.text()
            return int((await answer.json())["acked"])

    async def ship(self, stream: Stream) -> dict[str, Any]:
        """Send everything that a stream has, bodies first."""
        for commit, body in stream.bodies.items():
            assert await self.put(commit, body) == 204
        stream.bodies = {}
        first, data = stream.take()
        status, answer = await self.post(stream.id, first, data)
        assert status == 200, answer
        return answer


def entries(frames: bytes) -> list[bytes]:
    """The entries in a run of frames."""
    return list(entry.frames(frames))


@pytest.fixture(scope="session")
def gateway_ca() -> Authority:
    """The CA that issues gateways' certificates."""
    return Authority("gateway CA")


@pytest.fixture
def collector_with(
    tmp_path_factory: pytest.TempPathFactory, gateway_ca: Authority
) -> Iterator[Callable[..., Collector]]:
    """Start collectors with more arguments; all are ended after the test."""
    started: list[Collector] = []

    def start(*more: str, place: Place | None = None) -> Collector:
        collector = Collector(tmp_path_factory.mktemp("collector"), gateway_ca, *more, place=place)
        started.append(collector)
        collector.start()
        return collector

    yield start
    for collector in started:
        collector.stop()


@pytest.fixture
def collector(request: pytest.FixtureRequest, collector_with: Callable[..., Collector]) -> Collector:
    """A collector without the API; parametrised indirectly by "server" it keeps its log on PostgreSQL."""
    if getattr(request, "param", "directory") == "directory":
        return collector_with()
    server: EvidenceServer = request.getfixturevalue("evidence_server")
    return collector_with(place=server.place())
