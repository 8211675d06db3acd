"""Certificates of gateways: a token is exchanged once for each start of a gateway, a certificate is renewed by itself.

Each exchange is recorded as a condition of the pod's status, under the pod's resourceVersion: of two exchanges at the
same time one fails, several brokers agree, and the record lives as long as the pod. Another exchange is admitted
  * for the same stream key and the same TLS key (the answer was lost on its way), or
  * when the API server knows of more restarts of the gateway container than at the last exchange.
Until the kubelet has reported a restart, the restarted gateway is told to call again. An exchange takes the certificate
of the start before out of use: its renewals and leases are refused, so an exchange that the gateway did not make itself
cannot stay unseen.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from chaperone_operator.broker import pod as pods
from chaperone_operator.broker import vkey
from chaperone_operator.broker.ca import MANAGER, Authority, requested_key
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.peer import Peer, key_der, uris
from chaperone_operator.kube import PODS, ApiError, Client, Object

RECORD_TRIES: Final = 5  # the kubelet writes the same status; five conflicts in a row are no accident
RETRY_AFTER_S: Final = 2  # a kubelet reports a restart within about a second


class Issued(msgspec.Struct, frozen=True):
    """The answer to `POST /v1/certificates`."""

    certificate: str
    ca: str
    expires_at_unix: int


class Enrolments:
    """Exchange and renewal of gateways' certificates in one cluster.

    Args:
        client: the API server.
        authority: the gateway CA.
        cluster: uid of the Namespace kube-system.
    """

    def __init__(self, client: Client, authority: Authority, cluster: str) -> None:
        self._client = client
        self._authority = authority
        self._cluster = cluster

    async def exchange(self, claim: pods.Claim, csr: str, stream_key: str) -> Issued:
        """A first certificate for this start of a pod's gateway.

        Raises:
            Refused: 400 for the keys, 403 for the pod, 409 when this start has had its exchange.
            ApiError: the API server does not answer.
        """
        key = requested_key(csr)
        vkey.check(stream_key, self._cluster, claim.pod_uid)
        digest = pods.keys_digest(stream_key, key_der(key))
        for _ in range(RECORD_TRIES):
            pod = await self._pod(claim.namespace, claim.pod)
            identity = pods.identity_of(pod, claim)
            if await self._record(pod, digest):
                names = uris(
                    cluster=self._cluster,
                    namespace=claim.namespace,
                    pod=claim.pod,
                    pod_uid=claim.pod_uid,
                    identity=identity,
                    stream_key=stream_key,
                )
                return self._issued(self._authority.issue(key, names))
        raise Refused(503, "Try again", "The pod's status changes too often to record the exchange.", RETRY_AFTER_S)

    async def renew(self, peer: Peer, csr: str, stream_key: str) -> Issued:
        """Another hour for the same two keys.

        Raises:
            Refused: 400, 403 for other keys than the certificate binds, or as `check_current`.
            ApiError: the API server does not answer.
        """
        key = requested_key(csr)
        if stream_key != peer.stream_key or key_der(key) != peer.tls_key:
            raise Refused(
                403,
                "Other keys",
                "A certificate is renewed for its own stream key and TLS key only; restart to change.",
            )
        await self.check_current(peer)
        return self._issued(self._authority.issue(key, peer.uris))

    async def check_current(self, peer: Peer) -> Object:
        """The pod, if the certificate is that of its last exchange and the pod is still what it was.

        Raises:
            Refused: 403 when the pod is gone or changed, 409 when a later exchange took this certificate out of use.
            ApiError: the API server does not answer.
        """
        pod = await self._pod(peer.namespace, peer.pod)
        if pod["metadata"].get("uid") != peer.pod_uid or pods.injected_identity(pod) != peer.identity:
            raise Refused(403, "Pod refused", f"The pod {peer.namespace}/{peer.pod} is not the one of the certificate.")
        last = pods.enrolment(pod)
        if last is None or last.keys != pods.keys_digest(peer.stream_key, peer.tls_key):
            raise Refused(409, "Superseded", "The pod's token was exchanged again since; this certificate is void.")
        return pod

    async def _pod(self, namespace: str, name: str) -> Object:
        try:
            return await self._client.get(PODS, name, namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            raise Refused(403, "Pod refused", f"There is no pod {namespace}/{name}.") from None

    async def _record(self, pod: Object, digest: str) -> bool:
        """Note the exchange in the pod's status; False when the pod was written meanwhile."""
        start, last = pods.gateway_start(pod), pods.enrolment(pod)
        if last is not None and last.keys == digest:
            return True
        if last is not None and start <= last.start:
            raise Refused(
                409,
                "Already exchanged",
                "This start of the gateway has its certificate. After a restart, call again until it is known here.",
                RETRY_AFTER_S,
            )
        metadata = pod["metadata"]
        condition = {
            "type": pods.ENROLLED,
            "status": "True",
            "reason": "TokenExchanged",
            "message": pods.Enrolment(start, digest).message,
            "lastTransitionTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        body: Object = {
            "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
            "status": {"conditions": [condition]},
        }
        try:
            await self._client.apply(
                PODS, metadata["name"], body, manager=MANAGER, namespace=metadata["namespace"], subresource="status"
            )
        except ApiError as error:
            if error.reason != "Conflict":
                raise
            return False
        return True

    def _issued(self, certificate: x509.Certificate) -> Issued:
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        return Issued(pem, self._authority.pem, int(certificate.not_valid_after_utc.timestamp()))
