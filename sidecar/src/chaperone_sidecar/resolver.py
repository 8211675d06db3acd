"""Names as the gateway itself looks them up: over marked sockets, from the servers of the pod's resolv.conf.

The C library's resolver is no use here: its packets carry no mark, so the fence would lead them back to this gateway.

Search lists are not followed. An agent that may create Services could otherwise make `db.example.com` mean a Service of
its own namespace, and be sent the credential. A name that ends in `.svc` gets the cluster's domain; every other name is
taken as it is written.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiohttp.abc
import dnslib
import msgspec

from chaperone_sidecar.config import IPAddress

DNS_PORT: Final = 53
TIMEOUT_S: Final = 2.0  # of one question to one server; cluster DNS answers in milliseconds
TRIES: Final = 3  # rounds over all servers
MAX_SERVERS: Final = 3  # as in resolv.conf(5)
MAX_ANSWER_BYTES: Final = 4096
MAX_ADDRESSES: Final = 16  # of one name; what comes after them is left out
MAX_CHAIN: Final = 8  # CNAMEs that are followed within one answer
MIN_LIFE_S: Final = 1.0
MAX_LIFE_S: Final = 30.0  # a Service that moves is found within this time whatever its records say
MAX_CACHED: Final = 1024
MAX_QUESTIONS: Final = 64  # under way at once
CLUSTER_DOMAIN: Final = "cluster.local"
RESOLV_CONF: Final = Path("/etc/resolv.conf")

_SEARCH_ZONE: Final = re.compile(r"svc\.(?P<domain>[a-z0-9.-]+)")

type MakeSocket = Callable[[int, int, int], socket.socket]


class ResolverConf(msgspec.Struct, frozen=True):
    """What the pod's resolv.conf says.

    Attributes:
        servers: addresses of the name servers.
        search: domains that the agent's own library appends.
        cluster_domain: under which Services live.
    """

    servers: tuple[str, ...]
    search: tuple[str, ...]
    cluster_domain: str


class NameNotFound(OSError):
    """The name has no address, or no server said so in time."""


def read_conf(text: str) -> ResolverConf:
    """Read resolv.conf(5); lines that mean nothing here are passed over."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            servers.append(words[1])
        elif words and words[0] in ("search", "domain"):
            search = tuple(word.lower().removesuffix(".") for word in words[1:])
    domain = CLUSTER_DOMAIN
    for zone in search:
        found = _SEARCH_ZONE.fullmatch(zone)
        if found is not None:
            domain = found["domain"]
    return ResolverConf(tuple(servers[:MAX_SERVERS]), search, domain)


def absolute(name: str, cluster_domain: str) -> str:
    """The name as it is asked for: `x.ns.svc` is a Service of this cluster, everything else is complete."""
    name = name.lower().removesuffix(".")
    return f"{name}.{cluster_domain}" if name.endswith(".svc") else name


