"""The streams of exec and attach: their names, their numbers over WebSocket, and how a program ended.

Over WebSocket each binary message begins with the number of its stream (`v4.channel.k8s.io`); `v5` adds a message that
closes a stream, which is how standard input ends. Over SPDY each has a stream of its own with its name in the header
`streamType`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes.request import Request

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
RESIZE: Final = 4
CLOSE: Final = 255  # v5: the byte after it names the stream that ends

V5: Final = "v5.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
PROTOCOLS: Final = (V5, V4)
SPDY: Final = "SPDY/3.1"
SPDY_PROTOCOL: Final = V4  # what a client names in X-Stream-Protocol-Version; half-close is SPDY's own

NAMES: Final = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
MAX_MESSAGE_BYTES: Final = 1 << 20  # of one WebSocket message; both sides write 32 KiB at most
MAX_STATUS_BYTES: Final = 64 << 10


class Size(msgspec.Struct, frozen=True):
    """A terminal's size, as clients say it on the stream for it."""

    width: int = msgspec.field(name="Width")
    height: int = msgspec.field(name="Height")


class Ended(msgspec.Struct, frozen=True):
    """How a program ended: `is_ok` with code 0; else its exit code where there is one, and what was said."""

    is_ok: bool
    exit_code: int | None = None
    message: str = ""


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []


class _Status(msgspec.Struct):
    status: str = ""
    reason: str = ""
    message: str = ""
    details: _Details | None = None


def wanted(request: Request) -> frozenset[int]:
    """The streams that a request asks for, the one for its end included.

    Raises:
        ProtocolError: none is asked for.
    """
    is_tty = request.is_set("tty")
    found = {number for name, number in NAMES.items() if name.startswith("std") and request.is_set(name)}
    if is_tty:
        found.discard(STDERR)  # a terminal has one output
    if not found:
        raise ProtocolError("The request names none of stdin, stdout and stderr.")
    return frozenset(found | {ERROR} | ({RESIZE} if is_tty else set()))


def from_client(message: bytes, streams: frozenset[int], protocol: str) -> tuple[int, bytes] | None:
    """The stream and the bytes of a client's message; CLOSE with the stream's number as its byte; None for nothing.

    Raises:
        ProtocolError: a stream that the client may not write to.
    """
    if not message:
        raise ProtocolError("A message is empty.")
    number, data = message[0], message[1:]
    if number == CLOSE and protocol == V5:
        if data != bytes([STDIN]):
            raise ProtocolError("Only standard input can be closed.")
        return CLOSE, data
    if number not in (STDIN, RESIZE) or number not in streams:
        raise ProtocolError("A message is for a stream that the client does not write to.")
    return (number, data) if data else None  # clients begin with an empty message


def from_upstream(message: bytes, streams: frozenset[int]) -> tuple[int, bytes] | None:
    """The stream and the bytes of the API server's message; None for nothing.

    Raises:
        ProtocolError: side=upstream; a stream that it does not write to.
    """
    if not message:
        raise ProtocolError("A message of the API server is empty.", "upstream")
    number, data = message[0], message[1:]
    if number == CLOSE:
        return None
    if number not in (STDOUT, STDERR, ERROR) or number not in streams:
        if not data:
            return None
        raise ProtocolError("The API server wrote to a stream that was not asked for.", "upstream")
    return (number, data) if data else None


def size(data: bytes) -> Size | None:
    """A terminal's new size; None where it is none."""
    try:
        found = msgspec.json.decode(data, type=Size)
    except msgspec.DecodeError:
        return None
    return found if 0 <= found.width <= 65535 and 0 <= found.height <= 65535 else None


def ended(data: bytes) -> Ended:
    """What the API server's last words mean (v4: a Status)."""
    try:
        status = msgspec.json.decode(data[:MAX_STATUS_BYTES], type=_Status)
    except msgspec.DecodeError:
        return Ended(False, None, "the API server's last words cannot be read")
    if status.status == "Success":
        return Ended(True, 0)
    for cause in status.details.causes if status.details else ():
        if cause.reason == "ExitCode" and cause.message.lstrip("-").isdigit():
            return Ended(False, int(cause.message), status.message)
    return Ended(False, None, status.message or status.reason)
