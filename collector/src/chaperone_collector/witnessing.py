"""Asks witnesses to sign the log's checkpoints (C2SP tlog-witness).

A witness signs only what continues the last checkpoint that it has seen, so who shows two different logs to two
people, or takes one back, has to do without it. It is asked for the newest checkpoint; those between are covered by
the proof that the one grew out of the other. A witness that does not answer delays nothing: records are acknowledged
and checkpoints signed without it, and it is asked again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Final

import aiohttp
import msgspec

from chaperone_collector import tree
from chaperone_collector.database import Connection
from chaperone_collector.errors import CollectorError
from chaperone_collector.metrics import Metrics
from chaperone_collector.store import Store
from chaperone_evidence import note, witness
from chaperone_evidence.checkpoint import Checkpoint, parse_body
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.policyfile import Witness
from chaperone_evidence.witness import AddCheckpoint

PERIOD_S: Final = 5.0  # between two looks for a checkpoint that a witness has not signed
TIMEOUT_S: Final = 20.0  # of one request
MAX_PAUSE_S: Final = 300.0  # between two tries at a witness that fails

log = logging.getLogger(__name__)


class Refused(Exception):
    """The witness did not sign; the text says why."""


class Newest(msgspec.Struct, frozen=True):
    """The newest checkpoint, without signatures of witnesses, and the proof that it grew out of an older size."""

    checkpoint: Checkpoint
    note: bytes
    proof: tuple[bytes, ...]


class Witnessing:
    """Asks each witness, while `run` runs.

    Args:
        tls: whom to believe that they are the witness; None: whom the system believes.
    """

    def __init__(
        self, store: Store, witnesses: tuple[Witness, ...], metrics: Metrics, tls: ssl.SSLContext | None = None
    ) -> None:
        self._store = store
        self._witnesses = witnesses
        self._metrics = metrics
        self._tls = tls or ssl.create_default_context()

    async def run(self) -> None:
        """Ask until cancelled."""
        limit, connector = aiohttp.ClientTimeout(TIMEOUT_S), aiohttp.TCPConnector(ssl=self._tls)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as http, asyncio.TaskGroup() as group:
            for one in self._witnesses:
                group.create_task(self._follow(http, one))

    async def _follow(self, http: aiohttp.ClientSession, one: Witness) -> None:
        seen, pause_s = 0, PERIOD_S
        while True:
            try:
                seen = await self._ask(http, one, seen)
                pause_s = PERIOD_S
            except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError, CollectorError, EvidenceError) as error:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                self._metrics.witnessed.labels(one.url, "failed").inc()
                log.warning("the witness at %s did not sign, again in %.0f s: %s", one.url, pause_s, error)
            except Refused as error:
                pause_s = MAX_PAUSE_S
                self._metrics.witnessed.labels(one.url, "refused").inc()
                log.error("the witness at %s refuses this log: %s", one.url, error)
            if self._store.needs_witnesses and pause_s == PERIOD_S:
                await self._store.pause(pause_s)
            else:
                await asyncio.sleep(pause_s)

    async def _ask(self, http: aiohttp.ClientSession, one: Witness, seen: int) -> int:
        """Have the newest checkpoint signed; returns the size that the witness has seen now."""
        newest = await self._store.read(lambda db: _newest(db, seen))
        if newest is None or newest.checkpoint.size == seen:
            return seen
        request = AddCheckpoint(seen, newest.proof, newest.note).encode()
        async with http.post(f"{one.url}/add-checkpoint", data=request, allow_redirects=False) as answer:
            data = await answer.content.read(witness.MAX_ANSWER_BYTES + 1)
        size = newest.checkpoint.size
        if answer.status == 409:
            known = witness.parse_size(data)
            if known > size:
                raise Refused(f"it has signed {known} entries and this log has {size}: entries were lost, or there is "
                              "another log of this name.")  # fmt: skip
            if known == seen:
                raise Refused("it says to have seen what was said to it, and does not sign.")
            return known
        if answer.status != 200:
            raise Refused(f"HTTP status {answer.status}: {data[:200].decode(errors='replace').strip()}")
        lines = "".join(line for line, _ in witness.parse_answer(data, newest.checkpoint, one.keys))
        await self._store.write(lambda tx: tx.cosign(size, lines))
        self._store.note_signed()
        self._metrics.witnessed.labels(one.url, "signed").inc()
        return size


def _newest(db: Connection, seen: int) -> Newest | None:
    row = db.execute("SELECT size, note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
    if row is None:
        return None
    size, text = row[0], bytes(row[1])
    parts = note.parse(text)
    origin = parse_body(parts.body).origin
    own = "".join(one.line for one in parts.signatures if one.name == origin)
    proof = tuple(tree.read_growth(db, seen, size)) if 0 < seen < size else ()
    return Newest(parse_body(parts.body), f"{parts.body}\n{own}".encode(), proof)
