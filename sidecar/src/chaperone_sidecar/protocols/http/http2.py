"""HTTP/2 on one connection (RFC 9113), on either side of the gateway: streams with back-pressure, framed by `h2`.

Theory of operation. One task goes through `requests`: it reads, gives the bytes to `h2`, and what that says to the
streams. What nobody has taken from a stream is not acknowledged, so the windows bound what is kept; what may not be
sent yet waits for the peer's window, and no longer than `STALLED_S`. Whatever costs the peer nothing costs `Patience`.
After a GOAWAY, from either side, what runs comes to its end and nothing new begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.exceptions import ProtocolError as Violation
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import codec, patience
from chaperone_sidecar.protocols.http.exchange import KEEP_S
from chaperone_sidecar.protocols.http.http2_stream import Stream
from chaperone_sidecar.protocols.http.messages import Fields
from chaperone_sidecar.protocols.http.patience import Patience
from chaperone_sidecar.protocols.http.wire import Gone, Wire

MAX_STREAMS: Final = 32  # at once; each may keep a body that is read before the decision
WINDOW_BYTES: Final = 65_535  # of a stream: RFC 9113's own
CONNECTION_WINDOW_BYTES: Final = MAX_STREAMS * WINDOW_BYTES  # so that no stream waits for another's reader
MAX_TABLE_BYTES: Final = 4096  # of the table of fields (RFC 7541, 4.2), whatever more the peer would have us keep
MAX_STREAMS_EVER: Final = 20_000  # then another connection: what is over leaves a trace in `h2`


class Http2(H2Connection):
    """`h2`, that goes on with what runs when the peer says that nothing new may begin (RFC 9113, 6.8)."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        if frame.error_code:
            return super()._receive_goaway_frame(frame)
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = ErrorCodes.NO_ERROR, frame.last_stream_id
        return [], [event]


