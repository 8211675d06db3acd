"""A request that came in HTTP/2, as every other one: its head in the form of HTTP/1.1, its body, and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from h2.errors import ErrorCodes

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import codec, grpc
from chaperone_sidecar.protocols.http.exchange import BODY_S
from chaperone_sidecar.protocols.http.http2_stream import Stream
from chaperone_sidecar.protocols.http.messages import Fields, RequestHead, value
from chaperone_sidecar.protocols.http.wire import Gone

IDLE_S: Final = 3600.0  # between two messages of a call of gRPC, whose streams may stand still


class Http2Exchange:
    """See `exchange.Exchange`.

    Args:
        stream: that the client opened.
        scheme: that it has to name: https over TLS, else http.

    Raises:
        ProtocolError: the head is none that HTTP/1.1 could carry.
    """

    version = "HTTP/2"

    def __init__(self, stream: Stream, scheme: str) -> None:
        self.head = request_head(stream.head, scheme)
        self._stream = stream
        length = value(self.head.fields, "content-length")
        if stream.is_empty and int(length or 0):
            raise ProtocolError("content-length names a body that does not come.")
        self.size_bytes = 0 if stream.is_empty else int(length) if length else None
        self._idle_s = IDLE_S if grpc.is_grpc(value(self.head.fields, "content-type")) else BODY_S
        self.is_started = False
        self.is_whole = False
        self._is_finished = False

    @property
    def on_gone(self) -> Callable[[], None]:
        """See `exchange.Exchange`."""
        return self._stream.on_lost

    @on_gone.setter
    def on_gone(self, told: Callable[[], None]) -> None:
        self._stream.on_lost = told
        if self.is_gone:
            told()

    @property
    def is_gone(self) -> bool:
        """See `exchange.Exchange`."""
        return self._stream.is_lost

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `exchange.Exchange`."""
        while not self.is_whole:
            try:
                async with asyncio.timeout(self._idle_s):
                    data = await self._stream.receive()
            except TimeoutError:
                raise ProtocolError("The rest of the request did not come in time.") from None
            if data:
                yield data
            else:
                self.is_whole = True

    async def start(self, status: int, fields: Fields, size_bytes: int | None) -> None:
        """See `exchange.Exchange`."""
        self.is_started = True
        has_body = self.head.method != "HEAD" and status not in codec.WITHOUT_BODY and size_bytes != 0
        named = [(":status", str(status)), *fields]
        if size_bytes and status not in codec.WITHOUT_BODY:
            named.append(("content-length", str(size_bytes)))
        self._stream.start(encoded(tuple(named)), is_whole=not has_body)
        if not has_body:
            self._finished()

    async def send(self, data: bytes) -> None:
        """See `exchange.Exchange`."""
        await self._stream.send(data)

    async def finish(self, trailers: Fields = ()) -> None:
        """See `exchange.Exchange`."""
        if self._is_finished:
            return
        if trailers:
            self._stream.start(encoded(trailers), is_whole=True)
        else:
            self._stream.finish()
        self._finished()

    def break_off(self, trailers: Fields = ()) -> None:
        """See `exchange.Exchange`."""
        if trailers and not self._is_finished:
            try:
                self._stream.start(encoded(trailers), is_whole=True)
            except Gone:
                return
            self._finished()
        else:
            self._stream.reset(ErrorCodes.INTERNAL_ERROR)

    def last(self) -> None:
        """See `exchange.Exchange`: other streams have nothing to do with this one."""

    def _finished(self) -> None:
        self._is_finished = True
        if not self._stream.is_ended:  # the rest of the request is not wanted (RFC 9113, 8.1)
            self._stream.reset(ErrorCodes.NO_ERROR)


def request_head(fields: Fields, scheme: str) -> RequestHead:
    """A request's head, from fields whose pseudo-header fields stand first and once each.

    Raises:
        ProtocolError: it is none (RFC 9113, 8.3.1), or two servers could take it for two different ones.
    """
    pseudo = {name: found for name, found in fields if name.startswith(":")}
    if set(pseudo) != {":method", ":scheme", ":authority", ":path"}:
        raise ProtocolError("a request has :method, :scheme, :authority and :path, and nothing else of this kind.")
    if pseudo[":scheme"] != scheme:
        raise ProtocolError(f":scheme is not {scheme}.")
    if codec.NAME.fullmatch(pseudo[":method"]) is None:
        raise ProtocolError(":method is none.")
    others = tuple((name, found) for name, found in fields if not name.startswith(":"))
    codec.check(others)
    if any(name == "host" and found != pseudo[":authority"] for name, found in others):
        raise ProtocolError("host and :authority differ.")
    lengths = [found for name, found in others if name == "content-length"]
    if len(lengths) > 1 or (lengths and codec.LENGTH.fullmatch(lengths[0]) is None):
        raise ProtocolError("content-length is no single number.")
    return RequestHead(pseudo[":method"], pseudo[":path"], pseudo[":authority"], _with_one_cookie(others))


def _with_one_cookie(fields: Fields) -> Fields:
    """What HTTP/2 may cut into several fields is one to everything else (RFC 9113, 8.2.3)."""
    cookies = [found for name, found in fields if name == "cookie"]
    if len(cookies) < 2:
        return fields
    return (*(one for one in fields if one[0] != "cookie"), ("cookie", "; ".join(cookies)))


def encoded(fields: Fields) -> list[tuple[bytes, bytes]]:
    """Fields as `h2` takes them.

    Raises:
        ProtocolError: one has a line end or the like.
    """
    codec.check(tuple((name.removeprefix(":"), found) for name, found in fields))
    return [(name.lower().encode(), found.strip(" \t").encode("latin-1")) for name, found in fields]
