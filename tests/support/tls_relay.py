"""A man in the middle of gateway and PostgreSQL: ends TLS on both sides and reads what the gateway says."""

from __future__ import annotations

import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaperone_sidecar.protocols.postgresql import messages as m

SSL_REQUEST = struct.pack(">II", 8, m.SSL_REQUEST)
TIMEOUT_S = 20.0


class Relay:
    """Where it listens, and what was said to the server in plain."""

    def __init__(self, upstream_port: int, key: bytes, certificate: bytes) -> None:
        self._upstream_port = upstream_port
        self._to_gateway = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile(suffix=".pem") as pair:
            Path(pair.name).write_bytes(key + certificate)
            self._to_gateway.load_cert_chain(pair.name)
        self._to_server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # It plays the attacker, who takes whatever the server shows.
        self._to_server.check_hostname = False
        self._to_server.verify_mode = ssl.CERT_NONE
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""

    def serve(self) -> None:
        """Take connections, one thread each, until closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _carry(self, connection: socket.socket) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._upstream_port), TIMEOUT_S) as server:
            connection.settimeout(TIMEOUT_S)
            if connection.recv(len(SSL_REQUEST)) != SSL_REQUEST:
                return connection.close()
            server.sendall(SSL_REQUEST)
            connection.sendall(server.recv(1))
            with (
                self._to_gateway.wrap_socket(connection, server_side=True) as left,
                self._to_server.wrap_socket(server) as right,
            ):
                back = threading.Thread(target=_copy, args=(right, left), daemon=True)
                back.start()
                with suppress(OSError):
                    while data := left.recv(1 << 16):
                        self.heard += data
                        right.sendall(data)
        return None


def _copy(source: ssl.SSLSocket, target: ssl.SSLSocket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.close()


@contextmanager
def relay(upstream_port: int, key: bytes, certificate: bytes) -> Iterator[Relay]:
    """One that shows this certificate to the gateway."""
    one = Relay(upstream_port, key, certificate)
    threading.Thread(target=one.serve, daemon=True).start()
    yield one
    one.close()
