"""SPDY/3.1 as Kubernetes clients speak it for exec, attach and port-forward: a codec without I/O, the gateway's side.

Framing only (SPDY Protocol, Draft 3.1, section 2). All headers of one direction share one compressor, so a header block
is read even where its frame is not wanted. Flow control is not used by Kubernetes clients (moby/spdystream ignores
it), so WINDOW_UPDATE is read and forgotten; what holds the client back is TCP.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError

VERSION: Final = 3
MAX_FRAME_BYTES: Final = 1 << 20  # clients write 32 KiB at most; the length field could say 16 MiB
MAX_HEADER_BYTES: Final = 16 << 10  # of a header block, unpacked: streamType and little more
MAX_HEADERS: Final = 32
MAX_STREAMS: Final = 16  # exec has five; a retry after a reset takes another id
DATA_BYTES: Final = 32 << 10  # of one data frame that we write

DATA: Final = 0  # of frames that are no control frames, which alone have a number
SYN_STREAM: Final = 1
SYN_REPLY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
HEADERS: Final = 8
WINDOW_UPDATE: Final = 9
FLAG_FIN: Final = 0x01
REFUSED_STREAM: Final = 3  # of a reset (2.6.3): nothing of the stream was used

_WORDS: Final = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
]
_MORE_WORDS: Final = (
    "200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin",
)  # fmt: skip
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY: Final = (
    b"".join(struct.pack(">I", len(word)) + word.encode() for word in (*_WORDS, *_MORE_WORDS)) + _TAIL.encode()
)
"""What both sides' compressors know beforehand (2.6.10.1)."""


class SynStream(msgspec.Struct, frozen=True, gc=False):
    """The client opens a stream."""

    stream: int
    headers: tuple[tuple[str, str], ...]
    is_fin: bool = False


class Data(msgspec.Struct, frozen=True, gc=False):
    """Bytes of a stream, or with `is_fin` its end."""

    stream: int
    data: bytes
    is_fin: bool = False


class Reset(msgspec.Struct, frozen=True, gc=False):
    """The client gives a stream up."""

    stream: int


class Ping(msgspec.Struct, frozen=True, gc=False):
    """To be sent back as it is."""

    id: int


class GoAway(msgspec.Struct, frozen=True, gc=False):
    """The client opens no more streams."""


class Ignored(msgspec.Struct, frozen=True, gc=False):
    """A frame that means nothing here."""

    kind: int


class NeedData(msgspec.Struct, frozen=True, gc=False):
    """No whole frame is there yet."""


type Frame = SynStream | Data | Reset | Ping | GoAway | Ignored
NEED_DATA: Final = NeedData()


