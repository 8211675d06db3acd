"""Signed notes that others published, and what their formats forbid."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chaperone_evidence import chain, note
from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed

# golang.org/x/mod/sumdb/note, package documentation: text, signer's key and note.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    GO_TEXT + "\n— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# c2sp.org/signed-note, section "Example".
C2SP_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
C2SP_TEXT = "This is an example message.\n"
C2SP_NOTE = (
    C2SP_TEXT + "\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
PUBLISHED = [(GO_VKEY, GO_TEXT, GO_NOTE), (C2SP_VKEY, C2SP_TEXT, C2SP_NOTE)]


@pytest.mark.parametrize(("vkey", "text", "published"), PUBLISHED)
def test_published_notes_verify(vkey: str, text: str, published: str) -> None:
    assert note.open_note(published.encode(), note.parse_vkey(vkey)) == text


def test_signing_with_a_published_key_gives_the_published_note() -> None:
    signer = note.Signer("PeterNeumann", Ed25519PrivateKey.from_private_bytes(GO_SEED))
    assert signer.verifier.vkey == GO_VKEY
    assert signer.sign(GO_TEXT) == GO_NOTE.encode()


@pytest.mark.parametrize(("vkey", "text", "published"), PUBLISHED)
def test_no_bit_of_a_published_note_can_be_changed_and_no_part_cut(vkey: str, text: str, published: str) -> None:
    verifier, raw = note.parse_vkey(vkey), published.encode()
    for position in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            with pytest.raises(EvidenceError):
                note.open_note(bytes(changed), verifier)
        with pytest.raises(EvidenceError):
            note.open_note(raw[:position], verifier)


@pytest.mark.parametrize("vkey", [GO_VKEY, C2SP_VKEY])
def test_no_bit_of_a_published_key_can_be_changed_and_no_part_cut(vkey: str) -> None:
    for position in range(len(vkey)):
        for bit in range(7):  # an eighth would leave ASCII
            changed = bytearray(vkey.encode())
            changed[position] ^= 1 << bit
            with pytest.raises(Malformed):
                note.parse_vkey(changed.decode())
        with pytest.raises(Malformed):
            note.parse_vkey(vkey[:position])


@pytest.mark.parametrize("vkey", ["", "a+b", "é+00000000+é", GO_VKEY + "=", GO_VKEY + "\n", " " + GO_VKEY])
def test_what_is_no_key_is_malformed(vkey: str) -> None:
    with pytest.raises(Malformed):
        note.parse_vkey(vkey)


def test_the_same_key_under_another_name_or_kind_has_another_id() -> None:
    verifier = note.parse_vkey(GO_VKEY)
    assert note.key_id("PeterNeumanm", note.ED25519, verifier.public) != verifier.id
    assert note.key_id(verifier.name, 4, verifier.public) != verifier.id


def _line(name: str, identifier: bytes, signature: bytes = bytes(64)) -> str:
    return f"— {name} {base64.b64encode(identifier + signature).decode()}\n"


def test_seventeen_signatures_of_unknown_keys_hide_neither_a_good_one_nor_a_bad_one() -> None:
    verifier = note.parse_vkey(GO_VKEY)
    others = "".join(_line(f"witness-{number}.example", bytes((number,)) * 4) for number in range(17))
    head, ours = GO_NOTE.rsplit("\n\n", 1)
    assert note.open_note(f"{head}\n\n{others}{ours}".encode(), verifier) == GO_TEXT
    bad = _line(verifier.name, verifier.id)
    with pytest.raises(BadSignature):
        note.open_note(f"{head}\n\n{others}{ours}{bad}".encode(), verifier)
    with pytest.raises(BadSignature):
        note.open_note(f"{head}\n\n{others}".encode(), verifier)


def test_a_key_of_the_same_name_with_another_id_is_unknown() -> None:
    verifier = note.parse_vkey(GO_VKEY)
    with pytest.raises(BadSignature, match="not signed"):
        note.open_note(f"{GO_TEXT}\n{_line(verifier.name, b'abcd')}".encode(), verifier)


def test_the_text_ends_at_the_last_empty_line() -> None:
    signer = note.Signer("example.com/a", Ed25519PrivateKey.generate())
    text = "one\n\n— two\n\n\nthree\n"
    assert note.open_note(signer.sign(text), signer.verifier) == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("\n\n", "\n\n\n"),  # moves the boundary, so the signature is over another text
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: text.replace("— ", "- "),
        lambda text: text.replace("— ", "—  "),
        lambda text: text.replace("=\n", "=\u2028\n"),  # a line end for Unicode, not for the format
        lambda text: text.replace("=\n", "=\r\n"),
        lambda text: text.replace("=\n", "=\x85\n"),
        lambda text: text + "x\n",
        lambda text: text + _line("short.example", b"", b"abcd"),
        lambda text: text + "".join(_line("w.example", b"abcd") for _ in range(100)),
        lambda text: "\x00" + text,
        lambda text: text.replace("AM=\n", "AN=\n"),  # bits that base64 leaves over
    ],
)
def test_a_note_in_another_form_is_refused(damage: object) -> None:
    assert callable(damage)
    changed = damage(GO_NOTE)
    assert changed != GO_NOTE
    with pytest.raises(EvidenceError):
        note.open_note(changed.encode(), note.parse_vkey(GO_VKEY))


def test_a_note_that_is_no_utf8_or_too_long_is_refused() -> None:
    verifier = note.parse_vkey(GO_VKEY)
    for raw in (b"\xff" + GO_NOTE.encode(), b"a" * note.MAX_NOTE_BYTES + GO_NOTE.encode(), b"", b"\n", b"\n\n"):
        with pytest.raises(Malformed):
            note.open_note(raw, verifier)


@pytest.mark.parametrize("name", ["", "two words", "with+plus", "line\nend", "non\u00a0breaking"])
def test_a_signer_has_a_name_that_a_note_can_carry(name: str) -> None:
    with pytest.raises(Malformed):
        note.Signer(name, Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n7\n", "\n07\n"),
        ("\n7\n", "\n-7\n"),
        ("\n7\n", "\n" + "7" * 5000 + "\n"),
        ("time 5\n", "time 0\n"),
        ("time 5\n", "time " + "5" * 5000 + "\n"),
        ("state idle", "state lost"),
        ("state idle\n", "state idle\nextension\n"),
        ("chaperone.dev/stream/", "chaperone.dev/log/"),
        ("A=\n", "B=\n"),  # bits that base64 leaves over
    ],
)
def test_a_head_has_one_form(old: str, new: str) -> None:
    body = f"chaperone.dev/stream/c/{'0' * 26}\n7\n{base64.b64encode(bytes(32)).decode()}\ntime 5\nstate idle\n"
    assert chain.parse_head(body) == chain.Head("c", "0" * 26, 7, bytes(32), 5, "idle")
    assert old in body
    with pytest.raises(EvidenceError):
        chain.parse_head(body.replace(old, new))
