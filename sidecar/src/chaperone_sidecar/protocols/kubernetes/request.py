"""A request to an API server in one normal form: the form that is decided on is the form that is forwarded.

Whatever can be written in two ways is either rewritten to one or refused: empty and dotted segments, escaped slashes,
path parameters, a parameter given twice. What remains is split as the API server's own `RequestInfo` does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import msgspec

from chaperone_sidecar.errors import ProtocolError

MAX_TARGET_BYTES: Final = 16 << 10  # of a request line's path and query; a long argv of exec has a few KiB
MAX_SEGMENTS: Final = 12  # the longest path that is understood has nine
_DISCOVERY: Final = {"api": 2, "apis": 3, "openapi": 3}  # segments of paths that are written with a last slash, too
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_REPEATED: Final = frozenset(
    {"command", "dryRun", "ports"}
)  # parameters that are lists; of others a server takes the first
_SEGMENT_SAFE: Final = "-._~:@!$&'()*+,="
_SEGMENT: Final = re.compile(r"[A-Za-z0-9\-._~:@!$&'()*+,=]{1,253}")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_BARE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_VERSION: Final = re.compile(r"v[1-9][0-9]{0,2}((alpha|beta)[1-9][0-9]{0,2})?")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_GROUP: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_RESOURCE: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME_FIELD: Final = re.compile(r"metadata\.name=([A-Za-z0-9\-._~:@]{1,253})")
_OF_NAMESPACES: Final = frozenset({"status", "finalize"})
_COLLECTION_VERBS: Final = {"GET": "list", "HEAD": "list", "POST": "create", "DELETE": "deletecollection"}
_NAMED_VERBS: Final = {
    "GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete",
}  # fmt: skip

_REFUSED_HEADERS: Final = frozenset(
    {
        b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-url", b"x-rewrite-url",
        b"x-original-uri", b"proxy-connection", b"proxy-authorization",
    }
)  # fmt: skip
_REFUSED_PREFIXES: Final = (b"impersonate-", b"x-remote-", b"x-forwarded-")
_ONCE: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"content-type", b"upgrade", b"authorization"}
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, normalised and split.

    `verb` is the API server's (get, list, watch, create, update, patch, delete, deletecollection); "" where path and
    method make none. `resource` is "" for what is no resource, such as discovery. `rest` is what follows a subresource.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    verb: str = ""
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    rest: str = ""

    @property
    def target(self) -> str:
        """Path and query as they are forwarded."""
        pairs = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in self.query)
        return self.path + (f"?{pairs}" if pairs else "")

    def parameter(self, name: str) -> str | None:
        """The first value of a parameter."""
        return next((value for key, value in self.query if key == name), None)

    def parameters(self, name: str) -> tuple[str, ...]:
        """All values of a parameter."""
        return tuple(value for key, value in self.query if key == name)

    def is_set(self, name: str) -> bool:
        """Whether a boolean parameter is on, as the API server reads it: anything but absent, false and 0."""
        value = self.parameter(name)
        return value is not None and value.lower() not in ("false", "0")

    @property
    def qualified(self) -> str:
        """The resource, its subresource and its group, as `kubectl` writes them."""
        found = self.resource + (f".{self.group}" if self.group else "")
        return f"{found}/{self.subresource}" if self.subresource else found


def read(method: str, target: str) -> Request:
    """Normalise and split a request line.

    Raises:
        ProtocolError: it can be read in more than one way, or is none that an API server knows.
    """
    if method not in _METHODS:
        raise ProtocolError(f"The method {method[:16]!r} is not used by the Kubernetes API.")
    if not target.startswith("/") or len(target) > MAX_TARGET_BYTES:
        raise ProtocolError("The request target has to be a path, and not an endless one.")
    raw_path, mark, raw_query = target.partition("?")
    segments = _segments(raw_path)
    query = _parameters(raw_query) if mark else ()
    path = "/" + "/".join(quote(segment, safe=_SEGMENT_SAFE) for segment in segments)
    return _split(Request(method=method, path=path, query=query), segments)


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse headers that speak of another request or another person than the one decided on.

    Raises:
        ProtocolError: naming the header.
    """
    seen: set[bytes] = set()
    for raw_name, value in headers:
        name = raw_name.lower()
        if name in _REFUSED_HEADERS or name.startswith(_REFUSED_PREFIXES):
            raise ProtocolError(f"The header {name.decode('latin-1')[:64]} is not admitted.")
        if name in _ONCE and name in seen:
            raise ProtocolError(f"The header {name.decode('latin-1')} is there twice.")
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise ProtocolError("Transfer-Encoding can only be chunked.")
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise ProtocolError("Compressed request bodies are not read; send them as they are.")
        seen.add(name)
    if b"host" not in seen:
        raise ProtocolError("The header Host is missing.")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        raise ProtocolError("Content-Length and Transfer-Encoding exclude each other.")


