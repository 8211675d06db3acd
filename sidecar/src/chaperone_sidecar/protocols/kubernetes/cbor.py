"""Objects in `application/cbor` as the JSON that stands for the same object (RFC 8949).

Theory of operation. Kubernetes writes few of the forms that CBOR has (KEP-4222): texts and keys as byte strings of
UTF-8, bytes as byte strings in tag 22, which are base64 in JSON, and around all of it tag 55799, "self-described CBOR".
Read is that, and texts as text strings. Each thing has one form here: lengths are definite and numbers as short as they
can be, keys are there once, whichever string type they have, integers have 64 bits, floating-point numbers are finite.
Each byte is looked at once, a length is held against what is left, and values and depth are counted.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Any, Final

from chaperone_sidecar.protocols.kubernetes import body
from chaperone_sidecar.protocols.kubernetes.body import Unread

CONTENT_TYPE: Final = "application/cbor"
APPLY: Final = "application/apply-patch+cbor"
SELF_DESCRIBED: Final = b"\xd9\xd9\xf7"  # the head of tag 55799 (section 3.4.6)
BASE64: Final = 22  # tag: bytes that are base64 where they become text (section 3.4.5.2)
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)  # major types (section 3.1)
_SIMPLE_VALUES: Final = {20: False, 21: True, 22: None}
_FLOATS: Final = {25: ">e", 26: ">f", 27: ">d"}
_INDEFINITE: Final = 31
_INT64: Final = 1 << 63


def to_object(raw: bytes) -> dict[str, Any]:
    """The object that a body in CBOR is.

    Raises:
        Unread: it is none, or could be written or read in another way; the text says what.
    """
    return _Reader(raw).object()


class _Reader:
    """Reads one body from its first byte to its last."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = len(SELF_DESCRIBED) if raw.startswith(SELF_DESCRIBED) else 0
        self._left = body.MAX_VALUES

    def object(self) -> dict[str, Any]:
        """The map that the body is."""
        found = self._item(1)
        if self._at != len(self._raw):
            raise Unread("something follows the object in the body.")
        if not isinstance(found, dict):
            raise Unread("the body is no object.")
        return found

    def _item(self, depth: int) -> Any:  # noqa: ANN401 - any JSON
        if depth > body.MAX_DEPTH:
            raise Unread("the body is nested too deeply.")
        major, info, argument = self._head()
        match major:
            case 0 | 1:
                if argument >= _INT64:
                    raise Unread("an integer in the body has more than 64 bits.")
                return argument if major == _UNSIGNED else -1 - argument
            case 2 | 3:
                return self._text(argument)
            case 4:
                self._count(argument)
                return [self._item(depth + 1) for _ in range(argument)]
            case 5:
                return self._map(argument, depth)
            case 6:
                return self._tagged(argument)
        return self._simple(info, argument)

    def _head(self) -> tuple[int, int, int]:
        """An item's major type, what follows it in the first byte, and its argument (section 3)."""
        self._left -= 1
        if self._left < 0:
            raise Unread(f"the body has more than {body.MAX_VALUES:,} values.")
        first = self._take(1)[0]
        major, info = first >> 5, first & 0x1F
        if info < 24:
            return major, info, info
        if info > 27:
            raise Unread("a length in the body is indefinite." if info == _INDEFINITE else "the body is no CBOR.")
        size = 1 << (info - 24)
        argument = int.from_bytes(self._take(size))
        if major != _SIMPLE and argument < (24 if size == 1 else 1 << (4 * size)):
            raise Unread("a number in the body is written longer than it has to be.")
        return major, info, argument

    def _take(self, size: int) -> bytes:
        if size > len(self._raw) - self._at:
            raise Unread("the body ends within a value.")
        self._at += size
        return self._raw[self._at - size : self._at]

    def _count(self, items: int) -> None:
        if items > len(self._raw) - self._at:  # each has a byte at least
            raise Unread("the body ends within a value.")

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise Unread("a text in the body is not UTF-8.") from error

    def _map(self, pairs: int, depth: int) -> dict[str, Any]:
        self._count(2 * pairs)
        found: dict[str, Any] = {}
        for _ in range(pairs):
            major, _, size = self._head()
            if major not in (_BYTES, _TEXT):
                raise Unread("a key in the body is no text.")
            key = self._text(size)
            if key in found:
                raise Unread("a key is there twice in the body.")
            found[key] = self._item(depth + 1)
        return found

    def _tagged(self, tag: int) -> str:
        major, _, size = self._head()
        if tag != BASE64 or major != _BYTES:
            raise Unread(f"the tag {tag} in the body is not used by objects of Kubernetes here.")
        return base64.b64encode(self._take(size)).decode()

    def _simple(self, info: int, argument: int) -> float | bool | None:
        if info in _SIMPLE_VALUES:
            return _SIMPLE_VALUES[info]
        if info not in _FLOATS:
            raise Unread("a simple value in the body is neither true, false nor null.")
        found: float = struct.unpack(_FLOATS[info], argument.to_bytes(1 << (info - 24)))[0]
        if not math.isfinite(found):
            raise Unread("a number in the body is none, or infinite.")
        return found
