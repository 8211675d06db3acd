"""`spec.evidence.results` of an AgentIdentity: whether what the agent is shown is kept, and how much of it.

What is wrong with it, and what the gateway is told: the most bytes that it keeps of one command's result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from chaperone_operator.compile.limits import size_bytes
from chaperone_operator.compile.model import Evidence

MIN_BYTES: Final = 1 << 10
MAX_BYTES: Final = 64 << 20  # a gateway's spool has 256 MiB, and other sessions need room there, too


def problems(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What is wrong with it: a reason, and a message that begins with the field."""
    size = size_bytes(evidence.max_result_bytes)
    if size is None or not MIN_BYTES <= size <= MAX_BYTES:
        yield (
            "BadResultBytes",
            f"spec.evidence.maxResultBytes: {evidence.max_result_bytes!r} is not a quantity from 1Ki to 64Mi.",
        )


def told(evidence: Evidence) -> dict[str, Any]:
    """The part of a GatewayConfig's identity; nothing where results are not kept."""
    return {"max_result_bytes": size_bytes(evidence.max_result_bytes)} if evidence.results == "Full" else {}
