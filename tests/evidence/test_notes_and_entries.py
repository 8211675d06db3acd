"""Notes, entries and canonical headers: published vectors, and what must not be accepted."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import canonical, chain, entry, note, record, ulid
from chaperone_evidence.errors import EvidenceError, Malformed, NotCanonical

NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
EXAMPLE = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"


@pytest.mark.parametrize("vkey", [NEUMANN, EXAMPLE])
def test_published_keys_are_read_and_written_alike(vkey: str) -> None:
    assert note.parse_vkey(vkey).vkey == vkey


@pytest.mark.parametrize("cut", range(len(NEUMANN)))
def test_a_shortened_or_changed_key_is_refused(cut: int) -> None:
    with pytest.raises(Malformed):
        note.parse_vkey(NEUMANN[:cut])
    other = "B" if NEUMANN[cut] != "B" else "C"
    changed = NEUMANN[:cut] + other + NEUMANN[cut + 1 :]
    with pytest.raises(Malformed):
        note.parse_vkey(changed)


def test_a_note_is_opened_only_as_it_was_signed() -> None:
    signer = note.Signer("example.com/log", Ed25519PrivateKey.generate())
    signed = signer.sign(NEUMANN_TEXT)
    assert note.open_note(signed, signer.verifier) == NEUMANN_TEXT
    for position in range(len(signed)):
        changed = bytearray(signed)
        changed[position] ^= 1
        with pytest.raises(EvidenceError):
            note.open_note(bytes(changed), signer.verifier)
        with pytest.raises(EvidenceError):
            note.open_note(signed[:position], signer.verifier)


def test_signatures_of_unknown_keys_are_passed_over_and_a_missing_one_is_not() -> None:
    ours, other = (note.Signer("example.com/log", Ed25519PrivateKey.generate()) for _ in range(2))
    both = ours.sign("body\n") + other.sign("body\n").split(b"\n\n")[1]
    assert note.open_note(both, ours.verifier) == "body\n"
    with pytest.raises(EvidenceError):
        note.open_note(other.sign("body\n"), ours.verifier)


@pytest.mark.parametrize(
    "header",
    [
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b'{"a":null}',
        b'{"a":1.5}',
        b'{"a":9007199254740992}',
        b'{"A":1}',
        b'{"a":"\\u0041"}',
        b'{"a":1}\n',
        b"[1]",
        b"{",
        b'{"a":"\xff"}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_a_header_in_another_form_is_refused(header: bytes) -> None:
    with pytest.raises(NotCanonical):
        canonical.decode(header)


VALUES = st.recursive(
    st.booleans() | st.integers(-canonical.MAX_INTEGER, canonical.MAX_INTEGER) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9_]{0,5}\Z"), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9_]{0,5}\Z"), VALUES, max_size=5))
def test_what_was_encoded_is_canonical(value: dict[str, canonical.Value]) -> None:
    try:
        header = canonical.encode(value)
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8
    try:
        assert canonical.decode(header) == value
    except NotCanonical as error:
        assert "too deep" in str(error)


# As entries are: their last byte is that of JSON or of a note.
ENTRIES = st.binary(min_size=1, max_size=300).map(lambda data: data + b"}")


@given(st.lists(ENTRIES, max_size=10), st.integers(0, 20))
def test_frames_are_read_as_written_whatever_pads_them(entries: list[bytes], padding: int) -> None:
    data = b"".join(entry.frame(one) for one in entries)
    if padding != 1:
        assert list(entry.frames(data + bytes(padding))) == entries


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_frames_or_malformed(data: bytes) -> None:
    for reader in (entry.frames, entry.body_frames):
        try:
            for found in reader(data):
                assert found
        except Malformed:
            pass


def test_ulids_sort_by_time_and_fit_a_name() -> None:
    first, second = ulid.encode(1_700_000_000_000, b"\xff" * 10), ulid.encode(1_700_000_000_001, bytes(10))
    assert first < second
    assert ulid.is_ulid(first)
    assert not ulid.is_ulid("../../../../etc/passwd_____")


def test_a_record_of_a_later_version_is_unknown_and_not_an_error() -> None:
    header = canonical.encode({"type": "future.thing", "seq": 3, "wall_us": 1, "mono_us": 1})
    assert record.decode(header) == record.Unknown("future.thing", 3)


def test_a_known_record_without_its_fields_is_refused() -> None:
    with pytest.raises(NotCanonical):
        record.decode(canonical.encode({"type": "stream.close", "seq": 3}))


def test_link_and_head_have_the_documented_form() -> None:
    signer = note.Signer("c/gateway/p", Ed25519PrivateKey.generate())
    one = chain.Chain("c", "0" * 26)
    closing = record.StreamClose(seq=0, wall_us=1, mono_us=1, reason="x")
    (framed,) = entry.frames(one.append_record(closing))
    parsed = entry.decode(framed)
    assert parsed.link == chain.next_link(chain.first_link("0" * 26), 1, parsed.header)
    (framed,) = entry.frames(one.append_head(signer, 5, "closed"))
    head = chain.parse_head(note.open_note(entry.decode(framed).header, signer.verifier))
    assert (head.count, head.link, head.state) == (1, parsed.link, "closed")
    assert base64.b64encode(parsed.link).decode() in entry.decode(framed).header.decode()
