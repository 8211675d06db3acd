"""Sessions: read off the tables, shown as objects."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from chaperone_collector.api.flow import Flow, Flows, choose
from chaperone_collector.api.names import duration, micros, seconds, uid
from chaperone_collector.api.question import MAX_PAGE_BYTES, Found, Page, Question, Range
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.database import Connection, stream
from chaperone_evidence import entry, record
from chaperone_evidence.coverage import LOST_AFTER_US
from chaperone_evidence.errors import EvidenceError

MAX_SCANNED: Final = 20_000  # sessions looked at for one page; a rarer answer goes on with `continue`
OBJECT_BYTES: Final = 2048  # about what one session takes in an answer
MAX_MERGED_FLOWS: Final = 512  # beyond, one pass over all sessions is cheaper than a merge

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "The session's id."},
    {"name": "Agent", "type": "string", "format": "", "priority": 0, "description": "The AgentIdentity."},
    {"name": "Target", "type": "string", "format": "", "priority": 0, "description": "The AccessTarget."},
    {"name": "Protocol", "type": "string", "format": "", "priority": 0, "description": "The protocol spoken."},
    {
        "name": "Started",
        "type": "string",
        "format": "date-time",
        "priority": 0,
        "description": "By the gateway's clock.",
    },
    {"name": "Duration", "type": "string", "format": "", "priority": 0, "description": "Until its end, or until now."},
    {"name": "Commands", "type": "integer", "format": "int64", "priority": 0, "description": "Commands recorded."},
    {"name": "Denied", "type": "integer", "format": "int64", "priority": 0, "description": "Commands not allowed."},
    {"name": "State", "type": "string", "format": "", "priority": 0, "description": "Open, Closed or Lost."},
    {"name": "Owner", "type": "string", "format": "", "priority": 1, "description": "The accountable human."},
    {"name": "Pod", "type": "string", "format": "", "priority": 1, "description": "The agent's pod."},
    {"name": "User", "type": "string", "format": "", "priority": 1, "description": "On whose behalf."},
    {"name": "Revision", "type": "string", "format": "", "priority": 1, "description": "Policy when the stream began."},
    {"name": "Recorded", "type": "boolean", "format": "", "priority": 1, "description": "What was shown is kept."},
]

_SELECT: Final = (
    "SELECT s.idx, s.flow, s.changed, s.name, s.started_us, s.ended_us, s.commands, s.denied, s.close_idx, "
    "st.name, st.pod, st.pod_uid, st.node, st.service_account, st.owner, st.revision, st.count, st.state, "
    "st.superseded, st.seen_us, s.subject, EXISTS (SELECT 1 FROM chunk k WHERE k.session = s.idx) "
    "FROM session s JOIN stream st ON st.id = s.stream "
)


class Sessions:
    """Reads sessions.

    Args:
        flows: shared with the other resources.
        now_us: the collector's clock.
        since_us: when the collector began to listen; before it nobody could be heard.
    """

    def __init__(self, flows: Flows, now_us: Callable[[], int], since_us: int) -> None:
        self._flows = flows
        self._now_us = now_us
        self._since_us = since_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The sessions opened below `part.size` that fit, oldest first, as they are now."""
        flows = {flow.id: flow for flow in _fitting(self._flows.all(db).values(), question)}
        found: list[Found] = []
        size = 0
        for scanned, row in enumerate(_rows(db, question, flows, part), 1):
            if row[1] in flows and _fits(question, row[3], row[14], self._state(row), row[7], row[20]):
                if len(found) >= part.limit or size > MAX_PAGE_BYTES:
                    return Page(found, found[-1].idx)
                found.append(self._show(db, row, flows[row[1]]))
                size += OBJECT_BYTES
            if scanned >= MAX_SCANNED:
                return Page(found, row[0])
        return Page(found, None)

    def changes(self, db: Connection, question: Question, since: int, limit: int) -> tuple[list[Found], int | None]:
        """Sessions whose flow fits that changed at `since` or later, in the order of change; the caller tests the rest.

        The second value is where to go on when there are more.
        """
        flows = {flow.id: flow for flow in _fitting(self._flows.all(db).values(), question)}
        rows = db.execute(_SELECT + "WHERE s.changed >= ? ORDER BY s.changed LIMIT ?", (since, limit)).fetchall()
        found = [self._show(db, row, flows[row[1]]) for row in rows if row[1] in flows]
        return found, rows[-1][2] + 1 if len(rows) == limit else None

    def _state(self, row: tuple[Any, ...]) -> str:
        ended_us, stream_state, superseded, seen_us = row[5], row[17], row[18], row[19]
        if ended_us is not None:
            return "Closed"
        is_silent = max(seen_us, self._since_us) < self._now_us() - LOST_AFTER_US
        return "Lost" if superseded or stream_state == "closed" or is_silent else "Open"

    def _show(self, db: Connection, row: tuple[Any, ...], flow: Flow) -> Found:
        (idx, _, changed, name, started_us, ended_us, commands, denied, close_idx, stream, pod, pod_uid, node,
         account, owner, revision, count, _, _, seen_us, subject, is_recorded) = row  # fmt: skip
        seq, raw = db.execute("SELECT seq, bytes FROM entry WHERE idx = ?", (idx,)).fetchone()
        opened = _record(raw)
        now_us = self._now_us()
        state = self._state(row)
        spec: dict[str, Any] = {
            "identity": flow.identity, "owner": owner, "target": flow.target, "protocol": flow.protocol, "pod": pod,
            "podUID": pod_uid, "node": node, "serviceAccount": account, "stream": stream,
        }  # fmt: skip
        if isinstance(opened, record.SessionOpen):
            spec |= {
                "user": opened.user, "database": opened.database, "application": opened.application,
                "client": opened.client, "role": opened.role,
            }  # fmt: skip
            if isinstance(opened.delegated, record.Delegated):
                spec["delegated"] = {
                    name: item for name, item in msgspec.structs.asdict(opened.delegated).items() if item
                }
        status: dict[str, Any] = {
            "state": state, "startedAt": micros(started_us), "commands": commands, "denied": denied,
            "lastSeq": count - 1, "recorded": bool(is_recorded), **_doubts(db, stream),
        }  # fmt: skip
        until_us = now_us if state == "Open" else seen_us
        if ended_us is not None:
            until_us = ended_us
            status |= {"endedAt": micros(ended_us)} | _ending(db, close_idx)
        value = {
            "kind": "Session", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": name, "namespace": flow.namespace, "uid": uid(stream, seq), "resourceVersion": str(changed + 1),
                "creationTimestamp": seconds(started_us), "labels": flow.labels(),
            },
            "spec": {key: item for key, item in spec.items() if item != ""}, "status": status,
        }  # fmt: skip
        cells = [name, flow.identity, flow.target, flow.protocol, seconds(started_us), duration(until_us - started_us),
                 commands, denied, state, owner, pod, subject or "<none>", revision, bool(is_recorded)]  # fmt: skip
        return Found(idx, changed, value, cells)


