"""A namespace as an auditor gets it: populations and streams in a real store, and the bundle of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
from gateway_stream import CLUSTER, Pod, Stream
from pki import Authority
from population_speaker import operator_key
from sealed_bundle import unpack

from chaperone_collector.api import census
from chaperone_collector.metrics import Metrics
from chaperone_collector.population import Given
from chaperone_collector.store import Store
from chaperone_collector.stream import extend, unknown
from chaperone_evidence import entry
from chaperone_evidence.note import Signer
from chaperone_evidence.population import FIRST, Covered, Ended, Population, Uncovered, note_hash
from chaperone_evidence.population import Pod as Named

SECOND = 1_000_000
MINUTE = 60 * SECOND


class Bundle(msgspec.Struct, frozen=True):
    """What an auditor holds: the bundle, and from elsewhere the keys of log and operator."""

    files: dict[str, bytes]
    policy: str
    vkey: str


class Spoken(msgspec.Struct):
    """The operator, for one namespace."""

    namespace: str
    signer: Signer
    epoch: int = 0
    previous: bytes = FIRST

    def say(self, wall_us: int, *pods: Named) -> Given:
        """The next population."""
        by_uid = sorted(pods, key=lambda one: one.pod_uid)
        self.epoch += 1
        said = Population(
            cluster=CLUSTER, namespace=self.namespace, epoch=self.epoch, previous=self.previous, wall_us=wall_us,
            covered=tuple(one for one in by_uid if isinstance(one, Covered)),
            uncovered=tuple(one for one in by_uid if isinstance(one, Uncovered)),
            ended=tuple(one for one in by_uid if isinstance(one, Ended)),
        )  # fmt: skip
        note = self.signer.sign(said.body)
        self.previous = note_hash(note)
        return Given(said, note, self.signer.verifier.vkey, os.urandom(entry.SALT_BYTES))


def speaker(namespace: str = "agents", seed: int = 1) -> Spoken:
    """An operator that has said nothing yet."""
    return Spoken(namespace, operator_key(seed))


def beats(stream: Stream, until_us: int) -> None:
    """Sign a head every ten seconds up to a time."""
    while stream.now_us + 10 * SECOND <= until_us:
        stream.now_us += 10 * SECOND
        stream.head("idle")


def bundle(
    folder: Path, ca: Authority, said: list[Given], streams: list[Stream], now_us: int, namespace: str = "agents"
) -> Bundle:
    """Store them, and take the bundle of a namespace at a time."""
    return asyncio.run(_bundle(folder, ca, said, streams, now_us, namespace))


async def _bundle(
    folder: Path, ca: Authority, said: list[Given], streams: list[Stream], now_us: int, namespace: str
) -> Bundle:
    store = Store(folder, Metrics(), lambda: now_us)
    try:
        for stream in streams:
            entries = list(entry.frames(b"".join(stream.frames)))
            found = extend(unknown(stream.id), entries, stream.pod.subject(), [ca.certificate])
            await store.write(lambda tx, put=found: tx.append(put))
        for one in said:
            await store.write(lambda tx, put=one: tx.populate(put))
        await store.write(lambda tx: tx.sign(store._keys))
        made = await census.bundle(store, namespace, now_us)
        assert made is not None
        files = unpack(b"".join([piece async for piece in made]))
        return Bundle(files, (await store.read(store.policy)).decode(), said[0].vkey)
    finally:
        await store.close()


def pod(ca: Authority, uid: str, identity: str = "billing-agent", namespace: str = "agents") -> Pod:
    """A gateway of a pod named after its uid."""
    return Pod(ca, namespace=namespace, pod=f"pod-{uid}", pod_uid=uid, identity=identity)


def covered(uid: str, since_us: int, identity: str = "billing-agent") -> Covered:
    """The operator's word on that pod."""
    return Covered(uid, f"pod-{uid}", identity, since_us)


def ended(uid: str, since_us: int, finished_us: int, identity: str = "billing-agent") -> Ended:
    """The operator's word on the end of that pod."""
    return Ended(uid, f"pod-{uid}", identity, since_us, "Succeeded", 0, finished_us)
