"""`chaperone export`: fetches a session's proof with kubectl, as a bundle that `chaperone verify` checks offline.

kubectl brings the person's own credentials and the API server's authorisation; nothing is fetched past it. The gateway
CA is fetched too, for convenience: it comes from the cluster that is audited, so the auditor is told to compare it with
a copy from elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec
from cryptography import x509

from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.say import progress, say
from chaperone_cli.verify import fingerprint
from chaperone_evidence.ulid import is_ulid

EXPORT_TIMEOUT_S: Final = 3600.0  # a stream of a busy week is gigabytes
QUESTION_TIMEOUT_S: Final = 60.0  # one small object; people type passwords for some log-ins
SIGNED_WITHIN_S: Final = 40.0  # a gateway signs every 10 s, and then its records have to reach the collector
ASK_AGAIN_S: Final = 2.0  # kubectl gives no answer but that it is too early, so there is nothing to wait on
MAX_BUNDLE_BYTES: Final = 64 << 30
MAX_ANSWER_BYTES: Final = 4 << 20  # a ConfigMap is at most 1 MiB
MAX_COMPLAINT_CHARS: Final = 2000
CHUNK_BYTES: Final = 1 << 20
PATH: Final = "/apis/evidence.chaperone.dev/v1alpha1/namespaces/{namespace}/sessions/{session}/proof"

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")


class CannotExport(Exception):
    """The bundle was not fetched; the text says why and what to do."""


class NotYet(CannotExport):
    """The server asked to be asked again."""


class Cluster(msgspec.Struct, frozen=True):
    """How kubectl is to reach the cluster; empty fields are left to it."""

    kubeconfig: str = ""
    context: str = ""

    def command(self, *arguments: str) -> list[str]:
        """A kubectl command line."""
        options = (("--kubeconfig", self.kubeconfig), ("--context", self.context))
        return ["kubectl", *(f"{name}={value}" for name, value in options if value), *arguments]


def run(cluster: Cluster, session: str, namespace: str, system_namespace: str, output: Path | None) -> int:
    """Fetch the bundle and the gateway CA, and say what is where; returns the exit status."""
    bundle = output or Path(f"{session}.tar")
    try:
        size = _fetch_bundle(cluster, _proof_path(cluster, session, namespace), bundle)
    except (CannotExport, CannotVerify, OSError) as error:
        say(f"export: FAILED: {error}", err=True)
        return 1
    say(f"bundle: {bundle} ({size} bytes)")
    trust = bundle.with_suffix(".trust.pem")
    try:
        authorities = _fetch_trust(cluster, system_namespace, trust)
    except (CannotExport, OSError) as error:
        say(f"note: the gateway CA was not fetched: {error}")
        say(f"next: chaperone verify {bundle} --trust FILE, with the gateway CA that you were given")
        return 0
    for authority in authorities:
        say(f"trust: {trust} {authority.subject.rfc4514_string()} SHA-256 {fingerprint(authority)}")
    say("note: this gateway CA came from the cluster itself; compare its fingerprint with one from elsewhere")
    say(f"next: chaperone verify {bundle} --trust {trust}")
    return 0


def _proof_path(cluster: Cluster, session: str, namespace: str) -> str:
    if not is_ulid(session):
        raise CannotExport(f'"{session}" is not the name of a session; see kubectl get sessions.')
    place = namespace or _current_namespace(cluster)
    if not _LABEL.match(place):
        raise CannotExport(f'"{place}" is not the name of a namespace.')
    return PATH.format(namespace=place, session=session)


def _fetch_bundle(cluster: Cluster, path: str, bundle: Path) -> int:
    """Write the bundle, whole or not at all; returns its size. Waits for the head that signs the session."""
    timeout = f"--request-timeout={int(EXPORT_TIMEOUT_S)}s"
    command = cluster.command("get", "--raw", path, timeout)
    deadline = time.monotonic() + SIGNED_WITHIN_S
    with _beside(bundle) as file:
        while True:
            try:
                size = _pipe(command, file, MAX_BUNDLE_BYTES, EXPORT_TIMEOUT_S)
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


def _fetch_trust(cluster: Cluster, system_namespace: str, trust: Path) -> list[x509.Certificate]:
    arguments = ("get", "configmap", "chaperone-trust", "-n", system_namespace, "-o", "json")
    try:
        found = msgspec.json.decode(_ask(cluster, *arguments), type=_ConfigMap)
        pem = found.data["gateway-ca.crt"].encode()
        authorities = x509.load_pem_x509_certificates(pem)
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise CannotExport("ConfigMap chaperone-trust holds no certificate under gateway-ca.crt.") from error
    with _beside(trust) as file:
        file.write(pem)
    return authorities


class _ConfigMap(msgspec.Struct):
    data: dict[str, str] = msgspec.field(default_factory=dict)


def _current_namespace(cluster: Cluster) -> str:
    found = _ask(cluster, "config", "view", "--minify", "-o", "jsonpath={..namespace}")
    return found.decode(errors="replace").strip() or "default"


def _ask(cluster: Cluster, *arguments: str) -> bytes:
    with tempfile.TemporaryFile() as file:
        _pipe(cluster.command(*arguments), file, MAX_ANSWER_BYTES, QUESTION_TIMEOUT_S)
        file.seek(0)
        return file.read()


def _pipe(command: list[str], file: IO[bytes], limit_bytes: int, timeout_s: float) -> int:
    """Write what a program prints into a file; returns how much that was.

    Raises:
        CannotExport: it is not installed, failed, took too long or printed more than the limit.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        except FileNotFoundError as error:
            raise CannotExport("kubectl is not installed; put it on the PATH.") from error
        assert process.stdout is not None  # noqa: S101 - tells the type checker what PIPE means
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        size = 0
        try:
            while chunk := process.stdout.read(CHUNK_BYTES):
                size += len(chunk)
                if size > limit_bytes:
                    raise CannotExport(f"The answer is longer than {limit_bytes} bytes.")
                file.write(chunk)
                progress(f"{size >> 20} MiB")
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
            progress("")
        if status:
            complaints.seek(0)
            said = complaints.read(MAX_COMPLAINT_CHARS).decode(errors="replace").strip()
            if "(ServiceUnavailable)" in said:
                raise NotYet(said)
            raise CannotExport(said or f"kubectl ended with {status} (after {timeout_s:.0f} s it is ended).")
    return size


@contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only when it is complete; readable by its owner alone."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
