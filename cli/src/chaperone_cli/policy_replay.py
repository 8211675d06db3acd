"""`chaperone replay-policy`: what recorded commands would meet under other policies.

Commands are read once and asked about in batches; a question that came before is not asked again. Memory is bounded by
a window of commands, the remembered answers and the different changes.
"""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict
from contextlib import ExitStack
from typing import Final

import msgspec

from chaperone_cli.policy_ask import Engine, Question
from chaperone_cli.policy_explain import shortened
from chaperone_cli.policy_facts import Classifier, question, reach
from chaperone_cli.policy_history import History, Seen, Tally
from chaperone_cli.policy_world import World
from chaperone_evidence import record
from chaperone_sidecar.command import Access, Effect, Extent, Facts, Resolution
from chaperone_sidecar.limits.reached import RULE_PREFIX
from chaperone_sidecar.policy.decider import Answer
from chaperone_sidecar.recording.recorder import MAX_RECORDED_ACCESSES

WINDOW: Final = 20_000  # commands that are read before OPA is asked
MAX_ANSWERS: Final = 50_000  # that are remembered
MAX_CHANGES: Final = 1000  # different ones; more are counted together
MAX_REASONS: Final = 100
_BEST: Final = Extent(has_where=True, limit=0)
_NOT_OF_RULES: Final = frozenset({"policy-unavailable", "cancelled", "unmaskable"})
_MASKED: Final = "[masked]"


class Key(msgspec.Struct, frozen=True):
    """All that a question depends on; what the policies there do not look at is left out."""

    namespace: str
    identity: str
    target: str
    protocol: str
    resolution: str
    minute: int
    is_parse: bool
    accesses: tuple[Access, ...]
    extents: tuple[Extent, ...]


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


class NotReplayed(Exception):
    """A command that cannot be decided anew; the text says why."""


