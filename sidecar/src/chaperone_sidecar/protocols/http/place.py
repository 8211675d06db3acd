"""Whether a request is for the host that its connection is for (RFC 9110, 7.4)."""

from __future__ import annotations

import ipaddress

from chaperone_sidecar.config import Target
from chaperone_sidecar.protocols.http import target as targets
from chaperone_sidecar.protocols.http.answers import Misdirected
from chaperone_sidecar.protocols.http.messages import RequestHead


def check(head: RequestHead, target: Target, name: str, own_port: int | None) -> None:
    """The request is for the host that the connection is for.

    Args:
        head: of the request.
        target: that the connection leads to.
        name: that TLS was asked for; "" for none.
        own_port: where the connection was taken: a client of `chaperone dev` names that one.

    Raises:
        Misdirected: it is for another one. ProtocolError: for none.
    """
    host, port = targets.authority(head.authority)
    if port is not None and port not in (target.port, own_port):
        raise Misdirected(f"Host names port {port}, and the target has {target.port}.")
    if not _is_own(target, host):
        raise Misdirected("Host is none of the target's hosts.")
    if name and not _is_address(host) and name != host:
        raise Misdirected("Host is another one than TLS was asked for.")


def _is_own(target: Target, host: str) -> bool:
    names = {one.name.lower() for one in target.hosts}
    own = {address for one in target.hosts for address in (one.ipv4, one.ipv6)}
    if host in names or host in own or host == target.upstream.host.lower():
        return True
    if not _is_address(host):
        return False
    address = ipaddress.ip_address(host)
    return any(address in ipaddress.ip_network(network) for network in target.addresses)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
