"""The gateway CA: made once, kept in a Secret that only the broker reads, published as the trust root of evidence.

It issues client certificates of one hour to gateways and nothing else. The certificate says which pod the holder is in,
as which identity, and which key signs its stream.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaperone_operator.broker.errors import CannotStart, Refused
from chaperone_operator.broker.secret import read_or_make
from chaperone_operator.kube import CONFIG_MAPS, Client, Object

SECRET: Final = "chaperone-gateway-ca"  # noqa: S105 - a name
TRUST: Final = "chaperone-trust"
TRUST_KEY: Final = "gateway-ca.crt"
MANAGER: Final = "chaperone-broker"
CA_LIFE: Final = timedelta(days=3650)  # evidence is verified years later, against this certificate
CERTIFICATE_LIFE: Final = timedelta(hours=1)  # how long a stolen certificate is worth anything
CLOCK_SKEW: Final = timedelta(minutes=1)  # nodes' clocks differ; a certificate begins that much earlier
MAX_CSR: Final = 4096  # characters; a P-256 request has 400


class Authority:
    """The CA's key and certificate, in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @property
    def pem(self) -> str:
        """The CA's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def issue(self, public_key: ec.EllipticCurvePublicKey, uris: tuple[str, ...]) -> x509.Certificate:
        """A gateway's certificate with these URIs as its names."""
        now = datetime.now(UTC)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + CERTIFICATE_LIFE)
            .add_extension(names, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


async def load(client: Client, namespace: str) -> Authority:
    """The CA of the Secret; made and stored when there is none yet.

    Raises:
        CannotStart: the Secret cannot be read, written or used.
    """
    secret = await read_or_make(client, namespace, SECRET, lambda: _make(namespace))
    return _authority(secret, f"{namespace}/{SECRET}")


async def publish(client: Client, namespace: str, authority: Authority) -> None:
    """Put the CA's certificate where gateways, collector and verifiers look for it; the key stays here.

    Raises:
        ApiError: the ConfigMap cannot be written.
    """
    body: Object = {"metadata": {"name": TRUST, "namespace": namespace}, "data": {TRUST_KEY: authority.pem}}
    await client.apply(CONFIG_MAPS, TRUST, body, manager=MANAGER, namespace=namespace)


def requested_key(csr: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request; names in it are not read.

    Raises:
        Refused: 400, when it is no request, not signed by its own key, or not P-256.
    """
    try:
        request = x509.load_pem_x509_csr(csr[:MAX_CSR].encode("ascii"))
        key = request.public_key()
        is_sound = request.is_signature_valid
    except (ValueError, UnicodeEncodeError):
        raise Refused(400, "Bad request", "The field csr holds no certificate request in PEM.") from None
    if not is_sound or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused(400, "Bad request", "The certificate request must be signed by its own ECDSA P-256 key.")
    return key


def _make(namespace: str) -> Object:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Chaperone gateway CA")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    data = {"tls.crt": certificate.public_bytes(serialization.Encoding.PEM), "tls.key": key_pem}
    return {
        "metadata": {"name": SECRET, "namespace": namespace},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(value).decode("ascii") for name, value in data.items()},
    }


def _authority(secret: Object, where: str) -> Authority:
    data = secret.get("data") or {}
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
        key = serialization.load_pem_private_key(base64.b64decode(data["tls.key"]), None)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (KeyError, TypeError, ValueError, binascii.Error, x509.ExtensionNotFound):
        # The cause is dropped: it may quote the key.
        raise CannotStart(f"The Secret {where} holds no CA; delete it, and the broker makes a new one.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CannotStart(f"Key and certificate of the Secret {where} do not belong together.")
    if not constraints.ca or certificate.not_valid_after_utc < datetime.now(UTC) + CERTIFICATE_LIFE:
        raise CannotStart(f"The certificate of the Secret {where} is no CA's, or it has run out.")
    return Authority(key, certificate)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
