"""The Merkle tree: published vectors, the definition of RFC 6962 as it stands there, and what no proof may claim."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import merkle
from chaperone_evidence.errors import BadProof, EvidenceError, Malformed
from chaperone_evidence.merkle import CompactRange, Node

DATA = Path(__file__).parent / "data"
# transparency-dev/merkle, testonly/constants.go: the inputs of certificate-transparency-go since 2013.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
MOST = 70  # leaves: past 64, so that every shape of six levels is there


def definition(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, over leaf hashes."""
    if not leaves:
        return merkle.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return merkle.node_hash(definition(leaves[:split]), definition(leaves[split:]))


LEAVES = [merkle.leaf_hash(b"leaf %d" % number) for number in range(MOST)]
TREES = [definition(LEAVES[:size]) for size in range(MOST + 1)]


def reader(leaves: Sequence[bytes]) -> merkle.Reader:
    return lambda nodes: [definition(leaves[n.index << n.level : (n.index + 1) << n.level]) for n in nodes]


READ = reader(LEAVES)


def vectors(kind: str) -> list[Any]:
    lines = (DATA / f"merkle_{kind}.jsonl").read_text().splitlines()
    return [pytest.param(json.loads(line), id=json.loads(line)["file"]) for line in lines]


def decoded(case: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    names = ("root1", "root2", "leafHash", "root")
    return [base64.b64decode(one) for one in case["proof"] or []], [
        base64.b64decode(case[n]) for n in names if n in case
    ]


@pytest.mark.parametrize("case", vectors("inclusion"))
def test_published_inclusion_proofs(case: dict[str, Any]) -> None:
    proof, (leaf, root) = decoded(case)
    if case["wantErr"]:
        with pytest.raises(BadProof):
            merkle.verify_inclusion(leaf, case["leafIdx"], case["treeSize"], proof, root)
    else:
        merkle.verify_inclusion(leaf, case["leafIdx"], case["treeSize"], proof, root)


@pytest.mark.parametrize("case", vectors("consistency"))
def test_published_consistency_proofs(case: dict[str, Any]) -> None:
    proof, (old_root, root) = decoded(case)
    if case["wantErr"]:
        with pytest.raises(BadProof):
            merkle.verify_consistency(case["size1"], case["size2"], proof, old_root, root)
    else:
        merkle.verify_consistency(case["size1"], case["size2"], proof, old_root, root)


def test_published_roots() -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(text)) for text in INPUTS]
    assert [merkle.root(leaves[:size]).hex() for size in range(9)] == ROOTS


def test_the_hash_of_the_checksum_databases_first_record() -> None:
    # golang.org/x/mod/sumdb/tlog, TestTree: RecordHash("hello world")
    assert base64.b64encode(merkle.leaf_hash(b"hello world")) == b"TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0="


@pytest.mark.parametrize("size", range(MOST + 1))
def test_the_root_is_that_of_the_definition_however_it_is_computed(size: int) -> None:
    assert merkle.root(LEAVES[:size]) == TREES[size]
    assert merkle.read_root(size, READ) == TREES[size]


@pytest.mark.parametrize("size", range(1, MOST + 1))
def test_every_leaf_is_proved_in_every_tree_and_nowhere_else(size: int) -> None:
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, READ)
        merkle.verify_inclusion(LEAVES[index], index, size, proof, TREES[size])
        for leaf, place, tree, path, root in (
            (LEAVES[index - 1] if index else LEAVES[1], index, size, proof, TREES[size]),
            (LEAVES[index], index ^ 1, size, proof, TREES[size]),
            (LEAVES[index], index, size, [*proof, LEAVES[0]], TREES[size]),
            (LEAVES[index], index, size, [*proof, b""], TREES[size]),
            (LEAVES[index], index, size, [*proof[:-1], b""] if proof else [b""], TREES[size]),
            (LEAVES[index], index, size, proof[1:] if proof else [LEAVES[0]], TREES[size]),
            (LEAVES[index], index, size, proof[:-1] if proof else [LEAVES[0]], TREES[size]),
            (LEAVES[index], index, size, proof, TREES[size - 1]),
            (LEAVES[index], size, size, proof, TREES[size]),
            (LEAVES[index], -1, size, proof, TREES[size]),
            (LEAVES[index], 2**63 - 1, 2**63, proof, TREES[size]),
        ):
            with pytest.raises(BadProof):
                merkle.verify_inclusion(leaf, place, tree, path, root)


@pytest.mark.parametrize("size", range(1, MOST + 1))
def test_every_tree_continues_every_smaller_one_and_no_other(size: int) -> None:
    for old in range(1, size + 1):
        proof = merkle.consistency_proof(old, size, READ)
        merkle.verify_consistency(old, size, proof, TREES[old], TREES[size])
        for before, after, path, old_root, root in (
            (old, size, proof, TREES[old - 1], TREES[size]),
            (old, size, proof, TREES[old], TREES[size - 1]),
            (old, size, [*proof, LEAVES[0]], TREES[old], TREES[size]),
            (old, size, [*proof[:-1], b""] if proof else [b""], TREES[old], TREES[size]),
            (old, size, proof[1:] if proof else [LEAVES[0]], TREES[old], TREES[size]),
            (old, size, proof[:-1] if proof else [LEAVES[0]], TREES[old], TREES[size]),
            (size + 1, size, proof, TREES[old], TREES[size]),
            (-1, size, proof, TREES[old], TREES[size]),
            (old, 2**63, proof, TREES[old], TREES[size]),
        ):
            with pytest.raises(BadProof):
                merkle.verify_consistency(before, after, path, old_root, root)


