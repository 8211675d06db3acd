"""What the agent's containers find in the volumes they share with the gateway: whom to trust, and an account's files.

The token there is a word that means nothing anywhere; it stands where client libraries look for one.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import NoEncryption, pkcs12

TRUST: Final = Path("/etc/chaperone-trust")
ACCOUNT: Final = Path("/run/chaperone-serviceaccount")
KNOWN_HOSTS: Final = "ssh_known_hosts"
TRUSTSTORE: Final = "truststore.p12"  # without a password, which Java does not need to read certificates
TOKEN: Final = "chaperone: this pod has no token of its own"  # noqa: S105 - that is its point
MODE: Final = 0o644  # read by whatever user the agent runs as; only the gateway may write there


def publish(ca_pem: str, known_hosts: str, namespace: str, trust: Path = TRUST, account: Path = ACCOUNT) -> None:
    """Write the pod's CA, the bundle with the system's CAs, Java's store, SSH's host key, and the account's files.

    Raises:
        OSError: a volume is not there or full.
    """
    system = ssl.get_default_verify_paths().cafile
    others = Path(system).read_text() if system else ""
    _write(trust / "ca.crt", ca_pem)
    _write(trust / "ca-bundle.crt", f"{others}\n{ca_pem}" if others else ca_pem)
    certificate = pkcs12.PKCS12Certificate(x509.load_pem_x509_certificate(ca_pem.encode()), b"chaperone")
    _write(trust / TRUSTSTORE, pkcs12.serialize_java_truststore([certificate], NoEncryption()))
    # Containers have this file mounted by itself, so a new one in its place would not be seen.
    (trust / KNOWN_HOSTS).write_text(known_hosts)
    (trust / KNOWN_HOSTS).chmod(MODE)
    _write(account / "ca.crt", ca_pem)
    _write(account / "namespace", namespace)
    _write(account / "token", TOKEN)


def _write(path: Path, content: str | bytes) -> None:
    """By rename, so that nobody reads half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content.encode() if isinstance(content, str) else content)
    fresh.chmod(MODE)
    fresh.replace(path)
