"""The methods: what stands where a sensitive value stood.

A replacement never holds what a detector finds, so masking twice changes nothing, and never grows past
`MAX_REPLACEMENT_BYTES`. No value is let through because it looks masked already: whoever writes the SQL could make it
look so. Partial shows something only of values whose shape it knows; of anything else nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking.rule import ColumnClass, Method

MAX_REPLACEMENT_BYTES: Final = 128
# 32 letters of four bits each: a digest in letters alone is no number, no address and no hexadecimal text.
_DIGEST_LETTERS: Final = 32
_TO_LETTERS: Final = bytes.maketrans(b"0123456789abcdef", b"abcdefghijklmnop")
_KIND_CHARS: Final = 48

# Where rules differ about one value the strictest wins: what says less comes first.
STRICTNESS: Final[tuple[Method, ...]] = ("Null", "Redact", "Hash", "Partial")

_DIGITS_OF: Final = frozenset({"PaymentCard", "USSocialSecurity", "Phone"})
_NOT_DIGIT: Final = bytes(b for b in range(256) if b not in b"0123456789")
_ADDRESS: Final = re.compile(rb"[^@\s*]+@(?=.{4,64}$)(?:[A-Za-z0-9\x80-\xff-]+\.)+[A-Za-z\x80-\xff]{2,}", re.DOTALL)
_QUAD: Final = re.compile(rb"\d{1,3}(?:\.\d{1,3}){3}")
_GAPS: Final = b" \t-._/()"


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: no such method, or one that is not there yet.
    """
    if name == "Tokenize":
        raise ConfigError("Method Tokenize is not supported yet; Hash gives stable values that nobody can reverse.")
    for known in STRICTNESS:
        if known == name:
            return known
    raise ConfigError(f"There is no method {name}; there are {', '.join(STRICTNESS)}.")


def strictest(names: list[Method]) -> Method:
    """The one of several methods that says least."""
    return min(names, key=STRICTNESS.index)


def strictest_class(classes: list[ColumnClass]) -> ColumnClass:
    """The one of several classes that says least."""
    return min(classes, key=lambda known: STRICTNESS.index(known.method))


def replacement(how: Method, kind: str, value: bytes, key: bytes = b"") -> bytes | None:
    """What stands for `value`, which is of `kind`; None is SQL's NULL."""
    if how == "Null":
        return None
    if how == "Redact":
        return _label(kind)
    if how == "Hash":
        return _label(kind, _digest(kind, value, key))
    partial = _PARTIAL.get(kind)
    return (partial(value) if partial else b"") or _label(kind)


def _label(kind: str, digest: bytes = b"") -> bytes:
    name = _name(kind)
    return b"[%s:%s]" % (name, digest) if digest else b"[%s]" % name


@lru_cache(256)
def _name(kind: str) -> bytes:
    return re.sub(rb"[^A-Za-z0-9_-]", b"", kind.encode())[:_KIND_CHARS] or b"masked"


def _digest(kind: str, value: bytes, key: bytes) -> bytes:
    """Keyed, because the numbers of all cards can be tried; canonical, because a join must not depend on spaces."""
    if kind in _DIGITS_OF:
        value = value.translate(None, _NOT_DIGIT)
    elif kind == "IBAN":
        value = value.translate(None, _GAPS).upper()
    elif kind == "Email":
        value = value.lower()
    mac = hmac.new(key, kind.encode() + b"\x00" + value, hashlib.sha256).hexdigest()
    return mac[:_DIGEST_LETTERS].encode().translate(_TO_LETTERS)


def _card(value: bytes) -> bytes:
    """The last four digits, as PCI DSS 3.4.1 lets everybody see them."""
    digits = value.translate(None, _NOT_DIGIT)
    return b"**** **** **** " + digits[-4:] if 13 <= len(digits) <= 19 else b""


def _iban(value: bytes) -> bytes:
    """The country and the last two characters: the first ones name the bank."""
    text = value.translate(None, _GAPS).upper()
    return text[:2] + b"** **** **** " + text[-2:] if text[:2].isalpha() and 15 <= len(text) <= 34 else b""


def _phone(value: bytes) -> bytes:
    digits = value.translate(None, _NOT_DIGIT)
    return b"*** *** **" + digits[-2:] if 8 <= len(digits) <= 15 else b""


def _email(value: bytes) -> bytes:
    """The first character and the domain, where it is short enough to be one."""
    if not _ADDRESS.fullmatch(value):
        return b""
    local, _, domain = value.partition(b"@")
    return (local[:1] if local[:1].isalnum() else b"") + b"***@" + domain


def _ipv4(value: bytes) -> bytes:
    return b".".join(value.split(b".")[:2]) + b".*.*" if _QUAD.fullmatch(value) else b""


# Kinds that are not here keep nothing: of a number of nine digits four are too many, of a key every one is.
_PARTIAL: Final[dict[str, Callable[[bytes], bytes]]] = {
    "PaymentCard": _card,
    "IBAN": _iban,
    "Phone": _phone,
    "Email": _email,
    "IPv4": _ipv4,
}
