"""Functions, operators and casts that are total.

Whatever a value is, they neither fail nor change how many rows there are; what they give is NULL only where a value is,
and is as long as the values are long: the length of a row shows, for gateway and server have limits. Only through
these may a column pass without deciding; LINEAGE.md says why each is here. A value must not grow without bound either:
`growth` counts how many values one may hold together. What is not total is None here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from chaperone_sidecar.protocols.postgresql.columns.value import (
    ARRAYS,
    INTEGER,
    NAME,
    SCALARS,
    TEXT,
    TEXTS,
    VARCHAR,
    WIDENING,
    Value,
    derived,
    is_mergeable,
)
from chaperone_sidecar.protocols.postgresql.kind import BYTEA, JSON, JSONB
from chaperone_sidecar.protocols.postgresql.relations import words

MAX_GROWTH: Final = 64  # of a value put together: a thousand such are still no gigabyte
_BINARIES: Final = TEXTS | {BYTEA}

type Rule = Callable[[Sequence[Value]], Value | None]

# These build values of any size from small ones. What is put together with their result may fail by its length.
GROWING: Final = words(
    """repeat lpad rpad format string_agg array_agg array_fill array_append array_prepend array_cat array_to_string
    regexp_replace overlay encode convert_to convert_from json_agg jsonb_agg json_object_agg jsonb_object_agg xmlagg
    xmlforest xpath jsonb_pretty to_char quote_literal quote_nullable quote_ident replace jsonb_set jsonb_insert"""
)


def _is_text(value: Value) -> bool:
    return value.type in TEXTS or (value.is_fixed and value.type == 0)


def _are_scalars(values: Sequence[Value], also: frozenset[int] = frozenset()) -> bool:
    for value in values:
        if value.fields is not None:
            if not _are_scalars([item.value for item in value.fields], also):
                return False
        elif not (value.is_fixed or value.type in SCALARS or value.type in also):
            return False
    return True


def _sum(values: Sequence[Value], of_type: int) -> Value | None:
    growth = sum(value.growth for value in values)
    if growth > MAX_GROWTH:
        return None
    return derived(values, of_type=of_type, is_pure=True, growth=growth)


def _text(values: Sequence[Value]) -> Value | None:
    """Of one text another one, of as many letters."""
    if len(values) != 1 or not _is_text(values[0]):
        return None
    return derived(values, of_type=TEXT, is_pure=True, growth=values[0].growth)


def _size(values: Sequence[Value]) -> Value | None:
    if len(values) != 1 or not (_is_text(values[0]) or values[0].type == BYTEA):
        return None
    return derived(values, of_type=INTEGER, is_pure=True)


def _cut(values: Sequence[Value]) -> Value | None:
    """`left`: of the length that a fixed number says, lest a column's number shows as a length."""
    if len(values) != 2 or not _is_text(values[0]) or not values[1].is_fixed:
        return None
    return derived(values, of_type=TEXT, is_pure=True, growth=values[0].growth)


def _part(values: Sequence[Value]) -> Value | None:
    """`substr`: a negative length is a fault, unless the text is NULL; a text as second argument is a pattern."""
    if len(values) not in {2, 3} or not _is_text(values[0]) or not isinstance(values[1].literal, int):
        return None
    if len(values) == 3 and not (isinstance(values[2].literal, int) and values[2].literal >= 0):
        return None
    return derived(values, of_type=TEXT, is_pure=True, growth=values[0].growth)


def _concat(values: Sequence[Value]) -> Value | None:
    return _sum(values, TEXT)


def _joined(values: Sequence[Value]) -> Value | None:
    """`||`: of texts, or of a text and a scalar; of arrays and jsonb it may fail."""
    if not any(value.type in TEXTS or isinstance(value.literal, str) for value in values):
        return None
    if not all(_is_text(value) or value.is_fixed or value.type in SCALARS - {BYTEA} for value in values):
        return None
    return _sum(values, TEXT)


def _json(of_type: int, also: frozenset[int]) -> Rule:
    """To jsonb an array of json may fail, json itself too; to json nothing does."""

    def rule(values: Sequence[Value]) -> Value | None:
        if of_type == JSONB and not _are_scalars(values, also):
            return None
        return _sum(values, of_type)

    return rule


def _object(of_type: int, also: frozenset[int]) -> Rule:
    """A key that is NULL is a fault, so every key must be a literal."""
    inner = _json(of_type, also)

    def rule(values: Sequence[Value]) -> Value | None:
        if len(values) % 2 or any(not isinstance(key.literal, str) for key in values[::2]):
            return None
        return inner(values)

    return rule


