"""What a gateway is told about its pod: who the agent is and which targets exist for it.

Made by the policy compiler, served by the broker; see docs/architecture.md §4. Unknown fields are refused: a gateway
that does not understand its configuration must not guess.
"""

from __future__ import annotations

import ipaddress
from typing import Literal

import msgspec

from chaperone_sidecar.errors import ConfigError, Suspended
from chaperone_sidecar.masking.rule import Masks

type Durability = Literal["Written", "Synced", "Witnessed"]
type IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The human who answers for the agent."""

    name: str
    email: str = ""


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The AgentIdentity that selects this pod."""

    name: str
    namespace: str
    uid: str
    generation: int
    owner: Owner
    team: str = ""
    purpose: str = ""
    durability: Durability = "Written"
    max_result_bytes: int = 0  # kept of what one command shows; 0: results are not kept


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name the agent may use, with its virtual addresses."""

    name: str
    ipv4: str
    ipv6: str


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the gateway really connects."""

    host: str
    port: int
    database: str = ""


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the backend is authenticated."""

    mode: Literal["Disable", "Require", "VerifyCA", "VerifyFull"]
    server_name: str = ""


class Ssh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an SSH server is authenticated: its own keys, or keys of who signs those of hosts; in OpenSSH's form."""

    host_keys: tuple[str, ...] = ()
    host_authorities: tuple[str, ...] = ()


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most there may be of something, and the policy that says so."""

    max: int
    policy: str


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the agent may do at a target; what is absent is not limited."""

    rows_per_command: Limit | None = None
    bytes_per_session: Limit | None = None
    commands_per_minute: Limit | None = None
    connections: Limit | None = None
    command_duration_ms: Limit | None = None


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One backend."""

    name: str
    protocol: str
    port: int
    hosts: tuple[Host, ...]
    upstream: Upstream
    tls: Tls
    addresses: tuple[str, ...] = ()
    limits: Limits = Limits()
    masks: Masks = Masks()
    leased_per_session: bool = False  # each session gets a credential of its own
    ssh: Ssh = Ssh()

    def is_same_place(self, other: Target) -> bool:
        """Whether the other differs in nothing but the limits, which open sessions follow."""
        return self == msgspec.structs.replace(other, limits=self.limits)


class Suspension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every access is taken away: by whom and since when (RFC 3339), "" where it is not known, and why.

    Its targets are those that the agent would have: who dials one is told why it is refused.
    """

    by: str = ""
    at: str = ""
    reason: str = ""
    targets: tuple[Target, ...] = ()

    def error(self, identity: str) -> Suspended:
        """What the agent hears, and what records say."""
        who = f" by {self.by}" if self.by else ""
        since = f" since {self.at}" if self.at else ""
        why = f" ({self.reason})" if self.reason else ""
        return Suspended(f'AgentIdentity "{identity}" is suspended{who}{since}{why}.')


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of the claims that say who a user is."""

    user: str
    email: str
    groups: str


class Delegation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent acts on behalf of persons: whose tokens say so. The keys and the claims are the broker's business."""

    issuer: str
    audience: str
    required: bool
    jwks_url: str
    ca_secret: str
    claims: Claims


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything one gateway is told, under one revision; a suspended identity has no targets."""

    revision: str
    system_namespace: str
    identity: Identity
    targets: tuple[Target, ...]
    suspension: Suspension | None = None
    delegation: Delegation | None = None

    @property
    def declared(self) -> tuple[Target, ...]:
        """The targets whose names and addresses are known, whether or not anything of them may be used."""
        return self.targets if self.suspension is None else self.suspension.targets

    @property
    def suspended(self) -> Suspended | None:
        """Why everything is refused, when it is."""
        return None if self.suspension is None else self.suspension.error(self.identity.name)

    @property
    def is_masked(self) -> bool:
        """Whether something is masked, so that hashes of values need the key of the namespace."""
        return any(target.masks.rules or target.masks.classified for target in self.targets)


def decode(raw: bytes) -> GatewayConfig:
    """Read a GatewayConfig from JSON.

    Raises:
        ConfigError: the JSON does not have exactly the shape this gateway knows.
    """
    try:
        return msgspec.json.decode(raw, type=GatewayConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The gateway's configuration cannot be read: {error}") from error


class Routes:
    """Which target an original destination belongs to."""

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self._exact: dict[tuple[IPAddress, int], Target] = {}
        self._networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int, Target]] = []
        for target in targets:
            for host in target.hosts:
                for address in (host.ipv4, host.ipv6):
                    self._exact[(ipaddress.ip_address(address), target.port)] = target
            for network in target.addresses:
                self._networks.append((ipaddress.ip_network(network), target.port, target))

    def find(self, address: IPAddress, port: int) -> Target | None:
        """The target declared for this address and port, or None: an undeclared destination."""
        found = self._exact.get((address, port))
        if found is not None:
            return found
        for network, network_port, target in self._networks:
            if port == network_port and address.version == network.version and address in network:
                return target
        return None
