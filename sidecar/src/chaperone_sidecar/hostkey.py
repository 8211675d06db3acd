"""The host key by which agents know this gateway's SSH, made at its start and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from chaperone_sidecar.config import Target

PORT: Final = 22


class HostKey:
    """An Ed25519 key pair. Its repr shows nothing of it."""

    def __init__(self) -> None:
        self._key = ed25519.Ed25519PrivateKey.generate()

    @property
    def private(self) -> bytes:
        """In OpenSSH's form."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )

    @property
    def public(self) -> str:
        """As known_hosts has it."""
        public = self._key.public_key()
        return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")

    def known_hosts(self, targets: Iterable[Target]) -> str:
        """Lines for known_hosts: the names of SSH targets, for clients that know no patterns; then everything.

        Whatever server an agent reaches by SSH is this gateway, so a pattern for all of them says nothing untrue; it
        covers targets by network, and those that are declared later.
        """
        lines = []
        for target in targets:
            if target.protocol == "SSH":
                names = [name for host in target.hosts for name in (host.name, host.ipv4, host.ipv6)]
                lines += [name if target.port == PORT else f"[{name}]:{target.port}" for name in names]
        return "".join(f"{name} {self.public}\n" for name in (*dict.fromkeys(lines), "*"))
