"""Signed notes (C2SP signed-note), and those with one Ed25519 key: stream heads. Checkpoints have more kinds of keys.

note = body (lines, ends in a newline) ‖ newline ‖ signature lines `— <name> <base64(key id(4) ‖ signature)>`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from chaperone_evidence.canonical import decode_base64
from chaperone_evidence.errors import BadSignature, Malformed, NotCanonical

ED25519: Final = 1
MAX_NOTE_BYTES: Final = 64 << 10  # 16 signatures of the largest kind and a short body fit
MAX_SIGNATURES: Final = 100  # C2SP asks for at least 16
KEY_ID_BYTES: Final = 4

_NAME: Final = re.compile(r"[^\s+\x00-\x1f]+\Z")
_SIGNATURE: Final = re.compile("\u2014 ([^\\s+]+) ([A-Za-z0-9+/=]+)\\Z")


class Signature(msgspec.Struct, frozen=True, gc=False):
    """One signature line: whose it says it is, the key's id, and what the key made."""

    name: str
    id: bytes
    data: bytes

    @property
    def line(self) -> str:
        """The line, with its newline."""
        return f"\u2014 {self.name} {base64.b64encode(self.id + self.data).decode()}\n"


class Note(msgspec.Struct, frozen=True, gc=False):
    """A note in its parts; nothing is verified."""

    body: str
    signatures: tuple[Signature, ...]


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """Four bytes that tell keys of one name apart."""
    return hashlib.sha256(name.encode() + b"\n" + bytes((kind,)) + public).digest()[:KEY_ID_BYTES]


def format_vkey(name: str, kind: int, public: bytes) -> str:
    """A public key as text: `<name>+<id>+<base64>`."""
    return f"{name}+{key_id(name, kind, public).hex()}+{base64.b64encode(bytes((kind,)) + public).decode()}"


class Verifier(msgspec.Struct, frozen=True):
    """A public key under its name."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The key's id."""
        return key_id(self.name, ED25519, self.public)

    @property
    def vkey(self) -> str:
        """The key as text."""
        return format_vkey(self.name, ED25519, self.public)


def split_vkey(text: str) -> tuple[str, int, bytes]:
    """Name, kind and public key of a verifier key.

    Raises:
        Malformed: not a key, or its id does not belong to it.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not _NAME.match(parts[0]):
        raise Malformed("The verifier key does not have the form name+id+key.")
    name, identifier, encoded = parts
    data = _base64(encoded)
    if not data or key_id(name, data[0], data[1:]).hex() != identifier:
        raise Malformed("The verifier key's id does not belong to it.")
    return name, data[0], data[1:]


def parse_vkey(text: str) -> Verifier:
    """Read a verifier key for notes.

    Raises:
        Malformed: not a key, not Ed25519, or its id does not belong to it.
    """
    name, kind, public = split_vkey(text)
    if kind != ED25519 or len(public) != 32:
        raise Malformed("The verifier key is not an Ed25519 key.")
    return Verifier(name, public)


def need_name(name: str) -> str:
    """The name, if a key may have it.

    Raises:
        Malformed: it is empty, or holds a space or a plus sign.
    """
    if not _NAME.match(name):
        raise Malformed(f"The key name {name!r} holds a space or a plus sign.")
    return name


class Signer:
    """A private key under its name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier = Verifier(need_name(name), key.public_key().public_bytes_raw())
        self._line = f"\u2014 {name} ".encode()

    def sign(self, body: str) -> bytes:
        """The note of a body (which ends in a newline)."""
        text = body.encode()
        signature = self.verifier.id + self._key.sign(text)
        return text + b"\n" + self._line + base64.b64encode(signature) + b"\n"


def parse(note: bytes, most: int = MAX_SIGNATURES, most_bytes: int = MAX_NOTE_BYTES) -> Note:
    """Take a note apart; it has at most `most` signatures and `most_bytes` bytes.

    Raises:
        Malformed: not a note.
    """
    text = _text(note, most_bytes)
    split = text.rfind("\n\n")
    if split < 0:
        raise Malformed("The note has no signatures.")
    return Note(text[: split + 1], parse_lines(text[split + 2 :], most))


def parse_lines(text: str, most: int = MAX_SIGNATURES) -> tuple[Signature, ...]:
    """Read signature lines, each with its newline; at most `most`.

    Raises:
        Malformed: a line is not well formed, or there are too many.
    """
    if not text.endswith("\n"):
        raise Malformed("The note has no signatures, or the last is cut.")
    lines = text[:-1].split("\n")
    if len(lines) > most:
        raise Malformed("The note has too many signatures.")
    signatures: list[Signature] = []
    for line in lines:
        match = _SIGNATURE.match(line)
        if match is None:
            raise Malformed("A signature line of the note is not well formed.")
        data = _base64(match[2])
        if len(data) <= KEY_ID_BYTES:
            raise Malformed("A signature of the note is too short.")
        signatures.append(Signature(match[1], data[:KEY_ID_BYTES], data[KEY_ID_BYTES:]))
    return tuple(signatures)


def open_note(note: bytes, verifier: Verifier, most_bytes: int = MAX_NOTE_BYTES) -> str:
    """The body of a note that this key has signed; it has at most `most_bytes` bytes.

    Raises:
        Malformed: not a note. BadSignature: the key did not sign it, or not this.
    """
    found = parse(note, most_bytes=most_bytes)
    identifier, signed = verifier.id, False
    for one in found.signatures:
        if one.name != verifier.name or one.id != identifier:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(verifier.public).verify(one.data, found.body.encode())
        except InvalidSignature as error:
            raise BadSignature(f"The signature by {verifier.name} does not verify.") from error
        signed = True
    if not signed:
        raise BadSignature(f"The note is not signed by {verifier.name}.")
    return found.body


def _text(note: bytes, most_bytes: int) -> str:
    if len(note) > most_bytes or not note.endswith(b"\n"):
        raise Malformed("The note is too long or does not end in a newline.")
    try:
        text = note.decode()
    except UnicodeDecodeError as error:
        raise Malformed("The note is not UTF-8.") from error
    if any(ord(character) < 0x20 and character != "\n" for character in text):
        raise Malformed("The note holds a control character.")
    return text


def _base64(text: str) -> bytes:
    try:
        return decode_base64(text)
    except NotCanonical as error:
        raise Malformed("A key or signature is not base64.") from error
