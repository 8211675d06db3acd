"""Checkpoints: their one form, the kinds of keys that sign them, and whose signatures a policy believes."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_evidence import checkpoint, merkle, note, policy
from chaperone_evidence.checkpoint import Checkpoint, parse_body
from chaperone_evidence.cosignature import (
    ED25519,
    ED25519_COSIGNATURE,
    MLDSA44,
    CheckpointSigner,
    Key,
    parse_key,
    sign_checkpoint,
)
from chaperone_evidence.errors import BadProof, BadSignature, EvidenceError, Malformed
from chaperone_evidence.policy import Policy, open_checkpoint

ORIGIN = "chaperone.dev/log/3f1c"
POINT = Checkpoint(ORIGIN, 20_852_163, merkle.leaf_hash(b"root"))
TIME_S = 1_763_940_000


def signer(name: str, kind: int, seed: int = 1) -> CheckpointSigner:
    raw = bytes((seed,)) * 32
    if kind == MLDSA44:
        return CheckpointSigner(name, MLDSA44PrivateKey.from_seed_bytes(raw), kind)
    return CheckpointSigner(name, Ed25519PrivateKey.from_private_bytes(raw), kind)


LOG = signer(ORIGIN, ED25519)
LOG_PQ = signer(ORIGIN, MLDSA44)
WITNESS = signer("witness.example/w1", ED25519_COSIGNATURE, 2)
WITNESS_PQ = signer("witness.example/w1", MLDSA44, 2)
SECOND = signer("witness.example/w2", MLDSA44, 3)
ALL = (LOG, LOG_PQ, WITNESS, WITNESS_PQ, SECOND)
SIGNED = sign_checkpoint(POINT, ALL, TIME_S)
POLICY = Policy(ORIGIN, (LOG.key, LOG_PQ.key), 2, (WITNESS.key, WITNESS_PQ.key, SECOND.key), 2)


def lines(data: bytes) -> list[str]:
    return data.decode().split("\n\n")[1].splitlines(keepends=True)


def with_lines(made: list[str], point: Checkpoint = POINT) -> bytes:
    return f"{point.body}\n{''.join(made)}".encode()


def test_the_published_checkpoint_is_read_and_written_alike() -> None:
    # c2sp.org/tlog-checkpoint
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    found = parse_body(text)
    assert (found.origin, found.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert found.body == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n20852163\n", "\n020852163\n"), ("\n20852163\n", "\n-1\n"), ("\n20852163\n", "\n\n"),
        ("\n20852163\n", "\n9223372036854775808\n"), ("\n20852163\n", "\n" + "9" * 5000 + "\n"),
        ("\n20852163\n", "\n20852163 \n"), ("\n20852163\n", "\n+1\n"), ("\n20852163\n", "\n٣\n"),
        ("\n20852163\n", "\n0x10\n"), (ORIGIN, ""), (ORIGIN, "x" * 256), (ORIGIN, "a\x00b"), (ORIGIN, "a\tb"),
        ("=\n", "=\nextension\n"), ("=\n", "=\n\n"), ("=\n", "="), ("=\n", "=\r\n"),
    ],
)  # fmt: skip
def test_a_checkpoint_has_one_form(old: str, new: str) -> None:
    assert parse_body(POINT.body) == POINT
    assert old in POINT.body
    with pytest.raises(Malformed):
        parse_body(POINT.body.replace(old, new))


@pytest.mark.parametrize(
    "root", ["", "AAAA", base64.b64encode(bytes(31)).decode(), base64.b64encode(bytes(33)).decode()]
)
def test_a_root_has_32_bytes_in_one_form(root: str) -> None:
    zeros = base64.b64encode(bytes(32)).decode()
    assert parse_body(f"o\n1\n{zeros}\n").root == bytes(32)
    for text in (root, zeros[:-2] + "B=", zeros.replace("=", "")):
        with pytest.raises(Malformed):
            parse_body(f"o\n1\n{text}\n")


@given(st.text(max_size=60), st.integers(-1, 2**64), st.binary(max_size=33))
def test_what_can_be_said_is_read_as_said(origin: str, size: int, root: bytes) -> None:
    try:
        said = Checkpoint(origin, size, root)
    except (Malformed, UnicodeEncodeError):
        return
    assert parse_body(said.body) == said


@pytest.mark.parametrize("one", ALL)
def test_a_key_is_read_as_written_and_signs_what_it_says(one: CheckpointSigner) -> None:
    assert parse_key(one.key.vkey) == one.key
    (made,) = note.parse_lines(one.sign(POINT, TIME_S))
    assert (made.name, made.id) == (one.key.name, one.key.id)
    assert one.key.verify(POINT, made.data) == (None if one.key.kind == ED25519 else TIME_S)
    for other in (
        Checkpoint("chaperone.dev/log/3f1d", POINT.size, POINT.root),
        Checkpoint(ORIGIN, POINT.size + 1, POINT.root),
        Checkpoint(ORIGIN, POINT.size, bytes(32)),
    ):
        with pytest.raises(BadSignature):
            one.key.verify(other, made.data)


@pytest.mark.parametrize("one", ALL)
def test_no_bit_of_a_signature_can_be_changed_and_no_part_cut(one: CheckpointSigner) -> None:
    (made,) = note.parse_lines(one.sign(POINT, TIME_S))
    for position in range(0, len(made.data), 1 if len(made.data) < 100 else 37):
        changed = bytearray(made.data)
        changed[position] ^= 1 << position % 8
        with pytest.raises(BadSignature):
            one.key.verify(POINT, bytes(changed))
        with pytest.raises(BadSignature):
            one.key.verify(POINT, made.data[:position])
    with pytest.raises(BadSignature):
        one.key.verify(POINT, made.data + b"\0")


def test_signatures_of_one_kind_are_none_of_another() -> None:
    kinds = [signer("a.example", kind) for kind in (ED25519, ED25519_COSIGNATURE, MLDSA44)]
    for made_by in kinds:
        (made,) = note.parse_lines(made_by.sign(POINT, TIME_S))
        for other in kinds:
            if other is not made_by:
                for data in (made.data, made.data[8:], bytes(8) + made.data):
                    with pytest.raises(BadSignature):
                        other.key.verify(POINT, data)


def test_only_the_later_kind_names_its_maker() -> None:
    """Why a policy refuses one public key under two names."""
    for kind, names_its_maker in ((ED25519_COSIGNATURE, False), (MLDSA44, True)):
        (made,) = note.parse_lines(signer("a.example", kind).sign(POINT, TIME_S))
        other = signer("b.example", kind).key
        if names_its_maker:
            with pytest.raises(BadSignature):
                other.verify(POINT, made.data)
        else:
            assert other.verify(POINT, made.data) == TIME_S


@pytest.mark.parametrize("time_s", [-1, 2**63, 2**64])
def test_a_time_that_the_format_cannot_say_is_not_signed(time_s: int) -> None:
    with pytest.raises(Malformed):
        WITNESS.sign(POINT, time_s)


@pytest.mark.parametrize(
    ("name", "kind", "public"),
    [
        ("a", 2, bytes(32)), ("a", 5, bytes(32)), ("a", 255, bytes(32)), ("a", ED25519, bytes(31)),
        ("a", MLDSA44, bytes(32)), ("a", ED25519, bytes(1312)), ("", ED25519, bytes(32)), ("a b", ED25519, bytes(32)),
        ("a+b", ED25519, bytes(32)), ("a\x00", ED25519, bytes(32)), ("é" * 128, MLDSA44, bytes(1312)),
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused(name: str, kind: int, public: bytes) -> None:
    with pytest.raises(Malformed):
        Key(name, kind, public)
    with pytest.raises(Malformed):
        parse_key(note.format_vkey(name, kind, public))


def test_a_key_that_is_not_of_its_kind_signs_nothing() -> None:
    for private, kind in (
        (Ed25519PrivateKey.generate(), MLDSA44),
        (MLDSA44PrivateKey.generate(), ED25519),
        (Ed25519PrivateKey.generate(), 3),
    ):
        with pytest.raises(Malformed):
            CheckpointSigner("a", private, kind)


def test_a_key_that_signs_heads_is_none_of_the_later_kinds() -> None:
    with pytest.raises(Malformed):
        note.parse_vkey(WITNESS.key.vkey)
    with pytest.raises(Malformed):
        note.parse_vkey(LOG_PQ.key.vkey)


def test_a_signed_checkpoint_satisfies_its_policy() -> None:
    opened = open_checkpoint(SIGNED, POLICY)
    assert opened.checkpoint == POINT
    assert [(one.key, one.time_s) for one in opened.signatures] == [
        (one.key, None if one is LOG else TIME_S) for one in ALL
    ]


@pytest.mark.parametrize("missing", [0, 1, 4])
def test_a_signature_that_the_policy_asks_for_is_missed(missing: int) -> None:
    made = lines(SIGNED)
    with pytest.raises(BadSignature, match="must"):
        open_checkpoint(with_lines(made[:missing] + made[missing + 1 :]), POLICY)


def test_a_witness_counts_once_whatever_it_signs_with() -> None:
    made = lines(SIGNED)
    with pytest.raises(BadSignature, match="1 witnesses have signed"):
        open_checkpoint(with_lines([*made[:4], made[2], made[3]]), POLICY)
    for without in (2, 3):
        open_checkpoint(with_lines(made[:without] + made[without + 1 :]), POLICY)


def test_one_key_of_the_log_counts_once() -> None:
    made = lines(SIGNED)
    with pytest.raises(BadSignature, match="1 keys of the log"):
        open_checkpoint(with_lines([made[0], made[0], *made[2:]]), POLICY)


def test_the_witness_that_says_no_time_does_not_count() -> None:
    made = lines(SIGNED)
    with pytest.raises(BadSignature, match="1 witnesses have signed"):
        open_checkpoint(with_lines([*made[:4], SECOND.sign(POINT, 0)]), POLICY)


@pytest.mark.parametrize("place", range(5))
def test_a_bad_signature_of_a_known_key_refuses_all_even_beside_a_good_one(place: int) -> None:
    other = Checkpoint(ORIGIN, POINT.size, bytes(32))
    bad = ALL[place].sign(other, TIME_S)
    with pytest.raises(BadSignature, match="does not verify"):
        open_checkpoint(with_lines([*lines(SIGNED), bad]), POLICY)


def test_unknown_keys_are_passed_over_whatever_they_sign() -> None:
    unknown = [
        signer("stranger.example", ED25519, 9).sign(Checkpoint(ORIGIN, 1, bytes(32)), TIME_S),
        note.Signature(ORIGIN, b"abcd", b"x").line,  # a known name with another id
        note.Signature("stranger.example", LOG.key.id, bytes(64)).line,  # a known id with another name
        note.Signature(ORIGIN, note.key_id(ORIGIN, ED25519_COSIGNATURE, LOG.key.public), bytes(72)).line,
    ]
    assert open_checkpoint(with_lines([*unknown, *lines(SIGNED)]), POLICY).checkpoint == POINT
    with pytest.raises(BadSignature):
        open_checkpoint(with_lines(unknown), POLICY)


def test_sixteen_signatures_are_read_and_no_more() -> None:
    made = lines(SIGNED)
    strangers = [signer(f"w{number}.example", MLDSA44, number).sign(POINT, TIME_S) for number in range(10, 21)]
    assert len(made + strangers) == 16
    assert open_checkpoint(with_lines(made + strangers), POLICY).checkpoint == POINT
    with pytest.raises(Malformed):
        open_checkpoint(with_lines([*made, *strangers, strangers[0]]), POLICY)


def test_the_checkpoint_of_another_log_is_refused_though_signed() -> None:
    other = Checkpoint("chaperone.dev/log/other", POINT.size, POINT.root)
    with pytest.raises(BadSignature, match="another log"):
        open_checkpoint(sign_checkpoint(other, ALL, TIME_S), POLICY)


def test_an_empty_log_has_the_root_of_the_empty_tree() -> None:
    empty = Checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT)
    assert open_checkpoint(sign_checkpoint(empty, ALL, TIME_S), POLICY).checkpoint == empty
    with pytest.raises(BadProof):
        open_checkpoint(sign_checkpoint(Checkpoint(ORIGIN, 0, POINT.root), ALL, TIME_S), POLICY)


def test_no_part_of_a_signed_checkpoint_can_be_cut_and_no_byte_of_its_text_changed() -> None:
    for position in range(0, len(SIGNED) - 1, 7):
        with pytest.raises(EvidenceError):
            open_checkpoint(SIGNED[:position], POLICY)
    for position in range(len(POINT.body) + 1):
        changed = bytearray(SIGNED)
        changed[position] ^= 1
        with pytest.raises(EvidenceError):
            open_checkpoint(bytes(changed), POLICY)


@settings(deadline=None)
@given(st.data())
def test_a_changed_note_is_refused_or_says_the_same(data: st.DataObject) -> None:
    changed = bytearray(SIGNED)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        opened = open_checkpoint(bytes(changed), POLICY)
    except EvidenceError:
        return
    assert opened.checkpoint == POINT


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_checkpoint(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        open_checkpoint(data, POLICY)


SAME_KEY = Key("witness.example/w3", ED25519_COSIGNATURE, WITNESS.key.public)


@pytest.mark.parametrize(
    "terms",
    [
        {"log": ()}, {"log_quorum": 0}, {"log_quorum": 3}, {"log_quorum": -1}, {"log": (LOG.key, LOG.key)},
        {"witness_quorum": -1}, {"witness_quorum": 3}, {"witnesses": (), "witness_quorum": 1},
        {"witnesses": (WITNESS.key, SAME_KEY)}, {"witnesses": (LOG_PQ.key,)},
        {"witnesses": (Key("witness.example/w4", ED25519, bytes(32)),), "witness_quorum": 1},
    ],
)  # fmt: skip
def test_a_policy_that_cannot_mean_what_it_says_is_refused(terms: dict[str, Any]) -> None:
    sound: dict[str, Any] = {
        "log": POLICY.log, "log_quorum": 2, "witnesses": POLICY.witnesses, "witness_quorum": 2,
    }  # fmt: skip
    assert Policy(ORIGIN, **sound) == POLICY
    if "witnesses" in terms:
        sound["witness_quorum"] = 0
    with pytest.raises(Malformed):
        Policy(ORIGIN, **(sound | terms))


def test_a_note_of_sixteen_long_signatures_fits() -> None:
    longest = len(LOG_PQ.sign(POINT, TIME_S)) + 255
    assert policy.MAX_SIGNATURES * longest + checkpoint.MAX_ORIGIN_BYTES + 100 <= note.MAX_NOTE_BYTES
