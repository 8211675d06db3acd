"""Objects in CBOR, as Kubernetes writes them: texts as byte strings, lengths definite, numbers short."""

from __future__ import annotations

import struct
from typing import Any

BYTES, TEXT, ARRAY, MAP, TAG = 2, 3, 4, 5, 6


def encoded(content: Any, text: int = BYTES) -> bytes:
    """JSON in CBOR; `text` is the major type of texts and keys, and `bytes` are base64 in JSON."""
    match content:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if content else b"\xf4"
        case int():
            return head(0, content) if content >= 0 else head(1, -1 - content)
        case float():
            return b"\xfb" + struct.pack(">d", content)
        case bytes():
            return head(TAG, 22) + head(BYTES, len(content)) + content
        case str():
            raw = content.encode()
            return head(text, len(raw)) + raw
        case list():
            return head(ARRAY, len(content)) + b"".join(encoded(one, text) for one in content)
    pairs = (encoded(key, text) + encoded(value, text) for key, value in content.items())
    return head(MAP, len(content)) + b"".join(pairs)


def head(major: int, argument: int) -> bytes:
    """The beginning of an item."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    size = next(size for size in (1, 2, 4, 8) if argument < 1 << 8 * size)
    return bytes((major << 5 | 23 + size.bit_length(),)) + argument.to_bytes(size)
