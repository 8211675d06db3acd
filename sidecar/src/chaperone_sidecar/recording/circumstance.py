"""What a decision depended on beside the command, as a record says it."""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_evidence import canonical, record
from chaperone_sidecar.decision import Circumstances

MAX_RULES_BYTES: Final = 1024  # of the names of rules that are counted: a record is at most 16 KiB, mostly accesses


def told(found: Circumstances | None) -> record.Circumstances | msgspec.UnsetType:
    """What is recorded; nothing where it would not be all of it, so that the decision counts as not repeatable."""
    if found is None or sum(len(rule.encode()) for rule, _ in found.uses) > MAX_RULES_BYTES:
        return msgspec.UNSET
    rows = msgspec.UNSET if found.rows is None else min(found.rows, canonical.MAX_INTEGER)
    return record.Circumstances(found.minute, rows, tuple(record.Use(rule, count) for rule, count in found.uses))
