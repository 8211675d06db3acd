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
    ordered = sorted(bound, key=_order)
    effects: dict[str, list[int]] = {}
    for index, one in enumerate(ordered):
        for effect in sorted(set(one.rule.match.effects)):
            effects.setdefault(effect, []).append(index)
    return {
        "protocol": protocol,
        "rules": [_rule(one) for one in ordered],
        "effects": effects,
        "allows": [index for index, one in enumerate(ordered) if one.rule.action == Action.ALLOW],
    }


def _order(one: Bound) -> tuple[int, int, str, str]:
    return RANK[one.rule.action], _CLUSTER_FIRST[one.is_cluster], one.policy, one.rule.name


def _rule(one: Bound) -> dict[str, Any]:
    rule = one.rule
    entry: dict[str, Any] = {
        "action": rule.action.value,
        "policy": one.policy,
        "rule": rule.name,
        "message": rule.message,
    }
    if rule.match.objects is None:
        return entry | {"every": True}
    exact = {pattern: True for pattern in sorted(set(rule.match.objects)) if glob.is_exact(pattern)}
    pattern = glob.expression(sorted({pattern for pattern in rule.match.objects if not glob.is_exact(pattern)}))
    return entry | ({"exact": exact} if exact else {}) | ({"pattern": pattern} if pattern else {})
