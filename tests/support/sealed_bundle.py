"""Bundles as the collector makes them: its store, its log, its proofs, over streams of `gateway_stream`."""

from __future__ import annotations

import asyncio
import importlib.resources
import io
import tarfile
from pathlib import Path

import msgspec
from gateway_stream import Stream
from pki import Authority

from chaperone_collector.api import proof
from chaperone_collector.metrics import Metrics
from chaperone_collector.store import Store
from chaperone_collector.stream import extend, unknown
from chaperone_evidence import entry

VERIFIER = Path(str(importlib.resources.files("chaperone_evidence"))) / "companion" / "verify.py"
LONG_AFTER_US = 3_600_000_000


class Sealed(msgspec.Struct, frozen=True):
    """What an auditor holds: bundles by session, and from elsewhere the CA and the log's keys."""

    bundles: dict[str, dict[str, bytes]]
    policy: str
    checkpoints: list[bytes]


def seal(folder: Path, ca: Authority, streams: list[Stream], sessions: dict[str, str]) -> Sealed:
    """Store streams in a log of their own, one checkpoint after each; the bundles of sessions, by the names given."""
    folder.mkdir(exist_ok=True)
    return asyncio.run(_seal(folder, ca, streams, sessions))


async def _seal(folder: Path, ca: Authority, streams: list[Stream], sessions: dict[str, str]) -> Sealed:
    store = Store(folder, Metrics())
    try:
        for stream in streams:
            found = extend(unknown(stream.id), _entries(stream), stream.pod.subject(), [ca.certificate])
            await store.write(lambda tx, put=stream: tx.put_bodies(dict(put.bodies), put.pod.pod_uid))
            await store.write(lambda tx, put=found: tx.append(put))
            await store.write(lambda tx: tx.sign(store._keys))
        return await _read(store, sessions)
    finally:
        await store.close()


def read_again(folder: Path, sessions: dict[str, str]) -> Sealed:
    """The bundles of a log that was edited meanwhile; it is signed anew if its checkpoints are gone."""
    return asyncio.run(_read_again(folder, sessions))


async def _read_again(folder: Path, sessions: dict[str, str]) -> Sealed:
    store = Store(folder, Metrics())
    try:
        await store.write(lambda tx: tx.sign(store._keys))
        return await _read(store, sessions)
    finally:
        await store.close()


async def _read(store: Store, sessions: dict[str, str]) -> Sealed:
    bundles = {}
    for name, session in sessions.items():
        made = await proof.bundle(store, "agents", session, store.started_us + LONG_AFTER_US)
        assert made is not None
        bundles[name] = unpack(b"".join([piece async for piece in made]))
    policy = await store.read(store.policy)
    notes = await store.read(lambda db: db.execute("SELECT note FROM checkpoint ORDER BY size").fetchall())
    return Sealed(bundles, policy.decode(), [bytes(note) for (note,) in notes])


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of a bundle."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def pack(files: dict[str, bytes]) -> bytes:
    """A bundle of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _entries(stream: Stream) -> list[bytes]:
    return list(entry.frames(b"".join(stream.frames)))
