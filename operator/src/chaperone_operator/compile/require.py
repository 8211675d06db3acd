"""What a rule requires of a command beyond effects and objects.

A requirement that is not met, or of which nobody knows whether it is, keeps the rule from giving leave. So it has no
place in a rule that denies: what is not known would pass there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from chaperone_operator.compile.model import Match, Require
from chaperone_operator.compile.vocabulary import MEASURED, Action, meant

MAX_NUMBER: Final = 1_000_000_000
MAX_COUNT: Final = 1_000  # the gateway remembers the time of each use; for more there is limits.commandsPerMinute
MAX_GROUPS: Final = 50  # of users, in one rule
MAX_GROUP: Final = 256  # characters of a group's name
_PER: Final = re.compile(r"([1-9][0-9]{0,3})(m|h|d)")
_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}
_MAX_PER_S: Final = 31 * 86_400
_PER_WORDS: Final = "a number of minutes, hours or days such as 24h, at most 31d"


def problems(match: Match, action: Action) -> Iterator[tuple[str, str]]:
    """What is wrong with a rule's requirements: a reason, and a message that begins with the field."""
    wanted = match.require
    at = ".match.require"
    if wanted is None:
        return
    if action == Action.DENY:
        yield "RequireInDeny", f"{at}: a Deny rule has none, for what is not known would pass; require it in the Allow."
    stated = {
        "where": wanted.where,
        "limit": wanted.limit,
        "maxEstimatedRows": wanted.max_estimated_rows,
        "maxRepeats": wanted.max_repeats,
        "userGroups": wanted.user_groups,
    }
    if all(value is None for value in stated.values()):
        yield "NoRequirement", f"{at}: empty; name one of {', '.join(stated)}, or leave it out."
    if wanted.where is False:
        yield "BadRequirement", f"{at}.where: false requires nothing; write true or leave it out."
    for field in ("limit", "maxEstimatedRows"):
        value = stated[field]
        if isinstance(value, int) and not 0 <= value <= MAX_NUMBER:
            yield "BadRequirement", f"{at}.{field}: {value} is not between 0 and {MAX_NUMBER}."
    if wanted.max_repeats is not None:
        if not 1 <= wanted.max_repeats.count <= MAX_COUNT:
            yield (
                "BadRequirement",
                f"{at}.maxRepeats.count: {wanted.max_repeats.count} is not between 1 and {MAX_COUNT}.",
            )
        if per_s(wanted.max_repeats.per) is None:
            yield "BadRequirement", f"{at}.maxRepeats.per: {wanted.max_repeats.per!r} is not {_PER_WORDS}."
    groups = wanted.user_groups
    if groups is not None and not 1 <= len(groups) <= MAX_GROUPS:
        yield "BadRequirement", f"{at}.userGroups: name 1 to {MAX_GROUPS} groups."
    if any(not 1 <= len(group) <= MAX_GROUP for group in groups or ()):
        yield "BadRequirement", f"{at}.userGroups: a group's name has 1 to {MAX_GROUP} characters."
    for field, effects in MEASURED.items():
        if stated[field] and match.effects and not meant(match.effects) & effects:
            known = ", ".join(sorted(effects))
            yield (
                "RuleNeverFires",
                f"{at}.{field}: no effect of the rule has it, so the rule can never fire; it is known of {known}.",
            )


def told(wanted: Require) -> dict[str, Any]:
    """Requirements as the engine reads them."""
    found: dict[str, Any] = {"where": wanted.where, "limit": wanted.limit, "rows": wanted.max_estimated_rows}
    if wanted.max_repeats is not None:
        found["repeats"] = {"count": wanted.max_repeats.count, "per_s": per_s(wanted.max_repeats.per)}
    if wanted.user_groups is not None:
        found["groups"] = sorted(set(wanted.user_groups))
    return {field: value for field, value in found.items() if value is not None}


def per_s(text: str) -> int | None:
    """Seconds of a span, None when it is none that is admitted."""
    found = _PER.fullmatch(text)
    if found is None:
        return None
    seconds = int(found[1]) * _SECONDS[found[2]]
    return seconds if seconds <= _MAX_PER_S else None
