"""The addresses, names and folders of one local cluster. Pure; nothing here touches the machine."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from chaperone_tools.errors import ToolsError

STATE = Path("/var/lib/chaperone-cluster")  # not /run: image layers do not belong into memory
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Plan:
    """Everything a local cluster's parts have to agree on.

    Pods get an IPv4 and an IPv6 (ULA) address, because the fence is tested for both families. The node's address is
    the bridge's, so the cluster is reachable from this machine alone.
    """

    name: str
    state: Path
    bridge: str = "chaperone0"
    node: str = "chaperone-node"
    node_ipv4: str = "10.244.0.1"
    node_ipv6: str = "fd00:10:244::1"
    pods_ipv4: str = "10.244.0.0/24"
    pods_ipv6: str = "fd00:10:244::/64"
    services_ipv4: str = "10.96.0.0/16"
    services_ipv6: str = "fd00:10:96::/112"
    dns: str = "10.96.0.10"
    domain: str = "cluster.local"
    port: int = 6443

    @property
    def server(self) -> str:
        """The API server's address."""
        return f"https://{self.node_ipv4}:{self.port}"

    @property
    def services(self) -> str:
        """Both service ranges, the way the flags want them; the first family is the default one."""
        return f"{self.services_ipv4},{self.services_ipv6}"

    @property
    def pods(self) -> str:
        """Both pod ranges."""
        return f"{self.pods_ipv4},{self.pods_ipv6}"

    @property
    def api_service_ip(self) -> str:
        """The address of the Service `kubernetes`: the first of its range."""
        return str(next(ipaddress.ip_network(self.services_ipv4).hosts()))

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.state / "pki"

    @property
    def etc(self) -> Path:
        """Configuration files of the parts."""
        return self.state / "etc"

    @property
    def logs(self) -> Path:
        """One log file a part."""
        return self.state / "logs"

    @property
    def pids(self) -> Path:
        """One pid file a part."""
        return self.state / "pids"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens; also how its shims are recognised."""
        return self.state / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The cgroup, in every hierarchy, under which all pods of this cluster and nothing else run."""
        return f"chaperone-cluster-{self.name}"


def plan_of(name: str, state: Path = STATE) -> Plan:
    """The plan of the cluster of that name.

    Raises:
        ToolsError: the name would not do as a folder, cgroup and context name.
    """
    if not _NAME.fullmatch(name):
        raise ToolsError(f"{name!r} is no cluster name: lower-case letters, digits and inner dashes, at most 32")
    return Plan(name=name, state=state / name)
