"""What stands in FROM: relations, views, sub-queries, functions, joins."""

from __future__ import annotations

from typing import Any, Final

from chaperone_sidecar.protocols.postgresql import grammar, relations
from chaperone_sidecar.protocols.postgresql.columns import expression
from chaperone_sidecar.protocols.postgresql.columns import name as names
from chaperone_sidecar.protocols.postgresql.columns.scope import Entry, Scope, Source
from chaperone_sidecar.protocols.postgresql.columns.trace import (
    MAX_VIEWS,
    Exhausted,
    Node,
    Queries,
    Trace,
    Unresolved,
)
from chaperone_sidecar.protocols.postgresql.columns.value import (
    ARRAYS,
    EMPTY,
    OPAQUE,
    TYPES,
    Item,
    Value,
    derived,
    is_mergeable,
)
from chaperone_sidecar.protocols.postgresql.relations import strings, words
from chaperone_sidecar.protocols.postgresql.schema import VIEWS, Relation

type Sources = tuple[Source, list[Entry]]  # all columns of an item of FROM in order; the names it brings

_SETTLED: Final = "public"
# Set-returning functions of pg_catalog whose rows are one value without a name of its own.
_ONE_COLUMN: Final = words(
    """generate_series generate_subscripts regexp_split_to_table regexp_matches string_to_table json_array_elements
    json_array_elements_text jsonb_array_elements jsonb_array_elements_text json_object_keys jsonb_object_keys
    jsonb_path_query now current_setting version lower upper coalesce abs"""
)
_NAMED: Final = {  # those of them whose column has a name of its own, whatever the alias
    "json_array_elements": "value", "json_array_elements_text": "value",
    "jsonb_array_elements": "value", "jsonb_array_elements_text": "value",
}  # fmt: skip
_PAIRS: Final = {
    "json_each": ("key", "value"), "jsonb_each": ("key", "value"),
    "json_each_text": ("key", "value"), "jsonb_each_text": ("key", "value"),
}  # fmt: skip


def sources(trace: Trace, items: list[Node], queries: Queries, outer: Scope | None) -> Scope:
    """The scope that a FROM makes. Each item sees those before it only if it is LATERAL, or a function."""
    scope = Scope((), outer)
    for item in items:
        _, entries = item_of(trace, item, queries, scope)
        scope.entries += entries
    return scope


def item_of(trace: Trace, node: Node, queries: Queries, left: Scope) -> Sources:
    """One item of FROM; `left` are the items before it, and what is around the query."""
    for kind, inner in node.items():
        if kind == "JoinExpr":
            return _join(trace, inner, queries, left)
        if kind == "RangeVar":
            source = relation_source(trace, inner, queries)
        elif kind == "RangeSubselect":
            outer = left if inner.get("lateral") else left.parent
            columns = trace.rows(inner["subquery"], queries, outer)
            source = _aliased(Source("", columns), inner)
        elif kind == "RangeFunction":
            source = _function(trace, inner, left)
        elif kind in {"RangeTableFunc", "JsonTable"}:
            source = _table_function(trace, inner, left)
        elif kind == "RangeTableSample":
            source, entries = item_of(trace, inner["relation"], queries, left)
            trace.decide(*trace.expressions(inner.get("args"), left))
            if "repeatable" in inner:
                trace.decide(trace.expression(inner["repeatable"], left))
            method = strings(inner["method"])
            if method[-1] not in {"system", "bernoulli"} or method[:-1] not in ([], ["pg_catalog"]):
                trace.unresolved("What rows a foreign TABLESAMPLE method takes is not known here.")
            return source, entries
        else:
            break
        return source, [Entry(source)]
    raise Unresolved(f"FROM contains {next(iter(node), 'nothing')}, which has no lineage here; rewrite it.")


# --- relations ------------------------------------------------------------------------------------------------------


def relation_source(trace: Trace, node: Node, queries: Queries) -> Source:
    """A table, a view, or a WITH query."""
    trace.spend()
    name = node["relname"]
    if "schemaname" not in node and name in queries:
        return _aliased(Source(name, queries[name].read()), node)
    found = relation(trace, node)
    if found is None:
        trace.explain(f"The relation {name} is not known here.")
        return _aliased(Source(name, (), unknown=OPAQUE, qualified=_qualified(node), is_table=True), node)
    columns = columns_of(trace, found, is_only=not node.get("inh"))
    return _aliased(Source(name, columns, qualified=found.name, is_table=True), node)


def _qualified(node: Node) -> str:
    return f"{node.get('schemaname', _SETTLED)}.{node['relname']}"


