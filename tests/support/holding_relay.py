"""An HTTP relay that can keep an answer back: what was asked has been done, and who asked does not know."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

TIMEOUT_S: Final = 60.0


class HoldingRelay:
    """In front of a server on a loopback port."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.held = threading.Event()
        self._go = threading.Event()
        self._method, self._part = "", ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"relay": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HoldingRelay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, method: str, part: str) -> None:
        """Keep the answer to the next request whose path holds that."""
        self.held.clear()
        self._go.clear()
        self._method, self._part = method, part

    def release(self) -> None:
        """Hold nothing any more."""
        self._part = ""
        self._go.set()

    def wait_if_held(self, method: str, path: str) -> None:
        """Block while the answer is kept."""
        if self._part and method == self._method and self._part in path:
            self.held.set()
            self._go.wait(TIMEOUT_S)


class _Handler(BaseHTTPRequestHandler):
    relay: HoldingRelay
    protocol_version = "HTTP/1.0"  # a connection for each request: none is held by an answer before

    def _relay(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size) if size else None
        connection = http.client.HTTPConnection("127.0.0.1", self.relay.upstream, timeout=TIMEOUT_S)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        self.relay.wait_if_held(self.command, self.path)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay  # noqa: N815 - names of the base class

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
