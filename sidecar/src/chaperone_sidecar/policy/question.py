"""Facts as the policy engine is asked about them: by gateways, and by whatever asks in their place.

Standard library and the vocabulary alone, so that programs without a gateway can import it.
"""

from __future__ import annotations

from chaperone_sidecar.command import Access, Extent, Facts


def asked(facts: Facts) -> dict[str, object]:
    """What a question says of a command: `resolution` and `accesses`."""
    extents = (*facts.extents, *(Extent(),) * (len(facts.accesses) - len(facts.extents)))
    return {
        "resolution": facts.resolution.value,
        "accesses": [_access(access, extent) for access, extent in zip(facts.accesses, extents, strict=True)],
    }


def _access(access: Access, extent: Extent) -> dict[str, object]:
    found: dict[str, object] = {"effect": access.effect.value, "object": access.object}
    if access.through:
        found["through"] = access.through
    if extent.has_where:
        found["where"] = True
    if extent.limit is not None:
        found["limit"] = extent.limit
    return found
