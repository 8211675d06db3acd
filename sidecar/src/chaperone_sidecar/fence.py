"""The fence: nftables rules of the pod's network namespace, so that only marked packets leave.

The mark is the gateway's alone: setting it takes CAP_NET_RAW or CAP_NET_ADMIN, and no other container has either.
A user id would be no fence: root in a container takes any.

Rules, for IPv4 and IPv6 alike (table `inet chaperone`):
* TCP that leaves without the mark is redirected to the gateway, and so is DNS (UDP and TCP 53); loopback traffic among
  the pod's own containers is not touched, but for the gateway's ports, which take what was redirected and nothing that
  was dialled there;
* marked packets are tracked in a zone of their own: where the kernel once led the datagrams of a port, it leads all of
  them for half a minute, so that the gateway's questions, from a port that the agent's had, would come back to itself;
* loopback traffic must come from an address of the pod: IPv6 lets anybody bind a stranger's, and whatever answers it,
  be it the gateway or the kernel, would carry the agent's words out;
* everything else without the mark is dropped, whatever its protocol;
* inbound is accepted on declared ports; replies of these connections, and of no others, get the mark, so that they pass
  both walls.

The second wall (table `netdev chaperone`) drops unmarked frames at the device itself, raw ones included. Kernels
without the netdev egress hook have the first wall alone; `apply` says so.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from chaperone_sidecar.errors import FenceBroken

MARK: Final = 0x63686170
ZONE: Final = 1  # of connection tracking
TCP_PORT: Final = 15001
DNS_PORT: Final = 15053
NFT_TIMEOUT_S: Final = 20.0
PROBE_TIMEOUT_S: Final = 2.0

# Addresses for documentation (RFC 5737, RFC 3849): nothing answers there, so an answer is the gateway's own.
_PROBES: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class Applied(msgspec.Struct, frozen=True):
    """What stands now."""

    has_second_wall: bool


def ruleset(ingress_ports: tuple[int, ...], interfaces: tuple[str, ...], *, second_wall: bool) -> str:
    """The rules in nftables' own language; applying them replaces older ones in one transaction."""
    declared = ", ".join(map(str, ingress_ports))
    inbound = f"tcp dport {{ {declared} }} ct mark set {MARK:#x} accept" if ingress_ports else ""
    text = f"""
table inet chaperone {{}}
delete table inet chaperone
table inet chaperone {{
  chain apart {{
    type filter hook output priority raw; policy accept;
    meta mark {MARK:#x} ct original zone set {ZONE}
  }}
  chain capture {{
    type nat hook output priority -100; policy accept;
    meta mark {MARK:#x} accept
    meta l4proto {{ tcp, udp }} th dport 53 redirect to :{DNS_PORT}
    fib daddr type local accept
    meta l4proto tcp redirect to :{TCP_PORT}
  }}
  chain replies {{
    type route hook output priority -150; policy accept;
    ct direction reply ct mark {MARK:#x} meta mark set {MARK:#x}
  }}
  chain out {{
    type filter hook output priority filter; policy drop;
    meta mark {MARK:#x} accept
    oif lo fib saddr type != local drop
    fib daddr type local fib saddr type != local drop
    tcp dport {{ {TCP_PORT}, {DNS_PORT} }} fib daddr type local ct status ! dnat reject with tcp reset
    udp dport {DNS_PORT} fib daddr type local ct status ! dnat reject
    fib daddr type local accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
  }}
  chain in {{
    type filter hook input priority filter; policy drop;
    iif lo accept
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
    tcp dport {{ {TCP_PORT}, {DNS_PORT} }} drop
    {inbound}
  }}
  chain through {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"""
    if second_wall:
        chains = "".join(
            f"""
  chain out_{number} {{
    type filter hook egress device "{name}" priority filter; policy drop;
    meta mark {MARK:#x} accept
    ether type arp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
  }}"""
            for number, name in enumerate(interfaces)
        )
        text += f"table netdev chaperone {{}}\ndelete table netdev chaperone\ntable netdev chaperone {{{chains}\n}}\n"
    return text


def apply(ingress_ports: tuple[int, ...], interfaces: tuple[str, ...]) -> Applied:
    """Write the rules into this network namespace (needs CAP_NET_ADMIN).

    Raises:
        FenceBroken: the kernel takes not even the first wall.
    """
    if _load(ruleset(ingress_ports, interfaces, second_wall=True)) is None:
        return Applied(has_second_wall=True)
    refusal = _load(ruleset(ingress_ports, interfaces, second_wall=False))
    if refusal is not None:
        raise FenceBroken(f"The kernel takes no fence: {refusal}")
    return Applied(has_second_wall=False)


def prove(port: int = 9) -> None:
    """Try to get out without the mark, from inside; needs no right at all. Blocks, for seconds at worst.

    Args:
        port: dialled outside; the gateway's listener is told of it, so that it does not take the probe for the agent's.

    Raises:
        FenceBroken: something left, or seemed to.
    """
    for family, address in _PROBES:
        _probe_udp(family, address, port)
        _probe_tcp(family, address, port)


def interfaces() -> tuple[str, ...]:
    """All devices of this network namespace but loopback."""
    return tuple(sorted(path.name for path in Path("/sys/class/net").iterdir() if path.name != "lo"))


def main() -> None:
    """`chaperone-gateway fence`: runs once, before every other container."""
    ports = tuple(int(port) for port in os.environ.get("CHAPERONE_INGRESS_PORTS", "").split(",") if port)
    applied = apply(ports, interfaces())
    walls = "both walls stand" if applied.has_second_wall else "the first wall stands; this kernel has no second one"
    sys.stdout.write(f"fence: {walls}\n")


def _load(text: str) -> str | None:
    run = subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=NFT_TIMEOUT_S, check=False
    )
    return None if run.returncode == 0 else run.stderr.strip()[:500]


def _probe_udp(family: int, address: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.sendto(b"", (address, port))
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
                return
            raise FenceBroken(f"A probe of the fence failed in an unexpected way: {error.strerror}.") from error
    raise FenceBroken(f"A UDP packet to {address} without the mark was not stopped.")


def _probe_tcp(family: int, address: str, port: int) -> None:
    """A connection must end at the gateway itself or nowhere."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect((address, port))
        except (OSError, TimeoutError):
            return
        # The gateway resets what no target declares, so a connection that stays open reached somebody else.
        try:
            answered = probe.recv(1) != b""
        except ConnectionResetError:
            return
        except OSError as error:
            raise FenceBroken(f"A connection to {address} without the mark stayed open.") from error
    if answered:
        raise FenceBroken(f"Somebody outside answered at {address}.")
