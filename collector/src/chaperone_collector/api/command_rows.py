"""Commands that a question is about: along the narrowest index, the rest tested by the database.

A page looks at a limited number of rows. Each stream of rows is read in windows, and marks the end of each, so
that what was looked at is counted without being fetched.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from chaperone_collector.api.flow import Flow
from chaperone_collector.api.names import name_index
from chaperone_collector.api.question import Question, Range
from chaperone_collector.api.selector import Term
from chaperone_collector.database import Connection, stream
from chaperone_collector.project import ALLOW, DECISIONS, EFFECTS, NO_SESSION, READ, REFUSALS

PREFIX: Final = "c-"
MAX_SCANNED: Final = 100_000  # rows looked at for one page (about 50 ms); a rarer answer goes on with `continue`
MAX_MERGED_FLOWS: Final = 512  # beyond, one pass over all commands is cheaper than a merge
MAX_RARE: Final = 10_000  # commands of a rule that may all be looked at for one page
MIN_WINDOW: Final = 64
WINDOWS: Final = 16  # that MAX_SCANNED is divided into: so much more than it is looked at, at the most
NO_EFFECT: Final = 62  # a bit that no effect has
NO_DECISION: Final = -1

type Row = tuple[int, int]  # index in the log, flow


class Conditions(msgspec.Struct, frozen=True):
    """What the database tests of `command c`: SQL that begins with AND, or nothing, and its parameters."""

    sql: str
    parameters: tuple[Any, ...]


class _Source(msgspec.Struct, frozen=True):
    """A condition that an index serves, and the values for which its rows are merged."""

    where: str
    values: list[tuple[int | str, ...]]
    table: str = "command c"
    idx: str = "c.idx"


def rows(db: Connection, question: Question, flows: dict[int, Flow], part: Range) -> Iterator[Row | int]:
    """Commands of the flows that fit, in the order of the log; a number is the index where looking ended.

    A number comes last, if at all: from there the next page goes on.
    """
    source, tests = _source(db, question, flows), conditions(db, question, flows)
    step = max(MIN_WINDOW, MAX_SCANNED // WINDOWS // max(1, len(source.values)))
    scanned = 0
    for row in heapq.merge(*(_windows(db, source, value, tests, part, step) for value in source.values)):
        if len(row) == 1:
            scanned += step
            if scanned >= MAX_SCANNED:
                yield row[0]
                return
        elif row[1] in flows:
            yield row[0], row[1]


def conditions(db: Connection, question: Question, flows: dict[int, Flow]) -> Conditions:
    """What fields ask for that is no property of a flow."""
    texts, parameters = list[str](), list[Any]()
    for term in question.fields:
        text, *given = _condition(db, term, flows)
        if text:
            texts.append(f" AND {text}")
            parameters += given
    return Conditions("".join(texts), tuple(parameters))


def _windows(
    db: Connection, source: _Source, value: tuple[int | str, ...], tests: Conditions, part: Range, step: int
) -> Iterator[tuple[int, ...]]:
    """Rows that fit; behind each `step` rows that were looked at, the index of the last of them alone."""
    along = f"FROM {source.table} WHERE {source.where} AND {source.idx} > ? AND {source.idx}"
    ends = f"SELECT {source.idx} {along} < ? ORDER BY {source.idx} LIMIT 1 OFFSET {step - 1}"
    select = f"SELECT c.idx, c.flow {along} <= ?{tests.sql} ORDER BY {source.idx}"
    after, last = part.after, part.size - 1
    while True:
        end = db.execute(ends, (*value, after, part.size)).fetchone()
        yield from stream(db, select, (*value, after, last if end is None else end[0], *tests.parameters))
        if end is None:
            return
        (after,) = end
        yield (after,)


def _condition(db: Connection, term: Term, flows: dict[int, Flow]) -> tuple[Any, ...]:
    """SQL of one term and its parameters; no SQL for those that choose flows.

    A plus before a column keeps the database from going along that column's index: which one serves, `_source` says.
    """
    same, value = "=" if term.is_equal else "<>", term.value
    match term.field:
        case "metadata.name":
            idx = name_index(PREFIX, value)
            return (f"c.idx {same} {-1 if idx is None else idx}",)
        case "spec.session":
            among = ", ".join(map(str, _session_ids(db, value, flows))) or "-1"
            return (f"+c.session {'' if term.is_equal else 'NOT '}IN ({among})",)
        case "spec.decision":
            return (f"+c.decision {same} {DECISIONS.get(value, NO_DECISION)}",)
        case "spec.rule":
            return (f"+c.rule {same} {_rule_id(db, value)}",)
        case "spec.effect":
            bit = 1 << EFFECTS.get(value, NO_EFFECT)
            return (f"(c.effects & {bit}) {'<>' if term.is_equal else '='} 0",)
        case "spec.approval":
            return f"c.approval {same} ?", value
        case "spec.subject":
            return f"c.subject {same} ?", value
    return ("",)


def _source(db: Connection, question: Question, flows: dict[int, Flow]) -> _Source:
    for term in question.terms("metadata.name"):
        if term.is_equal:
            idx = name_index(PREFIX, term.value)
            return _Source("c.idx = ?", [] if idx is None else [(idx,)])
    for term in question.terms("spec.session"):
        if term.is_equal:
            return _Source("c.session = ?", [(number,) for number in _session_ids(db, term.value, flows)])
    # Conditions of partial indexes must stand there literally, or SQLite does not see that they serve.
    if any(term.is_equal is bool(term.value) for term in question.terms("spec.approval")):
        return _Source("c.approval <> ''", [()])
    for term in question.terms("spec.subject"):
        if term.is_equal and term.value:
            return _Source("c.subject <> '' AND c.subject = ?", [(term.value,)])
    rule = _rule(db, question)
    if rule is not None and _is_rare(db, rule):
        return _Source("c.rule = ?", [(rule,)])
    each_flow: list[tuple[int | str, ...]] = [(flow,) for flow in flows]
    is_many = len(flows) > MAX_MERGED_FLOWS or not (question.namespace or question.labels or question.fields)
    for term in question.terms("spec.effect"):
        effect = EFFECTS.get(term.value, NO_EFFECT)
        if term.is_equal and effect != READ:
            # From the left to the right: the other way about, SQLite would look at every command.
            table, where = "effect f CROSS JOIN command c", f"c.idx = f.idx AND f.effect = {effect}"
            if len(flows) > MAX_MERGED_FLOWS:
                return _Source(where, [()], table, "f.idx")
            return _Source(f"{where} AND f.flow = ?", each_flow, table, "f.idx")
    if rule is not None and is_many:
        return _Source("c.rule = ?", [(rule,)])
    if _only_refused(question):
        if len(flows) > MAX_MERGED_FLOWS:
            return _Source(f"c.decision = ? AND c.decision <> {ALLOW}", [(one,) for one in REFUSALS])
        return _Source(f"c.flow = ? AND c.decision <> {ALLOW}", each_flow)
    return _Source("true", [()]) if is_many else _Source("c.flow = ?", each_flow)


def _rule(db: Connection, question: Question) -> int | None:
    """The rule that is asked for, if one is."""
    for term in question.terms("spec.rule"):
        if term.is_equal:
            return _rule_id(db, term.value)
    return None


def _rule_id(db: Connection, name: str) -> int:
    row = db.execute("SELECT id FROM rule WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else -1


def _is_rare(db: Connection, rule: int) -> bool:
    """Whether it has so few commands that all of them can be looked at for one page."""
    few = "SELECT count(*) FROM (SELECT 1 FROM command WHERE rule = ? LIMIT ?) few"
    found: int = db.execute(few, (rule, MAX_RARE)).fetchone()[0]
    return found < MAX_RARE


def _only_refused(question: Question) -> bool:
    return any((term.value == "Allow") is not term.is_equal for term in question.terms("spec.decision"))


def _session_ids(db: Connection, name: str, flows: dict[int, Flow]) -> list[int]:
    found = []
    for namespace in sorted({flow.namespace for flow in flows.values()}):
        row = db.execute("SELECT idx FROM session WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
        if row is not None and row[0] != NO_SESSION:
            found.append(int(row[0]))
    return found
