"""Commands: the intent, its outcome and its text, read off the log."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final

from chaperone_collector.api.flow import Flow, Flows, choose
from chaperone_collector.api.names import duration, index_name, micros, name_index, seconds, uid
from chaperone_collector.api.question import MAX_PAGE_BYTES, Found, Page, Question, Range
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.project import ALLOW, DECISIONS, NO_SESSION, REFUSALS
from chaperone_evidence import canonical, entry, record
from chaperone_evidence.errors import EvidenceError

MAX_SCANNED: Final = 50_000  # rows looked at for one page (50 ms); a rarer answer goes on with `continue`
MAX_MERGED_FLOWS: Final = 512  # beyond, one pass over all commands is cheaper than a merge
MAX_TEXT_BYTES: Final = 16 << 10  # of a statement inside an object; the whole text is in the proof bundle
MAX_CELL_CHARS: Final = 80
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

_COLUMNS: Final = "c.idx, c.flow, c.session, c.decision, c.rule"


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
        text = _text(db, intent)
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
                 intent.rule or "<none>", duration(self._now_us() - intent.wall_us), _cell(text), rows,
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


def _text(db: sqlite3.Connection, intent: record.CommandIntent) -> str | None:
    if not isinstance(intent.body, record.Commitment) or intent.body.size > MAX_TEXT_BYTES:
        return None
    try:
        commit = canonical.decode_base64(intent.body.commit)
    except EvidenceError:
        return None
    row = db.execute("SELECT bytes FROM body WHERE hash = ?", (commit,)).fetchone()
    return None if row is None else bytes(row[0])[entry.SALT_BYTES :].decode(errors="backslashreplace")


def _cell(text: str | None) -> str:
    """One line, without anything that a terminal would obey."""
    if text is None:
        return "<not kept>"
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_CELL_CHARS]).split())
    return line if len(line) <= MAX_CELL_CHARS else line[: MAX_CELL_CHARS - 1] + "…"


def _decode(raw: bytes) -> record.Known | record.Unknown | None:
    try:
        return record.decode(raw[entry.PREFIX_BYTES :])
    except EvidenceError:
        return None


def _filter(
    db: sqlite3.Connection, question: Question, flows: dict[int, Flow]
) -> Callable[[tuple[int, int, int, int, int]], bool]:
    """A test over rows of the table, for everything but flow ids that the row source already chose."""
    decisions = [(DECISIONS.get(term.value, -1), term.is_equal) for term in question.terms("spec.decision")]
    names = [(name_index(PREFIX, term.value), term.is_equal) for term in question.terms("metadata.name")]
    sessions = [(set(_session_ids(db, term.value, flows)), term.is_equal) for term in question.terms("spec.session")]
    rules: list[tuple[int, bool]] = []
    for term in question.terms("spec.rule"):
        row = db.execute("SELECT id FROM rule WHERE name = ?", (term.value,)).fetchone()
        rules.append((row[0] if row else -1, term.is_equal))

    def fits(row: tuple[int, int, int, int, int]) -> bool:
        idx, flow, session, decision, rule = row
        return (
            flow in flows
            and all((decision == wanted) is equal for wanted, equal in decisions)
            and all((rule == wanted) is equal for wanted, equal in rules)
            and all((session in wanted) is equal for wanted, equal in sessions)
            and all((idx == wanted) is equal for wanted, equal in names)
        )

    return fits


def _rows(
    db: sqlite3.Connection, question: Question, flows: dict[int, Flow], part: Range
) -> Iterator[tuple[int, int, int, int, int]]:
    """Rows that may fit, in the order of the log, from the narrowest index."""
    select = f"SELECT {_COLUMNS} FROM command c "  # noqa: S608
    bounds = (part.after, part.size)
    between = "c.idx > ? AND c.idx < ? ORDER BY c.idx"
    for term in question.terms("metadata.name"):
        if term.is_equal:
            yield from db.execute(select + "WHERE c.idx = ? AND c.idx > ? AND c.idx < ?",
                                  (name_index(PREFIX, term.value), *bounds))  # fmt: skip
            return
    for term in question.terms("spec.session"):
        if term.is_equal:
            ids = _session_ids(db, term.value, flows)
            where = f"WHERE c.session = ? AND {between}"
            yield from heapq.merge(*(db.execute(select + where, (number, *bounds)) for number in ids))
            return
    is_many = len(flows) > MAX_MERGED_FLOWS or not (question.namespace or question.labels or question.fields)
    # `decision <> 1` must stand there literally, or SQLite does not see that the partial indexes serve.
    if _only_refused(question):
        column, values = ("decision", [*REFUSALS]) if len(flows) > MAX_MERGED_FLOWS else ("flow", [*flows])
        where = f"WHERE c.{column} = ? AND c.decision <> {ALLOW} AND {between}"
    elif is_many:
        yield from db.execute(select + f"WHERE {between}", bounds)
        return
    else:
        values, where = [*flows], f"WHERE c.flow = ? AND {between}"
    yield from heapq.merge(*(db.execute(select + where, (value, *bounds)) for value in values))


def _only_refused(question: Question) -> bool:
    return any((term.value == "Allow") is not term.is_equal for term in question.terms("spec.decision"))


def _session_ids(db: sqlite3.Connection, name: str, flows: dict[int, Flow]) -> list[int]:
    found = []
    for namespace in sorted({flow.namespace for flow in flows.values()}):
        row = db.execute("SELECT idx FROM session WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
        if row is not None and row[0] != NO_SESSION:
            found.append(int(row[0]))
    return found
