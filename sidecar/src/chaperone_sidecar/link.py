"""A transport with or without TLS, seen as plain bytes: the same for the client's and the upstream's side."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

from chaperone_sidecar import peer
from chaperone_sidecar.tls import TlsLayer

MAX_READ_BYTES: Final = 4 << 20  # kept while nobody reads; the transport is paused long before
LINGER_S: Final = 10.0  # how long a peer may take to read the last words; then its socket and what it owes are let go


class Link(asyncio.Protocol):
    """One connection.

    Until `deliver_to` is called, plain bytes wait for `read`; from then on they go to the callback. TLS may begin at
    any moment between two writes. `on_made` is called when the connection is there, `on_lost` once when it is gone.
    """

    def __init__(self, on_lost: Callable[[Exception | None], None], on_made: Callable[[], None] | None = None) -> None:
        self._on_lost = on_lost
        self._on_made = on_made
        self._deliver: Callable[[bytes], None] | None = None
        self._on_writable: Callable[[bool], None] = lambda _: None
        self._transport: asyncio.Transport | None = None
        self._layer: TlsLayer | None = None
        self._inbox = bytearray()
        self._reader: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self.is_lost = False

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        self._transport = cast("asyncio.Transport", transport)  # a stream protocol is given nothing else; uvloop's own
        if self._on_made is not None:
            self._on_made()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._layer is not None:
            try:
                plain = self._layer.feed(data)
            except ssl.SSLError as error:
                self.fail(error)
                return
            finally:
                self._send_ciphertext()
        else:
            plain = data
        if self._deliver is not None:
            if plain:
                self._deliver(plain)
            return
        self._inbox += plain
        if len(self._inbox) > MAX_READ_BYTES:
            self.fail(ConnectionError("The peer sent more than it may at this point."))
        self._wake()

    def eof_received(self) -> bool:
        """The peer sends no more; the protocols here have no half-closed state."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._error = self._error or exc
        self.is_lost = True
        if self._lingering is not None:
            self._lingering.cancel()
        self._wake()
        self._on_lost(self._error)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._on_writable(False)

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._on_writable(True)

    # --- for the driver ---------------------------------------------------------------------------------------------

    def deliver_to(self, deliver: Callable[[bytes], None], on_writable: Callable[[bool], None]) -> None:
        """From now on plain bytes go to `deliver`, what is waiting first."""
        self._deliver = deliver
        self._on_writable = on_writable
        if self._inbox:
            waiting, self._inbox = bytes(self._inbox), bytearray()
            deliver(waiting)

    async def read(self) -> bytes:
        """Wait for plain bytes.

        Raises:
            ConnectionError: the connection is gone.
        """
        while not self._inbox:
            await self._wait()
        data, self._inbox = bytes(self._inbox), bytearray()
        return data

    async def begin_tls(self, context: ssl.SSLContext, server_name: str | None) -> TlsLayer:
        """Do a client's handshake.

        Raises:
            ConnectionError, ssl.SSLError: it failed.
        """
        layer = TlsLayer(context, server_side=False, server_name=server_name)
        self._layer = layer
        layer.start()
        self._send_ciphertext()
        while not layer.is_established:
            await self._wait()
        return layer

    def accept_tls(self, context: ssl.SSLContext, received: bytes = b"", alpn: str = "") -> None:
        """Be the server of a handshake that begins with the next byte, or with what was `received` already.

        A client that does not name the protocol `alpn`, where there is one, is cut off.
        """
        self._layer = TlsLayer(context, server_side=True, alpn=alpn)
        if not received:
            return
        try:
            self._layer.feed(received)  # no plaintext: a client has none to send before the server's first flight
        except ssl.SSLError as error:
            self.fail(error)
        finally:
            self._send_ciphertext()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send plain bytes."""
        if self._transport is None or self.is_lost:
            return
        if self._layer is None:
            self._transport.write(data)
            return
        self._layer.write(data)
        self._send_ciphertext()

    def pause(self, paused: bool) -> None:
        """Stop or resume reading: the only back-pressure there is."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def close(self) -> None:
        """Close after what was written is sent, or after `LINGER_S` if the peer does not take it."""
        if self._layer is not None:
            self._layer.end()  # clients take an end without this word for a cut (libpq's cancel says so)
            self._send_ciphertext()
        if self._transport is None or self.is_lost:
            return
        self._transport.close()
        if self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Close at once; whoever reads, and `on_lost`, hear why."""
        self._error = error
        self.abort()
        self._wake()

    def begin_again(self) -> None:
        """Leave a connection on which nothing was delivered yet, to make another one."""
        if self._transport is not None:
            self._transport.set_protocol(asyncio.Protocol())  # its end is nobody's matter any more
            self._transport.abort()
        self._transport, self._layer, self._error = None, None, None
        self._inbox.clear()
        self.is_lost = False

    @property
    def peer(self) -> str:
        """The peer's address, for records."""
        return peer.named(self._transport.get_extra_info("peername")) if self._transport is not None else ""

    def _send_ciphertext(self) -> None:
        if self._layer is not None and self._transport is not None and not self.is_lost:
            out = self._layer.take_outgoing()
            if out:
                self._transport.write(out)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        if self.is_lost:
            raise ConnectionError("The connection was closed.")
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader
        self._reader = None
