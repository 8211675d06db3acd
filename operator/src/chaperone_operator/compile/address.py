"""Hosts of targets: which names and addresses may be declared, and the virtual addresses of the names.

A target may never lead to the node, to cloud metadata or back into the pod: loopback, link-local, multicast and
metadata addresses are refused as literals and inside CIDRs; the gateway checks again what a name resolves to.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from typing import Final

import msgspec

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOSTS: Final = 10_000  # names of one namespace; the 65 534 slots stay sparse, so that addresses stay stable
_SLOTS: Final = 65_534  # 1 … 65 534: the all-zero and all-one addresses of 240.240.0.0/16 stay unused
_VIRTUAL_V4: Final = ipaddress.IPv4Network("240.240.0.0/16")
_VIRTUAL_V6: Final = ipaddress.IPv6Network("fd63:6861:7065::/64")

_FORBIDDEN: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this host"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local and cloud metadata"),
        ("100.100.100.200/32", "cloud metadata"),
        ("168.63.129.16/32", "cloud metadata"),
        ("192.0.0.192/32", "cloud metadata"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        (str(_VIRTUAL_V4), "the virtual addresses of Chaperone"),
        ("::/128", "this host"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4 in IPv6; write the IPv4 address"),
        ("64:ff9b::/96", "IPv4 in IPv6; write the IPv4 address"),
        ("2002::/16", "IPv4 in IPv6; write the IPv4 address"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("fd00:ec2::254/128", "cloud metadata"),
        (str(_VIRTUAL_V6), "the virtual addresses of Chaperone"),
    )
)
_FORBIDDEN_NAMES: Final = frozenset(
    {"localhost", "metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")


class BadHost(Exception):
    """A host that no target may declare; the text says why."""


class VirtualHost(msgspec.Struct, frozen=True):
    """A name with the addresses under which the agent sees it."""

    name: str
    ipv4: str
    ipv6: str


def parse_host(text: str) -> str | Network:
    """A declared host as a canonical name, or as a network when it is an address or a CIDR.

    Raises:
        BadHost: it is none of these, or one that is refused.
    """
    if "/" in text or ":" in text or text.replace(".", "").isdigit():
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise BadHost(f"{text} is no address and no CIDR: {error}") from error
        for forbidden, what in _FORBIDDEN:
            if forbidden.version == network.version and forbidden.overlaps(network):
                raise BadHost(f"{text} is refused: it contains {forbidden} ({what})")
        return network
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadHost(f"{text} is no host name")
    # Resolvers read numbers at the end (127.1, 0x7f.1) as addresses.
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        raise BadHost(f"{text} is no host name: its last label is a number")
    if name in _FORBIDDEN_NAMES or labels[-1] == "localhost":
        raise BadHost(f"{text} is refused: it leads to the pod or to cloud metadata")
    return name


def virtual_hosts(names: Iterable[str]) -> dict[str, VirtualHost]:
    """Virtual addresses of all names of a namespace: each starts at its hash and goes on to the next free slot.

    The order is that of the names, so the result depends on the set alone.
    """
    taken: set[int] = set()
    hosts = {}
    for name in sorted(set(names)):
        slot = int.from_bytes(hashlib.sha256(name.encode("ascii")).digest()[:8]) % _SLOTS + 1
        while slot in taken:
            slot = slot % _SLOTS + 1
        taken.add(slot)
        hosts[name] = VirtualHost(name, str(_VIRTUAL_V4[slot]), str(_VIRTUAL_V6[slot]))
    return hosts
