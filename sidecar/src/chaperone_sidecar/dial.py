"""The gateway's way out: sockets that carry the packet mark, and addresses that no target may lead to.

The mark is set before anything is sent, so that the fence lets the first packet pass. What a name resolves to is
checked here at every connection: a record that was changed must not lead to the node, to the metadata of the cloud or
back into the pod.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Any, Final

import aiohttp

from chaperone_sidecar.config import IPAddress
from chaperone_sidecar.fence import MARK
from chaperone_sidecar.resolver import HttpResolver, Resolver

CONNECT_TIMEOUT_S: Final = 5.0  # of one address; then the next one is tried
MAX_TRIED: Final = 4  # addresses of one name

_FORBIDDEN: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
        "224.0.0.0/4", "240.240.0.0/16", "255.255.255.255/32", "::/128", "::1/128", "fe80::/10", "ff00::/8",
        "fd00:ec2::254/128", "fd63:6861:7065::/64",
    )
)  # fmt: skip
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


class AddressForbidden(OSError):
    """A name or target leads to where no target may lead."""


def check(address: IPAddress) -> None:
    """Refuse the node's, the cloud's and the pod's own addresses, also those that hide in IPv6.

    Raises:
        AddressForbidden: naming the address.
    """
    inner = _inner(address)
    for network in _FORBIDDEN:
        if any(one.version == network.version and one in network for one in (address, inner)):
            raise AddressForbidden(0, f"the address {address} is one that no target may lead to")


def marked_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket whose packets pass the fence (needs CAP_NET_RAW or CAP_NET_ADMIN).

    Raises:
        OSError: the capability is not there.
    """
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    except OSError:
        made.close()
        raise
    return made


def _http_socket(address: tuple[Any, ...]) -> socket.socket:
    """The same for aiohttp's connectors."""
    family, kind, protocol, *_ = address
    made = marked_socket(family, kind, protocol)
    made.setblocking(False)
    return made


class Dialer:
    """Connects to backends, broker and collector by name or address.

    Args:
        resolver: looks names up over marked sockets.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def dial(self, host: str, port: int) -> socket.socket:
        """Connect to the first address of `host` that answers.

        Raises:
            OSError: none answers, none may be used, or the name has none; `strerror` says which.
        """
        last: OSError = OSError(0, f"the name {host} has no address")
        for address in (await self._resolver.addresses(host))[:MAX_TRIED]:
            try:
                check(address)
                return await _connect(address, port)
            except OSError as error:
                last = error
        raise last

    def connector(self, context: ssl.SSLContext) -> aiohttp.TCPConnector:
        """Connections for an HTTP client."""
        return aiohttp.TCPConnector(
            ssl=context, resolver=HttpResolver(self._resolver), use_dns_cache=False, socket_factory=_http_socket
        )


async def _connect(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = marked_socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        except TimeoutError as error:
            raise OSError(0, f"{address} does not answer") from error
        _check_own(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_own(connection: socket.socket) -> None:
    """Refuse a connection that did not leave the pod.

    Raises:
        AddressForbidden: both ends are one address.
    """
    address = connection.getpeername()[0]
    if connection.getsockname()[0] == address:
        raise AddressForbidden(0, f"the address {address} is this pod's own")


def _inner(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
