"""A connection of HTTP/2 to a target: one request at a time, as `upstream.Http1Connection` has it.

A stream that the client takes back ends with its connection, so a target hears at once that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from h2.errors import ErrorCodes

from chaperone_sidecar.errors import ChaperoneError, ProtocolError, UpstreamUnavailable
from chaperone_sidecar.protocols.http import codec, grpc
from chaperone_sidecar.protocols.http.http2 import Link
from chaperone_sidecar.protocols.http.http2_exchange import encoded
from chaperone_sidecar.protocols.http.http2_stream import Stream
from chaperone_sidecar.protocols.http.messages import AnswerHead, Fields, value
from chaperone_sidecar.protocols.http.upstream import ANSWER_TIMEOUT_S, PIECE_TIMEOUT_S, Body
from chaperone_sidecar.protocols.http.wire import Gone, Wire

MIN_STATUS: Final = 200


class Http2Connection:
    """See `upstream.Connection`.

    Args:
        name: of the target.
        wire: the connection.
        scheme: that is asked for.
    """

    version = "HTTP/2"

    def __init__(self, name: str, wire: Wire, scheme: str) -> None:
        self._name = name
        self._wire = wire
        self._scheme = scheme
        self._link = Link(wire, is_client=True)
        self._stream: Stream | None = None
        self._sending: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._is_whole = True
        self.is_reused = False
        self.has_answered = False
        self.is_refused = False
        self.trailers: Fields = ()
        self._link.begin()
        self._reading = asyncio.create_task(self._read())

    @property
    def is_usable(self) -> bool:
        """See `upstream.Connection`."""
        return self._is_whole and not self._link.is_over and not self._link.is_retired

    async def ask(self, method: str, target: str, fields: Fields, body: Body, size_bytes: int | None) -> AnswerHead:
        """See `upstream.Connection`."""
        self._is_whole = self.has_answered = self.is_refused = False
        self.trailers = ()
        named = [
            (":method", method),
            (":scheme", self._scheme),
            (":authority", value(fields, "host")),
            (":path", target),
        ]
        named += [(name, found) for name, found in fields if name.lower() != "host"]
        if grpc.is_grpc(value(fields, "content-type")):
            named.append(("te", "trailers"))
        if size_bytes is not None and not (size_bytes == 0 and method in ("GET", "HEAD", "OPTIONS", "DELETE")):
            named.append(("content-length", str(size_bytes)))
        stream = self._stream = self._open(encoded(tuple(named)), is_whole=body == b"")
        try:
            if body:
                self._sending = asyncio.create_task(self._send(stream, body))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                head = await stream.headed()
        except (Gone, TimeoutError) as error:
            self.is_refused = stream.is_refused
            raise self._broken(error) from error
        self.has_answered = True
        return _answer_head(head, method, is_empty=stream.is_empty)

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `upstream.Connection`."""
        stream = self._stream
        assert stream is not None  # noqa: S101 - `ask` comes first
        try:
            while True:
                async with asyncio.timeout(PIECE_TIMEOUT_S):
                    data = await stream.receive()
                if not data:
                    break
                yield data
        except (Gone, TimeoutError) as error:
            raise self._broken(error) from error
        codec.check_trailers(stream.trailers)
        self.trailers = stream.trailers
        self._is_whole = stream.is_finished

    def close(self) -> None:
        """See `upstream.Connection`."""
        if self._sending is not None:
            self._sending.cancel()
        self._reading.cancel()
        self._wire.abort()

    def _open(self, fields: list[tuple[bytes, bytes]], *, is_whole: bool) -> Stream:
        try:
            return self._link.open(fields, is_whole=is_whole)
        except Gone as error:  # the target takes no request here any more, and has not got this one
            self.is_refused = True
            raise self._broken(error) from error

    async def _read(self) -> None:
        with contextlib.suppress(ProtocolError):  # who waits for the answer hears it
            async for _ in self._link.requests():
                pass
        self._wire.abort()

    async def _send(self, stream: Stream, body: Body) -> None:
        try:
            if isinstance(body, bytes):
                await stream.send(body)
            else:
                async for data in body:
                    await stream.send(data)
            stream.finish()
        except (ChaperoneError, Gone) as error:
            # A body that stops in its middle must not look like a whole one; whoever waits for the answer hears why.
            if not stream.is_lost:
                self._failure = error
                stream.reset(ErrorCodes.CANCEL)

    def _broken(self, error: Exception) -> Exception:
        if self._failure is not None and not isinstance(self._failure, Gone):
            return self._failure
        if self.is_refused:
            return UpstreamUnavailable(f'Target "{self._name}" takes no more requests now; it did nothing of this one.')
        return UpstreamUnavailable(f'Target "{self._name}" broke the connection ({type(error).__name__}).')


def _answer_head(fields: Fields, method: str, *, is_empty: bool) -> AnswerHead:
    status = value(fields, ":status")
    others = tuple((name, found) for name, found in fields if not name.startswith(":"))
    length = value(others, "content-length")
    if not (status.isascii() and status.isdigit() and len(status) == 3 and int(status) >= MIN_STATUS):
        raise ProtocolError("the target's answer has no status.", "upstream")
    if length and codec.LENGTH.fullmatch(length) is None:
        raise ProtocolError("the target's answer has a length that is no single number.", "upstream")
    size = int(length) if length else None
    return AnswerHead(int(status), others, 0 if is_empty and method != "HEAD" else size)
