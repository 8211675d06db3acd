"""Receivers of a stream over TLS: an HTTPS end point and a syslog server, that fail as they are told to."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pki import Authority

WAIT_S = 60.0


class Receiver:
    """What came, batch by batch; `answers` say what is done with the next ones, and then 200."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority("receiver CA")
        self.ca = folder / "receiver-ca.pem"
        self.ca.write_text(self.authority.pem)
        key, certificate = self.authority.server_pair("localhost", "127.0.0.1")
        pair = folder / "receiver.pem"
        pair.write_bytes(key + certificate)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(pair)
        self.port = 0
        self.batches: list[list[dict[str, Any]]] = []
        self.answers: list[int | Callable[[], int]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        self._came = threading.Condition()

    def take(self, batch: list[dict[str, Any]]) -> int:
        """Keep a batch, then do what is to be done with it; returns the status."""
        with self._came:
            self.batches.append(batch)
            answer = self.answers.pop(0) if self.answers else 200
            self._came.notify_all()
        return answer if isinstance(answer, int) else answer()

    def hang(self) -> int:
        """Answer when `released` is set only."""
        self.released.wait(WAIT_S)
        return 200

    def wait(self, holds: Callable[[], bool]) -> None:
        """Wait for what has come to fulfil a condition."""
        with self._came:
            assert self._came.wait_for(holds, WAIT_S), f"{len(self.batches)} batches came"

    def events(self) -> list[dict[str, Any]]:
        """All that came, also what came again."""
        return [event for batch in list(self.batches) for event in batch]


@contextmanager
def https_receiver(folder: Path) -> Iterator[Receiver]:
    """An HTTPS end point on a free port."""
    receiver = Receiver(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.headers.append(dict(self.headers))
            status = receiver.take([json.loads(line) for line in body.splitlines()])
            try:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:
                self.close_connection = True  # the sender was killed

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = receiver.tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def syslog_receiver(folder: Path) -> Iterator[Receiver]:
    """A syslog server (RFC 5425); a batch that is answered 500 is cut off without `close_notify`.

    One that is answered 503 is not read: the server says `close_notify` and ends, as one does that is stopped.
    """
    receiver = Receiver(folder)
    listening = socket.create_server(("127.0.0.1", 0))
    receiver.port = listening.getsockname()[1]

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            with plain:
                _serve_syslog(receiver, plain)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def _serve_syslog(receiver: Receiver, plain: socket.socket) -> None:
    try:
        with receiver.tls.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False) as secured:
            if receiver.answers[:1] == [503]:
                receiver.take([])
                secured.recv(1)
                secured.setblocking(False)
                with contextlib.suppress(ssl.SSLWantReadError):
                    secured.unwrap()
                return
            data = b""
            while chunk := secured.recv(1 << 16):  # b"" is the sender's close_notify
                data += chunk
            if receiver.take(list(read_syslog(data))) == 200:
                secured.unwrap()
    except OSError:
        return  # the sender was killed, or does not trust us


def read_syslog(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON in octet-counted messages."""
    while data:
        length, _, rest = data.partition(b" ")
        message, data = rest[: int(length)], rest[int(length) :]
        assert len(message) == int(length)
        head, _, text = message.partition(b" - {")
        assert head.startswith(b"<110>1 20")
        assert head.split(b" ")[2:5] == [b"-", b"chaperone", b"-"]
        yield json.loads(b"{" + text)
