"""What an agent may see of an answer: values that detectors leave, and the credential never.

Texts are masked as a whole, JSON value by value (and key by key) and written anew, so that a value is found however it
was escaped; events of a stream (SSE) and lines of JSON one by one as they come. What a text could hide in entities or
escapes that are not read is refused, and so is every other form: nobody can say where a value begins in it.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus, unquote_plus

from chaperone_sidecar.errors import Unmaskable

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

MAX_ANSWER_BYTES: Final = 32 << 20  # of an answer that is read as a whole
MAX_UNIT_BYTES: Final = 1 << 20  # of an event, or of a line
SSE: Final = "text/event-stream"
_LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-seq"})
_TEXTS: Final = frozenset({"application/xml", "application/yaml", "application/x-yaml", "application/javascript"})
_ENTITIES: Final = ("html", "xml")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2}))")  # of JSON and JavaScript
_CHARSETS: Final = frozenset({"", "utf-8", "utf8", "us-ascii", "iso-8859-1"})
MIN_NEEDLE_BYTES: Final = 6  # what is shorter stands in answers by chance
REDACTED: Final = b"[credential]"


class Form:
    """The form of an answer, by its Content-Type.

    Args:
        content_type: the field's value.
    """

    def __init__(self, content_type: str) -> None:
        kind, *parameters = (part.strip() for part in content_type.lower().split(";"))
        self.kind = kind
        charset = next((one[8:].strip("\"'") for one in parameters if one.startswith("charset=")), "")
        self._is_known = charset in _CHARSETS

    @property
    def is_json(self) -> bool:
        """Whether it is one JSON text."""
        return self.kind == "application/json" or self.kind.endswith("+json")

    @property
    def is_stream(self) -> bool:
        """Whether it comes in units that are masked one by one: events, or lines of JSON."""
        return self.kind == SSE or self.kind in _LINES

    @property
    def is_text(self) -> bool:
        """Whether it is text of any other form."""
        return self.kind.startswith("text/") or self.kind in _TEXTS or self.kind.endswith("+xml") or not self.kind

    @property
    def is_maskable(self) -> bool:
        """Whether values can be told in it."""
        return self._is_known and (self.is_json or self.is_stream or self.is_text)

    @property
    def has_entities(self) -> bool:
        """Whether a character of it may be written by an entity."""
        return self.kind.endswith(_ENTITIES)


def masked(masker: Masker, form: Form, raw: bytes) -> bytes:
    """A whole answer as the client may see it.

    Raises:
        Unmaskable: it is not what it says it is, or hides values.
    """
    if form.is_json:
        return masked_json(masker, raw) if raw.strip() else raw
    if raw.lstrip()[:1] in (b"{", b"["):  # JSON that is not named so
        with contextlib.suppress(Unmaskable):
            return masked_json(masker, raw)
    return masked_text(masker, raw, form)


def masked_text(masker: Masker, raw: bytes, form: Form) -> bytes:
    """Text as the client may see it; raises as `masked`."""
    found = masker.mask_text(raw)
    text = found.decode("utf-8", "replace")
    read = _ESCAPE.sub(lambda one: chr(int(one[1] or one[2], 16)), text)
    read = html.unescape(read) if form.has_entities else unquote_plus(read) if "urlencoded" in form.kind else read
    if read != text:
        plain = read.encode("utf-8", "replace")
        if masker.mask_text(plain) != plain:
            raise Unmaskable("A value that policy masks is written in entities or escapes, so it cannot be masked.")
    return found


def masked_json(masker: Masker, raw: bytes) -> bytes:
    """JSON as the client may see it; raises as `masked`."""
    try:
        content = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_Pairs)
        return json.dumps(_masked(content, masker), ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise Unmaskable("The target's answer is no JSON, so its values cannot be masked.") from error


class Cutter:
    """Cuts a stream into events (HTML standard, 9.2.6) or lines, each with its end.

    Args:
        form: of the stream.
    """

    def __init__(self, form: Form) -> None:
        self.is_sse = form.kind == SSE
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The units that are whole now.

        Raises:
            Unmaskable: one is too long to be kept.
        """
        self._rest += data
        if self.is_sse:  # CR LF, CR and LF end a line
            normal = bytes(self._rest).replace(b"\r\n", b"\n")
            last = b"\r" if normal.endswith(b"\r") else b""
            self._rest = bytearray(normal.removesuffix(b"\r").replace(b"\r", b"\n") + last)
        mark = b"\n\n" if self.is_sse else b"\n"
        *units, rest = bytes(self._rest).split(mark)
        self._rest = bytearray(rest)
        if len(rest) > MAX_UNIT_BYTES:
            raise Unmaskable("An event of the target's answer is too long to be read.")
        return [unit + mark for unit in units]

    def end(self) -> list[bytes]:
        """What is left without an end."""
        rest, self._rest = bytes(self._rest), bytearray()
        return [rest] if rest else []


