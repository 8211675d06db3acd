"""The Merkle tree of the log: hashes, proofs, and the little that must be kept to append (RFC 6962, 2.1).

leaf = SHA-256(0x00 ‖ entry), node = SHA-256(0x01 ‖ left ‖ right), empty tree = SHA-256(""). The left part of a tree of
n leaves is the largest power of two below n, so a tree is a row of perfect subtrees that get smaller from left to
right. A node of a perfect subtree is named by level and index: (l, i) is the root of the leaves [i·2^l, (i+1)·2^l).

Building a proof takes hashes from a `Reader`, all at once, so that whoever stores them may fetch them together.
Verifying trusts nothing: the exact length is demanded before a hash is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from chaperone_evidence.errors import BadProof, Malformed

HASH_BYTES: Final = 32
MAX_SIZE: Final = 2**63 - 1  # what a signed 64-bit integer holds: other tools and databases keep sizes in one
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


class Node(msgspec.Struct, frozen=True, gc=False):
    """The root of the perfect subtree over the leaves [index·2^level, (index+1)·2^level)."""

    level: int
    index: int


type Reader = Callable[[Sequence[Node]], Sequence[bytes]]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry as a leaf."""
    return hashlib.sha256(_LEAF + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return hashlib.sha256(_NODE + left + right).digest()


def root(hashes: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes."""
    tree = CompactRange()
    for leaf in hashes:
        tree.append(leaf)
    return tree.root()


class CompactRange:
    """A growing tree, as the roots of its perfect subtrees from left to right: at most 63 hashes, enough to go on.

    Args:
        size: leaves in the tree so far.
        hashes: the subtrees of a tree of that size, as `hashes` of another one gave them.

    Raises:
        Malformed: a tree of that size is impossible or has another number of subtrees.
    """

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = _need_size(size)
        self._hashes = list(hashes)
        if len(self._hashes) != size.bit_count() or any(len(one) != HASH_BYTES for one in self._hashes):
            raise Malformed(f"These are not the {size.bit_count()} subtrees of a tree of {size} leaves.")

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees, the largest first."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash; one hash of two on average.

        Raises:
            Malformed: the tree is full.
        """
        size = self.size
        if size >= MAX_SIZE:
            raise Malformed("The tree has as many leaves as it may have.")
        self.size = size + 1
        hashes = self._hashes
        while size & 1:
            leaf = hashlib.sha256(_NODE + hashes.pop() + leaf).digest()
            size >>= 1
        hashes.append(leaf)

    def root(self) -> bytes:
        """The root of the tree."""
        return _fold(self._hashes) if self._hashes else EMPTY_ROOT


def nodes_of(begin: int, end: int) -> list[Node]:
    """The perfect subtrees that make up the leaves [begin, end), from left to right; none for an empty range.

    Raises:
        Malformed: not a range of a possible tree.
    """
    if not 0 <= begin <= end <= MAX_SIZE:
        raise Malformed(f"[{begin}, {end}) is not a range of leaves.")
    nodes: list[Node] = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        if begin:
            level = min(level, (begin & -begin).bit_length() - 1)
        nodes.append(Node(level, begin >> level))
        begin += 1 << level
    return nodes


def read_root(size: int, read: Reader) -> bytes:
    """The root of the first `size` leaves.

    Raises:
        Malformed: no tree has that size. What the reader raises.
    """
    return _read([(0, size)], read)[0] if _need_size(size) else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: Reader) -> list[bytes]:
    """The proof that a leaf is in the tree of `size` leaves, the leaf's sibling first (RFC 6962, 2.1.1).

    Raises:
        Malformed: the tree has no such leaf. What the reader raises.
    """
    if not 0 <= index < _need_size(size):
        raise Malformed(f"A tree of {size} leaves has no leaf {index}.")
    return _read(_inclusion_ranges(index, 0, size), read)


def consistency_proof(old: int, size: int, read: Reader) -> list[bytes]:
    """The proof that the first `old` of `size` leaves are the tree of that size (RFC 6962, 2.1.2).

    Empty for equal sizes, and from the empty tree, which every tree continues.

    Raises:
        Malformed: the old tree is larger, or a size is impossible. What the reader raises.
    """
    if not 0 <= old <= _need_size(size):
        raise Malformed(f"A tree of {size} leaves does not continue one of {old}.")
    if old in {0, size}:
        return []
    return _read(_consistency_ranges(old, size), read)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> None:
    """Check that a leaf hash is leaf `index` of the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).

    Raises:
        BadProof: it is not proved.
    """
    _need_hashes((expected,), 1)
    if inclusion_root(leaf, index, size, proof) != expected:
        raise BadProof(f"The inclusion proof of leaf {index} does not lead to the root of {size} leaves.")


def inclusion_root(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to, which somebody has to vouch for.

    Raises:
        BadProof: the proof cannot be one of that leaf in a tree of that size.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise BadProof(f"A tree of {size} leaves has no leaf {index}.")
    inner = (index ^ (size - 1)).bit_length()  # hashes up to where the paths of this leaf and the last one meet
    _need_hashes(proof, inner + (index >> inner).bit_count())
    _need_hashes((leaf,), 1)
    first, last, found = index, size - 1, leaf
    for sibling in proof:
        if first & 1 or first == last:
            found = node_hash(sibling, found)
            while not first & 1 and first:
                first >>= 1
                last >>= 1
        else:
            found = node_hash(found, sibling)
        first >>= 1
        last >>= 1
    if last != 0:
        raise BadProof(f"The inclusion proof of leaf {index} does not lead to a root of {size} leaves.")
    return found


def verify_consistency(old: int, size: int, proof: Sequence[bytes], old_root: bytes, expected: bytes) -> None:
    """Check that the tree of `size` leaves continues that of `old` leaves (RFC 9162, 2.1.4.2).

    Raises:
        BadProof: it is not proved, or `old` is 0: every tree continues the empty one, so there is nothing to prove.
    """
    if not 0 < old <= size <= MAX_SIZE:
        raise BadProof(f"That a tree of {size} leaves continues one of {old} cannot be proved.")
    _need_hashes(proof, _consistency_length(old, size))
    if old == size:
        if old_root != expected:
            raise BadProof(f"There are two roots of {size} leaves.")
        return
    _need_hashes((old_root, expected), 2)
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    first, last = old - 1, size - 1
    while first & 1:
        first >>= 1
        last >>= 1
    first_root = last_root = path[0]
    for sibling in path[1:]:
        if first & 1 or first == last:
            first_root = node_hash(sibling, first_root)
            last_root = node_hash(sibling, last_root)
            while not first & 1 and first:
                first >>= 1
                last >>= 1
        else:
            last_root = node_hash(last_root, sibling)
        first >>= 1
        last >>= 1
    if last != 0 or first_root != old_root or last_root != expected:
        raise BadProof(f"The consistency proof does not lead from {old} leaves to the root of {size}.")


def _inclusion_ranges(index: int, begin: int, end: int) -> list[tuple[int, int]]:
    """The subtrees beside the way from a leaf of [begin, end) to its root, the lowest first."""
    ranges: list[tuple[int, int]] = []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    ranges.reverse()
    return ranges


def _consistency_ranges(old: int, size: int) -> list[tuple[int, int]]:
    """SUBPROOF of RFC 6962, 2.1.2, as ranges: where the old tree ends, and what lies beside the way up from there."""
    ranges: list[tuple[int, int]] = []
    begin, end = 0, size
    while old < end:
        middle = begin + _split(end - begin)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    if begin:  # else it is the old tree itself, whose root the verifier has
        ranges.append((begin, end))
    ranges.reverse()
    return ranges


def _consistency_length(old: int, size: int) -> int:
    """How many hashes the proof has: an inclusion proof of the last leaf, less what lies below the old tree's edge."""
    if old == size:
        return 0
    edge = (old & -old).bit_length() - 1  # the level of the old tree's last perfect subtree
    inner = ((old - 1) ^ (size - 1)).bit_length() - edge
    return inner + ((old - 1) >> (inner + edge)).bit_count() + (old & (old - 1) != 0)


def _read(ranges: list[tuple[int, int]], read: Reader) -> list[bytes]:
    """The roots of ranges, each of which begins where a subtree of its size may begin."""
    parts = [nodes_of(begin, end) for begin, end in ranges]
    hashes = read([node for part in parts for node in part])
    _need_hashes(hashes, sum(len(part) for part in parts))
    roots, position = [], 0
    for part in parts:
        roots.append(_fold(hashes[position : position + len(part)]))
        position += len(part)
    return roots


def _fold(hashes: Sequence[bytes]) -> bytes:
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


def _split(width: int) -> int:
    """The largest power of two below the width (which is at least 2)."""
    return 1 << ((width - 1).bit_length() - 1)


def _need_size(size: int) -> int:
    if not 0 <= size <= MAX_SIZE:
        raise Malformed(f"A tree of {size} leaves is not possible.")
    return size


def _need_hashes(hashes: Sequence[bytes], count: int) -> None:
    if len(hashes) != count:
        raise BadProof(f"There are {len(hashes)} hashes where {count} belong.")
    if any(len(one) != HASH_BYTES for one in hashes):
        raise BadProof(f"A hash is not of {HASH_BYTES} bytes.")
