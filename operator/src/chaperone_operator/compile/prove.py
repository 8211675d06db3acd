"""Tests of a policy: what it says to statements, or to facts, that its author wrote down.

The policy is tested alone and as if it were in force, whatever its mode: what other policies add depends on where it is
applied. Facts are given as a classifier would find them; statements are read by the gateways' own, which runs as a
program (`facts.py`), for a parser of hostile texts has no place in the operator. The engine is the one that gateways
ask.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from chaperone_operator.compile import facts, grants, opa, rego
from chaperone_operator.compile.model import ClusterPolicySpec, PolicySpec, PolicyTest
from chaperone_operator.compile.vocabulary import EFFECTS, WILDCARD

MAX_TESTS: Final = 50
MAX_ACCESSES: Final = 20  # of one test
MAX_SQL: Final = 4096  # characters of one statement; a longer one says nothing that a short one does not
MAX_FOUND: Final = 50  # accesses of one statement: the engine takes up to a millisecond for each
_POLICY: Final = "policy"  # what it is called while it is tested
_PROTOCOL: Final = "PostgreSQL"
_NOT_RULES: Final = frozenset({"uncovered", "rego", "clock"})
_QUERY: Final = "[decision | some question in input; decision := data.chaperone.decision with input as question]"


def problems(spec: PolicySpec | ClusterPolicySpec) -> Iterator[tuple[str, str]]:
    """What is wrong with a sound policy's tests, and which of them fail: a reason, and a message."""
    tests = spec.tests or ()
    if len(tests) > MAX_TESTS:
        yield "TooManyTests", f"spec.tests: more than {MAX_TESTS}."
        return
    unsound = [found for index, test in enumerate(tests) for found in _unsound(spec, test, f"spec.tests[{index}]")]
    yield from unsound
    if tests and not unsound:
        try:
            yield from _failures(msgspec.json.encode(spec), type(spec))
        except opa.NoOpa as error:
            yield "TestsNotRun", f"spec.tests: {error}."
        except _NotRead as error:
            yield "TestFails", str(error)


def _unsound(spec: PolicySpec | ClusterPolicySpec, test: PolicyTest, at: str) -> Iterator[tuple[str, str]]:
    if (test.sql is None) == (test.accesses is None):
        yield "BadTest", f"{at}: either sql, a statement, or accesses, what the classifier finds in one."
    if test.sql is not None and not 1 <= len(test.sql) <= MAX_SQL:
        yield "BadTest", f"{at}.sql: 1 to {MAX_SQL} characters."
    accesses = test.accesses or ()
    if test.accesses is not None and not 1 <= len(accesses) <= MAX_ACCESSES:
        yield "BadTest", f"{at}.accesses: 1 to {MAX_ACCESSES}, as the classifier finds them."
    for index, access in enumerate(accesses):
        if access.effect not in EFFECTS:
            yield "BadTest", f"{at}.accesses[{index}].effect: {access.effect!r} is no effect."
    if isinstance(spec, PolicySpec) and test.identity and test.identity not in {one.identity for one in spec.subjects}:
        yield "BadTest", f"{at}.identity: {test.identity!r} is none of the policy's subjects."
    targets = {one.name for one in spec.targets}
    if test.target and not {test.target, WILDCARD} & targets:
        yield "BadTest", f"{at}.target: {test.target!r} is none of the policy's targets."
    rules = {rule.name for rule in spec.rules}
    if test.expect.rule is not None and test.expect.rule not in rules | _NOT_RULES:
        yield "BadTest", f"{at}.expect.rule: the policy has no rule {test.expect.rule!r}."
    for name in test.repeats or {}:
        if name not in rules:
            yield "BadTest", f"{at}.repeats: the policy has no rule {name!r}."
    if test.at is not None and _minute(test.at) is None:
        yield "BadTest", f"{at}.at: {test.at!r} is no moment such as 2026-07-03T10:00:00Z."


class _NotRead(Exception):
    """A test's statement cannot be read; the text is that of the problem. Never remembered: it may be bad luck."""


