"""What a request would do: its method's effect on its path, and what else its body says of that.

Objects are `path:` with the path in normal form, where a slash is escaped with each of its readings, `graphql:` with an
operation's type and the field at its root, and `grpc:` with a service and its method. A method that the request names
in place of its own counts as well as its own: a server may obey either.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import graphql, grpc, target
from chaperone_sidecar.protocols.http.messages import Fields, RequestHead, value, values
from chaperone_sidecar.protocols.http.target import Target

EFFECTS: Final = {
    "GET": Effect.READ, "HEAD": Effect.READ, "OPTIONS": Effect.READ, "POST": Effect.CREATE, "PUT": Effect.MODIFY,
    "PATCH": Effect.MODIFY, "DELETE": Effect.DELETE,
}  # fmt: skip
NEVER: Final = frozenset({"CONNECT", "TRACE", "TRACK", "DEBUG", "PRI"})
"""Methods that make a tunnel or send back what they got, credential included."""
OVERRIDING: Final = frozenset({"x-http-method-override", "x-http-method", "x-method-override"})
STEERING: Final = (
    "forwarded", "x-forwarded-", "x-original-", "x-rewrite-", "x-accel-", "x-real-ip", "x-host", "x-http-host-",
)  # fmt: skip
"""Beginnings of fields by which a client tells a server that it asked for something else than it did."""
FRAMING: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer",
     "transfer-encoding", "upgrade", "content-length", "host", "expect", "http2-settings", "accept-encoding"}
)  # fmt: skip
"""Fields of the connection, not of the request (RFC 9110, 7.6.1); the gateway writes its own."""
SECRET: Final = frozenset({"authorization", "cookie", "set-cookie", "proxy-authorization", "x-api-key", "api-key"})
"""Fields of which records show the names alone."""
HIDDEN: Final = "(hidden)"
MAX_BODY_BYTES: Final = 1 << 20  # of a body that is read before the decision; a longer one is decided by its head
MAX_KEPT_BYTES: Final = 64 << 10  # of a body in the records; of a longer one its hash
GRAPHQL: Final = "graphql"
GRPC: Final = "grpc"
FORM: Final = "application/x-www-form-urlencoded"
OCTETS: Final = "application/octet-stream"
_TYPES: Final = frozenset({"content-type", "content-encoding"})
_TYPE_END: Final = re.compile(r"[;,\s]")  # PHP ends it at a comma or a blank, too
_OTHER: Final = re.compile(r"[^a-z0-9]")
_UNICODE: Final = re.compile(rb"\\u00([0-9a-f]{2})")
_FORM_NAME: Final = re.compile(rb"(?<!file)name\*")  # a name of which each server has its own reading (RFC 5987)
_READS: Final = {"query": Effect.READ, "subscription": Effect.READ, "mutation": Effect.MODIFY}


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A request in normal form."""

    method: str
    target: Target
    fields: Fields
    content_type: str

    @property
    def is_grpc(self) -> bool:
        """Whether its client hears no by a status of gRPC."""
        return grpc.is_grpc(self.content_type)


def read(head: RequestHead) -> Asked:
    """The normal form of a request.

    Raises:
        ProtocolError: it has none, or tells the server that it is something else.
    """
    method = head.method
    if method != method.upper():
        raise ProtocolError("Methods are written in capitals.")
    named = {option.strip().lower() for option in value(head.fields, "connection").split(",")} - {""}
    for name, found in head.fields:
        lower = name.lower()
        alike = like(name)
        if alike.startswith(STEERING):
            raise ProtocolError(f"The field {name[:40]} would tell the server that it was asked for something else.")
        if alike != lower and alike in (FRAMING | OVERRIDING | SECRET | _TYPES):
            raise ProtocolError(f"The field {name[:40]} would be taken for another.")
        if lower in ("expect",) and found.lower() != "100-continue":
            raise ProtocolError("Expect asks for something else than 100-continue.")
    if named - {"keep-alive", "close", "upgrade", "te", "http2-settings"}:
        raise ProtocolError("Connection names fields of the request.")
    types = list(values(head.fields, "content-type"))
    if len(types) > 1:
        raise ProtocolError("There must be one Content-Type.")
    content_type = _TYPE_END.split(types[0].strip(), maxsplit=1)[0].lower() if types else ""
    packed = {found.lower() for found in values(head.fields, "grpc-encoding")} - {"identity"}
    if packed:
        raise ProtocolError("Messages that are compressed are not read; send them as they are.")
    kept = tuple((name, found) for name, found in head.fields if name.lower() not in FRAMING)
    return Asked(method, target.read(head.target), kept, content_type)


def settled(asked: Asked, body: bytes | None) -> Asked:
    """The request, of whose body something is said where it cannot be looked through: octets (RFC 9110, 8.3).

    Rack would take it for a form, in which another method may stand.
    """
    if body is not None or asked.content_type:
        return asked
    others = tuple(one for one in asked.fields if one[0].lower() != "content-type")
    return msgspec.structs.replace(asked, fields=(*others, ("Content-Type", OCTETS)), content_type=OCTETS)


def like(name: str) -> str:
    """A field's name as CGI and its like may see it, which tell letters and digits alone."""
    return _OTHER.sub("-", name.lower())


