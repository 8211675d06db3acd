"""What the operator vouches for: one signed note for each identity of a snapshot, which its gateways verify.

A note (C2SP signed-note, Ed25519) binds namespace, identity, serial and revision to the very bytes of configuration and
bundle. So whatever carries a snapshot from here to a gateway can hold it back, but can neither alter it nor mix two.
Serials grow for ever in a namespace: a gateway takes no lower one than it has seen, so nothing old comes back. A serial
is the time in milliseconds unless the stored one is later; so a snapshot that was deleted is followed by a later one.

Pure: key and time are told.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NOTES: Final = "notes.json"
"""Member of the snapshot: JSON, identity → its note."""
SUBJECT: Final = "chaperone.dev/policy"  # the first line, so that no note of another kind passes for one of these
_ED25519: Final = b"\x01"  # of the algorithms of C2SP signed-note
_KEY_ID_BYTES: Final = 4
_DASH: Final = "\u2014"


class Signer:
    """A private key under its name.

    Args:
        name: without white space or plus sign.
        key: the key.
    """

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._name = name
        self._key = key
        public = _ED25519 + key.public_key().public_bytes_raw()
        self._id = hashlib.sha256(f"{name}\n".encode() + public).digest()[:_KEY_ID_BYTES]
        self.vkey = f"{name}+{self._id.hex()}+{base64.b64encode(public).decode()}"

    def sign(self, body: str) -> str:
        """The note of a body (which ends in a newline)."""
        signature = base64.b64encode(self._id + self._key.sign(body.encode())).decode()
        return f"{body}\n{_DASH} {self._name} {signature}\n"

    def body(self, note: str) -> str:
        """The body of a note that this signer made.

        Raises:
            ValueError: it is another's, or it was altered.
        """
        body, separator, signature = note.rpartition(f"\n{_DASH} {self._name} ")
        try:
            data = base64.b64decode(signature.strip(), validate=True)
            self._key.public_key().verify(data[_KEY_ID_BYTES:], body.encode())
        except (binascii.Error, InvalidSignature):
            separator = ""
        if not separator:
            raise ValueError("The note is not by this key.")
        return body


def signed(
    data: Mapping[str, str],
    namespace: str,
    revision: str,
    stored: Mapping[str, str] | None,
    signer: Signer,
    now_ms: int,
) -> dict[str, str]:
    """A snapshot's `binaryData` with its notes: those that are stored already where they still say the same.

    Args:
        data: `binaryData` of what is to be stored, without notes.
        namespace: whose it is.
        revision: of what is to be stored.
        stored: `binaryData` of the ConfigMap, None when there is none.
        signer: of the operator.
        now_ms: milliseconds since 1970.
    """
    configs = msgspec.json.decode(base64.b64decode(data["gateway.json"]), type=dict[str, msgspec.Raw])
    bundle = _sha256(base64.b64decode(data["bundle.tar.gz"]))
    notes = _notes(stored or {})
    last = _serial(notes, namespace, signer)

    def bodies(serial: int) -> dict[str, str]:
        return {
            name: f"{SUBJECT}\n{namespace}/{name}\n{serial}\n{revision}\n{_sha256(bytes(config))}\n{bundle}\n"
            for name, config in sorted(configs.items())
        }

    # Ed25519 gives a body one signature, so what is signed again with the serial before is equal to what is stored.
    found = {name: signer.sign(body) for name, body in bodies(last).items()}
    if found != notes:
        found = {name: signer.sign(body) for name, body in bodies(max(last + 1, now_ms)).items()}
    return {**data, NOTES: base64.b64encode(msgspec.json.encode(found)).decode("ascii")}


def serial(data: Mapping[str, str], namespace: str, signer: Signer) -> int:
    """The serial of a snapshot's `binaryData` by its notes; 0 where this signer has signed none."""
    return _serial(_notes(data), namespace, signer)


def _notes(stored: Mapping[str, str]) -> dict[str, str]:
    try:
        return msgspec.json.decode(base64.b64decode(stored.get(NOTES, ""), validate=True) or b"{}", type=dict[str, str])
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _serial(notes: Mapping[str, str], namespace: str, signer: Signer) -> int:
    """The highest serial of the namespace that this signer gave; others' count for nothing."""
    highest = 0
    for note in notes.values():
        try:
            subject, whose, serial, *_ = signer.body(note).split("\n")
        except ValueError:
            continue
        if subject == SUBJECT and whose.partition("/")[0] == namespace:
            highest = max(highest, int(serial))
    return highest


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
