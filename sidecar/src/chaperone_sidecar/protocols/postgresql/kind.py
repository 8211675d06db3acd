"""Types, as a mask sees them: what may stand for a value of each, and what its binary format is made of.

OIDs below 10 000 are the server's own and the same everywhere (pg_type.dat); others are looked up. Held against a
server's pg_type by test_the_table_of_types_is_that_of_the_server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from chaperone_sidecar.protocols.postgresql.schema import Type

type Types = Callable[[int], Type | None]
# text: any text may stand there. texts: text between structural signs. other: nothing but NULL may.
type Kind = Literal["text", "json", "jsonb", "xml", "bytea", "texts", "money", "other"]

ANYARRAY: Final = 2277
RECORD: Final = 2249
MONEY: Final = 790
JSON: Final = 114
JSONB: Final = 3802
XML: Final = 142
BYTEA: Final = 17

TEXT_OIDS: Final = frozenset({19, 25, 705, 1042, 1043, 1790, 2275})  # name text unknown bpchar varchar refcursor …
# int2 int4 oid float4 bool "char" dates times uuid macaddr, references by OID: no detector but a policy's own finds
# anything in so few digits.
SMALL_OIDS: Final = frozenset(
    {16, 18, 21, 23, 26, 27, 28, 29, 700, 829, 1082, 1083, 1114, 1184, 1186, 1266, 2950, 2278}
    | {24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191}
)
# Array → element.
ARRAYS: Final = {
    22: 21, 30: 26, 143: 142, 199: 114, 271: 5069, 629: 628, 651: 650, 719: 718, 775: 774, 791: 790, 1000: 16,
    1001: 17, 1002: 18, 1003: 19, 1005: 21, 1006: 22, 1007: 23, 1008: 24, 1009: 25, 1010: 27, 1011: 28, 1012: 29,
    1013: 30, 1014: 1042, 1015: 1043, 1016: 20, 1017: 600, 1018: 601, 1019: 602, 1020: 603, 1021: 700, 1022: 701,
    1027: 604, 1028: 26, 1040: 829, 1041: 869, 1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1187: 1186, 1231: 1700,
    1263: 2275, 1270: 1266, 1561: 1560, 1563: 1562, 2201: 1790, 2207: 2202, 2208: 2203, 2209: 2204, 2210: 2205,
    2211: 2206, 2287: 2249, 2949: 2970, 2951: 2950, 3221: 3220, 3643: 3614, 3645: 3615, 3735: 3734, 3770: 3769,
    3807: 3802, 3905: 3904, 3907: 3906, 3909: 3908, 3911: 3910, 3913: 3912, 3927: 3926, 4073: 4072, 4090: 4089,
    4097: 4096, 4192: 4191, 5039: 5038, 6150: 4451, 6151: 4532, 6152: 4533, 6153: 4534, 6155: 4535, 6157: 4536,
}  # fmt: skip
# Range → bound, multirange → range.
RANGES: Final = {3904: 23, 3906: 1700, 3908: 1114, 3910: 1184, 3912: 1082, 3926: 20}
MULTIRANGES: Final = {4451: 3904, 4532: 3906, 4533: 3908, 4534: 3910, 4535: 3912, 4536: 3926}
VECTORS: Final = frozenset({22, 30})  # in text they are numbers with spaces, not arrays

MAX_CHAIN: Final = 8  # a domain over a domain over …
FIRST_USER_OID: Final = 10_000


def found(oid: int, types: Types) -> Type | None:
    """A type that is not the server's own, seen through domains; None for the server's own and for unknown ones.

    Raises:
        NotLookedUp: nobody asked the database for it yet.
    """
    return types(oid) if oid >= FIRST_USER_OID else None


def base(oid: int, types: Types) -> int:
    """The type below domains."""
    for _ in range(MAX_CHAIN):
        one = found(oid, types)
        if one is None or one.kind != "d" or not one.element:
            return oid
        oid = one.element
    return 0


def array_element(oid: int, types: Types) -> int:
    """The type of an array's elements; 0 for what is no array."""
    if oid in ARRAYS:
        return base(ARRAYS[oid], types)
    one = found(oid, types)
    return base(one.element, types) if one is not None and one.is_array else 0


def extension(one: Type) -> str:
    """The bare name of a base type, by which types of extensions are known: their OIDs differ everywhere."""
    return one.name.rpartition(".")[2] if one.kind == "b" and not one.is_array else ""


def kind(oid: int, types: Types) -> Kind:
    """What may stand for a value of a type, in text format.

    Raises:
        NotLookedUp: a type that nobody asked the database for yet.
    """
    oid = base(oid, types)
    if oid in TEXT_OIDS:
        return "text"
    if oid in _KINDS:
        return _KINDS[oid]
    if oid in VECTORS:
        return "other"
    element = array_element(oid, types)
    if element:
        of_elements = kind(element, types)
        return "texts" if of_elements == "text" else "money" if of_elements == "money" else "other"
    one = found(oid, types)
    if one is not None:
        return _EXTENSIONS.get(extension(one), "other")
    return "other"


_KINDS: Final[dict[int, Kind]] = {
    JSON: "json",
    JSONB: "jsonb",
    XML: "xml",
    BYTEA: "bytea",
    MONEY: "money",
    RECORD: "texts",
}
_EXTENSIONS: Final[dict[str, Kind]] = {"citext": "text", "hstore": "texts"}
