"""`chaperone replay-policy`: what recorded commands would meet under other policies.

Commands are read once. Memory is bounded as that of `policy_anew` is, and by the different changes.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Final

import msgspec

from chaperone_cli.policy_anew import Anew, is_refused_by_people, rule_of, was, would_be
from chaperone_cli.policy_ask import Engine
from chaperone_cli.policy_explain import shortened
from chaperone_cli.policy_history import History, Seen, Tally
from chaperone_cli.policy_world import World
from chaperone_sidecar.policy.decider import Answer

MAX_CHANGES: Final = 1000  # different ones; more are counted together
MAX_REASONS: Final = 100


class Change(msgspec.Struct):
    """Commands that met one thing and would meet another; `text`, `session` and `command` are those of the first."""

    identity: str
    target: str
    was: str
    was_rule: str
    would_be: str
    would_be_rule: str
    message: str
    text: str
    session: str
    command: str
    count: int = 0


class Result(msgspec.Struct):
    """What a replay found."""

    commands: int = 0
    replayed: int = 0
    changed: int = 0
    decisions: dict[str, int] = msgspec.field(default_factory=dict)  # of those replayed, as they would be
    changes: list[Change] = msgspec.field(default_factory=list)
    other_changes: int = 0  # beyond MAX_CHANGES different ones
    not_replayed: dict[str, int] = msgspec.field(default_factory=dict)
    faults: list[str] = msgspec.field(default_factory=list)


class Replay:
    """Decides the commands of evidence anew; a context manager.

    Args:
        world: the policies.
        namespace: commands of other namespaces are passed over; "" for all.
    """

    def __init__(self, world: World, namespace: str) -> None:
        self._world = world
        self._namespace = namespace
        self._known = {
            (one["metadata"]["namespace"], one["metadata"]["name"]) for one in world.objects["AgentIdentity"]
        }
        self._engines: dict[str, Engine] = {}
        self._stack = ExitStack()
        self._anew = Anew(self._tell, lambda _, why: self._reasons.add(why), is_same=False)
        self._result = Result()
        self._changes: dict[tuple[str, ...], Change] = {}
        self._reasons = Tally(MAX_REASONS)
        self._decisions: Counter[str] = Counter()

    def run(self, history: History) -> Result:
        """Replay all commands.

        Raises:
            Unusable: the policies do not compile, or OPA cannot be asked.
        """
        result = self._result
        with self._stack:
            for seen in history:
                if self._namespace and seen.namespace != self._namespace:
                    continue
                result.commands += 1
                if (seen.namespace, seen.identity) not in self._known:
                    whose = f"{seen.namespace}/{seen.identity}"
                    self._reasons.add(f"AgentIdentity {whose} is not among the objects given")
                    continue
                self._anew.add(seen, seen.namespace, self._engine(seen.namespace))
            self._anew.finish()
        result.changes = sorted(self._changes.values(), key=lambda one: -one.count)
        result.decisions = dict(sorted(self._decisions.items()))
        result.not_replayed = dict(self._reasons.counts.most_common())
        result.faults = history.faults
        return result

    def _engine(self, namespace: str) -> Engine:
        if namespace not in self._engines:
            bundle = self._world.snapshot(namespace).bundle
            self._engines[namespace] = self._stack.enter_context(Engine(bundle))
        return self._engines[namespace]

    def _tell(self, seen: Seen, answer: Answer) -> None:
        intent, result = seen.intent, self._result
        result.replayed += 1
        before, now = was(intent), would_be(answer)
        self._decisions[now] += 1
        if before == now or is_refused_by_people(intent, answer):
            return
        result.changed += 1
        identity, was_rule = f"{seen.namespace}/{seen.identity}", rule_of(intent.policy, intent.rule)
        rule = rule_of(answer.policy, answer.rule)
        key = (identity, intent.target, before, was_rule, now, rule, answer.message)
        if key not in self._changes:
            if len(self._changes) >= MAX_CHANGES:
                result.other_changes += 1
                return
            text = "(not kept)" if seen.text is None else shortened(seen.text[:4096].decode(errors="replace"))
            self._changes[key] = Change(*key, text, intent.session, intent.command)
        self._changes[key].count += 1
