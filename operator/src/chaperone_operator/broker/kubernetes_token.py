"""`kubernetesToken`: a token of a service account for one session, and whom its holder impersonates.

The token is bound to an empty Secret that is made for it, beside the service account; it is worth nothing as soon as
that Secret is gone. So it can be taken back, which a token by itself cannot.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Entry, Impersonated, Lease, NotRevoked, Order, Unready
from chaperone_operator.compile.credential import Impersonate, KubernetesToken, Reference, duration_s
from chaperone_operator.kube import SECRETS, SERVICE_ACCOUNTS, ApiError, Client, Object

PREFIX: Final = "chaperone-lease-"
TYPE: Final = "chaperone.dev/lease"
FIELD: Final = "spec.credential.kubernetesToken"


class KubernetesTokens:
    """Asks the API server for tokens.

    Args:
        client: the API server, which is also the one that the tokens are for.
        secrets: those that targets name.
    """

    is_recorded = True

    def __init__(self, client: Client, secrets: Secrets) -> None:
        self._client = client
        self._secrets = secrets

    def life_s(self, reference: Reference) -> int:
        """See `Source`."""
        return duration_s(_spec(reference).valid_for) or 0

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`."""
        spec, name = _spec(order.reference), PREFIX + order.id
        where = f"{spec.namespace}/{spec.service_account}"
        impersonated = _impersonated(order)
        authority = await self._secrets.authority(order.reference.ca_secret, order.target)
        try:
            bound = await self._client.create(SECRETS, {"metadata": {"name": name}, "type": TYPE}, spec.namespace)
        except ApiError as error:
            if error.status not in {403, 404}:
                raise
            raise Unready("TokenNotMade", _advice(order.target, where, error.status)) from None
        asked: Object = {
            "spec": {
                "expirationSeconds": self.life_s(order.reference),
                "audiences": list(spec.audiences),
                "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": bound["metadata"]["uid"]},
            }
        }
        try:
            made = await self._client.create(SERVICE_ACCOUNTS, asked, spec.namespace, spec.service_account, "token")
        except ApiError as error:
            if error.status not in {403, 404}:
                raise
            await self._client.delete(SECRETS, name, spec.namespace)
            raise Unready("TokenNotMade", _advice(order.target, where, error.status)) from None
        ends = int(datetime.fromisoformat(made["status"]["expirationTimestamp"]).timestamp())
        token = made["status"]["token"]
        return Lease(order.id, "token", ends, authority, token=token, impersonate=impersonated), ""

    async def renew(self, entry: Entry) -> int:
        """See `Source`: a token is not renewed; the session asks for another lease under another id."""
        raise Unready("TokenNotRenewed", f"A token lasts until {entry.expires_at_unix}; ask for another lease.")

    async def revoke(self, entry: Entry) -> None:
        """See `Source`."""
        try:
            await self._client.delete(SECRETS, PREFIX + entry.id, _spec(entry.reference).namespace)
        except ApiError as error:
            raise NotRevoked(f"the Secret of a token stays (HTTP status {error.status})") from None


def _impersonated(order: Order) -> Impersonated | None:
    """Bound to the identity: whoever is named, it is never a name of the cluster's own."""
    credential = order.reference.credential
    wanted: Impersonate | None = credential.impersonate if credential is not None else None
    if wanted is None:
        return None
    user = wanted.user or f"chaperone:{order.peer.namespace}:{order.peer.identity}"
    if any(name.startswith("system:") for name in (user, *wanted.groups)):
        raise Unready("BadImpersonation", f"AccessTarget {order.target} impersonates the cluster itself; it must not.")
    return Impersonated(user, wanted.groups)


def _advice(target: str, where: str, status: int) -> str:
    needs = "create on secrets, delete on secrets, and create on serviceaccounts/token for that name"
    return (
        f"AccessTarget {target}: the API server makes no token for the service account {where} (HTTP status {status}). "
        f"It must exist, and chaperone-broker needs in its namespace {needs}."
    )


def _spec(reference: Reference) -> KubernetesToken:
    credential = reference.credential
    if credential is None or credential.kubernetes_token is None:
        raise TypeError("the reference is none of a Kubernetes token")
    return credential.kubernetes_token
