"""The log as files: tiles of hashes and bundles of entries (C2SP tlog-tiles).

A tile holds 256 hashes, the last of a level may hold fewer. The hashes of level 0 are leaves; a hash of level l+1 is
the root over a full tile of level l, so only every eighth level of the tree is stored, those between are hashed anew.
An entry bundle holds the entries of the level 0 tile with its index, each as uint16be length ‖ entry.

Hashes that `reader` takes from tiles are not authenticated: the proof made of them is, when it is verified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from chaperone_evidence import merkle
from chaperone_evidence.errors import Malformed
from chaperone_evidence.merkle import HASH_BYTES, MAX_SIZE, Node

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT
ENTRIES: Final = -1  # the "level" of entry bundles, as in golang.org/x/mod/sumdb/tlog
MAX_LEVEL: Final = 7  # a tile of level 8 would stand for 2^64 leaves
MAX_ENTRY_BYTES: Final = 65_535

_PATH: Final = re.compile(
    r"tile/(entries|0|[1-9][0-9]?)((?:/x[0-9]{3}){0,6}/[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?\Z", re.ASCII
)


class Tile(msgspec.Struct, frozen=True, gc=False):
    """Where a run of up to 256 hashes, or entries, is kept."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Its path below the log's prefix."""
        groups = f"{self.index % 1000:03d}"
        rest = self.index // 1000
        while rest:
            groups = f"x{rest % 1000:03d}/{groups}"
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{groups}" + (f".p/{self.width}" if self.width < WIDTH else "")


def parse_path(path: str) -> Tile:
    """Read a tile's path, in the one form it has.

    Raises:
        Malformed: it is no path of a tile or bundle that a log can have.
    """
    match = _PATH.match(path)
    if match is None:
        raise Malformed("The path is not that of a tile.")
    level = ENTRIES if match[1] == "entries" else int(match[1])
    index = int(match[2].replace("/", "").replace("x", ""))
    tile = Tile(level, index, int(match[3]) if match[3] else WIDTH)
    if width_at(level, index, MAX_SIZE) < tile.width or tile.path != path:
        raise Malformed("The path is not that of a tile.")
    return tile


def width_at(level: int, index: int, size: int) -> int:
    """How many hashes (or entries) a tile has in a log of `size` entries; 0 if it is not there."""
    return min(max((size >> (HEIGHT * _stored(level))) - (index << HEIGHT), 0), WIDTH)


def new_tiles(old: int, size: int) -> Iterator[Tile]:
    """The tiles and bundles of a log of `size` entries that one of `old` entries does not have, bundles first.

    Raises:
        Malformed: the log cannot have grown so.
    """
    if not 0 <= old <= size <= MAX_SIZE:
        raise Malformed(f"A log of {old} entries does not grow to {size}.")
    for level in range(ENTRIES, MAX_LEVEL + 1):
        shift = HEIGHT * _stored(level)
        first, count = (old >> shift) >> HEIGHT, size >> shift
        if count == old >> shift:
            continue
        for index in range(first, (count + WIDTH - 1) >> HEIGHT):
            yield Tile(level, index, width_at(level, index, size))


def right_edge(size: int) -> list[Tile]:
    """The tiles of hashes from which the root of `size` entries follows; what a new writer reads to go on."""
    return needed(merkle.nodes_of(0, size), size)


def needed(nodes: Iterable[Node], size: int) -> list[Tile]:
    """The tiles that hold these nodes in a log of `size` entries, each once, in order of level and index.

    Raises:
        Malformed: the log has no such node.
    """
    return sorted({_tile_of(node, size) for node in nodes}, key=lambda tile: (tile.level, tile.index))


