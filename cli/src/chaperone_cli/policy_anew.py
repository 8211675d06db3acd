"""Recorded commands, decided anew: the question is made again from the record and its text, and OPA is asked.

Commands are asked about in batches; a question that came before is not asked again. Memory is bounded by a window of
commands and the remembered answers. What a record does not say is never made up: such a command is `NotRepeatable`.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_cli.policy_ask import Engine, Question
from chaperone_cli.policy_facts import PROTOCOL, Classifier, question, reach
from chaperone_cli.policy_history import Seen
from chaperone_evidence import record
from chaperone_sidecar.command import Access, Effect, Extent, Facts, Resolution
from chaperone_sidecar.limits.reached import RULE_PREFIX
from chaperone_sidecar.policy.decider import Answer
from chaperone_sidecar.recording.recorder import MAX_RECORDED_ACCESSES

WINDOW: Final = 20_000  # commands that are read before OPA is asked
MAX_ANSWERS: Final = 50_000  # that are remembered
_BEST: Final = Extent(has_where=True, limit=0)
_NOT_OF_RULES: Final = frozenset({"policy-unavailable", "cancelled", "unmaskable"})
_MASKED: Final = "[masked]"


class Key(msgspec.Struct, frozen=True):
    """All that a question depends on; what the policies there do not look at is left out."""

    place: str  # which policies
    identity: str
    target: str
    protocol: str
    resolution: str
    minute: int
    is_parse: bool
    accesses: tuple[Access, ...]
    extents: tuple[Extent, ...]
    rows: int | None
    uses: tuple[record.Use, ...]


class NotRepeatable(Exception):
    """A command that cannot be decided anew; the text says why."""


class _Waiting(msgspec.Struct, frozen=True):
    """A command, and the questions that decide it: one, or two where it is not known how far it reaches."""

    seen: Seen
    keys: tuple[Key, ...]


class Anew:
    """Decides commands anew.

    Args:
        tell: is given each command with its answer.
        miss: is given each command that cannot be decided, and why.
        is_same: these are the policies that decided then, so what is recorded of the circumstances is all there was.
    """

    def __init__(
        self, tell: Callable[[Seen, Answer], None], miss: Callable[[Seen, str], None], *, is_same: bool
    ) -> None:
        self._tell = tell
        self._miss = miss
        self._is_same = is_same
        self._classifier = Classifier()
        self._answers: OrderedDict[Key, Answer | None] = OrderedDict()
        self._waiting: list[_Waiting] = []
        self._engines: dict[str, Engine] = {}

    def add(self, seen: Seen, place: str, engine: Engine) -> None:
        """Take a command in; it is told at the latest by `finish`.

        Args:
            seen: the command.
            place: names the policies.
            engine: has them.

        Raises:
            Unusable: OPA cannot be asked.
        """
        self._engines[place] = engine
        try:
            self._waiting.append(_Waiting(seen, self._keys(seen, place, engine)))
        except NotRepeatable as why:
            self._miss(seen, str(why))
        if len(self._waiting) >= WINDOW:
            self.finish()

    def finish(self) -> None:
        """Ask what is not known yet, and tell what became of the commands that wait.

        Raises:
            Unusable: OPA cannot be asked.
        """
        new: dict[str, dict[Key, Question]] = {}
        for waiting in self._waiting:
            for key in waiting.keys:
                if key in self._answers:
                    self._answers.move_to_end(key)
                else:
                    new.setdefault(key.place, {})[key] = _question(key)
        for place, questions in new.items():
            answers = self._engines[place].decide(list(questions.values()))
            self._answers.update(zip(questions, answers, strict=True))
        for waiting in self._waiting:
            try:
                answer = self._settled(waiting)
            except NotRepeatable as why:
                self._miss(waiting.seen, str(why))
            else:
                self._tell(waiting.seen, answer)
        self._waiting.clear()
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def _keys(self, seen: Seen, place: str, engine: Engine) -> tuple[Key, ...]:
        intent = seen.intent
        if intent.rule.startswith(RULE_PREFIX) or (not intent.policy and intent.rule in _NOT_OF_RULES):
            raise NotRepeatable(f"it was refused by {intent.rule}, which is no matter of rules")
        if not seen.protocol:
            raise NotRepeatable("the beginning of its session is not here")
        if intent.subject and engine.depends_on_user(seen.identity, intent.target):
            raise NotRepeatable("it may depend on the groups of its user, which are not recorded")
        goes_by_time, goes_by_extent = engine.depends(seen.identity, intent.target)
        accesses, extents = self._accesses(seen, is_read=goes_by_extent or not self._is_same)
        minute, rows, uses = _circumstances(intent)
        asked = Key(
            place, seen.identity, intent.target, seen.protocol, intent.resolution,
            minute if goes_by_time else 0, intent.kind == "parse", accesses, (), rows, uses,
        )  # fmt: skip
        if not goes_by_extent:
            return (asked,)
        if extents is not None:
            return (msgspec.structs.replace(asked, extents=extents),)
        best = tuple(Extent() if access.through else _BEST for access in accesses)
        return (asked, msgspec.structs.replace(asked, extents=best))

    def _accesses(self, seen: Seen, *, is_read: bool) -> tuple[tuple[Access, ...], tuple[Extent, ...] | None]:
        """What the record says that the command does, and how far that reaches, by its text; None where unknown."""
        intent = seen.intent
        accesses = _recorded(intent.accesses, intent.resolution)
        if not accesses or len(accesses) >= MAX_RECORDED_ACCESSES:
            raise NotRepeatable("its record does not list all that it does")
        if any(_MASKED in name for one in accesses for name in (one.object, one.through)):
            raise NotRepeatable("its record hides names of objects")
        is_whole = not isinstance(intent.body, msgspec.UnsetType) and intent.body.size == intent.size_bytes
        # Texts of other protocols are not read here: what is recorded of them has to do.
        if not is_read or seen.protocol != PROTOCOL or seen.text is None or intent.is_masked or not is_whole:
            return accesses, None
        reached = reach(self._classifier.read(seen.text).facts)
        if not reached.keys() <= set(accesses):
            if Access(Effect.UNKNOWN) not in accesses:
                raise NotRepeatable("its record and its text do not say the same")
            return accesses, None
        return accesses, tuple(reached.get(access, Extent()) for access in accesses)

    def _settled(self, waiting: _Waiting) -> Answer:
        """The answer, where it depends on nothing that is not recorded.

        Raises:
            NotRepeatable: it does.
        """
        answers = [self._answers[key] for key in waiting.keys]
        around = waiting.seen.intent.circumstances
        is_known = self._is_same and isinstance(around, record.Circumstances)
        worst = answers[0]
        for answer in answers:
            if answer is None or worst is None:
                raise NotRepeatable("the Rego of a policy fails on it, which at a gateway denies")
            if answer.needs and not is_known:
                raise NotRepeatable("an estimate of rows decides, and estimates are not recorded")
            if answer.counts and not is_known:
                raise NotRepeatable("it depends on how often a rule was used before")
            if answer.action is not worst.action:
                raise NotRepeatable("WHERE or LIMIT decides, and its text is masked or not here")
        if worst is None:
            raise NotRepeatable("OPA gives no answer")
        return worst


@functools.lru_cache(maxsize=10_000)
def _recorded(entries: tuple[record.AccessEntry, ...], resolution: str) -> tuple[Access, ...]:
    try:
        Resolution(resolution)
        return tuple(Access(Effect(one.effect), one.object, one.through) for one in entries)
    except ValueError as error:
        raise NotRepeatable("its record has words of another version") from error


def _circumstances(intent: record.CommandIntent) -> tuple[int, int | None, tuple[record.Use, ...]]:
    """The minute that was asked about, the estimate and the uses, as far as they are recorded."""
    around = intent.circumstances
    minute = intent.wall_us // 60_000_000
    if not isinstance(around, record.Circumstances):
        return minute, None, ()
    minute = around.minute if isinstance(around.minute, int) else minute
    return minute, around.rows if isinstance(around.rows, int) else None, around.uses


def _question(key: Key) -> Question:
    facts = Facts(key.accesses, Resolution(key.resolution), extents=key.extents)
    more: dict[str, object] = {} if key.rows is None else {"rows": key.rows}
    if key.is_parse:
        more["rows"] = 0  # what is only prepared reaches nothing: a gateway says so, too
    if key.uses:
        more["repeats"] = {use.rule: use.count for use in key.uses}
    return question(key.identity, key.target, key.protocol, facts, minute=key.minute, **more)


def said(action: str, would: str) -> str:
    """A decision, and what it would be if observed policies were in force."""
    return f"{action} (would be {would})" if would else action


def was(intent: record.CommandIntent) -> str:
    """What the rules said of a command then: one that people allowed was held."""
    return said("RequireApproval" if intent.approval else intent.decision, intent.would)


def would_be(answer: Answer) -> str:
    """What they say now."""
    return said(answer.action.value, answer.would.action.value if answer.would else "")


def is_refused_by_people(intent: record.CommandIntent, answer: Answer) -> bool:
    """People did not approve: the rule is the same."""
    is_refused = intent.decision == "Deny" and answer.action.value == "RequireApproval"
    return is_refused and (intent.policy, intent.rule) == (answer.policy, answer.rule)


def rule_of(policy: str, rule: str) -> str:
    """A rule, for people."""
    return f"{rule} of {policy}" if policy else rule
