"""The log against implementations that are not ours, in both directions.

Go's checksum database (golang.org/x/mod/sumdb: tlog, note), Tessera's fsck and the formats of transparency-dev read
what we write: they re-derive every tile from the entries, check every signature, and make the same proofs from our
tiles. What they write, we read. The program is in go/.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from chaperone_evidence import merkle, note, receipt, tiles
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.cosignature import ED25519, ED25519_COSIGNATURE, MLDSA44, CheckpointSigner, Key, sign_checkpoint
from chaperone_evidence.errors import BadSignature
from chaperone_evidence.policy import Policy, open_checkpoint
from chaperone_evidence.proof import LogProof, parse_proof
from chaperone_evidence.tiles import ENTRIES, Tile
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]  # the first test builds the program

ORIGIN = "chaperone.dev/log/3f1c2a"
TIME_S = 1_763_940_000
SEEDS = {ORIGIN: b"l" * 32, "witness.example/w1": b"w" * 32}


def private_keys(seed: bytes) -> tuple[Ed25519PrivateKey, MLDSA44PrivateKey]:
    return Ed25519PrivateKey.from_private_bytes(seed), MLDSA44PrivateKey.from_seed_bytes(seed)


LOG, LOG_PQ, WITNESS, WITNESS_PQ = SIGNERS = (
    CheckpointSigner(ORIGIN, private_keys(SEEDS[ORIGIN])[0], ED25519),
    CheckpointSigner(ORIGIN, private_keys(SEEDS[ORIGIN])[1], MLDSA44),
    CheckpointSigner("witness.example/w1", private_keys(SEEDS["witness.example/w1"])[0], ED25519_COSIGNATURE),
    CheckpointSigner("witness.example/w1", private_keys(SEEDS["witness.example/w1"])[1], MLDSA44),
)
POLICY = Policy(ORIGIN, (LOG.key, LOG_PQ.key), 2, (WITNESS.key, WITNESS_PQ.key), 1)


def write_log(directory: Path, entries: Sequence[bytes]) -> tuple[merkle.Reader, Checkpoint]:
    """What the collector serves below the log's prefix; a reader of its tiles, and its checkpoint."""

    def save(tile: Tile, data: bytes) -> None:
        path = directory / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    builder, tree = tiles.TileBuilder(), merkle.CompactRange()
    for one in entries:
        leaf = merkle.leaf_hash(one)
        tree.append(leaf)
        for tile, data in builder.append(leaf):
            save(tile, data)
    for tile, data in builder.partial():
        save(tile, data)
    for tile in tiles.new_tiles(0, tree.size):
        if tile.level == ENTRIES:
            first = tile.index * tiles.WIDTH
            save(tile, tiles.encode_bundle(entries[first : first + tile.width]))
    point = Checkpoint(ORIGIN, tree.size, tree.root())
    (directory / "checkpoint").write_bytes(sign_checkpoint(point, SIGNERS, TIME_S))
    return reader(directory, tree.size), point


def reader(directory: Path, size: int) -> merkle.Reader:
    return tiles.reader(size, lambda wanted: [(directory / tile.path).read_bytes() for tile in wanted])


def check(interop: Path, directory: Path, indexes: Sequence[int], olds: Sequence[int]) -> dict[str, Any]:
    keys = [one.key.vkey for one in SIGNERS]
    numbers = [",".join(map(str, some)) for some in (indexes, olds)]
    return json.loads(run(interop, "check", directory, *numbers, *keys))


def entries(count: int) -> list[bytes]:
    """Entries of many lengths, the shortest and the longest that a bundle can hold among them."""
    return [b"%d" % number * (number % 90) for number in range(count - 1)] + [bytes(65_535)]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600, 65_537])
