"""A relay between a client and PostgreSQL that sees every text the client sends, and may ask the server beside it.

It knows just enough of the protocol to cut messages. The connection is not encrypted: it runs on loopback, and the
client is told `sslmode=disable`.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

SSL_OR_GSS_REQUEST = (80877103, 80877104)


@dataclass
class Session:
    """One client's connection to the server, as the relay holds it."""

    client: socket.socket
    server: socket.socket
    status: str = "I"  # of the last ReadyForQuery: I idle, T in a transaction, E in a failed one
    failed: str = ""  # the SQLSTATE of the last ErrorResponse since `Query` was sent

    def ask(self, sql: str) -> tuple[str | None, ...] | None:
        """Run a query of the relay's own while the client waits: its last row, or None when it failed."""
        self.server.sendall(_frame(b"Q", sql.encode() + b"\0"))
        row: tuple[str | None, ...] | None = None
        while True:
            kind, body = message(self.server)
            if kind == b"D":
                row = _columns(body)
            elif kind == b"Z":
                self.status = body.decode()
                return row


@dataclass
class Relay:
    """Listens on a free port of loopback; calls `before` and `after` around each simple query.

    `texts` is every text that a client sent, of Query and Parse messages. What `before` returns is handed to `after`.
    """

    upstream: tuple[str, int]
    before: Callable[[Session, bytes], object] | None = None
    after: Callable[[Session, bytes, object], None] | None = None
    texts: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that are open end with their clients."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while (body := _startup(client)) is not None and struct.unpack(">I", body[4:8])[0] in SSL_OR_GSS_REQUEST:
                client.sendall(b"N")
            if body is None:
                return
            with socket.create_connection(self.upstream) as server:
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server.sendall(body)
                if struct.unpack(">I", body[4:8])[0] == 80877102:  # CancelRequest: no answer
                    return
                try:
                    self._run(Session(client, server))
                except (OSError, EOFError):
                    return

    def _run(self, session: Session) -> None:
        """One thread a session: the client's messages are taken only while the server is not in a simple query."""
        self._answers(session, until=b"ZR", startup=True)
        while True:
            kind, body = message(session.client)
            if kind == b"Q":
                text = body[:-1]
                self.texts.append(text)
                token = self.before(session, text) if self.before else None
                session.failed = ""
                session.server.sendall(_frame(kind, body))
                self._answers(session, until=b"Z")
                if self.after:
                    self.after(session, text, token)
                session.client.sendall(_frame(b"Z", session.status.encode()))
                continue
            if kind == b"P":
                self.texts.append(body.split(b"\0")[1])
            session.server.sendall(_frame(kind, body))
            if kind in (b"S", b"F"):
                self._answers(session, until=b"Z")
                session.client.sendall(_frame(b"Z", session.status.encode()))
            elif kind == b"H":  # Flush: the server answers what it has
                self._flushed(session)
            elif kind == b"X":
                return

    def _flushed(self, session: Session) -> None:
        session.server.settimeout(0.3)
        try:
            while True:
                kind, body = message(session.server)
                session.client.sendall(_frame(kind, body))
        except TimeoutError:
            pass
        finally:
            session.server.settimeout(None)

    def _answers(self, session: Session, *, until: bytes, startup: bool = False) -> None:
        """Hand the server's messages on up to ReadyForQuery, which the caller sends; COPY and logging in included."""
        while True:
            kind, body = message(session.server)
            if kind == b"Z":
                session.status = body.decode()
                if startup:
                    session.client.sendall(_frame(kind, body))
                return
            session.client.sendall(_frame(kind, body))
            if kind == b"E":
                session.failed = _sqlstate(body)
            elif kind in (b"G", b"W"):
                while True:
                    kind, body = message(session.client)
                    session.server.sendall(_frame(kind, body))
                    if kind in (b"c", b"f"):
                        break
            elif kind == b"R" and struct.unpack(">I", body[:4])[0] in (3, 5, 10, 11):
                session.server.sendall(_frame(*message(session.client)))


def message(source: socket.socket) -> tuple[bytes, bytes]:
    """The next whole message: its type and body.

    Raises:
        EOFError: the other side is gone.
    """
    head = _exactly(source, 5)
    return head[:1], _exactly(source, struct.unpack(">I", head[1:])[0] - 4)


def _startup(source: socket.socket) -> bytes | None:
    try:
        size = _exactly(source, 4)
        return size + _exactly(source, struct.unpack(">I", size)[0] - 4)
    except EOFError:
        return None


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        data = source.recv(size - len(parts))
        if not data:
            raise EOFError
        parts += data
    return bytes(parts)


def _frame(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def _columns(body: bytes) -> tuple[str | None, ...]:
    values: list[str | None] = []
    place = 2
    for _ in range(struct.unpack(">H", body[:2])[0]):
        (size,) = struct.unpack(">i", body[place : place + 4])
        place += 4
        values.append(None if size < 0 else body[place : place + size].decode(errors="replace"))
        place += max(size, 0)
    return tuple(values)


def _sqlstate(body: bytes) -> str:
    return next((part[1:].decode() for part in body.split(b"\0") if part[:1] == b"C"), "")
