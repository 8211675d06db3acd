"""Commands: the intent, its outcome and its text, read off the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from chaperone_collector.api import command_rows
from chaperone_collector.api.command_rows import PREFIX
from chaperone_collector.api.flow import Flow, Flows, choose
from chaperone_collector.api.names import duration, index_name, micros, seconds, uid
from chaperone_collector.api.question import MAX_PAGE_BYTES, Found, Page, Question, Range
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.database import Connection
from chaperone_evidence import canonical, entry, record
from chaperone_evidence.errors import EvidenceError

MAX_TEXT_BYTES: Final = 16 << 10  # of a statement inside an object; the whole text is in the proof bundle
MAX_CELL_CHARS: Final = 80

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


class Commands:
    """Reads commands.

    Args:
        flows: shared with the other resources.
        now_us: the collector's clock.
    """

    def __init__(self, flows: Flows, now_us: Callable[[], int]) -> None:
        self._flows = flows
        self._now_us = now_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The commands below `part.size` that fit, in the order of the log, as they were at that size."""
        flows = {flow.id: flow for flow in choose(
            self._flows.all(db).values(), question.namespace, question.labels, question.fields)}  # fmt: skip
        found: list[Found] = []
        size = 0
        for row in command_rows.rows(db, question, flows, part):
            if isinstance(row, int):
                return Page(found, row)
            if len(found) >= part.limit or size > MAX_PAGE_BYTES:
                return Page(found, found[-1].idx)
            shown = self._show(db, row[0], flows[row[1]], part.size)
            found.append(shown)
            size += 1024 + len(shown.value["spec"].get("command", ""))
        return Page(found, None)

    def changes(self, db: Connection, question: Question, since: int, until: int) -> list[Found]:
        """Commands that fit and were decided or concluded in [since, until), in the order of the last of both."""
        flows = {flow.id: flow for flow in choose(
            self._flows.all(db).values(), question.namespace, question.labels, question.fields)}  # fmt: skip
        tests = command_rows.conditions(db, question, flows)
        rows = db.execute(
            f"SELECT c.idx, c.flow FROM command c WHERE c.idx >= ? AND c.idx < ?{tests.sql}",  # noqa: S608
            (since, until, *tests.parameters),
        ).fetchall()
        rows += db.execute(
            "SELECT c.idx, c.flow FROM outcome o JOIN command c ON c.idx = o.command "  # noqa: S608
            f"WHERE o.idx >= ? AND o.idx < ? AND c.idx < ?{tests.sql}",
            (since, until, since, *tests.parameters),
        ).fetchall()
        found = [self._show(db, idx, flows[flow], until) for idx, flow in rows if flow in flows]
        return sorted(found, key=lambda one: one.changed)

    def _show(self, db: Connection, idx: int, flow: Flow, size: int) -> Found:
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
            "statements": intent.statements,
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


def _text(db: Connection, intent: record.CommandIntent) -> tuple[str | None, bool]:
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
