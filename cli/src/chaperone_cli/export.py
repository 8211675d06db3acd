"""`chaperone export`: fetches a session's proof with kubectl, as a bundle that `chaperone verify` checks offline.

kubectl brings the person's own credentials and the API server's authorisation; nothing is fetched past it. The gateway
CA is fetched too, for convenience: it comes from the cluster that is audited, so the auditor is told to compare it with
a copy from elsewhere.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509

from chaperone_cli import durable
from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.kubectl import EVIDENCE_PATH, LOG_PATH, CannotAsk, Cluster, NotYet, ask, pipe, place
from chaperone_cli.say import progress, say
from chaperone_cli.verify import fingerprint
from chaperone_evidence import policyfile
from chaperone_evidence import receipt as cose
from chaperone_evidence.cosignature import Key
from chaperone_evidence.errors import Malformed
from chaperone_evidence.ulid import is_ulid

EXPORT_TIMEOUT_S: Final = 3600.0  # a stream of a busy week is gigabytes
SIGNED_WITHIN_S: Final = 40.0  # a gateway signs every 10 s, and then its records have to reach the collector
MAX_SHOWN_CHARS: Final = 160  # of a key; one of ML-DSA-44 has 1 800
ASK_AGAIN_S: Final = 2.0  # kubectl gives no answer but that it is too early, so there is nothing to wait on
MAX_BUNDLE_BYTES: Final = 64 << 30
PATH: Final = EVIDENCE_PATH + "/namespaces/{namespace}/{what}/proof"


class CannotExport(Exception):
    """The bundle was not fetched; the text says why and what to do."""


def run(
    cluster: Cluster, session: str | None, namespace: str, system_namespace: str, output: Path | None,
    receipt: Path | None,
) -> int:  # fmt: skip
    """Fetch the bundle of a session, or of the namespace's coverage, the gateway CA and what else is wanted.

    Returns the exit status.
    """
    bundle = output or Path("coverage.tar" if session is None else f"{session}.tar")
    try:
        path = proof_path(cluster, session, namespace)
        size = fetch_bundle(cluster, path, bundle)
        if receipt is not None:
            _fetch_receipt(cluster, path, receipt)
    except (CannotExport, CannotAsk, CannotVerify, OSError) as error:
        say(f"export: FAILED: {error}", err=True)
        return 1
    say(f"bundle: {bundle} ({size} bytes)")
    if receipt is not None:
        say(f"receipt: {receipt}")
    trust, policy = bundle.with_suffix(".trust.pem"), bundle.with_suffix(".log.policy")
    shown_trust, shown_policy = "FILE", "FILE"
    try:
        for authority in fetch_trust(cluster, system_namespace, trust):
            say(f"trust: {trust} {authority.subject.rfc4514_string()} SHA-256 {fingerprint(authority)}")
        shown_trust = str(trust)
    except (CannotExport, CannotAsk, OSError) as error:
        say(f"note: the gateway CA was not fetched; use the one that you were given: {error}")
    try:
        for key in fetch_policy(cluster, policy):
            say(f"trust: {policy} {key.vkey if len(key.vkey) < MAX_SHOWN_CHARS else key.vkey[:MAX_SHOWN_CHARS] + '…'}")
        shown_policy = str(policy)
    except (CannotExport, CannotAsk, OSError) as error:
        say(f"note: the log's keys were not fetched; use those that you were given: {error}")
    if "FILE" not in (shown_trust, shown_policy):
        say("note: CA and keys came from the cluster itself; compare them with copies from elsewhere")
    say(f"next: chaperone verify {bundle} --trust {shown_trust} --log-policy {shown_policy}")
    return 0


def proof_path(cluster: Cluster, session: str | None, namespace: str) -> str:
    """Where the API gives the bundle of a session, or of the namespace's coverage.

    Raises:
        CannotExport: it is no session's name. CannotAsk: no namespace is meant.
    """
    if session is None:
        return PATH.format(namespace=place(cluster, namespace), what="populations/newest")
    if not is_ulid(session):
        raise CannotExport(f'"{session}" is not the name of a session; see kubectl get sessions.')
    return PATH.format(namespace=place(cluster, namespace), what=f"sessions/{session}")


def fetch_bundle(cluster: Cluster, path: str, bundle: Path) -> int:
    """Write the bundle, whole or not at all; returns its size. Waits for the head that signs the session."""
    timeout = f"--request-timeout={int(EXPORT_TIMEOUT_S)}s"
    command = cluster.command("get", "--raw", path, timeout)
    deadline = time.monotonic() + SIGNED_WITHIN_S
    with durable.beside(bundle) as file:
        while True:
            try:
                size = pipe(command, file, MAX_BUNDLE_BYTES, EXPORT_TIMEOUT_S)
                break
            except NotYet:
                if time.monotonic() > deadline:
                    raise
            progress("waiting for the session's last records to be signed")
            time.sleep(ASK_AGAIN_S)
        file.flush()
        with open_source(Path(file.name)) as source:  # reads the tar to its end
            source.names()
    return size


def _fetch_receipt(cluster: Cluster, path: str, file: Path) -> None:
    data = ask(cluster, "get", "--raw", f"{path}?form=cose")
    try:
        cose.parse(data)
    except Malformed as error:
        raise CannotExport(f"what the collector gives as a receipt is none: {error}") from error
    with durable.beside(file) as fresh:
        fresh.write(data)


def fetch_trust(cluster: Cluster, system_namespace: str, trust: Path) -> list[x509.Certificate]:
    """Write the gateway CA; returns its certificates.

    Raises:
        CannotExport: the ConfigMap holds none. CannotAsk: it is not given.
    """
    arguments = ("get", "configmap", "chaperone-trust", "-n", system_namespace, "-o", "json")
    try:
        found = msgspec.json.decode(ask(cluster, *arguments), type=_ConfigMap)
        pem = found.data["gateway-ca.crt"].encode()
        authorities = x509.load_pem_x509_certificates(pem)
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise CannotExport("ConfigMap chaperone-trust holds no certificate under gateway-ca.crt.") from error
    with durable.beside(trust) as file:
        file.write(pem)
    return authorities


def fetch_policy(cluster: Cluster, path: Path) -> tuple[Key, ...]:
    """Write the log's keys as a tlog-policy; returns them.

    Raises:
        CannotExport: it is none. CannotAsk: it is not given.
    """
    text = ask(cluster, "get", "--raw", f"{LOG_PATH}/policy")
    try:
        policy = policyfile.parse(text.decode())
    except (Malformed, UnicodeDecodeError) as error:
        raise CannotExport(f"what the collector gives as the log's keys is no tlog-policy: {error}") from error
    with durable.beside(path) as file:
        file.write(policyfile.render(policy).encode())
    return policy.log


class _ConfigMap(msgspec.Struct):
    data: dict[str, str] = msgspec.field(default_factory=dict)