def data_of(event: bytes) -> tuple[list[bytes], bytes]:
    """The lines of an event that are no data, and its data."""
    lines = event.rstrip(b"\n").split(b"\n")
    data = [line.partition(b":")[2].removeprefix(b" ") for line in lines if line.partition(b":")[0] == b"data"]
    return [line for line in lines if line and line.partition(b":")[0] != b"data"], b"\n".join(data)


def event_of(others: list[bytes], data: bytes, event: bytes) -> bytes:
    """An event of these lines and data, which ends as another one does."""
    lines = others + ([b"data: " + line for line in data.split(b"\n")] if data else [])
    return b"\n".join(lines) + (b"\n\n" if event.endswith(b"\n\n") else b"")


class Units:
    """Cuts a stream into events or lines and masks each.

    Args:
        masker: of the target.
        form: of the stream.
    """

    def __init__(self, masker: Masker, form: Form) -> None:
        self._masker = masker
        self._form = form
        self._cutter = Cutter(form)

    def feed(self, data: bytes) -> bytes:
        """The units that are whole now, as the client may see them.

        Raises:
            Unmaskable: one is too long to be kept, or no JSON.
        """
        return b"".join(map(self._unit, self._cutter.feed(data)))

    def end(self) -> bytes:
        """What is left without an end; raises as `feed`."""
        return b"".join(map(self._unit, self._cutter.end()))

    def _unit(self, unit: bytes) -> bytes:
        if not self._cutter.is_sse:
            body = unit.strip(b"\n\r \t\x1e")
            return masked_json(self._masker, body) + b"\n" if body else unit
        others, data = data_of(unit)
        return event_of([self._masker.mask_text(line) for line in others], self._data(data), unit)

    def _data(self, data: bytes) -> bytes:
        if data.lstrip()[:1] in (b"{", b"[", b'"'):
            with contextlib.suppress(Unmaskable):
                return masked_json(self._masker, data)
        return masked_text(self._masker, data, self._form)


