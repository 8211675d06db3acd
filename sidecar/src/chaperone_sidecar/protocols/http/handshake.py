"""The handshake of WebSocket (RFC 6455, 4), and its messages as commands.

The upgrade is a `session` on the path, and each message of the client `create` on it, so that who may read a path may
not for that alone talk to it. No extension is ever offered or agreed, so nothing is compressed.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import classify, websocket
from chaperone_sidecar.protocols.http.classify import Asked
from chaperone_sidecar.protocols.http.codec import SWITCHING
from chaperone_sidecar.protocols.http.messages import AnswerHead, Fields, RequestHead, value, values
from chaperone_sidecar.protocols.http.websocket import Said

KIND: Final = "websocket"
VERSION: Final = "13"
_OWN: Final = "sec-websocket-"  # fields of the handshake begin so
_PROTOCOL: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
MAX_PROTOCOLS: Final = 20


class Handshake(msgspec.Struct, frozen=True, gc=False):
    """What a client wants to open."""

    key: str
    protocols: tuple[str, ...]


def read(head: RequestHead) -> Handshake | None:
    """The handshake that a request is; None where it is none.

    Raises:
        ProtocolError: it wants another protocol, or is malformed.
    """
    wanted = value(head.fields, "upgrade").strip().lower()
    # A server may leave an offer of HTTP/2 unheard (RFC 9110, 7.8): Java's client makes one with every first request.
    if wanted in ("", "h2c"):
        return None
    if wanted != KIND:
        raise ProtocolError("The connection is not changed to another protocol than WebSocket.")
    options = {one.strip().lower() for one in value(head.fields, "connection").split(",")}
    keys, versions = list(values(head.fields, f"{_OWN}key")), list(values(head.fields, f"{_OWN}version"))
    has_body = value(head.fields, "content-length") not in ("", "0") or value(head.fields, "transfer-encoding")
    if head.method != "GET" or "upgrade" not in options or has_body:
        raise ProtocolError("A handshake of WebSocket is a GET without a body, with Connection: Upgrade.")
    if versions != [VERSION] or len(keys) != 1 or not websocket.is_key(keys[0]):
        raise ProtocolError("A handshake of WebSocket has one key and version 13.")
    protocols = tuple(one.strip() for one in value(head.fields, f"{_OWN}protocol").split(",") if one.strip())
    if len(protocols) > MAX_PROTOCOLS or not all(map(_PROTOCOL.fullmatch, protocols)):
        raise ProtocolError("The protocols that a handshake of WebSocket offers are malformed, or too many.")
    return Handshake(keys[0], protocols)


def fields(wanted: Handshake, given: Fields, key: str) -> Fields:
    """What the target gets: the request's own fields and a handshake of the gateway's."""
    kept = tuple((name, found) for name, found in given if not classify.like(name).startswith(_OWN))
    named = [
        ("Connection", "Upgrade"),
        ("Upgrade", KIND),
        ("Sec-WebSocket-Version", VERSION),
        ("Sec-WebSocket-Key", key),
    ]
    if wanted.protocols:
        named.append(("Sec-WebSocket-Protocol", ", ".join(wanted.protocols)))
    return (*kept, *named)


def agreed(wanted: Handshake, answer: AnswerHead, key: str) -> Fields:
    """What the client gets once the target has agreed.

    Raises:
        ProtocolError: it has agreed to something else (RFC 6455, 4.1).
    """
    told = answer.fields
    protocol = value(told, f"{_OWN}protocol")
    if (
        answer.status != SWITCHING
        or value(told, "upgrade").strip().lower() != KIND
        or "upgrade" not in {one.strip().lower() for one in value(told, "connection").split(",")}
        or value(told, f"{_OWN}accept").strip() != websocket.accept(key)
        or value(told, f"{_OWN}extensions")
        or (protocol and protocol not in wanted.protocols)
    ):
        raise ProtocolError("The target has agreed to something else than WebSocket as it was asked for.", "upstream")
    named = [("Connection", "Upgrade"), ("Upgrade", KIND), ("Sec-WebSocket-Accept", websocket.accept(wanted.key))]
    return (*named, *([("Sec-WebSocket-Protocol", protocol)] if protocol else []))


def command(asked: Asked, secret: str) -> Command:
    """The command that a handshake is."""
    found = classify.classify(asked, b"", secret)
    # Other methods that the request names, and GraphQL, of which nothing is read here, count as they do anywhere.
    accesses = [one for one in found.facts.accesses if one.effect is not Effect.READ]
    opened = [Access(Effect.SESSION, f"path:{path}") for path in asked.target.readings]
    return msgspec.structs.replace(
        found, kind=KIND, facts=msgspec.structs.replace(found.facts, accesses=(*opened, *accesses))
    )


def message(asked: Asked, said: Said) -> Command:
    """The command that a client's message is."""
    accesses = tuple(Access(Effect.CREATE, f"path:{path}") for path in asked.target.readings)
    is_kept = len(said.data) <= classify.MAX_KEPT_BYTES
    if said.kind == "text" and is_kept:
        text = said.data
    else:
        digest = hashlib.sha256(said.data).hexdigest()
        text = f"(a {said.kind} message of {len(said.data)} bytes, SHA-256 {digest})".encode()
    params = said.data if said.kind == "binary" and is_kept else b""
    return Command(f"{KIND}.{said.kind}", text, Facts(accesses, Resolution.SYNTACTIC), params)
