"""Values in binary format: the texts in them that a detector has to see.

Numbers and addresses are rendered (`scalar.py`); arrays, composites, ranges and what else is made of
values are walked, to a bounded depth. Nothing is written here: a value in which something is found becomes NULL.
Layouts are those of the server's `…send` functions.
"""

from __future__ import annotations

import struct
from typing import Final

from chaperone_sidecar.protocols.postgresql import kind
from chaperone_sidecar.protocols.postgresql.kind import Types
from chaperone_sidecar.protocols.postgresql.scalar import EXTENSIONS, SCALARS, Texts, malformed

MAX_DEPTH: Final = 12  # arrays of composites of arrays …; one level costs 12 bytes, so a value could have millions
MAX_DIMENSIONS: Final = 6  # the server's MAXDIM

_INT32: Final = struct.Struct(">i")
_UINT32: Final = struct.Struct(">I")


class UnknownBinary(Exception):
    """A type whose binary format is not known here."""

    def __init__(self, oid: int) -> None:
        super().__init__(f"type {oid}")
        self.oid = oid


class Reader:
    """Reads binary values of one session's database."""

    def __init__(self, types: Types, *, is_thorough: bool = False) -> None:
        """A reader.

        Args:
            types: gives types that are not the server's own.
            is_thorough: every number and day is rendered, and not only those long enough for our own detectors.
        """
        self._types = types
        self._is_thorough = is_thorough

    def texts(self, oid: int, value: bytes, depth: int = 0) -> Texts:
        """What a detector has to see of a value.

        Raises:
            ProtocolError: side=upstream; a value that is not of its type.
            UnknownBinary: a type in it that is not known, or deeper than `MAX_DEPTH`.
            NotLookedUp: a type in it that nobody asked the database for yet.
        """
        try:
            return self._texts(oid, value, depth)
        except (struct.error, ValueError, OverflowError, IndexError):
            raise malformed() from None

    def is_known(self, oid: int) -> bool:
        """Whether values of a type can be read, as far as the type alone tells."""
        types = self._types
        for _ in range(kind.MAX_CHAIN):
            oid = kind.base(oid, types)
            if oid in SCALARS or oid in kind.TEXT_OIDS or oid in (kind.JSON, kind.XML):
                return True
            if oid in kind.SMALL_OIDS or oid in kind.RANGES or oid in kind.MULTIRANGES:
                return True
            if oid in (kind.RECORD, kind.ANYARRAY):
                return True
            element = kind.array_element(oid, types)
            if element:
                oid = element
                continue
            one = kind.found(oid, types)
            if one is None:
                return False
            if one.kind in ("r", "m"):
                oid = one.element
                continue
            return one.kind in ("c", "e") or kind.extension(one) in EXTENSIONS
        return False

    def may_hide(self, oid: int) -> bool:
        """Whether a value may hold what cannot be seen in its bytes."""
        oid = kind.base(oid, self._types)
        if oid in kind.TEXT_OIDS or oid in (kind.JSON, kind.JSONB, kind.XML):
            return False
        if oid in kind.SMALL_OIDS:
            return self._is_thorough
        element = kind.array_element(oid, self._types)
        if element:
            return self.may_hide(element)
        one = kind.found(oid, self._types)
        return one is None or not (one.kind == "e" or kind.extension(one) in EXTENSIONS.keys() - {"cube"})

    def _texts(self, oid: int, value: bytes, depth: int) -> Texts:
        if oid in kind.TEXT_OIDS or oid in (kind.JSON, kind.XML):
            return [value]
        if oid in kind.SMALL_OIDS and not self._is_thorough:
            return []
        scalar = SCALARS.get(oid)
        if scalar is not None:
            return scalar(value, self._is_thorough)
        if depth >= MAX_DEPTH:
            raise UnknownBinary(oid)
        if oid == kind.RECORD:
            return self._composite(value, depth)
        if oid in kind.ARRAYS or oid == kind.ANYARRAY:
            return self._array(value, depth)
        if oid in kind.RANGES:
            return self._range(value, kind.RANGES[oid], depth)
        if oid in kind.MULTIRANGES:
            return self._multirange(value, kind.RANGES[kind.MULTIRANGES[oid]], depth)
        one = kind.found(oid, self._types)
        if one is None:
            raise UnknownBinary(oid)
        if one.is_array:
            return self._array(value, depth)
        if one.kind == "c":
            return self._composite(value, depth)
        if one.kind == "d":
            return self._texts(one.element, value, depth + 1)
        if one.kind == "e":
            return [value]
        if one.kind == "r":
            return self._range(value, one.element, depth)
        if one.kind == "m":
            bound = one.element
            inner = kind.found(bound, self._types)
            if inner is not None and inner.kind == "r":
                bound = inner.element
            return self._multirange(value, kind.RANGES.get(bound, bound), depth)
        extension = EXTENSIONS.get(kind.extension(one))
        if extension is None:
            raise UnknownBinary(oid)
        return extension(value, self._is_thorough)

    def _array(self, value: bytes, depth: int) -> Texts:
        dimensions, _, element = struct.unpack_from(">iiI", value)
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise malformed()
        count = 1 if dimensions else 0
        for dimension in range(dimensions):
            (size,) = _INT32.unpack_from(value, 12 + 8 * dimension)
            if size < 0:
                raise malformed()
            count *= size
        place = 12 + 8 * dimensions
        if count > (len(value) - place) // 4:
            raise malformed()
        out: Texts = []
        for _ in range(count):
            place = self._item(element, value, place, depth, out)
        if place != len(value):
            raise malformed()
        return out

    def _composite(self, value: bytes, depth: int) -> Texts:
        (count,) = _INT32.unpack_from(value)
        if not 0 <= count <= (len(value) - 4) // 8:
            raise malformed()
        out: Texts = []
        place = 4
        for _ in range(count):
            (oid,) = _UINT32.unpack_from(value, place)
            place = self._item(oid, value, place + 4, depth, out)
        if place != len(value):
            raise malformed()
        return out

    def _range(self, value: bytes, bound: int, depth: int) -> Texts:
        flags = value[0]
        bounds = 0 if flags & 0x01 else (flags & 0x28 == 0) + (flags & 0x50 == 0)
        out: Texts = []
        place = 1
        for _ in range(bounds):
            place = self._item(bound, value, place, depth, out)
        if place != len(value):
            raise malformed()
        return out

    def _multirange(self, value: bytes, bound: int, depth: int) -> Texts:
        (count,) = _INT32.unpack_from(value)
        if not 0 <= count <= (len(value) - 4) // 5:
            raise malformed()
        out: Texts = []
        place = 4
        for _ in range(count):
            (size,) = _INT32.unpack_from(value, place)
            end = place + 4 + size
            if size < 1 or end > len(value):
                raise malformed()
            out += self._range(value[place + 4 : end], bound, depth + 1)
            place = end
        if place != len(value):
            raise malformed()
        return out

    def _item(self, oid: int, value: bytes, place: int, depth: int, out: Texts) -> int:
        """Read one value with its length; say where the next begins."""
        size: int = _INT32.unpack_from(value, place)[0]
        place += 4
        if size == -1:
            return place
        end = place + size
        if size < 0 or end > len(value):
            raise malformed()
        out += self._texts(oid, value[place:end], depth + 1)
        return end
