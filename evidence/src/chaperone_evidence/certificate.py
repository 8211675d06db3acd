"""Which stream key a gateway's certificate binds, and to which pod."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from chaperone_evidence.errors import BadSignature, Malformed

STREAM_KEY_SCHEME: Final = "chaperone-stream-key:"
_NAME: Final = "[A-Za-z0-9._:-]{1,253}"  # what names and uids of Kubernetes are made of
_SPIFFE: Final = re.compile(
    rf"spiffe://chaperone\.dev/(?P<cluster>{_NAME})/ns/(?P<namespace>{_NAME})/pod/(?P<pod>{_NAME})"
    rf"/(?P<pod_uid>{_NAME})/identity/(?P<identity>{_NAME})\Z"
)

# What cryptography raises for certificates of later versions, unknown algorithms, and extensions that are missing,
# doubled, or hold what it cannot read.
_UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Subject(msgspec.Struct, frozen=True):
    """What a gateway's certificate says of its holder."""

    cluster: str
    namespace: str
    pod: str
    pod_uid: str
    identity: str
    vkey: str


def subject_uri(cluster: str, namespace: str, pod: str, pod_uid: str, identity: str) -> str:
    """The SPIFFE id in a gateway's certificate."""
    return f"spiffe://chaperone.dev/{cluster}/ns/{namespace}/pod/{pod}/{pod_uid}/identity/{identity}"


def read_subject(certificate: x509.Certificate) -> Subject:
    """What the certificate binds.

    Raises:
        Malformed: it is not a gateway's certificate.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE as error:
        raise Malformed("The certificate names no pod.") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    matches = [match for uri in uris if (match := _SPIFFE.match(uri))]
    keys = [uri.removeprefix(STREAM_KEY_SCHEME) for uri in uris if uri.startswith(STREAM_KEY_SCHEME)]
    if len(matches) != 1 or len(keys) != 1:
        raise Malformed("The certificate does not name exactly one pod and one stream key.")
    return Subject(vkey=keys[0], **matches[0].groupdict())


def check_issued(der: bytes, authorities: list[x509.Certificate], at_us: int) -> Subject:
    """The subject of a certificate that one of `authorities` issued for a client and that was valid at `at_us`.

    Raises:
        Malformed: not such a certificate. BadSignature: issued by somebody else.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        unknown = [one.oid for one in certificate.extensions if one.critical and _is_unknown(one)]
    except _UNREADABLE as error:
        raise Malformed("The certificate cannot be read, or is not for a client.") from error
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise Malformed("The certificate is not for a client.")
    if unknown:
        raise Malformed(f"The certificate has the critical extension {unknown[0].dotted_string}, which is not known.")
    issuer = next((ca for ca in authorities if _issued_by(certificate, ca)), None)
    if issuer is None:
        raise BadSignature("The certificate was not issued by the trusted gateway CA.")
    at = datetime.fromtimestamp(at_us / 1_000_000, UTC)
    for one in (certificate, issuer):
        if not one.not_valid_before_utc <= at <= one.not_valid_after_utc:
            raise Malformed(f"The certificate was not valid at {at:%Y-%m-%dT%H:%M:%SZ}.")
    return read_subject(certificate)


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority signed it, is a CA, and may sign certificates by its key usage (RFC 5280, 6.1.4)."""
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        usages = [one.value for one in authority.extensions if isinstance(one.value, x509.KeyUsage)]
        if not constraints.ca or not isinstance(authority.public_key(), ec.EllipticCurvePublicKey):
            return False
        if not all(usage.key_cert_sign for usage in usages):
            return False
        certificate.verify_directly_issued_by(authority)
    except (*_UNREADABLE, TypeError, InvalidSignature):
        return False
    return True


def _is_unknown(extension: x509.Extension[x509.ExtensionType]) -> bool:
    return isinstance(extension.value, x509.UnrecognizedExtension)
