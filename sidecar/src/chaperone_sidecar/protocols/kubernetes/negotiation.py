"""Which forms of content pass: JSON, for logs plain text, and protobuf, CBOR and YAML as the JSON that stands for them.

What decides and masks has to read what passes. So a body in another form goes on as JSON, a client that also takes JSON
is answered in JSON, and one that takes nothing else is told so (406, 415), as by an API server that has only JSON. A
body in YAML or CBOR that is none, or that can be read in two ways, is a bad request (400).
"""

from __future__ import annotations

import re
from typing import Any, Final

from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.protocols.kubernetes import body as bodies
from chaperone_sidecar.protocols.kubernetes import cbor, protobuf
from chaperone_sidecar.protocols.kubernetes.body import Unread
from chaperone_sidecar.protocols.kubernetes.classify import APPLY_PATCH, JSON, PATCHES
from chaperone_sidecar.protocols.kubernetes.request import Request

_PARAMETER: Final = re.compile(r"[a-z]+=[A-Za-z0-9.:/_-]+")
_ANY: Final = frozenset({"*/*", "application/*"})
YAML: Final = "application/yaml"
_BREAKS: Final = re.compile("[\x85\u2028\u2029\ufeff]")
_CHARSETS: Final = frozenset({"", "charset=utf-8", 'charset="utf-8"'})
MAX_ACCEPT: Final = 2048  # characters; kubectl sends 250
_USE_JSON: Final = (
    "Send JSON: with kubectl use create, apply or patch with -f; in a client program set the content type "
    "application/json."
)


class NotTaken(ChaperoneError):
    """The form of a body (415) or of all answers asked for (406) is not read, or a body is not in its form (400)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def accepted(accept: str, request: Request) -> str:
    """The `Accept` that is sent upstream.

    Raises:
        NotTaken: the client takes nothing that passes.
    """
    if request.subresource == "log" or (not request.resource and not request.path.startswith(("/api", "/openapi"))):
        return "*/*"  # these answer in one form alone
    if not accept.strip():
        return JSON
    kept = []
    for one in accept[:MAX_ACCEPT].split(","):
        kind, *parameters = (piece.strip() for piece in one.split(";"))
        if kind.lower() in _ANY:
            kind, parameters = JSON, [piece for piece in parameters if piece.startswith("q=")]
        if kind.lower() == JSON and all(_PARAMETER.fullmatch(piece) for piece in parameters):
            kept.append(";".join((JSON, *parameters)))
    if not kept:
        raise NotTaken(406, "only JSON is answered by Chaperone; name application/json in Accept.")
    return ", ".join(dict.fromkeys(kept))


def content(header: str, request: Request, raw: bytes) -> tuple[str, bytes]:
    """A body in the form in which it is decided on and sent upstream, and the name of that form without parameters.

    Raises:
        NotTaken: its form does not pass, or it holds what is not understood.
    """
    kind, *parameters = (piece.strip().lower() for piece in header.split(";"))
    if not raw:
        return JSON, raw
    if _CHARSETS.issuperset(parameters):
        if request.method == "PATCH" and kind in (APPLY_PATCH, cbor.APPLY):
            return APPLY_PATCH, _as_json(kind, raw)
        if request.method == "PATCH" and kind in PATCHES:
            return kind, raw
        if request.method != "PATCH" and kind in ("", JSON):
            return JSON, raw
        if request.method != "PATCH" and kind in (YAML, cbor.CONTENT_TYPE):
            return JSON, _as_json(kind, raw)
        if request.method != "PATCH" and kind == protobuf.CONTENT_TYPE:
            try:
                return JSON, protobuf.to_json(raw)
            except Unread as error:
                raise NotTaken(415, f"Chaperone does not read this body: {error} {_USE_JSON}") from error
    raise NotTaken(415, f"Chaperone reads bodies in JSON, YAML, CBOR, and Kubernetes' protobuf. {_USE_JSON}")


def _as_json(kind: str, raw: bytes) -> bytes:
    """An object in CBOR or YAML as JSON."""
    try:
        return bodies.encode(cbor.to_object(raw) if kind in (cbor.CONTENT_TYPE, cbor.APPLY) else _from_yaml(raw))
    except Unread as error:
        raise NotTaken(400, f"Chaperone does not read this body: {error} {_USE_JSON}") from error


def _from_yaml(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Unread("the body is not UTF-8.") from error
    if _BREAKS.search(text):
        raise Unread("the body has a character that only some readers of YAML take for a line break.")
    try:
        found = bodies.decode(raw)  # most YAML is JSON, which is read fast
    except Unread:
        from chaperone_sidecar.protocols.kubernetes import yaml  # noqa: PLC0415 - few need PyYAML

        found = yaml.to_object(text)
    if not isinstance(found, dict):
        raise Unread("the body is no object.")
    return found
