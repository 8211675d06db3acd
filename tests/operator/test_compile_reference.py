"""The Rego engine and the second evaluator agree on made-up policies and commands with everything that policy knows.

`CHAPERONE_POLICY_CASES=1000000` asks for more of them than a usual run has time for; `-s` shows how far it is, and
`CHAPERONE_POLICY_FIRST` goes on from there: the same number is the same case in every run.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import policy_reference
import pytest
from fix_opa import Opa
from policy_reference import Access, Question

from chaperone_operator.compile.grants import Bound, grants
from chaperone_operator.compile.model import Match, MaxRepeats, Require, Rule, Window
from chaperone_operator.compile.snapshot import build, engine
from chaperone_operator.compile.vocabulary import Action

CASES = int(os.environ.get("CHAPERONE_POLICY_CASES", "4000"))
FIRST_CASE = int(os.environ.get("CHAPERONE_POLICY_FIRST", "0"))
BATCH = 1000
MODULE = """
package batch

decisions := [decision |
    some question in input
    decision := data.chaperone.decision with input as question
]
"""
EFFECTS = ["read", "read", "modify", "create", "transaction", "destroy", "unknown"]
NAMES = ["", "a.b", "a.b", "a.c", "b.a", "setting:a.b"]
PATTERNS = ["a.b", "a.*", "*.b", "*", "b.a", "*.*"]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham"]
DAYS = ["Mon", "Tue", "Sat", "Mon-Fri", "Sat-Mon", "Fri-Tue", "Wed-Wed"]
TIMES = ["00:00", "02:30", "06:00", "12:00", "18:45", "23:59"]
FIRST, LAST = 29_400_000, 30_600_000  # minutes from November 2025 to March 2028


def window(dice: random.Random) -> Window:
    begin = dice.choice(TIMES)
    end = dice.choice([time for time in [*TIMES, "24:00"] if time != begin])
    days = None if dice.random() < 0.3 else tuple(dice.sample(DAYS, dice.randint(1, 3)))
    return Window(begin, end, dice.choice(ZONES), days)


def windows(dice: random.Random, share: float) -> tuple[Window, ...]:
    return tuple(window(dice) for _ in range(dice.randint(1, 2))) if dice.random() < share else ()


def require(dice: random.Random) -> Require | None:
    if dice.random() < 0.6:
        return None
    return Require(
        True if dice.random() < 0.4 else None,
        10 if dice.random() < 0.4 else None,
        10 if dice.random() < 0.3 else None,
        MaxRepeats(3, "1h") if dice.random() < 0.3 else None,
        tuple(dice.sample(["a", "b", "c"], dice.randint(1, 2))) if dice.random() < 0.3 else None,
    )


def bound(dice: random.Random, identity_name: str) -> list[Bound]:
    """Policies of one identity: usually few rules, sometimes many."""
    made = []
    modes = {name: dice.random() < 0.25 for name in ("n/p", "n/q", "guardrail")}
    of_policies = {name: windows(dice, 0.2) for name in modes}
    for number in range(dice.choice([0, 1, 2, 3, 3, 4, 6, 12])):
        name = dice.choice(list(modes))
        action = dice.choice([Action.ALLOW, Action.ALLOW, Action.ALLOW, Action.REQUIRE_APPROVAL, Action.DENY])
        match = Match(
            tuple(
                dice.sample(["read", "modify", "create", "*", "transaction", "destroy", "unknown"], dice.randint(1, 3))
            ),
            None if dice.random() < 0.4 else tuple(dice.sample(PATTERNS, dice.randint(1, 2))),
            None if action == Action.DENY else require(dice),
        )
        own = Rule(f"r{number}", action, match, "", windows(dice, 0.2) or None)
        made.append(Bound(identity_name, "t", name, name == "guardrail", own, of_policies[name], modes[name]))
    return made


def question(dice: random.Random, rules: list[Bound]) -> Question:
    accesses = tuple(
        Access(
            dice.choice(EFFECTS),
            dice.choice(NAMES),
            "a.view" if dice.random() < 0.15 else "",
            dice.random() < 0.5,
            dice.choice([None, 5, 10, 11]),
        )
        for _ in range(dice.choice([1, 1, 2, 3]))
    )
    keys = [f"{one.policy}/{one.rule.name}" for one in rules]
    repeats = {key: dice.randint(1, 4) for key in keys if dice.random() < 0.5}
    groups = None if dice.random() < 0.3 else tuple(dice.sample(["a", "b", "c", "d"], dice.randint(0, 2)))
    return Question(accesses, dice.randint(FIRST, LAST), dice.choice([None, 0, 10, 11]), repeats, groups)


def told(asked: Question, identity_name: str) -> dict[str, Any]:
    """A question as the gateway asks it."""
    accesses = []
    for access in asked.accesses:
        one: dict[str, Any] = {"effect": access.effect, "object": access.name}
        if access.through:
            one["through"] = access.through
        if access.where:
            one["where"] = True
        if access.limit is not None:
            one["limit"] = access.limit
        accesses.append(one)
    usual = {
        "identity": identity_name, "target": "t", "protocol": "PostgreSQL", "resolution": "catalog",
        "accesses": accesses, "minute": asked.minute, "repeats": asked.repeats,
    }  # fmt: skip
    if asked.user_groups is not None:
        usual["user"] = {"subject": "u", "issuer": "https://i", "email": "", "groups": list(asked.user_groups)}
    return usual if asked.rows is None else usual | {"rows": asked.rows}


@pytest.mark.peer
@pytest.mark.timeout(7200)
def test_engine_and_second_evaluator_agree(opa_with: Callable[[bytes], Opa]) -> None:
    opa = opa_with(build({"identities": {}, "grants": {}}, {}, {}, engine()).bundle)
    opa.add_module("batch", MODULE)
    met: Counter[tuple[str, str]] = Counter()
    for start in range(FIRST_CASE, FIRST_CASE + CASES, BATCH):
        dice = random.Random(start)  # noqa: S311 - the same cases in every run
        policies = {f"i{number}": bound(dice, f"i{number}") for number in range(BATCH // 4)}
        asked = [(name, question(dice, rules)) for name, rules in policies.items() for _ in range(4)]
        everything = [one for rules in policies.values() for one in rules]
        data = {"identities": {}, "grants": grants(everything, {"t": "PostgreSQL"})}
        snapshot = build(data, {}, {}, engine())
        opa.replace(snapshot.bundle, snapshot.revision)
        found = opa.ask("batch/decisions", [told(one, name) for name, one in asked])
        assert len(found) == len(asked)
        for (name, one), decision in zip(asked, found, strict=True):
            action = decision["action"]
            would = decision["would"]["action"] if "would" in decision else action
            expected = policy_reference.decide(policies[name], one)
            assert (action, would) == expected, (policies[name], one, decision)
            met[expected] += 1
        print(f"agreed on cases {FIRST_CASE} to {start + BATCH - 1}", flush=True)
    assert len(met) >= 8, met  # every action meets every other but for the rarest
    assert min(met[(action, action)] for action in ("Allow", "Deny", "RequireApproval")) > CASES // 100, met
