"""`vaultKv` and `vaultDatabase`: credentials that Vault or OpenBao keeps or makes.

Theory of operation. The broker shows itself by a token out of a Secret, or by Kubernetes auth with a token of its own
service account that is made for Vault alone (`AUDIENCE`). A log-in is kept until a third of its life is left. Of the
key-value engine a lease is a reading, like that of a Secret. Of the database engine it is a lease of Vault's: renewed
and revoked there, by the id that the ledger keeps. Vault ends a lease with the token that it was made with, so the role
of the log-in needs tokens that outlive sessions. Where the broker dies between Vault's answer and the ledger's, Vault
ends the lease by itself at its time.

What Vault says in errors is dropped: it may quote what was asked.
"""

from __future__ import annotations

import ssl
import time
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec

from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Entry, Lease, NotRevoked, Order, Unready, Unrecorded
from chaperone_operator.compile.credential import Reference, VaultDatabase, VaultKv
from chaperone_operator.kube import SERVICE_ACCOUNTS, ApiError, Client, Object

ACCOUNT: Final = "chaperone-broker"
AUDIENCE: Final = "vault"
ACCOUNT_TOKEN_S: Final = 600  # the least that the API server grants; it is shown once
KV_LIFE_S: Final = 15 * 60  # how long sessions go on with a credential that was changed since
UNKNOWN_LIFE_S: Final = 15 * 60  # of a lease of which Vault has not said yet how long it lasts
CALL_TIMEOUT_S: Final = 8.0  # the gateway waits 10 s for a lease
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_LOG_INS: Final = 256  # kept at once
TOKEN_KEY: Final = "token"  # noqa: S105 - of a Secret

type _Spec = VaultKv | VaultDatabase


class _Refused(Exception):
    """Vault said no, or nothing; the text says which."""


class _Auth(msgspec.Struct):
    client_token: str
    lease_duration: int


class _Answer(msgspec.Struct):
    """What answers have in common; absent parts are empty."""

    data: dict[str, Any] | None = None
    auth: _Auth | None = None
    lease_id: str = ""
    lease_duration: int = 0


