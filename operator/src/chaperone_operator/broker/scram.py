"""SCRAM-SHA-256 verifiers: what PostgreSQL keeps instead of a password, made here so that it never sees the password.

Source: RFC 5802 section 3, RFC 7677; the form is PostgreSQL's `pg_authid.rolpassword`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

ITERATIONS: Final = 4096  # PostgreSQL's own; the passwords here have 256 random bits, so no more are needed
SALT_BYTES: Final = 16


def verifier(password: str, salt: bytes) -> str:
    """The verifier of a password in ASCII."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    texts = [base64.b64encode(one).decode("ascii") for one in (salt, stored, server)]
    return f"SCRAM-SHA-256${ITERATIONS}:{texts[0]}${texts[1]}:{texts[2]}"
