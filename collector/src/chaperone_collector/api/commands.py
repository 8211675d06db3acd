"""Commands: the intent, its outcome and its text, read off the log."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from chaperone_collector.api.flow import Flow, Flows, choose
from chaperone_collector.api.names import duration, index_name, micros, name_index, seconds, uid
from chaperone_collector.api.question import MAX_PAGE_BYTES, Found, Page, Question, Range
from chaperone_collector.api.selector import Term
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.project import ALLOW, DECISIONS, EFFECTS, NO_SESSION, READ, REFUSALS
from chaperone_evidence import canonical, entry, record
from chaperone_evidence.errors import EvidenceError

MAX_SCANNED: Final = 50_000  # rows looked at for one page (50 ms); a rarer answer goes on with `continue`
MAX_MERGED_FLOWS: Final = 512  # beyond, one pass over all commands is cheaper than a merge
MAX_TEXT_BYTES: Final = 16 << 10  # of a statement inside an object; the whole text is in the proof bundle
MAX_CELL_CHARS: Final = 80
NO_EFFECT: Final = 62  # a bit that no effect has
NO_DECISION: Final = -1
PREFIX: Final = "c-"

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "Its place in the log."},
    {"name": "Agent", "type": "string", "format": "", "priority": 0, "description": "The AgentIdentity."},
    {"name": "Target", "type": "string", "format": "", "priority": 0, "description": "The AccessTarget."},
    {"name": "Kind", "type": "string", "format": "", "priority": 0, "description": "What the protocol calls it."},
    {"name": "Effects", "type": "string", "format": "", "priority": 0, "description": "What it does."},
    {"name": "Decision", "type": "string", "format": "", "priority": 0, "description": "Allow, Deny, RequireApproval."},
    {"name": "Rule", "type": "string", "format": "", "priority": 0, "description": "The rule that decided."},
    {"name": "Age", "type": "string", "format": "", "priority": 0, "description": "Since it was decided."},
    {"name": "Command", "type": "string", "format": "", "priority": 1, "description": "The beginning of its text."},
    {"name": "Rows", "type": "integer", "format": "int64", "priority": 1, "description": "Rows of the result."},
    {"name": "Hash", "type": "string", "format": "", "priority": 1, "description": "SHA-256 of the exact text."},
    {"name": "Approval", "type": "string", "format": "", "priority": 1, "description": "The one that released it."},
    {"name": "User", "type": "string", "format": "", "priority": 1, "description": "On whose behalf."},
]

_COLUMNS: Final = "c.idx, c.flow, c.session, c.decision, c.rule, c.effects, c.approval, c.subject"

type _Row = tuple[int, int, int, int, int, int, str, str]


class Commands:
    """Reads commands.

    Args:
        flows: shared with the other resources.
        now_us: the collector's clock.
    """

    def __init__(self, flows: Flows, now_us: Callable[[], int]) -> None:
        self._flows = flows
        self._now_us = now_us

    def page(self, db: sqlite3.Connection, question: Question, part: Range) -> Page:
        """The commands below `part.size` that fit, in the order of the log, as they were at that size."""
        flows = {flow.id: flow for flow in choose(
            self._flows.all(db).values(), question.namespace, question.labels, question.fields)}  # fmt: skip
        fits = _filter(db, question, flows)
        found: list[Found] = []
        size = 0
        for scanned, row in enumerate(_rows(db, question, flows, part), 1):
            if fits(row):
                if len(found) >= part.limit or size > MAX_PAGE_BYTES:
                    return Page(found, found[-1].idx)
                shown = self._show(db, row[0], flows[row[1]], part.size)
                found.append(shown)
                size += 1024 + len(shown.value["spec"].get("command", ""))
            if scanned >= MAX_SCANNED:
                return Page(found, row[0])
        return Page(found, None)

    def changes(self, db: sqlite3.Connection, question: Question, since: int, until: int) -> list[Found]:
        """Commands that fit and were decided or concluded in [since, until), in the order of the last of both."""
        flows = {flow.id: flow for flow in choose(
            self._flows.all(db).values(), question.namespace, question.labels, question.fields)}  # fmt: skip
        fits = _filter(db, question, flows)
        bounds = (since, until)
        rows = db.execute(f"SELECT {_COLUMNS} FROM command c WHERE c.idx >= ? AND c.idx < ?", bounds).fetchall()  # noqa: S608
        rows += db.execute(
            f"SELECT {_COLUMNS} FROM outcome o JOIN command c ON c.idx = o.command "  # noqa: S608
            "WHERE o.idx >= ? AND o.idx < ? AND c.idx < ?",
            (*bounds, since),
        ).fetchall()
        found = [self._show(db, row[0], flows[row[1]], until) for row in rows if fits(row)]
        return sorted(found, key=lambda one: one.changed)

    def _show(self, db: sqlite3.Connection, idx: int, flow: Flow, size: int) -> Found:
        seq, raw, stream, session, done_idx, done = db.execute(
            "SELECT e.seq, e.bytes, st.name, s.name, o.idx, d.bytes FROM command c JOIN entry e ON e.idx = c.idx "
            "JOIN stream st ON st.id = e.stream LEFT JOIN session s ON s.idx = c.session "
            "LEFT JOIN outcome o ON o.command = c.idx AND o.idx < ? LEFT JOIN entry d ON d.idx = o.idx "
            "WHERE c.idx = ?",
            (size, idx),
        ).fetchone()
        intent = record.decode(raw[entry.PREFIX_BYTES :])
        if not isinstance(intent, record.CommandIntent):  # only intents are projected into this table
            raise TypeError(f"entry {idx} is no command")
        changed = idx if done_idx is None else int(done_idx)
        text, is_erased = _text(db, intent)
        effects = list(dict.fromkeys(access.effect for access in intent.accesses))
        spec: dict[str, Any] = {
            "session": session or intent.session, "identity": flow.identity, "target": flow.target,
            "kind": intent.kind, "effects": effects,
            "objects": list(dict.fromkeys(access.object for access in intent.accesses if access.object)),
            "decision": intent.decision, "policy": intent.policy, "rule": intent.rule, "revision": intent.revision,
            "approval": intent.approval, "subject": intent.subject,
            "resolution": intent.resolution, "sha256": intent.sha256, "masked": intent.is_masked,
            "sizeBytes": intent.size_bytes, "command": text, "inTransaction": intent.in_transaction,
            "stream": stream, "seq": seq,
        }  # fmt: skip
        status, rows = _outcome(intent, done)
        if is_erased:
            status["erased"] = True
        name = index_name(PREFIX, idx)
        value = {
            "kind": "Command", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": name, "namespace": flow.namespace, "uid": uid(stream, seq), "resourceVersion": str(changed + 1),
                "creationTimestamp": seconds(intent.wall_us), "labels": flow.labels(),
            },
            "spec": {key: item for key, item in spec.items() if item not in ("", None, [])}, "status": status,
        }  # fmt: skip
        cells = [name, flow.identity, flow.target, intent.kind, ",".join(effects), intent.decision,
                 intent.rule or "<none>", duration(self._now_us() - intent.wall_us),
                 _cell(text, is_erased=is_erased), rows,
                 intent.sha256[:16], intent.approval or "<none>", intent.subject or "<none>"]  # fmt: skip
        return Found(idx, changed, value, cells)


def _outcome(intent: record.CommandIntent, raw: bytes | None) -> tuple[dict[str, Any], int | None]:
    decided = {"decidedAt": micros(intent.wall_us)}
    if raw is None:
        # A refusal needs no outcome: nothing ran.
        return {"status": "Pending" if intent.decision == "Allow" else "Refused", **decided}, None
    done = _decode(raw)
    if not isinstance(done, record.CommandOutcome):
        return {"status": "Unknown", **decided}, None
    status: dict[str, Any] = {
        "status": done.status.capitalize(), **decided, "rows": done.rows, "bytes": done.bytes,
        "durationMicroseconds": done.duration_us,
    }  # fmt: skip
    if done.code:
        status["code"] = done.code
    return status, done.rows


def _text(db: sqlite3.Connection, intent: record.CommandIntent) -> tuple[str | None, bool]:
    """The text, if it is here and short; and whether it was erased."""
    if not isinstance(intent.body, record.Commitment):
        return None, False
    try:
        commit = canonical.decode_base64(intent.body.commit)
    except EvidenceError:
        return None, False
    if intent.body.size > MAX_TEXT_BYTES:
        row = db.execute("SELECT length(bytes) FROM body WHERE hash = ?", (commit,)).fetchone()
        return None, row is not None and not row[0]
    row = db.execute("SELECT bytes FROM body WHERE hash = ?", (commit,)).fetchone()
    if row is None or not row[0]:
        return None, row is not None
    return bytes(row[0])[entry.SALT_BYTES :].decode(errors="backslashreplace"), False


def _cell(text: str | None, *, is_erased: bool) -> str:
    """One line, without anything that a terminal would obey."""
    if text is None:
        return "<erased>" if is_erased else "<not kept>"
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_CELL_CHARS]).split())
    return line if len(line) <= MAX_CELL_CHARS else line[: MAX_CELL_CHARS - 1] + "…"


def _decode(raw: bytes) -> record.Known | record.Unknown | None:
    try:
        return record.decode(raw[entry.PREFIX_BYTES :])
    except EvidenceError:
        return None


def _filter(db: sqlite3.Connection, question: Question, flows: dict[int, Flow]) -> Callable[[_Row], bool]:
    """A test over rows of the table; of what is not asked for, nothing is tested: a page may look at many rows."""
    tests: list[Callable[[_Row], bool]] = [lambda row: row[1] in flows]
    for term in question.fields:
        test = _test(db, term, flows)
        if test is not None:
            tests.append(test)
    if len(tests) == 1:
        return tests[0]
    return lambda row: all(test(row) for test in tests)


def _test(db: sqlite3.Connection, term: Term, flows: dict[int, Flow]) -> Callable[[_Row], bool] | None:
    """The test of one term; None for those that choose flows."""
    is_equal, value = term.is_equal, term.value
    match term.field:
        case "metadata.name":
            idx = name_index(PREFIX, value)
            return lambda row: (row[0] == idx) is is_equal
        case "spec.session":
            sessions = set(_session_ids(db, value, flows))
            return lambda row: (row[2] in sessions) is is_equal
        case "spec.decision":
            decision = DECISIONS.get(value, NO_DECISION)
            return lambda row: (row[3] == decision) is is_equal
        case "spec.rule":
            rule = _rule_id(db, value)
            return lambda row: (row[4] == rule) is is_equal
        case "spec.effect":
            bit = 1 << EFFECTS.get(value, NO_EFFECT)
            return lambda row: (row[5] & bit != 0) is is_equal
        case "spec.approval":
            return lambda row: (row[6] == value) is is_equal
        case "spec.subject":
            return lambda row: (row[7] == value) is is_equal
    return None


class _Source(msgspec.Struct, frozen=True):
    """A condition that an index serves, and the values for which its rows are merged."""

    where: str
    values: list[tuple[int | str, ...]]
    table: str = "command c"
    idx: str = "c.idx"


def _rows(db: sqlite3.Connection, question: Question, flows: dict[int, Flow], part: Range) -> Iterator[_Row]:
    """Rows that may fit, in the order of the log, from the narrowest index."""
    source = _source(db, question, flows)
    select = f"SELECT {_COLUMNS} FROM {source.table} WHERE {source.where} AND {source.idx} > ? AND {source.idx} < ? "  # noqa: S608
    select += f"ORDER BY {source.idx}"
    bounds = (part.after, part.size)
    yield from heapq.merge(*(db.execute(select, (*value, *bounds)) for value in source.values))


def _source(db: sqlite3.Connection, question: Question, flows: dict[int, Flow]) -> _Source:
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
    rule = _rare_rule(db, question)
    if rule is not None:
        return _Source("c.rule = ?", [(rule,)])
    each_flow: list[tuple[int | str, ...]] = [(flow,) for flow in flows]
    is_many = len(flows) > MAX_MERGED_FLOWS or not (question.namespace or question.labels or question.fields)
    for term in question.terms("spec.effect"):
        effect = EFFECTS.get(term.value, NO_EFFECT)
        if term.is_equal and effect != READ:
            # From the left to the right: the other way about, SQLite would look at every command.
            table, where = "effect f CROSS JOIN command c ON c.idx = f.idx", f"f.effect = {effect}"
            if len(flows) > MAX_MERGED_FLOWS:
                return _Source(where, [()], table, "f.idx")
            return _Source(f"{where} AND f.flow = ?", each_flow, table, "f.idx")
    for term in question.terms("spec.rule"):
        if term.is_equal and is_many:
            return _Source("c.rule = ?", [(_rule_id(db, term.value),)])
    if _only_refused(question):
        if len(flows) > MAX_MERGED_FLOWS:
            return _Source(f"c.decision = ? AND c.decision <> {ALLOW}", [(one,) for one in REFUSALS])
        return _Source(f"c.flow = ? AND c.decision <> {ALLOW}", each_flow)
    return _Source("true", [()]) if is_many else _Source("c.flow = ?", each_flow)


def _rare_rule(db: sqlite3.Connection, question: Question) -> int | None:
    """A rule that is asked for and has so few commands that all of them can be looked at for one page."""
    for term in question.terms("spec.rule"):
        rule: int = _rule_id(db, term.value)
        few = "SELECT count(*) FROM (SELECT 1 FROM command WHERE rule = ? LIMIT ?)"
        if term.is_equal and db.execute(few, (rule, MAX_SCANNED)).fetchone()[0] < MAX_SCANNED:
            return rule
    return None


def _rule_id(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT id FROM rule WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else -1


def _only_refused(question: Question) -> bool:
    return any((term.value == "Allow") is not term.is_equal for term in question.terms("spec.decision"))


def _session_ids(db: sqlite3.Connection, name: str, flows: dict[int, Flow]) -> list[int]:
    found = []
    for namespace in sorted({flow.namespace for flow in flows.values()}):
        row = db.execute("SELECT idx FROM session WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
        if row is not None and row[0] != NO_SESSION:
            found.append(int(row[0]))
    return found
