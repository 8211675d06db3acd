"""Leases: a target's credential, read from its Secret at the moment it is asked for and never kept here.

Nothing in this file logs or raises anything that came out of a Secret.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

import msgspec

from chaperone_operator.broker.ca import MANAGER
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.peer import Peer
from chaperone_operator.broker.snapshots import LeaseRef, Snapshot
from chaperone_operator.kube import ACCESS_TARGETS, SECRETS, ApiError, Client, Object

LEASE_S: Final = 15 * 60  # how long a gateway may open connections with a credential that was withdrawn since
BASIC_AUTH: Final = "kubernetes.io/basic-auth"
CREDENTIAL_READY: Final = "CredentialReady"
MAX_REMEMBERED: Final = 4096  # targets whose condition is known; others are looked up again

_log = logging.getLogger(__name__)


class Lease(msgspec.Struct, frozen=True):
    """The answer to `POST /v1/leases`. Its repr shows nothing of the credential."""

    username: str
    password: str
    ca_pem: str
    expires_at_unix: int

    def __repr__(self) -> str:
        return f"Lease(expires_at_unix={self.expires_at_unix})"


class _Unready(Exception):
    """A Secret that cannot be leased: a reason for the condition, and a text."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Leases:
    """Reads credentials for gateways and says on the AccessTarget whether they can be read.

    Args:
        client: the API server.
        system_namespace: where the Secrets are.
    """

    def __init__(self, client: Client, system_namespace: str) -> None:
        self._client = client
        self._namespace = system_namespace
        self._told: OrderedDict[str, str] = OrderedDict()  # target → message of the condition that was written last

    async def give(self, peer: Peer, snapshot: Snapshot, target: str) -> Lease:
        """A lease for a target that policy grants to the peer's identity.

        Raises:
            Refused: 403 when it does not; 424 when the Secret is missing or has another shape.
            ApiError: the API server does not answer.
        """
        ref = self._granted(peer, snapshot, target)
        try:
            lease = await self._read(ref, target)
        except _Unready as unready:
            await self._tell(target, unready.reason, str(unready))
            raise Refused(424, "Credential not ready", str(unready)) from None
        await self._tell(target, "", "")
        return lease

    def _granted(self, peer: Peer, snapshot: Snapshot, target: str) -> LeaseRef:
        found = snapshot.leases.get(peer.identity, {}).get(target)
        if found is not None:
            return found
        if snapshot.names_target(peer.identity, target):
            detail = (
                f"No policy lets AgentIdentity {peer.identity} do anything at AccessTarget {target}. "
                "Ask for an Allow rule in an AccessPolicy for this identity and target."
            )
        else:
            detail = (
                f"There is no AccessTarget {target} for AgentIdentity {peer.identity} in namespace {peer.namespace}."
            )
        raise Refused(403, "Lease refused", detail)

    async def _read(self, ref: LeaseRef, target: str) -> Lease:
        field = "spec.credential.secretRef"
        secret = await self._secret(ref.secret, target, field)
        if secret.get("type") != BASIC_AUTH:
            raise _Unready(
                "WrongSecretType", f"{self._named(ref.secret, target, field)} must have the type {BASIC_AUTH}."
            )
        username, password = _value(secret, "username"), _value(secret, "password")
        if not username or not password:
            raise _Unready(
                "SecretIncomplete",
                f"{self._named(ref.secret, target, field)} needs username and password, both text and not empty.",
            )
        authority = ""
        if ref.ca_secret:
            field = "spec.tls.caSecretRef"
            held = await self._secret(ref.ca_secret, target, field)
            authority = _value(held, "ca.crt") or _value(held, "tls.crt")
            if "BEGIN CERTIFICATE" not in authority:
                raise _Unready(
                    "SecretIncomplete",
                    f"{self._named(ref.ca_secret, target, field)} needs a PEM certificate under ca.crt or tls.crt.",
                )
        return Lease(username, password, authority, int(time.time()) + LEASE_S)

    async def _secret(self, name: str, target: str, field: str) -> Object:
        try:
            return await self._client.get(SECRETS, name, self._namespace)
        except ApiError as error:
            if error.status != 404:
                raise
        raise _Unready("SecretMissing", f"{self._named(name, target, field)} does not exist. Create it.")

    def _named(self, name: str, target: str, field: str) -> str:
        return f"The Secret {self._namespace}/{name}, which AccessTarget {target} names in {field},"

    async def _tell(self, target: str, reason: str, message: str) -> None:
        """Set the condition `CredentialReady`, when it is not what was written last. A fault here costs no lease."""
        if self._told.get(target) == message:
            return
        try:
            found = await self._client.get(ACCESS_TARGETS, target)
            await self._write(found, reason, message)
        except ApiError as error:
            _log.warning("the condition %s of AccessTarget %s was not written: %s", CREDENTIAL_READY, target, error)
            return
        self._told[target] = message
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)

    async def _write(self, found: Object, reason: str, message: str) -> None:
        status = "False" if message else "True"
        conditions = (found.get("status") or {}).get("conditions") or ()
        before: Object = next((one for one in conditions if one.get("type") == CREDENTIAL_READY), {})
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        condition = {
            "type": CREDENTIAL_READY,
            "status": status,
            "reason": reason or "CredentialRead",
            "message": message or "The Secret was read for a lease.",
            "observedGeneration": found["metadata"].get("generation", 0),
            "lastTransitionTime": before.get("lastTransitionTime", now) if before.get("status") == status else now,
        }
        name = found["metadata"]["name"]
        body: Object = {"metadata": {"name": name}, "status": {"conditions": [condition]}}
        await self._client.apply(ACCESS_TARGETS, name, body, manager=MANAGER, subresource="status")


def _value(secret: Object, key: str) -> str:
    """A text out of a Secret; "" when it is absent or no text. Never raises with the value in it."""
    try:
        text = base64.b64decode((secret.get("data") or {}).get(key, ""), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, TypeError):
        return ""
    return "" if "\x00" in text else text
