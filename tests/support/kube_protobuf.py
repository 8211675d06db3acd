"""Objects of the Kubernetes API written in protobuf, as Go's clients write them."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from chaperone_sidecar.protocols.kubernetes.protobuf import PREFIX, schema

VARINT, BYTES = 0, 2


def envelope(version: str, kind: str, message: bytes, *, encoding: str = "", form: str = "") -> bytes:
    """`runtime.Unknown` behind its prefix."""
    meta = data(1, data(1, version.encode()) + data(2, kind.encode()))
    return PREFIX + meta + data(2, message) + data(3, encoding.encode()) + data(4, form.encode())


def encoded(content: dict[str, Any]) -> bytes:
    """An object, given as JSON."""
    kinds = schema().kinds
    version, kind = content["apiVersion"], content["kind"]
    body = {key: value for key, value in content.items() if key not in ("apiVersion", "kind")}
    name = "meta/v1.DeleteOptions" if kind == "DeleteOptions" else kinds[version][kind]
    return envelope(version, kind, message(name, body))


def message(kind: str, content: dict[str, Any]) -> bytes:
    """A message, from its JSON."""
    found, left = b"", dict(content)
    for number, name, type_, label in schema().messages[kind]:
        if label == "inline":
            inner = {one[1] for one in schema().messages[type_]}
            found += data(number, message(type_, {key: left.pop(key) for key in tuple(left) if key in inner}))
            continue
        if name not in left:
            continue
        value = left.pop(name)
        if label == "list":
            found += b"".join(field(number, type_, one) for one in value)
        elif label == "map":
            for key, one in value.items():
                found += data(number, data(1, key.encode()) + field(2, type_, one))
        else:
            found += field(number, type_, value)
    assert not left, f"{kind} has no {', '.join(left)}"
    return found


def field(number: int, type_: str, value: Any) -> bytes:
    """A field with one value."""
    match type_:
        case "bool" | "int32" | "int64":
            return varint(number << 3 | VARINT) + varint(int(value))
        case "string":
            return data(number, value.encode())
        case "bytes":
            return data(number, base64.b64decode(value))
        case "Quantity":
            return data(number, data(1, value.encode()))
        case "Raw":
            return data(number, data(1, json.dumps(value).encode()))
        case "Strings":
            return data(number, b"".join(data(1, one.encode()) for one in value))
        case "IntOrString":
            return data(number, field(1, "int64", 0) + field(2, "int32", value) if isinstance(value, int) else
                        field(1, "int64", 1) + field(3, "string", value))  # fmt: skip
        case "Time" | "MicroTime":
            moment = datetime.fromisoformat(value)
            seconds = field(1, "int64", int(moment.replace(microsecond=0).timestamp()))
            return data(number, seconds + field(2, "int32", moment.microsecond * 1000))
    return data(number, message(type_, value))


def data(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number."""
    left, found = value & (1 << 64) - 1, bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes((*found, left))