def relation(trace: Trace, node: Node) -> Relation | None:
    """The relation that a `RangeVar` names."""
    if trace.depth_of_views and "schemaname" not in node:
        candidates: tuple[str, ...] = (relations.join("pg_catalog", node["relname"]),)
        if node["relname"] not in relations.CATALOG.relations:
            candidates += (relations.join("public", node["relname"]),)
    else:
        candidates = relations.relation(node)
    for candidate in candidates:
        found = trace.schema.relation(candidate)
        if found is not None:
            return found
    return None


def columns_of(trace: Trace, found: Relation, *, is_only: bool = False) -> tuple[Item, ...]:
    """The columns of a relation, with all the names under which policy may know them."""
    trace.spend(1 + len(found.columns) // 4)
    key = f"{found.name}!" if is_only else found.name
    known = trace.views.get(key)
    if known is not None:
        return known
    related = _related(trace, found, is_only=is_only)
    within = _view(trace, found) if found.kind in VIEWS and not relations.is_system(found.name) else None
    columns = []
    for place, column in enumerate(found.columns):
        own = frozenset([f"{name}.{column.name}" for name in related])
        value = Value(
            origins=own, type=column.type, is_direct=True, is_opaque=relations.is_telling(found.name, column.name),
        )  # fmt: skip
        if within is not None:
            inner = within[place]
            value = Value(
                origins=own | inner.origins, type=column.type, is_opaque=inner.is_opaque,
                is_direct=not inner.is_opaque and (inner.is_direct or not inner.origins),
            )  # fmt: skip
        columns.append(Item(column.name, value))
    trace.views[key] = tuple(columns)
    return trace.views[key]


def _related(trace: Trace, found: Relation, *, is_only: bool) -> list[str]:
    """The relation and those that hold its rows too: what inherits from it, and what it inherits from."""
    names = [found.name, *found.parents]
    todo = [] if is_only else list(found.children)
    while todo:
        child = todo.pop()
        if child in names:
            continue
        trace.spend()
        names.append(child)
        below = trace.schema.relation(child)
        if below is not None:
            todo += below.children
    return names


def _view(trace: Trace, found: Relation) -> list[Value]:
    """The values of a view's columns; opaque ones where its text is not understood."""
    opaque = [OPAQUE] * len(found.columns)
    if trace.depth_of_views >= MAX_VIEWS:
        return opaque
    trace.depth_of_views += 1
    try:
        statements = grammar.parse(found.definition.encode())
        if len(statements) != 1:
            return opaque
        columns = trace.rows(statements[0]["stmt"], {}, None)
    except Exhausted:
        raise
    except (Unresolved, grammar.ParseError, relations.Ambiguous, KeyError, TypeError, IndexError):
        return opaque
    finally:
        trace.depth_of_views -= 1
    return [item.value for item in columns] if len(columns) == len(found.columns) else opaque


# --- functions ------------------------------------------------------------------------------------------------------


def _function(trace: Trace, node: Node, left: Scope) -> Source:
    """A function in FROM sees the items before it, with LATERAL or without."""
    columns: list[Item] = []
    unknown: Value | None = None
    alias = node.get("alias", {}).get("aliasname", "")
    is_alone = len(node["functions"]) == 1
    first = ""
    for function in node["functions"]:
        call, *definitions = function["List"]["items"]
        value = trace.expression(call, left)
        trace.decide(value)
        value = derived([value])
        name = names.of(call)
        first = first or name
        defined = node.get("coldeflist") or [d for item in definitions if "List" in item for d in item["List"]["items"]]
        if defined:
            columns += [Item(column["ColumnDef"]["colname"], value) for column in defined]
            continue
        found = _columns_of_call(trace, call, left, alias if is_alone and alias else name)
        if found is None:
            unknown = value if unknown is None else derived([unknown, value])
            columns.append(Item(alias or name, value))
        else:
            columns += [Item(column, value) for column in found]
    if node.get("ordinality"):
        columns.append(Item("ordinality", EMPTY))
    return _aliased(Source(first, tuple(columns), unknown=unknown), node)


def _columns_of_call(trace: Trace, call: Node, left: Scope, name: str) -> list[str] | None:
    """The names of the columns that a call in FROM has; None if that is not known."""
    if "FuncCall" not in call:
        return [name] if "SQLValueFunction" in call else None
    path = strings(call["FuncCall"]["funcname"])
    function = path[-1]
    if len(path) > 1 and path[-2] != "pg_catalog":
        return None
    if function in _PAIRS:
        return list(_PAIRS[function])
    if function == "unnest":
        arguments = call["FuncCall"].get("args", [])
        if not all(_is_plain_array(trace, argument, left) for argument in arguments):
            return None
        return [name] if len(arguments) == 1 else ["unnest"] * len(arguments)
    if function not in _ONE_COLUMN:
        return None
    return [_NAMED.get(function, name)]


def _is_plain_array(trace: Trace, node: Node, left: Scope) -> bool:
    """Whether the elements of an array are no rows."""
    if "TypeCast" in node:
        name = node["TypeCast"]["typeName"]
        return "arrayBounds" in name and strings(name.get("names", []))[-1] in TYPES
    if "A_ArrayExpr" in node:
        return all("A_Const" in element for element in node["A_ArrayExpr"].get("elements", []))
    return "ColumnRef" in node and trace.expression(node, left).type in ARRAYS


def _table_function(trace: Trace, node: Node, left: Scope) -> Source:
    """XMLTABLE and JSON_TABLE: all that goes in decides how many rows come out."""
    inputs = {key: part for key, part in node.items() if key not in {"alias", "columns"}}
    defined = node.get("columns", [])
    values = expression.parts(trace, inputs, left) + expression.parts(trace, defined, left)
    trace.decide(*values)
    value = derived(values)
    name = "xmltable" if "docexpr" in node else "json_table"
    return _aliased(Source(name, tuple(Item(column, value) for column in _defined(defined))), node)


def _defined(columns: list[Node]) -> list[str]:
    """The names of the columns of XMLTABLE or JSON_TABLE: nested ones come after the others."""
    found: list[str] = []
    nested: list[Any] = []
    for column in columns:
        inner = column.get("RangeTableFuncCol") or column["JsonTableColumn"]
        if inner.get("coltype") == "JTC_NESTED":
            nested += inner.get("columns", [])
        else:
            found.append(inner.get("colname") or inner["name"])
    return found + (_defined(nested) if nested else [])


# --- joins and aliases ----------------------------------------------------------------------------------------------


def _join(trace: Trace, node: Node, queries: Queries, outer: Scope) -> Sources:
    # Joins nest to the left, as deep as there are many.
    chain = [node]
    while "JoinExpr" in chain[-1]["larg"]:
        chain.append(chain[-1]["larg"]["JoinExpr"])
    left, entries = item_of(trace, chain[-1]["larg"], queries, outer)
    for link in reversed(chain):
        left, entries = _joined(trace, link, queries, outer, left, entries)
    return left, entries


def _joined(
    trace: Trace, node: Node, queries: Queries, outer: Scope, left: Source, left_entries: list[Entry]
) -> Sources:
    # The right side sees the left one if it is LATERAL, and the items before the whole join.
    seen = Scope([*outer.entries, *left_entries], outer.parent)
    right, right_entries = item_of(trace, node["rarg"], queries, seen)
    shared = _shared(node, left, right)
    trace.spend(1 + (len(left.columns) + len(right.columns)) // 2 + len(left_entries))
    merged = []
    for name in shared:
        one, other = left.find(name) or left.open, right.find(name) or right.open
        pair = [value for value in (one, other) if value is not None]
        if len(pair) < 2:
            raise Unresolved("JOIN … USING names a column that is not on both sides.")
        trace.decide(*pair)
        kind = pair[0].type if is_mergeable(pair) and pair[0].type == pair[1].type else 0
        merged.append(Item(name, derived(pair, of_type=kind, is_pure=True)))
    named = set(shared)
    rest = [item for side in (left, right) for item in side.columns if item.name not in named]
    unknown = [value for value in (left.open, right.open) if value is not None]
    source = Source("", (*merged, *rest), unknown=derived(unknown) if unknown else None)
    within = [Entry(e.source, e.has_name, False) for e in left_entries + right_entries]
    if "join_using_alias" in node:
        within.append(Entry(Source(node["join_using_alias"]["aliasname"], tuple(merged)), True, False))
    if "quals" in node:
        trace.decide(trace.expression(node["quals"], Scope(left_entries + right_entries, outer.parent)))
    if "alias" in node:
        source = _aliased(source, node)
        return source, [Entry(source)]
    return source, [*within, Entry(source, has_name=False)]


def _shared(node: Node, left: Source, right: Source) -> list[str]:
    if not node.get("isNatural"):
        return strings(node.get("usingClause", []))
    if left.open is not None or right.open is not None:
        raise Unresolved("NATURAL JOIN compares columns that are not known here; name them.")
    return [item.name for item in left.columns if item.name in right.index]


def _aliased(source: Source, node: Node) -> Source:
    """The source under its alias, if it has one, with its columns under theirs."""
    alias = node.get("alias")
    if alias is None:
        return source
    given = strings(alias.get("colnames", []))
    columns = source.columns
    if given:
        if source.open is not None and len(given) > len(columns):
            columns = tuple(Item(name, source.open) for name in given)
        columns = tuple(
            Item(given[place], item.value) if place < len(given) else item for place, item in enumerate(columns)
        )
    return Source(alias["aliasname"], columns, is_table=source.is_table, unknown=source.open)
