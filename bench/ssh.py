"""SSH through the gateway beside a direct connection and a relay (socat), in the same run: times, rates and ratios.

OpenSSH is the client and the server; both share this machine's cores with the gateway and OPA. exec: `true` over a
connection of its own, and over one that is open already (ControlMaster). Files: one of --mib by scp (SFTP) and by the
old scp, both ways; stream: the same as output of `cat`. Masked: through a gateway with detectors, where content of
files is refused. cpu_ms: of the gateway's process, for a command or a MiB; it says more than times do where others use
the machine. Memory is that of `chaperone dev`, which is more than a gateway: it compiles policy, too.

Usage: python bench/ssh.py [--rounds 5] [--commands 20] [--mib 64]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from fix_ssh import Host, SshGateway, start_gateway, start_host, write_manifests
from manifests import rule
from plain_relay import relay

RULES = [rule("all", "Allow", ["read", "bulk_read", "create", "modify"], ["*", "path:*"])]
FRESH, REUSED = "exec, new connection", "exec, open connection"
MASKS = [{"detectors": ["Email", "PaymentCard"], "method": "Redact"}]
LINE = b"2026-01-01T00:00:00Z app[42]: request 0123 of a customer took 12 ms and said nothing of any value\n"


class Way:
    """How a client reaches the host, by a process of ours where there is one."""

    def __init__(self, port: int, options: list[str], process: subprocess.Popen[str] | None = None) -> None:
        self.port = port
        self.options = options
        self._process = process
        self.cpu_ms: dict[str, list[float]] = {}

    def cpu(self) -> float:
        """Milliseconds of processor that the process has used."""
        if self._process is None:
            return 0
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def counted(self, what: str, count: int) -> Iterator[None]:
        """Keep what the process uses meanwhile for each of `count`."""
        before = self.cpu()
        yield
        self.cpu_ms.setdefault(what, []).append((self.cpu() - before) / count)

    def ssh(self, *words: str, output: int = subprocess.DEVNULL) -> None:
        """Run `ssh`; fails as it does."""
        subprocess.run(["ssh", *self.options, "-p", str(self.port), *words], stdout=output, check=True)

    def scp(self, mode: str, source: str, target: str) -> None:
        """Copy a file."""
        subprocess.run(["scp", "-q", mode, *self.options, "-P", str(self.port), source, target], check=True)


def timed[**P](work: Callable[P, None], *words: P.args, **named: P.kwargs) -> float:
    """Seconds."""
    began = time.monotonic()
    work(*words, **named)
    return time.monotonic() - began


@contextmanager
def open_connection(way: Way, path: Path) -> Iterator[list[str]]:
    """A connection that stays open; the options that use it."""
    control = ["-o", f"ControlPath={path}"]
    way.ssh(*control, "-o", "ControlMaster=yes", "-fN", "127.0.0.1")
    try:
        yield control
    finally:
        subprocess.run(["ssh", *control, "-O", "exit", "127.0.0.1"], check=True, stderr=subprocess.DEVNULL)


def gateway(folder: Path, host: Host, **policy: Any) -> SshGateway:
    """A running gateway before the host."""
    folder.mkdir()
    write_manifests(folder, host, RULES, **policy)
    return start_gateway(folder, folder / "evidence")


def measure_commands(
    ways: dict[str, Way], folder: Path, rounds: int, commands: int
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each command, over new connections and over open ones."""
    found: dict[str, dict[str, list[float]]] = {what: {way: [] for way in ways} for what in (FRESH, REUSED)}
    for _ in range(rounds):
        for name, way in ways.items():
            fresh, reused = found[FRESH][name], found[REUSED][name]
            with way.counted(FRESH, commands):
                fresh += [1000 * timed(way.ssh, "127.0.0.1", "true") for _ in range(commands)]
            with open_connection(way, folder / f"{name}.control") as control, way.counted(REUSED, commands):
                reused += [1000 * timed(way.ssh, *control, "127.0.0.1", "true") for _ in range(commands)]
    return found


def measure_files(ways: dict[str, Way], folder: Path, rounds: int, size_mib: int) -> dict[str, dict[str, list[float]]]:
    """MiB a second."""
    source, target = folder / "source", folder / "target"
    source.write_bytes((LINE * (size_mib * (1 << 20) // len(LINE) + 1))[: size_mib << 20])
    work: dict[str, Callable[[Way], None]] = {"stream": lambda way: way.ssh("127.0.0.1", f"cat {source}")}
    for name, mode in (("scp", "-s"), ("scp -O", "-O")):
        work[f"{name} up"] = lambda way, mode=mode: way.scp(mode, str(source), f"127.0.0.1:{target}")  # type: ignore[misc]
        work[f"{name} down"] = lambda way, mode=mode: way.scp(mode, f"127.0.0.1:{source}", str(target))  # type: ignore[misc]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            for who, way in ways.items():
                if who == "masked" and name != "stream":
                    continue
                with way.counted(name, size_mib):
                    found[name].setdefault(who, []).append(size_mib / timed(one, way))
    return found


def resident(process: subprocess.Popen[str]) -> dict[str, float]:
    """MiB now and at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"now_mib": round(sizes["VmRSS"], 1), "highest_mib": round(sizes["VmHWM"], 1)}


def main() -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", type=int, default=20)
    parser.add_argument("--mib", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        host = start_host(folder / "sshd")
        relay_port = stack.enter_context(relay(host.port, 65536))
        plain, masked = gateway(folder / "plain", host), gateway(folder / "masked", host, masks=MASKS)
        key = host.folder / "client_key"
        own = ["-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o",
               "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "LogLevel=ERROR",
               "-o", "IdentityAgent=none"]  # fmt: skip
        try:
            ways = {
                "direct": Way(host.port, own), "socat": Way(relay_port, own),
                "gateway": Way(plain.port, plain.options(), plain.process),
                "masked": Way(masked.port, masked.options(), masked.process),
            }  # fmt: skip
            for way in ways.values():
                way.ssh("127.0.0.1", "true")
            found: dict[str, Any] = {}
            for what, times in measure_commands(ways, folder, asked.rounds, asked.commands).items():
                base = statistics.median(times["direct"])
                found[what] = {
                    way: {"p50_ms": round(statistics.median(taken), 1),
                          "p99_ms": round(statistics.quantiles(taken, n=100)[98], 1),
                          "ratio": round(statistics.median(taken) / base, 2)}
                    for way, taken in times.items()
                }  # fmt: skip
            for what, rates in measure_files(ways, folder, asked.rounds, asked.mib).items():
                base = statistics.median(rates["direct"])
                found[what] = {
                    way: {"mib_per_s": round(statistics.median(rate), 1),
                          "ratio": round(statistics.median(rate) / base, 3)}
                    for way, rate in rates.items()
                }  # fmt: skip
            for name, way in ways.items():
                for what, spent in way.cpu_ms.items():
                    if any(spent):
                        found[what][name]["cpu_ms"] = round(statistics.median(spent), 2)
            found["memory"] = {"gateway": resident(plain.process), "masked": resident(masked.process)}
            print(json.dumps(found, indent=1))
        finally:
            plain.stop()
            masked.stop()
            host.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
