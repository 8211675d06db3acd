"""Streams in a spool, without a gateway around them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from gateway_stream import Pod

from chaperone_evidence import record
from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.recorder import Recorder
from chaperone_sidecar.recording.spool import Spool
from chaperone_sidecar.recording.stream import begin_stream

LIMIT: Final = 64 << 20
ALLOW: Final = Decision(Action.ALLOW, "agents/billing", "read", "", "0123456789abcdef")


def begin(pod: Pod, root: Path, limit: int = LIMIT, ids: Ids | None = None) -> tuple[Recorder, Spool]:
    """Begin a stream as a gateway in this pod would."""
    der = pod.certificate.public_bytes(serialization.Encoding.DER)
    opened = record.StreamOpen(
        seq=0, wall_us=0, mono_us=0, stream="", cluster=pod.cluster, namespace=pod.namespace, pod=pod.pod,
        pod_uid=pod.pod_uid, identity=pod.identity, vkey="", certificate=base64.b64encode(der).decode(),
    )  # fmt: skip
    return begin_stream(root, limit, pod.signer, opened, ids or Ids())


def work(recorder: Recorder, commands: int, size: int = 40) -> None:
    """One session of that many commands."""
    log = recorder.new_session("orders-db")
    recorder.open_session(
        log, protocol="PostgreSQL", client="c", upstream="u", user="me", database="orders", application=""
    )
    facts = Facts((Access(Effect.READ, "public.orders"),), Resolution.SYNTACTIC)
    for number in range(commands):
        text = f"SELECT {number} FROM orders".ljust(size).encode()
        intent = recorder.intend(log, Command("query", text, facts), ALLOW)
        recorder.conclude(log, intent, "ok", rows=1)
    recorder.close_session(log, "done")
    recorder.head("open")
