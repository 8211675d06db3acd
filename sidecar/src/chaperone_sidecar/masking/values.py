r"""Masking of one value: as it stands, and under what it may be wrapped in.

A wrapping is found by a trigger, an expression that plain text does not hit; what it wraps is unwrapped, masked by the
same rules, and only if that changed anything is the wrapped text replaced. Wrappings may be nested, `MAX_DEPTH` deep.

- escapes: JSON's \\u0040, percent signs, HTML entities, digits of other alphabets, characters of no width. They are
  undone from quote to quote, so JSON, arrays and composites stay well formed, keys included.
- floats of sixteen digits and more, which are written 4.1e+15; they are written out over the whole value.
- digits with signs between thousands, as money has them, and with decimals of nothing.
- bits: texts of zeros and ones.
- hexadecimal text (bytea is that) and base64. Their triggers are texts that unwrap to ASCII, so identifiers, hashes
  and UUIDs do not pay. Either is replaced as a whole, by text that is wrapped the same way.

Arrays, composites, hstore and XML need nothing of their own: what is sought is found inside them.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from chaperone_sidecar.masking.detectors import Span, Trigger
from chaperone_sidecar.masking.engine import ANY_FILTER, Program, Scanner

type Replace = Callable[[str, bytes], bytes | None]

MAX_DEPTH: Final = 4
# What stands beside a replacement may mean something that it did not before, so a value is masked until that changes
# nothing; after this many rounds it goes as a whole.
MAX_ROUNDS: Final = 6
MAX_STARTS: Final = 64
MAX_FINAL: Final = 64  # labels such as [Email], one of a kind
MAX_FINAL_BYTES: Final = 64

# What is one character, or none, and looks like another: soft hyphen, widths of zero, direction marks, full width
# forms, digits of other alphabets and mathematics; spaces and dashes between digits.
_DISGUISE: Final = (
    rb"\xc2\xad|\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xa4]|\xef\xbb\xbf|\xef\xbc[\x81-\xbf]|\xef\xbd[\x80-\x9e]"
    rb"|\xcd\x8f|\xd9[\xa0-\xa9]|\xdb[\xb0-\xb9]|\xe0[\xa5\xa7\xa9\xab\xad\xaf\xb1\xb3\xb5\xb7\xb9][\x90-\x99\xa6-\xaf]|\xf0\x9d\x9f[\x8e-\xbf]|\xef\xb9[\x90-\xab]"
    rb"|\xe2\x81[\xb0-\xb9]|\xe2\x82[\x80-\x89]|\xe2\x91[\xa0-\xa9]"
    rb"|[0-9](?:\xc2\xa0|\xe2\x80[\x80-\x95\xaf]|\xe2\x88\x92|\xe3\x80\x80)"
)
_ESCAPE: Final = (
    rb"\\u00[2-7][0-9A-Fa-f]|\\u(?:20|ff|06)[0-9A-Fa-f]{2}|%[2-7][0-9A-Fa-f]|&#[xX]?[0-9A-Fa-f]{2,4};|&commat;"
)
_HEX: Final = rb"(?:[2-7][0-9A-Fa-f]){9}|(?:[2-7][0-9A-Fa-f]00){5}|(?:00[2-7][0-9A-Fa-f]){5}"
# Groups of four letters that decode to three bytes below 128, with either alphabet.
_BASE64: Final = rb"(?:[A-Za-f][A-HQ-Xg-nw-z0-3][ABEFIJMNQRUVYZcdghklopstwx014589][A-Za-z0-9+/_-]){3}"
# Bits of bytes below 128.
_BITS: Final = rb"(?:0[01]{7}){9}"
# Five groups at least, or decimals of nothing: fourteen digits are the fewest of a card.
_THOUSANDS: Final = rb"\d(?:(?:[,.' ]|\xc2\xa0|\xe2\x80[\x89\x99\xaf])\d{3}){4}|\d{14}\.0"
# A float that has the digits of a card is written like this.
_EXPONENT: Final = rb"\de\+1[5-8]"
TRIGGERS: Final = (
    Trigger(_DISGUISE, "word"),
    Trigger(_ESCAPE, "word"),
    Trigger(_HEX, "hex"),
    Trigger(_BASE64, "base64"),
    Trigger(_EXPONENT, "number"),
    Trigger(_THOUSANDS, "number"),
    Trigger(_BITS, "hex"),
)

_FLOAT: Final = re.compile(rb"(?<![\d.])(\d)(?:\.(\d{1,17}))?e\+(1[5-8])(?!\d)")
# Behind a bracket it is a list of numbers. Decimals would hide the number before them from detectors.
_GROUPED: Final = re.compile(
    rb"(?<![\d{\[(,.])\d{1,3}(?P<sign>[,.' ]|\xc2\xa0|\xe2\x80[\x89\x99\xaf])\d{3}(?:(?P=sign)\d{3}){3,5}(?!\d)"
    rb"(?:[.,]\d{1,2}(?!\d))?|(?<![\d.])\d{14,19}\.0+(?!\d)"
)
_BIT_RUN: Final = re.compile(rb"[01]{72,}")
_QUOTED: Final = re.compile(rb'[^"]+')
_UNICODE_ESCAPE: Final = re.compile(rb"\\+u([0-9A-Fa-f]{4})")
_PERCENT: Final = re.compile(rb"%([2-7][0-9A-Fa-f])")
_ENTITY: Final = re.compile(rb"&(?:#[0-9]{2,4}|#[xX][0-9A-Fa-f]{2,4}|commat);")
_HEX_RUN: Final = re.compile(rb"(?:\\x)?[0-9A-Fa-f]{18,}")
_BASE64_RUN: Final = re.compile(rb"[A-Za-z0-9+/_-]{12,}(?:\r?\n[A-Za-z0-9+/_-]+)*={0,2}")
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_DECIMALS: Final = re.compile(rb"[.,](?:\d{1,2}|0+)\Z")
_NOT_DIGIT: Final = bytes(byte for byte in range(256) if not 48 <= byte <= 57)
_DASHES: Final = dict.fromkeys(map(ord, "‐‑‒–—―−﹣－"), "-")
_BEFORE: Final = frozenset((b":", b",", b"[", b"{", b" "))
_AFTER: Final = frozenset((b",", b"]", b"}", b" ", b"\n"))
# Undone escapes that would end a string, or begin an escape, stay what they are.
_KEPT: Final = frozenset(map(chr, range(32))) | {'"', "\\", "%", "&"}


class Values:
    """Masks values by a scanner's findings."""

    def __init__(self, scanner: Scanner, replace: Replace) -> None:
        """`scanner` was built with `TRIGGERS`; `replace` says what stands for a span."""
        self._scanner = scanner
        self._replace = replace
        self._final: set[bytes] = set()  # what stands for values, and is known to need no mask itself
        self._hex = Program(_HEX)
        self._base64 = Program(_BASE64)
        self._bit = Program(_BITS)

    def mask(self, data: bytes, depth: int = 0, filters: int = ANY_FILTER) -> bytes | None:
        """Mask one value; None is NULL. The same object comes back when there is nothing to mask.

        Args:
            data: the value.
            depth: how many wrappings it was in.
            filters: which of the scanner's filters hit it, as far as that is known.
        """
        before = data
        for _ in range(MAX_ROUNDS):
            masked = self._mask_once(before, depth, filters)
            if masked is None:
                return None
            if masked == before:
                if (
                    before is not data
                    and depth == 0
                    and len(self._final) < MAX_FINAL
                    and len(before) <= MAX_FINAL_BYTES
                ):
                    self._final.add(before)
                return before
            if masked in self._final:
                return masked
            before, filters = masked, ANY_FILTER
        return self._replace("masked", b"")

    def _mask_once(self, data: bytes, depth: int, filters: int) -> bytes | None:
        candidates = self._scanner.candidates(data, filters)
        if not candidates:
            return data
        masked = data
        if depth < MAX_DEPTH:
            for trigger in self._scanner.triggered(candidates):
                unwrapped = self._unwrap(trigger, masked, depth)
                if unwrapped is None:
                    return None
                masked = unwrapped
        spans = self._scanner.spans(masked, candidates if masked is data else self._scanner.candidates(masked))
        return self._splice(masked, spans) if spans else masked

    def _splice(self, data: bytes, spans: Sequence[Span]) -> bytes | None:
        parts: list[bytes] = []
        place = quotes = 0
        may_be_json = data[:1] in (b"{", b"[")
        for span in spans:
            new = self._replace(span.kind, data[span.start : span.end])
            if new is None:
                return None
            if may_be_json:
                quotes += data.count(b'"', place, span.start)
                if quotes % 2 == 0 and _is_number(data, span):
                    new = b'"%s"' % new  # where a number stood no bare text may stand
            parts += (data[place : span.start], new)
            place = span.end
        parts.append(data[place:])
        return b"".join(parts)

    def _unwrap(self, trigger: int, data: bytes, depth: int) -> bytes | None:
        if trigger <= 1:
            return self._each(_QUOTED, data, lambda part: self._escaped(part, depth))
        if trigger == 2:
            return self._each(_HEX_RUN, data, lambda part: self._hexadecimal(part, depth))
        if trigger == 3:
            return self._each(_BASE64_RUN, data, lambda part: self._base64_text(part, depth))
        if trigger == 5:
            return self._each(_GROUPED, data, lambda part: self._grouped(part, depth))
        if trigger == 6:
            return self._each(_BIT_RUN, data, lambda part: self._bits(part, depth))
        plain = _FLOAT.sub(_written_out, data)
        masked = self.mask(plain, depth + 1)
        return data if masked == plain else masked

    def _each(self, runs: re.Pattern[bytes], data: bytes, mask: Callable[[bytes], bytes | None]) -> bytes | None:
        parts: list[bytes] = []
        place = 0
        for run in runs.finditer(data):
            part = run.group()
            new = mask(part)
            if new is None:
                return None
            if new is not part:
                parts += (data[place : run.start()], new)
                place = run.end()
        if not parts:
            return data
        parts.append(data[place:])
        return b"".join(parts)

    def _escaped(self, part: bytes, depth: int) -> bytes | None:
        plain = plain_text(part)
        if plain == part:
            return part
        masked = self.mask(plain, depth + 1)
        return part if masked is plain or masked == plain else masked

    def _hexadecimal(self, part: bytes, depth: int) -> bytes | None:
        prefix = part[:2] if part.startswith(b"\\x") else b""
        digits = part[len(prefix) :]
        offsets = {0} if prefix else {match % 2 for match in _starts(self._hex, digits)}
        for offset in sorted(offsets):
            even = digits[offset : len(digits) - (len(digits) - offset) % 2]
            plain = bytes.fromhex(even.decode())
            for text in (plain, plain[::2], plain[1::2]) if b"\x00" in plain else (plain,):
                masked = self.mask(text, depth + 1)
                if masked is None:
                    return None
                if masked != text:
                    return prefix + self._whole(text, depth).hex().encode()
        return part

    def _grouped(self, part: bytes, depth: int) -> bytes | None:
        digits = _DECIMALS.sub(b"", part).translate(None, _NOT_DIGIT)
        masked = self.mask(digits, depth + 1)
        return part if masked == digits else masked

    def _bits(self, part: bytes, depth: int) -> bytes | None:
        for offset in sorted({match % 8 for match in _starts(self._bit, part)}):
            plain = _packed(part[offset : len(part) - (len(part) - offset) % 8])
            masked = self.mask(plain, depth + 1)
            if masked is None:
                return None
            if masked != plain:
                return b"".join([b"%08d" % int(f"{byte:b}") for byte in self._whole(plain, depth)])
        return part

    def _base64_text(self, part: bytes, depth: int) -> bytes | None:
        text = part.translate(_TO_STANDARD, b"\r\n=")
        for offset in sorted({start % 4 for start in _starts(self._base64, text)}):
            coded = text[offset:]
            coded = coded[: len(coded) - (len(coded) % 4 == 1)]
            plain = base64.b64decode(coded + b"=" * (-len(coded) % 4))
            masked = self.mask(plain, depth + 1)
            if masked is None:
                return None
            if masked != plain:
                return base64.b64encode(self._whole(plain, depth))
        return part

    def _whole(self, plain: bytes, depth: int) -> bytes:
        """What stands for a wrapped text in which something was found."""
        spans = self._scanner.scan(plain)
        kind = spans[0].kind if spans else "masked"
        whole = self._replace(kind, plain if len(spans) == 1 and spans[0].end - spans[0].start == len(plain) else b"")
        return whole or b""


