"""An open WebSocket: each message of the client a command of its own, each of the target masked before it is told.

Theory of operation. Three tasks end together. One reads the client: it answers its Pings and puts at most one message
aside, so that a Ping is answered while people are asked about the message before. One takes these messages, has each
decided and recorded, sends it on, and records that it did. One reads the target. Pings, and what a Close of the client
says beside its code, stay on their side: nobody decides about them or masks them. Whoever ends it, both sides hear a
Close with a code; a refusal is 1008 with a reason that names the rule, a rate 1013.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from chaperone_sidecar.command import Command
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.effects import Conclude, Intent
from chaperone_sidecar.errors import ChaperoneError, LimitReached, Unmaskable, UpstreamUnavailable
from chaperone_sidecar.protocols.http import answers, handshake, websocket
from chaperone_sidecar.protocols.http.classify import Asked
from chaperone_sidecar.protocols.http.mask import Form, Redactor, masked
from chaperone_sidecar.protocols.http.messages import NeedData
from chaperone_sidecar.protocols.http.websocket import Close, Codec, FrameError, Ping, Pong, Said
from chaperone_sidecar.protocols.http.wire import Gone, Wire

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

CLOSE_S: Final = 5.0  # for the other side's Close
_CODES: Final = {429: websocket.TRY_LATER, 503: websocket.TRY_LATER, 502: websocket.BAD_GATEWAY}  # by status of HTTP
_FORM: Final = Form("text/plain")
type Decide = Callable[[Command, bytes], Awaitable[Intent]]


class Tunnel:
    """See the module.

    Args:
        asked: the handshake.
        conduct: of the session.
        intent: the handshake's.
        masker: of the target; None where nothing is masked.
        credential: the field's value, "" where none went along; it never comes back.
        decide: has a command decided and recorded; raises as `Conduct.run`.
        client: the client's connection.
        upstream: the target's.
    """

    def __init__(
        self, asked: Asked, conduct: Conduct, intent: Intent, masker: Masker | None, credential: str, decide: Decide,
        client: Wire, upstream: Wire,
    ) -> None:  # fmt: skip
        self._asked = asked
        self._conduct = conduct
        self._intent = intent
        self._masker = masker
        self._credential = credential
        self._decide = decide
        self._results = conduct.new_results()
        self._size_bytes = 0
        self._client = client
        self._upstream = upstream
        self._codec = Codec("client")

    async def run(self, from_client: bytes, from_upstream: bytes) -> None:
        """Let both sides talk until one ends it.

        Args:
            from_client: what it has said already.
            from_upstream: the same of the target.

        Raises:
            CommandRefused, LimitReached, Unmaskable, FrameError, UpstreamUnavailable, SpoolFull: it has to end, and
                `end` is what comes next. Gone: the client is not there.
        """
        if self._results is not None:
            self._results.begin(self._intent.command_id)
        waiting: asyncio.Queue[Said | Close] = asyncio.Queue(1)
        works = [
            asyncio.create_task(self._read_client(from_client, waiting)),
            asyncio.create_task(self._send_on(waiting)),
            asyncio.create_task(self._read_upstream(from_upstream)),
        ]
        try:
            closed = await _first(works)
        except Gone:
            self._upstream.close()
            raise
        finally:
            for one in works:
                one.cancel()
            await asyncio.gather(*works, return_exceptions=True)
        ended = Conclude(self._intent, "ok", "", 0, self._size_bytes)
        await self._conduct.told(self._conduct.conclude(ended))
        await self._say_close(closed, closed.code)

    async def end(self, error: ChaperoneError) -> None:
        """Tell the client why it is over, and the target that it is."""
        problem = answers.failure(error)
        code = _CODES.get(problem.status, websocket.POLICY)
        if isinstance(error, FrameError) and error.side == "client":
            code = error.close_code
        await self._say_close(Close(code, self._shown_text(problem.detail)), websocket.GOING_AWAY)

    # --- the client ---------------------------------------------------------------------------------------------------

    async def _read_client(self, first: bytes, waiting: asyncio.Queue[Said | Close]) -> None:
        self._codec.feed(first)
        while True:
            found = await _next(self._client, self._codec)
            if isinstance(found, Ping):
                await self._client.send(websocket.encode_pong(found, is_masked=False))
            elif isinstance(found, Close):
                await waiting.put(Close(found.code))
                return
            elif isinstance(found, Said):
                await waiting.put(found)

    async def _send_on(self, waiting: asyncio.Queue[Said | Close]) -> Close:
        """Messages in turn, each once it may; the client's Close comes after all of them."""
        while True:
            said = await waiting.get()
            if isinstance(said, Close):
                return said
            intent = await self._decide(handshake.message(self._asked, said), said.data)
            try:
                await self._upstream.send(websocket.encode(said, is_masked=True))
            except Gone as error:
                raise self._broken() from error
            self._conduct.conclude(Conclude(intent, "ok", "", 0, 0))

    # --- the target ---------------------------------------------------------------------------------------------------

    async def _read_upstream(self, first: bytes) -> Close:
        codec = Codec("upstream")
        codec.feed(first)
        while True:
            try:
                found = await _next(self._upstream, codec)
                if isinstance(found, Ping):
                    await self._upstream.send(websocket.encode_pong(found, is_masked=True))
            except Gone as error:
                raise self._broken() from error
            if isinstance(found, Close):
                return Close(found.code, self._shown_text(found.reason))
            if isinstance(found, Said):
                shown = self._shown(found)
                self._take(shown)
                await self._client.send(websocket.encode(shown, is_masked=False))

    def _shown(self, said: Said) -> Said:
        """A message as the client may see it.

        Raises:
            Unmaskable: nobody can say what in it is to be masked.
        """
        data = said.data
        if self._masker is not None and said.kind == "text":
            data = masked(self._masker, _FORM, data)
        elif self._masker is not None and self._conduct.target.masks.unmaskable != "Allow":
            raise Unmaskable("The target sends a binary message, which cannot be masked.")
        redactor = Redactor(self._credential)
        return Said(said.kind, redactor.feed(data) + redactor.end())

    def _shown_text(self, text: str) -> str:
        raw = text.encode()
        found = raw if self._masker is None else self._masker.mask_text(raw)
        redactor = Redactor(self._credential)
        return (redactor.feed(found) + redactor.end()).decode("utf-8", "replace")

    def _take(self, said: Said) -> None:
        """Count and keep what the client is about to get."""
        reached = self._conduct.meter.take(0, len(said.data))
        if reached is not None:
            raise LimitReached(reached)
        self._size_bytes += len(said.data)
        if self._results is not None:
            self._results.data(said.data + b"\n", "copy")
            self._results.flush()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _say_close(self, told: Close, code: int) -> None:
        """The client hears a reason, the target a code alone: nobody decides about reasons that a client gives."""
        with contextlib.suppress(Gone):
            self._upstream.write(websocket.encode(Close(code), is_masked=True))
        self._upstream.close()
        # A connection that is closed with bytes unread is reset, and the client would not hear why.
        with contextlib.suppress(Gone, TimeoutError, FrameError):
            await self._client.send(websocket.encode(told, is_masked=False))
            async with asyncio.timeout(CLOSE_S):
                while not isinstance(await _next(self._client, self._codec), Close):
                    pass
        self._client.close()

    def _broken(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(f'Target "{self._conduct.target.name}" broke the connection.')


async def _first(works: list[asyncio.Task[Close | None] | asyncio.Task[None] | asyncio.Task[Close]]) -> Close:
    """The Close that ends it; raises what one of the tasks did."""
    left = set(works)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            if (closed := one.result()) is not None:
                return closed


async def _next(wire: Wire, codec: Codec) -> Said | Ping | Pong | Close:
    """The next frame.

    Raises:
        FrameError: it is malformed. Gone: the peer is not there.
    """
    while isinstance(found := codec.next(), NeedData):
        data = await wire.receive()
        if not data:
            raise Gone("the peer has closed the connection")
        codec.feed(data)
    return found
