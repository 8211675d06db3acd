"""Conditions of a status: made, compared, and their times kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

MAX_MESSAGE: Final = 4096  # characters; the schema allows more, a terminal does not


class Condition(msgspec.Struct, frozen=True):
    """One condition, without its times."""

    type: str
    is_true: bool
    reason: str
    message: str = ""


def merged(wanted: Iterable[Condition], observed: Mapping[str, Any], generation: int, now: str) -> list[dict[str, Any]]:
    """Conditions as the API has them; the time of a condition moves only when its status does.

    Args:
        wanted: the conditions we own.
        observed: the object's status as last seen.
        generation: of the spec that was judged.
        now: RFC 3339.
    """
    before = {one.get("type"): one for one in observed.get("conditions") or ()}
    found = []
    for one in wanted:
        status = "True" if one.is_true else "False"
        old = before.get(one.type) or {}
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        found.append(
            {
                "type": one.type,
                "status": status,
                "reason": one.reason,
                "message": one.message if len(one.message) <= MAX_MESSAGE else one.message[: MAX_MESSAGE - 1] + "…",
                "lastTransitionTime": since or now,
                "observedGeneration": generation,
            }
        )
    return found


def is_current(status: Mapping[str, Any], observed: Mapping[str, Any]) -> bool:
    """Whether everything we would write stands there already; what others wrote does not matter."""
    for key, value in status.items():
        if key != "conditions":
            if observed.get(key) != value:
                return False
            continue
        before = {one.get("type"): one for one in observed.get("conditions") or ()}
        if any(before.get(one["type"]) != one for one in value):
            return False
    return True


def turned(wanted: Iterable[Condition], observed: Mapping[str, Any]) -> list[Condition]:
    """Conditions that a person should hear of: those that turned, or are false for another reason.

    A condition that is true from the beginning is no news.
    """
    before = {one.get("type"): one for one in observed.get("conditions") or ()}
    found = []
    for one in wanted:
        old = before.get(one.type)
        if old is None:
            is_news = not one.is_true
        else:
            is_news = (old.get("status") == "True") != one.is_true or (
                not one.is_true and old.get("reason") != one.reason
            )
        if is_news:
            found.append(one)
    return found
