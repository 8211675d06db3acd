"""The fence in real network namespaces: an agent that is root gets nothing out, and counters outside prove it.

`inside` is a pod's namespace, `outside` plays everything else with counting nftables rules and listeners of the test.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fix_netns import INSIDE4, INSIDE6, OUTSIDE4, OUTSIDE6, TIMEOUT_S, World

from chaperone_sidecar import fence

pytestmark = pytest.mark.peer

ESCAPES = {
    "tcp4": f"s=socket.socket(); s.settimeout(5); s.connect(('{OUTSIDE4}',5432)); print(s.recv(9))",
    "tcp6": f"s=socket.socket(socket.AF_INET6); s.settimeout(5); s.connect(('{OUTSIDE6}',5432)); print(s.recv(9))",
    "udp4": f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x',('{OUTSIDE4}',4000))",
    "udp6": f"socket.socket(socket.AF_INET6,socket.SOCK_DGRAM).sendto(b'x',('{OUTSIDE6}',4000))",
    "dns": f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x'*20,('{OUTSIDE4}',53))",
    "raw": f"socket.socket(type=socket.SOCK_RAW,proto=1).sendto(b'x'*8,('{OUTSIDE4}',0))",
    "ping": f"socket.socket(type=socket.SOCK_DGRAM,proto=1).sendto(b'\\x08'+b'\\0'*7,('{OUTSIDE4}',0))",
    "packet": "s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); s.bind(('eth0',0)); s.send(b'\\xff'*60)",
    "mark": f"s=socket.socket(type=2); s.setsockopt(1,36,{fence.MARK}); s.sendto(b'x',('{OUTSIDE4}',9))",
    "setuid": f"os.setuid(64137); socket.socket(type=socket.SOCK_DGRAM).sendto(b'x',('{OUTSIDE4}',4000))",
    "source": f"s=socket.socket(); s.bind(('127.0.0.6',0)); s.settimeout(5); s.connect(('{OUTSIDE4}',5432))",
    "sctp": f"s=socket.socket(type=socket.SOCK_STREAM,proto=132); s.settimeout(5); s.connect(('{OUTSIDE4}',9))",
}


def test_without_the_fence_the_same_attempts_get_out(world: World) -> None:
    assert "outside" in world.agent(ESCAPES["tcp4"]).stdout
    assert "outside" in world.agent(ESCAPES["tcp6"]).stdout
    assert world.agent(ESCAPES["udp4"]).returncode == 0
    assert world.arrived() > 0


@pytest.mark.parametrize("way", ESCAPES)
def test_root_in_the_pod_gets_nothing_out(fenced: World, way: str) -> None:
    tried = fenced.agent(ESCAPES[way])
    assert "outside" not in tried.stdout
    assert fenced.arrived() == 0, tried.stderr


def test_a_raw_frame_is_stopped_even_with_the_capability(fenced: World) -> None:
    fenced.run(fenced.inside, sys.executable, "-c", f"import os,socket\n{ESCAPES['packet']}")
    fenced.run(fenced.inside, sys.executable, "-c", f"import os,socket\n{ESCAPES['raw']}")
    assert fenced.arrived() == 0


@pytest.mark.parametrize(("family", "address"), [("AF_INET", OUTSIDE4), ("AF_INET6", OUTSIDE6)])
def test_the_mark_gets_out(fenced: World, family: str, address: str) -> None:
    code = (
        f"import socket; s=socket.socket(socket.{family}); s.settimeout(5); s.setsockopt(1,36,{fence.MARK});"
        f"s.connect(('{address}',5432)); print(s.recv(9))"
    )
    run = fenced.run(fenced.inside, sys.executable, "-c", code)
    assert "outside" in run.stdout, run.stderr


@pytest.mark.parametrize(("family", "address"), [("AF_INET", OUTSIDE4), ("AF_INET6", OUTSIDE6)])
def test_tcp_of_the_agent_ends_at_the_gateways_port_with_its_destination_known(
    fenced: World, family: str, address: str
) -> None:
    level, kind = (0, "'!2xH4s8x'") if family == "AF_INET" else (41, "'!2xH4x16s4x'")
    size = 16 if family == "AF_INET" else 28
    code = f"""
