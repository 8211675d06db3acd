"""`chaperone diff --revision A --revision B`: which recorded decisions differ between two revisions of policy.

Both come out of evidence, verified; the commands are those of the evidence, whichever revision decided them then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
import msgspec

from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.export import CannotExport, fetch_bundle
from chaperone_cli.kubectl import CannotAsk, Cluster, evidence_path, place
from chaperone_cli.period_bundles import Keys, fetched
from chaperone_cli.policy_anew import Anew, rule_of, would_be
from chaperone_cli.policy_ask import Engine
from chaperone_cli.policy_explain import shortened
from chaperone_cli.policy_history import History, Seen, Tally
from chaperone_cli.policy_world import Unusable, opa_program
from chaperone_cli.report.asking import Asking
from chaperone_cli.report.rows import part
from chaperone_cli.revisions import keep
from chaperone_cli.say import say
from chaperone_cli.verify import read_policy
from chaperone_sidecar.policy.decider import Answer

SAME, DIFFERENT, CANNOT = 0, 1, 2
MAX_SHOWN: Final = 50
MAX_CHANGES: Final = 1000  # different ones that are kept; all are counted
MAX_REASONS: Final = 100


class Change(msgspec.Struct):
    """Commands that meet one thing under the first revision and another under the second; the text is the first's."""

    identity: str
    target: str
    first: str
    first_rule: str
    second: str
    second_rule: str
    text: str
    session: str
    command: str
    count: int = 0


class Result(msgspec.Struct):
    """What differs."""

    commands: int = 0
    compared: int = 0
    differences: int = 0
    changes: list[Change] = []
    not_repeatable: dict[str, int] = {}


class Between:
    """Asks both revisions about each command; a context manager."""

    def __init__(self, bundles: tuple[bytes, bytes], revisions: tuple[str, str]) -> None:
        os.environ.setdefault("CHAPERONE_OPA", opa_program())
        self._stack = ExitStack()
        self._engines = [self._stack.enter_context(Engine(one)) for one in bundles]
        self._revisions = revisions
        self._answers: list[dict[tuple[str, int], Answer]] = [{}, {}]
        self._anew = [
            Anew(lambda seen, answer, n=number: self._take(n, seen, answer), self._miss, is_same=False)  # type: ignore[misc]
            for number in range(2)
        ]
        self._missed: dict[tuple[str, int], str] = {}
        self._reasons = Tally(MAX_REASONS)
        self._changes: dict[tuple[str, ...], Change] = {}
        self.result = Result(0, 0, 0, [], {})

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, commands: Iterator[Seen]) -> None:
        """Compare what both say of these commands.

        Raises:
            Unusable: OPA cannot be asked.
        """
        for seen in commands:
            self.result.commands += 1
            for anew, engine, revision in zip(self._anew, self._engines, self._revisions, strict=True):
                anew.add(seen, revision, engine)
        for anew in self._anew:
            anew.finish()
        for why in self._missed.values():
            self._reasons.add(why)
        self._missed.clear()
        for one in self._answers:
            one.clear()
        self.result.changes = sorted(self._changes.values(), key=lambda one: -one.count)
        self.result.not_repeatable = dict(self._reasons.counts.most_common())

    def _take(self, number: int, seen: Seen, answer: Answer) -> None:
        place = (seen.stream, seen.intent.seq)
        if place in self._missed:
            return
        other = self._answers[1 - number].pop(place, None)
        if other is None:
            self._answers[number][place] = answer
            return
        first, second = (other, answer) if number else (answer, other)
        self.result.compared += 1
        key = (
            f"{seen.namespace}/{seen.identity}", seen.intent.target, would_be(first),
            rule_of(first.policy, first.rule), would_be(second), rule_of(second.policy, second.rule),
        )  # fmt: skip
        if key[2:4] == key[4:6]:
            return
        self.result.differences += 1
        if key not in self._changes and len(self._changes) < MAX_CHANGES:
            text = "(not kept)" if seen.text is None else shortened(seen.text[:4096].decode(errors="replace"))
            self._changes[key] = Change(*key, text, seen.intent.session, seen.intent.command)
        if key in self._changes:
            self._changes[key].count += 1

    def _miss(self, seen: Seen, why: str) -> None:
        place = (seen.stream, seen.intent.seq)
        self._missed[place] = why
        for one in self._answers:
            one.pop(place, None)


