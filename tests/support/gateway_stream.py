"""A gateway as the collector sees it: a pod with a certificate, and streams that it chains and signs itself."""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
import tempfile
import time
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pki import Authority, key_pem

from chaperone_evidence import certificate, entry, frames, record, ulid
from chaperone_evidence.chain import Chain, HeadState
from chaperone_evidence.note import Signer

CLUSTER = "0b8a4b7e-0000-4000-8000-000000000001"


class Pod:
    """One run of a gateway: its pod, its keys and the certificate that binds them."""

    def __init__(
        self,
        ca: Authority,
        *,
        namespace: str = "agents",
        pod: str = "billing-0",
        pod_uid: str = "6f1f0a52-0000-4000-8000-000000000001",
        identity: str = "billing-agent",
        owner: str = "billing@example.com",
        cluster: str = CLUSTER,
    ) -> None:
        self.cluster, self.namespace, self.pod, self.pod_uid = cluster, namespace, pod, pod_uid
        self.identity, self.owner = identity, owner
        self.signer = Signer(f"{cluster}/gateway/{pod_uid}", Ed25519PrivateKey.generate())
        self.key = ec.generate_private_key(ec.SECP256R1())
        uri = certificate.subject_uri(cluster, namespace, pod, pod_uid, identity)
        self.certificate = ca.gateway(uri, self.signer.verifier.vkey, self.key.public_key())

    def subject(self) -> certificate.Subject:
        """What the certificate says."""
        return certificate.read_subject(self.certificate)

    def client_tls(self, server_ca: str) -> ssl.SSLContext:
        """The client's side of mTLS."""
        context = ssl.create_default_context(cadata=server_ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        load_pair(context, self.key, self.certificate)
        return context


class Stream:
    """A stream under construction; `frames` holds what was not taken yet, `bodies` what records name."""

    _last_ms = 0

    def __init__(
        self,
        pod: Pod,
        *,
        previous: Stream | None = None,
        opened: record.StreamOpen | None = None,
        start_us: int = 0,
        policy_serial: int = 0,
        revision: str = "0123456789abcdef",
    ) -> None:
        self.pod, self.policy_serial, self.revision = pod, policy_serial, revision
        # A later stream has a later id, as the next process of a pod has: two may be made within one millisecond here.
        Stream._last_ms = max(time.time_ns() // 1_000_000, Stream._last_ms + 1)
        self.id = ulid.encode(Stream._last_ms, os.urandom(10))
        self.chain = Chain(pod.cluster, self.id)
        self.frames: list[bytes] = []
        self.bodies: dict[bytes, bytes] = {}
        self.now_us = start_us or time.time_ns() // 1000
        self.add(opened or self.stream_open(previous))

    def stream_open(self, previous: Stream | None = None) -> record.StreamOpen:
        """The first record as an honest gateway writes it."""
        pod = self.pod
        der = pod.certificate.public_bytes(serialization.Encoding.DER)
        return record.StreamOpen(
            seq=0, wall_us=0, mono_us=0, stream=self.id, cluster=pod.cluster, namespace=pod.namespace, pod=pod.pod,
            pod_uid=pod.pod_uid, identity=pod.identity, vkey=pod.signer.verifier.vkey,
            certificate=base64.b64encode(der).decode(), node="node-1", service_account="billing", owner=pod.owner,
            revision=self.revision, policy_serial=self.policy_serial, previous=previous.id if previous else "",
            previous_link=base64.b64encode(previous.chain.link).decode() if previous else "",
        )  # fmt: skip

    def add(self, unset: record.Record) -> int:
        """Chain a record; its number and times are set here."""
        seq = self.chain.count
        self.now_us += 1000
        stamped = msgspec.structs.replace(unset, seq=seq, wall_us=self.now_us, mono_us=self.now_us - 10**15)
        self.frames.append(self.chain.append_record(stamped))
        return seq

    def head(self, state: HeadState = "open", signer: Signer | None = None) -> None:
        """Sign what is there."""
        self.frames.append(self.chain.append_head(signer or self.pod.signer, self.now_us, state))

    def open_session(
        self, target: str = "orders-db", protocol: str = "PostgreSQL", delegated: record.Delegated | None = None
    ) -> str:
        """A session begins; returns its id."""
        session = ulid.encode(time.time_ns() // 1_000_000, os.urandom(10))
        self.add(
            record.SessionOpen(
                seq=0, wall_us=0, mono_us=0, session=session, target=target, protocol=protocol,
                client="10.244.0.9:41234", user="app", database="orders", application="psql",
                delegated=delegated or msgspec.UNSET,
            )
        )  # fmt: skip
        return session

    def intend(
        self, session: str, text: str = "SELECT 1", *, target: str = "orders-db", decision: str = "Allow",
        policy: str = "agents/billing", rule: str = "read-orders", approval: str = "", subject: str = "",
        with_body: bool = True, would: tuple[str, str, str] = ("", "", ""), effects: tuple[str, ...] = ("read",),
        kind: str = "query", accesses: tuple[tuple[str, str], ...] = (),
    ) -> tuple[int, str]:  # fmt: skip
        """A command's intent; returns its number and id. `accesses` are effects with objects, instead of `effects`."""
        plain = text.encode()
        salt = os.urandom(entry.SALT_BYTES)
        body = salt + plain
        commit = entry.body_commit(body)
        if with_body:
            self.bodies[commit] = body
        command = ulid.encode(time.time_ns() // 1_000_000, os.urandom(10))
        seq = self.add(
            record.CommandIntent(
                seq=0, wall_us=0, mono_us=0, session=session, command=command, target=target, kind=kind,
                decision=decision, sha256=hashlib.sha256(plain).hexdigest(), size_bytes=len(plain),
                accesses=tuple(
                    record.AccessEntry(*one) for one in accesses or [(effect, "public.orders") for effect in effects]
                ),
                resolution="syntactic",
                policy=policy, rule=rule, revision=self.revision, approval=approval,
                would=would[0], would_policy=would[1], would_rule=would[2], subject=subject,
                body=record.Commitment(base64.b64encode(commit).decode(), len(plain)),
            )
        )  # fmt: skip
        return seq, command

    def conclude(self, session: str, intent: tuple[int, str], status: str = "ok", rows: int = 1) -> None:
        """A command's outcome."""
        self.add(
            record.CommandOutcome(
                seq=0, wall_us=0, mono_us=0, session=session, command=intent[1], ref=intent[0], status=status,
                rows=rows, bytes=rows * 10, duration_us=1500,
            )
        )  # fmt: skip

    def show(
        self, session: str, shown: list[frames.Known], *, command: str = "", number: int = 0, with_body: bool = True
    ) -> bytes:
        """A part of the session's recording; returns its commitment."""
        packed = frames.pack(b"".join(map(frames.encode, shown)))
        body = os.urandom(entry.SALT_BYTES) + packed
        commit = entry.body_commit(body)
        if with_body:
            self.bodies[commit] = body
        self.add(
            record.RecordingChunk(
                seq=0, wall_us=0, mono_us=0, session=session, command=command, number=number, frames=len(shown),
                first_us=shown[0].t_us, last_us=shown[-1].t_us, codec="zstd",
                body=record.Commitment(base64.b64encode(commit).decode(), len(packed)),
            )
        )  # fmt: skip
        return commit

    def close_session(self, session: str, commands: int, denied: int = 0) -> None:
        """A session's end."""
        self.add(
            record.SessionClose(
                seq=0, wall_us=0, mono_us=0, session=session, reason="client closed", commands=commands,
                denied=denied, bytes_in=100, bytes_out=2000,
            )
        )  # fmt: skip

    def close(self) -> None:
        """The gateway stops in order."""
        self.add(record.StreamClose(seq=0, wall_us=0, mono_us=0, reason="stopped"))
        self.head("closed")

    def take(self) -> tuple[int, bytes]:
        """What was not taken yet: the first number and the frames."""
        frames, self.frames = self.frames, []
        return self.chain.count - len(frames), b"".join(frames)


def load_pair(context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> None:
    """Give a context a certificate; the files that this needs are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.pem"
        path.write_bytes(key_pem(key) + leaf.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path)
