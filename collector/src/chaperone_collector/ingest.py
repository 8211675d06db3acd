"""The gateways' side: batches of records and bodies over mTLS, answered after the commit.

    POST /v1/streams/<id>/records?from=<seq>   entry frames     → 200 {"acked": n, "credit": bytes}
    GET  /v1/streams/<id>                                       → 200 {"acked": n, "credit": bytes}, −1 for unknown
    POST /v1/bodies                            body frames      → 204, many at once
    PUT  /v1/bodies/<commitment, hex>          salt ‖ plain     → 204
    GET  /v1/streams/<id>/receipt, /v1/log/policy               see receipts.py

A batch that does not continue its stream is answered 409 with what is acknowledged; it is counted, and a copy is kept
in quarantine. Requests for one stream are worked on one after the other; streams share commits.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from chaperone_collector.budget import Budget
from chaperone_collector.errors import ChainBroken, CollectorError, Refused, StoreBusy
from chaperone_collector.metrics import Metrics
from chaperone_collector.peer import GatewayCa, Peers
from chaperone_collector.receipts import Receipts
from chaperone_collector.store import Store
from chaperone_collector.stream import Extension, Stored, extend, unknown
from chaperone_collector.transaction import read_entries, read_stored
from chaperone_evidence import entry, note
from chaperone_evidence.certificate import Subject
from chaperone_evidence.errors import Malformed
from chaperone_evidence.ulid import is_ulid

log = logging.getLogger(__name__)

MAX_BATCH_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = entry.MAX_BODY_BYTES
MAX_BODIES_BYTES: Final = 2 << 20  # of body frames in one request: the longest body fits
MAX_CACHED_STREAMS: Final = 20_000  # ends of streams kept in memory, about 0.5 KiB each
BODY_TIMEOUT_S: Final = 30.0  # a megabyte takes longer only on a line that is no use
RETRY_AFTER_S: Final = "1"

_COMMIT: Final = re.compile(r"[0-9a-f]{64}\Z")
_SEQ: Final = re.compile(r"(0|[1-9][0-9]{0,14})\Z")


class Ingest:
    """Takes in what gateways send."""

    def __init__(self, store: Store, ca: GatewayCa, peers: Peers, metrics: Metrics) -> None:
        self._store = store
        self._ca = ca
        self._peers = peers
        self._receipts = Receipts(store, peers)
        self._metrics = metrics
        self._budget = Budget(metrics)
        self._ends: OrderedDict[str, Stored] = OrderedDict()
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_problems], client_max_size=MAX_BODIES_BYTES)
        app.add_routes(
            [
                web.post("/v1/streams/{stream}/records", self.records),
                web.get("/v1/streams/{stream}", self.stream),
                web.post("/v1/bodies", self.bodies),
                web.put("/v1/bodies/{commit}", self.body),
                *self._receipts.routes(),
            ]
        )
        return app

    async def stream(self, request: web.Request) -> web.Response:
        """How far a stream is stored."""
        subject = self._peers.subject(request)
        stored = await self._end(_stream_name(request))
        _own(stored, subject)
        return _json(200, {"acked": stored.acked, "credit": self._budget.credit(subject.pod_uid)})

    async def records(self, request: web.Request) -> web.Response:
        """Store a batch."""
        subject = self._peers.subject(request)
        name = _stream_name(request)
        first = request.query.get("from", "")
        if not _SEQ.match(first):
            raise Refused(400, "Bad request", "Say from=<number of the batch's first record>.")
        async with self._take(request, subject, MAX_BATCH_BYTES):
            data = await _read(request)
            async with _Turn(self._locks, name):
                stored = await self._end(name)
                _own(stored, subject)
                try:
                    stored = await self._extend(stored, int(first), data, subject)
                except ChainBroken as broken:
                    self._ends.pop(name, None)
                    stored = await self._end(name)  # another collector may have brought it further
                    return await self._broken(stored, int(first), data, subject, broken)
        self._metrics.batches.labels("stored").inc()
        return _json(200, {"acked": stored.acked, "credit": self._budget.credit(subject.pod_uid)})

    async def body(self, request: web.Request) -> web.Response:
        """Store a body under its commitment."""
        subject = self._peers.subject(request)
        text = request.match_info["commit"]
        if not _COMMIT.match(text):
            raise Refused(400, "Bad request", "Name the body by its commitment, 64 hexadecimal digits.")
        commit = bytes.fromhex(text)
        async with self._take(request, subject, MAX_BODY_BYTES):
            data = await _read(request)
            if len(data) < entry.SALT_BYTES or entry.body_commit(data) != commit:
                raise Refused(400, "Another body", "The bytes are not those that the commitment names.")
            await self._put({commit: data}, subject)
        return web.Response(status=204)

    async def bodies(self, request: web.Request) -> web.Response:
        """Store many bodies, each under the commitment that its bytes have."""
        subject = self._peers.subject(request)
        async with self._take(request, subject, MAX_BODIES_BYTES):
            data = await _read(request)
            try:
                await self._put({entry.body_commit(body): body for body in entry.body_frames(data)}, subject)
            except Malformed as error:
                raise Refused(400, "Bad request", str(error)) from error
        return web.Response(status=204)

    async def _put(self, bodies: dict[bytes, bytes], subject: Subject) -> None:
        self._metrics.bodies.inc(await self._store.write(lambda tx: tx.put_bodies(bodies, subject.pod_uid)))

    def _take(self, request: web.Request, subject: Subject, cap: int) -> AbstractAsyncContextManager[None]:
        size = request.content_length
        if size is None:
            raise Refused(411, "Length required", "Send Content-Length, so that room can be kept.")
        if size > cap:
            raise Refused(413, "Too large", f"Send at most {cap} bytes at once.")
        return self._budget.take(subject.pod_uid, size)

    async def _extend(self, stored: Stored, first: int, data: bytes, subject: Subject) -> Stored:
        try:
            batch = list(entry.frames(data))
        except Malformed as error:
            raise Refused(400, "Bad request", str(error)) from error
        if first > stored.count:
            raise ChainBroken("gap", f"The batch begins at {first}; {stored.count} comes next.")
        batch = await self._skip(stored, first, batch)
        if not batch:
            return stored
        extension = extend(stored, batch, subject, self._ca.authorities())
        after = await self._store.write(lambda tx: tx.append(extension))
        self._keep(after)
        self._count(extension)
        return after

    async def _skip(self, stored: Stored, first: int, batch: list[bytes]) -> list[bytes]:
        """Drop what is stored already, after comparing it byte by byte."""
        if first == stored.count:
            return batch
        again = batch[: stored.count - first]
        known = await self._store.look_up(lambda db: read_entries(db, stored.id, first, first + len(again) - 1))
        for seq, (one, other) in enumerate(zip(known, again, strict=True), first):
            if one != other:
                raise ChainBroken("fork", f"Record {seq} was stored with other bytes: the stream is forked.")
        return batch[len(again) :]

    async def _broken(
        self, stored: Stored, first: int, data: bytes, subject: Subject, broken: ChainBroken
    ) -> web.Response:
        self._metrics.batches.labels("broken").inc()
        self._metrics.broken.labels(broken.reason).inc()
        if broken.reason != "gap":  # a gap is how a sender learns where to go on, not a sign of tampering
            log.error("stream %s of pod %s: %s", stored.name, subject.pod_uid, broken)
            await self._store.write(lambda tx: tx.quarantine(subject.pod_uid, stored.name, first, broken, data))
        return _problem(409, "Chain broken", str(broken), acked=stored.acked)

    async def _end(self, name: str) -> Stored:
        known = self._ends.get(name)
        if known is not None and not self._store.database.is_shared:
            return known
        row = await self._store.look_up(lambda db: read_stored(db, name))
        if row is None:
            return unknown(name)
        number, count, link, pod_uid, cluster, vkey, state, head_us = row
        stored = Stored(
            name, number, count, bytes(link), pod_uid, cluster, note.parse_vkey(vkey), state == "closed", head_us
        )
        self._keep(stored)
        return stored

    def _keep(self, stored: Stored) -> None:
        self._ends[stored.name] = stored
        self._ends.move_to_end(stored.name)
        if len(self._ends) > MAX_CACHED_STREAMS:
            self._ends.popitem(last=False)

    def _count(self, extension: Extension) -> None:
        self._metrics.records.inc(len(extension.entries))
        self._metrics.findings.inc(sum(1 for one in extension.entries if one.flaw))
        self._metrics.size.set(self._store.size)


class _Turn:
    """Requests for one stream wait for each other; the lock goes when nobody waits."""

    def __init__(self, locks: dict[str, tuple[asyncio.Lock, int]], name: str) -> None:
        self._locks = locks
        self._name = name

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._name) or (asyncio.Lock(), 0)
        self._locks[self._name] = (lock, users + 1)
        try:
            await lock.acquire()
        except asyncio.CancelledError:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._locks[self._name][0].release()
        self._leave()

    def _leave(self) -> None:
        lock, users = self._locks[self._name]
        if users == 1:
            del self._locks[self._name]
        else:
            self._locks[self._name] = (lock, users - 1)


def _stream_name(request: web.Request) -> str:
    name = request.match_info["stream"]
    if not is_ulid(name):
        raise Refused(400, "Bad request", "A stream is named by a lower-case ULID.")
    return name


def _own(stored: Stored, subject: Subject) -> None:
    if stored.id and stored.pod_uid != subject.pod_uid:
        raise Refused(403, "Not your stream", "The stream belongs to another pod; send only what this pod wrote.")


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError as error:
        raise Refused(408, "Too slow", f"Send a request within {BODY_TIMEOUT_S:.0f} seconds.") from error


def _json(status: int, value: dict[str, int]) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _problem(status: int, title: str, detail: str, acked: int | None = None) -> web.Response:
    value: dict[str, str | int] = {"title": title, "detail": detail, "status": status}
    if acked is not None:
        value["acked"] = acked
    headers = {"Retry-After": RETRY_AFTER_S} if status in (429, 503) else None
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/problem+json", headers=headers)


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as problem+json; the connection is closed when its body was not read."""
    try:
        answer: web.StreamResponse = await handler(request)
    except Refused as error:
        answer = _problem(error.status, error.title, str(error))
    except StoreBusy as error:
        answer = _problem(503, "Busy", str(error))
    except CollectorError as error:
        answer = _problem(503, "Unavailable", str(error))
    except web.HTTPException as error:  # the router's: no such call, no such method
        answer = _problem(error.status, error.reason, "See the collector's documentation for its calls.")
    if not request.content.is_eof():
        answer.force_close()
    return answer
