"""One column of an answer: what the client gets for each of its values.

A client must be able to decode whatever it gets, so text stands only where the type takes any text; elsewhere a value
that is masked is NULL. README.md's table says it type by type. `RowMask` and `CopyMask` find the values.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.masking.engine import ANY_FILTER
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import OPAQUE, ColumnClass
from chaperone_sidecar.protocols.postgresql import kind, scalar
from chaperone_sidecar.protocols.postgresql.binary import Reader, UnknownBinary
from chaperone_sidecar.protocols.postgresql.kind import Kind, Types

type Setting = Literal["Deny", "Redact", "Allow"]

NULL_CELL: Final = b"\xff\xff\xff\xff"

_IN_PLACE: Final = frozenset({"text", "json", "jsonb", "xml"})
_OCTAL: Final = re.compile(rb"\\(?:([0-3][0-7]{2})|\\)")
_TAG: Final = re.compile(rb"<[^>]*>?|>")
_ATTRIBUTE: Final = re.compile(rb"""("|')(?:(?!\1).)*\1""", re.DOTALL)
_NOT_STRUCTURE: Final = re.compile(rb'[^{}(),"\\=>]+')
_MARKUP: Final = ((b"&", b"&amp;"), (b"<", b"&lt;"), (b">", b"&gt;"))


