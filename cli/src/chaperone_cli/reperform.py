"""Re-performance: each recorded decision, made again by the very revision of policy that the record names, offline.

The revision's bundle comes out of the evidence, verified (`revisions.py`): it is the one that the operator signed, and
with the log's keys the one that the log has. What cannot be asked again is counted with its reason, never as agreed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

import msgspec

from chaperone_cli.policy_anew import Anew, is_refused_by_people, rule_of, was, would_be
from chaperone_cli.policy_ask import Engine
from chaperone_cli.policy_history import Seen, Tally
from chaperone_cli.policy_world import opa_program
from chaperone_cli.revisions import Kept
from chaperone_evidence.revision import Revision
from chaperone_sidecar.policy.decider import Answer

AGREES, DIFFERS, NOT_REPEATABLE = "agrees", "differs", "not repeatable"
MAX_EXCEPTIONS: Final = 1000  # that are kept; all are counted
MAX_REASONS: Final = 100
MAX_ENGINES: Final = 1000  # revisions of one evidence that are asked


class Again(msgspec.Struct, frozen=True):
    """A recorded decision, and what became of it when policy was asked again."""

    stream: str
    seq: int
    namespace: str
    identity: str
    session: str
    command: str
    revision: str
    was: str
    was_rule: str
    again: str
    again_rule: str
    verdict: str
    why: str


class Result(msgspec.Struct):
    """The figure, and the exceptions."""

    commands: int = 0
    reperformed: int = 0
    differences: int = 0
    exceptions: list[Again] = []
    not_repeatable: dict[str, int] = {}
    faults: list[str] = []

    def add(self, other: Result) -> None:
        """Take another evidence in."""
        self.commands += other.commands
        self.reperformed += other.reperformed
        self.differences += other.differences
        self.exceptions += other.exceptions[: MAX_EXCEPTIONS - len(self.exceptions)]
        for why, count in other.not_repeatable.items():
            self.not_repeatable[why] = self.not_repeatable.get(why, 0) + count
        self.faults += other.faults


class Reperformance:
    """Asks again; engines are kept for as long as `with` lasts.

    Args:
        tell: is given each command; in the order in which they become known.
    """

    def __init__(self, tell: Callable[[Again], None] = lambda _: None) -> None:
        self._on_each = tell
        self._stack = ExitStack()
        self._engines: dict[tuple[str, str], Engine | None] = {}
        self._anew = Anew(self._tell, self._miss, is_same=True)
        self._result = Result()
        self._reasons = Tally(MAX_REASONS)
        os.environ.setdefault("CHAPERONE_OPA", opa_program())

    def __enter__(self) -> Reperformance:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, history: Iterable[Seen], kept: Kept) -> Result:
        """Make the decisions of these commands again.

        Args:
            history: the commands, of evidence that was verified.
            kept: the revisions that are there, verified.

        Raises:
            Unusable: OPA cannot be asked.
        """
        self._result, self._reasons = Result(0, 0, 0, [], {}, []), Tally(MAX_REASONS)
        for seen in history:
            self._result.commands += 1
            name = (seen.namespace, seen.intent.revision)
            engine = self._engine(name, kept.sound.get(name))
            if engine is None:
                self._miss(seen, _missing(seen, kept))
            else:
                self._anew.add(seen, f"{name[0]}/{name[1]}", engine)
        self._anew.finish()
        self._result.not_repeatable = dict(self._reasons.counts.most_common())
        return self._result

    def _engine(self, name: tuple[str, str], revision: Revision | None) -> Engine | None:
        if self._engines.get(name) is None and revision is not None and len(self._engines) < MAX_ENGINES:
            self._engines[name] = self._stack.enter_context(Engine(revision.files.bundle))
        return self._engines.get(name)

    def _tell(self, seen: Seen, answer: Answer) -> None:
        intent, result = seen.intent, self._result
        result.reperformed += 1
        is_same = (was(intent), intent.policy, intent.rule) == (would_be(answer), answer.policy, answer.rule)
        is_same = is_same or is_refused_by_people(intent, answer)
        why = ""
        if answer.revision != intent.revision:
            is_same, why = False, f"its bundle says that it is revision {answer.revision}"
        made = _again(seen, AGREES if is_same else DIFFERS, why, answer)
        if not is_same:
            result.differences += 1
            if len(result.exceptions) < MAX_EXCEPTIONS:
                result.exceptions.append(made)
        self._on_each(made)

    def _miss(self, seen: Seen, why: str) -> None:
        self._reasons.add(why)
        self._on_each(_again(seen, NOT_REPEATABLE, why, None))


def _missing(seen: Seen, kept: Kept) -> str:
    if not seen.intent.revision:
        return "its record names no revision of policy"
    if (seen.namespace, seen.intent.revision) in kept.absent:
        return "the log does not have the revision of policy that decided it"
    return "the revision of policy that decided it is not here, or does not hold"


def _again(seen: Seen, verdict: str, why: str, answer: Answer | None) -> Again:
    intent = seen.intent
    return Again(
        stream=seen.stream, seq=intent.seq, namespace=seen.namespace, identity=seen.identity, session=intent.session,
        command=intent.command, revision=intent.revision, was=was(intent), was_rule=rule_of(intent.policy, intent.rule),
        again=would_be(answer) if answer else "", again_rule=rule_of(answer.policy, answer.rule) if answer else "",
        verdict=verdict, why=why,
    )  # fmt: skip
