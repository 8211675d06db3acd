"""Reads of evidence: who looked at what, read off the log.

A read that names no namespace is shown in none, so only who may list reads of all namespaces sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from chaperone_collector.api.names import duration, index_name, micros, name_index, seconds, uid
from chaperone_collector.api.question import Found, Page, Question, Range, paged
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.database import Connection, stream
from chaperone_evidence import entry, statement

MAX_SCANNED: Final = 50_000  # rows looked at for one page; a rarer answer goes on with `continue`
PREFIX: Final = "r-"
STREAM: Final = "collector"  # in uids, where others have the name of a stream

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "Its place in the log."},
    {"name": "User", "type": "string", "format": "", "priority": 0, "description": "Who read, as the API server says."},
    {"name": "Verb", "type": "string", "format": "", "priority": 0, "description": "get, list or watch."},
    {"name": "Resource", "type": "string", "format": "", "priority": 0, "description": "What was read."},
    {"name": "Object", "type": "string", "format": "", "priority": 0, "description": "Its name, where one was named."},
    {"name": "Given", "type": "integer", "format": "int64", "priority": 0, "description": "Objects in the answer."},
    {"name": "Age", "type": "string", "format": "", "priority": 0, "description": "Since it was read."},
    {"name": "Query", "type": "string", "format": "", "priority": 1, "description": "Selectors and the like, as sent."},
]
_SELECT: Final = "SELECT r.idx, e.seq, e.bytes FROM reading r JOIN entry e ON e.idx = r.idx "


class Reads:
    """Reads the reads.

    Args:
        now_us: the collector's clock.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The reads below `part.size` that fit, in the order of the log."""
        shown = (self._show(*row) for row in _rows(db, question, part.after, part.size))
        return paged(shown, part.limit, fits=lambda one: _fits(question, one), most=MAX_SCANNED)

    def changes(self, db: Connection, question: Question, since: int, until: int) -> list[Found]:
        """Reads that fit, in [since, until)."""
        shown = (self._show(*row) for row in _rows(db, question, since - 1, until))
        return [one for one in shown if _fits(question, one)]

    def _show(self, idx: int, seq: int, raw: bytes) -> Found:
        said = msgspec.json.decode(bytes(raw)[entry.PREFIX_BYTES :], type=statement.EvidenceRead)
        spec = {
            "user": said.user, "groups": said.groups, "verb": said.verb, "resource": said.resource, "name": said.name,
            "query": said.query, "given": said.rows, "readAt": micros(said.wall_us),
        }  # fmt: skip
        name = index_name(PREFIX, idx)
        value = {
            "kind": "Read", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": name, **({"namespace": said.namespace} if said.namespace else {}), "uid": uid(STREAM, seq),
                "resourceVersion": str(idx + 1), "creationTimestamp": seconds(said.wall_us),
            },
            "spec": {key: item for key, item in spec.items() if item not in ("", [])},
        }  # fmt: skip
        cells = [name, said.user, said.verb, said.resource, said.name or "<all>", said.rows,
                 duration(self._now_us() - said.wall_us), said.query]  # fmt: skip
        return Found(idx, idx, value, cells)


def _fits(question: Question, shown: Found) -> bool:
    metadata, spec = shown.value["metadata"], shown.value["spec"]
    fields = {
        "metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", ""),
        "spec.user": spec["user"], "spec.verb": spec["verb"], "spec.resource": spec["resource"],
    }  # fmt: skip
    return question.holds(fields)


def _rows(db: Connection, question: Question, after: int, size: int) -> Iterator[tuple[int, int, bytes]]:
    where, values = "WHERE r.idx > ? AND r.idx < ?", [after, size]
    texts: list[str] = []
    for term in question.terms("metadata.name"):
        if term.is_equal:
            where += " AND r.idx = ?"
            values.append(-1 if (idx := name_index(PREFIX, term.value)) is None else idx)
    namespaces = [question.namespace] if question.namespace else []
    namespaces += [term.value for term in question.terms("metadata.namespace") if term.is_equal]
    for namespace in namespaces:
        where += " AND r.namespace = ?"
        texts.append(namespace)
    yield from stream(db, f"{_SELECT}{where} ORDER BY r.idx", (*values, *texts))