class Resolver:
    """Looks names up and remembers the answers for as long as they may live.

    Args:
        conf: servers and cluster domain.
        make_socket: makes the sockets; inside a pod they carry the mark.
        port: of the servers; tests have others than 53.
    """

    def __init__(self, conf: ResolverConf, make_socket: MakeSocket, port: int = DNS_PORT) -> None:
        self._conf = conf
        self._make_socket = make_socket
        self._port = port
        self._known: OrderedDict[str, tuple[float, tuple[IPAddress, ...]]] = OrderedDict()
        self._slots = asyncio.Semaphore(MAX_QUESTIONS)

    async def addresses(self, name: str) -> tuple[IPAddress, ...]:
        """All addresses of a name, IPv4 first; an address stands for itself.

        Raises:
            NameNotFound: with a text for people.
        """
        try:
            return (ipaddress.ip_address(name),)
        except ValueError:
            pass
        asked = absolute(name, self._conf.cluster_domain)
        known = self._known.get(asked)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        async with self._slots:
            four, six = await asyncio.gather(self._ask(asked, "A"), self._ask(asked, "AAAA"))
        found = (*four[1], *six[1])
        if not found:
            raise NameNotFound(0, f"the name {name} has no address")
        life_s = min(part[0] for part in (four, six) if part[1])
        self._known[asked] = (time.monotonic() + min(max(life_s, MIN_LIFE_S), MAX_LIFE_S), found)
        self._known.move_to_end(asked)
        if len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)
        return found

    async def _ask(self, name: str, qtype: str) -> tuple[float, tuple[IPAddress, ...]]:
        for _ in range(TRIES):
            for server in self._conf.servers:
                query = dnslib.DNSRecord.question(name, qtype)
                query.header.id = secrets.randbits(16)
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        reply = await self._exchange(server, query)
                except (TimeoutError, OSError):
                    continue
                if reply.header.rcode in (dnslib.RCODE.NOERROR, dnslib.RCODE.NXDOMAIN):
                    return _addresses(reply, name, qtype)
        raise NameNotFound(0, f"no name server answers for {name}")

    async def _exchange(self, server: str, query: dnslib.DNSRecord) -> dnslib.DNSRecord:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with self._make_socket(family, socket.SOCK_DGRAM, 0) as asker:
            asker.setblocking(False)
            # Connected: the kernel drops what comes from anybody else, and the source port is a random one.
            await loop.sock_connect(asker, (server, self._port))
            await loop.sock_sendall(asker, query.pack())
            while True:
                reply = _read(await loop.sock_recv(asker, MAX_ANSWER_BYTES), query)
                if reply is not None:
                    break
        return reply if not reply.header.tc else await self._exchange_tcp(server, family, query)

    async def _exchange_tcp(self, server: str, family: int, query: dnslib.DNSRecord) -> dnslib.DNSRecord:
        loop = asyncio.get_running_loop()
        packed = query.pack()
        with self._make_socket(family, socket.SOCK_STREAM, 0) as asker:
            asker.setblocking(False)
            await loop.sock_connect(asker, (server, self._port))
            await loop.sock_sendall(asker, len(packed).to_bytes(2) + packed)
            size = int.from_bytes(await _read_exactly(asker, 2))
            reply = _read(await _read_exactly(asker, size), query)
        if reply is None:
            raise ConnectionError("the name server answered another question")
        return reply


class HttpResolver(aiohttp.abc.AbstractResolver):
    """The same for aiohttp's clients."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        """See aiohttp; the families are those of the answers, whatever was asked for."""
        del family
        return [
            {
                "hostname": host,
                "host": str(address),
                "port": port,
                "family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in await self._resolver.addresses(host)
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _read_exactly(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(connection, size - len(data))
        if not part:
            raise ConnectionError("the name server closed the connection")
        data += part
    return data


def _read(data: bytes, query: dnslib.DNSRecord) -> dnslib.DNSRecord | None:
    """The answer to `query`, or None when these bytes are something else (RFC 5452, 9.1)."""
    reply = parse(data)
    if reply is None or reply.header.id != query.header.id or not reply.header.qr or len(reply.questions) != 1:
        return None
    asked, echoed = query.q, reply.q
    same_name = str(asked.qname).lower() == str(echoed.qname).lower()
    return reply if same_name and (asked.qtype, asked.qclass) == (echoed.qtype, echoed.qclass) else None


def parse(data: bytes) -> dnslib.DNSRecord | None:
    """Read a DNS message; None for whatever is none."""
    try:
        return dnslib.DNSRecord.parse(data)
    except Exception:  # dnslib raises many kinds on bytes that are no message
        return None


def _addresses(reply: dnslib.DNSRecord, name: str, qtype: str) -> tuple[float, tuple[IPAddress, ...]]:
    """Addresses of `name` in an answer, following its CNAMEs, and how many seconds they live."""
    wanted, life_s = name, MAX_LIFE_S
    for _ in range(MAX_CHAIN):
        found: list[IPAddress] = []
        further = ""
        for one in reply.rr:
            if str(one.rname).lower().removesuffix(".") != wanted:
                continue
            life_s = min(life_s, float(one.ttl))
            kind: Any = dnslib.QTYPE[one.rtype]
            if kind == qtype:
                found.append(ipaddress.ip_address(str(one.rdata)))
            elif kind == "CNAME":
                further = str(one.rdata.label).lower().removesuffix(".")
        if found or not further:
            return life_s, tuple(found[:MAX_ADDRESSES])
        wanted = further
    return life_s, ()
