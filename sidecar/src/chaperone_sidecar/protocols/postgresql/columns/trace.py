"""The state of one `lineage.trace`: what decides so far, what is not resolved, and how much work is left.

Handlers are registered by node type, as in `walk`: `expression` for what has a value, `query` for what gives rows. A
node type without one ends the trace with `Unresolved`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from chaperone_sidecar.protocols.postgresql.columns.scope import Scope
from chaperone_sidecar.protocols.postgresql.columns.value import Item, Value
from chaperone_sidecar.protocols.postgresql.schema import Schema

type Node = dict[str, Any]
type Queries = dict[str, Query]  # the WITH queries in sight, by name
type Expression = Callable[[Trace, Any, Scope], Value]
type Rows = Callable[[Trace, Any, Queries, Scope | None], tuple[Item, ...]]

MAX_DEPTH: Final = 80  # nested expressions and queries; each level is a handful of Python's 1000 frames
MAX_WORK: Final = 40_000  # nodes visited and columns copied; 60 ms. A text of 32 KiB without tricks stays below
MAX_VIEWS: Final = 16  # views over views
MAX_COLUMNS: Final = 1664  # the server's limit on a target list


class Unresolved(Exception):
    """The statement, or the view, cannot be traced; the message is one sentence."""


class Exhausted(Unresolved):
    """It takes too much work; no part may go on."""


class Trace:
    """One statement being traced.

    `scope_queries` are the WITH queries in sight of the expression at hand. `decide` notes columns that decide; inside
    a view (`depth_of_views` over 0) it notes nothing, for the view's text is its owner's. `is_measured`: the sizes of
    what the statement reads and writes are told (EXPLAIN ANALYZE), so every value in it decides.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.deciding: set[str] = set()
        self.why = ""
        self.is_opaque = False
        self.queries: Queries = {}
        self.views: dict[str, tuple[Item, ...]] = {}
        self.depth_of_views = 0
        self.is_measured = False
        self._work = 0
        self._depth = 0

    def spend(self, amount: int = 1) -> None:
        """Count work.

        Raises:
            Exhausted: there was too much.
        """
        self._work += amount
        if self._work > MAX_WORK:
            raise Exhausted("The statement has too many parts to say where its columns come from; split it.")

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """One level down."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Exhausted("The statement nests too deep to say where its columns come from; split it.")
        try:
            yield
        finally:
            self._depth -= 1

    def decide(self, *values: Value) -> None:
        """The values decide which rows there are, their order, whether there is a fault, or what is written."""
        if self.depth_of_views:
            return
        for value in values:
            if value.origins:
                self.spend(len(value.origins) // 16)
                self.deciding |= value.origins
            if value.is_opaque:
                self.unresolved("What the statement selects by or writes is the result of something not known here.")

    def unresolved(self, why: str) -> None:
        """Something besides the outputs is not resolved."""
        if not self.depth_of_views:
            self.is_opaque = True
            self.why = self.why or why

    def explain(self, why: str) -> None:
        """Why an output is opaque; the first reason is the one that is told."""
        if not self.depth_of_views:
            self.why = self.why or why

    def expression(self, node: Node, scope: Scope) -> Value:
        """The value of an expression node, given as `{"FuncCall": {…}}`."""
        self._work += 1
        if self._work > MAX_WORK:
            self.spend()
        for kind, inner in node.items():
            handler = _EXPRESSIONS.get(kind)
            if handler is None:
                raise Unresolved(f"The statement contains {kind}, which has no lineage here; rewrite it.")
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise Exhausted("The statement nests too deep to say where its columns come from; split it.")
            try:
                value = handler(self, inner, scope)
            finally:
                self._depth -= 1
            if self.is_measured:
                self.decide(value)
            return value
        raise Unresolved("The statement has an expression without a type; rewrite it.")

    def expressions(self, nodes: Iterable[Node] | None, scope: Scope) -> list[Value]:
        """The values of several expressions; none for None."""
        return [self.expression(node, scope) for node in nodes or () if node]

    def rows(self, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
        """The columns of a query, given as `{"SelectStmt": {…}}`; `outer` is what surrounds it."""
        for kind, inner in node.items():
            handler = _ROWS.get(kind)
            if handler is None:
                raise Unresolved(f"The statement contains {kind} as a query, which has no lineage here; rewrite it.")
            before = self.queries
            with self.deeper():
                try:
                    columns = handler(self, inner, queries, outer)
                finally:
                    self.queries = before
            if len(columns) > MAX_COLUMNS:
                raise Exhausted("The statement has more columns than the server allows.")
            if self.is_measured:
                self.decide(*(item.value for item in columns))
            return columns
        raise Unresolved("The statement has an empty query; rewrite it.")


class Query:
    """A WITH query: its columns once they are known, and how to find them.

    While it is being traced `columns` are those of its first branch, which is what a recursive reference sees.
    """

    __slots__ = ("columns", "find", "is_running")

    def __init__(self, find: Callable[[Query], tuple[Item, ...]]) -> None:
        self.find = find
        self.columns: tuple[Item, ...] | None = None
        self.is_running = False

    def read(self) -> tuple[Item, ...]:
        """The columns."""
        if self.columns is None:
            if self.is_running:
                raise Unresolved("A WITH query refers to itself before it has rows.")
            self.is_running = True
            self.columns = self.find(self)
            self.is_running = False
        return self.columns


_EXPRESSIONS: Final[dict[str, Expression]] = {}
_ROWS: Final[dict[str, Rows]] = {}


def expression(*kinds: str) -> Callable[[Expression], Expression]:
    """Register the handler of expression nodes."""

    def register(handler: Expression) -> Expression:
        _EXPRESSIONS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


def rows(*kinds: str) -> Callable[[Rows], Rows]:
    """Register the handler of a query."""

    def register(handler: Rows) -> Rows:
        _ROWS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


def expression_kinds() -> frozenset[str]:
    """The node types that are expressions."""
    return frozenset(_EXPRESSIONS)
