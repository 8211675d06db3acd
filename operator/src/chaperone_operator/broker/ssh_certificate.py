"""`sshCertificate`: a user certificate for the public key that a gateway made for one session.

The private key never leaves the gateway; the CA's never leaves its Secret but for the moment of signing. What the
certificate is for stands in its key id, which sshd logs: `chaperone:<namespace>/<identity>:<session>`. It cannot be
taken back, so it lives for minutes; it is shown once, at log-in.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import SSHCertificateBuilder, SSHCertificateType

from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Lease, Order, Unready, Unrecorded
from chaperone_operator.compile.credential import Reference, SshCertificate, duration_s

FIELD: Final = "spec.credential.sshCertificate.caSecretRef"
KEY: Final = "ssh-privatekey"  # as in a Secret of type kubernetes.io/ssh-auth
CLOCK_SKEW_S: Final = 60  # hosts' clocks differ; a certificate begins that much earlier
MAX_KEY: Final = 2048  # characters; an Ed25519 key has 80, an RSA key of 4096 bits 750
RSA_BITS: Final = 2048


class SshCertificates(Unrecorded):
    """Signs certificates with the CA key of a Secret."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def life_s(self, reference: Reference) -> int:
        """See `Source`."""
        return duration_s(_spec(reference).valid_for) or 0

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`.

        Raises:
            Refused: 400 for a key that no certificate is made for.
        """
        spec = _spec(order.reference)
        public = _public(order.public_key)
        key = await self._secrets.text(spec.ca_secret_ref.name, KEY, order.target, FIELD)
        authority = _authority(key, self._secrets.named(spec.ca_secret_ref.name, order.target, FIELD))
        now = int(time.time())
        ends = now + self.life_s(order.reference)
        peer = order.peer
        builder = (
            SSHCertificateBuilder()
            .public_key(public)
            .type(SSHCertificateType.USER)
            .key_id(f"chaperone:{peer.namespace}/{peer.identity}:{order.id}".encode())
            .valid_principals([name.encode() for name in spec.principals])
            .valid_after(now - CLOCK_SKEW_S)
            .valid_before(ends)
        )
        for extension in sorted(spec.extensions):  # the format wants them in order
            builder = builder.add_extension(extension.encode(), b"")
        if spec.force_command:
            builder = builder.add_critical_option(b"force-command", spec.force_command.encode())
        signed = await asyncio.to_thread(builder.sign, authority)
        return Lease(order.id, "certificate", ends, certificate=signed.public_bytes().decode("ascii")), ""


type _Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
type _Public = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def _public(text: str) -> _Public:
    try:
        key = serialization.load_ssh_public_key(text.encode("ascii")) if len(text) <= MAX_KEY else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey):
        raise Refused(
            400, "Bad request", "Send public_key in OpenSSH form: Ed25519, ECDSA or RSA of 2048 bits or more."
        )
    return key


def _authority(text: str, named: str) -> _Private:
    raw = text.encode()
    try:
        is_openssh = raw.lstrip().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        load = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
        key = load(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # the cause is dropped: it may quote the key
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
        raise Unready("SecretIncomplete", f"{named} needs a private key without a passphrase under {KEY}.")
    return key


def _spec(reference: Reference) -> SshCertificate:
    credential = reference.credential
    if credential is None or credential.ssh_certificate is None:
        raise TypeError("the reference is none of an SSH certificate")
    return credential.ssh_certificate
