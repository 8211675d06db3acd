"""Populations: taken from the operator, verified and stored before the answer; and read by who asks.

The signature is verified with the key that comes along. Whose key that may be, and which epoch is next, is judged where
it is stored (`population.admit`), so that of two operators that race one is told to read the newest and go on.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from chaperone_collector.api.names import duration, micros, seconds, uid
from chaperone_collector.api.posted import read_posted
from chaperone_collector.api.question import Found, Page, Question, Range, paged
from chaperone_collector.api.status import GROUP, VERSION, ApiError, bad_request
from chaperone_collector.database import Connection, stream
from chaperone_collector.errors import Refused
from chaperone_collector.population import Given
from chaperone_collector.store import Store
from chaperone_evidence import canonical, entry, note, population
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.statement import PopulationEpoch

log = logging.getLogger(__name__)

RESOURCE: Final = "populations"
NEWEST: Final = "newest"  # a name that the newest epoch of a namespace has, too
MAX_POST_BYTES: Final = 2 * population.MAX_NOTE_BYTES  # a note has short lines, and each newline takes two in JSON
PLACE: Final = re.compile(
    rf"/apis/{re.escape(GROUP)}/{VERSION}/namespaces/(?P<namespace>[a-z0-9](?:[-a-z0-9]{{0,61}}[a-z0-9])?)/{RESOURCE}\Z"
)

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "The epoch."},
    {"name": "Pods", "type": "integer", "format": "int64", "priority": 0, "description": "That were there."},
    {"name": "Received", "type": "string", "format": "", "priority": 0, "description": "By the collector's clock."},
    {"name": "Age", "type": "string", "format": "", "priority": 0, "description": "Since then."},
    {"name": "Hash", "type": "string", "format": "", "priority": 1, "description": "By what the next one names it."},
]
_SELECT: Final = "SELECT p.idx, p.namespace, p.epoch, p.hash, e.bytes FROM population p JOIN entry e ON e.idx = p.idx "
_NEWEST: Final = " AND p.epoch = (SELECT max(n.epoch) FROM population n WHERE n.namespace = p.namespace)"


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    note: str
    key: str  # the verifier key of who signed it


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    namespace: str = ""


class _Posted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    spec: _Spec
    metadata: _Metadata = _Metadata()
    api_version: str = f"{GROUP}/{VERSION}"
    kind: str = "Population"


class Populations:
    """Reads populations.

    Args:
        now_us: the collector's clock.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The populations below `part.size` that fit, in the order of the log."""
        shown = (self._show(db, *row) for row in _rows(db, question, part))
        return paged(shown, part.limit, bytes_of=lambda one: len(one.value["spec"].get("note", "")))

    def _show(self, db: Connection, idx: int, namespace: str, epoch: int, digest: bytes, raw: bytes) -> Found:
        said = msgspec.json.decode(bytes(raw)[entry.PREFIX_BYTES :], type=PopulationEpoch)
        kept = db.execute("SELECT bytes FROM body WHERE hash = ?", (canonical.decode_base64(said.body.commit),))
        body = next((bytes(row[0]) for row in kept), b"")
        shown_hash = base64.b64encode(digest).decode()
        spec = {
            "epoch": epoch, "previous": said.previous, "note": body[entry.SALT_BYTES :].decode(),
            "salt": base64.b64encode(body[: entry.SALT_BYTES]).decode(),
        }  # fmt: skip
        value = {
            "kind": "Population", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": str(epoch), "namespace": namespace, "uid": uid(f"{RESOURCE}/{namespace}", epoch),
                "resourceVersion": str(idx + 1), "creationTimestamp": seconds(said.wall_us),
            },
            "spec": {key: item for key, item in spec.items() if item != ""},
            "status": {
                "index": idx, "hash": shown_hash, "commit": said.body.commit, "pods": said.count,
                "receivedAt": micros(said.wall_us),
            },
        }  # fmt: skip
        cells = [str(epoch), said.count, seconds(said.wall_us), duration(self._now_us() - said.wall_us), shown_hash]
        return Found(idx, idx, value, cells)

    async def take(self, store: Store, namespace: str, request: web.Request) -> dict[str, Any]:
        """Store what is posted; returns the object.

        Raises:
            ApiError: 400 or 413 for what is no population; 403 for another key or cluster than the one that is
                known; 409 for another epoch than the next.
        """
        if "dryRun" in request.query:
            raise bad_request("a population that is not to be stored cannot be posted")
        data = await read_posted(request, MAX_POST_BYTES, "population")
        given = await asyncio.to_thread(_given, data, namespace)
        try:
            idx = await store.write(lambda tx: tx.populate(given))
        except Refused as error:
            if error.status == 403:
                log.error("a population of %s is refused: %s", namespace, error)
            raise ApiError(error.status, error.title, str(error)) from error
        question = Question(RESOURCE, namespace, (), (), "", "")
        page = await store.read(lambda db: self.page(db, question, Range(idx + 1, idx - 1, 1)))
        return page.found[0].value


def _given(data: bytes, namespace: str) -> Given:
    """What was posted, its signature verified.

    Raises:
        ApiError: 400.
    """
    try:
        posted = msgspec.json.decode(data, type=_Posted)
        signed = posted.spec.note.encode()
        said = population.open_population(signed, note.parse_vkey(posted.spec.key))
    except (msgspec.DecodeError, UnicodeError, EvidenceError) as error:
        raise bad_request(f"this is no population: {error}") from error
    if (posted.api_version, posted.kind) != (f"{GROUP}/{VERSION}", "Population"):
        raise bad_request(f"kind Population of {GROUP}/{VERSION} is posted here")
    if said.namespace != namespace or posted.metadata.namespace not in ("", namespace):
        raise bad_request(f"the population is one of the namespace {said.namespace}, not of {namespace}")
    return Given(said, signed, posted.spec.key, os.urandom(entry.SALT_BYTES))


def _rows(db: Connection, question: Question, part: Range) -> Iterator[tuple[int, str, int, bytes, bytes]]:
    if not all(requirement.holds({}) for requirement in question.labels):
        return
    where, values = "WHERE p.idx > ? AND p.idx < ?", [part.after, part.size]
    for term in question.terms("metadata.name"):
        if term.is_equal and term.value == NEWEST:
            where += _NEWEST
            continue
        where += " AND p.epoch = ?" if term.is_equal else " AND p.epoch <> ?"
        is_number = term.value.isascii() and term.value.isdecimal() and len(term.value) < 17
        values.append(int(term.value) if is_number and str(int(term.value)) == term.value else -1)
    texts: list[str] = []
    for namespace, is_equal in _namespaces(question).items():
        where += " AND p.namespace = ?" if is_equal else " AND p.namespace <> ?"
        texts.append(namespace)
    yield from stream(db, f"{_SELECT}{where} ORDER BY p.idx", (*values, *texts))


def _namespaces(question: Question) -> Mapping[str, bool]:
    asked = {question.namespace: True} if question.namespace else {}
    return asked | {term.value: term.is_equal for term in question.terms("metadata.namespace")}
