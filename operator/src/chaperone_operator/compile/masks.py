"""Masks: what policies and targets may say of what is shown, and what a gateway is told of it.

Masks are united: those of all policies that bind an identity to a target, and the classified columns of the target. Of
several methods for one value the gateway takes the one that says least, so uniting loses nothing; of several
`unmaskable` the strictest counts here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from chaperone_operator.compile import glob, pattern
from chaperone_operator.compile.binding import Binding
from chaperone_operator.compile.model import Classified, ClusterPolicySpec, Mask, Pattern, PolicySpec, TargetSpec
from chaperone_operator.compile.problem import Problem
from chaperone_operator.compile.vocabulary import COLUMNS, DETECTORS, MASKABLE, METHODS, UNMASKABLE

MAX_MASKS: Final = 50  # of a policy
MAX_COLUMNS: Final = 100  # of one mask; each is an expression that every column of a result is held against
MAX_CLASSIFIED: Final = 100  # entries of a target
MAX_PATTERNS: Final = 32  # at one target: each is an automaton of its own in the gateway


def problems(spec: PolicySpec | ClusterPolicySpec, protocols: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a policy's masks: a reason, and a message that begins with the field."""
    masks = spec.masks
    if masks is None:
        return
    if not masks:
        yield "NoMask", "spec.masks: empty; name a mask or leave it out."
    if len(masks) > MAX_MASKS:
        yield "TooManyMasks", f"spec.masks: more than {MAX_MASKS}; split the policy."
    for protocol in sorted(set(protocols) - MASKABLE):
        yield "MaskNotPossible", f"spec.masks: answers of {protocol} cannot be masked; take its targets out."
    for index, mask in enumerate(masks):
        if mask.columns and protocols and COLUMNS.isdisjoint(protocols):
            spoken = " and ".join(sorted(protocols))
            yield (
                "MaskNotPossible",
                f"spec.masks[{index}].columns: answers of {spoken} have no columns; use detectors or patterns.",
            )
        for reason, message in _mask_problems(mask):
            yield reason, f"spec.masks[{index}]{message}"
    names = Counter(own.name for own in _patterns(spec))
    for name, count in sorted(names.items()):
        if count > 1:
            yield "DuplicatePattern", f"spec.masks: {count} patterns are named {name!r}; names must be unique."
    if len(names) > MAX_PATTERNS:
        yield "TooManyPatterns", f"spec.masks: more than {MAX_PATTERNS} patterns; join some of them by |."


def classified_problems(spec: TargetSpec) -> Iterator[tuple[str, str]]:
    """What is wrong with a target's classified columns."""
    if len(spec.classified) > MAX_CLASSIFIED:
        yield "TooManyClassified", f"spec.classified: more than {MAX_CLASSIFIED}; join columns of one class."
    if spec.classified and spec.protocol not in COLUMNS:
        yield "MaskNotPossible", f"spec.classified: answers of {spec.protocol} have no columns; remove it."
    for index, entry in enumerate(spec.classified):
        at = f"spec.classified[{index}]"
        if not entry.columns:
            yield "NoColumns", f"{at}.columns: empty, so nothing is classified; name columns."
        for reason, message in _column_problems(entry.columns):
            yield reason, f"{at}{message}"
        try:
            # A class may be a detector's name: it then means its kind.
            if entry.kind not in DETECTORS:
                pattern.check_name(entry.kind)
        except pattern.BadExpression as error:
            yield "BadClass", f"{at}.class: {entry.kind!r}: {error}."


def clashes(bindings: Iterable[Binding]) -> Iterator[Problem]:
    """What policies that are sound alone cannot say together: told at each of them, so that none is half applied."""
    pairs: dict[tuple[str, str], list[Binding]] = {}
    for one in bindings:
        if any(_patterns(one.spec)):
            pairs.setdefault((one.identity, one.target), []).append(one)
    for (identity, target), bound in sorted(pairs.items()):
        where = f"for identity {identity} at {target}"
        said: dict[str, dict[str, list[Binding]]] = {}
        for one in sorted(bound, key=lambda one: one.policy):
            for own in _patterns(one.spec):
                said.setdefault(own.name, {}).setdefault(own.pattern, []).append(one)
        for name, by_text in sorted(said.items()):
            if len(by_text) > 1:
                yield from _clash(name, list(by_text.values()), where)
        if len(said) > MAX_PATTERNS:
            message = (
                f"spec.masks: all policies {where} have {len(said)} patterns, more than {MAX_PATTERNS}; join some."
            )
            yield from (one.problem("TooManyPatterns", message) for one in bound)


