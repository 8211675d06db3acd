"""HTTP/1.1 framing (RFC 9112), read as strictly as nobody has to, so that nobody can read it otherwise.

A message that two programs might cut in two ways is refused: a length beside Transfer-Encoding, two lengths, bare line
ends, folded fields, white space before a colon, extensions of chunks. What passes is written anew by `encode_*`, never
copied from the wire.

The state says what comes next:

| state | after | then |
|---|---|---|
| HEAD | a whole head | LENGTH, CHUNK, CLOSE, or HEAD again with an `End` |
| LENGTH | so many bytes | HEAD |
| CHUNK, CHUNK_DATA, CHUNK_END, TRAILERS | RFC 9112, 7.1 | HEAD |
| CLOSE | the connection's end; of answers alone | ENDED |
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final, Literal

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http.messages import (
    NEED_DATA,
    AnswerHead,
    Data,
    End,
    Fields,
    Message,
    NeedData,
    RequestHead,
    values,
)

MAX_HEAD_BYTES: Final = 64 << 10  # servers take 8 to 64 KiB
MAX_FIELDS: Final = 200
MAX_LINE_BYTES: Final = 256  # of a chunk's size
PIECE_BYTES: Final = 64 << 10

_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*((?:[\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?)"
)
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|$)|\0")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_EXTENDED: Final = re.compile(rb"""([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e]*)?""")
LENGTH: Final = re.compile(r"[0-9]{1,15}")
_METHOD_START: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: |$)")
NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NO_TRAILERS: Final = frozenset(
    {"transfer-encoding", "content-length", "host", "authorization", "cookie", "set-cookie", "content-type",
     "content-encoding", "trailer", "connection", "te", "upgrade"}
)  # fmt: skip
WITHOUT_BODY: Final = frozenset({204, 205, 304})
SWITCHING: Final = 101


class State(Enum):
    """What comes next; see the module."""

    HEAD = auto()
    LENGTH = auto()
    CHUNK = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    CLOSE = auto()
    ENDED = auto()


class Codec:
    """Reads one direction of a connection.

    Args:
        side: who speaks: the client (requests) or the upstream (answers).
    """

    def __init__(self, side: Literal["client", "upstream"]) -> None:
        self._side = side
        self._buffer = bytearray()
        self._scanned = 0
        self._left = 0
        self._has_ended = False
        self._methods: list[str] = []
        self.state = State.HEAD

    @property
    def buffered(self) -> int:
        """Bytes that nobody has taken yet."""
        return len(self._buffer)

    def expect(self, method: str) -> None:
        """A request with this method was sent: the next answer is to it."""
        self._methods.append(method)

    def feed(self, data: bytes) -> None:
        """Take bytes off the wire."""
        self._buffer += data

    def end(self) -> None:
        """The peer sends nothing more."""
        self._has_ended = True

    def take(self) -> bytes:
        """All that is left: it belongs to another protocol now."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self.state = State.ENDED
        return rest

    def next(self) -> Message | NeedData:
        """Take the next piece off the buffer.

        Raises:
            ProtocolError: what is no HTTP/1.1, or could be read in two ways, or ends too early.
        """
        while True:
            match self.state:
                case State.HEAD:
                    found = self._head()
                case State.LENGTH:
                    found = self._length()
                case State.CHUNK:
                    found = self._chunk()
                case State.CHUNK_DATA:
                    found = self._chunk_data()
                case State.CHUNK_END:
                    found = self._chunk_end()
                case State.TRAILERS:
                    found = self._trailers()
                case State.CLOSE:
                    found = self._close()
                case State.ENDED:
                    return NEED_DATA
            if found is not None:
                return found

    # --- heads --------------------------------------------------------------------------------------------------------

    def _head(self) -> Message | NeedData | None:
        if not self._buffer:
            return NEED_DATA
        if self._side == "client" and _METHOD_START.match(self._buffer[:33]) is None:
            raise self._broken("this is no HTTP")
        raw = self._block()
        if raw is None:
            return NEED_DATA
        first, *lines = raw.split(b"\r\n")
        return self._request(first, lines) if self._side == "client" else self._answer(first, lines)

    def _request(self, first: bytes, lines: list[bytes]) -> RequestHead:
        found = _REQUEST.fullmatch(first)
        if found is None:
            raise self._broken("the request line is malformed")
        if found[3] != b"1":
            raise self._broken("HTTP/1.0 is not spoken; use HTTP/1.1")
        fields = self._fields(lines)
        hosts = list(values(fields, "host"))
        if len(hosts) != 1:
            raise self._broken("there must be one Host")
        size = self._framing(fields)
        if size is None:
            self.state = State.CHUNK
        else:
            self._left, self.state = size, State.LENGTH
        return RequestHead(found[1].decode(), found[2].decode(), hosts[0], fields)

    def _answer(self, first: bytes, lines: list[bytes]) -> AnswerHead | None:
        found = _STATUS.fullmatch(first)
        if found is None:
            raise self._broken("the status line is malformed")
        status, fields = int(found[2]), self._fields(lines)
        if status == SWITCHING:
            self._methods and self._methods.pop(0)
            self.state = State.ENDED
            return AnswerHead(status, fields)
        if status < 200:  # informational (RFC 9110, 15.2); nothing of it is for the client
            return None
        if not self._methods:
            raise self._broken("an answer came that nobody asked for")
        method = self._methods.pop(0)
        chunked_or_size = self._framing(fields, is_answer=True)
        if method == "HEAD" or status in WITHOUT_BODY:
            self._left, self.state = 0, State.LENGTH
            return AnswerHead(status, fields, None if chunked_or_size == -1 else chunked_or_size)
        if chunked_or_size is None:
            if found[1] != b"1":
                raise self._broken("an answer of HTTP/1.0 has Transfer-Encoding")
            self.state = State.CHUNK
        elif chunked_or_size < 0:
            self.state = State.CLOSE
            return AnswerHead(status, fields)
        else:
            self._left, self.state = chunked_or_size, State.LENGTH
        return AnswerHead(status, fields, chunked_or_size)

    def _framing(self, fields: Fields, *, is_answer: bool = False) -> int | None:
        """The body's length; None for chunks, -1 where an answer names neither."""
        lengths = list(values(fields, "content-length"))
        codings = list(values(fields, "transfer-encoding"))
        if codings:
            if lengths:
                raise self._broken("Content-Length stands beside Transfer-Encoding")
            if len(codings) > 1 or codings[0].lower() != "chunked":
                raise self._broken("Transfer-Encoding is other than chunked")
            return None
        if not lengths:
            return -1 if is_answer else 0
        if len(lengths) > 1 or LENGTH.fullmatch(lengths[0]) is None:
            raise self._broken("Content-Length is no single number")
        return int(lengths[0])

    def _fields(self, lines: list[bytes]) -> Fields:
        if len(lines) > MAX_FIELDS:
            raise self._broken(f"there are more than {MAX_FIELDS} fields")
        fields = []
        for line in lines:
            found = _FIELD.fullmatch(line)
            if found is None:
                raise self._broken("a field is malformed")
            fields.append((found[1].decode(), found[2].rstrip(b" \t").decode("latin-1")))
        return tuple(fields)

    def _block(self) -> bytes | None:
        """Lines up to an empty one, without it."""
        at = self._buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), MAX_HEAD_BYTES)
        upto = len(self._buffer) if at < 0 else at
        if _BARE.search(self._buffer, max(0, self._scanned - 1), upto):
            raise self._broken("a line does not end with CR LF")
        if at < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise self._broken(f"the head has more than {MAX_HEAD_BYTES >> 10} KiB")
            if self._has_ended:
                raise self._broken("the connection ended within a head")
            self._scanned = len(self._buffer)
            return None
        raw = bytes(self._buffer[:at])
        del self._buffer[: at + 4]
        self._scanned = 0
        return raw

    # --- bodies -------------------------------------------------------------------------------------------------------

    def _length(self) -> Message | NeedData:
        if not self._left:
            return self._whole()
        return self._piece()

    def _piece(self) -> Message | NeedData:
        if not self._buffer:
            return self._more("body")
        data = bytes(self._buffer[: min(self._left, PIECE_BYTES)])
        del self._buffer[: len(data)]
        self._left -= len(data)
        return Data(data)

    def _chunk(self) -> Message | NeedData | None:
        line = self._line()
        if line is None:
            return self._more("chunk")
        form = _SIZE if self._side == "client" else _EXTENDED
        found = form.fullmatch(line)
        if found is None:
            raise self._broken("the size of a chunk is malformed")
        size = found[0] if self._side == "client" else found[1]
        self._left = int(size, 16)
        self.state = State.CHUNK_DATA if self._left else State.TRAILERS
        return None

    def _chunk_data(self) -> Message | NeedData:
        found = self._piece()
        if not self._left:
            self.state = State.CHUNK_END
        return found

    def _chunk_end(self) -> NeedData | None:
        if len(self._buffer) < len(b"\r\n"):
            return self._more("chunk")
        if self._buffer[:2] != b"\r\n":
            raise self._broken("a chunk is longer than its size")
        del self._buffer[:2]
        self.state = State.CHUNK
        return None

    def _trailers(self) -> Message | NeedData:
        if self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
            return self._whole()
        if len(self._buffer) < len(b"\r\n"):
            return self._more("trailer")
        raw = self._block()
        if raw is None:
            return NEED_DATA
        trailers = self._fields(raw.split(b"\r\n"))
        check_trailers(trailers, self._side)
        return self._whole(trailers)

    def _close(self) -> Message | NeedData:
        if self._buffer:
            data = bytes(self._buffer[:PIECE_BYTES])
            del self._buffer[: len(data)]
            return Data(data)
        if not self._has_ended:
            return NEED_DATA
        self.state = State.ENDED
        return End()

    def _whole(self, trailers: Fields = ()) -> End:
        self.state, self._scanned = State.HEAD, 0
        return End(trailers)

    def _line(self) -> bytes | None:
        at = self._buffer.find(b"\n", 0, MAX_LINE_BYTES)
        if at < 0:
            if len(self._buffer) >= MAX_LINE_BYTES:
                raise self._broken("the size of a chunk is malformed")
            return None
        line = bytes(self._buffer[: at + 1])
        if not line.endswith(b"\r\n"):
            raise self._broken("a line does not end with CR LF")
        del self._buffer[: at + 1]
        return line[:-2]

    def _more(self, what: str) -> NeedData:
        if self._has_ended:
            raise self._broken(f"the connection ended within a {what}")
        return NEED_DATA

    def _broken(self, why: str) -> ProtocolError:
        whose = "the request" if self._side == "client" else "the target's answer"
        return ProtocolError(f"{why} ({whose}, RFC 9112).", self._side)


