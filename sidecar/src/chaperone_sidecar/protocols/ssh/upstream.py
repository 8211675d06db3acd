"""The gateway's own connection to a target's sshd: leased credential, pinned host key, nothing else let in."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncssh

from chaperone_sidecar import peer
from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.errors import LeaseRefused, UpstreamUnavailable
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.protocols.ssh.pace import Paced, start

# AES-GCM is twice as fast as the library's first choice; decisions/024.
ENCRYPTION: Final = (
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr",
)  # fmt: skip
LOG_IN_TIMEOUT_S: Final = 15.0
KEEPALIVE_S: Final = 30.0  # a host that is gone is noticed after three of them


class Connection(Paced, asyncssh.SSHClientConnection):
    """The target's connection."""


class Upstream:
    """One logged-in connection, as a user of its lease.

    Args:
        services: of the gateway.
        target: where it leads.
        session: ULID, for credentials that are made for one.
    """

    def __init__(self, services: Services, target: Target, session: str) -> None:
        self._services = services
        self._target = target
        self._session = session if target.leased_per_session else ""
        self.connection: Connection | None = None
        self.address = ""
        self.user = ""
        self.is_lost = False
        self.error: Exception | None = None

    async def open(self) -> Connection:
        """Connect and log in.

        Raises:
            UpstreamUnavailable: with a text for the client.
        """
        target = self._target
        key = asyncssh.generate_private_key("ssh-ed25519")
        public = key.export_public_key().decode("ascii").strip()
        try:
            lease = await self._services.leases.lease(target.name, self._session, public if self._session else "")
        except LeaseRefused as error:
            raise UpstreamUnavailable(f'Target "{target.name}" cannot be used: {error}') from error
        try:
            async with asyncio.timeout(LOG_IN_TIMEOUT_S):
                connection = await self._log_in(lease, key)
        except BaseException as error:
            self._services.leases.forget(lease)
            if isinstance(error, TimeoutError):
                raise UpstreamUnavailable(f'Target "{target.name}" did not answer in time.') from error
            if isinstance(error, OSError | asyncssh.Error):
                raise UpstreamUnavailable(f'Target "{target.name}" cannot be used: {_why(error)}') from error
            raise
        self.connection = connection
        if lease.certificate:
            self._services.leases.forget(lease)  # it is shown once, and ends while the session goes on
        else:
            self._services.leases.use(lease, self)
        return connection

    async def _log_in(self, lease: Lease, key: asyncssh.SSHKey) -> Connection:
        target = self._target
        socket = await self._services.dial(target.upstream.host, target.upstream.port)
        try:
            self.address = peer.named(socket.getpeername())
            self.user, secrets = _credential(lease, key)
            options = await asyncssh.SSHClientConnectionOptions.construct(
                None, host=target.upstream.host, port=target.upstream.port, config=None, username=self.user,
                known_hosts=_pinned(target), agent_path=None, agent_forwarding=False, gss_host=None,
                encryption_algs=ENCRYPTION, compression_algs=("none",), keepalive_interval=KEEPALIVE_S,
                login_timeout=LOG_IN_TIMEOUT_S, preferred_auth=("publickey", "password"), **secrets,
            )  # fmt: skip
            return await start(socket, options, lambda loop: Connection(loop, options, wait="auth"))
        except BaseException:
            socket.close()
            raise

    def fail(self, error: Exception) -> None:
        """See `lease.User`: the lease has ended."""
        self.error = error
        self.close()

    def close(self) -> None:
        """End it at once, with what it runs."""
        self.is_lost = True
        self._services.leases.let_go(self)
        if self.connection is not None:
            self.connection.abort()


def _credential(lease: Lease, key: asyncssh.SSHKey) -> tuple[str, dict[str, object]]:
    """The user, and how to show that one is it.

    Raises:
        UpstreamUnavailable: a credential that is none for SSH.
    """
    try:
        if lease.certificate:
            certificate = asyncssh.import_certificate(lease.certificate)
            principals: list[str] = getattr(certificate, "principals", [])  # X.509 ones have none
            return lease.username or principals[0], {"client_keys": [(key, certificate)], "password": None}
        if lease.private_key:
            return lease.username, {"client_keys": [asyncssh.import_private_key(lease.private_key)], "password": None}
    except (asyncssh.KeyImportError, ValueError, IndexError):
        # The cause is dropped: it may quote the key.
        raise UpstreamUnavailable("The target's credential is no key or certificate that can be read.") from None
    return lease.username, {"client_keys": None, "password": lease.password}


def _pinned(target: Target) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
    """The host keys and authorities that the AccessTarget names: there is no trust on first use.

    Raises:
        UpstreamUnavailable: it names none that can be read.
    """
    try:
        keys = [asyncssh.import_public_key(text) for text in target.ssh.host_keys]
        authorities = [asyncssh.import_public_key(text) for text in target.ssh.host_authorities]
    except asyncssh.KeyImportError as error:
        raise UpstreamUnavailable(f'spec.ssh of target "{target.name}" has a host key that cannot be read.') from error
    if not keys and not authorities:
        raise UpstreamUnavailable(f'Target "{target.name}" names no host key; add spec.ssh.hostKeys.')
    return keys, authorities, []


def _why(error: Exception) -> str:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return "its host key is none of those in spec.ssh; somebody else may be answering."
        case asyncssh.PermissionDenied():
            return "it refuses the gateway's credential."
        case asyncssh.KeyExchangeFailed():
            return "it offers no cipher that the gateway uses."
        case OSError():
            return f"it cannot be reached ({error.strerror or type(error).__name__})."
        case _:
            return f"it ended the connection ({type(error).__name__})."
