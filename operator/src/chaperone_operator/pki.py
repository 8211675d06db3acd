"""The service CA and its leaf certificates: pure functions of keys, certificates and a time that is told.

A CA changes in three steps, so that nobody ever meets a certificate whose CA was not told before: past two thirds of
its life the next CA is made and joins the bundle; past five sixths the next one signs; the old one stays in the bundle
until it runs out. Between telling and signing lie twenty months, the longest life of a pod that keeps the bundle it
was made with.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE: Final = timedelta(days=3650)  # pods keep the bundle that they were made with
LEAF_LIFE: Final = timedelta(days=90)  # a stolen key of a server is worth something for so long at most
CLOCK_SKEW: Final = timedelta(minutes=5)  # nodes' clocks differ; a certificate begins that much earlier
ROTATE_AT: Final = 2 / 3  # of a life
SIGN_AT: Final = 5 / 6  # of the old CA's life; from here on the next one signs


class Unusable(Exception):
    """A stored key or certificate cannot be used; the text never quotes it."""


class Pair(msgspec.Struct, frozen=True):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair(…)"

    def parsed(self) -> x509.Certificate:
        """The certificate.

        Raises:
            Unusable: certificate or key cannot be read, or they do not belong together.
        """
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate)
        except ValueError:
            raise Unusable("it holds no certificate") from None
        if self.private_key().public_key() != certificate.public_key():
            raise Unusable("certificate and key do not belong together")
        return certificate

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The key.

        Raises:
            Unusable: it is none, or no EC key.
        """
        try:
            key = serialization.load_pem_private_key(self.key, None)
        except (ValueError, TypeError):
            raise Unusable("it holds no private key") from None  # the cause may quote the key
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Unusable("its key is not of the kind that Chaperone makes")
        return key


class Authorities(msgspec.Struct, frozen=True):
    """The CA that signs, the one that will sign next, and certificates of those that signed before."""

    signing: Pair
    next: Pair | None = None
    before: tuple[bytes, ...] = ()

    @classmethod
    def new(cls, now: datetime) -> Self:
        """A first CA."""
        return cls(make_ca(now))

    def bundle(self) -> str:
        """All certificates that verifiers must know, PEM."""
        known = [self.signing.certificate, *([self.next.certificate] if self.next else []), *self.before]
        return "".join(one.decode("ascii").strip() + "\n" for one in known)

    def at(self, now: datetime) -> Authorities:
        """What should be stored at that time; equal to self when nothing is due.

        Raises:
            Unusable: a stored part cannot be used.
        """
        found = self
        if found.next is None and is_past(found.signing.parsed(), ROTATE_AT, now):
            found = msgspec.structs.replace(found, next=make_ca(now))
        if found.next is not None and is_past(found.signing.parsed(), SIGN_AT, now):
            found = Authorities(found.next, None, (*found.before, found.signing.certificate))
        kept = tuple(one for one in found.before if _certificate(one).not_valid_after_utc > now)
        return msgspec.structs.replace(found, before=kept)


def make_ca(now: datetime) -> Pair:
    """A new CA, which may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Chaperone service CA {now:%Y-%m-%d}")])
    builder = (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
    )
    return _signed(builder, key, key)


def make_leaf(signer: Pair, names: tuple[str, ...], now: datetime) -> Pair:
    """A server's certificate for these DNS names.

    Raises:
        Unusable: the signer cannot be used.
    """
    authority, authority_key = signer.parsed(), signer.private_key()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    life = min(LEAF_LIFE, authority.not_valid_after_utc - now)
    builder = (
        _builder(subject, authority.subject, key.public_key(), now, life)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    return _signed(builder, key, authority_key)


def is_fit(leaf: Pair, names: tuple[str, ...], authorities: Authorities, now: datetime) -> bool:
    """Whether a stored leaf may go on: readable, of these names, of a CA in the bundle, not past two thirds."""
    try:
        certificate = leaf.parsed()
        own = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (Unusable, x509.ExtensionNotFound):
        return False
    if set(own.get_values_for_type(x509.DNSName)) != set(names) or is_past(certificate, ROTATE_AT, now):
        return False
    return any(
        _is_issued_by(certificate, one) for one in x509.load_pem_x509_certificates(authorities.bundle().encode())
    )


def is_past(certificate: x509.Certificate, share: float, now: datetime) -> bool:
    """Whether so much of the certificate's life is over."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * share


def split(bundle: bytes) -> tuple[bytes, ...]:
    """The certificates of a bundle, one by one.

    Raises:
        Unusable: it is none.
    """
    try:
        found = x509.load_pem_x509_certificates(bundle) if bundle.strip() else []
    except ValueError:
        raise Unusable("an earlier CA in it cannot be read") from None
    return tuple(one.public_bytes(serialization.Encoding.PEM) for one in found)


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise Unusable("an earlier CA in it cannot be read") from None


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):  # another name, another kind of key, another key
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, own: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey) -> Pair:
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), key)


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
