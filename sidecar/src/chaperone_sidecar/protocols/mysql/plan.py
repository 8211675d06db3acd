"""What masking needs to know of a text: its tables, where its columns stand, and whether a mask can be kept.

A server says of each column of a result which table it is of (`org_table`), but only where the column stands for itself
in a plain SELECT: behind a view, a derived table or a CTE it tells another name, or none. So where tables have columns
that are masked by name, only these are passed: a plain SELECT that names such columns in its list and nowhere else, and
anything that does not name them at all. Everything else is `unmaskable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import translate
from re import Pattern, compile
from typing import Literal

import msgspec

from chaperone_sidecar.masking.rule import Masks
from chaperone_sidecar.protocols.mysql.context import folded_column

type StatementKind = Literal["select", "insert", "update", "delete"]


class Output(msgspec.Struct, frozen=True, gc=False):
    """One entry of a SELECT's list: a column for itself, `*`, or an expression (neither)."""

    column: str = ""
    is_star: bool = False


class Shape(msgspec.Struct, frozen=True, gc=False):
    """Where tables and columns stand in a statement. Names of columns are lower-case and without their tables."""

    kind: StatementKind
    tables: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()  # of its tables, lower-case, without their schemas
    own_names: frozenset[str] = frozenset()  # of CTEs and aliases
    references: int = 0
    has_where: bool = False
    limit: int | None = None
    locks: bool = False
    reads_columns: bool = False
    has_conflict: bool = False
    has_returning: bool = False
    is_plain: bool = False  # one SELECT, of tables alone
    outputs: tuple[Output, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()  # of columns for themselves: alias, column
    mentioned: frozenset[str] = frozenset()  # columns elsewhere than for themselves in the list
    has_star: bool = False  # anywhere
    is_distinct: bool = False
    has_ordinals: bool = False  # ORDER BY 2
    chooses: bool = False  # an index or a partition to read
    joins_by_name: frozenset[str] = frozenset()  # columns of USING; "*" for NATURAL


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What masking needs to know of a whole text."""

    tables: tuple[str, ...] = ()
    readings: tuple[Shape, ...] = ()
    unmaskable: str = ""  # why no mask could be kept, where tables with masked columns are concerned
    blind: str = ""  # why nobody knows what it shows, whatever tables it names
    is_apart: bool = False  # what the client is shown are not the rows of its query


class Result(msgspec.Struct, frozen=True, gc=False):
    """How the columns of one text's results are masked."""

    outputs: tuple[Output, ...] = ()
    tables: tuple[str, ...] = ()
    is_checked: bool = False  # a column without an origin must be one of the list's expressions
    is_opaque: bool = False  # nobody knows where a column comes from


class Columns:
    """Which columns of which tables are masked by name."""

    def __init__(self, masks: Masks) -> None:
        names = [name for rule in masks.rules for name in rule.columns]
        names += [name for entry in masks.classified for name in entry.columns]
        self._globs: list[tuple[Pattern[str], Pattern[str]]] = []
        for name in names:
            schema, table, column = name.split(".")[-3:]
            self._globs.append((_glob(f"{schema}.{table}"), _glob(folded_column(column))))

    def touched(self, tables: Sequence[str]) -> tuple[str, ...]:
        """Those of the tables that have masked columns, or may have."""
        return tuple(table for table in tables if any(glob.fullmatch(table) for glob, _ in self._globs))

    def has(self, tables: Sequence[str], column: str) -> bool:
        """Whether a column of this name, in any spelling, is masked in one of the tables."""
        name = folded_column(column)
        return any(
            column_glob.fullmatch(name) and any(table_glob.fullmatch(table) for table in tables)
            for table_glob, column_glob in self._globs
        )

    def check(self, plan: Plan) -> str:
        """Why a text's masks cannot be kept; "" where they can.

        Of a text that touches no table with masked columns nothing is asked.
        """
        if plan.blind and self._globs:
            return plan.blind
        touched = self.touched(plan.tables)
        if not touched:
            return ""
        if plan.unmaskable:
            return plan.unmaskable
        for shape in plan.readings:
            found = self._check(shape, self.touched(shape.tables), is_alone=len(plan.readings) == 1)
            if found:
                return found
        return ""

    def _check(self, shape: Shape, touched: tuple[str, ...], *, is_alone: bool) -> str:
        if not touched:
            return ""
        for column in sorted(shape.mentioned):
            if self.has(touched, column):
                return f'column "{column}" is masked, so it may stand only for itself in the list of a plain SELECT.'
        named = {output.column for output in shape.outputs if output.column and self.has(touched, output.column)}
        mentioned = {folded_column(one) for one in shape.mentioned}
        for alias, column in shape.aliases:
            if column in named and folded_column(alias) in mentioned:
                return f'"{alias}" is the masked column "{column}", so nothing may be decided by it.'
        if not is_alone and (shape.has_star or named):
            return "masked columns are read by a statement that is sent alone, so that each result is known to be its."
        if not shape.is_plain and (shape.has_star or named):
            return "masked columns can be read by a plain SELECT alone, without subqueries, WITH or UNION."
        if "*" in shape.joins_by_name or any(self.has(touched, column) for column in shape.joins_by_name):
            return "a masked column may not join tables; write the columns of the join in ON."
        if (named or shape.has_star) and shape.is_distinct:
            return "DISTINCT decides by the values of masked columns."
        if (named or shape.has_star) and shape.has_ordinals:
            return "ORDER BY or GROUP BY a number may mean a masked column; write the column's name."
        if shape.chooses:
            return "an index or a partition that is named may put rows in the order, or the group, of a masked column."
        if shape.has_returning and (shape.has_star or named):
            return "RETURNING would show masked columns; leave it out."
        return ""

    def may_be_redacted(self, plan: Plan) -> bool:
        """Whether a text does no more than to show columns of one table, so that nothing is told where all are NULL."""
        if len(plan.readings) != 1 or plan.blind or plan.unmaskable:
            return False
        shape = plan.readings[0]
        decides = shape.mentioned or shape.is_distinct or shape.has_ordinals
        return shape.is_plain and shape.references == 1 and len(plan.tables) == 1 and not decides

    def result(self, plan: Plan) -> Result:
        """How the results of a text that passed `check` are masked."""
        touched = self.touched(plan.tables)
        if not touched or len(plan.readings) != 1 or plan.is_apart:
            return Result(tables=touched)
        return Result(plan.readings[0].outputs, touched, is_checked=True)


def _glob(pattern: str) -> Pattern[str]:
    return compile(translate(pattern))
