"""One stream of HTTP/2: what comes waits here for its reader, what goes for the peer's windows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from chaperone_sidecar.protocols.http import patience
from chaperone_sidecar.protocols.http.messages import Fields
from chaperone_sidecar.protocols.http.wire import Gone

if TYPE_CHECKING:
    from chaperone_sidecar.protocols.http.http2 import Link

STALLED_S: Final = 300.0  # a peer that opens no window for so long does not listen


class Stream:
    """One request and its answer.

    Args:
        link: the connection.
        id_: the stream's number.
        head: fields of the request, where the peer asks.
        is_empty: the peer sends nothing else.
    """

    def __init__(self, link: Link, id_: int, head: Fields, *, is_empty: bool = False) -> None:
        self.id = id_
        self.head = head
        self.is_empty = is_empty
        self.trailers: Fields = ()
        self.is_lost = False
        self.is_refused = False  # the peer has done nothing of it (RFC 9113, 8.7)
        self.is_ended = False  # the peer says nothing more
        self.is_finished = False  # nothing more is said to the peer
        self.on_lost: Callable[[], None] = lambda: None
        self._link = link
        self._inbox = bytearray()
        self._owed_bytes = 0  # received, and not acknowledged
        self._arrived = asyncio.Event()

    # --- what the peer says -------------------------------------------------------------------------------------------

    def answer(self, head: Fields, *, is_whole: bool) -> None:
        """The answer's head came."""
        self.head, self.is_empty = head, is_whole
        self._arrived.set()

    def feed(self, data: bytes, size_bytes: int) -> None:
        """A piece came, which takes so much of the window."""
        self._inbox += data
        self._owed_bytes += size_bytes
        self._arrived.set()

    def end(self) -> None:
        """The peer's side is whole."""
        self.is_ended = True
        self._arrived.set()
        self._settle()

    def lose(self, *, is_refused: bool = False) -> None:
        """The peer takes it back, has done nothing of it, or is not there any more."""
        self.is_refused = is_refused and not self.head
        self._link.forget(self)
        if self.is_lost or (self.is_ended and self.is_finished):
            return
        self.is_lost = True  # what came before it can be read: a target that told all may not want to hear the rest
        self._arrived.set()
        self._acknowledge()
        self.on_lost()

    async def headed(self) -> Fields:
        """The answer's head; raises as `receive`."""
        while not self.head:
            await self._more()
        return self.head

    async def receive(self) -> bytes:
        """The next piece, b"" at the end.

        Raises:
            Gone: the stream is not there any more. ProtocolError: the peer broke the rules.
        """
        while not self._inbox and not self.is_ended:
            await self._more()
        data = bytes(self._inbox)
        self._inbox.clear()
        self._acknowledge()
        return data

    async def _more(self) -> None:
        self._arrived.clear()
        if self.is_lost or self._link.is_over:
            raise self._link.failure or Gone("the peer has ended the stream")
        await self._arrived.wait()

    def _acknowledge(self) -> None:
        owed, self._owed_bytes = self._owed_bytes, 0
        if owed and not self._link.is_over:
            with contextlib.suppress(Gone):
                self._link.do(lambda: self._link.h2.acknowledge_received_data(owed, self.id))

    # --- what is said to the peer -------------------------------------------------------------------------------------

    def start(self, fields: list[tuple[bytes, bytes]], *, is_whole: bool = False) -> None:
        """Send a head, or trailers.

        Raises:
            Gone: nobody listens any more; so do the next two.
        """
        self._check()
        self._link.do(lambda: self._link.h2.send_headers(self.id, fields, end_stream=is_whole))
        if is_whole:
            self._finished()

    async def send(self, data: bytes) -> None:
        """Send a piece, as the peer's windows open."""
        h2, rest = self._link.h2, memoryview(data)
        while rest:
            self._check()
            room = self._room()
            if room <= 0:
                await self._wait()
                continue
            piece = bytes(rest[: min(room, h2.max_outbound_frame_size)])
            rest = rest[len(piece) :]
            self._link.do(lambda piece=piece: h2.send_data(self.id, piece))  # type: ignore[misc]
            if len(piece) < room:  # else the peer's windows are as small as it makes them
                self._link.earn(max(patience.FRAME, len(piece) / 1024 * patience.PER_KIB))
            await self._link.wire.send(b"")

    def finish(self) -> None:
        """Nothing more is said."""
        self._check()
        self._link.do(lambda: self._link.h2.end_stream(self.id))
        self._finished()

    def reset(self, code: ErrorCodes) -> None:
        """Break it off."""
        if not self.is_lost and not self._link.is_over:
            with contextlib.suppress(Gone):
                self._link.do(lambda: self._link.h2.reset_stream(self.id, code))
        self.is_lost = True
        self._arrived.set()
        self._acknowledge()
        self._link.forget(self)

    def _room(self) -> int:
        try:
            return self._link.h2.local_flow_control_window(self.id)
        except H2Error as error:
            raise Gone("the stream is over") from error

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(STALLED_S):
                await self._link.widened()
        except TimeoutError:
            self.reset(ErrorCodes.CANCEL)
            raise Gone("the peer does not listen") from None

    def _finished(self) -> None:
        self.is_finished = True
        self._link.earn(patience.ANSWER)
        self._settle()

    def _settle(self) -> None:
        if self.is_ended and self.is_finished:
            self._link.forget(self)

    def _check(self) -> None:
        if self.is_lost or self._link.is_over:
            raise self._link.failure or Gone("the peer has ended the stream")
