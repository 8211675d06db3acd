"""Objects in `application/vnd.kubernetes.protobuf` as the JSON that stands for the same object.

Theory of operation. The envelope (`k8s`, a zero byte, `runtime.Unknown`) says which kind the object is; `schema.json`
says what the fields of its messages are called in JSON. A field that is not in it is refused, or the object would not
be the one that the client means; only where it is empty it is left out, for Go's clients of later versions write fields
that nobody has set. Strict, too, where a server takes the last of several or cuts off: fields and keys twice, numbers
out of range, packed lists, other wire types. Each byte is looked at once, messages are as deep as the schema, and the
values of a body are counted, for an empty message costs a client two bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec

from chaperone_sidecar.protocols.kubernetes import body
from chaperone_sidecar.protocols.kubernetes.body import Unread

PREFIX: Final = b"k8s\x00"
CONTENT_TYPE: Final = "application/vnd.kubernetes.protobuf"
MAX_NAME: Final = 64  # characters of what a client names, in errors
_VARINT, _BYTES = 0, 2  # wire types
_MAX_VARINT_BYTES: Final = 10
_DELETE_OPTIONS: Final = "DeleteOptions"  # a client sends them in the API version of what it deletes
_META: Final = "meta/v1"
_EPOCH: Final = datetime(1970, 1, 1)

type Field = tuple[str, str, str]
"""Name in JSON, type, label; see `chaperone_tools.kubernetes_schema`."""
type Message = Mapping[int, Field]

_OWN: Final[dict[str, Message]] = {
    "Unknown": {
        1: ("typeMeta", "TypeMeta", ""), 2: ("raw", "span", ""), 3: ("encoding", "string", ""),
        4: ("type", "string", ""),
    },
    "TypeMeta": {1: ("apiVersion", "string", ""), 2: ("kind", "string", "")},
    "Time": {1: ("seconds", "int64", ""), 2: ("nanos", "int32", "")},
    "MicroTime": {1: ("seconds", "int64", ""), 2: ("nanos", "int32", "")},
    "Quantity": {1: ("string", "string", "")},
    "IntOrString": {1: ("type", "int64", ""), 2: ("intVal", "int32", ""), 3: ("strVal", "string", "")},
    "Raw": {1: ("raw", "bytes", "")},
    "Strings": {1: ("items", "string", "list")},
}  # fmt: skip
"""Messages whose JSON is written by hand in Go, and those of the envelope."""


class Schema(msgspec.Struct, frozen=True):
    """What `schema.json` says."""

    modules: dict[str, str]
    kinds: dict[str, dict[str, str]]
    messages: dict[str, list[tuple[int, str, str, str]]]


@cache
def schema() -> Schema:
    """The messages of the Kubernetes API; read once, when the first body in protobuf comes."""
    return msgspec.json.decode(resources.files(__package__).joinpath("schema.json").read_bytes(), type=Schema)


@cache
def _message(kind: str) -> Message:
    return _OWN.get(kind) or {number: (name, type_, label) for number, name, type_, label in schema().messages[kind]}


def to_json(raw: bytes) -> bytes:
    """A body in protobuf as JSON.

    Raises:
        Unread: it is none, or there is something in it that is not understood; the text says what.
    """
    if not raw.startswith(PREFIX):
        raise Unread("the body is no object of Kubernetes in protobuf.")
    reader = _Reader(raw)
    envelope = reader.message("Unknown", len(PREFIX), len(raw))
    if envelope.get("encoding") or envelope.get("type", "") not in ("", CONTENT_TYPE):
        raise Unread("the body's envelope holds something else than protobuf.")
    meta = envelope.get("typeMeta", {})
    version, kind = meta.get("apiVersion", ""), meta.get("kind", "")
    message = f"{_META}.{kind}" if kind == _DELETE_OPTIONS else schema().kinds.get(version, {}).get(kind)
    if message is None:
        named = f'"{kind[:MAX_NAME]}" in "{version[:MAX_NAME]}"'
        raise Unread(f"objects of kind {named} are not known in protobuf.")
    found = reader.message(message, *envelope.get("raw", (0, 0)))
    written = msgspec.json.encode({"kind": kind, "apiVersion": version} | found)
    if len(written) > body.MAX_BODY_BYTES:
        raise Unread(f"the body has more than {body.MAX_BODY_BYTES >> 20} MiB as JSON.")
    return written


class _Reader:
    """Reads the messages of one body, which stays in one piece: a message is a place in it."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._left = body.MAX_VALUES

    def message(self, kind: str, at: int, end: int) -> dict[str, Any]:
        """A message's fields by their names in JSON."""
        fields = _message(kind)
        found: dict[str, Any] = {}
        for number, wire, value in self._walk(at, end):
            field = fields.get(number)
            if field is None:
                if value == 0 or (wire == _BYTES and value[0] == value[1]):
                    continue
                raise Unread(f"field {number} of {kind} is not known.")
            name, type_, label = field
            match label:
                case "list":
                    found.setdefault(name, []).append(self._value(type_, wire, value))
                case "map":
                    key, entry = self._entry(type_, wire, value)
                    _put(found.setdefault(name, {}), key, entry, kind)
                case "inline":
                    for inner, entry in self._value(type_, wire, value).items():
                        _put(found, inner, entry, kind)
                case _:
                    _put(found, name, self._value(type_, wire, value), kind)
        for name, type_, label in fields.values():
            if label == "omit" and name in found and _is_empty(type_, found[name]):
                del found[name]  # Go writes what is not there in protobuf, and leaves it out in JSON
        return found

    def _walk(self, at: int, end: int) -> Iterator[tuple[int, int, Any]]:
        """The fields of a message: number, wire type, and the number or the place that it holds."""
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Unread(f"the body has more than {body.MAX_VALUES:,} values.")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not number:
                raise Unread("a field in the body has no number.")
            value, at = self._varint(at, end)
            if wire == _BYTES:
                begin, at = at, at + value
                if at > end:
                    raise Unread("a field is longer than its message.")
                yield number, wire, (begin, at)
            elif wire == _VARINT:
                yield number, wire, value
            else:
                raise Unread(f"wire type {wire} is not used by objects of Kubernetes.")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        found = 0
        for place in range(min(_MAX_VARINT_BYTES, end - at)):
            byte = self._raw[at + place]
            found |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if found >> 64:
                    break
                return found, at + place + 1
        raise Unread("a number in the body has no end.")

    def _value(self, type_: str, wire: int, value: Any) -> Any:  # noqa: ANN401 - any JSON
        """A field's value in JSON."""
        is_number = type_ in ("bool", "int32", "int64")
        if wire != (_VARINT if is_number else _BYTES):
            raise Unread(f"a field of type {type_} has the wire type {wire}.")
        if is_number:
            return _number(type_, value)
        at, end = value
        match type_:
            case "string":
                return self._text(at, end)
            case "bytes":
                return base64.b64encode(self._raw[at:end]).decode()
            case "span":
                return value
            case "Raw":
                return self._embedded(at, end)
        found = self.message(type_, at, end)
        return _WRITTEN[type_](found) if type_ in _WRITTEN else found

    def _text(self, at: int, end: int) -> str:
        try:
            return self._raw[at:end].decode()
        except UnicodeDecodeError as error:
            raise Unread("a text in the body is not UTF-8.") from error

    def _embedded(self, at: int, end: int) -> Any:  # noqa: ANN401 - any JSON
        text = self.message("Raw", at, end).get("raw", "")
        return body.decode(base64.b64decode(text)) if text else None

    def _entry(self, type_: str, wire: int, value: Any) -> tuple[str, Any]:  # noqa: ANN401
        """A map's key and what it stands for; what is not there is empty."""
        if wire != _BYTES:
            raise Unread(f"an entry of a map has the wire type {wire}.")
        found: dict[int, Any] = {}
        for number, inner, place in self._walk(*value):
            if number not in (1, 2):
                raise Unread(f"field {number} of a map's entry is not known.")
            _put(found, number, self._value("string" if number == 1 else type_, inner, place), "a map's entry")
        return found.get(1, ""), found[2] if 2 in found else self._value(type_, _BYTES, (0, 0))