class _Waiting(msgspec.Struct, frozen=True):
    """A command, and the questions that decide it: one, or two where it is not known how far it reaches."""

    seen: Seen
    keys: tuple[Key, ...]


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
        self._classifier = Classifier()
        self._answers: OrderedDict[Key, Answer | None] = OrderedDict()
        self._waiting: list[_Waiting] = []
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
                try:
                    self._waiting.append(_Waiting(seen, self._keys(seen)))
                except NotReplayed as why:
                    self._reasons.add(str(why))
                if len(self._waiting) >= WINDOW:
                    self._decide()
            self._decide()
        result.changes = sorted(self._changes.values(), key=lambda one: -one.count)
        result.decisions = dict(sorted(self._decisions.items()))
        result.not_replayed = dict(self._reasons.counts.most_common())
        result.faults = history.faults
        return result

    def _keys(self, seen: Seen) -> tuple[Key, ...]:
        intent = seen.intent
        if (seen.namespace, seen.identity) not in self._known:
            raise NotReplayed(f"AgentIdentity {seen.namespace}/{seen.identity} is not among the objects given")
        if intent.rule.startswith(RULE_PREFIX) or (not intent.policy and intent.rule in _NOT_OF_RULES):
            raise NotReplayed(f"it was refused by {intent.rule}, which is no matter of rules")
        if not seen.protocol:
            raise NotReplayed("the beginning of its session is not here")
        engine = self._engine(seen.namespace)
        if intent.subject and engine.depends_on_user(seen.identity, intent.target):
            raise NotReplayed("it may depend on the groups of its user, which are not recorded")
        accesses, extents = self._accesses(seen)
        goes_by_time, goes_by_extent = engine.depends(seen.identity, intent.target)
        minute = intent.wall_us // 60_000_000 if goes_by_time else 0
        asked = Key(
            seen.namespace, seen.identity, intent.target, seen.protocol, intent.resolution, minute,
            intent.kind == "parse", accesses, (),
        )  # fmt: skip
        if not goes_by_extent:
            return (asked,)
        if extents is not None:
            return (msgspec.structs.replace(asked, extents=extents),)
        best = tuple(Extent() if access.through else _BEST for access in accesses)
        return (asked, msgspec.structs.replace(asked, extents=best))

    def _accesses(self, seen: Seen) -> tuple[tuple[Access, ...], tuple[Extent, ...] | None]:
        """What the record says that the command does, and how far that reaches, by its text; None where unknown."""
        intent = seen.intent
        accesses = _recorded(intent.accesses, intent.resolution)
        if not accesses or len(accesses) >= MAX_RECORDED_ACCESSES:
            raise NotReplayed("its record does not list all that it does")
        if any(_MASKED in name for one in accesses for name in (one.object, one.through)):
            raise NotReplayed("its record hides names of objects")
        is_whole = not isinstance(intent.body, msgspec.UnsetType) and intent.body.size == intent.size_bytes
        if seen.text is None or intent.is_masked or not is_whole:
            return accesses, None
        reached = reach(self._classifier.read(seen.text).facts)
        if not reached.keys() <= set(accesses):
            if Access(Effect.UNKNOWN) not in accesses:
                raise NotReplayed("its record and its text do not say the same")
            return accesses, None
        return accesses, tuple(reached.get(access, Extent()) for access in accesses)

    def _engine(self, namespace: str) -> Engine:
        if namespace not in self._engines:
            self._engines[namespace] = self._stack.enter_context(Engine(self._world.snapshot(namespace)))
        return self._engines[namespace]

    def _decide(self) -> None:
        """Ask what is not known yet, and tell what became of the commands that wait."""
        new: dict[str, dict[Key, Question]] = {}
        for waiting in self._waiting:
            for key in waiting.keys:
                if key in self._answers:
                    self._answers.move_to_end(key)
                else:
                    new.setdefault(key.namespace, {})[key] = _question(key)
        for namespace, questions in new.items():
            answers = self._engine(namespace).decide(list(questions.values()))
            self._answers.update(zip(questions, answers, strict=True))
        for waiting in self._waiting:
            try:
                self._tell(waiting.seen, _settled([self._answers[key] for key in waiting.keys]))
            except NotReplayed as why:
                self._reasons.add(str(why))
        self._waiting.clear()
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def _tell(self, seen: Seen, answer: Answer) -> None:
        intent, result = seen.intent, self._result
        result.replayed += 1
        would_be = _said(answer.action.value, answer.would.action.value if answer.would else "")
        self._decisions[would_be] += 1
        was = _said("RequireApproval" if intent.approval else intent.decision, intent.would)
        is_refused = intent.decision == "Deny" and answer.action.value == "RequireApproval"
        if was == would_be or (is_refused and (intent.policy, intent.rule) == (answer.policy, answer.rule)):
            return  # people did not approve: the rule is the same
        result.changed += 1
        identity, was_rule = f"{seen.namespace}/{seen.identity}", _rule(intent.policy, intent.rule)
        rule = _rule(answer.policy, answer.rule)
        key = (identity, intent.target, was, was_rule, would_be, rule, answer.message)
        if key not in self._changes:
            if len(self._changes) >= MAX_CHANGES:
                result.other_changes += 1
                return
            text = "(not kept)" if seen.text is None else shortened(seen.text[:4096].decode(errors="replace"))
            self._changes[key] = Change(*key, text, intent.session, intent.command)
        self._changes[key].count += 1


@functools.lru_cache(maxsize=10_000)
def _recorded(entries: tuple[record.AccessEntry, ...], resolution: str) -> tuple[Access, ...]:
    try:
        Resolution(resolution)
        return tuple(Access(Effect(one.effect), one.object, one.through) for one in entries)
    except ValueError as error:
        raise NotReplayed("its record has words of another version") from error


def _question(key: Key) -> Question:
    facts = Facts(key.accesses, Resolution(key.resolution), extents=key.extents)
    # What is only prepared reaches nothing: a gateway says so, too.
    more = {"rows": 0} if key.is_parse else {}
    return question(key.identity, key.target, key.protocol, facts, minute=key.minute, **more)


def _settled(answers: list[Answer | None]) -> Answer:
    """The answer, where it depends on nothing that is not recorded.

    Raises:
        NotReplayed: it does.
    """
    worst = answers[0]
    for answer in answers:
        if answer is None or worst is None:
            raise NotReplayed("the Rego of a policy fails on it, which at a gateway denies")
        if answer.needs:
            raise NotReplayed("an estimate of rows decides, and estimates are not recorded")
        if answer.counts:
            raise NotReplayed("it depends on how often a rule was used before")
        if answer.action is not worst.action:
            raise NotReplayed("WHERE or LIMIT decides, and its text is masked or not here")
    if worst is None:
        raise NotReplayed("OPA gives no answer")
    return worst


def _said(action: str, would: str) -> str:
    return f"{action} (would be {would})" if would else action


def _rule(policy: str, rule: str) -> str:
    return f"{rule} of {policy}" if policy else rule
