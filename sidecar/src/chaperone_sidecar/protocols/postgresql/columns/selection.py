"""SELECT, VALUES, set operations and WITH: the columns of a query, and what decides which rows it has."""

from __future__ import annotations

from collections.abc import Callable

from chaperone_sidecar.protocols.postgresql.columns import expression
from chaperone_sidecar.protocols.postgresql.columns import name as names
from chaperone_sidecar.protocols.postgresql.columns.scope import Scope
from chaperone_sidecar.protocols.postgresql.columns.source import sources
from chaperone_sidecar.protocols.postgresql.columns.target import expanded
from chaperone_sidecar.protocols.postgresql.columns.trace import (
    MAX_COLUMNS,
    Exhausted,
    Node,
    Queries,
    Query,
    Trace,
    Unresolved,
    rows,
)
from chaperone_sidecar.protocols.postgresql.columns.value import (
    EMPTY,
    TEXT,
    Item,
    Value,
    derived,
    is_mergeable,
    merged,
)
from chaperone_sidecar.protocols.postgresql.relations import strings

_CONSTANTS = frozenset({"A_Const", "ParamRef", "SetToDefault"})


@rows("SelectStmt")
def select(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
    """The columns of a SELECT, with its set operations."""
    # A chain of set operations nests to the left, as deep as it is long. One with clauses of its own is a query.
    chain = [node]
    while "larg" in chain[-1] and "larg" in chain[-1]["larg"] and not _has_own_clauses(chain[-1]["larg"]):
        chain.append(chain[-1]["larg"])
    queries = with_queries(trace, node, queries, outer)
    if "larg" not in node:
        columns = _simple(trace, node, queries, outer)
    else:
        columns = trace.rows({"SelectStmt": chain[-1]["larg"]}, queries, outer)
        for link in reversed(chain):
            right = trace.rows({"SelectStmt": link["rarg"]}, queries, outer)
            columns = _united(trace, link, columns, right)
        trace.queries = queries
        _sorted(trace, node, columns, Scope((), outer))
    if "intoClause" in node or "intoClause" in chain[-1].get("larg", {}):
        trace.decide(*(item.value for item in columns))
    return columns


def _has_own_clauses(node: Node) -> bool:
    return any(key in node for key in ("withClause", "sortClause", "limitCount", "limitOffset", "lockingClause"))


def _united(trace: Trace, node: Node, left: tuple[Item, ...], right: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(left) != len(right):
        raise Unresolved("The sides of a set operation differ in their number of columns.")
    trace.spend(len(left))
    columns = []
    is_set = not (node["op"] == "SETOP_UNION" and node.get("all"))
    for one, other in zip(left, right, strict=True):
        pair = [one.value, other.value]
        if is_set or not is_mergeable(pair):
            trace.decide(*pair)
        value = merged(pair)
        columns.append(Item(one.name, value))
    return tuple(columns)


def _simple(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
    if "valuesLists" in node:
        trace.queries = queries
        columns = values(trace, node["valuesLists"], Scope((), outer))
        _sorted(trace, node, columns, Scope((), outer))
        return columns
    trace.queries = queries  # what FROM computes sees them too
    scope = sources(trace, node.get("fromClause", []), queries, outer)
    columns = targets(trace, node.get("targetList", []), scope)
    trace.decide(*trace.expressions([node[key] for key in ("whereClause", "havingClause") if key in node], scope))
    for clause in node.get("windowClause", ()):
        expression.window(trace, clause["WindowDef"], scope)
    _grouped(trace, node.get("groupClause", []), columns, scope)
    distinct = node.get("distinctClause")
    if distinct is not None:
        if any(distinct):
            for target in distinct:
                _by(trace, target, columns, scope)
        else:
            trace.decide(*(item.value for item in columns))
    _sorted(trace, node, columns, scope)
    return columns


def targets(trace: Trace, nodes: list[Node], scope: Scope) -> tuple[Item, ...]:
    """The columns of a target list or of RETURNING."""
    columns: list[Item] = []
    for node in nodes:
        target = node["ResTarget"]
        value = target["val"]
        if names.is_star(value):
            columns += expanded(trace, value, scope)
        else:
            name = target["name"] if "name" in target else names.of(value)
            columns.append(Item(name, trace.expression(value, scope)))
        if len(columns) > MAX_COLUMNS:
            raise Exhausted("The statement has more columns than the server allows.")
    return tuple(columns)


def values(trace: Trace, lists: list[Node], scope: Scope) -> tuple[Item, ...]:
    """The columns of VALUES; thousands of rows of literals are no work."""
    found: list[list[Value]] = []
    for line in lists:
        cells: list[Value] = []
        for cell in line["List"]["items"]:
            if len(lists) > 1 and next(iter(cell)) in _CONSTANTS:
                cells.append(EMPTY)
            else:
                cells += [item.value for item in expanded(trace, cell, scope)]
        if not found:
            found = [[cell] for cell in cells]
            continue
        if len(cells) != len(found):
            raise Unresolved("The rows of VALUES differ in their number of columns.")
        for place, cell in enumerate(cells):
            if cell is not EMPTY:
                found[place].append(cell)
    columns = []
    for place, several in enumerate(found, 1):
        if len(several) > 1 and not is_mergeable(several):
            trace.decide(*several)
        columns.append(Item(f"column{place}", merged(several)))
    return tuple(columns)


# --- GROUP BY, ORDER BY, LIMIT --------------------------------------------------------------------------------------


def _grouped(trace: Trace, nodes: list[Node], columns: tuple[Item, ...], scope: Scope) -> None:
    for node in nodes:
        if "GroupingSet" in node:
            _grouped(trace, node["GroupingSet"].get("content", []), columns, scope)
            continue
        if "RowExpr" in node:
            _grouped(trace, node["RowExpr"].get("args", []), columns, scope)
            continue
        path = strings(node["ColumnRef"]["fields"]) if "ColumnRef" in node else []
        if len(path) == 1 and scope.own_column(path[0]) is not None:  # GROUP BY takes the column before the alias
            trace.decide(trace.expression(node, scope))
        else:
            _by(trace, node, columns, scope)


def _sorted(trace: Trace, node: Node, columns: tuple[Item, ...], scope: Scope) -> None:
    for sort in node.get("sortClause", ()):
        _by(trace, sort["SortBy"]["node"], columns, scope)
    trace.decide(*trace.expressions([node[key] for key in ("limitCount", "limitOffset") if key in node], scope))


def _by(trace: Trace, node: Node, columns: tuple[Item, ...], scope: Scope) -> None:
    """What ORDER BY and its like name: an output column by its place or name, else an expression."""
    if "A_Const" in node and "ival" in node["A_Const"]:
        place = node["A_Const"]["ival"].get("ival", 0)
        if not 1 <= place <= len(columns):
            raise Unresolved("ORDER BY or GROUP BY names a column by a place that there is not.")
        trace.decide(columns[place - 1].value)
        return
    path = strings(node["ColumnRef"]["fields"]) if "ColumnRef" in node else []
    if len(path) == 1 and "String" in node["ColumnRef"]["fields"][-1]:
        found = [item.value for item in columns if item.name == path[0]]
        if found:
            trace.decide(*found)
            return
    trace.decide(trace.expression(node, scope))


# --- WITH -----------------------------------------------------------------------------------------------------------


def with_queries(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> Queries:
    """The WITH queries in sight of a statement: those around it, and its own. All of them are traced."""
    clause = node.get("withClause")
    if clause is None:
        return queries
    nodes = [item["CommonTableExpr"] for item in clause["ctes"]]
    trace.spend(len(queries) + len(nodes))
    inside = dict(queries)
    own = []
    for item in nodes:
        # In WITH RECURSIVE each sees all; in a plain WITH only those before it.
        seen = inside if clause.get("recursive") else dict(inside)
        trace.spend(len(seen) // 4)
        query = Query(_finder(trace, item, seen, outer, is_recursive=bool(clause.get("recursive"))))
        inside[item["ctename"]] = query
        own.append(query)
    for query in own:
        query.read()
    return inside


def _finder(
    trace: Trace, node: Node, queries: Queries, outer: Scope | None, *, is_recursive: bool
) -> Callable[[Query], tuple[Item, ...]]:
    def find(query: Query) -> tuple[Item, ...]:
        inner = node["ctequery"]
        union = inner.get("SelectStmt", {})
        before = trace.queries
        if is_recursive and "larg" in union:
            columns = _recursive(trace, node, union, queries, outer, query)
            trace.queries = before
        else:
            columns = _renamed(node, trace.rows(inner, queries, outer))
        return columns + _added(trace, node, columns)

    return find


def _renamed(node: Node, columns: tuple[Item, ...]) -> tuple[Item, ...]:
    given = strings(node.get("aliascolnames", []))
    return tuple(Item(given[place], c.value) if place < len(given) else c for place, c in enumerate(columns))


def _recursive(
    trace: Trace, node: Node, union: Node, queries: Queries, outer: Scope | None, query: Query
) -> tuple[Item, ...]:
    """The columns of `first UNION again`, where `again` reads what there is so far: until no origin is new."""
    queries = with_queries(trace, union, queries, outer)
    first = trace.rows({"SelectStmt": union["larg"]}, queries, outer)
    columns = first
    while True:
        query.columns = _renamed(node, columns)
        query.columns += _added(trace, node, query.columns)
        again = _united(trace, union, columns, trace.rows({"SelectStmt": union["rarg"]}, queries, outer))
        if [_kept(item.value) for item in again] == [_kept(item.value) for item in columns]:
            break
        columns = again
    trace.queries = queries
    _sorted(trace, union, columns, Scope((), outer))
    return _renamed(node, columns)


def _kept(value: Value) -> tuple[object, ...]:
    return value.origins, value.is_opaque, value.is_direct, value.is_pure, value.type


def _added(trace: Trace, node: Node, columns: tuple[Item, ...]) -> tuple[Item, ...]:
    """The columns of SEARCH and CYCLE, which hold values of those they go by."""
    by_name = {item.name: item.value for item in columns}
    added = []
    search, cycle = node.get("search_clause"), node.get("cycle_clause")
    if search is not None:
        going = [by_name.get(name, EMPTY) for name in strings(search["search_col_list"])]
        added.append(Item(search["search_seq_column"], derived(going)))
    if cycle is not None:
        going = [by_name.get(name, EMPTY) for name in strings(cycle["cycle_col_list"])]
        trace.decide(*going)
        mark = derived(going, of_type=TEXT)
        added += [Item(cycle["cycle_mark_column"], mark), Item(cycle["cycle_path_column"], derived(going))]
    return tuple(added)
