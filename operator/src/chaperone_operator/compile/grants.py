"""Policies as data for the engine: by identity, target and effect, so that OPA looks only at rules that can match.

This module indexes and does not interpret: what a wildcard means, which rule is the strictest and what is uncovered is
decided in `engine.rego` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from chaperone_operator.compile import glob
from chaperone_operator.compile.model import Rule
from chaperone_operator.compile.vocabulary import RANK, Action

_CLUSTER_FIRST: Final = {True: 0, False: 1}  # of two equally strict rules the guardrail is the one to report


class Bound(msgspec.Struct, frozen=True):
    """One rule, bound to what its policy names in one namespace.

    Attributes:
        policy: as reported: `namespace/name`, or `name` of a cluster policy.
    """

    identity: str
    target: str
    policy: str
    is_cluster: bool
    rule: Rule


def grants(bound: Iterable[Bound], protocols: Mapping[str, str]) -> dict[str, Any]:
    """The `grants` document: identity → target → rules with their index.

    Args:
        bound: rules in any order; the result does not depend on it.
        protocols: protocol of each target.
    """
    pairs: dict[str, dict[str, list[Bound]]] = {}
    for one in bound:
        pairs.setdefault(one.identity, {}).setdefault(one.target, []).append(one)
    return {
        identity: {target: _grant(rules, protocols[target]) for target, rules in sorted(targets.items())}
        for identity, targets in sorted(pairs.items())
    }


def _grant(bound: list[Bound], protocol: str) -> dict[str, Any]:
    """One target's rules, the strictest first, and where to find those that say a word of `effects`.

    `every`: rules without objects, by word. `exact`: by word and name. `globs`: by word and the pattern's first part,
    which is "" when it holds a `*`. `allows`: the first Allow rule by word; `first_allow`: the first of all.
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
                allows.setdefault(word, [index])
            if objects is None:
                every.setdefault(word, []).append(index)
            for pattern in sorted(set(objects or ())):
                if glob.is_exact(pattern):
                    exact.setdefault(word, {}).setdefault(pattern, []).append(index)
                else:
                    entry = {"pattern": glob.expression(pattern), "rule": index}
                    globs.setdefault(word, {}).setdefault(glob.first_part(pattern), []).append(entry)
    return {
        "protocol": protocol,
        "rules": [
            {"action": one.rule.action.value, "policy": one.policy, "rule": one.rule.name, "message": one.rule.message}
            for one in ordered
        ],
        "every": every,
        "exact": exact,
        "globs": globs,
        "allows": allows,
        "first_allow": min(allows.values(), default=[]),
    }


def _order(one: Bound) -> tuple[int, int, str, str]:
    return RANK[one.rule.action], _CLUSTER_FIRST[one.is_cluster], one.policy, one.rule.name
