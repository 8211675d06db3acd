"""How the gateway serves a protocol: what it gives to each, and what each gives it.

A protocol's frontend lives in `frontends/`, has the sockets of its protocol, and is imported with the first target that
speaks it, so a gateway carries no library for what its agent has no target for.
"""

from __future__ import annotations

import importlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from chaperone_sidecar.conduct import Conduct, Estimate
from chaperone_sidecar.config import IPAddress, Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.credentials.lease import User
from chaperone_sidecar.errors import ChaperoneError, ConfigError, Suspended
from chaperone_sidecar.hostkey import HostKey
from chaperone_sidecar.recording.recorder import Recorder

type Dial = Callable[[str, int], Awaitable[socket.socket]]
"""Connects to a host name or address; inside a pod with the mark, and never to a forbidden address."""

type Resolve = Callable[[str], Awaitable[tuple[IPAddress, ...]]]
"""All addresses of a host name, as `Dial` finds them; an address stands for itself."""


class LeaseSource(Protocol):
    """Gives the credentials of targets."""

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        """The credential of a target, or of one session there, perhaps for a key of its own; or LeaseRefused."""
        ...

    def forget(self, lease: Lease) -> None:
        """The backend refused it, or it is not needed after all."""
        ...

    def use(self, lease: Lease, user: User) -> None:
        """A connection works with it; it is failed when the lease ends."""
        ...

    def let_go(self, user: User) -> None:
        """A connection is over."""
        ...


class Conversation(Protocol):
    """One connection of the agent to a target."""

    @property
    def target(self) -> Target:
        """Where it leads."""
        ...

    async def take(self, connection: socket.socket) -> None:
        """Serve the accepted connection; returns when it is being served, or once it is over.

        Raises:
            OSError: it is gone.
        """
        ...

    def cut(self, error: ChaperoneError, *, is_stopping: bool = False) -> None:
        """End it from outside with a native last word; what it runs at the backend is ended, too.

        `is_stopping`: because the gateway stops, so that what waits for people is asked for again by the next start.
        """
        ...

    def follow_limits(self) -> None:
        """The limits are others now."""
        ...


class Services(Protocol):
    """What the gateway gives to a frontend."""

    dial: Dial
    leases: LeaseSource
    recorder: Recorder
    ssh_host_key: HostKey

    @property
    def mask_key(self) -> bytes:
        """Of the namespace, where something is masked; never logged, never shown."""
        ...

    @property
    def suspended(self) -> Suspended | None:
        """Why nothing may be opened now: a conversation that begins tells it in its protocol's own words."""
        ...

    def conduct(self, target: Target, estimate: Estimate | None = None) -> Conduct:
        """The way of the commands of a new session."""
        ...

    def server_context(self, target: Target, *alpn: str) -> ssl.SSLContext:
        """TLS towards the agent, with a certificate for the target's names and addresses."""
        ...

    def over(self, conversation: Conversation) -> None:
        """A conversation has ended."""
        ...

    async def targets_at(self, addresses: frozenset[IPAddress], port: int) -> tuple[Target, ...]:
        """The targets whose upstream is at these addresses and at no other one, and at this port."""
        ...

    def forward(self, connection: socket.socket, target: Target) -> None:
        """Serve a connection that came within another one as if the agent had dialled the target; closed where not."""
        ...


class Frontend(Protocol):
    """Serves one protocol."""

    def begin(self, target: Target) -> Conversation:
        """A conversation that serves the next connection to a target."""
        ...

    async def turn_away(self, connection: socket.socket, target: Target, why: ChaperoneError) -> None:
        """Tell an accepted connection why it is not served, and close it.

        Raises:
            OSError: it is gone.
        """
        ...

    def follow(self, targets: tuple[Target, ...]) -> None:
        """Another configuration is in force; what is remembered of the old one is forgotten."""
        ...

    def close(self) -> None:
        """The gateway stops."""
        ...


MODULES: Final = {
    "HTTP": "http",
    "Kubernetes": "kubernetes",
    "MCP": "mcp",
    "MySQL": "mysql",
    "PostgreSQL": "postgresql",
    "SSH": "ssh",
}
"""Protocol → module in `frontends/`, which has `frontend(services) -> Frontend`."""


def load(protocol: str, services: Services) -> Frontend:
    """The frontend of a protocol.

    Raises:
        ConfigError: this gateway does not speak it.
    """
    name = MODULES.get(protocol)
    if name is None:
        raise ConfigError(f"This gateway does not speak {protocol}; it speaks {', '.join(sorted(MODULES))}.")
    try:
        made: Frontend = importlib.import_module(f"chaperone_sidecar.frontends.{name}").frontend(services)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{protocol} needs {error.name}, which is not installed: chaperone-sidecar[{name}]."
        ) from error
    return made
