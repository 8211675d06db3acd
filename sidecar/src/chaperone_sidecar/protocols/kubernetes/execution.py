"""exec and attach: a program's streams between the client and the API server, each byte recorded before it goes on.

Towards the API server it is always WebSocket (v5, else v4), whatever the client speaks; so there is one way that is
recorded, and one place where how the program ended is read. The end of standard input reaches a program only over v5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web

from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.effects import Conclude, Intent
from chaperone_sidecar.errors import LimitReached, UpstreamUnavailable
from chaperone_sidecar.protocols.kubernetes import channels
from chaperone_sidecar.protocols.kubernetes.request import Request
from chaperone_sidecar.protocols.kubernetes.terminal import SpdyTerminal, Terminal, WebSocketTerminal
from chaperone_sidecar.protocols.kubernetes.upstream import Upstream


class Execution:
    """One program.

    Args:
        http: the request.
        asked: the same, read.
        conduct: of the session.
        intent: the command's.
        upstream: the API server.
        fail: called when the credential ends while the program runs.
        on_begun: called when the connection is no HTTP any more.
    """

    def __init__(
        self, http: web.BaseRequest, asked: Request, conduct: Conduct, intent: Intent, upstream: Upstream,
        fail: Callable[[Exception], None], on_begun: Callable[[], None],
    ) -> None:  # fmt: skip
        self._http = http
        self._asked = asked
        self._conduct = conduct
        self._intent = intent
        self._upstream = upstream
        self._fail = fail
        self._on_begun = on_begun
        self._streams = channels.wanted(asked)
        self._size_bytes = 0

    async def run(self, protocol: str, headers: Mapping[str, str]) -> web.StreamResponse:
        """Run it to its end.

        Raises:
            UpstreamUnavailable, ProtocolError, LimitReached, SpoolFull: it ends before.
        """
        login = await self._upstream.login()
        agent = {name: value for name, value in headers.items() if name == "User-Agent"}
        async with login.channels(self._asked.target, agent, self._fail) as socket:
            terminal: WebSocketTerminal | SpdyTerminal
            if protocol == channels.SPDY:
                terminal = SpdyTerminal(self._http, self._streams)
            else:
                terminal = WebSocketTerminal(self._http, protocol, self._streams)
            self._on_begun()
            await terminal.begin()
            writing = asyncio.create_task(self._to_program(terminal, socket))
            reading = asyncio.create_task(self._to_client(terminal, socket))
            try:
                await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    await writing  # says what the client did wrong, where it did
                    return terminal.response  # it is gone: the session's end says that this was aborted
                ended = await reading
            finally:
                for task in (writing, reading):
                    task.cancel()
                await asyncio.wait((writing, reading))
            await self._conclude(ended)
            await terminal.end(ended)
        return terminal.response

    async def _to_program(self, terminal: Terminal, socket: aiohttp.ClientWebSocketResponse) -> None:
        """What the client writes, until it is gone."""
        log = self._conduct.results
        while (found := await terminal.read()) is not None:
            stream, data = found
            if stream == channels.CLOSE:
                if socket.protocol == channels.V5:
                    await socket.send_bytes(bytes([channels.CLOSE]) + data)
                continue
            self._take(data)
            self._conduct.log.bytes_in += len(data)
            if log is not None:
                log.begin(self._intent.command_id)
                size = channels.size(data) if stream == channels.RESIZE else None
                if size is not None:
                    log.resize(size.width, size.height)
                elif stream == channels.STDIN:
                    log.typed(data)
                log.flush()
            await socket.send_bytes(bytes([stream]) + data)

    async def _to_client(self, terminal: Terminal, socket: aiohttp.ClientWebSocketResponse) -> bytes:
        """What the program prints, to its end; what the API server says of that."""
        log = self._conduct.results
        ended = b""
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            found = channels.from_upstream(message.data, self._streams)
            if found is None:
                continue
            stream, data = found
            self._take(data)
            self._conduct.log.bytes_out += len(data)
            if stream == channels.ERROR:
                ended = (ended + data)[: channels.MAX_STATUS_BYTES]
                continue
            if log is not None:
                log.begin(self._intent.command_id)
                log.output(data)
                log.flush()
                await self._conduct.shown()
            await terminal.write(stream, data)
        if not ended:
            raise UpstreamUnavailable(f'Target "{self._upstream.target.name}" does not say how the program ended.')
        return ended

    async def _conclude(self, ended: bytes) -> None:
        how = channels.ended(ended)
        code = "" if how.is_ok else (f"exit:{how.exit_code}" if how.exit_code is not None else "failed")
        log = self._conduct.results
        if log is not None:
            log.begin(self._intent.command_id)
            log.message("COMPLETE" if how.is_ok else "ERROR", how.message or "Success", code)
            log.flush()
        done = Conclude(self._intent, "ok" if how.is_ok else "error", code, 0, self._size_bytes)
        await self._conduct.told(self._conduct.conclude(done))

    def _take(self, data: bytes) -> None:
        self._size_bytes += len(data)
        reached = self._conduct.meter.take(0, len(data))
        if reached is not None:
            raise LimitReached(reached)