def plain_text(data: bytes) -> bytes:
    """Undo escapes and disguises, but for those whose undoing would break the text around them."""
    data = _UNICODE_ESCAPE.sub(lambda m: _unescaped(m, chr(int(m.group(1), 16))), data)
    data = _PERCENT.sub(lambda m: _unescaped(m, chr(int(m.group(1), 16))), data)
    data = _ENTITY.sub(lambda m: _unescaped(m, html.unescape(m.group().decode())), data)
    if data.isascii():
        return data
    text = data.decode("utf-8", "surrogateescape").translate(_DASHES)
    shown = []
    for char in unicodedata.normalize("NFKC", text):
        if char.isascii():
            shown.append(char)
        elif (digit := unicodedata.digit(char, None)) is not None:
            shown.append(str(digit))
        elif unicodedata.category(char) not in ("Cf", "Mn"):
            shown.append(char)
    return "".join(shown).encode("utf-8", "surrogateescape")


def _written_out(match: re.Match[bytes]) -> bytes:
    first, rest, exponent = match.groups()
    return first + (rest or b"").ljust(int(exponent), b"0")


def _unescaped(match: re.Match[bytes], char: str) -> bytes:
    return match.group() if char in _KEPT or 0xD800 <= ord(char) <= 0xDFFF else char.encode()


def _is_number(data: bytes, span: Span) -> bool:
    """Whether a span is a bare number of JSON, or of an array."""
    before, after = data[span.start - 1 : span.start], data[span.end : span.end + 1]
    return data[span.start : span.end].isdigit() and before in _BEFORE and after in _AFTER


def _packed(bits: bytes) -> bytes:
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _starts(program: Program, data: bytes) -> set[int]:
    """Where the first matches begin: a text has one alignment, so more of them say nothing new."""
    starts: set[int] = set()
    place = 0
    for _ in range(MAX_STARTS):
        found = program.search(data, place)
        if found is None:
            break
        starts.add(found[0])
        place = found[1]
    return starts
