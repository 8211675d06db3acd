"""Names as a query sees them: the relations of its FROM, their columns, and those of the queries around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from chaperone_sidecar.protocols.postgresql.columns.value import EMPTY, Item, Value, derived, row

# Columns that every table has: where a row stands and who wrote it, never what it holds.
SYSTEM_COLUMNS: Final = frozenset({"ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"})


class Source:
    """One relation of a FROM.

    `qualified` is its name with schema, if it may be called that. `open` stands for columns that are not known: any
    name may be one of them.
    """

    __slots__ = ("columns", "index", "is_table", "name", "open", "qualified", "whole")

    def __init__(
        self,
        name: str,
        columns: tuple[Item, ...],
        *,
        qualified: str = "",
        is_table: bool = False,
        unknown: Value | None = None,
    ) -> None:
        self.name = name
        self.columns = columns
        self.qualified = qualified
        self.is_table = is_table
        self.open = unknown
        self.whole: Value | None = None
        self.index: dict[str, Value] = {}
        for item in columns:
            known = self.index.get(item.name)
            self.index[item.name] = item.value if known is None else derived([known, item.value], is_pure=True)

    def find(self, name: str) -> Value | None:
        """The column of that name."""
        found = self.index.get(name)
        if found is None and self.is_table and name in SYSTEM_COLUMNS:
            return EMPTY
        return found

    def as_row(self) -> Value:
        """The whole row."""
        if self.open is not None:
            return derived([self.open, *(item.value for item in self.columns)])
        if self.whole is None:
            self.whole = row(self.columns)
        return self.whole


class Entry(NamedTuple):
    """A source as it is seen: by its name, and its columns without it."""

    source: Source
    has_name: bool = True
    has_columns: bool = True


class Scope:
    """What the names of one query may mean; `parent` is that of the query around it."""

    __slots__ = ("entries", "parent")

    def __init__(self, entries: Iterable[Entry] = (), parent: Scope | None = None) -> None:
        self.entries = list(entries)
        self.parent = parent

    def _levels(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def own_column(self, name: str) -> Value | None:
        """A column of this query's own FROM."""
        found = [
            value for entry in self.entries if entry.has_columns and (value := entry.source.find(name)) is not None
        ]
        if len(found) > 1:
            # System columns are no reason to be ambiguous for us; the server refuses the rest.
            return derived(found, is_pure=True)
        return found[0] if found else None

    def column(self, name: str) -> Value | None:
        """A column by its bare name, or a whole row; None if nothing has that name."""
        unknown: list[Value] = []
        found: Value | None = None
        for level in self._levels():
            found = level.own_column(name)
            if found is not None:
                break
            unknown += [e.source.open for e in level.entries if e.has_columns and e.source.open is not None]
        if found is None:
            source = self.source(name)
            found = None if source is None else source.as_row()
        if unknown:
            return derived([*unknown, *([found] if found is not None else [])])
        return found

    def source(self, name: str, schema: str = "") -> Source | None:
        """The relation of that name, the innermost one."""
        full = f"{schema}.{name}"
        for level in self._levels():
            for entry in level.entries:
                if not entry.has_name:
                    continue
                if (entry.source.qualified == full) if schema else (entry.source.name == name):
                    return entry.source
        return None
