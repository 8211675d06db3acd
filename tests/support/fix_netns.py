"""Two network namespaces joined by a cable: a pod's, and one that plays everything else and counts what arrives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

TIMEOUT_S = 60
OUTSIDE4, INSIDE4 = "10.231.7.1", "10.231.7.2"
OUTSIDE6, INSIDE6 = "fd71:7::1", "fd71:7::2"
COUNTED = """
table inet count {
  counter arrived {}
  chain in {
    type filter hook prerouting priority raw; policy accept;
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert } accept
    icmpv6 type { mld-listener-report, mld2-listener-report, mld-listener-query } accept
    iifname "out*" counter name arrived
  }
}
"""
LISTENER = """
import socket, sys, threading
def tcp(family, address, port):
    server = socket.create_server((address, port), family=family)
    while True:
        connection, _ = server.accept()
        connection.sendall(b"outside")
        connection.close()
for family, address in ((socket.AF_INET, sys.argv[1]), (socket.AF_INET6, sys.argv[2])):
    threading.Thread(target=tcp, args=(family, address, 5432), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class World:
    """Two namespaces joined by a cable."""

    inside: str
    outside: str

    def run(self, where: str, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", where, *command], input=text, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip

    def agent(self, code: str) -> subprocess.CompletedProcess[str]:
        """Python as root, without NET_RAW and NET_ADMIN, as a container has it."""
        drop = "-net_raw,-net_admin"
        return self.run(
            self.inside, "setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", sys.executable, "-c",
            f"import os,socket\n{code}",
        )  # fmt: skip

    @contextmanager
    def resolv_conf(self, text: str) -> Iterator[None]:
        """What `/etc/resolv.conf` says to whatever `ip netns exec` starts in the pod."""
        folder = Path("/etc/netns") / self.inside
        folder.mkdir(parents=True)
        try:
            (folder / "resolv.conf").write_text(text)
            yield
        finally:
            shutil.rmtree(folder)

    def arrived(self) -> int:
        """Packets that came out of the pod."""
        found = json.loads(self.run(self.outside, "nft", "-j", "list", "counters", "table", "inet", "count").stdout)
        return next(int(one["counter"]["packets"]) for one in found["nftables"] if "counter" in one)


def _must(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)


@pytest.fixture
def world() -> Iterator[World]:
    """Both namespaces with addresses of both families, nothing fenced yet, a listener outside."""
    tag = uuid.uuid4().hex[:6]
    made = World(f"chap-in-{tag}", f"chap-out-{tag}")
    try:
        for name in (made.inside, made.outside):
            _must("ip", "netns", "add", name)
            _must("ip", "-n", name, "link", "set", "lo", "up")
        _must("ip", "link", "add", f"in{tag}", "netns", made.inside, "type", "veth", "peer", f"out{tag}", "netns",
              made.outside)  # fmt: skip
        _must("ip", "-n", made.inside, "link", "set", f"in{tag}", "name", "eth0")
        for name, device, four, six in (
            (made.inside, "eth0", INSIDE4, INSIDE6),
            (made.outside, f"out{tag}", OUTSIDE4, OUTSIDE6),
        ):
            _must("ip", "-n", name, "addr", "add", f"{four}/24", "dev", device)
            _must("ip", "-n", name, "addr", "add", f"{six}/64", "dev", device, "nodad")
            _must("ip", "-n", name, "link", "set", device, "up")
        _must("ip", "-n", made.inside, "route", "add", "default", "via", OUTSIDE4)
        _must("ip", "-n", made.inside, "-6", "route", "add", "default", "via", OUTSIDE6)
        loaded = made.run(made.outside, "nft", "-f", "-", text=COUNTED)
        assert loaded.returncode == 0, loaded.stderr
        listener = subprocess.Popen(
            ["ip", "netns", "exec", made.outside, sys.executable, "-c", LISTENER, OUTSIDE4, OUTSIDE6],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            yield made
        finally:
            listener.kill()
            listener.communicate(timeout=TIMEOUT_S)
    finally:
        for name in (made.inside, made.outside):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture
def fenced(world: World) -> World:
    """The same with the fence, put up as the init container does."""
    run = world.run(
        world.inside, "env", "CHAPERONE_INGRESS_PORTS=8080", sys.executable, "-c",
        "from chaperone_sidecar import fence; print(fence.apply((8080,), ('eth0',)))",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return world