def _segments(raw: str) -> list[str]:
    if raw == "/":
        return []
    parts = raw[1:].split("/")
    if parts[-1] == "" and len(parts) - 1 <= _DISCOVERY.get(parts[0], 0):
        parts.pop()  # discovery is asked for in both ways
    if len(parts) > MAX_SEGMENTS:
        raise ProtocolError("The path is longer than any of the Kubernetes API.")
    return [_segment(part) for part in parts]


def _segment(raw: str) -> str:
    if _BARE_PERCENT.search(raw):
        raise ProtocolError("The path has a % that begins no escape.")
    found = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), raw)
    if not _SEGMENT.fullmatch(found) or found in (".", ".."):
        raise ProtocolError("The path is not in normal form: an empty or dotted segment, or a character out of place.")
    return found


def _parameters(raw: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    for pair in raw.split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        name, value = _unquoted(name), _unquoted(value)
        if name in seen and name not in _REPEATED:
            raise ProtocolError(f"The parameter {name[:64]!r} is there twice.")
        seen.add(name)
        found.append((name, value))
    return tuple(found)


def _unquoted(raw: str) -> str:
    if ";" in raw or _BARE_PERCENT.search(raw) or not raw.isascii() or not raw.isprintable():
        raise ProtocolError("The query is not in normal form.")
    plain = raw.replace("+", " ").encode("ascii")
    try:
        return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), plain).decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("The query is not UTF-8.") from error


def _split(request: Request, segments: list[str]) -> Request:
    """The parts of a resource's path (RequestInfoFactory.NewRequestInfo)."""
    if segments[:1] == ["api"] and len(segments) > 2:
        group, version, rest = "", segments[1], segments[2:]
    elif segments[:1] == ["apis"] and len(segments) > 3:
        group, version, rest = segments[1], segments[2], segments[3:]
        if not _GROUP.fullmatch(group):
            raise ProtocolError("The path names no API group.")
    else:
        return request
    if not _VERSION.fullmatch(version):
        raise ProtocolError("The path names no API version.")
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if not _LABEL.fullmatch(namespace):
            raise ProtocolError("The path names no namespace.")
        if len(rest) > 2 and rest[2] not in _OF_NAMESPACES:
            rest = rest[2:]
        # else the namespace is the object itself, and its own namespace, as the API server has it
    resource, name, subresource = (*rest[:3], "", "")[:3]
    if not _RESOURCE.fullmatch(resource) or (subresource and not _RESOURCE.fullmatch(subresource)):
        raise ProtocolError("The path names no resource.")
    verb = (_NAMED_VERBS if name else _COLLECTION_VERBS).get(request.method, "")
    if verb == "list":
        narrowed = _NAME_FIELD.fullmatch(request.parameter("fieldSelector") or "")
        name = narrowed[1] if narrowed else ""
        if request.is_set("watch"):
            verb = "watch"
    if verb == "create" and name and not subresource:
        verb = ""
    return msgspec.structs.replace(
        request, verb=verb, group=group, version=version, namespace=namespace, resource=resource,
        subresource=subresource, name=name, rest="/".join(rest[3:]),
    )  # fmt: skip