class Vault:
    """Calls to servers of Vault's API.

    Args:
        client: makes the token of the broker's own service account.
        namespace: where that account is.
        secrets: tokens and CAs.
    """

    def __init__(self, client: Client, namespace: str, secrets: Secrets) -> None:
        self._client = client
        self._namespace = namespace
        self._secrets = secrets
        self._tokens: dict[tuple[str, str, str, str], tuple[str, float]] = {}  # log-in → token, until when

    async def call(self, spec: _Spec, target: str, method: str, path: str, body: Object | None = None) -> _Answer:
        """One call as the broker.

        Raises:
            _Refused: no usable answer. Unready: the log-in is not as it has to be. ApiError: the API server is away.
        """
        was_kept = _key(spec) in self._tokens
        try:
            return await self._request(spec, target, method, path, body, await self._token(spec, target))
        except _Refused:
            if self._tokens.pop(_key(spec), None) is None or not was_kept:
                raise
        # The token that was kept may have been revoked.
        return await self._request(spec, target, method, path, body, await self._token(spec, target))

    async def _token(self, spec: _Spec, target: str) -> str:
        if spec.login.token_secret_ref is not None:
            field = f"spec.credential.{_kind(spec)}.login.tokenSecretRef"
            return (await self._secrets.text(spec.login.token_secret_ref.name, TOKEN_KEY, target, field)).strip()
        token, until = self._tokens.get(_key(spec), ("", 0.0))
        if until > time.monotonic():
            return token
        asked: Object = {"spec": {"audiences": [AUDIENCE], "expirationSeconds": ACCOUNT_TOKEN_S}}
        made = await self._client.create(SERVICE_ACCOUNTS, asked, self._namespace, ACCOUNT, "token")
        body = {"role": spec.login.kubernetes_role, "jwt": made["status"]["token"]}
        answer = await self._request(spec, target, "POST", f"auth/{spec.login.kubernetes_mount}/login", body, "")
        if answer.auth is None:
            raise _Refused("it gives no token")
        if len(self._tokens) >= MAX_LOG_INS:
            self._tokens.clear()
        self._tokens[_key(spec)] = (answer.auth.client_token, time.monotonic() + answer.auth.lease_duration * 2 / 3)
        return answer.auth.client_token

    async def _request(
        self, spec: _Spec, target: str, method: str, path: str, body: Object | None, token: str
    ) -> _Answer:
        field = f"spec.credential.{_kind(spec)}.caSecretRef"
        name = spec.ca_secret_ref.name if spec.ca_secret_ref is not None else ""
        authority = await self._secrets.authority(name, target, field)
        headers = {"X-Vault-Request": "true"} | ({"X-Vault-Token": token} if token else {})
        if spec.namespace:
            headers["X-Vault-Namespace"] = spec.namespace
        url = f"{spec.address.rstrip('/')}/v1/{quote(path)}"
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        try:
            context = ssl.create_default_context(cadata=authority or None)
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout) as session,
                # A redirect would take the token somewhere else.
                session.request(method, url, json=body, headers=headers, allow_redirects=False) as response,
            ):
                raw = await response.content.read(MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Refused(f"it cannot be reached ({type(error).__name__})") from None
        if response.status not in {200, 204}:
            raise _Refused(f"it answers with HTTP status {response.status}")
        try:
            return msgspec.json.decode(raw, type=_Answer) if raw else _Answer()
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _Refused("its answer cannot be read") from None


class VaultKvs(Unrecorded):
    """Leases what a secret of a KV version 2 engine says."""

    def __init__(self, vault: Vault, secrets: Secrets) -> None:
        self._vault = vault
        self._secrets = secrets

    def life_s(self, reference: Reference) -> int:
        """See `Source`."""
        return KV_LIFE_S

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`."""
        spec = _kv(order.reference)
        authority = await self._secrets.authority(order.reference.ca_secret, order.target)
        try:
            answer = await self._vault.call(spec, order.target, "GET", f"{spec.mount}/data/{spec.path}")
        except _Refused as refused:
            raise _unready(order.target, spec, f"{spec.mount}/data/{spec.path}", refused) from None
        held = (answer.data or {}).get("data")
        username, password = _login(held if isinstance(held, dict) else {})
        if not username or not password:
            raise Unready(
                "SecretIncomplete",
                f"AccessTarget {order.target}: the secret {spec.mount}/{spec.path} at {spec.address} needs username "
                "and password, both text and not empty.",
            )
        ends = int(time.time()) + KV_LIFE_S
        return Lease(order.id, "password", ends, authority, username, password), ""


class VaultDatabases:
    """Leases credentials that a database engine makes, one for each session."""

    is_recorded = True

    def __init__(self, vault: Vault, secrets: Secrets) -> None:
        self._vault = vault
        self._secrets = secrets

    def life_s(self, reference: Reference) -> int:
        """See `Source`; Vault says it with the lease."""
        return UNKNOWN_LIFE_S

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`."""
        spec = _database(order.reference)
        authority = await self._secrets.authority(order.reference.ca_secret, order.target)
        try:
            answer = await self._vault.call(spec, order.target, "GET", f"{spec.mount}/creds/{spec.role}")
        except _Refused as refused:
            raise _unready(order.target, spec, f"{spec.mount}/creds/{spec.role}", refused) from None
        username, password = _login(answer.data or {})
        if not username or not password or not answer.lease_id or answer.lease_duration <= 0:
            raise Unready("VaultRefused", f"AccessTarget {order.target}: {spec.mount} makes no leases of credentials.")
        ends = int(time.time()) + answer.lease_duration
        return Lease(order.id, "password", ends, authority, username, password), answer.lease_id

    async def renew(self, entry: Entry) -> int:
        """See `Source`."""
        spec = _database(entry.reference)
        try:
            answer = await self._vault.call(spec, entry.target, "PUT", "sys/leases/renew", {"lease_id": entry.handle})
        except _Refused as refused:
            raise _unready(entry.target, spec, "sys/leases/renew", refused) from None
        return int(time.time()) + answer.lease_duration

    async def revoke(self, entry: Entry) -> None:
        """See `Source`."""
        if not entry.handle:
            return  # Vault's answer never came here; it ends what it may have made
        body = {"lease_id": entry.handle, "sync": True}
        try:
            await self._vault.call(_database(entry.reference), entry.target, "PUT", "sys/leases/revoke", body)
        except (_Refused, Unready, ApiError) as error:
            raise NotRevoked(f"Vault does not revoke a lease: {error}") from None


def _unready(target: str, spec: _Spec, path: str, refused: _Refused) -> Unready:
    return Unready(
        "VaultRefused",
        f"AccessTarget {target}: Vault at {spec.address} does not answer {path}: {refused}. "
        f"Check spec.credential.{_kind(spec)} and the policy of its log-in.",
    )


def _login(held: dict[str, Any]) -> tuple[str, str]:
    username, password = held.get("username"), held.get("password")
    is_usable = isinstance(username, str) and isinstance(password, str) and "\x00" not in username + password
    return (str(username), str(password)) if is_usable else ("", "")


def _key(spec: _Spec) -> tuple[str, str, str, str]:
    return spec.address, spec.namespace, spec.login.kubernetes_mount, spec.login.kubernetes_role


def _kind(spec: _Spec) -> str:
    return "vaultKv" if isinstance(spec, VaultKv) else "vaultDatabase"


def _kv(reference: Reference) -> VaultKv:
    if reference.credential is None or reference.credential.vault_kv is None:
        raise TypeError("the reference is none of a KV engine")
    return reference.credential.vault_kv


def _database(reference: Reference) -> VaultDatabase:
    if reference.credential is None or reference.credential.vault_database is None:
        raise TypeError("the reference is none of a database engine")
    return reference.credential.vault_database
