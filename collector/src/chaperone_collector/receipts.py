"""Receipts of the log for gateways: that a signed checkpoint covers what they sent (C2SP tlog-proof).

    GET /v1/streams/<id>/receipt?seq=<n>   → 200 the proof of record n of the pod's own stream, 503 not signed in time
    GET /v1/log/policy                     → 200 whose signatures such a checkpoint has (C2SP tlog-policy)

A request waits, for a bounded time and among a bounded number, until a checkpoint covers the record, cosigned by as
many witnesses as the collector's policy asks for. While somebody waits, the log is signed without its usual pause.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from chaperone_collector.database import Connection
from chaperone_collector.errors import Refused
from chaperone_collector.peer import Peers
from chaperone_collector.store import Store
from chaperone_collector.tree import read_proof
from chaperone_evidence import note, policyfile
from chaperone_evidence.policy import Policy
from chaperone_evidence.proof import LogProof
from chaperone_evidence.ulid import is_ulid

WAIT_S: Final = 4.0  # less than a gateway's patience, so that it hears why
MAX_WAITING: Final = 512  # of all gateways; each has one under way
MAX_WAITING_POD: Final = 4
MAX_CANDIDATES: Final = 64  # newest checkpoints in which cosignatures are looked for: 12 s of a busy log

_SEQ: Final = re.compile(r"(0|[1-9][0-9]{0,14})\Z")


class Receipts:
    """Answers gateways that wait for the log."""

    def __init__(self, store: Store, peers: Peers) -> None:
        self._store = store
        self._peers = peers
        self._waiting: Counter[str] = Counter()

    def routes(self) -> list[web.RouteDef]:
        """Of the application for gateways."""
        return [web.get("/v1/streams/{stream}/receipt", self.receipt), web.get("/v1/log/policy", self.policy)]

    async def policy(self, request: web.Request) -> web.Response:
        """Whose signatures receipts have."""
        self._peers.subject(request)
        found = await self._store.look_up(self._store.receipt_policy)
        if found is None:
            raise Refused(503, "No log yet", "The log has no name before it has records; send some.")
        return web.Response(text=policyfile.render(found))

    async def receipt(self, request: web.Request) -> web.Response:
        """The proof for one record, as soon as it can be had."""
        subject = self._peers.subject(request)
        stream, seq = request.match_info["stream"], request.query.get("seq", "")
        if not is_ulid(stream) or not _SEQ.match(seq):
            raise Refused(400, "Bad request", "Name a stream by its lower-case ULID and say seq=<number of a record>.")
        found = await self._store.look_up(lambda db: _find(db, stream, int(seq)))
        if found is None:
            raise Refused(404, "Not stored", f"Record {seq} of the stream is not in the log.")
        index, pod_uid = found
        if pod_uid != subject.pod_uid:
            raise Refused(
                403, "Not your stream", "The stream belongs to another pod; ask only for what this pod wrote."
            )
        with self._turn(subject.pod_uid), self._store.hurried():
            proof = await self._proof(index)
        return web.Response(text=proof.decode())

    async def _proof(self, index: int) -> bytes:
        ends = time.monotonic() + WAIT_S
        policy = await self._store.look_up(self._store.receipt_policy)
        while policy is not None:
            signed = self._store.signed  # taken before looking, so that nothing is signed unseen
            if self._store.signed_size > index:
                proof = await self._store.look_up(lambda db: read_receipt(db, index, policy))
                if proof is not None:
                    return proof.encode()
            if not await self._store.until(signed, ends - time.monotonic()):
                break
        if self._store.signed_size > index and policy is not None:
            why = f"fewer than {policy.witness_quorum} of the log's witnesses have signed its checkpoint."
        else:
            why = "the log has not signed a checkpoint over the record yet."
        raise Refused(503, "Not signed yet", why)

    @contextmanager
    def _turn(self, pod_uid: str) -> Iterator[None]:
        if self._waiting.total() >= MAX_WAITING or self._waiting[pod_uid] >= MAX_WAITING_POD:
            raise Refused(429, "Too many wait", "too many gateways wait for receipts.")
        self._waiting[pod_uid] += 1
        try:
            yield
        finally:
            self._waiting[pod_uid] -= 1
            if not self._waiting[pod_uid]:
                del self._waiting[pod_uid]


def read_receipt(db: Connection, index: int, policy: Policy) -> LogProof | None:
    """The proof of an entry at the newest checkpoint over it with enough cosignatures; None when none has them.

    What is stored of witnesses was verified when it came.
    """
    names = {key.name for key in policy.witnesses}
    rows = db.execute(
        "SELECT size, note FROM checkpoint WHERE size > ? ORDER BY size DESC LIMIT ?", (index, MAX_CANDIDATES)
    )
    for size, text in rows:
        data = bytes(text)
        if (
            policy.witness_quorum
            and len(names & {one.name for one in note.parse(data).signatures}) < policy.witness_quorum
        ):
            continue
        return LogProof(index, tuple(read_proof(db, index, size)), data)
    return None


def _find(db: Connection, stream: str, seq: int) -> tuple[int, str] | None:
    row = db.execute(
        "SELECT e.idx, s.pod_uid FROM stream s JOIN entry e ON e.stream = s.id WHERE s.name = ? AND e.seq = ?",
        (stream, seq),
    ).fetchone()
    return (int(row[0]), str(row[1])) if row is not None else None