class Link:
    """See the module.

    Args:
        wire: the connection.
        is_client: whether the gateway asks here; else it answers.
    """

    def __init__(self, wire: Wire, *, is_client: bool) -> None:
        self.wire = wire
        self.h2 = Http2(H2Configuration(client_side=is_client, header_encoding=None))
        self.failure: ProtocolError | None = None
        self.is_over = False
        self.is_retired = False
        self.last_stream = 0
        self._is_client = is_client
        self._streams: dict[int, Stream] = {}
        self._patience = Patience(time.monotonic())
        self._widened = asyncio.Event()

    def begin(self) -> None:
        """Say how it goes here.

        Raises:
            Gone: the peer is not there.
        """
        self.h2.initiate_connection()
        settings: dict[SettingCodes | int, int] = {SettingCodes.MAX_HEADER_LIST_SIZE: codec.MAX_HEAD_BYTES}
        settings |= {SettingCodes.ENABLE_PUSH: 0} if self._is_client else {
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS
        }  # fmt: skip
        self.h2.update_settings(settings)
        self.h2.decoder.max_header_list_size = codec.MAX_HEAD_BYTES  # before the peer has acknowledged it, too
        self.h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - WINDOW_BYTES)
        self.flush()

    async def requests(self, first: bytes = b"") -> AsyncGenerator[Stream]:
        """Read to the end; on the way, the streams that the peer opens.

        Args:
            first: what was read already.

        Raises:
            ProtocolError: the peer breaks the rules, and has been told.
        """
        try:
            data = first or await self._receive()
            while data:
                for stream in self._take(data):
                    yield stream
                data = await self._receive()
        except ProtocolError as error:
            self.failure = error
            raise
        except Gone:
            return
        finally:
            self.is_over = True
            for one in tuple(self._streams.values()):
                one.lose()
            self._streams.clear()
            self._wake()

    def open(self, fields: list[tuple[bytes, bytes]], *, is_whole: bool) -> Stream:
        """Ask.

        Raises:
            Gone: nothing can be asked here any more.
        """
        if self.is_over or self.is_retired:
            raise self.failure or Gone("the connection is over")
        stream = Stream(self, self.h2.get_next_available_stream_id(), ())
        self._streams[stream.id] = stream
        stream.start(fields, is_whole=is_whole)
        return stream

    def retire(self) -> None:
        """Tell the peer that nothing new is begun here."""
        if self.is_retired or self.is_over:
            return
        self.is_retired = True
        with contextlib.suppress(Gone):
            self.wire.write(GoAwayFrame(0, last_stream_id=self.last_stream).serialize())

    def refuse(self, error: ProtocolError) -> None:
        """Tell the peer that it breaks the rules, where it has not been told."""
        if self.failure is None:
            self.failure = self._broken(str(error))

    def do(self, step: Callable[[], None]) -> None:
        """Say something.

        Raises:
            Gone: the stream or the connection is not there any more.
        """
        try:
            step()
        except H2Error as error:
            raise Gone("the stream is over") from error
        self.flush()

    def flush(self) -> None:
        """Write what there is to be said; raises as `do`."""
        self.wire.write(self.h2.data_to_send())

    def forget(self, stream: Stream) -> None:
        """Nobody reads or writes it any more."""
        self._streams.pop(stream.id, None)

    def earn(self, amount: float) -> None:
        """Something was exchanged in earnest."""
        self._patience.earn(amount)

    async def widened(self) -> None:
        """Wait for a window, or for the end."""
        if not self.is_over:
            await self._widened.wait()

    async def _receive(self) -> bytes:
        if self._streams or self._is_client:
            return await self.wire.receive()
        try:
            async with asyncio.timeout(KEEP_S):
                return await self.wire.receive()
        except TimeoutError:
            self.retire()
            return b""

    def _take(self, data: bytes) -> list[Stream]:
        try:
            events = self.h2.receive_data(data)
        except Violation as error:
            self.h2.clear_outbound_data_buffer()
            raise self._broken(str(error), error.error_code) from error
        opened = [stream for event in events if (stream := self._hear(event)) is not None]
        self.flush()
        return opened

    def _hear(self, event: Event) -> Stream | None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        match event:
            case RequestReceived():
                return self._opened(event)
            case ResponseReceived() if stream is not None:
                stream.answer(self._fields(event.headers), is_whole=event.stream_ended is not None)
            case DataReceived():
                size = len(event.data)
                self._spend(0.0 if size else patience.FRAME)
                self.earn(size / 1024 * patience.PER_KIB)
                if stream is not None:
                    stream.feed(event.data, event.flow_controlled_length)
                elif event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case TrailersReceived() if stream is not None:
                stream.trailers = self._fields(event.headers)
            case StreamEnded():
                if stream is not None:
                    stream.end()
            case StreamReset():
                self._spend(patience.RESET)
                if stream is not None:
                    stream.lose(is_refused=event.error_code == ErrorCodes.REFUSED_STREAM)
            case ConnectionTerminated():
                self.is_retired = True
                if self._is_client:
                    for one in tuple(self._streams.values()):
                        if one.id > (event.last_stream_id or 0):
                            one.lose(is_refused=True)
            case RemoteSettingsChanged():
                self._spend(patience.SETTINGS)
                table = self.h2.encoder.header_table_size
                self.h2.encoder.header_table_size = min(table, MAX_TABLE_BYTES)
                self._wake()
            case WindowUpdated():
                self._spend(patience.FRAME)
                self._wake()
            case PingReceived() | _:
                self._spend(patience.FRAME)
        return None

    def _opened(self, event: RequestReceived) -> Stream | None:
        self.last_stream = max(self.last_stream, event.stream_id)
        if len(self._streams) >= MAX_STREAMS or self.is_retired:
            self._spend(patience.RESET)
            self.h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return None
        if event.stream_id > MAX_STREAMS_EVER * 2:
            self.retire()
        stream = Stream(self, event.stream_id, self._fields(event.headers), is_empty=event.stream_ended is not None)
        self._streams[stream.id] = stream
        return stream

    def _fields(self, headers: object) -> Fields:
        """As HTTP/1.1 would carry them, pseudo-header fields included."""
        fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)  # type: ignore[attr-defined]
        if len(fields) > codec.MAX_FIELDS:
            raise self._broken(f"there are more than {codec.MAX_FIELDS} fields")
        try:
            codec.check(tuple((name.removeprefix(":"), value) for name, value in fields))
        except ProtocolError as error:
            raise self._broken(str(error)) from error
        return fields

    def _spend(self, cost: float) -> None:
        if not self._patience.lasts(cost, time.monotonic()):
            raise self._broken("there are too many frames that bring nothing", ErrorCodes.ENHANCE_YOUR_CALM)

    def _broken(self, why: str, code: int = ErrorCodes.PROTOCOL_ERROR) -> ProtocolError:
        with contextlib.suppress(Gone):
            self.flush()
            last, told = self.last_stream, why.encode("ascii", "replace")[:200]
            self.wire.write(GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=told).serialize())
        whose = "the target" if self._is_client else "the client"
        return ProtocolError(f"{why} ({whose}, RFC 9113).", "upstream" if self._is_client else "client")

    def _wake(self) -> None:
        self._widened.set()
        self._widened = asyncio.Event()
