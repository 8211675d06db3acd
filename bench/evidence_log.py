"""The log on one core: leaves appended, proofs verified, records verified by chain and tree, signatures.

    uv run python bench/evidence_log.py [--records 100000] [--rounds 5]

Times are CPU times. `verify_records_per_second` is what an auditor does for each record of a log: take it out of its
bundle, recompute its link, its leaf and the tree; the tree's root is compared at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from chaperone_evidence import chain, merkle, note, tiles
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.cosignature import ED25519, ED25519_COSIGNATURE, MLDSA44, CheckpointSigner
from chaperone_evidence.record import CommandOutcome

PROOFS = 2000
SIGNATURES = 200
STREAM = "0" * 26


def entries(count: int) -> list[bytes]:
    """The chained records of one stream."""
    grown = chain.Chain("c", STREAM)
    return [
        grown.append_record(
            CommandOutcome(
                seq=seq, wall_us=1_763_940_000_000_000 + seq, mono_us=seq, session=STREAM, command=STREAM,
                ref=max(seq - 1, 0), status="ok", rows=3, bytes=300, duration_us=1500,
            )
        )[2:]
        for seq in range(count)
    ]  # fmt: skip


def measure(made: list[bytes], bundles: list[bytes]) -> dict[str, float]:
    """One round."""
    began = time.process_time()
    tree = merkle.CompactRange()
    for one in made:
        tree.append(merkle.leaf_hash(one))
    appended = time.process_time() - began

    began = time.process_time()
    builder = tiles.TileBuilder()
    kept: dict[tiles.Tile, bytes] = {}
    for one in made:
        kept.update(builder.append(merkle.leaf_hash(one)))
    tiled = time.process_time() - began
    kept.update(builder.partial())

    read = tiles.reader(tree.size, lambda wanted: [kept[tile] for tile in wanted])
    indexes = range(0, tree.size, max(tree.size // PROOFS, 1))
    began = time.process_time()
    proofs = [merkle.inclusion_proof(index, tree.size, read) for index in indexes]
    proved = time.process_time() - began
    root = tree.root()
    began = time.process_time()
    for index, proof in zip(indexes, proofs, strict=True):
        merkle.verify_inclusion(merkle.leaf_hash(made[index]), index, tree.size, proof, root)
    verified = time.process_time() - began

    began = time.process_time()
    link, again = chain.first_link(STREAM), merkle.CompactRange()
    for place, bundle in enumerate(bundles):
        for data in tiles.decode_bundle(bundle, min(tree.size - place * tiles.WIDTH, tiles.WIDTH)):
            assert chain.follows(link, data)
            link = data[2:34]
            again.append(merkle.leaf_hash(data))
    assert again.root() == root
    judged = time.process_time() - began
    return {
        "append_leaves_per_second": len(made) / appended,
        "append_with_tiles_per_second": len(made) / tiled,
        "inclusion_proofs_made_per_second": len(proofs) / proved,
        "inclusion_proofs_verified_per_second": len(proofs) / verified,
        "verify_records_per_second": len(made) / judged,
    } | signatures(Checkpoint("chaperone.dev/log/c", tree.size, root))


def signatures(point: Checkpoint) -> dict[str, float]:
    """Microseconds that each kind of key takes for a checkpoint."""
    found: dict[str, float] = {}
    for name, private, kind in (
        ("ed25519", Ed25519PrivateKey.generate(), ED25519),
        ("ed25519_cosignature", Ed25519PrivateKey.generate(), ED25519_COSIGNATURE),
        ("mldsa44", MLDSA44PrivateKey.generate(), MLDSA44),
    ):
        signer = CheckpointSigner("example.com/log", private, kind)
        began = time.process_time()
        for time_s in range(SIGNATURES):
            line = signer.sign(point, time_s)
        found[f"{name}_sign_us"] = (time.process_time() - began) / SIGNATURES * 1e6
        (made,) = note.parse_lines(line)
        began = time.process_time()
        for _ in range(SIGNATURES):
            signer.key.verify(point, made.data)
        found[f"{name}_verify_us"] = (time.process_time() - began) / SIGNATURES * 1e6
    return found


def main() -> None:
    """Print the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    made = entries(arguments.records)
    bundles = [tiles.encode_bundle(made[first : first + tiles.WIDTH]) for first in range(0, len(made), tiles.WIDTH)]
    rounds = [measure(made, bundles) for _ in range(arguments.rounds)]
    medians = {key: round(statistics.median(one[key] for one in rounds)) for key in rounds[0]}
    size = sum(map(len, made)) / len(made)
    print(json.dumps({"records": len(made), "record_bytes": round(size), "rounds": len(rounds), **medians}))


if __name__ == "__main__":
    main()