def _put(found: dict[Any, Any], key: Any, value: Any, kind: str) -> None:  # noqa: ANN401
    if key in found:
        raise Unread(f"{str(key)[:MAX_NAME]!r} is twice in {kind}.")
    found[key] = value


def _is_empty(type_: str, value: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether a value says no more than none would; of a message's parts that is known, of embedded JSON it is not."""
    return value is None or (not value and type_ not in ("IntOrString", "Raw"))


def _number(type_: str, value: int) -> int | bool:
    found = value - (1 << 64) if value >> 63 else value
    if type_ == "bool":
        if found not in (0, 1):
            raise Unread("a truth value in the body is neither 0 nor 1.")
        return bool(found)
    if type_ == "int32" and not -(1 << 31) <= found < 1 << 31:
        raise Unread("a number in the body has more than 32 bits.")
    return found


def _time(found: dict[str, Any]) -> str | None:
    """`metav1.Time`: whole seconds, as it is read and written; nothing for the zero time."""
    return f"{_moment(found).replace(microsecond=0).isoformat()}Z" if found else None


def _micro_time(found: dict[str, Any]) -> str | None:
    return f"{_moment(found).isoformat(timespec='microseconds')}Z" if found else None


def _moment(found: dict[str, Any]) -> datetime:
    nanos = found.get("nanos", 0)
    try:
        if 0 <= nanos < 10**9:
            return _EPOCH + timedelta(seconds=found.get("seconds", 0), microseconds=nanos // 1000)
    except OverflowError:
        pass
    raise Unread("a time in the body is out of range.")


def _int_or_string(found: dict[str, Any]) -> int | str:
    match found.get("type", 0):
        case 0:
            return found.get("intVal", 0)  # type: ignore[no-any-return]
        case 1:
            return found.get("strVal", "")  # type: ignore[no-any-return]
    raise Unread("an IntOrString in the body is neither.")


_WRITTEN: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "Time": _time,
    "MicroTime": _micro_time,
    "Quantity": lambda found: found.get("string") or "0",
    "IntOrString": _int_or_string,
    "Strings": lambda found: found.get("items", []),
}
"""How messages are written in JSON that are no objects there."""