def test_others_read_our_log_and_make_the_same_proofs(interop: Path, tmp_path: Path, size: int) -> None:
    read, point = write_log(tmp_path, entries(size))
    indexes = sorted({0, size // 3, size // 2, max(size - 2, 0), size - 1})
    olds = sorted({1, (size + 1) // 2, max(size - 1, 1), size})
    for index in indexes:
        hashes = tuple(merkle.inclusion_proof(index, size, read))
        proof = LogProof(index, hashes, (tmp_path / "checkpoint").read_bytes(), b"extra" * (index % 2))
        (tmp_path / f"{index}.tlog-proof").write_bytes(proof.encode())
    found = check(interop, tmp_path, indexes, olds)
    assert (found["Size"], base64.b64decode(found["Root"])) == (size, point.root)
    assert found["Keys"] == [f"{one.key.name}+{one.key.id.hex()}" for one in SIGNERS]
    assert sorted(found["Proofs"]) == sorted(f"{index}.tlog-proof" for index in indexes)
    assert decoded(found["Inclusion"]) == [merkle.inclusion_proof(index, size, read) for index in indexes]
    assert decoded(found["Consistency"]) == [merkle.consistency_proof(old, size, read) for old in olds]


def decoded(proofs: list[list[str] | None]) -> list[list[bytes]]:
    return [[base64.b64decode(one) for one in proof or []] for proof in proofs]


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "checkpoint"])
def test_others_find_a_changed_byte_in_our_log(interop: Path, tmp_path: Path, name: str) -> None:
    write_log(tmp_path, entries(300))
    check(interop, tmp_path, [0], [1])
    data = bytearray((tmp_path / name).read_bytes())
    data[12] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ToolsError):
        check(interop, tmp_path, [0], [1])


@pytest.mark.parametrize("place", range(4))
def test_others_find_a_changed_signature_of_each_kind(interop: Path, tmp_path: Path, place: int) -> None:
    _, point = write_log(tmp_path, entries(3))
    parts = note.parse((tmp_path / "checkpoint").read_bytes())
    data = parts.signatures[place].data
    bad = note.Signature(parts.signatures[place].name, parts.signatures[place].id, data[:-20] + bytes(20))
    lines = [one.line for one in parts.signatures]
    lines[place] = bad.line
    (tmp_path / "checkpoint").write_text(f"{point.body}\n{''.join(lines)}")
    with pytest.raises(ToolsError):
        check(interop, tmp_path, [0], [1])
    with pytest.raises(BadSignature):
        open_checkpoint((tmp_path / "checkpoint").read_bytes(), POLICY)


def skey(key: Key) -> str:
    """A private key as Go's note package and that of transparency-dev write it: kind ‖ seed."""
    secret = base64.b64encode(bytes((key.kind,)) + SEEDS[key.name]).decode()
    return f"PRIVATE+KEY+{key.name}+{key.id.hex()}+{secret}"


@pytest.mark.parametrize("size", [1, 256, 300, 66_000])
def test_we_read_the_log_of_others(interop: Path, tmp_path: Path, size: int) -> None:
    written = json.loads(run(interop, "write", tmp_path, str(size), *(skey(one.key) for one in SIGNERS)))
    opened = open_checkpoint((tmp_path / "checkpoint").read_bytes(), POLICY)
    assert [one.key for one in opened.signatures] == [one.key for one in SIGNERS]
    assert all(one.time_s for one in opened.signatures[1:])
    point = opened.checkpoint
    assert (point.size, point.root) == (size, base64.b64decode(written["Root"]))

    files = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "tile").rglob("*") if path.is_file()}
    assert files == {tile.path for tile in tiles.new_tiles(0, size)}
    assert {tiles.parse_path(path) for path in files} == set(tiles.new_tiles(0, size))
    builder, tree = tiles.TileBuilder(), merkle.CompactRange()
    for tile in tiles.new_tiles(0, size):
        if tile.level == ENTRIES:
            for one in tiles.decode_bundle((tmp_path / tile.path).read_bytes(), tile.width):
                assert one == b"entry %d" % tree.size
                tree.append(merkle.leaf_hash(one))
                for full, data in builder.append(merkle.leaf_hash(one)):
                    assert (tmp_path / full.path).read_bytes() == data
    assert all((tmp_path / tile.path).read_bytes() == data for tile, data in builder.partial())
    assert tree.root() == point.root == merkle.read_root(size, reader(tmp_path, size))

    proof = parse_proof((tmp_path / "write.tlog-proof").read_bytes())
    assert (proof.index, proof.extra) == (size // 2, b"extra")
    assert proof.verify(merkle.leaf_hash(b"entry %d" % proof.index), POLICY) == opened


TESSERA = Path(__file__).parent.parent / "evidence" / "data" / "tessera"
TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"


def test_the_published_log_of_tessera_grows_from_checkpoint_to_checkpoint(interop: Path, tmp_path: Path) -> None:
    key = Key(*note.split_vkey(TESSERA_KEY))
    terms = Policy(key.name, (key,))
    points = [open_checkpoint((TESSERA / f"checkpoint.{size}").read_bytes(), terms).checkpoint for size in range(1, 16)]
    bundle = tiles.decode_bundle((TESSERA / "tile/entries/000.p/15").read_bytes(), 15)
    read = reader(TESSERA, 15)
    for point in points:
        assert point.root == merkle.root(map(merkle.leaf_hash, bundle[: point.size]))
        proof = merkle.consistency_proof(point.size, 15, read)
        merkle.verify_consistency(point.size, 15, proof, point.root, points[-1].root)
        proof = merkle.inclusion_proof(point.size - 1, 15, read)
        merkle.verify_inclusion(merkle.leaf_hash(bundle[point.size - 1]), point.size - 1, 15, proof, points[-1].root)
    shutil.copytree(TESSERA / "tile", tmp_path / "tile")
    shutil.copy(TESSERA / "checkpoint.15", tmp_path / "checkpoint")
    found = json.loads(run(interop, "check", tmp_path, "7", "3", TESSERA_KEY))
    assert decoded(found["Inclusion"]) == [merkle.inclusion_proof(7, 15, read)]


def test_go_cose_reads_our_receipts(interop: Path, tmp_path: Path) -> None:
    entries = [b"entry %d" % number for number in range(300)]
    read, point = write_log(tmp_path, entries)
    key = private_keys(SEEDS[ORIGIN])[0]
    for index in (0, 17, 255, 299):
        path = tuple(merkle.inclusion_proof(index, point.size, read))
        made = receipt.make(index, point.size, path, point.root, LOG.key.id, key.sign)
        (tmp_path / "receipt.cose").write_bytes(made.encode())
        said = json.loads(run(interop, "cose", tmp_path / "receipt.cose", LOG.key.vkey, point.root.hex()))
        assert (said["Size"], said["Index"]) == (point.size, index)
        assert tuple(base64.b64decode(one) for one in said["Path"]) == path
        receipt.parse(made.encode()).verify(merkle.leaf_hash(entries[index]), POLICY)
    with pytest.raises(ToolsError):
        run(interop, "cose", tmp_path / "receipt.cose", LOG.key.vkey, bytes(32).hex())
