"""Coverages: for each pod that has to be heard, or was, whether it is. Judged when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from chaperone_collector.api.names import duration, micros, seconds, uid
from chaperone_collector.api.question import Found, Page, Question, Range, paged
from chaperone_collector.api.status import GROUP, VERSION
from chaperone_collector.database import Connection, stream
from chaperone_evidence.coverage import Producer, Run, Said, Verdict, judge

RESOURCE: Final = "coverages"
MAX_SCANNED: Final = 5000  # pods looked at for one page; a rarer answer goes on with `continue`
MAX_RUNS: Final = 100  # of a pod that are looked at, the newest

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Pod", "type": "string", "format": "", "priority": 0, "description": "The pod's name."},
    {"name": "Identity", "type": "string", "format": "", "priority": 0, "description": "The AgentIdentity."},
    {"name": "Stream", "type": "string", "format": "", "priority": 0, "description": "The pod's newest stream."},
    {"name": "State", "type": "string", "format": "", "priority": 0, "description": "Whether the pod is heard."},
    {"name": "LastSeq", "type": "integer", "format": "int64", "priority": 0, "description": "The newest record."},
    {"name": "LastSeen", "type": "string", "format": "", "priority": 0, "description": "Since it came."},
    {"name": "Gaps", "type": "integer", "format": "int64", "priority": 0, "description": "Times without proof."},
    {"name": "Name", "type": "string", "format": "name", "priority": 1, "description": "The pod's uid."},
]
_SELECT: Final = (
    "SELECT id, namespace, pod_uid, pod, identity, state, reason, exit_code, finished_us, expected_us, met_us, said_us "
    "FROM producer "
)
_RUNS: Final = (
    "SELECT name, count, state = 'closed', superseded, lost_idx IS NOT NULL, opened_us, seen_us FROM stream "
    "WHERE pod_uid = ? AND namespace = ? ORDER BY id DESC LIMIT ?"
)
_FORKED: Final = (
    "SELECT EXISTS (SELECT 1 FROM stream WHERE pod_uid = ? AND previous <> '' GROUP BY previous HAVING count(*) > 1) "
    "OR EXISTS (SELECT 1 FROM quarantine WHERE pod_uid = ? AND reason = 'fork')"
)


class Coverages:
    """Reads coverages.

    Args:
        now_us: the collector's clock.
        since_us: when the collector began to listen; before it nobody could be heard.
    """

    def __init__(self, now_us: Callable[[], int], since_us: int) -> None:
        self._now_us = now_us
        self._since_us = since_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The pods that were first named below `part.size` and fit, in that order, as they are now."""
        shown = (self._show(db, part.size, *row) for row in _rows(db, question, part))
        return paged(shown, part.limit, fits=lambda one: _fits(question, one), most=MAX_SCANNED)

    def _show(
        self, db: Connection, size: int, number: int, namespace: str, pod_uid: str, pod: str, identity: str,
        state: str, reason: str, exit_code: int | None, finished_us: int, expected_us: int, met_us: int, said_us: int,
    ) -> Found:  # fmt: skip
        rows = db.execute(_RUNS, (pod_uid, namespace, MAX_RUNS)).fetchall()[::-1]
        runs = [Run(bool(row[2]), bool(row[3]), bool(row[4]), row[5], row[6]) for row in rows]
        is_forked = bool(db.execute(_FORKED, (pod_uid, pod_uid)).fetchone()[0])
        producer = Producer(Said(state), said_us, reason, expected_us)
        now_us = self._now_us()
        verdict = judge(producer, runs, is_forked=is_forked, now_us=now_us, since_us=self._since_us)
        status: dict[str, Any] = {"state": verdict.state, "reason": verdict.reason}
        stream, seq, seen = "<none>", None, "<none>"
        if rows:
            stream, seq, seen = rows[-1][0], rows[-1][1] - 1, duration(now_us - rows[-1][6])
            status |= {"stream": stream, "streams": len(rows), "lastSeq": seq, "lastSeen": micros(rows[-1][6])}
        if expected_us:
            status["expectedSince"] = micros(expected_us)
        if finished_us:
            status["endedAt"] = micros(finished_us)
        if exit_code is not None:
            status["exitCode"] = exit_code
        value = {
            "kind": "Coverage", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": pod_uid, "namespace": namespace, "uid": uid(f"{RESOURCE}/{namespace}", number),
                "resourceVersion": str(size), "creationTimestamp": seconds(met_us),
            },
            "spec": {"pod": pod, "identity": identity},
            "status": {key: item for key, item in status.items() if item != ""} | {"gaps": _gaps(verdict)},
        }  # fmt: skip
        told = f"{verdict.state} ({verdict.reason})" if verdict.reason else str(verdict.state)
        return Found(number, size - 1, value, [pod, identity, stream, told, seq, seen, len(verdict.spans), pod_uid])


def _gaps(verdict: Verdict) -> list[dict[str, str]]:
    return [
        {
            "state": span.state,
            "from": micros(span.from_us),
            **({"until": micros(span.until_us)} if span.until_us else {}),
        }
        for span in verdict.spans
    ]


def _fits(question: Question, shown: Found) -> bool:
    metadata, spec = shown.value["metadata"], shown.value["spec"]
    fields = {
        "metadata.name": metadata["name"], "metadata.namespace": metadata["namespace"],
        "spec.identity": spec["identity"], "spec.pod": spec["pod"], "status.state": shown.value["status"]["state"],
    }  # fmt: skip
    return question.holds(fields)


def _rows(db: Connection, question: Question, part: Range) -> Iterator[tuple[Any, ...]]:
    where, values = "WHERE id > ? AND idx < ?", [part.after, part.size]
    texts: list[str] = []
    columns = {"metadata.name": "pod_uid", "metadata.namespace": "namespace", "spec.identity": "identity"}
    for field, column in columns.items():
        for term in question.terms(field):
            where += f" AND {column} = ?" if term.is_equal else f" AND {column} <> ?"
            texts.append(term.value)
    if question.namespace:
        where += " AND namespace = ?"
        texts.append(question.namespace)
    yield from stream(db, f"{_SELECT}{where} ORDER BY id", (*values, *texts))
