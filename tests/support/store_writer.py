"""A store in a process of its own: `store_writer.py DIRECTORY FRAMES AUTHORITY CERTIFICATE`.

It goes on where the store is, ten entries a write, signs the log after each fifth one, and says after each what is
acknowledged. A write that cannot be taken is tried again; a store that has failed ends the process, as the collector.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from chaperone_collector.checkpoint import LogKeys
from chaperone_collector.errors import StoreBusy, StoreUnusable
from chaperone_collector.metrics import Metrics
from chaperone_collector.store import Store
from chaperone_collector.stream import Stored, extend, unknown
from chaperone_collector.transaction import read_stored
from chaperone_evidence import entry, note, record
from chaperone_evidence.certificate import Subject, read_subject

BATCH = 10
TRIES = 200
FAILED = 3


class Told(NamedTuple):
    """A stream to write, and whose it is."""

    batch: list[bytes]
    name: str
    authorities: list[x509.Certificate]
    subject: Subject


def _read(frames: Path, authority: Path, certificate: Path) -> Told:
    batch = list(entry.frames(frames.read_bytes()))
    opened = record.decode(batch[0][entry.PREFIX_BYTES :])
    assert isinstance(opened, record.StreamOpen)
    ca, leaf = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (authority, certificate))
    return Told(batch, opened.stream, [ca], read_subject(leaf))


async def _write(directory: Path, told: Told) -> int:
    store = Store(directory, Metrics())
    keys = LogKeys(directory, may_make=False)
    row = await store.read(lambda db: read_stored(db, told.name))
    stored = unknown(told.name)
    if row is not None:
        number, count, link, pod_uid, cluster, vkey, state, head_us = row
        stored = Stored(told.name, number, count, bytes(link), pod_uid, cluster, note.parse_vkey(vkey),
                        state == "closed", head_us)  # fmt: skip
    print("stored", stored.acked, flush=True)
    writes = 0
    while stored.count < len(told.batch):
        extension = extend(stored, told.batch[stored.count : stored.count + BATCH], told.subject, told.authorities)
        stored = await _tried(store, extension)
        print("acked", stored.acked, flush=True)
        writes += 1
        if writes % 5 == 0:
            await _tried(store, keys)
    await store.close()
    print("done", flush=True)
    return 0


async def _tried(store: Store, what: object) -> object:
    for _ in range(TRIES):
        try:
            return await store.write(lambda tx: tx.sign(what) if isinstance(what, LogKeys) else tx.append(what))
        except StoreBusy:
            await asyncio.sleep(0.01)
    raise SystemExit("the store takes nothing")


try:
    raise SystemExit(asyncio.run(_write(Path(sys.argv[1]), _read(*map(Path, sys.argv[2:])))))
except StoreUnusable as error:
    print("failed", error, flush=True)
    raise SystemExit(FAILED) from error
