"""Whether an AgentIdentity is suspended, read from it as it is: what else is wrong with it must not shield it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from chaperone_operator.compile.model import Suspension


def is_suspended(item: Mapping[str, Any]) -> bool:
    """Only a plain false or nothing counts as not suspended."""
    return (item.get("spec") or {}).get("suspended", False) is not False


def last_change(item: Mapping[str, Any]) -> Suspension:
    """Who suspended or resumed it last; empty where that cannot be read, for it is a note."""
    try:
        return msgspec.convert((item.get("spec") or {}).get("suspension") or {}, Suspension)
    except msgspec.ValidationError:
        return Suspension()
