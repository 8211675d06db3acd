"""One request of the agent and its answer, whichever HTTP carries them; and the HTTP/1.1 that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Final, Protocol

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import codec
from chaperone_sidecar.protocols.http.codec import Codec
from chaperone_sidecar.protocols.http.messages import Data, End, Fields, NeedData, RequestHead, value
from chaperone_sidecar.protocols.http.wire import Gone, Wire

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KEEP_S: Final = 90.0  # an idle connection; pools of clients keep theirs for 90 s at most, as a rule
HEAD_S: Final = 30.0  # for a head that has begun
BODY_S: Final = 60.0  # between two pieces of a body


class Exchange(Protocol):
    """A request as it comes, and the way to answer it."""

    head: RequestHead
    is_started: bool  # the client has the answer's head
    is_whole: bool  # the request's body was read to its end
    size_bytes: int | None  # of the request's body, where it was named
    version: str  # of HTTP
    on_gone: Callable[[], None]  # told when the client waits no more, while its connection goes on

    @property
    def is_gone(self) -> bool:
        """Whether the client does not wait for the answer any more."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """The request's body.

        Raises:
            ProtocolError: it is malformed, or does not come. Gone: the client is not there.
        """
        ...

    async def start(self, status: int, fields: Fields, size_bytes: int | None) -> None:
        """Send the answer's head; without a length the body is as long as it is.

        Raises:
            Gone: the client is not there; so do the next two.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send a piece of the answer's body."""
        ...

    async def finish(self, trailers: Fields = ()) -> None:
        """The answer is whole."""
        ...

    def break_off(self, trailers: Fields = ()) -> None:
        """End the answer so that no client takes it for whole: where trailers can say so, by them."""
        ...

    def last(self) -> None:
        """No other request comes after this one."""
        ...


class Http1Exchange:
    """See `Exchange`."""

    version = "HTTP/1.1"

    def __init__(self, wire: Wire, reader: Codec, head: RequestHead) -> None:
        self._wire = wire
        self._codec = reader
        self._is_chunked = False
        self._wants_continue = value(head.fields, "expect").lower() == "100-continue"
        self._is_last = "close" in {one.strip().lower() for one in value(head.fields, "connection").split(",")}
        length = value(head.fields, "content-length")
        self.head = head
        self.on_gone: Callable[[], None] = lambda: None
        self.size_bytes = int(length) if length else None if value(head.fields, "transfer-encoding") else 0
        self.is_started = False
        self.is_whole = False
        self.is_finished = False

    @property
    def is_gone(self) -> bool:
        """See `Exchange`."""
        return self._wire.is_lost

    @property
    def may_continue(self) -> bool:
        """Whether another request can come on the connection."""
        return self.is_finished and self.is_whole and not self._is_last

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `Exchange`."""
        if self._wants_continue and self.size_bytes != 0:
            self._wants_continue = False
            await self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.is_whole:
            found = self._codec.next()
            if isinstance(found, Data):
                yield found.data
            elif isinstance(found, End):
                self.is_whole = True
            else:
                await feed(self._wire, self._codec, BODY_S)

    async def start(self, status: int, fields: Fields, size_bytes: int | None) -> None:
        """See `Exchange`."""
        self.is_started = True
        named = list(fields)
        has_body = self.head.method != "HEAD" and status not in codec.WITHOUT_BODY
        if size_bytes is not None and status not in codec.WITHOUT_BODY:
            named.append(("Content-Length", str(size_bytes)))
        elif has_body:
            self._is_chunked = True
            named.append(("Transfer-Encoding", "chunked"))
        self._is_last = self._is_last or not self.is_whole
        if self._is_last:
            named.append(("Connection", "close"))
        await self._wire.send(codec.encode_answer(status, _reason(status), tuple(named)))

    async def send(self, data: bytes) -> None:
        """See `Exchange`."""
        await self._wire.send(codec.encode_chunk(data) if self._is_chunked else data)

    async def finish(self, trailers: Fields = ()) -> None:
        """See `Exchange`."""
        if self._is_chunked:
            await self._wire.send(codec.encode_end(trailers))
        self.is_finished = True

    async def switch(self, fields: Fields) -> tuple[Wire, bytes]:
        """Change the protocol: the connection, and what came of it already; raises as `start`."""
        self.is_started = self._is_last = True
        await self._wire.send(codec.encode_answer(codec.SWITCHING, _reason(codec.SWITCHING), fields))
        return self._wire, self._codec.take()

    def break_off(self, trailers: Fields = ()) -> None:
        """See `Exchange`: the end of a body of HTTP/1.1 looks whole, whatever its trailers say."""
        self._wire.abort()

    def last(self) -> None:
        """See `Exchange`."""
        self._is_last = True


async def next_request(wire: Wire, reader: Codec) -> Http1Exchange | None:
    """The next request of a connection; None where none comes.

    Raises:
        ProtocolError: what comes is no request.
    """
    while True:
        found = reader.next()
        if isinstance(found, RequestHead):
            return Http1Exchange(wire, reader, found)
        if not isinstance(found, NeedData):
            continue  # the end of a body that was not asked for
        try:
            await feed(wire, reader, HEAD_S if reader.buffered else KEEP_S)
        except Gone:
            return None
        except ProtocolError:
            if reader.buffered:
                raise
            return None


async def preface(wire: Wire) -> tuple[bytes, bool]:
    """The first bytes of a connection in the clear, and whether they begin HTTP/2 (RFC 9113, 3.4)."""
    first = b""
    while PREFACE.startswith(first):
        try:
            async with asyncio.timeout(KEEP_S):
                data = await wire.receive()
        except TimeoutError:
            data = b""
        first += data
        if not data or first.startswith(PREFACE):
            break
    return first, first.startswith(PREFACE)


async def feed(wire: Wire, reader: Codec, timeout_s: float) -> None:
    """Wait for more bytes.

    Raises:
        ProtocolError: they take too long. Gone: the client is not there.
    """
    try:
        async with asyncio.timeout(timeout_s):
            data = await wire.receive()
    except TimeoutError:
        raise ProtocolError("The rest of the request did not come in time.") from None
    if not data:
        raise Gone("the client has closed the connection")
    reader.feed(data)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
