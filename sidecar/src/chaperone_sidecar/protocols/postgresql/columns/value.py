"""What is known of one expression's value: where it comes from, its type, whether computing it may raise a fault."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from chaperone_sidecar.protocols.postgresql import kind as kinds
from chaperone_sidecar.protocols.postgresql.kind import BYTEA, JSON, JSONB

NOTHING: Final[frozenset[str]] = frozenset()

# OIDs of the server's own types (pg_type.dat), as in `kind`; they never change.
TEXT: Final = 25
VARCHAR: Final = 1043
NAME: Final = 19
PADDED: Final = 1042  # char(n): as text it loses its blanks
INTEGER: Final = 23
BIGINT: Final = 20
BOOLEAN: Final = 16
TYPES: Final = {
    "text": TEXT, "varchar": VARCHAR, "bpchar": PADDED, "name": NAME, "char": 18, "int2": 21, "int4": INTEGER,
    "int8": BIGINT, "bool": BOOLEAN, "numeric": 1700, "float4": 700, "float8": 701, "date": 1082, "time": 1083,
    "timestamp": 1114, "timestamptz": 1184, "interval": 1186, "uuid": 2950, "json": JSON, "jsonb": JSONB,
    "bytea": BYTEA, "inet": 869, "oid": 26,
}  # fmt: skip
# Without "char": before 16 its upper half became text that is no valid text, on which all functions of text fail.
TEXTS: Final = frozenset({TEXT, VARCHAR, NAME, PADDED})
INTEGERS: Final = frozenset({21, INTEGER, BIGINT})
# Base types whose values every function of `total` takes without a fault. Arrays, json and xml are not among them.
SCALARS: Final = TEXTS | frozenset(
    {BOOLEAN, BYTEA, 18, 20, 21, 23, 26, 650, 700, 701, 829, 869, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950}
)
# Arrays of such: they become jsonb without a fault, but putting two together may raise one.
ARRAYS: Final = frozenset(array for array, element in kinds.ARRAYS.items() if element in SCALARS)
# From the one to any of the others every value has a counterpart, which is written with as many digits.
WIDENING: Final = {
    21: frozenset({INTEGER, BIGINT, 1700, 700, 701}),
    INTEGER: frozenset({BIGINT, 1700, 701}),
    BIGINT: frozenset({1700}),
}


class Value(msgspec.Struct, frozen=True, gc=False):
    """The value of an expression, of a column, of a whole row.

    `is_fixed`: a literal or a parameter, the same for all rows. `literal`: the number or text of a literal. `is_pure`:
    to compute it raises no fault, whatever the columns hold, and has no effect. `growth`: how many values the size of
    this one may add up. `fields`: the columns of a row, where they are known.
    """

    origins: frozenset[str] = NOTHING
    type: int = 0
    is_direct: bool = False
    is_opaque: bool = False
    is_fixed: bool = False
    is_pure: bool = True
    growth: int = 1
    literal: int | str | None = None
    fields: tuple[Item, ...] | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """A named column of a row."""

    name: str
    value: Value


EMPTY: Final = Value()
OPAQUE: Final = Value(is_opaque=True, is_pure=False)


def origins(values: Iterable[Value]) -> frozenset[str]:
    """All the base columns that values come from."""
    return NOTHING.union(*[value.origins for value in values])


def derived(values: Iterable[Value], *, of_type: int = 0, is_pure: bool = False, growth: int = 1) -> Value:
    """A value computed from others."""
    values = list(values)
    return Value(
        origins=origins(values),
        type=of_type,
        is_opaque=any(value.is_opaque for value in values),
        is_pure=is_pure and all(value.is_pure for value in values),
        growth=growth,
    )


def row(items: Iterable[Item]) -> Value:
    """The value of a whole row."""
    fields = tuple(items)
    made = derived([item.value for item in fields], is_pure=True, growth=sum(item.value.growth for item in fields))
    return msgspec.structs.replace(made, fields=fields)


def is_mergeable(values: Iterable[Value]) -> bool:
    """Whether values of these types become one type without a fault."""
    types = {value.type for value in values if value.type or not value.is_fixed}
    if 0 in types:
        return len(types) == 1 and sum(not value.is_fixed for value in values) == 1
    if len(types) <= 1 or types <= TEXTS - {PADDED}:
        return True
    return any(all(kind == target or target in WIDENING.get(kind, ()) for kind in types) for target in types)


def merged(values: list[Value]) -> Value:
    """One of several values: the branches of UNION, COALESCE, CASE. The only one stays as it is."""
    if len(values) == 1:
        return values[0]
    types = {value.type for value in values if not value.is_fixed}
    kind = types.pop() if len(types) == 1 else TEXT if types and types <= TEXTS else 0
    return derived(values, of_type=kind, is_pure=True, growth=max((value.growth for value in values), default=1))
