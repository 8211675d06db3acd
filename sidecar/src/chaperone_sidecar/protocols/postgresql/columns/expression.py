"""The value of an expression: its origins, and what in it decides.

Every handler returns the value and notes with `decide` each column that is used through anything but what `total`
lists: such a use may raise a fault, or change how many rows there are.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from chaperone_sidecar.protocols.postgresql.columns import total
from chaperone_sidecar.protocols.postgresql.columns.scope import Scope
from chaperone_sidecar.protocols.postgresql.columns.target import expanded, fields_of_type
from chaperone_sidecar.protocols.postgresql.columns.trace import (
    Node,
    Trace,
    Unresolved,
    expression,
    expression_kinds,
)
from chaperone_sidecar.protocols.postgresql.columns.value import (
    BOOLEAN,
    EMPTY,
    INTEGER,
    OPAQUE,
    TEXT,
    TYPES,
    Item,
    Value,
    derived,
    is_mergeable,
    merged,
    row,
)
from chaperone_sidecar.protocols.postgresql.kind import FIRST_USER_OID
from chaperone_sidecar.protocols.postgresql.relations import CATALOG, strings, words
from chaperone_sidecar.protocols.postgresql.walk import LEAVES, PLAIN

# Functions of pg_catalog that have effects, so that the classifier names them, but answer nothing that a column holds.
_HARMLESS: Final = words(
    """nextval setval set_config txid_current pg_current_xact_id pg_notify pg_sleep pg_sleep_for pg_sleep_until
    pg_cancel_backend pg_terminate_backend pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock
    pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared
    pg_try_advisory_lock pg_try_advisory_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
    pg_export_snapshot pg_reload_conf pg_switch_wal pg_create_restore_point"""
)
_CONDITIONS: Final = frozenset({"BoolExpr", "NullTest", "BooleanTest", "A_Expr"})


def used(trace: Trace, values: list[Value], of_type: int = 0) -> Value:
    """The result of something that is not total: the values decide, and are origins of the result."""
    trace.decide(*values)
    return derived(values, of_type=of_type, growth=max((value.growth for value in values), default=1))


# --- leaves ---------------------------------------------------------------------------------------------------------


@expression("A_Const")
def _constant(trace: Trace, node: Node, scope: Scope) -> Value:
    if "ival" in node:
        return Value(type=INTEGER, is_fixed=True, literal=node["ival"].get("ival", 0))
    if "sval" in node:
        return Value(is_fixed=True, literal=node["sval"].get("sval", ""))
    return Value(type=BOOLEAN if "boolval" in node else 1700 if "fval" in node else 0, is_fixed=True)


@expression("ParamRef", "SetToDefault")
def _parameter(trace: Trace, node: Node, scope: Scope) -> Value:
    return Value(is_fixed=True)


@expression("SQLValueFunction", "MergeSupportFunc", "GroupingFunc", "CurrentOfExpr")
def _given(trace: Trace, node: Node, scope: Scope) -> Value:
    trace.decide(*trace.expressions(node.get("args"), scope))  # of GROUPING
    return EMPTY


@expression("ColumnRef")
def _column(trace: Trace, node: Node, scope: Scope) -> Value:
    fields = node["fields"]
    path = strings(fields)
    if "A_Star" in fields[-1]:
        if not path:
            raise Unresolved("A * stands where it has no meaning.")
        source = scope.source(path[-1], path[-2] if len(path) > 1 else "")
        return _missing(trace) if source is None else _spent(trace, source.as_row())
    if len(path) == 1:
        value = scope.column(path[0])
        return _missing(trace) if value is None else _spent(trace, value)
    source = scope.source(path[-2], path[-3] if len(path) > 2 else "")
    if source is None:
        return _missing(trace)
    found = source.find(path[-1])
    if found is not None:
        return found
    if source.open is not None:
        return source.open
    return _call(trace, (path[-1],), [_spent(trace, source.as_row())])


def _missing(trace: Trace) -> Value:
    trace.explain("The statement names a column that no relation here has.")
    return OPAQUE


def _spent(trace: Trace, value: Value) -> Value:
    if value.fields is not None:
        trace.spend(len(value.fields) // 4)
    return value


@expression("A_Indirection")
def _indirection(trace: Trace, node: Node, scope: Scope) -> Value:
    value = trace.expression(node["arg"], scope)
    for step in node["indirection"]:
        if "String" in step:
            value = _field(trace, value, step["String"]["sval"])
        elif "A_Indices" in step:
            bounds = [step["A_Indices"][key] for key in ("lidx", "uidx") if key in step["A_Indices"]]
            value = used(trace, [value, *trace.expressions(bounds, scope)])  # NULL where there is none of that place
        # A star that is no target of its own leaves the row as it is.
    return value


def _field(trace: Trace, value: Value, name: str) -> Value:
    found = [item.value for item in value.fields or () if item.name == name]
    if found:
        return merged(found)
    if value.fields is not None or 0 < value.type < FIRST_USER_OID:
        return _call(trace, (name,), [value])
    if name in fields_of_type(trace, value.type):
        return derived([value], is_pure=value.is_pure, growth=value.growth)
    return used(trace, [value])  # a column of a composite type, or a call of a function of it


# --- operators ------------------------------------------------------------------------------------------------------


@expression("A_Expr")
def _operator(trace: Trace, node: Node, scope: Scope) -> Value:
    # A chain of operators nests to the left, as deep as it is long.
    chain = [node]
    while "A_Expr" in chain[-1].get("lexpr", {}) and len(chain) < _LONGEST_CHAIN:
        chain.append(chain[-1]["lexpr"]["A_Expr"])
    left = trace.expression(chain[-1]["lexpr"], scope) if chain[-1].get("lexpr") else None
    for link in reversed(chain):
        trace.spend()
        right = _operand(trace, link.get("rexpr"), scope)
        left = _combined(trace, link, ([left] if left is not None else []) + right)
    return left if left is not None else EMPTY


_LONGEST_CHAIN: Final = 20_000  # a parse tree of 1 MiB of text nests less deep; see `grammar`


def _operand(trace: Trace, node: Node | None, scope: Scope) -> list[Value]:
    if node is None:
        return []
    if "List" in node:
        return _listed(trace, node["List"].get("items", []), scope)
    return [trace.expression(node, scope)]


def _listed(trace: Trace, items: list[Node], scope: Scope) -> list[Value]:
    """The values of a list, without its literals: they have no origins, and IN may have thousands of them."""
    return [
        trace.expression(item, scope) for item in items if item and "A_Const" not in item and "ParamRef" not in item
    ]


def _combined(trace: Trace, node: Node, values: list[Value]) -> Value:
    path = strings(node["name"])
    if node["kind"] == "AEXPR_OP":
        is_known = path[-1] in CATALOG.operators and (len(path) == 1 or path[-2] == "pg_catalog")
        if is_known:
            result = total.operator(path[-1], values)
            return result if result is not None else used(trace, values)
        trace.decide(*values)
        trace.explain(f"The operator {path[-1]} is not the server's own; what it answers is not known here.")
        return msgspec.structs.replace(derived(values), is_opaque=True)
    of_type = values[0].type if node["kind"] == "AEXPR_NULLIF" and values else BOOLEAN
    if node["kind"] in _NAMED_KINDS and (
        path[-1] not in CATALOG.operators or (len(path) > 1 and path[-2] != "pg_catalog")
    ):
        trace.decide(*values)
        trace.explain(f"The operator {path[-1]} is not the server's own; what it answers is not known here.")
        return msgspec.structs.replace(derived(values), is_opaque=True)
    return used(trace, values, of_type)


_NAMED_KINDS: Final = frozenset({"AEXPR_OP_ANY", "AEXPR_OP_ALL"})


@expression("BoolExpr")
def _boolean(trace: Trace, node: Node, scope: Scope) -> Value:
    # AND and OR stop at the first that suffices, so each decides whether the next is computed.
    return used(trace, trace.expressions(node["args"], scope), BOOLEAN)


@expression("NullTest", "BooleanTest")
def _test(trace: Trace, node: Node, scope: Scope) -> Value:
    return used(trace, [trace.expression(node["arg"], scope)], BOOLEAN)


@expression("CaseExpr")
def _case(trace: Trace, node: Node, scope: Scope) -> Value:
    conditions = [trace.expression(node["arg"], scope)] if "arg" in node else []
    results = []
    for when in node["args"]:
        conditions.append(trace.expression(when["CaseWhen"]["expr"], scope))
        results.append(trace.expression(when["CaseWhen"]["result"], scope))
    results.append(trace.expression(node["defresult"], scope) if "defresult" in node else Value(is_fixed=True))
    trace.decide(*conditions)
    if not is_mergeable(results):
        trace.decide(*results)
    result = merged(results)
    return derived([result, *conditions], of_type=result.type, growth=result.growth)


@expression("CoalesceExpr")
def _coalesce(trace: Trace, node: Node, scope: Scope) -> Value:
    values = trace.expressions(node["args"], scope)
    last_impure = max((place for place, value in enumerate(values) if not value.is_pure), default=0)
    trace.decide(*values[:last_impure])  # whether that one is computed, and may fail, depends on those before it
    if not is_mergeable(values):
        trace.decide(*values)
    return merged(values)


@expression("MinMaxExpr")
def _greatest(trace: Trace, node: Node, scope: Scope) -> Value:
    return used(trace, trace.expressions(node["args"], scope))  # which of them it is shows by its length


@expression("A_ArrayExpr")
def _array(trace: Trace, node: Node, scope: Scope) -> Value:
    values = trace.expressions(node.get("elements"), scope)
    result = total.array(values)
    return result if result is not None else used(trace, values)


@expression("RowExpr")
def _row(trace: Trace, node: Node, scope: Scope) -> Value:
    values = [item.value for target in node.get("args", []) for item in expanded(trace, target, scope)]
    return row(Item(f"f{place}", value) for place, value in enumerate(values, 1))


@expression("CollateClause")
def _collated(trace: Trace, node: Node, scope: Scope) -> Value:
    value = trace.expression(node["arg"], scope)
    return derived([value], of_type=value.type, is_pure=True, growth=value.growth)


@expression("NamedArgExpr")
def _named(trace: Trace, node: Node, scope: Scope) -> Value:
    return trace.expression(node["arg"], scope)


@expression("TypeCast")
def _cast(trace: Trace, node: Node, scope: Scope) -> Value:
    value = trace.expression(node["arg"], scope)
    type_name = node["typeName"]
    kind = type_of(type_name)
    if kind and value.is_fixed and ("A_Const" in node["arg"] or "ParamRef" in node["arg"]):
        return Value(type=kind, is_fixed=True, literal=value.literal if kind == TEXT else None)
    result = total.cast(value, kind, has_modifier="typmods" in type_name) if kind else None
    return result if result is not None else used(trace, [value], kind)


def type_of(type_name: Node) -> int:
    """The OID of a type of pg_catalog that is known here, else 0."""
    path = strings(type_name.get("names", []))
    if not path or "arrayBounds" in type_name or type_name.get("setof") or type_name.get("pct_type"):
        return 0
    return TYPES.get(path[-1], 0) if len(path) == 1 or path[-2] == "pg_catalog" else 0


# --- calls ----------------------------------------------------------------------------------------------------------


@expression("FuncCall")
def function(trace: Trace, node: Node, scope: Scope) -> Value:
    """The value of a call; of a set-returning one, that of any column of its rows."""
    values = trace.expressions(node.get("args"), scope)
    extra = [sort["SortBy"]["node"] for sort in node.get("agg_order", ())]
    if "agg_filter" in node:
        extra.append(node["agg_filter"])
    trace.decide(*trace.expressions(extra, scope))
    if "over" in node:
        window(trace, node["over"], scope)
    if node.get("agg_distinct") or node.get("agg_within_group"):
        trace.decide(*values)
    is_plain = not (node.get("func_variadic") or node.get("agg_within_group"))
    is_plain = is_plain and not any("NamedArgExpr" in argument for argument in node.get("args", ()))
    return _call(trace, tuple(strings(node["funcname"])), values, is_plain=is_plain)


def _call(trace: Trace, path: tuple[str, ...], values: list[Value], *, is_plain: bool = True) -> Value:
    name = path[-1]
    of_catalog = len(path) == 1 or path[-2] == "pg_catalog"
    if of_catalog and name in CATALOG.safe_functions:
        result = total.call(name, values) if is_plain else None
        if result is not None:
            return result
        made = used(trace, values)
        return msgspec.structs.replace(made, growth=total.MAX_GROWTH) if name in total.GROWING else made
    if of_catalog and name in _HARMLESS:
        return used(trace, values)
    if len(path) > 1 and path[-2] == "information_schema" and name in CATALOG.safe_information_schema:
        return used(trace, values)
    trace.decide(*values)
    trace.explain(f"What the function {name} answers is not known here.")
    return msgspec.structs.replace(derived(values), is_opaque=True)


def window(trace: Trace, node: Node, scope: Scope) -> None:
    """A window: what it sorts and parts by decides, and where its frames end."""
    parts = list(node.get("partitionClause", ()))
    parts += [sort["SortBy"]["node"] for sort in node.get("orderClause", ())]
    parts += [node[key] for key in ("startOffset", "endOffset") if key in node]
    trace.decide(*trace.expressions(parts, scope))


@expression("SubLink")
def _sub_link(trace: Trace, node: Node, scope: Scope) -> Value:
    columns = trace.rows(node["subselect"], trace.queries, scope)
    kind = node["subLinkType"]
    if kind == "EXISTS_SUBLINK":
        return Value(type=BOOLEAN, is_pure=False)
    values = [item.value for item in columns]
    if kind in {"EXPR_SUBLINK", "ARRAY_SUBLINK"}:
        is_one = kind == "EXPR_SUBLINK"
        if len(values) != 1:
            return row(columns) if is_one else used(trace, values)  # a row of SET (a, b) = (SELECT …)
        value = values[0]
        if is_one:
            return Value(
                value.origins, value.type, is_opaque=value.is_opaque, is_pure=False, growth=value.growth,
                fields=value.fields,
            )  # fmt: skip
        result = total.call("array_agg", values)
        return msgspec.structs.replace(result, is_pure=False) if result is not None else used(trace, values)
    if kind not in {"ANY_SUBLINK", "ALL_SUBLINK", "ROWCOMPARE_SUBLINK"}:
        raise Unresolved(f"The statement contains {kind}, which has no lineage here; rewrite it.")
    if "testexpr" in node:
        values.append(trace.expression(node["testexpr"], scope))
    result = used(trace, values, BOOLEAN)
    operator = strings(node.get("operName", []))
    if operator and (operator[-1] not in CATALOG.operators or (len(operator) > 1 and operator[-2] != "pg_catalog")):
        return msgspec.structs.replace(result, is_opaque=True)
    return result


# --- expressions of JSON and XML: none of them is total ---------------------------------------------------------------


@expression(
    "XmlExpr", "XmlSerialize", "JsonObjectConstructor", "JsonArrayConstructor", "JsonObjectAgg", "JsonArrayAgg",
    "JsonParseExpr", "JsonScalarExpr", "JsonSerializeExpr", "JsonFuncExpr", "JsonIsPredicate",
)  # fmt: skip
def _constructed(trace: Trace, node: Node, scope: Scope) -> Value:
    return used(trace, parts(trace, node, scope))


@expression("JsonArrayQueryConstructor")
def _json_query(trace: Trace, node: Node, scope: Scope) -> Value:
    columns = trace.rows(node["query"], trace.queries, scope)
    return used(trace, [item.value for item in columns])


def parts(trace: Trace, part: Node | list[Any], scope: Scope) -> list[Value]:
    """The values of all expressions in a part of the tree that is itself none."""
    found: list[Value] = []
    kinds = expression_kinds()
    todo: list[Any] = [part]
    while todo:
        value = todo.pop()
        trace.spend()
        if isinstance(value, list):
            todo.extend(value)
            continue
        for key, inner in value.items():
            if not isinstance(inner, dict | list):
                continue
            if key in kinds:
                found.append(trace.expression({key: inner}, scope))
            elif isinstance(inner, dict) and (key == "WindowDef" or (key == "over" and "frameOptions" in inner)):
                window(trace, inner, scope)
            elif key == "SelectStmt" or (key not in PLAIN and key not in LEAVES):
                raise Unresolved(f"The statement contains {key}, which has no lineage here; rewrite it.")
            elif key in PLAIN:
                todo.append(inner)
    return found
