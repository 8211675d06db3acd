"""kubectl, as a program: it brings the person's own credentials, and nothing is asked of the cluster past it."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from typing import IO, Final

import msgspec

from chaperone_cli.say import progress

QUESTION_TIMEOUT_S: Final = 60.0  # one small object; people type passwords for some log-ins
MAX_ANSWER_BYTES: Final = 64 << 20  # all approval requests of a cluster; a ConfigMap is at most 1 MiB
MAX_COMPLAINT_CHARS: Final = 2000
CHUNK_BYTES: Final = 1 << 20

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")

EVIDENCE_PATH: Final = "/apis/evidence.chaperone.dev/v1alpha1"
POLICY_PATH: Final = "/apis/chaperone.dev/v1alpha1"
EVERYWHERE: Final = "*"  # in place of a namespace: all of them
LOG_PATH: Final = f"{EVIDENCE_PATH}/checkpoints/log"  # below it the log lies as C2SP tlog-tiles lays it out


class CannotAsk(Exception):
    """kubectl gave no answer; the text says why."""


class NotYet(CannotAsk):
    """The server asked to be asked again."""


class Cluster(msgspec.Struct, frozen=True):
    """How kubectl is to reach the cluster; empty fields are left to it."""

    kubeconfig: str = ""
    context: str = ""

    def command(self, *arguments: str) -> list[str]:
        """A kubectl command line."""
        options = (("--kubeconfig", self.kubeconfig), ("--context", self.context))
        return ["kubectl", *(f"{name}={value}" for name, value in options if value), *arguments]


def evidence_path(resource: str, namespace: str) -> str:
    """Where the aggregated API lists a resource; "" is all namespaces."""
    return f"{EVIDENCE_PATH}/namespaces/{namespace}/{resource}" if namespace else f"{EVIDENCE_PATH}/{resource}"


def policy_path(resource: str, namespace: str) -> str:
    """Where the API server lists one of our custom resources; "" is all namespaces."""
    return f"{POLICY_PATH}/namespaces/{namespace}/{resource}" if namespace else f"{POLICY_PATH}/{resource}"


def place(cluster: Cluster, namespace: str) -> str:
    """The namespace that is meant: that of the context, when none is named.

    Raises:
        CannotAsk: it is no name of a namespace, or kubectl has no context.
    """
    found = namespace or _current_namespace(cluster)
    if not _LABEL.match(found):
        raise CannotAsk(f'"{found}" is not the name of a namespace.')
    return found


def _current_namespace(cluster: Cluster) -> str:
    found = ask(cluster, "config", "view", "--minify", "-o", "jsonpath={..namespace}")
    return found.decode(errors="replace").strip() or "default"


def ask(cluster: Cluster, *arguments: str) -> bytes:
    """What kubectl prints.

    Raises:
        CannotAsk: as `pipe`.
    """
    with tempfile.TemporaryFile() as file:
        pipe(cluster.command(*arguments), file, MAX_ANSWER_BYTES, QUESTION_TIMEOUT_S)
        file.seek(0)
        return file.read()


def pipe(command: list[str], file: IO[bytes], limit_bytes: int, timeout_s: float) -> int:
    """Write what a program prints into a file; returns how much that was.

    Raises:
        CannotAsk: it is not installed, failed, took too long or printed more than the limit.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        except FileNotFoundError as error:
            raise CannotAsk("kubectl is not installed; put it on the PATH.") from error
        assert process.stdout is not None  # noqa: S101 - tells the type checker what PIPE means
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        size = 0
        try:
            while chunk := process.stdout.read(CHUNK_BYTES):
                size += len(chunk)
                if size > limit_bytes:
                    raise CannotAsk(f"The answer is longer than {limit_bytes} bytes.")
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
            raise CannotAsk(said or f"kubectl ended with {status} (after {timeout_s:.0f} s it is ended).")
    return size
