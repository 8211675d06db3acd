"""A client of HTTP/2 that says what no library would: frames as they are, headers as they are given."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Any, Final

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES: Final = {
    "data": DataFrame, "settings": SettingsFrame, "ping": PingFrame, "priority": PriorityFrame,
    "reset": RstStreamFrame, "window": WindowUpdateFrame, "goaway": GoAwayFrame,
}  # fmt: skip


class Frames:
    """Makes the bytes of one connection, whose table of fields it keeps."""

    def __init__(self) -> None:
        self._encoder = Encoder()

    def begin(self, **settings: int) -> bytes:
        """What a connection begins with."""
        return PREFACE + SettingsFrame(0, settings={int(key[1:]): value for key, value in settings.items()}).serialize()

    def head(self, stream: int, fields: list[list[str]], *, is_whole: bool = True, pieces: int = 1) -> bytes:
        """A head, in one frame or cut into so many."""
        block = self._encoder.encode([(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields])
        cuts = [block[at * len(block) // pieces : (at + 1) * len(block) // pieces] for at in range(pieces)]
        frames: list[Frame] = [HeadersFrame(stream, cuts[0], flags=["END_STREAM"] if is_whole else [])]
        frames += [ContinuationFrame(stream, cut) for cut in cuts[1:]]
        frames[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in frames)

    def script(self, steps: list[dict[str, Any]], fields: list[list[str]]) -> bytes:
        """What the steps of a line of the corpus send; `fields` is a request that is nothing but right."""
        found = b""
        for step in steps:
            for number in range(step.get("times", 1)):
                stream = step.get("stream", 1) + 2 * number * step.get("next", 0)
                if "pair" in step:
                    found += self.script([one | {"stream": stream} for one in step["pair"]], fields)
                elif "raw" in step:
                    found += bytes.fromhex(step["raw"])
                elif "head" in step:
                    more = [[name, of if isinstance(of, str) else of[0] * of[1]] for name, of in step.get("more", [])]
                    named = step["head"] if step["head"] != "right" else fields + more * step.get("more_times", 1)
                    found += self.head(stream, named, is_whole=step.get("whole", True), pieces=step.get("pieces", 1))
                else:
                    found += self._frame(step, stream)
        return found

    def _frame(self, step: dict[str, Any], stream: int) -> bytes:
        made = {key: value for key, value in step.items() if key in ("flags", "window_increment", "error_code")}
        if "settings" in step:
            made["settings"] = {int(key): value for key, value in step["settings"].items()}
        if "data" in step:
            made["data"] = step["data"].encode()
        if step["frame"] == "ping":
            made["opaque_data"] = b"12345678"
        is_whole = step["frame"] in ("settings", "ping", "goaway")
        frame = FRAMES[step["frame"]](0 if is_whole else stream, **made)
        return frame.serialize()


class Heard:
    """What the gateway said until it ended the connection, or the stream that was waited for."""

    def __init__(self) -> None:
        self.fields: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, int] = {}
        self.goaway: GoAwayFrame | None = None
        self.ended: set[int] = set()
        self.has_closed = False
        self.acknowledged = 0
        self._decoder = Decoder()

    def take(self, frame: Frame) -> None:
        """One frame."""
        if isinstance(frame, HeadersFrame):
            block = self._decoder.decode(frame.data)
            self.fields.setdefault(frame.stream_id, {}).update({str(name): str(value) for name, value in block})
        elif isinstance(frame, DataFrame):
            self.bodies[frame.stream_id] = self.bodies.get(frame.stream_id, b"") + frame.data
        elif isinstance(frame, RstStreamFrame):
            self.resets[frame.stream_id] = frame.error_code
        elif isinstance(frame, GoAwayFrame):
            self.goaway = self.goaway or frame
        elif isinstance(frame, PingFrame):
            self.acknowledged += "ACK" in frame.flags
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)

    def has(self, stream: int) -> bool:
        """Whether the stream is over."""
        return stream in self.ended or stream in self.resets


def listen(
    connection: socket.socket, stream: int | None = None, heard: Heard | None = None, most: int = 1 << 30
) -> Heard:
    """Read until the connection, or a stream, is over, or so many frames came."""
    heard = heard or Heard()
    with suppress(ConnectionError, ssl.SSLError, TimeoutError):
        while most and (stream is None or not heard.has(stream)):
            most -= 1
            head = _exactly(connection, 9)
            if not head:
                heard.has_closed = True
                break
            frame, size = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(_exactly(connection, size)))
            heard.take(frame)
    return heard


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            return b""
        found += part
    return found