@functools.lru_cache(maxsize=256)
def _failures(encoded: bytes, kind: type[PolicySpec] | type[ClusterPolicySpec]) -> tuple[tuple[str, str], ...]:
    """Which tests of a policy fail; remembered, since a policy is looked at each time that anything changes."""
    spec = msgspec.json.decode(encoded, type=kind)
    tests = spec.tests or ()
    read = _read(tests)
    decisions = _decide(spec, [_question(spec, test, read.get(index)) for index, test in enumerate(tests)])
    found = []
    for index, (test, decision) in enumerate(zip(tests, decisions, strict=True)):
        rule = test.expect.rule
        if decision["action"] != test.expect.action or rule not in {None, decision["rule"]}:
            by = f" by {rule}" if rule is not None else ""
            told = decision["message"] or "There is no more to say."
            if index in read and read[index].why:
                told = f"{told} {read[index].why}"
            found.append(
                (
                    "TestFails",
                    f"spec.tests[{index}] ({test.name}): expected {test.expect.action}{by}, but it is "
                    f"{decision['action']} by {decision['rule']}. {told}",
                )
            )
    return tuple(found)


def _read(tests: Sequence[PolicyTest]) -> dict[int, facts.Facts]:
    """Facts of the tests that are statements, by the test's place; one run of the program for all of them.

    Raises:
        _NotRead: a statement does not parse (a slip would pass for a refusal), or the program fails at it.
    """
    texts = {index: test.sql for index, test in enumerate(tests) if test.sql is not None}
    places = list(texts)

    def not_read(index: int, why: str) -> _NotRead:
        return _NotRead(f"spec.tests[{index}] ({tests[index].name}): its statement cannot be read: {why}")

    try:
        found = dict(zip(places, facts.read(list(texts.values())) if texts else (), strict=True))
    except facts.NoFacts as error:
        raise not_read(places[error.index], str(error)) from error
    for index, one in found.items():
        if not one.parses:
            raise not_read(index, one.why)
        if len(one.accesses) > MAX_FOUND:
            raise not_read(index, f"It touches more than {MAX_FOUND} objects.")
    return found


def _question(spec: PolicySpec | ClusterPolicySpec, test: PolicyTest, read: facts.Facts | None) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "identity": test.identity or spec.subjects[0].identity or "",
        "target": test.target or spec.targets[0].name,
        "protocol": _PROTOCOL,
        "resolution": read.resolution if read else "catalog",
        "accesses": read.accesses if read else [_access(access) for access in test.accesses or ()],
        "repeats": {f"{_POLICY}/{rule}": count for rule, count in (test.repeats or {}).items()},
    }
    if test.rows is not None:
        asked["rows"] = test.rows
    if test.user is not None:
        asked["user"] = msgspec.structs.asdict(test.user)
    if test.at is not None:
        asked["minute"] = _minute(test.at)
    return asked


def _access(access: Any) -> dict[str, Any]:  # noqa: ANN401 - one of a test's accesses
    return {name: value for name, value in msgspec.structs.asdict(access).items() if value not in (None, "", False)} | {
        "object": access.object
    }


def _decide(spec: PolicySpec | ClusterPolicySpec, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from chaperone_operator.compile.snapshot import bundle, engine  # noqa: PLC0415 - which imports what checks policies

    windows = spec.windows or ()
    bound, own = [], []
    for identity, target in {(one["identity"], one["target"]) for one in questions}:
        bound += [grants.Bound(identity, target, _POLICY, False, rule, windows) for rule in spec.rules]
        if spec.rego is not None:
            own.append(grants.Own(identity, target, _POLICY, rego.name(_POLICY), windows))
    protocols = {one["target"]: _PROTOCOL for one in questions}
    data = {"revision": "test", "identities": {}, "grants": grants.grants(bound, protocols, own)}
    modules = {} if spec.rego is None else {rego.name(_POLICY): rego.module(_POLICY, spec.rego)}
    with opa.folder() as folder:
        path = Path(folder) / "bundle.tar.gz"
        path.write_bytes(bundle(data, "test", engine(), modules))
        answer = opa.run(
            "eval", "--format", "raw", "--bundle", str(path), "--stdin-input", _QUERY, stdin=json.dumps(questions)
        )
    decisions: list[dict[str, Any]] = opa.read(answer.stdout)
    return decisions


def _minute(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(moment.timestamp()) // 60 if moment.tzinfo is not None else None
