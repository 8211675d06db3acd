"""What a kind of credential has to do: lease, renew, revoke. One file for each kind implements it.

Theory of operation. A source that `is_recorded` makes something that has to be taken back: a role, a token, a lease of
Vault's. Its leases are written to the ledger before anything is made, so that whatever becomes of this process, the
next one finds them. The others only read something that somebody else made; of these nothing is kept, and renewing one
means to ask again.

Nothing here shows what it holds: not in a repr, not in an error.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from chaperone_operator.broker.peer import Peer
from chaperone_operator.compile.credential import Reference

type Kind = Literal["password", "key", "certificate", "token", "header"]


class Impersonated(msgspec.Struct, frozen=True):
    """As whom the holder of a token acts."""

    user: str
    groups: tuple[str, ...] = ()


class Header(msgspec.Struct, frozen=True):
    """A header, and the only place that it may be sent to."""

    name: str
    value: str
    scheme: str
    host: str
    port: int
    path: str

    def __repr__(self) -> str:
        return f"Header(name={self.name!r}, host={self.host!r})"


class Lease(msgspec.Struct, frozen=True):
    """The answer to `POST /v1/leases`. Which fields it has, depends on its kind; its repr shows nothing of them."""

    id: str
    kind: Kind
    expires_at_unix: int
    ca_pem: str = ""
    username: str = ""
    password: str = ""
    certificate: str = ""
    private_key: str = ""
    token: str = ""
    impersonate: Impersonated | None = None
    header: Header | None = None

    def __repr__(self) -> str:
        return f"Lease(id={self.id!r}, kind={self.kind!r}, expires_at_unix={self.expires_at_unix})"


class Order(msgspec.Struct, frozen=True):
    """What is asked for, once it is known to be granted.

    Attributes:
        id: of the lease; the session's where it is for one session.
        public_key: of the gateway, in OpenSSH form, where a certificate is asked for.
    """

    id: str
    target: str
    reference: Reference
    peer: Peer
    public_key: str = ""


class Entry(msgspec.Struct, frozen=True):
    """A lease in the ledger: whose it is, and all that is needed to take it back.

    Attributes:
        keys: digest of the keys of the gateway's start, as in the pod's enrolment.
        handle: what the source needs beyond the rest; no secret.
        made_at_unix, expires_at_unix: seconds since 1970.
    """

    id: str
    target: str
    reference: Reference
    namespace: str
    pod: str
    pod_uid: str
    identity: str
    keys: str
    made_at_unix: int
    expires_at_unix: int
    handle: str = ""


class Unready(Exception):
    """A credential that cannot be leased, and of which nothing was made: a reason for the condition, and a text."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotRevoked(Exception):
    """A lease could not be taken back, or not wholly; it is tried again. The text holds no secret."""


class Source(Protocol):
    """One kind of credential."""

    @property
    def is_recorded(self) -> bool:
        """Whether its leases have to be taken back."""
        ...

    def life_s(self, reference: Reference) -> int:
        """How long a lease of that target lasts unless it is renewed, in seconds."""
        ...

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """A credential, and the handle by which it is taken back.

        Raises:
            Unready: nothing was made; the text says what to do.
            ApiError, OSError: it is not known whether something was made.
        """
        ...

    async def renew(self, entry: Entry) -> int:
        """Let a recorded lease last another life; until when, in seconds since 1970.

        Raises:
            Unready: it cannot be.
        """
        ...

    async def revoke(self, entry: Entry) -> None:
        """Take a recorded lease back; one that is gone already is no error.

        Raises:
            NotRevoked: not, or not wholly.
        """
        ...


class Unrecorded:
    """Base of sources that make nothing: there is nothing to renew or to take back."""

    is_recorded = False

    async def renew(self, entry: Entry) -> int:
        """See `Source`; such leases are asked for anew."""
        return entry.expires_at_unix

    async def revoke(self, entry: Entry) -> None:
        """See `Source`; there is nothing to take back."""
