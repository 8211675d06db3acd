"""TLS on both sides of the gateway: a CA for this pod alone, and a TLS layer without I/O.

The CA's key and every leaf's key live in memory. The layer sits on `ssl.MemoryBIO`, so that a connection can be
upgraded in the middle without losing a buffered byte, and the deciding code sees plain bytes only.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import ssl
import tempfile
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaperone_sidecar.config import Tls
from chaperone_sidecar.errors import UpstreamUnavailable

CA_LIFE: Final = timedelta(days=365)  # a pod lives shorter; a new process makes a new CA
CLOCK_SLACK: Final = timedelta(minutes=5)
MAX_CONTEXTS: Final = 256  # one a target; past this the oldest is made anew
# libpq has room for so much whenever it reads. What is left of a longer record lies in its TLS library, where a program
# that waits for the socket itself (psycopg) does not see it: it would wait for ever.
RECORD_BYTES: Final = 8192
READ_BYTES: Final = 256 << 10
MAX_CIPHERTEXT_BYTES: Final = 4 << 20  # what a peer may send before its handshake or records are read


class PodCa:
    """A CA that only this pod trusts; makes one server context a target."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Chaperone gateway of {name}"[:64])])
        self._certificate = (
            _builder(subject, subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._contexts: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], ssl.SSLContext] = OrderedDict()

    @property
    def pem(self) -> str:
        """The CA's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def server_context(self, names: tuple[str, ...], *alpn: str) -> ssl.SSLContext:
        """A context whose certificate is good for these host names and addresses, and that speaks these protocols."""
        key = (alpn, names)
        context = self._contexts.get(key)
        if context is None:
            context = self._make_context(names)
            if alpn:
                context.set_alpn_protocols(alpn)
            self._contexts[key] = context
            if len(self._contexts) > MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        return context

    def _make_context(self, names: tuple[str, ...]) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64] if names else "chaperone")])
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=not names)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(is_ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        load_key_pair(context, certificate.public_bytes(serialization.Encoding.PEM) + self.pem.encode(), key)
        return context


def load_key_pair(context: ssl.SSLContext, certificates_pem: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    """Give a context its certificate and key; Python's ssl takes them only from a file, which exists for this call."""
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - memory, not disk
    with tempfile.NamedTemporaryFile(dir=directory) as file:  # created with mode 0600
        file.write(certificates_pem + key_pem)
        file.flush()
        context.load_cert_chain(file.name)


def upstream_context(tls: Tls, ca_pem: str) -> ssl.SSLContext:
    """The context for a backend.

    Raises:
        UpstreamUnavailable: the CA cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.mode == "Require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what the mode says: encrypted, not authenticated; the docs advise against
        return context
    context.check_hostname = tls.mode == "VerifyFull"
    try:
        if ca_pem:
            context.load_verify_locations(cadata=ca_pem)
        else:
            context.load_default_certs()
    except ssl.SSLError as error:
        raise UpstreamUnavailable(
            "The CA certificate of the target cannot be read; check its tls.caSecretRef."
        ) from error
    return context


class TlsLayer:
    """One TLS connection on bytes: ciphertext in, plaintext out, and the other way round.

    `outgoing` collects ciphertext to be sent; take it with `take_outgoing` after each call. `alpn` is the protocol that
    the peer has to agree to, if any.
    """

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_name: str | None = None, alpn: str = ""
    ) -> None:
        self._alpn = alpn
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self.is_established = False

    def start(self) -> None:
        """Begin the handshake (the client's side sends first)."""
        self._handshake()

    def feed(self, ciphertext: bytes) -> bytes:
        """Take ciphertext; returns the plaintext that became readable.

        Raises:
            ssl.SSLError: the peer broke TLS or is not who it should be.
        """
        self._incoming.write(ciphertext)
        if not self.is_established:
            self._handshake()
        if not self.is_established:
            return b""
        parts = []
        try:
            while part := self._object.read(READ_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass  # no whole record is left
        except ssl.SSLZeroReturnError:
            pass  # close_notify: the transport's end follows
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, plaintext: bytes | bytearray | memoryview) -> None:
        """Encrypt, in records no longer than a PostgreSQL server's."""
        view = memoryview(plaintext)
        while view:
            view = view[self._object.write(view[:RECORD_BYTES]) :]

    def end(self) -> None:
        """Say that no more comes (close_notify); the peer's own word is not waited for."""
        if self.is_established:
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()

    def take_outgoing(self) -> bytes:
        """The ciphertext to send now."""
        return self._outgoing.read()

    def end_point_binding(self) -> bytes:
        """The `tls-server-end-point` hash of the peer's certificate (RFC 5929, 4.1)."""
        der = self._object.getpeercert(binary_form=True)
        if not der:
            return b""
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
        if algorithm is None:
            return b""
        name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
        return hashlib.new(name, der).digest()

    def _handshake(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        if self._alpn and self._object.selected_alpn_protocol() != self._alpn:
            raise ssl.SSLError(f'The peer did not name the protocol "{self._alpn}".')
        self.is_established = True


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + CA_LIFE)
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