def in_force(
    specs: Iterable[PolicySpec | ClusterPolicySpec], classified: Iterable[Classified]
) -> dict[str, Any] | None:
    """All masks of one identity at one target, as the gateway's configuration says them; None when nothing is masked.

    One rule for each method, everything in it sorted, so that the order of policies has no meaning.
    """
    columns: dict[str, set[str]] = {}
    detectors: dict[str, set[str]] = {}
    patterns: dict[str, set[tuple[str, str]]] = {}
    specs, classified = tuple(specs), tuple(classified)
    unmaskable: set[str] = set()
    if classified and not any(isinstance(one, ClusterPolicySpec) and one.unmaskable is not None for one in specs):
        unmaskable.add(UNMASKABLE[0])  # what a target classifies no namespace's policy may loosen
    for spec in specs:
        if spec.unmaskable is not None or spec.masks:
            unmaskable.add(spec.unmaskable or UNMASKABLE[0])
        for mask in spec.masks or ():
            how = mask.method or METHODS[0]
            columns.setdefault(how, set()).update(mask.columns)
            detectors.setdefault(how, set()).update(mask.detectors)
            patterns.setdefault(how, set()).update((own.name, own.pattern) for own in mask.patterns)
    rules = [
        {
            "method": how,
            "columns": sorted(columns[how]),
            "detectors": [
                *sorted(detectors[how]),
                *({"name": name, "pattern": text} for name, text in sorted(patterns[how])),
            ],
        }
        for how in METHODS
        if how in columns
    ]
    classes = sorted({(entry.kind, tuple(sorted(set(entry.columns)))) for entry in classified})
    if not rules and not classes:
        return None
    return {
        "rules": rules,
        "classified": [{"columns": list(named), "class": kind} for kind, named in classes],
        "unmaskable": min(unmaskable, key=UNMASKABLE.index, default=UNMASKABLE[0]),
    }


def _mask_problems(mask: Mask) -> Iterator[tuple[str, str]]:
    if mask.method is None:
        yield "NoMethod", '.method: missing; write Redact, Partial, Hash or "Null", with the quotation marks.'
    if not mask.columns and not mask.detectors and not mask.patterns:
        yield "EmptyMask", ": names neither columns, detectors nor patterns, so it masks nothing; name one."
    yield from _column_problems(mask.columns)
    for index, detector in enumerate(mask.detectors):
        if detector not in DETECTORS:
            known = ", ".join(sorted(DETECTORS))
            yield "UnknownDetector", f".detectors[{index}]: {detector!r} is no detector; known are {known}."
    for index, own in enumerate(mask.patterns):
        try:
            pattern.check_name(own.name)
        except pattern.BadExpression as error:
            yield "BadPatternName", f".patterns[{index}].name: {own.name!r}: {error}."
        try:
            pattern.check(own.pattern)
        except pattern.BadExpression as error:
            yield "BadExpression", f".patterns[{index}].pattern: {error}."


def _column_problems(columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if len(columns) > MAX_COLUMNS:
        yield "TooManyColumns", f".columns: more than {MAX_COLUMNS}."
    for index, column in enumerate(columns):
        try:
            glob.check_column(column)
        except glob.BadPattern as error:
            yield "BadPattern", f".columns[{index}]: {column!r}: {error}."


def _patterns(spec: PolicySpec | ClusterPolicySpec) -> Iterator[Pattern]:
    for mask in spec.masks or ():
        yield from mask.patterns


def _clash(name: str, sides: list[list[Binding]], where: str) -> Iterator[Problem]:
    for side in sides:
        others = ", ".join(sorted({one.policy for other in sides if other is not side for one in other}))
        for one in side:
            yield one.problem(
                "PatternClash", f"spec.masks: {where}, pattern {name!r} is another one in {others}; rename one of them."
            )