class Codec:
    """The server's side of one connection.

    Args:
        max_streams: that the client may have open at once.
    """

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._max_streams = max_streams
        self._buffer = bytearray()
        self._reader = zlib.decompressobj(zdict=DICTIONARY)
        self._writer = zlib.compressobj(zdict=DICTIONARY)
        self._streams: set[int] = set()
        self._finished: set[int] = set()
        self._last = 0
        self._is_broken = False

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data

    def next(self) -> Frame | NeedData:
        """The next whole frame.

        Raises:
            ProtocolError: side=client; a frame over a cap, of another version, on a stream that is not open, or a
                header block that cannot be read. Nothing can be read after it.
        """
        if self._is_broken:
            raise ProtocolError("The connection broke before.")
        try:
            return self._next()
        except ProtocolError:
            self._is_broken = True
            raise

    def _next(self) -> Frame | NeedData:
        buffer = self._buffer
        if len(buffer) < 8:
            return NEED_DATA
        first, second = struct.unpack_from(">II", buffer)
        flags, length = second >> 24, second & 0xFFFFFF
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"A SPDY frame of {length} bytes is longer than any that is read.")
        if len(buffer) < 8 + length:
            return NEED_DATA
        body = bytes(buffer[8 : 8 + length])
        del buffer[: 8 + length]
        if not first >> 31:
            return self._data(first, flags, body)
        if first >> 16 & 0x7FFF != VERSION:
            raise ProtocolError("A SPDY frame is of another version than 3.")
        return self._control(first & 0xFFFF, flags, body)

    def _data(self, stream: int, flags: int, body: bytes) -> Frame:
        if stream > self._last or stream % 2 == 0:
            raise ProtocolError("SPDY data came on a stream that is not open.")
        if stream not in self._streams or stream in self._finished:
            return Ignored(DATA)  # on its way when the stream ended: Go's clients write after a reset of their own
        if flags & FLAG_FIN:
            self._finished.add(stream)
        return Data(stream, body, bool(flags & FLAG_FIN))

    def _control(self, kind: int, flags: int, body: bytes) -> Frame:
        if kind == SYN_STREAM:
            return self._opened(flags, body)
        if kind in (SYN_REPLY, HEADERS):
            if len(body) < 4:
                raise ProtocolError("A SPDY frame is too short.")
            self._headers(body[4:])
            return Ignored(kind)
        if kind == RST_STREAM:
            stream = _integers(body, 2)[0]
            self.forget(stream)
            return Reset(stream)
        if kind == PING:
            return Ping(_integers(body, 1)[0])
        if kind == GOAWAY:
            _integers(body, 2)
            return GoAway()
        if kind in (SETTINGS, WINDOW_UPDATE):
            return Ignored(kind)
        raise ProtocolError("A SPDY frame is of an unknown kind.")

    def _opened(self, flags: int, body: bytes) -> SynStream:
        if len(body) < 10:
            raise ProtocolError("A SPDY frame is too short.")
        stream = struct.unpack_from(">I", body)[0] & 0x7FFFFFFF
        headers = self._headers(body[10:])
        if stream <= self._last or stream % 2 == 0:
            raise ProtocolError("A client's SPDY streams have odd numbers that grow.")
        if len(self._streams) >= self._max_streams:
            raise ProtocolError("There are more SPDY streams than a command has.")
        self._last = stream
        self._streams.add(stream)
        if flags & FLAG_FIN:
            self._finished.add(stream)
        return SynStream(stream, headers, bool(flags & FLAG_FIN))

    def _headers(self, packed: bytes) -> tuple[tuple[str, str], ...]:
        try:
            block = self._reader.decompress(packed, MAX_HEADER_BYTES + 1)
        except zlib.error as error:
            raise ProtocolError("A SPDY header block cannot be unpacked.") from error
        if len(block) > MAX_HEADER_BYTES or self._reader.unconsumed_tail or self._reader.eof:
            raise ProtocolError("A SPDY header block is longer than any that is read.")
        try:
            return _pairs(block)
        except (struct.error, UnicodeDecodeError) as error:
            raise ProtocolError("A SPDY header block is cut.") from error

    def reply(self, stream: int) -> bytes:
        """A stream is accepted (SYN_REPLY, without headers)."""
        return self._control_frame(SYN_REPLY, struct.pack(">I", stream) + self._packed(()))

    def data(self, stream: int, data: bytes, *, is_fin: bool = False) -> bytes:
        """Bytes of a stream, in frames no longer than clients expect."""
        pieces = [data[start : start + DATA_BYTES] for start in range(0, len(data), DATA_BYTES)] or [b""]
        last = len(pieces) - 1
        return b"".join(
            struct.pack(">II", stream, (FLAG_FIN << 24 if is_fin and index == last else 0) | len(piece)) + piece
            for index, piece in enumerate(pieces)
        )

    def reset(self, stream: int) -> bytes:
        """A stream is not taken, or not any more; what still comes on it is forgotten."""
        self.forget(stream)
        return self._control_frame(RST_STREAM, struct.pack(">II", stream, REFUSED_STREAM))

    def forget(self, stream: int) -> None:
        """Both sides are done with a stream, or one of them gave it up."""
        self._streams.discard(stream)
        self._finished.discard(stream)

    def ping(self, number: int) -> bytes:
        """A ping sent back."""
        return self._control_frame(PING, struct.pack(">I", number))

    def go_away(self) -> bytes:
        """The connection ends."""
        return self._control_frame(GOAWAY, struct.pack(">II", self._last, 0))

    def _packed(self, pairs: tuple[tuple[str, str], ...]) -> bytes:
        return self._writer.compress(block_of(pairs)) + self._writer.flush(zlib.Z_SYNC_FLUSH)

    def _control_frame(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        return struct.pack(">II", 1 << 31 | VERSION << 16 | kind, flags << 24 | len(body)) + body


def block_of(pairs: tuple[tuple[str, str], ...]) -> bytes:
    """A header block before it is packed (2.6.10)."""
    found = [struct.pack(">I", len(pairs))]
    for pair in pairs:
        for text in pair:
            found.append(struct.pack(">I", len(text.encode())) + text.encode())
    return b"".join(found)


def _pairs(block: bytes) -> tuple[tuple[str, str], ...]:
    (count,) = struct.unpack_from(">I", block)
    if count > MAX_HEADERS:
        raise ProtocolError("There are more SPDY headers than are read.")
    place, texts = 4, []
    for _ in range(2 * count):
        (length,) = struct.unpack_from(">I", block, place)
        if place + 4 + length > len(block):
            raise ProtocolError("A SPDY header block is cut.")
        texts.append(block[place + 4 : place + 4 + length].decode())
        place += 4 + length
    if place != len(block):
        raise ProtocolError("Something follows the headers of a SPDY frame.")
    pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
    if len({name.lower() for name, _ in pairs}) != len(pairs):
        raise ProtocolError("A SPDY header is there twice.")
    return pairs


def _integers(body: bytes, count: int) -> tuple[int, ...]:
    if len(body) != 4 * count:
        raise ProtocolError("A SPDY frame has another length than its kind has.")
    return struct.unpack(f">{count}I", body)
