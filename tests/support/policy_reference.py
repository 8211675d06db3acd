"""A second evaluator of policy, written from the words of docs/architecture.md §4 and the compiler's README alone.

It knows nothing of `engine.rego` or of how rules are indexed: it looks at every rule for every access.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from chaperone_operator.compile.grants import Bound
from chaperone_operator.compile.model import Window

CRITICAL = ["destroy", "privilege", "execute_code", "external_io", "tunnel", "unknown"]
ORDINARY = ["read", "read_sensitive", "create", "modify", "delete", "bulk_read", "bulk_write"]
ORDINARY += ["schema", "session", "transaction", "maintain"]
STRICTNESS = ("Deny", "RequireApproval", "Allow")
DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


@dataclass(frozen=True)
class Access:
    """One effect on one object, and what is known of how far it reaches."""

    effect: str
    name: str
    through: str = ""
    where: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Question:
    """A command, and what else is known when it is asked about."""

    accesses: tuple[Access, ...]
    minute: int = 0
    rows: int | None = None
    repeats: dict[str, int] = field(default_factory=dict)
    user_groups: tuple[str, ...] | None = None  # None: on nobody's behalf


def glob_matches(pattern: str, name: str) -> bool:
    """Whether a name is one that the pattern means: `*` is any run of characters but the dot."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return glob_matches(pattern[1:], name) or (name != "" and name[0] != "." and glob_matches(pattern, name[1:]))
    return name != "" and name[0] == pattern[0] and glob_matches(pattern[1:], name[1:])


def is_inside(window: Window, minute: int) -> bool:
    """Whether a minute is in a window that began today or yesterday, by the clock on the wall."""
    here = datetime.fromtimestamp(minute * 60, UTC).astimezone(ZoneInfo(window.timezone))
    begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in (window.begin, window.end))
    if end < begin:
        end += 24 * 60
    for days_ago in (0, 1):
        began = (here.date() - timedelta(days=days_ago)).weekday()
        position = here.hour * 60 + here.minute + days_ago * 24 * 60
        if _is_day(began, window.days) and begin <= position < end:
            return True
    return False


def _is_day(weekday: int, days: tuple[str, ...] | None) -> bool:
    for text in days or ("Mon-Sun",):
        first, _, last = text.partition("-")
        day = DAYS.index(first)
        while True:
            if day == weekday:
                return True
            if DAYS[day] == (last or first):
                break
            day = (day + 1) % 7
    return False


def matches(one: Bound, access: Access, asked: Question) -> bool:
    """Whether a rule speaks of an access, now and under these facts."""
    rule = one.rule
    for windows in (one.windows, rule.windows or ()):
        if windows and not any(is_inside(window, asked.minute) for window in windows):
            return False
    if rule.action == "Allow" and access.through:
        return False
    if not access.through and not is_for(one, asked):
        return False
    if rule.action == "Allow" and access.effect == "transaction":
        return True
    if access.effect not in rule.match.effects and not ("*" in rule.match.effects and access.effect not in CRITICAL):
        return False
    touches_nothing = access.effect == "transaction" or (access.effect == "read" and access.name == "")
    if rule.match.objects is not None:
        if access.name == "":
            return rule.action == "Allow" and access.effect == "read"
        if not any(glob_matches(pattern, access.name) for pattern in rule.match.objects):
            return False
    return bool(access.through) or touches_nothing or holds(one, access, asked)


def is_for(one: Bound, asked: Question) -> bool:
    """Whether a rule counts for the person on whose behalf the agent asks, if there is one."""
    wanted = one.rule.match.require
    if wanted is None or wanted.user_groups is None:
        return True
    return any(group in wanted.user_groups for group in asked.user_groups or ())


def holds(one: Bound, access: Access, asked: Question) -> bool:
    """Whether everything that a rule requires is known to hold."""
    wanted = one.rule.match.require
    if wanted is None:
        return True
    used = asked.repeats.get(f"{one.policy}/{one.rule.name}", 0)
    return (
        (wanted.where is None or access.where)
        and (wanted.limit is None or (access.limit is not None and access.limit <= wanted.limit))
        and (wanted.max_estimated_rows is None or (asked.rows is not None and asked.rows <= wanted.max_estimated_rows))
        and (wanted.max_repeats is None or used < wanted.max_repeats.count)
    )


def decide(bound: Iterable[Bound], asked: Question) -> tuple[str, str]:
    """The action of a command, and what it would be if observed policies were in force.

    What is implied needs no leave, and none is given by it; there has to be an access that is not.
    """
    if all(access.through for access in asked.accesses):
        return "Deny", "Deny"
    if any(access.through and (access.name == "" or access.effect == "unknown") for access in asked.accesses):
        return "Deny", "Deny"
    everything = list(bound)
    in_force = [one for one in everything if not one.is_observed]
    would = _together(everything, asked)
    gives_leave = [one for one in everything if one.rule.action != "Deny"]
    is_open = any(one.is_observed and not one.is_cluster for one in gives_leave)
    if not is_open or any(not one.is_observed for one in gives_leave):
        return _together(in_force, asked), would
    if any(access.effect == "unknown" for access in asked.accesses):
        return would, would
    is_denied = any(matches(one, access, asked) for one in in_force for access in asked.accesses)
    return ("Deny" if is_denied else "Allow"), would


def _together(rules: list[Bound], asked: Question) -> str:
    actions = set()
    for access in asked.accesses:
        said: set[Any] = {one.rule.action.value for one in rules if matches(one, access, asked)}
        if said:
            actions.add(strictest(said))
        elif not access.through:
            actions.add("Deny")
    return strictest(actions)


def strictest(actions: set[str]) -> str:
    """Deny before RequireApproval before Allow."""
    return next(action for action in STRICTNESS if action in actions)
