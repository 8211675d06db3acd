"""One normal form of a request's target and authority; what has none is refused.

The form is decided on, recorded and sent on, never the client's own spelling. So a server that decodes once more, cuts
parameters of segments, or joins slashes sees nothing else than what was decided.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from chaperone_sidecar.errors import ProtocolError

MAX_TARGET_CHARACTERS: Final = 16 << 10
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,=:@%-]*)+")
_QUERY: Final = re.compile(r"[\x21\x22\x24-\x7e]*")  # printable, no space, no #
_ESCAPE: Final = re.compile(r"%(?:([0-9A-Fa-f]{2}))?")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NEVER: Final = frozenset("\\;?#")  # escaped, they mean something else to one server than to another
SLASH: Final = "%2F"  # a part of a segment to one server, the end of one to another
MAX_SLASHES: Final = 3  # that are escaped in one path: each doubles its readings
_ESCAPED_TWICE: Final = re.compile(r"%25(?:[0-9A-Fa-f]{2})")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
OVERRIDING: Final = frozenset({"_method", "_httpmethod", "$httpmethod", "x-http-method", "x-http-method-override"})
"""Parameters by which frameworks take a request for one of another method, in lower case."""


class Target(msgspec.Struct, frozen=True, gc=False):
    """A path in normal form, and the query as it is, without `?`; None without one."""

    path: str
    query: str | None = None

    @property
    def raw(self) -> str:
        """As it goes on the wire."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def readings(self) -> list[str]:
        """Every path that a server may take this one for: each escaped slash as it is, or as a slash."""
        first, *rest = self.path.split(SLASH)
        return [
            first + "".join(mark + part for mark, part in zip(marks, rest, strict=True))
            for marks in itertools.product((SLASH, "/"), repeat=len(rest))
        ]


def read(raw: str) -> Target:
    """The normal form of a request's target.

    Raises:
        ProtocolError: it is in another form than the origin form (RFC 9112, 3.2.1), or has no normal form.
    """
    if len(raw) > MAX_TARGET_CHARACTERS:
        raise ProtocolError(f"The request's target is longer than {MAX_TARGET_CHARACTERS} characters.")
    path, mark, query = raw.partition("?")
    if not path.startswith("/"):
        raise ProtocolError("The request's target does not begin with /; proxies and * are not served.")
    if _PATH.fullmatch(path) is None:
        raise ProtocolError("The path has characters that belong into none, or a ; or \\.")
    if mark and _QUERY.fullmatch(query) is None:
        raise ProtocolError("The query has characters that belong into none.")
    found = _ESCAPE.sub(_normal, path)
    if _ESCAPED_TWICE.search(found):
        raise ProtocolError("The path is escaped twice.")
    if found.count(SLASH) > MAX_SLASHES:
        raise ProtocolError(f"The path has more than {MAX_SLASHES} slashes that are escaped.")
    *before, last = found.replace(SLASH, "/").split("/")[1:]
    if "" in before or {".", ".."} & {*before, last}:
        raise ProtocolError("The path has empty or dotted segments; write it without them.")
    _text(found)
    return Target(found, query if mark else None)


def parameters(query: str) -> Iterator[tuple[str, str]]:
    """Names and values of a query or a form, cut at & and at ; alike."""
    for part in re.split("[&;]", query):
        yield from parse_qsl(part, keep_blank_values=True, encoding="latin-1")


def overrides(query: str) -> Iterator[str]:
    """Methods that a query or a form names in place of the request's own, in capitals."""
    return (value.strip().upper() for name, value in parameters(query) if is_overriding(name))


def is_overriding(name: str) -> bool:
    """Whether a parameter of this name may replace the method; PHP ends it at a NUL, and takes a dot for `_`."""
    return re.sub("[ .]", "_", name.partition("\0")[0].strip()).lower() in OVERRIDING


def authority(raw: str) -> tuple[str, int | None]:
    """Host, in lower case and without a last dot or brackets, and port.

    Raises:
        ProtocolError: it is none (user information, lists, white space).
    """
    found = _HOST.fullmatch(raw)
    if found is None:
        raise ProtocolError("Host is no name of a host.")
    return found[1].strip("[]").lower().removesuffix("."), int(found[2]) if found[2] else None


def _normal(found: re.Match[str]) -> str:
    if found[1] is None:
        raise ProtocolError("The path has a % without two digits.")
    character = chr(int(found[1], 16))
    if character in _UNRESERVED:
        return character
    if character in _NEVER:
        raise ProtocolError(f"The path has %{found[1]}, which servers read in different ways.")
    return f"%{found[1].upper()}"


def _text(path: str) -> None:
    raw = re.sub(r"%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), path)
    try:
        text = raw.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise ProtocolError("The path is no UTF-8.") from None
    if not text.isprintable():
        raise ProtocolError("The path has characters that cannot be shown.")
