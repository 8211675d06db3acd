"""Revisions of policy: taken from the operator, verified and stored before the answer; and read by who asks.

A revision is named by its serial. Objects say what there is; the files are in bundles (`revisions.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from aiohttp import web

from chaperone_collector import revision
from chaperone_collector.api import revisions
from chaperone_collector.api.names import duration, micros, seconds, uid
from chaperone_collector.api.posted import read_posted
from chaperone_collector.api.question import Found, Page, Question, Range, paged
from chaperone_collector.api.status import GROUP, VERSION, ApiError, bad_request
from chaperone_collector.database import Connection
from chaperone_collector.errors import Refused
from chaperone_collector.store import Store
from chaperone_evidence import entry, note
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.revision import FILES, Files, open_files

log = logging.getLogger(__name__)

RESOURCE: Final = "policyrevisions"
KIND: Final = "PolicyRevision"
MAX_POST_BYTES: Final = 4 << 20  # a snapshot has at most 900 000 bytes and its notes, in base64
PLACE: Final = re.compile(
    rf"/apis/{re.escape(GROUP)}/{VERSION}/namespaces/(?P<namespace>[a-z0-9](?:[-a-z0-9]{{0,61}}[a-z0-9])?)/{RESOURCE}\Z"
)
COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "The serial."},
    {"name": "Revision", "type": "string", "format": "", "priority": 0, "description": "As commands name it."},
    {"name": "Identities", "type": "integer", "format": "int64", "priority": 0, "description": "It configures."},
    {"name": "Received", "type": "string", "format": "", "priority": 0, "description": "By the collector's clock."},
    {"name": "Age", "type": "string", "format": "", "priority": 0, "description": "Since then."},
    {"name": "Bundle", "type": "string", "format": "", "priority": 1, "description": "SHA-256 of what OPA got."},
]


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bundle: bytes
    gateway: bytes
    notes: bytes
    key: str  # the verifier key of who signed the notes


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    namespace: str = ""


class _Posted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    spec: _Spec
    metadata: _Metadata = _Metadata()
    api_version: str = f"{GROUP}/{VERSION}"
    kind: str = KIND


class PolicyRevisions:
    """Reads revisions.

    Args:
        now_us: the collector's clock.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The revisions below `part.size`, in the order of the log."""
        return paged((self._show(db, idx) for (idx,) in _rows(db, question, part)), part.limit)

    def _show(self, db: Connection, idx: int) -> Found:
        said = revision.read_statement(db, idx)
        value = {
            "kind": KIND, "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": str(said.serial), "namespace": said.namespace,
                "uid": uid(f"{RESOURCE}/{said.namespace}", said.serial),
                "resourceVersion": str(idx + 1), "creationTimestamp": seconds(said.wall_us),
            },
            "spec": {"revision": said.revision, "serial": said.serial},
            "status": {
                "index": idx, "identities": said.identities, "bundleSHA256": said.bundle_sha256,
                "commits": {name: getattr(said, name).commit for name in FILES}, "receivedAt": micros(said.wall_us),
            },
        }  # fmt: skip
        cells = [str(said.serial), said.revision, said.identities, seconds(said.wall_us),
                 duration(self._now_us() - said.wall_us), said.bundle_sha256]  # fmt: skip
        return Found(idx, idx, value, cells)

    async def take(self, store: Store, namespace: str, request: web.Request) -> dict[str, Any]:
        """Store what is posted, if it is not there; returns the object.

        Raises:
            ApiError: 400 or 413 for what is no revision; 403 for another key or cluster than the one that is known;
                409 where the serial has other content.
        """
        if "dryRun" in request.query:
            raise bad_request("a revision that is not to be stored cannot be posted")
        data = await read_posted(request, MAX_POST_BYTES, "revision")
        given = await asyncio.to_thread(_given, data, namespace)
        try:
            idx = await store.write(lambda tx: tx.revise(given))
        except Refused as error:
            log.error("revision %s of %s is refused: %s", given.found.revision, namespace, error)
            raise ApiError(error.status, error.title, str(error)) from error
        return (await store.read(lambda db: self._show(db, idx))).value


def _given(data: bytes, namespace: str) -> revision.Given:
    """What was posted, its signatures verified.

    Raises:
        ApiError: 400.
    """
    try:
        posted = msgspec.json.decode(data, type=_Posted)
        spec = posted.spec
        found = open_files(Files(spec.bundle, spec.gateway, spec.notes), note.parse_vkey(spec.key))
    except (msgspec.DecodeError, UnicodeError, EvidenceError) as error:
        raise bad_request(f"this is no revision of policy: {error}") from error
    if (posted.api_version, posted.kind) != (f"{GROUP}/{VERSION}", KIND):
        raise bad_request(f"kind {KIND} of {GROUP}/{VERSION} is posted here")
    if found.namespace != namespace or posted.metadata.namespace not in ("", namespace):
        raise bad_request(f"the revision is one of the namespace {found.namespace}, not of {namespace}")
    if max(len(getattr(found.files, name)) for name in FILES) > entry.MAX_BODY_BYTES - entry.SALT_BYTES:
        raise bad_request("a file of the revision is too long to be kept")
    return revision.Given(found, spec.key, tuple(os.urandom(entry.SALT_BYTES) for _ in FILES))


def _rows(db: Connection, question: Question, part: Range) -> Iterator[tuple[int]]:
    if not all(requirement.holds({}) for requirement in question.labels):
        return
    where, values = "WHERE idx > ? AND idx < ?", [part.after, part.size]
    for term in question.terms("metadata.name"):
        where += " AND serial = ?" if term.is_equal else " AND serial <> ?"
        values.append(revisions.serial_of(term.value))
    texts: list[str] = []
    for column, field in (("revision", "spec.revision"), ("namespace", "metadata.namespace")):
        for term in question.terms(field):
            where += f" AND {column} = ?" if term.is_equal else f" AND {column} <> ?"
            texts.append(term.value)
    if question.namespace:
        where += " AND namespace = ?"
        texts.append(question.namespace)
    yield from db.execute(f"SELECT idx FROM policy_revision {where} ORDER BY idx", (*values, *texts))  # noqa: S608
