"""The service CA and the certificates of operator, broker and collector: made, renewed, told to who must trust them.

Every replica does this, without an election: what is stored decides, and each write holds only for the version that
was read. The operator serves its own certificate from memory, through one TLS context for the life of the process; a
renewed one counts from the next handshake on. Order within a round: CA, then the bundle to everybody who
verifies, then leaves.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Final

from chaperone_operator import pki
from chaperone_operator.admission.seal import Seal
from chaperone_operator.kube import (
    API_SERVICES,
    CONFIG_MAPS,
    MUTATING_WEBHOOKS,
    SECRETS,
    VALIDATING_WEBHOOKS,
    ApiError,
    Client,
    Object,
    Resource,
)

CA_SECRET: Final = "chaperone-ca"  # noqa: S105 - a name
OPERATOR_SECRET: Final = "chaperone-operator-tls"  # noqa: S105
SERVICES: Final = {
    OPERATOR_SECRET: ("chaperone-operator",),
    "chaperone-broker-tls": ("chaperone-broker",),
    "chaperone-collector-tls": ("chaperone-collector", "chaperone-evidence"),
}
"""Which Services each certificate names."""
TRUST: Final = "chaperone-trust"
TRUST_KEY: Final = "ca.crt"
MANAGER: Final = "chaperone-operator"
WEBHOOKS: Final = "chaperone"
"""Name of the MutatingWebhookConfiguration and the ValidatingWebhookConfiguration."""
API_SERVICE: Final = "v1alpha1.evidence.chaperone.dev"

CHECK_PERIOD_S: Final = 30.0  # an upgrade of the chart may take the CA out of a registration
RETRY_S: Final = 3.0
MAX_ROUNDS: Final = 5  # of a write that others overtook; two replicas settle in two

_log = logging.getLogger(__name__)

type Clock = Callable[[], datetime]


class Certificates:
    """The certificates of one installation.

    Args:
        client: reads and writes the Secrets named here, and no others.
        namespace: the system namespace.
        now: the clock.
        on_bundle: told the bundle when it is first known and whenever it changes.

    Attributes:
        context: of the operator's own listener; without a certificate until the first `ensure`.
        bundle: PEM of the service CAs, "" until the first `ensure`.
        seal: of admission, with keys that follow from the CAs'; None until then.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        now: Clock = pki.utc_now,
        on_bundle: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._now = now
        self._on_bundle = on_bundle
        self._serving: pki.Pair | None = None
        self.bundle = ""
        self.seal: Seal | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2  # what API servers of all supported versions offer

    async def run(self) -> None:
        """Look after everything until cancelled; faults are logged and tried again."""
        while True:
            try:
                await self.ensure()
            except (ApiError, pki.Unusable) as error:
                _log.warning("certificates: %s Trying again in %.0f s.", error, RETRY_S)
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(CHECK_PERIOD_S)

    async def ensure(self) -> None:
        """One round: make or renew what is due, and tell the bundle.

        Raises:
            ApiError: the API server refuses; Unusable: a stored CA cannot be used, the text says what to do.
        """
        authorities = await self._authorities()
        if authorities.bundle() != self.bundle:
            self.bundle = authorities.bundle()
            self.seal = Seal(authorities.signing.key, *([authorities.next.key] if authorities.next else []))
            self._on_bundle(self.bundle)
        await self._publish()
        for secret, services in SERVICES.items():
            names = tuple(f"{service}.{self._namespace}.svc" for service in services)
            leaf = await self._leaf(secret, names, authorities)
            if secret == OPERATOR_SECRET and leaf != self._serving:
                _load(self.context, leaf)
                self._serving = leaf
                _log.info("serving with a certificate that ends %s", leaf.parsed().not_valid_after_utc.date())

    async def _authorities(self) -> pki.Authorities:
        for _ in range(MAX_ROUNDS):
            stored = await self._stored(CA_SECRET)
            if stored is None:
                made = await asyncio.to_thread(pki.Authorities.new, self._now())
                if await self._written(CA_SECRET, _ca_data(made), None):
                    _log.info("made the service CA")
                    return made
                continue
            try:
                found = _authorities(stored.get("data") or {})
                due = found.at(self._now())
            except pki.Unusable as error:
                raise pki.Unusable(
                    f"The Secret {self._namespace}/{CA_SECRET} cannot be used: {error}. Restore it; or delete it, and "
                    "a new CA is made, which pods that run already do not know."
                ) from None
            if due == found:
                return found
            if await self._written(CA_SECRET, _ca_data(due), stored):
                _log.info("the service CA was renewed")
                return due
        raise ApiError(f"The Secret {CA_SECRET} changed too often.")

    async def _leaf(self, name: str, names: tuple[str, ...], authorities: pki.Authorities) -> pki.Pair:
        for _ in range(MAX_ROUNDS):
            stored = await self._stored(name)
            if stored is not None:
                found = _stored_leaf(stored)
                if found is not None and pki.is_fit(found, names, authorities, self._now()):
                    return found
            leaf = await asyncio.to_thread(pki.make_leaf, authorities.signing, names, self._now())
            data = {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authorities.bundle().encode()}
            if await self._written(name, data, stored):
                _log.info("made a certificate for %s", ", ".join(names))
                return leaf
        raise ApiError(f"The Secret {name} changed too often.")

    async def _publish(self) -> None:
        trust: Object = {"data": {TRUST_KEY: self.bundle}}
        try:
            found = await self._client.get(CONFIG_MAPS, TRUST, self._namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            found = {}
        if (found.get("data") or {}).get(TRUST_KEY) != self.bundle:
            await self._client.apply(CONFIG_MAPS, TRUST, trust, manager=MANAGER, namespace=self._namespace)
        encoded = base64.b64encode(self.bundle.encode()).decode("ascii")
        for resource, name in (
            (MUTATING_WEBHOOKS, WEBHOOKS),
            (VALIDATING_WEBHOOKS, WEBHOOKS),
            (API_SERVICES, API_SERVICE),
        ):
            await self._tell(resource, name, encoded)

    async def _tell(self, resource: Resource, name: str, encoded: str) -> None:
        """Put the bundle into a registration; one that is not there is none of our business."""
        for _ in range(MAX_ROUNDS):
            try:
                found = await self._client.get(resource, name)
                places = _places(found)
                if all(place.get("caBundle") == encoded for place in places):
                    return
                for place in places:
                    place["caBundle"] = encoded
                await self._client.replace(resource, name, found)
            except ApiError as error:
                if error.status == 404:
                    return
                if error.reason != "Conflict":
                    raise
            else:
                _log.info("told the service CA to %s %s", resource.kind, name)
                return

    async def _stored(self, name: str) -> Object | None:
        try:
            return await self._client.get(SECRETS, name, self._namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _written(self, name: str, data: dict[str, bytes], over: Object | None) -> bool:
        """Write a Secret over the version that was read, or anew; False when another writer was faster."""
        encoded = {key: base64.b64encode(value).decode("ascii") for key, value in data.items()}
        try:
            if over is None:
                body: Object = {"metadata": {"name": name}, "type": "kubernetes.io/tls", "data": encoded}
                await self._client.create(SECRETS, body, self._namespace)
            else:
                await self._client.replace(SECRETS, name, {**over, "data": encoded}, self._namespace)
        except ApiError as error:
            if error.reason in {"AlreadyExists", "Conflict", "NotFound"}:
                return False
            raise
        return True


def _places(registration: Object) -> list[Object]:
    """Where a registration keeps CA bundles."""
    if "webhooks" in registration:
        return [webhook["clientConfig"] for webhook in registration["webhooks"] or ()]
    return [registration["spec"]]


def _ca_data(authorities: pki.Authorities) -> dict[str, bytes]:
    data = {"tls.crt": authorities.signing.certificate, "tls.key": authorities.signing.key}
    if authorities.next is not None:
        data |= {"next.crt": authorities.next.certificate, "next.key": authorities.next.key}
    return data | ({"before.crt": b"".join(authorities.before)} if authorities.before else {})


def _authorities(data: dict[str, str]) -> pki.Authorities:
    signing = _pair(data, "tls")
    if signing is None:
        raise pki.Unusable("it lacks tls.crt or tls.key")
    before = pki.split(_decoded(data.get("before.crt", "")))
    return pki.Authorities(signing, _pair(data, "next"), before)


def _stored_leaf(secret: Object) -> pki.Pair | None:
    """The pair of a Secret; None when it holds none, because a leaf is simply made anew."""
    try:
        return _pair(secret.get("data") or {}, "tls")
    except pki.Unusable:
        return None


def _pair(data: dict[str, str], name: str) -> pki.Pair | None:
    try:
        return pki.Pair(_decoded(data[f"{name}.crt"]), _decoded(data[f"{name}.key"]))
    except KeyError:
        return None


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise pki.Unusable("it holds no base64") from None


def _load(context: ssl.SSLContext, leaf: pki.Pair) -> None:
    # Python's ssl takes a key from a file only; this one is memory, and gone when the call ends.
    memory = os.memfd_create("chaperone-tls", os.MFD_CLOEXEC)
    try:
        os.write(memory, leaf.certificate.strip() + b"\n" + leaf.key)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