@pytest.mark.parametrize(("old", "size"), [(3, 7), (4, 7), (6, 8), (7, 13), (8, 13), (33, 50), (64, 70)])
def test_no_bit_of_a_proof_can_be_changed(old: int, size: int) -> None:
    for proof, verify in (
        (
            merkle.consistency_proof(old, size, READ),
            lambda path: merkle.verify_consistency(old, size, path, TREES[old], TREES[size]),
        ),
        (
            merkle.inclusion_proof(old, size, READ),
            lambda path: merkle.verify_inclusion(LEAVES[old], old, size, path, TREES[size]),
        ),
    ):
        verify(proof)
        for place, one in enumerate(proof):
            for bit in range(256):
                changed = (int.from_bytes(one, "big") ^ 1 << bit).to_bytes(32, "big")
                with pytest.raises(BadProof):
                    verify([*proof[:place], changed, *proof[place + 1 :]])


def test_from_the_empty_tree_nothing_is_proved() -> None:
    for size in (0, 5):
        assert merkle.consistency_proof(0, size, READ) == []
        with pytest.raises(BadProof):
            merkle.verify_consistency(0, size, [], merkle.EMPTY_ROOT, TREES[size])


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_a_compact_range_goes_on_from_what_it_kept(size: int, more: int) -> None:
    kept = CompactRange()
    for leaf in LEAVES[:size]:
        kept.append(leaf)
    assert len(kept.hashes) == size.bit_count()
    resumed = CompactRange(kept.size, kept.hashes)
    for leaf in LEAVES[size:more]:
        resumed.append(leaf)
    assert resumed.root() == TREES[max(size, more)]


@pytest.mark.parametrize(
    ("size", "hashes"), [(-1, []), (2**63, [bytes(32)]), (3, [bytes(32)]), (0, [bytes(32)]), (1, [bytes(31)])]
)
def test_what_is_not_kept_whole_is_not_a_tree(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(Malformed):
        CompactRange(size, hashes)


def test_a_full_tree_takes_no_leaf() -> None:
    full = CompactRange(merkle.MAX_SIZE, [bytes(32)] * 63)
    with pytest.raises(Malformed):
        full.append(LEAVES[0])
    assert full.size == merkle.MAX_SIZE


@given(st.integers(0, merkle.MAX_SIZE), st.integers(0, merkle.MAX_SIZE))
def test_a_range_is_covered_once_and_in_order(one: int, other: int) -> None:
    begin, end = sorted((one, other))
    position = begin
    for node in merkle.nodes_of(begin, end):
        assert node.index << node.level == position
        position = (node.index + 1) << node.level
    assert position == end


@pytest.mark.parametrize(("begin", "end"), [(-1, 1), (2, 1), (0, 2**63)])
def test_what_is_no_range_has_no_nodes(begin: int, end: int) -> None:
    with pytest.raises(Malformed):
        merkle.nodes_of(begin, end)


@st.composite
def large(draw: st.DrawFn) -> tuple[int, int]:
    """An index or old size, and a size above it, of any magnitude."""
    size = draw(st.integers(2, 62).flatmap(lambda bits: st.integers(2, (1 << bits) + 1)))
    return draw(st.integers(1, size - 1)), size


def fake(nodes: Sequence[Node]) -> list[bytes]:
    return [merkle.leaf_hash(b"%d.%d" % (node.level, node.index)) for node in nodes]


@given(large())
def test_proofs_of_huge_trees_have_the_length_that_is_demanded(at: tuple[int, int]) -> None:
    """The hashes lead nowhere, but a proof of wrong length would be refused for that and not for its root."""
    index, size = at
    proof = merkle.inclusion_proof(index, size, fake)
    assert len(proof) <= 63
    with pytest.raises(BadProof, match="does not lead"):
        merkle.verify_inclusion(LEAVES[0], index, size, proof, LEAVES[0])
    proof = merkle.consistency_proof(index, size, fake)
    assert len(proof) <= 63
    with pytest.raises(BadProof, match="does not lead"):
        merkle.verify_consistency(index, size, proof, LEAVES[0], LEAVES[1])
    for path in (proof[1:], [*proof, LEAVES[0]]):
        with pytest.raises(BadProof, match="hashes where"):
            merkle.verify_consistency(index, size, path, LEAVES[0], LEAVES[1])


@given(st.integers(0, 2**64), st.integers(0, 2**64), st.lists(st.binary(max_size=33), max_size=70))
def test_arbitrary_proofs_are_refused_and_nothing_else_happens(index: int, size: int, proof: list[bytes]) -> None:
    with pytest.raises(BadProof):
        merkle.verify_inclusion(LEAVES[0], index, size, proof, LEAVES[1])
    with pytest.raises(BadProof):
        merkle.verify_consistency(index, size, proof, LEAVES[0], LEAVES[1])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, 2**63)])
def test_no_proof_is_made_of_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(Malformed):
        merkle.inclusion_proof(index, size, READ)
    with pytest.raises(Malformed):
        merkle.consistency_proof(size + 1, size, READ)


def test_a_reader_that_gives_too_few_hashes_is_noticed() -> None:
    with pytest.raises(EvidenceError):
        merkle.inclusion_proof(3, 7, lambda nodes: READ(nodes)[1:])