def classify(asked: Asked, body: bytes | None, secret: str = "") -> Command:
    """The command that a request is.

    Args:
        asked: the request.
        body: all of it; None where it is longer than what is read before the decision.
        secret: the name of the field that carries the credential.
    """
    accesses: dict[Access, None] = {}
    why = ""
    for one in _accesses(asked, body):
        if isinstance(one, str):
            why = why or one
            for path in asked.target.readings:
                accesses[Access(Effect.UNKNOWN, f"path:{path}")] = None
        else:
            accesses[one] = None
    facts = Facts(tuple(accesses), Resolution.SYNTACTIC, why)
    kept = body if body is not None and len(body) <= MAX_KEPT_BYTES else b""
    return Command(asked.method, text(asked, body, secret), facts, kept)


def text(asked: Asked, body: bytes | None, secret: str = "") -> bytes:
    """The request as it is recorded, decided and approved: without values of fields that are secrets."""
    lines = [f"{asked.method} {asked.target.raw}"]
    for name, found in asked.fields:
        is_secret = name.lower() in SECRET or name.lower() == secret.lower()
        lines.append(f"{name}: {HIDDEN if is_secret else found}")
    if body is None:
        lines.append("(a stream of messages)" if asked.is_grpc else f"(a body of more than {MAX_BODY_BYTES} bytes)")
    elif body:
        lines.append(f"(a body of {len(body)} bytes, SHA-256 {hashlib.sha256(body).hexdigest()})")
    return "\n".join(lines).encode("latin-1")


def methods(asked: Asked, body: bytes | None) -> list[str]:
    """The request's method, then those by which it says it is to be replaced."""
    found = [asked.method]
    for name in OVERRIDING:
        found += [one.strip().upper() for one in value(asked.fields, name).split(",") if one.strip()]
    found += target.overrides(asked.target.query or "")
    if not body:
        return list(dict.fromkeys(found))
    if asked.content_type in (FORM, ""):  # Rack takes a body for a form where nothing is said of it
        found += target.overrides(body.decode("latin-1"))
    if asked.content_type.startswith("multipart/"):
        plain = body.lower().replace(b"\\", b"")
        is_named = any(name.encode() in plain for name in target.OVERRIDING) or _FORM_NAME.search(plain) is not None
        found += ["a form's"] if is_named else []
    if asked.content_type == "" or "json" in value(asked.fields, "content-type").lower():
        found += _in_json(body)
    return list(dict.fromkeys(found))


def _in_json(body: bytes) -> list[str]:
    content = _json(body)
    if isinstance(content, dict):
        return [str(content[key]).upper() for key in content if target.is_overriding(key)]
    if content is not None:
        return []
    # What is read here as no JSON, some other parser may read.
    plain = _UNICODE.sub(lambda found: bytes([int(found[1], 16)]), body.lower())
    return ["a body's"] if any(f'"{name}"'.encode() in plain for name in target.OVERRIDING) else []


def _accesses(asked: Asked, body: bytes | None) -> Iterator[Access | str]:
    objects = [f"path:{path}" for path in asked.target.readings]
    last = asked.target.readings[-1].rstrip("/").rpartition("/")[2]
    if last.lower() == GRAPHQL and asked.method in ("GET", "POST", "HEAD"):
        for object_ in objects:
            yield from _graphql(asked, body, object_)
        others = methods(asked, body)[1:]
    else:
        others = methods(asked, body)
    if asked.is_grpc:
        call = grpc.called(asked.target.path) if asked.method == "POST" and asked.target.query is None else ""
        yield Access(Effect.EXECUTE_CODE, f"{GRPC}:{call}") if call else "a call of gRPC names no service and method."
    for method in others:
        effect = EFFECTS.get(method)
        if effect is None:
            yield f"the method {method[:32]!r} is not known."
        else:
            yield from (Access(effect, object_) for object_ in objects)
    if body is None and asked.content_type == FORM:
        yield "a form of this length may name another method."
    if body is None and asked.content_type.startswith("multipart/"):
        yield "a form of this length may name another method."


def _graphql(asked: Asked, body: bytes | None, object_: str) -> Iterator[Access | str]:
    documents: list[object] = [found for name, found in target.parameters(asked.target.query or "") if name == "query"]
    if asked.method == "POST":
        if body is None:
            yield "a GraphQL request of this length is not read."
            return
        if asked.content_type == "application/graphql":
            documents.append(body.decode("utf-8", "replace"))
        elif asked.content_type in ("application/json", "application/graphql+json"):
            content = _json(body)
            calls = content if isinstance(content, list) else [content]
            documents += [_document(call) for call in calls]
        else:
            documents.append(None)
    if not documents:
        documents.append(None)
    for document in documents:
        if not isinstance(document, str):
            yield "a GraphQL request without a document is not understood."
            continue
        try:
            found = graphql.operations(document)
        except graphql.Unread as error:
            yield f"the GraphQL document is not understood: {error}."
            continue
        for kind, field in found:
            yield Access(_READS[kind], object_)
            yield Access(_READS[kind], f"{GRAPHQL}:{kind}.{field}")


def _document(call: object) -> object:
    """The document of a call; None where a parser that takes capitals for small letters would find another."""
    if not isinstance(call, dict) or sum(key.casefold() == "query" for key in call) != 1:
        return None
    return call.get("query")


def _json(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(body.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
