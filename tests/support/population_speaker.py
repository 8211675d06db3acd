"""An operator as the collector hears it: one that signs the populations of a namespace, and posts them by kubectl."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_evidence_api import EvidenceApi
from gateway_stream import CLUSTER

from chaperone_evidence.note import Signer
from chaperone_evidence.population import FIRST, Covered, Ended, Pod, Population, Uncovered, note_hash

BASE = "/apis/evidence.chaperone.dev/v1alpha1"


def operator_key(seed: int = 1, cluster: str = CLUSTER) -> Signer:
    """The key that an operator signs with."""
    return Signer(f"{cluster}/operator", Ed25519PrivateKey.from_private_bytes(bytes((seed,)) * 32))


class Speaker:
    """Speaks for one namespace; what was refused is not gone on from."""

    def __init__(self, api: EvidenceApi, namespace: str, signer: Signer | None = None) -> None:
        self.api, self.namespace = api, namespace
        self.signer = signer or operator_key()
        self.epoch, self.previous = 0, FIRST

    def note(self, *pods: Pod, epoch: int = 0, previous: bytes = b"") -> bytes:
        """The next population, signed."""
        by_uid = sorted(pods, key=lambda one: one.pod_uid)
        said = Population(
            cluster=self.signer.verifier.name.removesuffix("/operator"), namespace=self.namespace,
            epoch=epoch or self.epoch + 1, previous=previous or self.previous, wall_us=time.time_ns() // 1000,
            covered=tuple(one for one in by_uid if isinstance(one, Covered)),
            uncovered=tuple(one for one in by_uid if isinstance(one, Uncovered)),
            ended=tuple(one for one in by_uid if isinstance(one, Ended)),
        )  # fmt: skip
        return self.signer.sign(said.body)

    def post(self, note: bytes, *, user: str = "", key: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        """Post a note, whatever comes of it."""
        body = {"spec": {"note": note.decode(), "key": key or self.signer.verifier.vkey}} | more
        path = f"{BASE}/namespaces/{self.namespace}/populations"
        return self.api.run("create", "--raw", path, "-f", "-", given=json.dumps(body), user=user)

    def say(self, *pods: Pod, starts: str = "") -> Any:
        """Say the next population, by a note whose hash starts so in base64; the object that is answered."""
        note = self.note(*pods)
        while not base64.b64encode(note_hash(note)).decode().startswith(starts):
            note = self.note(*pods)
        done = self.post(note)
        assert done.returncode == 0, done.stderr
        self.epoch, self.previous = self.epoch + 1, note_hash(note)
        return json.loads(done.stdout)
