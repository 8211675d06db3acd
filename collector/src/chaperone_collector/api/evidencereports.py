"""Periodic reports, as they were made: read off the log, each compared with the hash that its entry holds."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from chaperone_collector import reporting
from chaperone_collector.api.names import duration, micros, seconds, uid
from chaperone_collector.api.question import MAX_PAGE_BYTES, Found, Page, Question, Range
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.database import Connection

log = logging.getLogger(__name__)

RESOURCE: Final = "evidencereports"
COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "Kind, period and size."},
    {"name": "Kind", "type": "string", "format": "", "priority": 0, "description": "Daily or Monthly."},
    {"name": "Period", "type": "string", "format": "", "priority": 0, "description": "The day or month, UTC."},
    {"name": "Rows", "type": "integer", "format": "int64", "priority": 0, "description": "Entries of the log in it."},
    {"name": "Exceptions", "type": "string", "format": "", "priority": 0, "description": "What has to be looked at."},
    {"name": "Size", "type": "integer", "format": "int64", "priority": 0, "description": "Of the log that was signed."},
    {"name": "Age", "type": "string", "format": "", "priority": 0, "description": "Since it was made."},
    {"name": "Hash", "type": "string", "format": "", "priority": 1, "description": "SHA-256 of the report."},
]
_SELECT: Final = "SELECT r.idx, e.bytes FROM report r JOIN entry e ON e.idx = r.idx "


class EvidenceReports:
    """Reads reports.

    Args:
        now_us: the collector's clock.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The reports below `part.size` that fit, in the order of the log."""
        found: list[Found] = []
        size = 0
        for idx, raw in _rows(db, question, part.after, part.size):
            if len(found) >= part.limit or size > MAX_PAGE_BYTES:
                return Page(found, found[-1].idx)
            one = self._show(db, idx, raw)
            if _fits(question, one):
                found.append(one)
                size += 2 * len(one.value["spec"].get("report", ""))
        return Page(found, None)

    def changes(self, db: Connection, question: Question, since: int, until: int) -> list[Found]:
        """Reports that fit, in [since, until)."""
        shown = (self._show(db, *row) for row in _rows(db, question, since - 1, until))
        return [one for one in shown if _fits(question, one)]

    def _show(self, db: Connection, idx: int, raw: bytes) -> Found:
        said = reporting.said_in(bytes(raw))
        name = f"{said.kind.lower()}-{said.period}-{said.size}"
        spec: dict[str, Any] = {
            "kind": said.kind, "period": said.period, "first": said.first, "end": said.end, "size": said.size,
            "root": said.root,
        }  # fmt: skip
        status: dict[str, Any] = {
            "index": idx, "sha256": said.sha256, "commit": said.body.commit, "madeAt": micros(said.wall_us),
            "rows": said.end - said.first, "exceptions": said.exceptions,
        }  # fmt: skip
        told = str(said.exceptions)
        try:
            salt, text = reporting.read(db, said)
        except reporting.Altered as error:
            log.critical("%s", error)
            status["altered"], told = True, "<altered>"
        else:
            spec |= {"report": text.decode(), "salt": base64.b64encode(salt).decode()}
            status["namespaces"] = [_shown(one) for one in msgspec.json.decode(text)["namespaces"]]
        value = {
            "kind": "EvidenceReport", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": name, "uid": uid(f"{RESOURCE}/{name}", idx), "resourceVersion": str(idx + 1),
                "creationTimestamp": seconds(said.wall_us),
            },
            "spec": spec, "status": status,
        }  # fmt: skip
        cells = [name, said.kind, said.period, said.end - said.first, told, said.size,
                 duration(self._now_us() - said.wall_us), said.sha256[:16]]  # fmt: skip
        return Found(idx, idx, value, cells)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a report, with names as Kubernetes writes them."""
    return {("chainBreaks" if name == "chain_breaks" else name): item for name, item in row.items()}


def _fits(question: Question, shown: Found) -> bool:
    spec = shown.value["spec"]
    fields = {
        "metadata.name": shown.value["metadata"]["name"], "spec.kind": spec["kind"], "spec.period": spec["period"],
    }  # fmt: skip
    return question.holds(fields)


def _rows(db: Connection, question: Question, after: int, size: int) -> Iterator[tuple[int, bytes]]:
    where, texts = "WHERE r.idx > ? AND r.idx < ?", []
    for field, column in (("spec.kind", "r.kind"), ("spec.period", "r.period")):
        for term in question.terms(field):
            where += f" AND {column} = ?" if term.is_equal else f" AND {column} <> ?"
            texts.append(term.value)
    yield from db.execute(f"{_SELECT}{where} ORDER BY r.idx", (after, size, *texts))