class Column:
    """Masks values of one column.

    Attributes:
        is_classified: every value is masked, whatever it is.
        constant: of a classified column, the cell (length and bytes) that stands for each value, if that is one.
        hides: values may hold what cannot be seen in the raw bytes, so each has to be read.
        is_inert: no detector of ours can find anything in a value.
        is_read: something found makes the value NULL; if not, it is replaced where it stands.
    """

    def __init__(
        self,
        masker: Masker,
        reader: Reader,
        types: Types,
        name: str,
        oid: int,
        is_binary: bool,
        column_class: ColumnClass | None,
        unmaskable: Setting,
    ) -> None:
        """A column; `oid` 0 is a type that nobody told.

        Raises:
            Unmaskable: the column is opaque, or its binary format is not known, and policy denies that.
            NotLookedUp: a type that nobody asked the database for yet.
        """
        self._masker = masker
        self._reader = reader
        self._oid = kind.base(oid, types)
        self._name = name
        self._unmaskable = unmaskable
        self._is_binary = is_binary
        self._kind: Kind = kind.kind(oid, types) if oid else "other" if is_binary else "text"
        if column_class == OPAQUE and unmaskable != "Redact":
            if unmaskable == "Deny":
                raise Unmaskable(
                    f'Column "{name}" may derive from a classified column, which the gateway cannot tell; name the '
                    "columns you need, or ask the owner of the policy."
                )
            column_class = None
        self.is_read = self._kind in ("other", "money") or (is_binary and self._kind not in _IN_PLACE)
        self.hides = False
        if column_class is None and masker.has_detectors and not is_binary:
            self.hides = self._kind in ("money", "bytea")
        elif column_class is None and masker.has_detectors and self.is_read:
            if oid and not reader.is_known(self._oid):
                self.hides = unmaskable != "Deny"
                if unmaskable == "Redact":
                    column_class = OPAQUE
                elif unmaskable == "Deny":
                    raise self._unknown(oid)
            else:
                self.hides = not oid or reader.may_hide(self._oid)
        self.is_inert = self._oid in kind.SMALL_OIDS and not masker.has_patterns
        self._class = column_class
        self.is_classified = column_class is not None
        self.constant: bytes | None = None
        if column_class is not None:
            self.hides = False
            if self._is_constant(column_class):
                self.constant = cell(self.classified(b""))

    def _is_constant(self, column_class: ColumnClass) -> bool:
        return column_class.method in ("Redact", "Null") or self._kind in ("other", "money", "texts")

    def classified(self, value: bytes) -> bytes | None:
        """What stands for a value of a classified column."""
        if self._kind in ("other", "money", "texts") or self._class is None:
            return None
        if self._kind == "bytea" and not self._is_binary:
            masked = self._masker.mask_value(_plain_bytea(value), self._class)
            return None if masked is None else b"\\x" + masked.hex().encode()
        if self._kind == "jsonb" and self._is_binary:
            value = value[1:]
        masked = self._masker.mask_value(value, self._class)
        if masked is None:
            return None
        if self._kind == "xml":
            for sign, entity in _MARKUP:
                masked = masked.replace(sign, entity)
        elif self._kind in ("json", "jsonb"):
            masked = _json_text(masked)
            if self._kind == "jsonb" and self._is_binary:
                masked = b"\x01" + masked
        return masked

    def mask(self, value: bytes, filters: int = ANY_FILTER) -> bytes | None:
        """What the client gets for a value; the same object where nothing is found.

        Args:
            value: the value.
            filters: of the masker's filters those that hit the value's bytes, as far as that is known.

        Raises:
            ProtocolError: side=upstream; a value that is not of its type.
            Unmaskable: a value that cannot be read, and policy denies that.
            NotLookedUp: a type in the value that nobody asked the database for yet.
        """
        if self._class is not None:
            return self.classified(value)
        mask_found = self._masker.mask_found
        if self.is_read:
            texts = self.read(value)
            if texts is None:
                return None
            if self.hides:  # what is in it cannot be seen in its bytes
                filters = ANY_FILTER
            for text in texts:
                if mask_found(text, filters) != text:
                    return None
            return value
        if self._kind == "jsonb" and self._is_binary:
            (text,) = scalar.SCALARS[kind.JSONB](value, False)
            masked = self._json(text, filters)
            return value if masked is text else None if masked is None else b"\x01" + masked
        if self._kind in ("json", "jsonb"):
            return self._json(value, filters)
        if self._kind == "bytea" and any(mask_found(text, ANY_FILTER) != text for text in self.read(value) or ()):
            return None
        masked = mask_found(value, filters)
        if masked is None or masked == value:
            return value if masked is not None else None
        if self._kind == "bytea" and not _is_bytea(masked):
            return None
        if self._kind == "xml" and _markup(masked) != _markup(value):
            return None
        if self._kind == "texts" and _structure(masked) != _structure(value):
            return None
        return masked

    def read(self, value: bytes) -> list[bytes] | None:
        """What a detector has to see of a value; None if that is not known and it has to be NULL.

        Raises:
            ProtocolError: side=upstream; a value that is not of its type.
            Unmaskable: a value that cannot be read, and policy denies that.
            NotLookedUp: a type in the value that nobody asked the database for yet.
        """
        if not self._is_binary:
            if self._kind == "bytea":  # hexadecimal is masked where it stands; the old form hides NUL and UTF-8
                return [] if value.startswith(b"\\x") else scalar.bytes_texts(_plain_bytea(value))
            return [value, *scalar.money_texts(value)] if self._kind == "money" else [value]
        if not self._oid:
            texts = scalar.guesses(value)
            if texts is not None:
                return texts
        else:
            try:
                return self._reader.texts(self._oid, value)
            except UnknownBinary as unknown:
                if self._unmaskable == "Deny":
                    raise self._unknown(unknown.oid) from None
        if self._unmaskable == "Deny":
            raise self._unknown(0)
        return None if self._unmaskable == "Redact" else scalar.bytes_texts(value)

    def _json(self, value: bytes, filters: int) -> bytes | None:
        text = value.strip()
        masked = self._masker.mask_found(text, filters)
        if masked is None or masked == text:
            return value if masked is not None else None
        if _is_json(masked):
            return masked
        quoted = _json_text(masked)
        return quoted if text[:1] not in (b"{", b"[") and len(quoted) == len(masked) + 2 else b'"[masked]"'

    def _unknown(self, oid: int) -> Unmaskable:
        what = f"a type (OID {oid}) whose" if oid else "a type that is not known, so its"
        return Unmaskable(
            f'Column "{self._name}" has {what} binary format the gateway cannot read to mask it; ask for the text '
            "format, or cast the column to text."
        )


def cell(value: bytes | None) -> bytes:
    """A value with its length, as rows have it."""
    return NULL_CELL if value is None else len(value).to_bytes(4, "big") + value


def _json_text(text: bytes) -> bytes:
    return msgspec.json.encode(text.decode("utf-8", "replace"))


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _structure(literal: bytes) -> bytes:
    """What makes an array, a composite or an hstore of texts; masking must not touch it."""
    return _NOT_STRUCTURE.sub(b"", literal)


def _plain_bytea(value: bytes) -> bytes:
    if not value.startswith(b"\\x"):
        return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)) if match[1] else b"\\", value)
    try:
        return bytes.fromhex(value[2:].decode("ascii"))
    except ValueError:
        return value


def _is_bytea(masked: bytes) -> bool:
    """Whether masking has left a bytea literal in hexadecimal."""
    return masked.startswith(b"\\x") and len(masked) % 2 == 0 and re.fullmatch(rb"[0-9a-fA-F]*", masked[2:]) is not None


def _markup(text: bytes) -> list[bytes]:
    """The tags of XML without the values in them: masking must not touch them, nor make new ones."""
    return [_ATTRIBUTE.sub(b"", tag) for tag in _TAG.findall(text)]