def encode_request(method: str, target: str, fields: Fields) -> bytes:
    """A request's head; framing is among the fields.

    Raises:
        ProtocolError: something of it would be another line on the wire.
    """
    if NAME.fullmatch(method) is None or not target.isascii() or not target.isprintable() or " " in target:
        raise ProtocolError("the request line has characters that HTTP/1.1 cannot carry.")
    return f"{method} {target} HTTP/1.1\r\n".encode() + _encoded(fields)


def encode_answer(status: int, reason: str, fields: Fields) -> bytes:
    """An answer's head; raises as `encode_request`."""
    return f"HTTP/1.1 {status} {reason}\r\n".encode() + _encoded(fields)


def encode_chunk(data: bytes) -> bytes:
    """A piece of a chunked body; nothing for nothing, which would be its end."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def encode_end(trailers: Fields = ()) -> bytes:
    """The end of a chunked body."""
    return b"0\r\n" + _encoded(trailers)


def check(fields: Fields, side: Literal["client", "upstream"] = "client") -> None:
    """Whether fields may stand on a wire of HTTP/1.1.

    Raises:
        ProtocolError: one has a line end or the like.
    """
    for name, found in fields:
        if NAME.fullmatch(name) is None or VALUE.fullmatch(found) is None:
            raise ProtocolError("a field has characters that HTTP/1.1 cannot carry.", side)


def check_trailers(trailers: Fields, side: Literal["client", "upstream"] = "upstream") -> None:
    """Whether fields may stand behind a body.

    Raises:
        ProtocolError: one says what has to be known before it (RFC 9110, 6.5.1).
    """
    if any(name.lower() in _NO_TRAILERS for name, _ in trailers):
        raise ProtocolError("a trailer is none that may be one.", side)


def _encoded(fields: Fields) -> bytes:
    check(fields)
    return b"".join(f"{name}: {found}\r\n".encode("latin-1") for name, found in fields) + b"\r\n"
