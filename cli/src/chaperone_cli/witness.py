"""`chaperone witness`: signs the checkpoints of logs that it knows, as long as each continues the one before.

For a second cluster or a laptop: a small server (C2SP tlog-witness, `POST /add-checkpoint`) with one directory. Its
keys are `witness.key` there, what it has seen is `seen.json`; both are written whole before anything is answered. Who
copies the directory and runs it twice has a witness that can be told two stories.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from chaperone_cli import durable
from chaperone_cli.say import say
from chaperone_evidence import policyfile, witness
from chaperone_evidence.cosignature import ED25519_COSIGNATURE, MLDSA44, CheckpointSigner, Key
from chaperone_evidence.errors import Malformed
from chaperone_evidence.witness import Judgement, Seen

KEY: Final = "witness.key"
SEEN: Final = "seen.json"
TIMEOUT_S: Final = 20.0  # of one connection
MAX_CONNECTIONS: Final = 32
PATH: Final = "/add-checkpoint"


class CannotWitness(Exception):
    """The witness does not start, or cannot go on; the text says why."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of keys: seeds of 32 bytes, base64. Its repr shows none of them."""

    ed25519: str
    mldsa44: str

    def __repr__(self) -> str:
        return "_Kept()"


class _SeenRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    root: str


class Witness:
    """The witness's keys and memory.

    Args:
        directory: of both; made if it is not there.
        name: of its keys.
        logs: the keys of each log that it signs for, by origin.

    Raises:
        CannotWitness: a file holds something else. OSError: as the system says.
    """

    def __init__(self, directory: Path, name: str, logs: Mapping[str, tuple[Key, ...]]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / SEEN
        self._logs = logs
        self._lock = threading.Lock()
        try:
            self._signers = _signers(directory / KEY, name)
            rows = msgspec.json.decode(self._path.read_bytes(), type=dict[str, _SeenRow]) if self._path.exists() else {}
            self._seen = {origin: Seen(row.size, base64.b64decode(row.root)) for origin, row in rows.items()}
        except (msgspec.DecodeError, binascii.Error, ValueError):  # the cause is dropped: it may quote a key
            raise CannotWitness(f"{directory} holds no keys and memory of a witness.") from None
        except Malformed as error:
            raise CannotWitness(f'"{name}" cannot be the name of a witness: {error}') from error

    @property
    def keys(self) -> tuple[Key, ...]:
        """Its public keys."""
        return tuple(one.key for one in self._signers)

    def add(self, data: bytes) -> tuple[Judgement, str]:
        """Judge a request; what was judged good is remembered on disk before its signatures are given.

        Raises:
            OSError: it cannot be remembered, so it is not signed.
        """
        with self._lock:
            judged = witness.judge(data, self._logs, self._seen)
            if judged.checkpoint is None or judged.seen is None:
                return judged, ""
            self._remember({**self._seen, judged.checkpoint.origin: judged.seen})
            return judged, witness.cosign(judged.checkpoint, self._signers, int(time.time()))

    def _remember(self, seen: dict[str, Seen]) -> None:
        rows = {origin: _SeenRow(one.size, base64.b64encode(one.root).decode()) for origin, one in seen.items()}
        durable.replace(self._path, msgspec.json.encode(rows))
        self._seen = seen


def run(
    directory: Path, name: str, policies: tuple[Path, ...], address: tuple[str, int], tls: tuple[Path, Path] | None
) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    try:
        held = Witness(directory, name, _logs(policies))
        server = _server(held, address, tls)
    except (CannotWitness, OSError, ssl.SSLError) as error:
        say(f"witness: FAILED: {error}", err=True)
        return 1
    scheme = "https" if tls else "http"
    for key in held.keys:
        say(f"witness {name.replace('/', '-')}-{key.kind:02x} {key.vkey} {scheme}://{address[0]}:{server.server_port}")
    say("ready")
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0


def _logs(policies: tuple[Path, ...]) -> dict[str, tuple[Key, ...]]:
    found = {}
    for path in policies:
        try:
            policy = policyfile.parse(path.read_text())
        except (Malformed, UnicodeDecodeError) as error:
            raise CannotWitness(f"{path} is no tlog-policy: {error}") from error
        found[policy.origin] = policy.log
    return found


def _server(held: Witness, address: tuple[str, int], tls: tuple[Path, Path] | None) -> ThreadingHTTPServer:
    slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S
        server_version, sys_version = "chaperone-witness", ""

        def handle(self) -> None:
            if slots.acquire(blocking=False):
                try:
                    super().handle()
                finally:
                    slots.release()

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != PATH:
                self._answer(404, "text/plain", b"POST add-checkpoint\n")
            elif not (length.isascii() and length.isdecimal() and int(length) <= witness.MAX_REQUEST_BYTES):
                self._answer(400, "text/plain", b"The request is too long, or does not say how long.\n")
            else:
                judged, lines = held.add(self.rfile.read(int(length)))
                if judged.seen_size is not None:
                    self._answer(judged.status, witness.SIZE_MEDIA_TYPE, f"{judged.seen_size}\n".encode())
                else:
                    self._answer(judged.status, "text/plain", (lines or f"{judged.why}\n").encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls)
        # The handshake is a thread's, at its first read: one who says nothing must not hold the others up.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def _signers(path: Path, name: str) -> tuple[CheckpointSigner, CheckpointSigner]:
    if not path.exists():
        seeds = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
        durable.replace(path, msgspec.json.encode(_Kept(*seeds)))
    kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    classic, later = (base64.b64decode(one, validate=True) for one in (kept.ed25519, kept.mldsa44))
    return (
        CheckpointSigner(name, Ed25519PrivateKey.from_private_bytes(classic), ED25519_COSIGNATURE),
        CheckpointSigner(name, MLDSA44PrivateKey.from_seed_bytes(later), MLDSA44),
    )
