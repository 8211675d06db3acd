"""Revisions of policy as the operator makes and signs them, and commands that they decided."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_evidence_api import EvidenceApi
from gateway_stream import CLUSTER, Pod, Stream
from manifests import Object, identity, policy, target
from pki import Authority
from sealed_bundle import Sealed, read_again, seal

from chaperone_collector.metrics import Metrics
from chaperone_collector.revision import Given
from chaperone_collector.store import Store
from chaperone_evidence import note, record
from chaperone_evidence.revision import FILES, Files, open_files
from chaperone_operator.compile import compile_namespace
from chaperone_operator.signing import Signer, signed

BASE = "/apis/evidence.chaperone.dev/v1alpha1"


def operator(seed: int = 1) -> Signer:
    """The operator's key; 1 is that of `population_speaker`."""
    return Signer(f"{CLUSTER}/operator", Ed25519PrivateKey.from_private_bytes(bytes((seed,)) * 32))


class Revised(msgspec.Struct, frozen=True):
    """A snapshot in force."""

    namespace: str
    revision: str
    data: dict[str, str]  # `binaryData`

    @property
    def files(self) -> Files:
        """What is kept of it."""
        names = ("bundle.tar.gz", "gateway.json", "notes.json")
        return Files(*(base64.b64decode(self.data[name]) for name in names))

    def given(self, signer: Signer) -> Given:
        """As the collector takes it in."""
        found = open_files(self.files, note.parse_vkey(signer.vkey))
        return Given(found, signer.vkey, tuple(bytes([number]) * 32 for number, _ in enumerate(FILES)))


def revised(
    rules: list[Object], *more: Object, namespace: str = "agents", signer: Signer | None = None, now_ms: int = 1000,
    **spec: Any,
) -> Revised:  # fmt: skip
    """A namespace with one policy of these rules, compiled and signed."""
    one = target(allowedNamespaces={"names": [namespace]})
    made = compile_namespace(
        namespace, [identity(namespace=namespace)], [one], [policy(rules, namespace=namespace, **spec), *more], [],
        namespace_labels={},
    )  # fmt: skip
    assert made.is_usable, made.problems
    data = signed(made.binary_data(), namespace, made.revision, None, signer or operator(), now_ms)
    return Revised(namespace, made.revision, data)


def post(api: EvidenceApi, found: Revised, signer: Signer, **changed: Any) -> subprocess.CompletedProcess[str]:
    """Post a revision by kubectl, whatever comes of it."""
    spec = {
        "bundle": found.data["bundle.tar.gz"], "gateway": found.data["gateway.json"], "notes": found.data["notes.json"],
        "key": signer.vkey,
    }  # fmt: skip
    path = f"{BASE}/namespaces/{found.namespace}/policyrevisions"
    return api.run("create", "--raw", path, "-f", "-", given=json.dumps({"spec": spec | changed}))


class Decided:
    """A stream of commands that revisions decided: what a gateway with signed policy writes."""

    def __init__(self, ca: Authority, serial: int = 1000) -> None:
        self.stream = Stream(Pod(ca), policy_serial=serial)
        self.session = self.stream.open_session()
        self.count = 0

    def intend(self, revision: str, text: str = "SELECT id FROM orders", **changed: Any) -> None:
        """A command that `revision` decided."""
        add = self.stream.add

        def replaced(unset: record.Record) -> int:
            return add(msgspec.structs.replace(unset, revision=revision, **changed))

        self.stream.add = replaced  # type: ignore[method-assign]
        made = self.stream.intend(self.session, text)
        self.stream.add = add  # type: ignore[method-assign]
        if changed.get("decision", "Allow") == "Allow":
            self.stream.conclude(self.session, made)
        self.count += 1

    def end(self) -> Stream:
        """The stream, closed."""
        self.stream.close_session(self.session, self.count)
        self.stream.close()
        return self.stream


def sealed(folder: Path, ca: Authority, decided: Decided, revisions: Iterable[Revised], signer: Signer) -> Sealed:
    """What a collector gives of the session after the operator has sent these revisions."""
    store = folder / "store"
    store.mkdir()
    asyncio.run(_keep(store, list(revisions), signer))
    stream = decided.end()
    seal(store, ca, [stream], {})
    return read_again(store, {"it": decided.session})


async def _keep(folder: Path, revisions: list[Revised], signer: Signer) -> None:
    store = Store(folder, Metrics())
    try:
        for given in [one.given(signer) for one in revisions]:
            await store.write(lambda tx, put=given: tx.revise(put))
    finally:
        await store.close()