class Redactor:
    """Takes a credential out of a stream of bytes, however it is cut, without holding back what cannot be its begin.

    Args:
        secret: the field's value, with what stands before the credential (`Bearer `).
        keeps_length: whether lengths that are said elsewhere have to stay true.
    """

    def __init__(self, secret: str, *, keeps_length: bool = False) -> None:
        self._keeps_length = keeps_length
        self._needles = tuple(sorted(_spellings(secret), key=len, reverse=True))
        self._rest = b""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is sought."""
        return not self._needles

    def feed(self, data: bytes) -> bytes:
        """What may pass now."""
        found = self._replaced(self._rest + data)
        keep = max((self._open(found, needle) for needle in self._needles), default=0)
        self._rest = found[len(found) - keep :]
        return found[: len(found) - keep]

    def end(self) -> bytes:
        """What is left."""
        rest, self._rest = self._rest, b""
        return rest

    def text(self, text: str) -> str:
        """A whole text."""
        return self._replaced(text.encode("latin-1", "replace")).decode("latin-1")

    def _replaced(self, data: bytes) -> bytes:
        for needle in self._needles:
            shown = REDACTED.ljust(len(needle), b"*")[: len(needle)] if self._keeps_length else REDACTED
            data = data.replace(needle, shown)
        return data

    @staticmethod
    def _open(data: bytes, needle: bytes) -> int:
        """How many bytes at the end may be the beginning of a needle."""
        at = data.find(needle[:1], max(0, len(data) - len(needle) + 1))
        while at >= 0:
            if needle.startswith(data[at:]):
                return len(data) - at
            at = data.find(needle[:1], at + 1)
        return 0


class Decoder:
    """Undoes gzip and deflate (RFC 9110, 8.4.1).

    Raises:
        Unmaskable: another coding.
    """

    def __init__(self, coding: str) -> None:
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise Unmaskable(f"The target's answer has the coding {coding[:20]!r}, which is not read.")
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The content, in pieces of bounded size.

        Raises:
            Unmaskable: it is broken.
        """
        try:
            while data:
                yield self._inner.decompress(data, 256 << 10)
                data = self._inner.unconsumed_tail
        except zlib.error as error:
            raise Unmaskable("The target's answer is compressed and broken.") from error

    def end(self) -> bytes:
        """What is left; raises as `feed`."""
        rest = self._inner.flush()
        if not self._inner.eof:
            raise Unmaskable("The target's answer is compressed and ends too early.")
        return rest


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with every key that it has, also those that stand twice."""


def _masked(content: Any, masker: Masker) -> Any:  # noqa: ANN401 - any JSON
    texts: list[bytes] = []
    _collect(content, texts)
    found = iter(masker.mask_row(texts))
    return _replaced(content, iter(texts), found)


def _collect(content: Any, texts: list[bytes]) -> None:  # noqa: ANN401
    if isinstance(content, _Pairs):
        for key, value in content:
            texts.append(key.encode("utf-8", "surrogatepass"))
            _collect(value, texts)
    elif isinstance(content, list):
        for value in content:
            _collect(value, texts)
    elif isinstance(content, str):
        texts.append(content.encode("utf-8", "surrogatepass"))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        texts.append(str(content).encode())


def _replaced(content: Any, texts: Iterator[bytes], found: Iterator[bytes | None]) -> Any:  # noqa: ANN401
    if isinstance(content, _Pairs):
        out: dict[str, Any] = {}
        for key, value in content:
            shown = _text(key, next(texts), next(found)) or "[masked]"
            while shown in out:
                shown += "'"
            out[shown] = _replaced(value, texts, found)
        return out
    if isinstance(content, list):
        return [_replaced(value, texts, found) for value in content]
    if isinstance(content, str):
        return _text(content, next(texts), next(found))
    if isinstance(content, int | float) and not isinstance(content, bool):
        return content if next(texts) == next(found) else None
    return content


def _text(plain: str, raw: bytes, shown: bytes | None) -> str | None:
    return plain if shown == raw else None if shown is None else shown.decode("utf-8", "replace")


def _spellings(secret: str) -> set[bytes]:
    """The credential as an answer may repeat it: alone, in JSON, in a URL, and what Basic hides in base64."""
    scheme, _, alone = secret.rpartition(" ")
    found = {secret, alone}
    if scheme.strip().lower() == "basic":
        try:
            plain = b64decode(alone, validate=True).decode()
        except ValueError:
            plain = ""
        found |= {plain, plain.partition(":")[2]}
    found |= {json.dumps(one)[1:-1] for one in found} | {one.replace("/", "\\/") for one in found}
    found |= {html.escape(one) for one in found} | {quote(one, safe="") for one in found}
    found |= {quote_plus(one) for one in found} | {b64encode(one.encode()).decode() for one in (secret, alone)}
    return {one.encode() for one in found if len(one) >= MIN_NEEDLE_BYTES}
