"""The Merkle tree over the table `entry`: leaf n is entry n (RFC 6962), stored as the full tiles of C2SP tlog-tiles.

Full tiles are stored in the transaction that stores the entries that fill them. What is not full follows from entries
and full tiles, so it is kept in memory by the writer, and worked out by whoever reads. Runs in the writer's thread,
but for `read_tile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from chaperone_collector.database import Connection, begin
from chaperone_collector.errors import StoreUnusable
from chaperone_evidence import merkle, tiles
from chaperone_evidence.merkle import HASH_BYTES
from chaperone_evidence.tiles import WIDTH, Tile, TileBuilder

BATCH_ENTRIES: Final = 100 * WIDTH  # hashed in one transaction when a database of before the tree is opened


class Tree:
    """The growing end of the tree.

    Args:
        connection: of the writer; `build` has been done.

    Raises:
        StoreUnusable: entries are missing.
    """

    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._builder = _begun(connection)
        self.append(_entries(connection, self._builder.size, WIDTH))

    @property
    def size(self) -> int:
        """Entries in the tree."""
        return self._builder.size

    def append(self, entries: Iterable[bytes]) -> None:
        """Add entries, and store the tiles that they fill; in a transaction, unless they fill none."""
        _add(self._db, self._builder, entries)

    def follow(self) -> None:
        """Add the entries that other collectors stored, and with them the tiles that they fill."""
        while found := _entries(self._db, self._builder.size, BATCH_ENTRIES):
            for data in found:
                self._builder.append(merkle.leaf_hash(data))

    def root(self) -> bytes:
        """The root over all entries; its nodes are all in tiles that are not full."""
        edge = {(tile.level, tile.index): hashes for tile, hashes in self._builder.partial()}

        def read(wanted: Sequence[Tile]) -> list[bytes]:
            return [edge[tile.level, tile.index] for tile in wanted]

        return merkle.read_root(self.size, tiles.reader(self.size, read))


def build(connection: Connection) -> int:
    """Store the full tiles of entries that were stored before there was a tree; returns how many entries that were.

    Raises:
        StoreUnusable: entries are missing.
    """
    began = _hashed(connection)
    while True:
        begin(connection)
        builder = _begun(connection)
        found = _entries(connection, builder.size, BATCH_ENTRIES)
        _add(connection, builder, found[: len(found) // WIDTH * WIDTH])
        connection.execute("COMMIT")
        if len(found) < BATCH_ENTRIES:
            return _hashed(connection) - began


def read_tile(connection: Connection, tile: Tile) -> bytes:
    """The hashes of a tile of the log; for one that is not full, of as many as it names.

    Raises:
        StoreUnusable: entries or tiles are missing that it follows from.
    """
    row = connection.execute("SELECT bytes FROM tile WHERE level = ? AND idx = ?", (tile.level, tile.index)).fetchone()
    if row is not None:
        return bytes(row[0])[: tile.width * HASH_BYTES]
    first = tile.index * WIDTH
    if tile.level == 0:
        hashes = [merkle.leaf_hash(data) for data in _entries(connection, first, tile.width)]
    else:
        below = (read_tile(connection, Tile(tile.level - 1, first + number)) for number in range(tile.width))
        hashes = [merkle.root(one[at : at + HASH_BYTES] for at in range(0, len(one), HASH_BYTES)) for one in below]
    if len(hashes) != tile.width:
        raise StoreUnusable(f"The log has no whole {tile.path}; restore the database from a backup.")
    return b"".join(hashes)


def read_bundle(connection: Connection, tile: Tile) -> bytes:
    """The entries of an entry bundle of the log.

    Raises:
        StoreUnusable: entries are missing.
    """
    found = _entries(connection, tile.index * WIDTH, tile.width)
    if len(found) != tile.width:
        raise StoreUnusable(f"The log has no whole {tile.path}; restore the database from a backup.")
    return tiles.encode_bundle(found)


def read_proof(connection: Connection, index: int, size: int) -> list[bytes]:
    """The proof that entry `index` is among the first `size`.

    Raises:
        StoreUnusable: entries or tiles are missing.
    """
    return merkle.inclusion_proof(index, size, _reader(connection, size))


def read_growth(connection: Connection, old: int, size: int) -> list[bytes]:
    """The proof that the log of `size` entries grew out of that of `old`.

    Raises:
        StoreUnusable: entries or tiles are missing.
    """
    return merkle.consistency_proof(old, size, _reader(connection, size))


def read_root(connection: Connection, size: int) -> bytes:
    """The root over the first `size` entries, from what is stored.

    Raises:
        StoreUnusable: entries or tiles are missing.
    """
    return merkle.read_root(size, _reader(connection, size))


def _reader(connection: Connection, size: int) -> merkle.Reader:
    return tiles.reader(size, lambda wanted: [read_tile(connection, one) for one in wanted])


def _begun(connection: Connection) -> TileBuilder:
    """What goes on from the last full tile of leaves."""
    return TileBuilder(_hashed(connection), lambda wanted: [read_tile(connection, one) for one in wanted])


def _add(connection: Connection, builder: TileBuilder, entries: Iterable[bytes]) -> None:
    """Hash entries, and store the tiles that they fill."""
    for data in entries:
        for tile, hashes in builder.append(merkle.leaf_hash(data)):
            connection.execute("INSERT INTO tile (level, idx, bytes) VALUES (?,?,?)", (tile.level, tile.index, hashes))


def _hashed(connection: Connection) -> int:
    """Entries whose hashes are in full tiles."""
    return WIDTH * int(connection.execute("SELECT coalesce(max(idx) + 1, 0) FROM tile WHERE level = 0").fetchone()[0])


def _entries(connection: Connection, first: int, most: int) -> list[bytes]:
    """Entries from `first` on, which have to follow each other.

    Raises:
        StoreUnusable: they do not.
    """
    rows = connection.execute(
        "SELECT idx, bytes FROM entry WHERE idx >= ? ORDER BY idx LIMIT ?", (first, most)
    ).fetchall()
    if any(idx != first + number for number, (idx, _) in enumerate(rows)):
        raise StoreUnusable(f"Entries behind {first} are missing; restore the database from a backup.")
    return [bytes(data) for _, data in rows]
