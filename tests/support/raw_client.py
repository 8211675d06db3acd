"""A PostgreSQL client that sends what it is told, message by message."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from fix_dev import Gateway

from chaperone_sidecar.protocols.postgresql import messages as m

STARTUP = m.encode_startup((("user", "agent"), ("database", "orders")))


class Client:
    """A client that sends what it is told and reads whole messages."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._socket.settimeout(20)
        self._buffer = b""

    def send(self, *frames: bytes) -> None:
        """Send whole messages at once."""
        self._socket.sendall(b"".join(frames))

    def message(self) -> tuple[str, bytes]:
        """The next message: type and body; both empty when the connection is closed."""
        while len(self._buffer) < 5 or len(self._buffer) < 1 + struct.unpack(">I", self._buffer[1:5])[0]:
            data = self._socket.recv(65536)
            if not data:
                return "", b""
            self._buffer += data
        size = 1 + struct.unpack(">I", self._buffer[1:5])[0]
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return chr(found[0]), found[5:]

    def until(self, kind: str) -> list[tuple[str, bytes]]:
        """All messages up to the next of a type."""
        found = [self.message()]
        while found[-1][0] not in (kind, ""):
            found.append(self.message())
        return found

    def kinds(self) -> str:
        """The types of all messages up to ReadyForQuery."""
        return "".join(kind for kind, _ in self.until("Z"))

    def close(self) -> None:
        """Go without a word."""
        self._socket.close()


@contextmanager
def client(gateway: Gateway) -> Iterator[Client]:
    """A session that is open."""
    one = Client(gateway.port)
    try:
        one.send(STARTUP)
        one.until("Z")
        yield one
    finally:
        one.close()


def bind(portal: bytes = b"", statement: bytes = b"", *formats: int) -> bytes:
    """A Bind without parameters, for columns in these formats."""
    asked = b"".join(one.to_bytes(2, "big") for one in formats)
    return m.frame(m.BIND, portal + b"\0" + statement + b"\0" + bytes(4) + len(formats).to_bytes(2, "big") + asked)


def execute(portal: bytes = b"", max_rows: int = 0) -> bytes:
    """An Execute."""
    return m.frame(m.EXECUTE, portal + b"\0" + max_rows.to_bytes(4, "big"))
