"""A collector's log and the witnesses that sign it, all as processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from fix_collector import Collector, Sender
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector.checkpoint import LogKeys
from chaperone_evidence import policyfile
from chaperone_evidence.policy import Policy

LIMIT_S = 60.0


def eventually[T](ask: Callable[[], T], is_good: Callable[[T], object], why: Callable[[], str]) -> T:
    pause, ends = threading.Event(), time.monotonic() + LIMIT_S
    while not is_good(found := ask()):
        assert time.monotonic() < ends, f"still {found!r}\n{why()}"
        pause.wait(0.1)
    return found


class Place:
    """A collector whose log has a name and keys, and what an auditor needs to know of it."""

    def __init__(self, collector: Collector, authority: Authority, folder: Path) -> None:
        self.collector, self.folder = collector, folder
        self.pod = Pod(authority)
        self.stream = Stream(self.pod)
        self.witness_ca = Authority("witness CA")
        self.origin = f"chaperone.dev/log/{self.pod.cluster}"

    async def grow(self, commands: int = 3) -> None:
        session = self.stream.open_session()
        for number in range(commands):
            self.stream.intend(session, f"SELECT {number}")
        self.stream.head()
        async with Sender(self.collector, self.pod) as sender:
            await sender.ship(self.stream)
        held = self.collector.rows("SELECT count(*) FROM entry")[0][0]
        eventually(lambda: self.newest()[0], lambda size: size >= held, self.collector.log.read_text)

    def newest(self) -> tuple[int, bytes, int]:
        found = self.collector.rows("SELECT size, note, witnesses FROM checkpoint ORDER BY size DESC LIMIT 1")
        return found[0] if found else (0, b"", 0)

    def policy(self) -> Policy:
        keys = tuple(one.key for one in LogKeys(self.collector.data, may_make=False).signers(self.origin))
        return Policy(self.origin, keys, 2)

    def policy_file(self) -> Path:
        path = self.folder / "log.policy"
        path.write_text(policyfile.render(self.policy()))
        return path

    def with_witnesses(self, *lines: str, at: tuple[str, ...] = ("--api-port", "-1")) -> None:
        """Start the collector anew with these, at these ports."""
        (self.folder / "witnesses").write_text("\n".join([*self.policy_file().read_text().split("\n")[:-2], *lines]))
        self.collector.stop()
        authority = str(self.folder / "witness-ca.pem")
        self.collector.more = (
            *at, "--witnesses", str(self.folder / "witnesses"), "--witness-ca", authority,
        )  # fmt: skip
        self.collector.start()

    async def answers(self, result: str) -> bool:
        async with aiohttp.ClientSession() as http, http.get(f"{self.collector.metrics}/metrics") as answer:
            return f'result="{result}"' in await answer.text()

    async def until_answered(self, result: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not await self.answers(result):  # noqa: ASYNC110 - what a process counts sends no event
                await asyncio.sleep(0.2)


@contextmanager
def witnessing(place: Place, name: str, directory: Path) -> Iterator[list[str]]:
    """A `chaperone witness` with TLS; the lines that name it."""
    key, certificate = place.witness_ca.server_pair("localhost")
    for path, data in (("key", key), ("crt", certificate), ("witness-ca.pem", place.witness_ca.pem.encode())):
        (place.folder / path).write_bytes(data)
    process = subprocess.Popen(
        [sys.executable, "-m", "chaperone_cli.main", "witness", "--dir", str(directory), "--name", name,
         "--log", str(place.policy_file()), "--listen", "localhost:0",
         "--tls", str(place.folder / "crt"), str(place.folder / "key")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            if line == "ready\n":
                break
            lines.append(line.strip())
        assert process.poll() is None, lines
        yield lines
    finally:
        process.terminate()
        process.wait(30)
