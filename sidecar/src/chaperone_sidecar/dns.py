"""DNS for the agent: declared names get their virtual addresses, everything else is refused and noted.

No question leaves the pod. Answers are made from the configuration alone, so a name carries no data out, and the
address by which a connection arrives names its target.

Names under the search domains of the pod need care: a C library appends these domains to what the agent typed and ends
its search at REFUSED. So the expansions of a declared name get NXDOMAIN, and `x.ns.svc` is known by its full name too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import dnslib
import msgspec

from chaperone_sidecar.config import Host, Target
from chaperone_sidecar.resolver import ResolverConf, parse

TTL_S: Final = 30  # virtual addresses are stable; a name that is withdrawn fades within this time
MAX_QUESTION_BYTES: Final = 4096
MAX_CONNECTIONS: Final = 32
IDLE_TIMEOUT_S: Final = 5.0

type Deny = Callable[[str, str], None]


class Answer(msgspec.Struct, frozen=True):
    """What is sent back, and the question that was denied (name, type), if it was."""

    packet: bytes
    denied: tuple[str, str] | None = None


class Names:
    """The names of one configuration."""

    def __init__(self, targets: Iterable[Target], conf: ResolverConf) -> None:
        self._hosts: dict[str, tuple[Host, int]] = {}
        self._reverse: dict[str, str] = {}
        for target in targets:
            for host in target.hosts:
                self._hosts[host.name] = (host, target.port)
                if host.name.endswith(".svc"):
                    self._hosts.setdefault(f"{host.name}.{conf.cluster_domain}", (host, target.port))
                for address in (host.ipv4, host.ipv6):
                    self._reverse[_reverse_name(address)] = host.name
        expansions = {f"{name}.{zone}" for name in self._hosts for zone in conf.search}
        self._expansions = expansions - self._hosts.keys()

    def find(self, name: str) -> tuple[Host, int] | None:
        """Host and port of a declared name, in lower case and without the last dot."""
        return self._hosts.get(name)

    def reverse(self, name: str) -> str | None:
        """The name of a virtual address in its reverse form."""
        return self._reverse.get(name)

    def is_expansion(self, name: str) -> bool:
        """Whether a library made this name from a declared one."""
        return name in self._expansions


def answer(data: bytes, names: Names) -> Answer | None:
    """Answer one question; None when the bytes are no question and get no answer at all.

    Spec: RFC 1035, 4.1; RFC 8906 for what is not understood.
    """
    query = parse(data)
    if query is None:
        return _format_error(data)
    if query.header.qr:
        return None
    if query.header.opcode != dnslib.OPCODE.QUERY:
        return Answer(bytes(_reply(query, dnslib.RCODE.NOTIMP).pack()))
    if len(query.questions) != 1:
        return Answer(bytes(_reply(query, dnslib.RCODE.FORMERR).pack()))
    name = str(query.q.qname).lower().removesuffix(".")
    qtype = str(dnslib.QTYPE.get(query.q.qtype, f"TYPE{query.q.qtype}"))
    found = _records(name, qtype, names) if query.q.qclass == dnslib.CLASS.IN else None
    if found is None:
        if names.is_expansion(name):
            return Answer(bytes(_reply(query, dnslib.RCODE.NXDOMAIN).pack()))
        return Answer(bytes(_reply(query, dnslib.RCODE.REFUSED).pack()), (_printable(name), qtype))
    reply = _reply(query, dnslib.RCODE.NOERROR)
    for kind, data_ in found:
        reply.add_answer(dnslib.RR(query.q.qname, getattr(dnslib.QTYPE, kind), ttl=TTL_S, rdata=data_))
    return Answer(bytes(reply.pack()))


class DnsServer:
    """Serves UDP and TCP on the loopback addresses to which the fence redirects.

    Args:
        conf: the pod's resolv.conf.
        deny: told each refused question.
    """

    def __init__(self, conf: ResolverConf, deny: Deny) -> None:
        self._conf = conf
        self._deny = deny
        self._names = Names((), conf)
        self._connections = 0

    def use(self, targets: Iterable[Target]) -> None:
        """From now on these targets' names are answered."""
        self._names = Names(targets, self._conf)

    async def start(self, port: int) -> None:
        """Listen.

        Raises:
            OSError: a port is taken.
        """
        loop = asyncio.get_running_loop()
        for family, address in loopbacks():
            await loop.create_datagram_endpoint(lambda: _Datagrams(self._answer), (address, port), family=family)
            await loop.create_server(lambda: _Stream(self), address, port, family=family)

    def _answer(self, data: bytes) -> bytes | None:
        found = answer(data, self._names) if len(data) <= MAX_QUESTION_BYTES else None
        if found is None:
            return None
        if found.denied is not None:
            self._deny(*found.denied)
        return found.packet

    def take_place(self) -> bool:
        """Count a TCP connection in; False when there are too many."""
        if self._connections >= MAX_CONNECTIONS:
            return False
        self._connections += 1
        return True

    def leave_place(self) -> None:
        """Count it out."""
        self._connections -= 1

    def answer_framed(self, data: bytes) -> bytes | None:
        """The answer with the length that TCP wants before it (RFC 1035, 4.2.2)."""
        packet = self._answer(data)
        return None if packet is None else len(packet).to_bytes(2) + packet


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self._reply = reply
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        packet = self._reply(data)
        if packet is not None and self._transport is not None:
            self._transport.sendto(packet, addr)


