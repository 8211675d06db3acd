"""Leases: what a gateway asks for, what it gets, and how long.

Whether an identity is granted a target is the policy's to say; how a credential is made is its source's. Nothing in
this file logs or raises anything that came out of a Secret.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from chaperone_operator.broker import pod as pods
from chaperone_operator.broker.condition import Conditions
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.lease_ledger import LeaseLedger, Taken
from chaperone_operator.broker.peer import Peer
from chaperone_operator.broker.snapshots import Snapshot
from chaperone_operator.broker.source import Entry, Lease, NotRevoked, Order, Source, Unready
from chaperone_operator.compile.credential import Reference
from chaperone_operator.kube import ApiError

_SESSION: Final = re.compile("[0-7][0-9a-hjkmnp-tv-z]{25}")  # a ULID in lower case, as gateways make them


class LeaseWanted(msgspec.Struct, frozen=True):
    """The body of `POST /v1/leases`.

    Attributes:
        session: ULID of the session that it is for, where each gets its own.
        public_key: in OpenSSH form, where a certificate is asked for.
    """

    target: str
    session: str = ""
    public_key: str = ""


class Renewed(msgspec.Struct, frozen=True):
    """The answer to `POST /v1/leases/renew`."""

    expires_at_unix: int


class Leases:
    """Gives, renews and takes back credentials.

    Args:
        sources: by kind, as `compile.credential` names them.
        ledger: remembers what has to be taken back.
        conditions: say on the AccessTarget whether its credential can be had.
    """

    def __init__(self, sources: Mapping[str, Source], ledger: LeaseLedger, conditions: Conditions) -> None:
        self._sources = sources
        self._ledger = ledger
        self._conditions = conditions

    async def give(self, peer: Peer, snapshot: Snapshot, wanted: LeaseWanted) -> Lease:
        """A lease for a target that policy grants to the peer's identity.

        Raises:
            Refused: 403 when it does not; 400 without a session where one is needed; 409 when it has one already; 424
                when the credential cannot be had.
            ApiError: the API server does not answer.
        """
        target = wanted.target
        reference = _granted(peer, snapshot, target)
        source = self._sources[reference.kind]
        is_for_session = _SESSION.fullmatch(wanted.session) is not None
        if source.is_recorded and not is_for_session:
            raise Refused(400, "Bad request", f"A lease of AccessTarget {target} is for one session; name its ULID.")
        lease_id = wanted.session if is_for_session else f"{reference.kind.lower()}-{secrets.token_hex(8)}"
        order = Order(lease_id, target, reference, peer, wanted.public_key)
        try:
            lease = await (self._make(order, source) if source.is_recorded else _read(order, source))
        except Unready as unready:
            await self._conditions.tell(target, unready.reason, str(unready))
            raise Refused(424, "Credential not ready", str(unready)) from None
        await self._conditions.tell(target)
        return lease

    async def renew(self, peer: Peer, snapshot: Snapshot, lease_id: str) -> Renewed:
        """Another life for a recorded lease of the peer's pod, as long as policy grants its target as it was.

        Raises:
            Refused: 403; 404 when there is no such lease any more; 424 when it cannot be renewed.
            ApiError: the API server does not answer.
        """
        entry = await self._own(peer, lease_id)
        if entry is None:
            raise Refused(404, "No such lease", "The lease has ended; the session needs another one.")
        if _granted(peer, snapshot, entry.target) != entry.reference:
            raise Refused(403, "Lease refused", f"AccessTarget {entry.target} has another credential now.")
        try:
            ends = await self._sources[entry.reference.kind].renew(entry)
        except Unready as unready:
            raise Refused(424, "Credential not ready", str(unready)) from None
        try:
            await self._ledger.update(msgspec.structs.replace(entry, expires_at_unix=ends))
        except ApiError as error:
            if error.status != 404:
                raise
            raise Refused(404, "No such lease", "The lease was taken back meanwhile.") from None
        return Renewed(ends)

    async def release(self, peer: Peer, lease_id: str) -> None:
        """The session is over. What cannot be taken back at once, is when its time is up.

        Raises:
            ApiError: the API server does not answer.
        """
        entry = await self._own(peer, lease_id)
        if entry is not None:
            await self.revoke(entry)

    async def revoke(self, entry: Entry) -> None:
        """Take a lease back and strike it out of the ledger.

        Raises:
            NotRevoked: it stays in the ledger. ApiError: the API server does not answer.
        """
        source = self._sources.get(entry.reference.kind)
        if source is None:
            raise NotRevoked(f"this broker knows no credentials of kind {entry.reference.kind}")
        await source.revoke(entry)
        await self._ledger.close(entry.id)

    async def _own(self, peer: Peer, lease_id: str) -> Entry | None:
        if not _SESSION.fullmatch(lease_id):
            return None
        entry = await self._ledger.find(lease_id)
        return entry if entry is not None and entry.pod_uid == peer.pod_uid else None

    async def _make(self, order: Order, source: Source) -> Lease:
        entry = _entry(order, source)
        try:
            await self._ledger.open(entry)
        except Taken:
            raise Refused(409, "Lease exists", "This session has its lease; use another session.") from None
        try:
            lease, handle = await source.lease(order)
        except Unready:
            await self._ledger.close(entry.id)
            raise
        # Whatever else goes wrong leaves the entry, and what may have been made is taken back when its time is up.
        if handle:
            await self._note(msgspec.structs.replace(entry, handle=handle, expires_at_unix=lease.expires_at_unix))
        return lease

    async def _note(self, entry: Entry) -> None:
        """Write the handle of what was made. Where the entry is gone or cannot be written, it is taken back at once."""
        try:
            await self._ledger.update(entry)
        except ApiError:
            with contextlib.suppress(NotRevoked, ApiError):
                await self.revoke(entry)
            raise


async def _read(order: Order, source: Source) -> Lease:
    lease, _ = await source.lease(order)
    return lease


def _entry(order: Order, source: Source) -> Entry:
    now, peer = int(time.time()), order.peer
    return Entry(
        id=order.id,
        target=order.target,
        reference=order.reference,
        namespace=peer.namespace,
        pod=peer.pod,
        pod_uid=peer.pod_uid,
        identity=peer.identity,
        keys=pods.keys_digest(peer.stream_key, peer.tls_key),
        made_at_unix=now,
        expires_at_unix=now + source.life_s(order.reference),
    )


def _granted(peer: Peer, snapshot: Snapshot, target: str) -> Reference:
    found = snapshot.leases.get(peer.identity, {}).get(target)
    if found is not None:
        return found
    if snapshot.names_target(peer.identity, target):
        detail = (
            f"No policy lets AgentIdentity {peer.identity} do anything at AccessTarget {target}. "
            "Ask for an Allow rule in an AccessPolicy for this identity and target."
        )
    else:
        detail = f"There is no AccessTarget {target} for AgentIdentity {peer.identity} in namespace {peer.namespace}."
    raise Refused(403, "Lease refused", detail)