def run(
    paths: tuple[Path, ...], revisions: tuple[str, str], period: tuple[str, str], cluster: Cluster, namespace: str,
    keys: Keys, *, as_json: bool,
) -> int:  # fmt: skip
    """Compare two revisions over the commands of bundles, or of a period; returns the exit status."""
    try:
        with TemporaryDirectory() as folder:
            sources = list(paths) if paths else list(_fetch(cluster, namespace, revisions, Path(folder)))
            found = {name: _bundle(sources, name, keys) for name in revisions}
            with Between((found[revisions[0]], found[revisions[1]]), revisions) as between:
                for path, session in _evidence(paths, cluster, namespace, period, keys):
                    with open_source(path) as source:
                        history = History(source, has_texts=True)
                        between.add(one for one in history if session in ("", one.intent.session))
    except (Unusable, CannotVerify, CannotExport, CannotAsk, OSError) as error:
        say(f"diff: CANNOT COMPARE: {error}", err=True)
        return CANNOT
    result = between.result
    if as_json:
        click.echo(msgspec.json.encode({"same": not result.differences} | msgspec.to_builtins(result)))
    else:
        _show(result)
    return DIFFERENT if result.differences else SAME


def _evidence(
    paths: tuple[Path, ...], cluster: Cluster, namespace: str, period: tuple[str, str], keys: Keys
) -> Iterator[tuple[Path, str]]:
    """Bundles, each with the session that is meant in it; "" for all."""
    if paths:
        yield from ((path, "") for path in paths)
        return
    for session, path, _ in fetched(cluster, namespace, *period, keys):
        yield path, session


def _fetch(cluster: Cluster, namespace: str, revisions: tuple[str, str], folder: Path) -> Iterator[Path]:
    """Bundles of the revisions, from the cluster."""
    where = place(cluster, namespace)
    serials: dict[str, str] = {}
    for one in Asking(cluster, where).evidence("policyrevisions"):
        serials[str(part(one, "spec", "revision"))] = str(part(one, "metadata", "name"))
    for name in revisions:
        if name in serials:
            path = folder / f"{name}.tar"
            fetch_bundle(cluster, f"{evidence_path('policyrevisions', where)}/{serials[name]}/proof", path)
            yield path


def _bundle(paths: list[Path], revision: str, keys: Keys) -> bytes:
    """What OPA gets of a revision.

    Raises:
        CannotVerify: none of the bundles has it, verified.
    """
    for path in paths:
        with open_source(path) as source:
            kept = keep(source, (), keys.operator, read_policy(source, keys.log_policy))
        for (_, name), one in kept.sound.items():
            if name == revision:
                return one.files.bundle
        for problem in kept.problems:
            if revision in problem.where:
                raise CannotVerify(str(problem))
    raise CannotVerify(f"Revision {revision} is not in the evidence; see kubectl get policyrevisions.")


def _show(result: Result) -> None:
    for one in result.changes[:MAX_SHOWN]:
        say(f"change: {one.count} × {one.first} by {one.first_rule} → {one.second} by {one.second_rule}")
        say(f"          {one.identity} at {one.target}")
        say(f"          first in session {one.session}, command {one.command}: {one.text}")
    if len(result.changes) > MAX_SHOWN:
        say(f"change: {len(result.changes) - MAX_SHOWN} more kinds; --json shows them")
    for why, count in result.not_repeatable.items():
        say(f"not repeatable: {count} × {why}")
    say(f"diff: {result.differences} of {result.compared} decisions differ, of {result.commands} commands")