import threading
server = socket.create_server(("", {fence.TCP_PORT}), family=socket.{family})
client = socket.socket(socket.{family}); client.settimeout(5)
threading.Thread(target=client.connect, args=(("{address}", 5432),)).start()
server.settimeout(5)
connection, _ = server.accept()
import struct
port, ip = struct.unpack({kind}, connection.getsockopt({level}, 80, {size}))
print(port, socket.inet_ntop(socket.{family}, ip))
"""
    run = fenced.agent(code)
    assert run.stdout.split() == ["5432", address], run.stderr
    assert fenced.arrived() == 0


# A question to a name server and what comes of it: the same two ends, since the port was the agent's a moment ago.
ASK = """
import socket
asker = socket.socket(socket.{family}, socket.SOCK_DGRAM)
if {mark}: asker.setsockopt(1, 36, {mark})
asker.bind(("", 40053)); asker.settimeout(10); asker.connect(("{address}", 53)); asker.send(b"question")
try: print(asker.recv(99).decode())
except TimeoutError: print("nothing")
"""
ANSWERS = """
import select, socket, sys
made = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
for one, address in zip(made, sys.argv[3:]): one.bind((address, int(sys.argv[2])))
print("ready", flush=True)
while True:
    for one in select.select(made, [], [])[0]: one.sendto(sys.argv[1].encode(), one.recvfrom(99)[1])
"""


@contextmanager
def _answering(where: str, word: str, port: int, *addresses: str) -> Iterator[None]:
    """Every datagram to these addresses is answered with a word."""
    server = subprocess.Popen(
        ["ip", "netns", "exec", where, sys.executable, "-c", ANSWERS, word, str(port), *addresses],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize(("family", "address"), [("AF_INET", OUTSIDE4), ("AF_INET6", OUTSIDE6)])
@pytest.mark.parametrize("order", [("agent", "gateway"), ("gateway", "agent")])
def test_a_port_that_the_agent_used_leads_the_gateways_question_out_and_the_other_way_about(
    fenced: World, family: str, address: str, order: tuple[str, str]
) -> None:
    """The kernel remembers where the datagrams of two ends were led, for half a minute and whatever their mark."""

    def asked(who: str) -> str:
        if who == "agent":
            return fenced.agent(ASK.format(family=family, address=address, mark=0)).stdout
        code = ASK.format(family=family, address=address, mark=fence.MARK)
        return fenced.run(fenced.inside, sys.executable, "-c", code).stdout

    with (
        _answering(fenced.inside, "gateway", fence.DNS_PORT, "127.0.0.1", "::1"),
        _answering(fenced.outside, "outside", 53, OUTSIDE4, OUTSIDE6),
    ):
        for _ in range(2):
            for who in order:
                assert asked(who) == {"agent": "gateway\n", "gateway": "outside\n"}[who]


@pytest.mark.parametrize(("port", "is_open"), [(8080, True), (8081, False), (15001, False), (15053, False)])
def test_inbound_is_open_on_declared_ports_only(fenced: World, port: int, is_open: bool) -> None:
    server = subprocess.Popen(
        ["ip", "netns", "exec", fenced.inside, sys.executable, "-c",
         f"import socket; s=socket.create_server(('',{port})); print('ready',flush=True); s.settimeout(60);"
         "c,_=s.accept(); c.sendall(b'inside'); c.close()"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        server.stdout.readline()
        limit_s = 20 if is_open else 2
        code = f"import socket; s=socket.create_connection(('{INSIDE4}',{port}),{limit_s}); print(s.recv(9))"
        run = fenced.run(fenced.outside, sys.executable, "-c", code)
        assert ("inside" in run.stdout) is is_open, run.stderr
    finally:
        server.kill()
        server.communicate(timeout=TIMEOUT_S)


FORGED = {
    "udp answered to a stranger": """
bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); bound.bind(("::", 7000))
stranger = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); stranger.setsockopt(41, 78, 1)
stranger.bind((OUTSIDE6, 7001)); stranger.sendto(b"question", (INSIDE6, 7000))
bound.settimeout(1)
bound.sendto(b"answer", bound.recvfrom(99)[1])
""",
    "tcp answered to a stranger": """
server = socket.create_server((INSIDE6, 7000), family=socket.AF_INET6)
stranger = socket.socket(socket.AF_INET6); stranger.setsockopt(41, 78, 1); stranger.settimeout(1)
stranger.bind((OUTSIDE6, 7001)); stranger.connect((INSIDE6, 7000))
""",
    "the kernel's reset to a stranger": """
stranger = socket.socket(socket.AF_INET6); stranger.setsockopt(41, 78, 1); stranger.settimeout(1)
stranger.bind((OUTSIDE6, 7001)); stranger.connect((INSIDE6, 15001))
""",
    "the kernel's error to a stranger": """
stranger = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); stranger.setsockopt(41, 78, 1)
stranger.bind((OUTSIDE6, 7001)); stranger.sendto(b"secret", (INSIDE6, 7999))
""",
    "the gateway's answer to a stranger": """
gateway = socket.create_server(("::1", 15001), family=socket.AF_INET6)
stranger = socket.socket(socket.AF_INET6); stranger.setsockopt(41, 78, 1); stranger.settimeout(1)
stranger.bind((OUTSIDE6, 7001)); stranger.connect(("2001:db8::7", 443))
""",
}
"""IPv6 lets everybody send from an address that is not theirs (IPV6_FREEBIND, 78)."""
SETTLED_S = 1.5  # until a late packet has been counted


@pytest.mark.parametrize("way", FORGED)
def test_nothing_that_answers_a_forged_source_leaves(fenced: World, way: str) -> None:
    code = f"OUTSIDE6, INSIDE6 = {OUTSIDE6!r}, {INSIDE6!r}\n{FORGED[way]}"
    tried = fenced.agent(code + f"\nimport time; time.sleep({SETTLED_S})")
    assert "SyntaxError" not in tried.stderr
    fenced.agent(f"import time; time.sleep({SETTLED_S})")
    assert fenced.arrived() == 0, tried.stderr


@pytest.mark.parametrize("way", list(FORGED)[:2])
def test_without_the_fence_answers_to_a_forged_source_leave(world: World, way: str) -> None:
    world.agent(f"OUTSIDE6, INSIDE6 = {OUTSIDE6!r}, {INSIDE6!r}\n{FORGED[way]}")
    world.agent(f"import time; time.sleep({SETTLED_S})")
    assert world.arrived() > 0


def test_loopback_among_containers_is_left_alone(fenced: World) -> None:
    code = """
import threading
server = socket.create_server(("127.0.0.1", 6000))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"), daemon=True).start()
print(socket.create_connection(("127.0.0.1", 6000), 3).recv(5))
"""
    assert "hello" in fenced.agent(code).stdout


def test_the_proof_holds_behind_the_fence_and_fails_without(world: World) -> None:
    code = "from chaperone_sidecar import fence; fence.prove(); print('proved')"
    assert "was not stopped" in world.run(world.inside, sys.executable, "-c", code).stderr
    world.run(world.inside, sys.executable, "-c", "from chaperone_sidecar import fence; fence.apply((), ('eth0',))")
    assert "proved" in world.run(world.inside, sys.executable, "-c", code).stdout
    assert world.arrived() >= 1  # the one that got out before the fence stood


def test_applying_twice_changes_nothing(fenced: World) -> None:
    again = fenced.run(
        fenced.inside, sys.executable, "-c",
        "from chaperone_sidecar import fence; print(fence.apply((8080,), ('eth0',)))",
    )  # fmt: skip
    assert "has_second_wall=True" in again.stdout, again.stderr