def matches(question: Question, shown: Found) -> bool:
    """Whether an object fits the terms that are not about its flow."""
    spec, status = shown.value["spec"], shown.value["status"]
    name = shown.value["metadata"]["name"]
    subject = spec.get("delegated", {}).get("subject", "")
    return _fits(question, name, spec.get("owner", ""), status["state"], status["denied"], subject)


def _fits(question: Question, name: str, owner: str, state: str, denied: int, subject: str) -> bool:
    fields = {
        "metadata.name": name, "spec.owner": owner, "status.state": state, "status.denied": str(denied),
        "spec.delegated.subject": subject,
    }  # fmt: skip
    return all(term.holds(fields[term.field]) for term in question.fields if term.field in fields)


def is_mutable(question: Question) -> bool:
    """Whether an object can come to fit, or cease to, while it lives."""
    return any(term.field.startswith("status.") for term in question.fields)


def _fitting(flows: Iterable[Flow], question: Question) -> list[Flow]:
    return choose(flows, question.namespace, question.labels, question.fields)


def _rows(db: Connection, question: Question, flows: dict[int, Flow], part: Range) -> Iterator[tuple[Any, ...]]:
    bounds = (part.after, part.size)
    for term in question.terms("metadata.name"):
        if term.is_equal:
            spaces = sorted({flow.namespace for flow in flows.values()})
            for space in spaces:
                where = "WHERE s.namespace = ? AND s.name = ? AND s.idx > ? AND s.idx < ?"
                yield from stream(db, _SELECT + where, (space, term.value, *bounds))
            return
    if len(flows) > MAX_MERGED_FLOWS:
        yield from stream(db, _SELECT + "WHERE s.idx > ? AND s.idx < ? ORDER BY s.idx", bounds)
        return
    where = "WHERE s.flow = ? AND s.idx > ? AND s.idx < ? ORDER BY s.idx"
    yield from heapq.merge(*(stream(db, _SELECT + where, (flow, *bounds)) for flow in flows))


def _record(raw: bytes) -> record.Known | record.Unknown | None:
    try:
        return record.decode(raw[entry.PREFIX_BYTES :])
    except EvidenceError:
        return None


def _doubts(db: Connection, stream: str) -> dict[str, int]:
    """How often the stream said what cannot be, and how often somebody tried to break its chain; nothing for never."""
    findings = db.execute("SELECT count(*) FROM finding WHERE stream = ?", (stream,)).fetchone()[0]
    breaks = db.execute("SELECT count(*) FROM quarantine WHERE stream = ?", (stream,)).fetchone()[0]
    return {name: count for name, count in (("findings", findings), ("chainBreaks", breaks)) if count}


def _ending(db: Connection, close_idx: int | None) -> dict[str, Any]:
    row = db.execute("SELECT bytes FROM entry WHERE idx = ?", (close_idx,)).fetchone()
    closed = _record(row[0]) if row else None
    if not isinstance(closed, record.SessionClose):
        return {}
    return {"bytesIn": closed.bytes_in, "bytesOut": closed.bytes_out, "reason": closed.reason}