def _aggregate(of_type: int, most: int = 1) -> Rule:
    def rule(values: Sequence[Value]) -> Value | None:
        if len(values) != most or not _are_scalars(values):
            return None
        return derived(values, of_type=of_type, is_pure=True, growth=MAX_GROWTH)

    return rule


def _json_aggregate(of_type: int) -> Rule:
    def rule(values: Sequence[Value]) -> Value | None:
        if len(values) != 1 or (of_type == JSONB and not _are_scalars(values, frozenset({JSONB}) | ARRAYS)):
            return None
        return derived(values, of_type=of_type, is_pure=True, growth=MAX_GROWTH)

    return rule


def _count(values: Sequence[Value]) -> Value | None:
    return derived(values, of_type=20, is_pure=True) if len(values) <= 1 else None


def _one_of(values: Sequence[Value]) -> Value | None:
    """`first_value`: one of the values, as it stands, and not for what it is."""
    if len(values) != 1 or values[0].type not in SCALARS:
        return None
    return derived(values, of_type=values[0].type, is_pure=True, growth=values[0].growth)


def _neighbour(values: Sequence[Value]) -> Value | None:
    """`lag`: any number of rows away, but the same number for all."""
    if not 1 <= len(values) <= 3 or values[0].type not in SCALARS or (len(values) > 1 and not values[1].is_fixed):
        return None
    if len(values) == 3 and not is_mergeable([values[0], values[2]]):
        return None
    return derived(values, of_type=values[0].type, is_pure=True, growth=max(value.growth for value in values))


def _nth(values: Sequence[Value]) -> Value | None:
    is_literal = len(values) == 2 and isinstance(values[1].literal, int) and values[1].literal > 0
    return _one_of(values[:1]) if is_literal else None


def _nothing(values: Sequence[Value]) -> Value | None:
    return derived((), of_type=20, is_pure=True) if not values else None


def _digest(values: Sequence[Value]) -> Value | None:
    if len(values) != 1 or not (_is_text(values[0]) or values[0].type == BYTEA):
        return None
    return derived(values, of_type=TEXT, is_pure=True)


_CUT: Final = frozenset({TEXT, VARCHAR, NAME})
_JSONB_TAKES: Final = frozenset({JSONB}) | ARRAYS
_RULES: Final[dict[str, Rule]] = {
    "lower": _text, "upper": _text, "initcap": _text, "reverse": _text,
    "left": _cut, "right": _cut, "substr": _part, "substring": _part,
    "length": _size, "char_length": _size, "character_length": _size, "octet_length": _size,
    "concat": _concat, "concat_ws": _concat, "md5": _digest,
    "to_json": _json(JSON, SCALARS), "row_to_json": _json(JSON, SCALARS), "json_build_array": _json(JSON, SCALARS),
    "to_jsonb": _json(JSONB, _JSONB_TAKES), "jsonb_build_array": _json(JSONB, _JSONB_TAKES),
    "json_build_object": _object(JSON, SCALARS), "jsonb_build_object": _object(JSONB, _JSONB_TAKES),
    "array_agg": _aggregate(0), "string_agg": _aggregate(TEXT, 2),
    "json_agg": _json_aggregate(JSON), "jsonb_agg": _json_aggregate(JSONB),
    "count": _count, "any_value": _one_of, "first_value": _one_of, "last_value": _one_of, "nth_value": _nth,
    "lag": _neighbour, "lead": _neighbour,
    "row_number": _nothing, "rank": _nothing, "dense_rank": _nothing,
}  # fmt: skip
NAMES: Final = frozenset(_RULES)


def call(name: str, values: Sequence[Value]) -> Value | None:
    """The value of a call of a function of `pg_catalog`, if it is total for these arguments."""
    rule = _RULES.get(name)
    return None if rule is None else rule(values)


def operator(name: str, values: Sequence[Value]) -> Value | None:
    """The value of an operator of `pg_catalog`, if it is total for these operands."""
    return _joined(values) if name == "||" and len(values) == 2 else None


def array(values: Sequence[Value]) -> Value | None:
    """ARRAY[…]: of scalars; of arrays it fails when they differ in size."""
    return _sum(values, 0) if _are_scalars(values) and is_mergeable(values) else None


def cast(value: Value, of_type: int, *, has_modifier: bool) -> Value | None:
    """A cast of that value, if it is total: to text, cut off where it is too long, to the same type, or a wider one.

    Not to char(n): back to text it would be shorter by its blanks.
    """
    if of_type in _CUT or (not has_modifier and value.type and of_type == value.type):
        if value.is_fixed:
            return Value(type=of_type, is_fixed=True, literal=value.literal)
        return derived([value], of_type=of_type, is_pure=True, growth=value.growth)
    if not has_modifier and of_type in WIDENING.get(value.type, ()):
        return derived([value], of_type=of_type, is_pure=True)
    return None
