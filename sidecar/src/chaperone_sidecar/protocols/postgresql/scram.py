"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the client's side (RFC 5802, RFC 7677; channel binding RFC 5929).

No I/O and no slow work: deriving the salted password is a step of its own, so that the driver can run it off the loop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import stringprep
import unicodedata
from typing import Final

from chaperone_sidecar.errors import UpstreamUnavailable

MECHANISM: Final = "SCRAM-SHA-256"
MECHANISM_PLUS: Final = "SCRAM-SHA-256-PLUS"
MIN_ITERATIONS: Final = 4096  # RFC 7677; fewer would let a hostile server grind the password
MAX_ITERATIONS: Final = 1_000_000  # half a second here; a hostile server must not hold a core for longer


class Scram:
    """One exchange.

    Args:
        password: the credential.
        nonce: at least 18 random bytes.
        binding: the `tls-server-end-point` hash of the server's certificate; empty without channel binding.
        tls: whether the connection is encrypted (then a server without PLUS is told that we could have bound).
    """

    def __init__(self, password: str, nonce: bytes, binding: bytes, *, server_can_bind: bool) -> None:
        self._password = prepare(password)
        self._nonce = base64.b64encode(nonce).decode()
        if binding and server_can_bind:
            self.mechanism, flag = MECHANISM_PLUS, "p=tls-server-end-point"
        else:
            self.mechanism, flag = MECHANISM, "y" if binding else "n"
        self._header = f"{flag},,"
        self._binding = self._header.encode() + (binding if self.mechanism == MECHANISM_PLUS else b"")
        self._first = f"n=,r={self._nonce}"
        self._server_first = ""
        self._server_nonce = ""
        self._server_signature = b""

    def first(self) -> bytes:
        """The client-first-message."""
        return (self._header + self._first).encode()

    def challenge(self, message: bytes) -> tuple[bytes, bytes, int]:
        """Read the server-first-message; returns what `derive` needs: password, salt, iterations.

        Raises:
            UpstreamUnavailable: the message is not well formed or asks for too little or too much work.
        """
        try:
            text = message.decode("ascii")
            fields = dict(part.split("=", 1) for part in text.split(","))
            salt = base64.b64decode(fields["s"], validate=True)
            iterations = int(fields["i"])
            nonce = fields["r"]
        except (ValueError, KeyError, binascii.Error) as error:
            raise UpstreamUnavailable("The database's SCRAM challenge is not well formed.") from error
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce):
            raise UpstreamUnavailable("The database's SCRAM nonce does not extend ours.")
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise UpstreamUnavailable(f"The database asks for {iterations} SCRAM iterations, which is refused.")
        self._server_first, self._server_nonce = text, nonce
        return self._password, salt, iterations

    def final(self, salted: bytes) -> bytes:
        """The client-final-message, given the salted password."""
        bare = f"c={base64.b64encode(self._binding).decode()},r={self._server_nonce}"
        signed = f"{self._first},{self._server_first},{bare}".encode()
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return f"{bare},p={base64.b64encode(proof).decode()}".encode()

    def check(self, message: bytes) -> None:
        """Read the server-final-message: the server knows the password too.

        Raises:
            UpstreamUnavailable: it does not.
        """
        expected = b"v=" + base64.b64encode(self._server_signature)
        if not hmac.compare_digest(message.split(b",", 1)[0], expected):
            raise UpstreamUnavailable("The database does not know the password it asked for: it may be an impostor.")


def derive(password: bytes, salt: bytes, iterations: int) -> bytes:
    """The salted password; takes about 0.5 µs an iteration."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def prepare(password: str) -> bytes:
    """SASLprep (RFC 4013) as the server applies it: a password that the profile prohibits is used as it is."""
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    return (password if not normal or _is_prohibited(normal) else normal).encode()


def _is_prohibited(text: str) -> bool:
    tables = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
        stringprep.in_table_a1,
    )
    if any(table(character) for character in text for table in tables):
        return True
    if any(stringprep.in_table_d1(character) for character in text):
        ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
        return not ends or any(stringprep.in_table_d2(character) for character in text)
    return False
