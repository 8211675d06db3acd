"""COSE receipts (RFC 9942): what they prove, and that one form alone is read."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import merkle, receipt
from chaperone_evidence.cosignature import ED25519, CheckpointSigner
from chaperone_evidence.errors import BadProof, BadSignature, EvidenceError, Malformed
from chaperone_evidence.policy import Policy
from chaperone_evidence.receipt import Receipt

ORIGIN = "chaperone.dev/log/3f1c2a"
KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
LOG = CheckpointSigner(ORIGIN, KEY, ED25519)
POLICY = Policy(ORIGIN, (LOG.key,))
LEAVES = [merkle.leaf_hash(b"entry %d" % number) for number in range(7)]


def subtree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return merkle.node_hash(subtree(leaves[:split]), subtree(leaves[split:]))


def path(index: int, leaves: list[bytes]) -> tuple[bytes, ...]:
    if len(leaves) == 1:
        return ()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return (*path(index, leaves[:split]), subtree(leaves[split:]))
    return (*path(index - split, leaves[split:]), subtree(leaves[:split]))


def made(index: int, size: int = len(LEAVES), key: Ed25519PrivateKey = KEY) -> Receipt:
    some = LEAVES[:size]
    return receipt.make(index, size, path(index, some), subtree(some), LOG.key.id, key.sign)


@pytest.mark.parametrize("size", range(1, len(LEAVES) + 1))
def test_every_entry_of_every_tree_is_proved_and_no_other(size: int) -> None:
    for index in range(size):
        found = receipt.parse(made(index, size).encode())
        for other, leaf in enumerate(LEAVES):
            if other == index:
                found.verify(leaf, POLICY)
            else:
                with pytest.raises(BadSignature):
                    found.verify(leaf, POLICY)


def test_the_bytes_are_those_of_the_standard() -> None:
    data = made(5).encode()
    protected = bytes.fromhex("a301270444") + LOG.key.id + bytes.fromhex("19018b01")  # {1: -8, 4: kid, 395: 1}
    assert data.startswith(bytes.fromhex("d2844d") + protected)  # 18([<<protected>>
    assert bytes.fromhex("a119018ca12081") in data  # {396: {-1: [
    assert data[-67:-64] == bytes.fromhex("f65840")  # null, signature


def test_another_key_in_the_logs_name_is_refused() -> None:
    forged = made(3, key=Ed25519PrivateKey.generate())
    with pytest.raises(BadSignature, match="did not sign"):
        forged.verify(LEAVES[3], POLICY)
    with pytest.raises(BadSignature, match="not by a key"):
        msgspec.structs.replace(forged, key_id=b"abcd").verify(LEAVES[3], POLICY)


def test_a_path_of_another_length_or_place_is_refused() -> None:
    found = made(3)
    with pytest.raises(BadProof):
        msgspec.structs.replace(found, hashes=found.hashes[1:]).verify(LEAVES[3], POLICY)
    with pytest.raises(BadProof):
        msgspec.structs.replace(found, index=7).verify(LEAVES[3], POLICY)
    with pytest.raises(BadSignature):
        msgspec.structs.replace(found, index=2).verify(LEAVES[3], POLICY)


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_byte_may_be_another_one(place: int, change: int) -> None:
    data = bytearray(made(4).encode())
    data[place % len(data)] ^= change
    with pytest.raises(EvidenceError):
        receipt.parse(bytes(data)).verify(LEAVES[4], POLICY)


@given(st.binary(max_size=300))
def test_whatever_else_comes_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        receipt.parse(data)


@pytest.mark.parametrize("cut", range(0, 300, 7))
def test_a_part_of_a_receipt_and_one_with_more_behind_it_are_malformed(cut: int) -> None:
    data = made(4).encode()
    for other in (data[: min(cut, len(data) - 1)], data + bytes(cut + 1)):
        with pytest.raises(Malformed):
            receipt.parse(other)
