"""`chaperone suggest`: from what no rule covered, or would not have covered, a draft of the rules that were missing.

A draft lists names exactly, never patterns, since agents choose names. Nothing critical is ever suggested, nor what
reads sensitive things: a person reads of it in a comment. A command of which one access is not suggested adds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from chaperone_cli.policy_history import History, Seen
from chaperone_cli.say import printable
from chaperone_evidence import record
from chaperone_operator.compile import glob
from chaperone_operator.compile.check import MAX_OBJECTS, MAX_RULES
from chaperone_operator.compile.vocabulary import CRITICAL, EFFECTS, PARTS
from chaperone_sidecar.recording.recorder import MAX_RECORDED_ACCESSES

MAX_WISHES: Final = 20_000  # different effects on objects that are remembered of one identity at one target
MAX_PAIRS: Final = 1000  # identities at targets
MAX_LISTED: Final = 50  # objects of a rule that are counted one by one in comments
UNCOVERED: Final = "uncovered"
_FOR_PEOPLE: Final = CRITICAL | {"read_sensitive"}
_KINDS: Final = {  # the rules of a draft: what only looks, what changes something, what is of the session
    "read": frozenset({"read", "bulk_read"}),
    "session": frozenset({"session"}),
    "write": EFFECTS - _FOR_PEOPLE - {"read", "bulk_read", "session", "transaction"},
}


class Wish(msgspec.Struct):
    """How often something was refused, and when first and last (µs)."""

    count: int = 0
    first_us: int = 0
    last_us: int = 0

    def add(self, wall_us: int) -> None:
        """Once more."""
        self.first_us = min(self.first_us or wall_us, wall_us)
        self.last_us = max(self.last_us, wall_us)
        self.count += 1

    def __str__(self) -> str:
        """For a comment."""
        times = "once" if self.count == 1 else f"{self.count} times"
        first, last = _moment(self.first_us), _moment(self.last_us)
        return f"{times}, {first}" + (f" to {last}" if last != first else "")


class Draft(msgspec.Struct):
    """What an identity lacked at a target."""

    namespace: str
    identity: str
    target: str
    protocol: str
    wishes: dict[tuple[str, str], Wish] = msgspec.field(default_factory=dict)  # effect, object
    refused: dict[tuple[str, str, str], Wish] = msgspec.field(default_factory=dict)  # effect, object, why not
    free: dict[str, Wish] = msgspec.field(default_factory=dict)  # effects that any rule of a kind covers
    commands: int = 0
    left_out: int = 0  # commands with something that is not suggested

    def add(self, intent: record.CommandIntent) -> None:
        """Take in a command that no rule covered."""
        self.commands += 1
        named = [one for one in intent.accesses if not one.through]
        faults = [(one, why) for one in named if (why := _not_suggested(one, self.protocol))]
        if not named or len(intent.accesses) >= MAX_RECORDED_ACCESSES:
            faults = [(record.AccessEntry("unknown"), "the record does not list all that the command does")]
        if faults:
            self.left_out += 1
            for one, why in faults:
                _count(self.refused, (one.effect, one.object, why), intent.wall_us)
            return
        for one in named:
            if _is_free(one):
                _count(self.free, one.effect, intent.wall_us)
            else:
                _count(self.wishes, (one.effect, one.object), intent.wall_us)


def drafts(history: History, namespace: str, identity: str) -> list[Draft]:
    """What was refused, or would have been, since no rule covered it; "" means every namespace or identity."""
    found: dict[tuple[str, str, str], Draft] = {}
    for seen in history:
        if namespace not in {"", seen.namespace} or identity not in {"", seen.identity} or not _was_uncovered(seen):
            continue
        key = (seen.namespace, seen.identity, seen.intent.target)
        if key not in found and len(found) < MAX_PAIRS:
            found[key] = Draft(*key, seen.protocol)
        if key in found:
            found[key].add(seen.intent)
    return [found[key] for key in sorted(found)]


def write(draft: Draft) -> Iterator[str]:
    """A draft as lines of YAML."""
    yield f"# Draft from {draft.commands} commands that no rule covered, {draft.left_out} of which it does not cover."
    yield "# Read each line before applying it: an agent asked for this, nobody else did."
    rules = list(_rules(draft))
    if len(rules) > MAX_RULES:
        yield f"# {len(rules) - MAX_RULES} more rules would not fit into one policy; suggest again when these stand."
        rules = rules[:MAX_RULES]
    if rules:
        yield "apiVersion: chaperone.dev/v1alpha1"
        yield "kind: AccessPolicy"
        name = f"suggested-{draft.identity}-{draft.target}"
        yield f"metadata: {{name: {_quoted(name)}, namespace: {_quoted(draft.namespace)}}}"
        yield "spec:"
        yield f"  subjects: [{{identity: {_quoted(draft.identity)}}}]"
        yield f"  targets: [{{name: {_quoted(draft.target)}}}]"
        yield "  rules:"
    for name, effects, objects in rules:
        for one in objects[:MAX_LISTED]:
            counted = "; ".join(f"{effect} {draft.wishes[effect, one]}" for effect in effects)
            yield f"  # {printable(one)}: {counted}"
        if len(objects) > MAX_LISTED:
            yield f"  # and {len(objects) - MAX_LISTED} more"
        yield f"  - name: {name}"
        yield "    action: Allow"
        yield f"    match: {{effects: {_quoted(effects)}, objects: {_quoted(objects)}}}"
    for effect, wish in sorted(draft.free.items()):
        yield f"# {effect} of no object ({wish}): covered by any rule with {effect}."
    for (effect, name, why), wish in sorted(draft.refused.items(), key=lambda one: -one[1].count):
        yield f"# not suggested: {printable(f'{effect} {name}'.rstrip())} ({wish}): {why}."


def _rules(draft: Draft) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, effects and objects of each rule: objects with the same effects of a kind share one."""
    for kind, effects in _KINDS.items():
        by_object: dict[str, set[str]] = {}
        for effect, name in draft.wishes:
            if effect in effects:
                by_object.setdefault(name, set()).add(effect)
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, found in sorted(by_object.items()):
            groups.setdefault(tuple(sorted(found)), []).append(name)
        number = 0
        for group, names in sorted(groups.items()):
            for first in range(0, len(names), MAX_OBJECTS):
                number += 1
                yield f"suggested-{kind}-{number}", list(group), names[first : first + MAX_OBJECTS]


