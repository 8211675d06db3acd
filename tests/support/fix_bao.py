"""A real OpenBao on a free loopback port, with TLS, whose storage is its memory."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port

from chaperone_tools import openbao

ROOT_TOKEN = "canary-root-token-5d2e"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Bao:
    """Where the server is, and its administrator's calls."""

    port: int
    folder: Path

    @property
    def address(self) -> str:
        """For AccessTargets."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_pem(self) -> str:
        """The CA of its certificate."""
        found: Path = next(self.folder.glob("*ca.pem"))
        return found.read_text()

    def call(self, method: str, path: str, **body: Any) -> Any:
        """One call as the administrator."""
        request = urllib.request.Request(  # noqa: S310 - ours
            f"{self.address}/v1/{path}", method=method, data=json.dumps(body).encode() if body else None
        )
        request.add_header("X-Vault-Token", ROOT_TOKEN)
        context = ssl.create_default_context(cadata=self.ca_pem)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with urllib.request.urlopen(request, context=context, timeout=30) as response:  # noqa: S310 - ours
            answer = response.read()
        return json.loads(answer) if answer else None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Bao]:
    """A server for a while."""
    port = free_port()
    with (folder / "bao.log").open("wb") as log:
        process = subprocess.Popen(
            [openbao.server(), "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}", "-dev-no-store-token",
             f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    bao = Bao(port, folder)
    try:
        ends = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                bao.call("GET", "sys/health")
            except (OSError, StopIteration):
                if time.monotonic() > ends or process.poll() is not None:
                    raise RuntimeError(f"OpenBao does not start:\n{(folder / 'bao.log').read_text()[-3000:]}") from None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            else:
                break
        yield bao
    finally:
        process.terminate()
        process.wait(20)
