"""Policies as data for the engine: by identity, target and effect, so that OPA looks only at rules that can match.

This module indexes and does not interpret: what a wildcard means, which rule is the strictest and what is uncovered is
decided in `engine.rego` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from chaperone_operator.compile import glob, require, window
from chaperone_operator.compile.model import Rule, Window
from chaperone_operator.compile.vocabulary import RANK, Action

_CLUSTER_FIRST: Final = {True: 0, False: 1}  # of two equally strict rules the guardrail is the one to report


class Bound(msgspec.Struct, frozen=True):
    """One rule, bound to what its policy names in one namespace.

    Attributes:
        policy: as reported: `namespace/name`, or `name` of a cluster policy.
        windows: the policy's own; the rule's are with the rule.
        is_observed: the policy's mode is Observe.
    """

    identity: str
    target: str
    policy: str
    is_cluster: bool
    rule: Rule
    windows: tuple[Window, ...] = ()
    is_observed: bool = False


class Own(msgspec.Struct, frozen=True, order=True):
    """A policy's own Rego, bound as its rules are; `module` is the last part of its package."""

    identity: str
    target: str
    policy: str
    module: str
    windows: tuple[Window, ...] = ()
    is_observed: bool = False


def grants(bound: Iterable[Bound], protocols: Mapping[str, str], own: Iterable[Own] = ()) -> dict[str, Any]:
    """The `grants` document: identity → target → rules with their index.

    Args:
        bound: rules in any order; the result does not depend on it.
        protocols: protocol of each target.
        own: Rego of policies; where there are no rules, nothing is left to tighten.
    """
    modules: dict[tuple[str, str], list[Own]] = {}
    for module in own:
        modules.setdefault((module.identity, module.target), []).append(module)
    pairs: dict[str, dict[str, list[Bound]]] = {}
    for one in bound:
        pairs.setdefault(one.identity, {}).setdefault(one.target, []).append(one)
    return {
        identity: {
            target: _grant(rules, protocols[target], modules.get((identity, target), []))
            for target, rules in sorted(targets.items())
        }
        for identity, targets in sorted(pairs.items())
    }


def is_observed(bound: Iterable[Bound]) -> bool:
    """Whether everything passes at a target but what enforced rules deny.

    So it is where an observed policy of the namespace gives leave and nothing enforced does. What only denies is no
    reason to open a target, and a cluster policy that is tried out for `*` would open all of them.
    """
    leaves = [one for one in bound if one.rule.action != Action.DENY]
    return all(one.is_observed for one in leaves) and any(not one.is_cluster for one in leaves)


def _grant(bound: list[Bound], protocol: str, own: list[Own]) -> dict[str, Any]:
    """One target's rules, the strictest first, and where to find those that say a word of `effects`.

    `every`: rules without objects, by word. `exact`: by word and name. `globs`: by word and the pattern's first part,
    which is "" when it holds a `*`. `allows`: Allow rules by word; `leaves`: of all words; both up to the first that
    always fires. What is seldom is absent where it is not: `observes`, `observed`, `counted`, `zones`, `own`.
    """
    ordered = sorted(bound, key=_order)
    every: dict[str, list[int]] = {}
    exact: dict[str, dict[str, list[int]]] = {}
    globs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    allows: dict[str, list[int]] = {}
    for index, one in enumerate(ordered):
        objects = one.rule.match.objects
        for word in sorted(set(one.rule.match.effects)):
            if one.rule.action == Action.ALLOW:
                allows.setdefault(word, []).append(index)
            if objects is None:
                every.setdefault(word, []).append(index)
            for pattern in sorted(set(objects or ())):
                if glob.is_exact(pattern):
                    exact.setdefault(word, {}).setdefault(pattern, []).append(index)
                else:
                    entry = {"pattern": glob.expression(pattern), "rule": index}
                    globs.setdefault(word, {}).setdefault(glob.first_part(pattern), []).append(entry)
    leaves = sorted({index for indexes in allows.values() for index in indexes})
    found = {
        "protocol": protocol,
        "rules": [_described(one) for one in ordered],
        "every": every,
        "exact": exact,
        "globs": globs,
        "allows": {word: _enough(indexes, ordered) for word, indexes in allows.items()},
        "leaves": _enough(leaves, ordered),
    }
    seldom = {
        "observes": any(one.is_observed for one in ordered) or any(one.is_observed for one in own),
        "observed": is_observed(ordered),
        "counted": any(_counts(one.rule) for one in ordered),
        "zones": sorted({entry.timezone for windows in _windows(ordered, own) for entry in windows}),
        "own": [_own(module) for module in sorted(own, key=lambda module: module.policy)],
    }
    return found | {name: value for name, value in seldom.items() if value}


def _windows(bound: list[Bound], own: list[Own]) -> Iterator[tuple[Window, ...]]:
    for one in bound:
        yield one.windows
        yield one.rule.windows or ()
    for module in own:
        yield module.windows


def _own(module: Own) -> dict[str, Any]:
    found: dict[str, Any] = {"policy": module.policy, "module": module.module}
    if module.is_observed:
        found["observed"] = True
    if module.windows:
        found["windows"] = [window.told(module.windows)]
    return found


def _described(one: Bound) -> dict[str, Any]:
    found: dict[str, Any] = {
        "action": one.rule.action.value,
        "policy": one.policy,
        "rule": one.rule.name,
        "message": one.rule.message,
    }
    if one.is_observed:
        found["observed"] = True
    if one.rule.match.require is not None:
        found["require"] = require.told(one.rule.match.require)
    if windows := [window.told(entries) for entries in (one.windows, one.rule.windows) if entries]:
        found["windows"] = windows
    return found


def _counts(rule: Rule) -> bool:
    """Whether it depends on more than the question's words and the time."""
    needs = rule.match.require
    return needs is not None and (needs.max_estimated_rows is not None or needs.max_repeats is not None)


def _is_for_some(rule: Rule) -> bool:
    """Whether it counts for some users alone."""
    return rule.match.require is not None and rule.match.require.user_groups is not None


def _enough(indexes: list[int], ordered: list[Bound]) -> list[int]:
    """The rules up to the first that fires always: which one is reported of those behind it is no matter."""
    found = []
    for index in indexes:
        found.append(index)
        one = ordered[index]
        if not one.is_observed and not one.windows and not one.rule.windows and not _is_for_some(one.rule):
            break
    return found


def _order(one: Bound) -> tuple[int, int, str, str]:
    return RANK[one.rule.action], _CLUSTER_FIRST[one.is_cluster], one.policy, one.rule.name
