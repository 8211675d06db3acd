"""`chaperone receipt check`: whether a COSE receipt (RFC 9942) proves records of an evidence directory or a bundle.

A receipt does not say which record it is for; it is made for the last one of a session's stream that is signed, a
signed head. So the heads and the last record of each stream are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chaperone_cli.evidence import CannotVerify, Source, entries, open_source, segments
from chaperone_cli.say import say
from chaperone_evidence import entry, policyfile, receipt
from chaperone_evidence.errors import BadProof, BadSignature, EvidenceError
from chaperone_evidence.merkle import leaf_hash
from chaperone_evidence.policy import Policy
from chaperone_evidence.receipt import Receipt

OK, FINDINGS, CANNOT = 0, 1, 2


def run(path: Path, evidence: Path, log_policy: Path) -> int:
    """Check and print; returns the exit status: 0 it proves a record, 1 none, 2 that cannot be told."""
    try:
        found = receipt.parse(_read(path))
        policy = policyfile.parse(log_policy.read_text())
        with open_source(evidence) as source:
            proved = _proved(found, policy, source)
    except (CannotVerify, EvidenceError, OSError, UnicodeDecodeError) as error:
        say(f"receipt: CANNOT VERIFY: {error}")
        return CANNOT
    if not proved:
        say("receipt: FAILED: the log has not signed that a head or last record of this evidence is where it says")
        return FINDINGS
    stream, seq = proved
    say(f"receipt: OK: record {seq} of stream {stream} is entry {found.index} of {found.size} of {policy.origin}")
    return OK


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(receipt.MAX_BYTES + 1)


def _proved(found: Receipt, policy: Policy, source: Source) -> tuple[str, int] | None:
    for stream, (names, _) in segments(source).items():
        for seq, data in _candidates(source, names, stream):
            try:
                found.verify(leaf_hash(data), policy)
            except (BadProof, BadSignature):
                continue
            return stream, seq
    return None


def _candidates(source: Source, names: list[str], stream: str) -> Iterator[tuple[int, bytes]]:
    last: tuple[int, bytes] | None = None
    for seq, data in enumerate(entries(source, names, stream)):
        if last is not None and entry.split(last[1])[0] == entry.CLASS_HEAD:
            yield last
        last = seq, data
    if last is not None:
        yield last
