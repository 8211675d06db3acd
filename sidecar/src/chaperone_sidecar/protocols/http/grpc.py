"""What gRPC says in HTTP/2 (gRPC over HTTP/2): the call in the path, messages in the body, the status in trailers."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from chaperone_sidecar.errors import Unmaskable

CONTENT_TYPE: Final = "application/grpc"
STATUS: Final = "grpc-status"
MESSAGE: Final = "grpc-message"
UNMASKABLE: Final = "values are masked here, and messages of gRPC cannot be; ask to have unmaskable set to Allow."
BINARY: Final = "-bin"  # the end of the names of fields whose values are base64
_CALL: Final = re.compile(r"/([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)/([A-Za-z_]\w*)", re.ASCII)
_PREFIX_BYTES: Final = 5  # whether the message is compressed, and its length
_PLAIN: Final = " !\"#$&'()*+,-./:;<=>?@[]^_`{|}~"  # what stands in a grpc-message as it is


def is_grpc(content_type: str) -> bool:
    """Whether a body is messages of gRPC, not those of grpc-web."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == CONTENT_TYPE or kind.startswith(CONTENT_TYPE + "+")


def called(path: str) -> str:
    """Service and method of a path, with a dot between them; "" where it names none."""
    found = _CALL.fullmatch(path)
    return f"{found[1]}.{found[2]}" if found is not None else ""


def told(text: str) -> str:
    """A text as grpc-message has it."""
    return quote(text, safe=_PLAIN)


def meant(message: str) -> bytes:
    """The text of a grpc-message."""
    return unquote_to_bytes(message.encode("latin-1"))


class Messages:
    """Follows the messages of an answer, to know where one ends."""

    def __init__(self) -> None:
        self._prefix = b""
        self._left = 0

    def feed(self, data: bytes) -> bool:
        """Whether a message ends with these bytes.

        Raises:
            Unmaskable: one is compressed, so nothing can be found in it.
        """
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            step = _PREFIX_BYTES - len(self._prefix)
            self._prefix += data[at : at + step]
            at += step
            if len(self._prefix) == _PREFIX_BYTES:
                if self._prefix[0]:
                    raise Unmaskable("A message of the target is compressed, though it was asked not to.")
                self._left, self._prefix = int.from_bytes(self._prefix[1:]), b""
        return not self._left and not self._prefix
