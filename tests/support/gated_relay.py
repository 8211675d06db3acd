"""A relay of bytes before a server, which can keep new connections from it until it is told otherwise."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Final

TIMEOUT_S: Final = 60.0


class GatedRelay:
    """In front of a loopback port."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self.arrived = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close_gate(self) -> None:
        """New connections wait; `arrived` is set with the first of them."""
        self.arrived.clear()
        self._open.clear()

    def open_gate(self) -> None:
        """They go on."""
        self._open.set()

    def __enter__(self) -> GatedRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self.open_gate()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if not self._open.is_set():
            self.arrived.set()
            self._open.wait(TIMEOUT_S)
        server = socket.create_connection(("127.0.0.1", self._upstream))
        threading.Thread(target=_copy, args=(server, client), daemon=True).start()
        _copy(client, server)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
