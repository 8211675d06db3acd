"""`chaperone consistency`: does a newer checkpoint continue an older one? For who keeps what a log once said.

Both come as checkpoints, or as the `.tlog-proof` files of bundles. Of one size they have one root; of two sizes, the
larger tree has to be the smaller with entries added behind it. What shows that is a proof from a file, or is made of
the log's tiles, fetched with kubectl: neither is trusted, for it has to lead from one signed root to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaperone_cli.evidence import MAX_TRUST_BYTES
from chaperone_cli.kubectl import LOG_PATH, CannotAsk, Cluster, ask
from chaperone_cli.say import say
from chaperone_evidence import merkle, policyfile, tiles
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.errors import EvidenceError, Malformed
from chaperone_evidence.policy import Policy, open_checkpoint
from chaperone_evidence.proof import decode_hashes, parse_proof

OK, FINDINGS, CANNOT = 0, 1, 2
_PROOF: Final = b"c2sp.org/tlog-proof@v1\n"


def run(old: Path, new: Path, log_policy: Path, proof: Path | None, cluster: Cluster) -> int:
    """Compare and print; returns the exit status: 0 it is continued, 1 nothing shows that it is, 2 cannot be told."""
    try:
        policy = policyfile.parse(_read(log_policy).decode())
        first, second = _checkpoint(old, policy), _checkpoint(new, policy)
        hashes = _hashes(first.size, second.size, proof, cluster)
    except (Malformed, UnicodeDecodeError, CannotAsk, OSError) as error:
        say(f"consistency: CANNOT VERIFY: {error}")
        return CANNOT
    except EvidenceError as error:
        say(f"consistency: FAILED: {error}")
        return FINDINGS
    try:
        merkle.verify_consistency(first.size, second.size, hashes, first.root, second.root)
    except EvidenceError as error:
        say(f"consistency: FAILED: {error}")
        return FINDINGS
    say(f"consistency: OK: the log of {second.size} entries begins with the {first.size} of the older checkpoint")
    return OK


def _hashes(old: int, size: int, proof: Path | None, cluster: Cluster) -> Sequence[bytes]:
    if old > size:
        raise Malformed(f"the first has {old} entries and the second {size}; give the older one first")
    if proof is not None:
        return decode_hashes(_read(proof).decode("ascii"))

    def fetch(wanted: Sequence[tiles.Tile]) -> list[bytes]:
        return [ask(cluster, "get", "--raw", f"{LOG_PATH}/{tile.path}") for tile in wanted]

    return merkle.consistency_proof(old, size, tiles.reader(size, fetch))


def _checkpoint(path: Path, policy: Policy) -> Checkpoint:
    data = _read(path)
    return open_checkpoint(parse_proof(data).checkpoint if data.startswith(_PROOF) else data, policy).checkpoint


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_TRUST_BYTES + 1)
    if len(data) > MAX_TRUST_BYTES:
        raise Malformed(f"{path} is too long")
    return data
