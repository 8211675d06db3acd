"""The log as files: where a hash is kept, which files a proof needs, and what is no file of a log."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_evidence import merkle, tiles
from chaperone_evidence.errors import Malformed
from chaperone_evidence.merkle import CompactRange, Node
from chaperone_evidence.tiles import ENTRIES, Tile

SIZE = 66_000  # a second tile of level 1 has begun, and one of level 2
LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(SIZE)]


class Files:
    """The tiles of a growing log, as a directory would keep them."""

    def __init__(self) -> None:
        self.builder = tiles.TileBuilder()
        self.full: dict[tuple[int, int], bytes] = {}
        self.asked: list[Tile] = []

    def grow(self, leaves: Sequence[bytes]) -> None:
        for leaf in leaves:
            for tile, data in self.builder.append(leaf):
                assert (tile.level, tile.index) not in self.full
                self.full[tile.level, tile.index] = data

    def read(self, wanted: Sequence[Tile]) -> list[bytes]:
        self.asked = list(wanted)
        partial = {(tile.level, tile.index): data for tile, data in self.builder.partial()}
        found = [self.full.get((tile.level, tile.index)) or partial[tile.level, tile.index] for tile in wanted]
        return [
            data if len(data) == 8192 else data[: tile.width * 32] for tile, data in zip(wanted, found, strict=True)
        ]


FILES = Files()
FILES.grow(LEAVES)
RANGES = {}
_range = CompactRange()
for _number, _leaf in enumerate(LEAVES):
    RANGES[_number] = _range.root()
    _range.append(_leaf)
RANGES[SIZE] = _range.root()

SIZES = st.integers(1, SIZE) | st.sampled_from([1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, SIZE])


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        # C2SP tlog-tiles; golang.org/x/mod/sumdb/tlog TestParseTilePath, where a height of 8 stands before the level
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
        (Tile(4, 0, 1), "tile/4/000.p/1"),
        (Tile(3, 123_456_078), "tile/3/x123/x456/078"),
        (Tile(3, 123_456_078, 2), "tile/3/x123/x456/078.p/2"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(0, 1000, 255), "tile/0/x001/000.p/255"),
        (Tile(ENTRIES, 1_234_067, 17), "tile/entries/x001/x234/067.p/17"),
        (Tile(0, (2**63 - 1) // 256 - 1), "tile/0/x036/x028/x797/x018/x963/966"),
        (Tile(7, 0, 127), "tile/7/000.p/127"),
    ],
)
def test_a_tile_has_the_published_path(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert tiles.parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "", "tile", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/x000/000", "tile/0/000/001",
        "tile/0/x001/x000", "tile/00/000", "tile/01/000", "tile/8/000", "tile/63/000", "tile/64/000", "tile/-1/000",
        "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/999", "tile/0/000.p", "tile/0/000.p/",
        "/tile/0/000", "tile/0/000/", "tile/0/000\n", "tile/0/000.P/1", "tile/0/X001/000", "tile/0/٠٠٠",
        "tile/data/000", "tile/7/001", "tile/7/000", "tile/7/000.p/128", "tile/0/x036/x028/x797/x018/x963/968",
        "tile/0/" + "x999/" * 6 + "999", "tile/0/" + "x999/" * 500 + "999", "tile/0/../../etc/passwd",
    ],
)  # fmt: skip
def test_a_path_in_another_form_is_refused(path: str) -> None:
    with pytest.raises(Malformed):
        tiles.parse_path(path)


@given(st.integers(-1, 7), st.integers(0, 2**55), st.integers(1, 256))
def test_a_path_is_read_as_written_or_belongs_to_no_log(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    if tiles.width_at(level, index, merkle.MAX_SIZE) >= width:
        assert tiles.parse_path(tile.path) == tile
    else:
        with pytest.raises(Malformed):
            tiles.parse_path(tile.path)


@given(st.text(alphabet="tile/0123x.p\nentries", max_size=40))
def test_any_text_is_a_path_or_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        assert tiles.parse_path(text).path == text


@pytest.mark.parametrize(
    ("size", "level", "full", "width"),
    [(70_000, 0, 273, 112), (70_000, 1, 1, 17), (70_000, 2, 0, 1), (256, 0, 1, 0), (256, 1, 0, 1)],  # from C2SP
)
def test_a_level_has_the_published_tiles(size: int, level: int, full: int, width: int) -> None:
    found = [tile for tile in tiles.new_tiles(0, size) if tile.level == level]
    assert [tile for tile in found if tile.width == 256] == [Tile(level, index) for index in range(full)]
    assert [tile for tile in found if tile.width < 256] == ([Tile(level, full, width)] if width else [])


@settings(deadline=None)
@given(SIZES)
def test_a_builder_holds_what_the_definition_says(size: int) -> None:
    """The tile of level l has MTH(D[(256n+i)·256^l : (256n+i+1)·256^l])."""
    for level in range(3):
        width = 256**level
        if size // width == 0:
            continue
        last = size // width - 1
        expected = merkle.root(LEAVES[last * width : (last + 1) * width])
        (data,) = FILES.read([Tile(level, last // 256, last % 256 + 1)])
        assert data[(last % 256) * 32 : (last % 256 + 1) * 32] == expected


@given(SIZES, st.data())
def test_a_proof_made_of_tiles_verifies(size: int, data: st.DataObject) -> None:
    read = tiles.reader(size, FILES.read)
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, read)
    merkle.verify_inclusion(LEAVES[index], index, size, proof, RANGES[size])
    assert all(1 <= tile.width == tiles.width_at(tile.level, tile.index, size) for tile in FILES.asked)
    assert len(FILES.asked) <= 6  # two a level: the leaf's and the last
    old = data.draw(st.integers(1, size))
    merkle.verify_consistency(old, size, merkle.consistency_proof(old, size, read), RANGES[old], RANGES[size])
    assert merkle.read_root(size, read) == RANGES[size]
    assert FILES.asked == tiles.right_edge(size)


@given(SIZES, st.integers(0, 600))
def test_a_builder_goes_on_from_the_tiles_of_a_log(size: int, more: int) -> None:
    resumed = Files()
    resumed.builder = tiles.TileBuilder(size, FILES.read)
    resumed.grow(LEAVES[size : size + more])
    assert all(FILES.full[place] == data for place, data in resumed.full.items())
    for tile, data in resumed.builder.partial():
        assert FILES.read([tile])[0][: len(data)] == data


@given(SIZES, SIZES)
def test_what_is_new_is_what_was_not_there(one: int, other: int) -> None:
    old, size = sorted((one, other))
    before, after = set(tiles.new_tiles(0, old)), set(tiles.new_tiles(0, size))
    assert list(tiles.new_tiles(old, size)) == sorted(after - before, key=lambda tile: (tile.level, tile.index))
    assert {tile for tile, _ in tiles.TileBuilder(size, FILES.read).partial()} == {
        tile for tile in after if tile.width < 256 and tile.level != ENTRIES
    }


@given(st.integers(0, 62), st.integers(0, 2**63), st.integers(0, merkle.MAX_SIZE))
def test_a_node_is_in_one_tile_or_not_in_the_log(level: int, index: int, size: int) -> None:
    node = Node(level, index)
    if (index + 1) << level > size:
        with pytest.raises(Malformed):
            tiles.needed([node], size)
    else:
        (tile,) = tiles.needed([node], size)
        begin = (tile.index << 8) << (8 * tile.level)
        assert begin <= index << level < (index + 1) << level <= begin + (tile.width << (8 * tile.level))
        assert tiles.parse_path(tile.path) == tile


@pytest.mark.parametrize("node", [Node(-1, 0), Node(0, -1), Node(63, 0), Node(100, 0)])
def test_what_no_tree_has_is_in_no_tile(node: Node) -> None:
    with pytest.raises(Malformed):
        tiles.needed([node], merkle.MAX_SIZE)


@pytest.mark.parametrize(("old", "size"), [(-1, 0), (2, 1), (0, 2**63)])
def test_a_log_does_not_shrink_nor_outgrow_its_sizes(old: int, size: int) -> None:
    with pytest.raises(Malformed):
        list(tiles.new_tiles(old, size))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_tile_that_is_not_whole_is_refused(change: object) -> None:
    assert callable(change)

    def read(wanted: Sequence[Tile]) -> list[bytes]:
        return [change(data) for data in FILES.read(wanted)]

    with pytest.raises(Malformed):
        merkle.read_root(300, tiles.reader(300, read))
    with pytest.raises(Malformed):
        tiles.TileBuilder(300, read)
    with pytest.raises(Malformed):
        tiles.TileBuilder(300)


def test_a_changed_tile_makes_no_proof() -> None:
    def read(wanted: Sequence[Tile]) -> list[bytes]:
        return [bytes(32) + data[32:] for data in FILES.read(wanted)]

    proof = merkle.inclusion_proof(1, 300, tiles.reader(300, read))
    with pytest.raises(merkle.BadProof):
        merkle.verify_inclusion(LEAVES[1], 1, 300, proof, RANGES[300])


@given(st.lists(st.binary(max_size=300), max_size=256), st.integers(0, 256))
def test_a_bundle_is_read_as_written(entries: list[bytes], width: int) -> None:
    data = tiles.encode_bundle(entries)
    if width <= len(entries):
        assert tiles.decode_bundle(data, width) == entries[:width]
    else:
        with pytest.raises(Malformed):
            tiles.decode_bundle(data, width)
    for cut in {1, len(data) // 2} & set(range(1, len(data))):
        with pytest.raises(Malformed):
            tiles.decode_bundle(data[:-cut], len(entries))


@given(st.binary(max_size=400), st.integers(0, 256))
def test_any_bytes_are_a_bundle_or_malformed(data: bytes, width: int) -> None:
    try:
        found = tiles.decode_bundle(data, width)
    except Malformed:
        return
    assert len(found) == width
    assert data.startswith(tiles.encode_bundle(found))


def test_a_bundle_has_no_entry_of_more_than_65535_bytes_and_no_257th() -> None:
    longest = bytes(65_535)
    assert tiles.decode_bundle(tiles.encode_bundle([longest]), 1) == [longest]
    for entries in ([longest + b"x"], [b""] * 257):
        with pytest.raises(Malformed):
            tiles.encode_bundle(entries)
    with pytest.raises(Malformed):
        tiles.decode_bundle(bytes(2 * 257), 256)
