"""Texts that are not here because they were erased: what the log's certificates say of that. Pure.

A certificate does not make a text true, it says why there is none: that the keeper of the log erased it, until which
time, and which word of the operator it followed. Without one a missing text may be withheld, or lost.
"""

from __future__ import annotations

import msgspec

from chaperone_evidence import entry, merkle, statement
from chaperone_evidence.coverage import GRACE_US
from chaperone_evidence.errors import BadSignature, Malformed
from chaperone_evidence.policy import Policy
from chaperone_evidence.proof import parse_proof
from chaperone_evidence.statement import BodiesErased
from chaperone_evidence.stream import MAX_LISTED, StreamReport


class Certificate(msgspec.Struct, frozen=True):
    """A certificate and its place in the log."""

    index: int
    said: BodiesErased


def read_certificate(data: bytes, proof: bytes, policy: Policy | None, cluster: str) -> Certificate:
    """Read one, and check that the log has it if its keys are given.

    Raises:
        EvidenceError: it is none, or the log does not have it.
    """
    said = statement.decode(entry.decode(data))
    if not isinstance(said, BodiesErased):
        raise Malformed("it states no erasure")
    found = parse_proof(proof)
    if policy is not None:
        if policy.origin != f"chaperone.dev/log/{cluster}":
            raise BadSignature("the keys are those of another log")
        found.verify(merkle.leaf_hash(data), policy)
    return Certificate(found.index, said)


def explain(report: StreamReport, found: Certificate) -> None:
    """Tell the texts of a stream that a certificate speaks of from those that are missing for no stated reason."""
    opened, said = report.opened, found.said
    if opened is None or (said.namespace, said.identity) != (opened.namespace, opened.identity):
        return
    until_us = said.until_us + GRACE_US  # clocks of gateways differ a little from the keeper's
    erased = {commit: seq for commit, seq in report.missing.items() if report.named_us[commit] < until_us}
    if not erased:
        return
    for commit in erased:
        del report.missing[commit]
    report.bodies_erased += len(erased)
    report.missing_listed = sorted(set(report.missing.values()))[:MAX_LISTED]
    kept = max(said.retention_days, said.minimum_days)
    report.remarks.append(
        f"{len(erased)} texts that records name are not here: older ones were erased after {kept} days, says entry "
        f"{found.index} of the log, as population {said.epoch} of {said.namespace} asked"
    )
