"""What a recording is made of: frames of what a client was shown, in chunks.

A chunk is the body of a `recording.chunk` record: lines of canonical JSON, one a frame, compressed by zstd as one
frame of it. The commitment in the record is over the compressed bytes as they are kept, so a chunk is checked without
being decompressed. Frames know no protocol. `t_us` is the time since the session was opened, by the monotonic clock.

Canonical means here: a line is what this module's encoder writes for what was read from it, byte for byte. Everything
that is read is bounded before it is kept, for the bytes come from a machine that may be in other hands by now.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from chaperone_evidence import canonical, record
from chaperone_evidence.errors import Malformed, NotCanonical

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

MAX_CHUNK_BYTES: Final = 256 << 10  # of lines before compression; a reader keeps no more of a chunk
MAX_PACKED_BYTES: Final = MAX_CHUNK_BYTES + (1 << 10)  # what cannot be compressed grows by some 20 bytes
CODEC: Final = "zstd"
LEVEL: Final = 1  # about 5:1 on tables; higher ones take longer and were no smaller
_WINDOW_LOG: Final = 18  # 2^18 bytes: more than a chunk has would only be memory that a hostile one asks for

type Cell = str | Bytes | None
type Time = Annotated[int, msgspec.Meta(ge=0, le=canonical.MAX_INTEGER)]
type Count = Annotated[int, msgspec.Meta(ge=0, le=canonical.MAX_INTEGER)]


class Bytes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A value that is no text: its format is binary, or it is not UTF-8."""

    base64: str

    @property
    def raw(self) -> bytes:
        """The bytes."""
        return base64.b64decode(self.base64)


class Column(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A column of a result; `type` as the protocol names it (PostgreSQL: the OID), "" where it is not known.

    `is_masked`: policy masks the column as a whole. Detectors may have masked a value in any other.
    """

    name: str = ""
    type: str = ""
    is_masked: bool = False


class Frame(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    gc=False,
):
    """What every frame says."""

    t_us: Time


class Columns(Frame, frozen=True, kw_only=True, tag="columns"):
    """The columns of the rows that follow."""

    columns: tuple[Column, ...]


class Rows(Frame, frozen=True, kw_only=True, tag="rows"):
    """Rows, as the client got them."""

    rows: tuple[tuple[str | Bytes | None, ...], ...]


class Data(Frame, frozen=True, kw_only=True, tag="data"):
    """Bytes without columns: `copy` is a piece of a COPY, `row` a piece of one row too long to be split into cells."""

    data: str | Bytes
    direction: Literal["in", "out"] = "out"  # to the backend, or to the client
    part_of: Literal["copy", "row"] = "copy"


class Message(Frame, frozen=True, kw_only=True, tag="message"):
    """An error or a notice."""

    severity: str
    text: str
    code: str = ""
    detail: str = ""
    hint: str = ""


class Cut(Frame, frozen=True, kw_only=True, tag="cut"):
    """From here on something is left out: of the command's result (`maxResultBytes`), or of the message before."""

    why: Literal["maxResultBytes", "maxMessageBytes"]
    kept_bytes: Count


class Output(Frame, frozen=True, kw_only=True, tag="output"):
    """What a terminal was shown."""

    data: str | Bytes


class Input(Frame, frozen=True, kw_only=True, tag="input"):
    """What was typed."""

    data: str | Bytes


class Resize(Frame, frozen=True, kw_only=True, tag="resize"):
    """A terminal's size, in characters."""

    width: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    height: Annotated[int, msgspec.Meta(ge=0, le=65535)]


type Known = Columns | Rows | Data | Message | Cut | Output | Input | Resize

_decoder: Final[msgspec.json.Decoder[Known]] = msgspec.json.Decoder(Known.__value__)


def cell(raw: bytes | memoryview, *, is_text: bool = True) -> str | Bytes:
    """A value: text where it is UTF-8 and not in a binary format."""
    if is_text:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            pass
    return Bytes(base64.b64encode(raw).decode("ascii"))


def encode(frame: Frame) -> bytes:
    """The line of a frame, with its end."""
    return canonical.encode(frame) + b"\n"


def decode(line: bytes) -> Known:
    """Read a line without its end.

    Raises:
        NotCanonical: it is no frame, or another line would be written for the same.
    """
    try:
        found: Known = _decoder.decode(line)
        again = canonical.encode(found)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotCanonical("A line is no frame of a recording.") from error
    if again != line:
        raise NotCanonical("A frame is not in canonical form.")
    for value in _values(found):
        if isinstance(value, Bytes):
            canonical.decode_base64(value.base64)
    return found


def pack(lines: bytes) -> bytes:
    """Compress the lines of a chunk."""
    return zstd.compress(lines, LEVEL)


def unpack(body: bytes, codec: str = CODEC) -> bytes:
    """The lines of a chunk.

    Raises:
        Malformed: it is compressed otherwise, is not whole, or has more than a chunk may have.
    """
    if codec != CODEC:
        raise Malformed(f"A chunk is compressed by {codec[:40]!r}, which this program does not know.")
    if len(body) > MAX_PACKED_BYTES:
        raise Malformed(f"A chunk has {len(body)} bytes; at most {MAX_PACKED_BYTES} are possible.")
    reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        lines = reader.decompress(body, MAX_CHUNK_BYTES + 1)
    except (zstd.ZstdError, EOFError) as error:
        raise Malformed("A chunk cannot be decompressed.") from error
    if len(lines) > MAX_CHUNK_BYTES or not reader.eof or reader.unused_data:
        raise Malformed("A chunk is cut, is followed by something, or is longer than a chunk may be.")
    return lines


def read(body: bytes, said: record.RecordingChunk) -> list[Known]:
    """The frames of a chunk, held against the record that names it.

    Raises:
        Malformed, NotCanonical: they cannot be read, or are not what the record says.
    """
    lines = unpack(body, said.codec)
    if lines and not lines.endswith(b"\n"):
        raise Malformed("The last line of a chunk is cut.")
    found = [decode(line) for line in lines.split(b"\n")[:-1]]
    if len(found) != said.frames:
        raise Malformed(f"A chunk has {len(found)} frames, and its record says {said.frames}.")
    times = [said.first_us, *(frame.t_us for frame in found), said.last_us]
    if found and (times != sorted(times) or times[0] != times[1] or times[-1] != times[-2]):
        raise Malformed("The times of a chunk's frames are not in order, or not what its record says.")
    return found


def _values(frame: Known) -> Iterable[str | Bytes | None]:
    match frame:
        case Rows(rows=rows):
            return (value for row in rows for value in row)
        case Data(data=data) | Output(data=data) | Input(data=data):
            return (data,)
        case _:
            return ()
