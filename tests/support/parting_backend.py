"""A target of HTTP/2 that parts from its clients: `python parting_backend.py PORT CERTIFICATE KEY LOG`.

What it does is said by the path: `/v1/refuse` is refused the first time that it is asked for, and answered later on.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived, StreamEnded
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

HEAD = [(":status", "200"), ("content-type", "text/plain")]
type Play = Callable[[Served, int], None]


class Served:
    """One connection."""

    def __init__(self, connection: ssl.SSLSocket, log: Path) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.answered = 0  # the last stream that was
        self.count = 0  # how often the path was asked for
        self._connection = connection
        self._log = log

    def serve(self) -> None:
        """Until the client goes, or a play ends it."""
        self.h2.initiate_connection()
        self.flush()
        plays: dict[int, Play] = {}
        with suppress(OSError, ProtocolError):
            while data := self._connection.recv(1 << 16):
                for event in self.h2.receive_data(data):
                    if isinstance(event, RequestReceived):
                        play = plays[event.stream_id] = self._begun(dict(event.headers))
                        if play is refuse:
                            play(self, event.stream_id)
                    elif isinstance(event, StreamEnded) and plays[event.stream_id] is not refuse:
                        plays[event.stream_id](self, event.stream_id)
                self.flush()
        self._connection.close()

    def _begun(self, head: dict[str, str]) -> Play:
        with self._log.open("a") as file:
            file.write(f"{head[':method']} {head[':path']}\n")
        with LOCK:
            COUNTS[head[":path"]] += 1
            count = COUNTS[head[":path"]]
        self.count = count
        plays = PLAYS[head[":path"].rpartition("/")[2]]
        return plays[min(count, len(plays)) - 1]

    def flush(self) -> None:
        """Send what there is."""
        self._connection.sendall(self.h2.data_to_send())

    def part(self, last: int, code: int = 0) -> None:
        """Say that nothing above that stream was, or will be, looked at."""
        self.flush()
        self._connection.sendall(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def end(self) -> None:
        """Close."""
        self._connection.close()


def answer(served: Served, stream: int) -> None:
    """As one does."""
    served.answered = stream
    served.h2.send_headers(stream, HEAD)
    served.h2.send_data(stream, f"by {served.count}".encode(), end_stream=True)


def refuse(served: Served, stream: int) -> None:
    """Too many streams."""
    served.h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)


def leave(served: Served, stream: int) -> None:
    """It had gone before the request came."""
    served.part(0)


def leave_later(served: Served, stream: int) -> None:
    """It had gone after its last answer, as a server does whose connection was idle for too long."""
    served.part(served.answered)


def leave_in_order(served: Served, stream: int) -> None:
    """It goes once this one is answered."""
    served.h2.send_headers(stream, HEAD)
    served.part(stream)
    served.h2.send_data(stream, b"begun, ")
    served.flush()
    served.h2.send_data(stream, b"ended", end_stream=True)


def break_off(served: Served, stream: int) -> None:
    """It goes in the middle of this one."""
    served.h2.send_headers(stream, HEAD)
    served.h2.send_data(stream, b"begun, ")
    served.part(stream, ErrorCodes.INTERNAL_ERROR)
    served.end()


def drop(served: Served, stream: int) -> None:
    """It goes without a word."""
    served.end()


PLAYS: dict[str, list[Play]] = {
    "refuse": [refuse, answer], "refuse-ever": [refuse], "leave": [leave, answer],
    "leave-later": [answer, leave_later, answer], "leave-in-order": [leave_in_order, answer],
    "break-off": [break_off, answer], "drop": [drop, answer],
}  # fmt: skip
COUNTS: Counter[str] = Counter()
LOCK = threading.Lock()


def main() -> None:
    """Serve."""
    port, certificate, key, log = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        while True:
            plain, _ = listening.accept()
            with suppress(OSError):  # whoever looks whether it is there
                served = Served(context.wrap_socket(plain, server_side=True), Path(log))
                threading.Thread(target=served.serve, daemon=True).start()


if __name__ == "__main__":
    main()
