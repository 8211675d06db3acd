"""`opa_with`: real OPA servers on free loopback ports, each with one bundle that can be replaced."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

START_TIMEOUT_S = 90.0  # OPA starts in 0.2 s alone; the machine may be shared
STOP_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0  # batches of thousands of decisions go in one call
_BIN = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin"))
if (_BIN / "opa").exists():
    os.environ.setdefault("CHAPERONE_OPA", str(_BIN / "opa"))  # with which the compiler checks Rego of policies


def opa_binary() -> str:
    """The pinned OPA that `tools/opa` builds, else the one on the PATH."""
    found = str(_BIN / "opa") if (_BIN / "opa").exists() else shutil.which("opa")
    if found is None:
        pytest.fail("no opa binary: build it from tools/opa or put one on the PATH")
    return found


@dataclass
class Opa:
    """One OPA server."""

    port: int
    socket: Path
    bundle: Path
    log: Path
    process: subprocess.Popen[bytes]

    def ask(self, path: str, question: object) -> Any:
        """`POST /v1/data/<path>`: the result, None when it is undefined."""
        status, answer = self._call("POST", f"/v1/data/{path}", json.dumps({"input": question}))
        assert status == 200, answer
        return answer.get("result")

    def decide(self, question: object) -> dict[str, Any]:
        """The decision on one input."""
        found: dict[str, Any] = self.ask("chaperone/decision", question)
        return found

    def replace(self, bundle: bytes, revision: str) -> None:
        """Put another bundle and wait until OPA serves its revision."""
        fresh = self.bundle.with_suffix(".new")
        fresh.write_bytes(bundle)
        fresh.replace(self.bundle)
        self._wait(lambda: self.ask("chaperone/revision", {}) == revision)

    def add_module(self, name: str, text: str) -> None:
        """Put a Rego module beside the bundle."""
        status, answer = self._call("PUT", f"/v1/policies/{name}", text)
        assert status == 200, answer

    def wait_ready(self) -> None:
        """Wait until the server listens and its bundle is active."""
        self._wait(lambda: self._call("GET", "/health?bundles", None)[0] == 200)

    def _call(self, method: str, path: str, body: str | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_TIMEOUT_S)
        try:
            connection.request(
                method, path, body, {"Content-Type": "application/json" if method == "POST" else "text/plain"}
            )
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        finally:
            connection.close()

    def _wait(self, done: Callable[[], bool]) -> None:
        pause = threading.Event()
        ends = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends:
            if self.process.poll() is not None:
                break
            try:
                if done():
                    return
            except OSError:
                pass  # not listening yet
            pause.wait(0.02)
        pytest.fail(f"OPA did not get there; its log:\n{self.log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def opa_with(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], Opa]]:
    """Start an OPA server with the bundle (bytes of a tar.gz); all are ended after the tests."""
    started: list[Opa] = []

    def start(bundle: bytes) -> Opa:
        folder = tmp_path_factory.mktemp("opa")
        path, listening, log = folder / "bundle.tar.gz", folder / "opa.sock", folder / "opa.log"
        path.write_bytes(bundle)
        (port,) = free_ports(1)
        arguments = [
            opa_binary(),
            "run",
            "--server",
            "--addr",
            f"127.0.0.1:{port}",
            "--addr",
            f"unix://{listening}",
            "--skip-version-check",
        ]
        arguments += ["--log-level", "error", "--shutdown-grace-period", "1", "--watch", "--bundle", str(path)]
        with log.open("wb") as out:
            process = subprocess.Popen(arguments, stdout=out, stderr=out, cwd=folder)
        opa = Opa(port, listening, path, log, process)
        started.append(opa)
        opa.wait_ready()
        return opa

    yield start
    for opa in started:
        opa.process.terminate()
        opa.process.wait(STOP_TIMEOUT_S)