def _was_uncovered(seen: Seen) -> bool:
    intent = seen.intent
    if intent.would:
        return (intent.would, intent.would_policy, intent.would_rule) == ("Deny", "", UNCOVERED)
    return (intent.decision, intent.policy, intent.rule) == ("Deny", "", UNCOVERED)


def _not_suggested(access: record.AccessEntry, protocol: str) -> str:
    """Why a rule that allows it is for people to write, "" when it may be suggested."""
    if access.effect in _FOR_PEOPLE or access.effect not in EFFECTS:
        return "a person has to decide on such effects"
    if _is_free(access):
        return ""
    try:
        glob.check(access.object)
    except glob.BadPattern as error:
        return f"no rule can name it exactly, {error}"
    parts = access.object.count(".") + 1
    if not glob.is_exact(access.object) or (":" not in access.object and parts != PARTS.get(protocol, parts)):
        return "no rule can name it exactly"
    return ""


def _is_free(access: record.AccessEntry) -> bool:
    """Whether any rule of the kind covers it, whatever its objects."""
    return access.effect == "transaction" or (access.effect == "read" and not access.object)


def _count[K](wishes: dict[K, Wish], key: K, wall_us: int) -> None:
    if key in wishes or len(wishes) < MAX_WISHES:
        wishes.setdefault(key, Wish()).add(wall_us)


def _moment(wall_us: int) -> str:
    return datetime.fromtimestamp(wall_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _quoted(value: str | list[str]) -> str:
    """A value as YAML takes it: JSON, in which nothing that an agent chose can be more than a string."""
    return json.dumps(value, ensure_ascii=False)
