"""What the wire of HTTP can say (RFC 9110, 9112): heads, pieces of bodies, ends."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

type Fields = tuple[tuple[str, str], ...]
"""Names as they came and values without white space around them, in their order; octets as Latin-1."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request without its body; `target` is the path and the query as they stood on the wire."""

    method: str
    target: str
    authority: str
    fields: Fields


class AnswerHead(msgspec.Struct, frozen=True, gc=False):
    """A status line with its fields; `size_bytes` is the body's length where it was named."""

    status: int
    fields: Fields
    size_bytes: int | None = None


class Data(msgspec.Struct, frozen=True, gc=False):
    """A piece of a body."""

    data: bytes


class End(msgspec.Struct, frozen=True, gc=False):
    """A message is whole."""

    trailers: Fields = ()


class NeedData(msgspec.Struct, frozen=True, gc=False):
    """Nothing is whole yet."""


NEED_DATA = NeedData()

type Message = RequestHead | AnswerHead | Data | End


def values(fields: Fields, name: str) -> Iterator[str]:
    """The values of one field, whose name is given in lower case."""
    return (value for known, value in fields if known.lower() == name)


def value(fields: Fields, name: str) -> str:
    """All values of a field as one list (RFC 9110, 5.3), "" without it."""
    return ", ".join(values(fields, name))
