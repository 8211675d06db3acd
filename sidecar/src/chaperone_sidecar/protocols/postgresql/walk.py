"""The walk over a raw parse tree that gathers what a statement would do.

The tree is walked generically and by iteration, for it may be thousands of levels deep. A key of the tree is either a
node's type (`SelectStmt`) or a field's name (`whereClause`). Every one that holds a node must be in the table: as a
*leaf* without effects, as *plain* (its parts count, it does not), or with a handler of `query`, `utility` or
`definition`. A key that isn't makes the statement unknown. Held by test_every_field_that_may_hold_a_node_is_in_a_table.

CTE names are scoped as the server does it: a WITH is visible in its statement and below; in a plain WITH a query sees
only the names before its own, in WITH RECURSIVE all of them. Only an unqualified name can mean a CTE, and the target of
a modifying statement never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.postgresql import relations
from chaperone_sidecar.protocols.postgresql.relations import Ambiguous, words

type Node = dict[str, Any]
type Part = dict[str, Any] | list[Any] | None
type Scope = frozenset[str]
type Handler = Callable[[Walk, Any, Scope], list[Any] | None]  # returns what is to be walked in the same scope

_NO_NAMES: Final[Scope] = frozenset()

MAX_NAMES: Final = 256  # CTE names in one statement; each scope is a set of its own, and honest SQL has a dozen

LEAVES: Final = words(
    """A_Const A_Star Alias BitString Boolean CurrentOfExpr Float Integer MergeSupportFunc ParamRef
    ReturningOption RoleSpec SQLValueFunction SetToDefault String TypeName
    alias aliascolnames argType arg_names collClause coldeflist collation collname colnames fk_attrs fk_del_set_cols
    format including join_using_alias keys opclass pk_attrs returning search_clause typeName va_cols"""
)
PLAIN: Final = words(
    """A_ArrayExpr A_Indices BoolExpr BooleanTest CaseExpr CaseWhen CoalesceExpr CollateClause ColumnDef
    CommonTableExpr Constraint DefElem FunctionParameter GroupingFunc GroupingSet IndexElem JoinExpr JsonArgument
    JsonArrayAgg JsonArrayConstructor JsonArrayQueryConstructor JsonFuncExpr JsonIsPredicate JsonKeyValue JsonObjectAgg
    JsonObjectConstructor JsonParseExpr JsonScalarExpr JsonSerializeExpr JsonTable JsonTableColumn JsonTablePathSpec
    JsonValueExpr List MergeWhenClause MinMaxExpr MultiAssignRef NamedArgExpr NullTest PartitionElem
    PartitionRangeDatum RangeFunction RangeSubselect RangeTableFunc RangeTableFuncCol ResTarget ReturnStmt RowExpr
    StatsElem TypeCast WindowDef XmlExpr XmlSerialize
    agg_filter agg_order arg args bound coldefexpr colexpr columns condition constraints constructor content
    context_item ctequery cycle_clause cycle_col_list cycle_mark_default cycle_mark_value defexpr defresult docexpr
    elements endOffset exclusions expr exprs fdwoptions functions indexElems indirection infer items key larg lidx
    listdatums lowerdatums named_args namespaces node on_empty on_error opclassopts options orderClause output over
    partParams partitionClause passing pathspec quals query rarg raw_default raw_expr repeatable result returnval
    rowexpr source startOffset string subquery subselect targetList testexpr uidx upperdatums usingClause val value
    values whereClause where_clause"""
)


class Walk:
    """Gathers the effects of one statement."""

    def __init__(self) -> None:
        self.found: dict[Access, None] = {}
        self.filtered: set[Access] = set()  # of `found`: a WHERE narrows them wherever they are named
        self.narrowed: set[int] = set()  # ids of the FROM items that a WHERE narrows
        self.why_unknown = ""
        self.names = 0
        self.alone: set[str] = set()  # named with ONLY
        self.whole: set[str] = set()  # named without
        self._todo: list[tuple[dict[str, Any] | list[Any], Scope]] = []

    def add(self, effect: Effect, *objects: str) -> None:
        """Note an effect on each of the objects."""
        for name in objects:
            self.note(Access(effect, name))

    def include(self, other: Walk) -> None:
        """Note what another walk found out of a part, but for its effects."""
        self.why_unknown = self.why_unknown or other.why_unknown
        self.alone |= other.alone
        self.whole |= other.whole

    def unknown(self, why: str) -> None:
        """Note that the statement isn't understood; the first reason is the one that is told."""
        self.found[Access(Effect.UNKNOWN)] = None
        self.why_unknown = self.why_unknown or why

    def resolve(self, node: Node) -> tuple[str, ...]:
        """The objects that a `RangeVar` may mean; none, and the statement unknown, when that cannot be told."""
        try:
            found = relations.relation(node)
        except Ambiguous as error:
            self.unknown(str(error))
            return ()
        (self.whole if node.get("inh") else self.alone).update(found)
        return found

    def note(self, access: Access, *, is_filtered: bool = False) -> None:
        """Note an access, and whether a WHERE narrows it here."""
        if not is_filtered:
            self.filtered.discard(access)
        elif access not in self.found:
            self.filtered.add(access)
        self.found[access] = None

    def read(self, names: Iterable[str], *, is_filtered: bool = False) -> None:
        """Note that relations are read."""
        for name in names:
            sensitive = relations.is_sensitive(name)
            effect = Effect.READ_SENSITIVE if sensitive else Effect.READ
            self.note(Access(effect, name), is_filtered=is_filtered)

    def write(self, effect: Effect, names: Iterable[str], *, is_filtered: bool = False) -> None:
        """Note that rows are written; in the server's own tables that changes rights or settings."""
        for name in names:
            self.note(Access(effect, name), is_filtered=is_filtered)
            if relations.is_system(name):
                self.add(Effect.PRIVILEGE, name)

    def later(self, part: Part, scope: Scope) -> None:
        """Walk a part of the tree in a scope, after the current one."""
        if part is not None:
            self._todo.append((part, scope))

    def statement(self, tree: Node) -> None:
        """Gather the effects of a whole statement, given as `{"SelectStmt": {…}}`."""
        self.later(tree, _NO_NAMES)
        self.run()

    def run(self) -> None:
        """Walk all that was put off with `later`."""
        todo = self._todo
        while todo:
            part, scope = todo.pop()
            self._visit(part, scope)

    def _visit(self, part: Part, scope: Scope) -> None:
        stack: list[Any] = [part]
        find = _TABLE.get
        while stack:
            value = stack.pop()
            kind = type(value)
            if kind is list:
                stack.extend(value)
            elif kind is dict:
                for key, inner in value.items():
                    kind = type(inner)
                    if kind is not dict and kind is not list:
                        continue
                    use = find(key)
                    if use is _PLAIN:
                        stack.append(inner)
                    elif use is _LEAF:
                        continue
                    elif use is None:
                        self.unknown(f"The statement contains {key}, which this gateway doesn't know; rewrite it.")
                    else:
                        try:
                            parts = use(self, inner, scope)
                        except Ambiguous as error:
                            self.unknown(str(error))
                        else:
                            if parts is not None:
                                stack.append(parts)


_LEAF: Final[Any] = object()
_PLAIN: Final[Any] = object()
_TABLE: Final[dict[str, Any]] = dict.fromkeys(LEAVES, _LEAF) | dict.fromkeys(PLAIN, _PLAIN)


def handles(*keys: str) -> Callable[[Handler], Handler]:
    """Register the handler of one or more node types."""

    def register(handler: Handler) -> Handler:
        for key in keys:
            _TABLE[key] = handler
        return handler

    return register
