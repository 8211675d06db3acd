"""The Merkle tree and the checkpoints of the store: what they say of entries, and what they give away."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector import checkpoint, tree
from chaperone_collector.checkpoint import FILE, LogKeys
from chaperone_collector.errors import ChainBroken, StoreBusy, StoreUnusable
from chaperone_collector.metrics import Metrics
from chaperone_collector.schema import open_reader, open_writer
from chaperone_collector.store import Store
from chaperone_collector.stream import Extension, Stored, extend, unknown
from chaperone_collector.transaction import Transaction
from chaperone_evidence import merkle, tiles
from chaperone_evidence.policy import Policy, open_checkpoint

_AUTHORITY = Authority("gateway CA")
_POD = Pod(_AUTHORITY)
LIMIT_S = 20


async def add(store: Store, commands: int) -> None:
    """A stream of its own with that many commands."""
    stream = Stream(_POD)
    session = stream.open_session()
    for number in range(commands):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.head()
    entries = [frame[2:] for frame in stream.frames]
    extension = _extended(unknown(stream.id), entries)
    await store.write(lambda tx: tx.append(extension))


def _extended(stored: Stored, entries: list[bytes]) -> Extension:
    return extend(stored, entries, _POD.subject(), [_AUTHORITY.certificate])


def leaves(database: sqlite3.Connection) -> list[bytes]:
    return [merkle.leaf_hash(row[0]) for row in database.execute("SELECT bytes FROM entry ORDER BY idx")]


@pytest.mark.parametrize("commands", [1, 126, 127, 128, 1000])
async def test_a_checkpoint_signs_the_root_over_all_entries(tmp_path: Path, commands: int) -> None:
    store = Store(tmp_path, Metrics())
    await add(store, commands)
    await add(store, 1)
    assert await store.write(lambda tx: tx.sign(store._keys)) == store.size
    await add(store, 1)
    await store.close()
    database = open_reader(tmp_path / "evidence.db")
    size, note = database.execute("SELECT size, note FROM checkpoint").fetchone()
    origin = f"chaperone.dev/log/{_POD.subject().cluster}"
    keys = tuple(one.key for one in LogKeys(tmp_path, may_make=False).signers(origin))
    said = open_checkpoint(note, Policy(origin, keys, log_quorum=2)).checkpoint
    assert (said.size, said.root) == (size, merkle.root(leaves(database)[:size]))
    assert tree.read_root(database, store.size) == merkle.root(leaves(database))
    for place in tiles.new_tiles(0, store.size):
        if place.level == 0:
            held = tree.read_tile(database, place)
            assert held == b"".join(leaves(database)[place.index * 256 :][: place.width])


async def test_what_is_rolled_back_is_in_no_tree(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    await add(store, 200)

    def fails(tx: Transaction) -> None:
        tx._tree.append([b"never stored"] * 300)
        raise RuntimeError("a fault")

    with pytest.raises(StoreBusy):
        await store.write(fails)
    await store.close()
    again = Store(tmp_path, Metrics())
    await add(again, 200)
    await again.close()
    database = open_writer(tmp_path / "evidence.db")
    assert tree.Tree(database).root() == merkle.root(leaves(database))


async def test_a_job_that_fails_alone_leaves_the_tree_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    stream = Stream(_POD)
    stream.open_session()
    stream.close()
    entries = [frame[2:] for frame in stream.frames]
    begun = _extended(unknown(stream.id), entries[:2])
    stored = await store.write(lambda tx: tx.append(begun))
    rest = _extended(stored, entries[2:])
    await store.write(lambda tx: tx.append(rest))
    with pytest.raises(ChainBroken):  # the very same again
        await store.write(lambda tx: tx.append(rest))
    await store.close()
    database = open_writer(tmp_path / "evidence.db")
    assert tree.Tree(database).root() == merkle.root(leaves(database))


async def test_a_database_of_before_is_hashed_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, Metrics())
    await add(store, 1200)
    await store.close()
    database = open_writer(tmp_path / "evidence.db")
    expected = tree.Tree(database).root()
    database.execute("DELETE FROM tile")
    monkeypatch.setattr(tree, "BATCH_ENTRIES", 512)
    assert tree.build(database) == len(leaves(database)) // 256 * 256
    assert tree.Tree(database).root() == expected == merkle.root(leaves(database))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DELETE FROM entry WHERE idx = (SELECT max(idx) FROM entry)", "entries are missing"),
        (
            "UPDATE entry SET bytes = CAST(bytes || x'20' AS BLOB) WHERE idx = (SELECT max(idx) FROM entry)",
            "not those that it has signed",
        ),
        ("UPDATE entry SET bytes = 'text' || bytes WHERE idx = (SELECT max(idx) FROM entry)", "cannot be read"),
        ("UPDATE tile SET bytes = zeroblob(8192) WHERE level = 0 AND idx = 0", "not those that it has signed"),
        ("DELETE FROM entry WHERE idx = 600", "are missing"),
    ],
)
async def test_a_log_that_lost_or_changed_what_it_signed_is_not_gone_on_with(
    tmp_path: Path, change: str, told: str
) -> None:
    store = Store(tmp_path, Metrics())
    await add(store, 400)
    await store.write(lambda tx: tx.sign(store._keys))
    await store.close()
    database = sqlite3.connect(tmp_path / "evidence.db", isolation_level=None)
    database.execute(change)
    if "idx = 600" in change:  # as it would be found: in what is not in a full tile
        database.execute("DELETE FROM tile WHERE level = 0 AND idx = 2")
    database.close()
    with pytest.raises(StoreUnusable, match=told):
        Store(tmp_path, Metrics())


async def test_a_growing_log_is_signed_and_keys_are_the_owners_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    keeping = asyncio.create_task(store.keep_checkpoints())
    await add(store, 3)
    async with asyncio.timeout(LIMIT_S):
        while not await store.read(checkpoint.newest):  # noqa: ASYNC110 - another task's work
            await asyncio.sleep(0.05)
    keeping.cancel()
    assert await store.read(checkpoint.newest) == store.size
    await store.close()
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / FILE).unlink()
    with pytest.raises(StoreUnusable, match=r"log\.key is gone"):
        Store(tmp_path, Metrics())
