"""Who is at the other end of a connection: what the gateway's certificate says.

OpenSSL has checked signature and chain in the handshake; a connection may outlive its certificate, so the time is
checked at each call.
"""

from __future__ import annotations

import re
import ssl
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chaperone_operator.broker.errors import Refused

STREAM_KEY: Final = "chaperone-stream-key:"
MAX_KNOWN: Final = 8192  # certificates read and remembered; one a gateway and hour
_SPIFFE: Final = re.compile(
    r"spiffe://chaperone\.dev/(?P<cluster>[^/]+)/ns/(?P<namespace>[^/]+)/pod/(?P<pod>[^/]+)/(?P<pod_uid>[^/]+)"
    r"/identity/(?P<identity>[^/]+)\Z"
)


class Peer(msgspec.Struct, frozen=True):
    """A gateway, as its certificate names it. `tls_key` is the DER of its public key."""

    cluster: str
    namespace: str
    pod: str
    pod_uid: str
    identity: str
    stream_key: str
    tls_key: bytes
    expires_at: datetime

    @property
    def uris(self) -> tuple[str, str]:
        """The names of its certificate."""
        return uris(
            cluster=self.cluster,
            namespace=self.namespace,
            pod=self.pod,
            pod_uid=self.pod_uid,
            identity=self.identity,
            stream_key=self.stream_key,
        )


class Peers:
    """Reads the certificates of connections, each once."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Peer] = OrderedDict()

    def of(self, request: web.Request) -> Peer:
        """The gateway that sent a request.

        Raises:
            Refused: 401, without a certificate, with another than a gateway's, or after it ran out.
        """
        connection: ssl.SSLObject | None = request.get_extra_info("ssl_object")
        der = connection.getpeercert(True) if connection is not None else None
        if der is None:
            raise Refused(401, "Unknown caller", "Show the certificate that POST /v1/certificates gave to this pod.")
        peer = self._known.get(der)
        if peer is None:
            peer = read(x509.load_der_x509_certificate(der))
            self._known[der] = peer
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        if peer.expires_at <= datetime.now(UTC):
            raise Refused(401, "Certificate expired", "Exchange the pod's token for a new certificate.")
        return peer


def read(certificate: x509.Certificate) -> Peer:
    """What a certificate of the gateway CA says.

    Raises:
        Refused: 401, when it does not name exactly one pod and one stream key.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise Refused(401, "Unknown caller", "The certificate names no pod.") from None
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    pods = [match for uri in found if (match := _SPIFFE.match(uri))]
    keys = [uri.removeprefix(STREAM_KEY) for uri in found if uri.startswith(STREAM_KEY)]
    public = certificate.public_key()
    if len(pods) != 1 or len(keys) != 1 or not isinstance(public, ec.EllipticCurvePublicKey):
        raise Refused(401, "Unknown caller", "The certificate is not a gateway's.")
    return Peer(
        stream_key=keys[0],
        tls_key=key_der(public),
        expires_at=certificate.not_valid_after_utc,
        **pods[0].groupdict(),
    )


def uris(*, cluster: str, namespace: str, pod: str, pod_uid: str, identity: str, stream_key: str) -> tuple[str, str]:
    """The two names of a gateway's certificate."""
    return (
        f"spiffe://chaperone.dev/{cluster}/ns/{namespace}/pod/{pod}/{pod_uid}/identity/{identity}",
        f"{STREAM_KEY}{stream_key}",
    )


def key_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as its SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