class _Stream(asyncio.Protocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_place = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._has_place = self._server.take_place()
        if self._has_place:
            self._timer = asyncio.get_running_loop().call_later(IDLE_TIMEOUT_S, self._transport.abort)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._buffer += data
        while len(self._buffer) >= 2:
            size = int.from_bytes(self._buffer[:2])
            if size > MAX_QUESTION_BYTES:
                transport.abort()
                return
            if len(self._buffer) < 2 + size:
                return
            framed = self._server.answer_framed(bytes(self._buffer[2 : 2 + size]))
            del self._buffer[: 2 + size]
            if framed is None:
                transport.abort()
                return
            transport.write(framed)

    def pause_writing(self) -> None:
        """The client does not read what it asks for."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._has_place:
            self._server.leave_place()


def loopbacks() -> list[tuple[socket.AddressFamily, str]]:
    """The loopback addresses of this network namespace, of the families that it has."""
    found = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
        except OSError:
            continue
        found.append((family, address))
    return found


def _records(name: str, qtype: str, names: Names) -> list[tuple[str, Any]] | None:
    """Type and data of the records that answer; None for a name that is not declared."""
    service, dot, rest = name.partition("._tcp.")
    if qtype == "SRV" and dot and service.startswith("_") and (found := names.find(rest)) is not None:
        return [("SRV", dnslib.SRV(0, 0, found[1], rest))]
    back = names.reverse(name)
    if back is not None:
        return [("PTR", dnslib.PTR(back))] if qtype in ("PTR", "ANY") else []
    found = names.find(name)
    if found is None:
        return None
    host, _ = found
    records: list[tuple[str, Any]] = []
    if qtype in ("A", "ANY"):
        records.append(("A", dnslib.A(host.ipv4)))
    if qtype in ("AAAA", "ANY"):
        records.append(("AAAA", dnslib.AAAA(host.ipv6)))
    return records


def _reply(query: dnslib.DNSRecord, rcode: int) -> dnslib.DNSRecord:
    header = dnslib.DNSHeader(
        id=query.header.id, qr=1, aa=1, ra=1, rd=query.header.rd, opcode=query.header.opcode, rcode=rcode
    )
    return dnslib.DNSRecord(header, q=query.q if len(query.questions) == 1 else None)


def _format_error(data: bytes) -> Answer | None:
    """FORMERR for what at least has a header of a question."""
    if len(data) < 12 or data[2] & 0x80:
        return None
    header = dnslib.DNSHeader(id=int.from_bytes(data[:2]), qr=1, rcode=dnslib.RCODE.FORMERR)
    return Answer(bytes(dnslib.DNSRecord(header).pack()))


def _reverse_name(address: str) -> str:
    if ":" in address:
        digits = socket.inet_pton(socket.AF_INET6, address).hex()
        return ".".join(reversed(digits)) + ".ip6.arpa"
    return ".".join(reversed(address.split("."))) + ".in-addr.arpa"


def _printable(name: str) -> str:
    """The name as a record may hold it: printable ASCII, at most 255 characters."""
    return "".join(sign if " " < sign < "\x7f" else "?" for sign in name)[:255]
