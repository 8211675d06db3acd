"""Who gets the lines: an HTTPS end point, a syslog receiver over TLS, or standard output.

`deliver` returns when the receiver has the lines. HTTPS: it answered 2xx. Syslog knows no such answer, so each batch
has a connection of its own, and the receiver's `close_notify` after ours (RFC 5425, 4.4) is taken for it, with an end
of the connection that left nothing unread. What a receiver does with lines afterwards nobody here can know.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

DELIVERY_TIMEOUT_S: Final = 60.0  # for a whole batch, however slowly a receiver answers
CONNECT_TIMEOUT_S: Final = 10.0
MAX_TOKEN_BYTES: Final = 16 << 10
MAX_ANSWER_BYTES: Final = 64 << 10  # of a receiver's answer, which says nothing but its status
SYSLOG_PORT: Final = 6514  # RFC 5425, 4.1
_PRIORITY: Final = 13 * 8 + 6  # log audit, informational (RFC 5424, 6.2.1)
_TOKEN: Final = re.compile(rb"[\x21-\x7e]+\Z")


class NotTaken(Exception):
    """The receiver does not have the lines; the text says why."""


class CannotSend(Exception):
    """The receiver cannot be used as it is given; the text says what to change."""


class Line(msgspec.Struct, frozen=True):
    """One line of JSON."""

    data: bytes
    at_us: int


class Receiver(Protocol):
    """Takes batches."""

    def deliver(self, lines: list[Line]) -> None:
        """Return when the receiver has the lines.

        Raises:
            NotTaken: it does not, or it is not known.
        """
        ...

    def close(self) -> None:
        """End what is open."""
        ...


def open_receiver(to: str, ca: Path | None, token: Path | None, form: str) -> Receiver:
    """The receiver that `--to` names.

    Raises:
        CannotSend: it names none. OSError: a file cannot be read.
    """
    if to == "-":
        return Output()
    try:
        parts = urlsplit(to)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise CannotSend(f"{to} is no address of a receiver: {error}.") from error
    if not host or parts.username is not None or parts.fragment or not to.isascii() or not to.isprintable():
        raise CannotSend("A receiver is https://HOST/PATH, syslog+tls://HOST:PORT or -.")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise CannotSend(f"{ca} holds no certificate (PEM).") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    match parts.scheme:
        case "https":
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            return Https(host, port or 443, path, context, token)
        case "syslog+tls" if not parts.path.strip("/") and not parts.query and token is None:
            return Syslog(host, port or SYSLOG_PORT, context, form)
    raise CannotSend("A receiver is https://HOST/PATH, syslog+tls://HOST:PORT or -; only https takes a token.")


class Output:
    """Standard output, one line each."""

    def deliver(self, lines: list[Line]) -> None:
        """See `Receiver`.

        Raises:
            OSError: nobody reads any more.
        """
        sys.stdout.buffer.write(b"".join(line.data + b"\n" for line in lines))
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """See `Receiver`."""


class Https:
    """A POST of lines (`application/x-ndjson`) for each batch, over a connection that is kept."""

    def __init__(self, host: str, port: int, path: str, context: ssl.SSLContext, token: Path | None) -> None:
        self._path = path
        self._token = token
        self._connection = http.client.HTTPSConnection(host, port, context=context, timeout=CONNECT_TIMEOUT_S)

    def deliver(self, lines: list[Line]) -> None:
        """See `Receiver`."""
        headers = {"Content-Type": "application/x-ndjson"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {_read_token(self._token)}"
        try:
            if self._connection.sock is None:
                self._connection.connect()
            with _within(self._connection.sock):
                self._connection.request("POST", self._path, b"".join(line.data + b"\n" for line in lines), headers)
                answer = self._connection.getresponse()
                has_more = len(answer.read(MAX_ANSWER_BYTES + 1)) > MAX_ANSWER_BYTES
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NotTaken(f"the receiver gave no answer: {error or type(error).__name__}") from error
        if has_more:
            self._connection.close()
        if not 200 <= answer.status < 300:
            raise NotTaken(f"the receiver answered {answer.status} {answer.reason}")

    def close(self) -> None:
        """See `Receiver`."""
        self._connection.close()


class Syslog:
    """RFC 5424 messages over TLS, each with its length before it (RFC 5425); a connection for each batch."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, form: str) -> None:
        self._place = (host, port)
        self._context = context
        self._form = form

    def deliver(self, lines: list[Line]) -> None:
        """See `Receiver`."""
        data = b"".join(syslog_frame(line, self._form) for line in lines)
        try:
            plain = socket.create_connection(self._place, CONNECT_TIMEOUT_S)
            with plain, self._context.wrap_socket(plain, server_hostname=self._place[0]) as secured, _within(secured):
                secured.sendall(data)
                # A receiver that stops may say close_notify with our lines unread; its system then resets the
                # connection, which `recv` raises.
                secured.unwrap().recv(1)
        except OSError as error:
            raise NotTaken(f"the receiver did not take the batch to its end: {error}") from error

    def close(self) -> None:
        """See `Receiver`."""


def syslog_frame(line: Line, form: str) -> bytes:
    """One message with its length (RFC 5425, 4.3)."""
    at = datetime.fromtimestamp(line.at_us // 1_000_000, UTC).replace(microsecond=line.at_us % 1_000_000)
    head = f"<{_PRIORITY}>1 {at:%Y-%m-%dT%H:%M:%S.%fZ} - chaperone - {form} - "
    message = head.encode() + line.data
    return f"{len(message)} ".encode() + message


@contextmanager
def _within(sock: socket.socket) -> Iterator[None]:
    """Cut the connection when a batch takes too long: a receiver may answer a byte at a time for ever."""
    sock.settimeout(DELIVERY_TIMEOUT_S)
    timer = threading.Timer(DELIVERY_TIMEOUT_S, _cut, (sock,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself


def _read_token(path: Path) -> str:
    """The token as it is now: whoever renews it writes the file anew."""
    try:
        with path.open("rb") as file:
            found = file.read(MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise NotTaken(f"the token cannot be read: {error}") from error
    if not _TOKEN.match(found):
        raise NotTaken(f"{path} holds no token")
    return found.decode("ascii")