def reader(size: int, read_tiles: Callable[[Sequence[Tile]], Sequence[bytes]]) -> merkle.Reader:
    """Nodes of a log of `size` entries, taken from its tiles.

    `read_tiles` gives the content of the tiles it is asked for, in order. A full tile may be given for a partial one:
    its first hashes are the same.

    The reader raises `Malformed` when a node is not in the log, or a tile is not whole.
    """

    def read(nodes: Sequence[Node]) -> list[bytes]:
        tiles = needed(nodes, size)
        found = dict(zip(tiles, read_tiles(tiles), strict=True))
        for tile, data in found.items():
            if len(data) not in {tile.width * HASH_BYTES, WIDTH * HASH_BYTES}:
                raise Malformed(f"{tile.path} has {len(data)} bytes.")
        return [_hash_in(node, found[_tile_of(node, size)]) for node in nodes]

    return read


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle.

    Raises:
        Malformed: too many entries, or one that is too long.
    """
    if len(entries) > WIDTH:
        raise Malformed(f"A bundle of {len(entries)} entries is not possible.")
    parts: list[bytes] = []
    for one in entries:
        if len(one) > MAX_ENTRY_BYTES:
            raise Malformed(f"An entry of {len(one)} bytes does not fit into a bundle.")
        parts += (len(one).to_bytes(2, "big"), one)
    return b"".join(parts)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """The first `width` entries of a bundle, which may be of a larger log and hold more.

    Raises:
        Malformed: it holds fewer, or more than 256, or ends in the middle of one.
    """
    entries: list[bytes] = []
    position, size = 0, len(data)
    while position < size:
        end = position + 2 + int.from_bytes(data[position : position + 2], "big")
        if end > size or position + 2 > size or len(entries) == WIDTH:
            raise Malformed("The bundle is cut or holds too many entries.")
        entries.append(data[position + 2 : end])
        position = end
    if len(entries) < width:
        raise Malformed(f"The bundle holds {len(entries)} entries where {width} belong.")
    return entries[:width]


class TileBuilder:
    """The unfinished tiles of a growing log: at most 255 hashes a level.

    Args:
        size: entries in the log so far.
        read_tiles: gives the content of tiles (see `reader`); needed where the log is not empty.

    Raises:
        Malformed: a tile is not whole. What `read_tiles` raises.
    """

    def __init__(self, size: int = 0, read_tiles: Callable[[Sequence[Tile]], Sequence[bytes]] | None = None) -> None:
        self.size = size
        self._levels = [bytearray() for _ in range(MAX_LEVEL + 1)]
        partial = [Tile(level, index, width) for level, index, width in _partials(size)]
        if partial and read_tiles is None:
            raise Malformed("A log that is not empty is continued from its tiles.")
        if read_tiles is not None:
            for tile, data in zip(partial, read_tiles(partial), strict=True):
                if len(data) not in {tile.width * HASH_BYTES, WIDTH * HASH_BYTES}:
                    raise Malformed(f"{tile.path} has {len(data)} bytes.")
                self._levels[tile.level] += data[: tile.width * HASH_BYTES]

    def append(self, leaf: bytes) -> list[tuple[Tile, bytes]]:
        """Add a leaf hash; gives the tiles that it fills, the lowest first.

        Raises:
            Malformed: the log is full.
        """
        if self.size >= MAX_SIZE:
            raise Malformed("The log has as many entries as it may have.")
        self.size += 1
        full: list[tuple[Tile, bytes]] = []
        for level, held in enumerate(self._levels):
            held.extend(leaf)
            if len(held) < WIDTH * HASH_BYTES:
                break
            data = bytes(held)
            held.clear()
            full.append((Tile(level, (self.size >> (HEIGHT * (level + 1))) - 1), data))
            leaf = _subtree(data)
        return full

    def partial(self) -> list[tuple[Tile, bytes]]:
        """The tiles that are not full, the lowest level first."""
        return [(Tile(*place), bytes(self._levels[place[0]])) for place in _partials(self.size)]


def _partials(size: int) -> Iterator[tuple[int, int, int]]:
    """Level, index and width of the tiles that a log of that size has begun and not filled."""
    for level in range(MAX_LEVEL + 1):
        count = size >> (HEIGHT * level)
        if count % WIDTH:
            yield level, count >> HEIGHT, count % WIDTH


def _tile_of(node: Node, size: int) -> Tile:
    if node.index < 0 or not 0 <= node.level < 63 or (node.index + 1) << node.level > min(size, MAX_SIZE):
        raise Malformed(f"A log of {size} entries has no node {node.index} of level {node.level}.")
    level, inside = divmod(node.level, HEIGHT)
    index = node.index >> (HEIGHT - inside)
    return Tile(level, index, width_at(level, index, size))


def _hash_in(node: Node, data: bytes) -> bytes:
    inside = node.level % HEIGHT
    begin = ((node.index << inside) % WIDTH) * HASH_BYTES
    return _subtree(data[begin : begin + (HASH_BYTES << inside)])


def _subtree(data: bytes) -> bytes:
    """The root over the hashes in `data`, whose number is a power of two."""
    row = [data[position : position + HASH_BYTES] for position in range(0, len(data), HASH_BYTES)]
    while len(row) > 1:
        row = [merkle.node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=True)]
    return row[0]


def _stored(level: int) -> int:
    """The level of hashes that a tile goes with: bundles go with level 0."""
    return max(level, 0)
