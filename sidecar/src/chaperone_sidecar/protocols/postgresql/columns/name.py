"""The name a column gets that the text gives none, as the server's `FigureColname` does it."""

from __future__ import annotations

from typing import Any, Final

from chaperone_sidecar.protocols.postgresql.columns.trace import Unresolved
from chaperone_sidecar.protocols.postgresql.relations import strings

type Node = dict[str, Any]

NAMELESS: Final = "?column?"
_FIXED: Final = {
    "A_ArrayExpr": "array", "RowExpr": "row", "CoalesceExpr": "coalesce", "XmlSerialize": "xmlserialize",
    "GroupingFunc": "grouping", "MergeSupportFunc": "merge_action", "JsonParseExpr": "json",
    "JsonScalarExpr": "json_scalar", "JsonSerializeExpr": "json_serialize", "JsonObjectConstructor": "json_object",
    "JsonArrayConstructor": "json_array", "JsonArrayQueryConstructor": "json_array", "JsonObjectAgg": "json_objectagg",
    "JsonArrayAgg": "json_arrayagg",
}  # fmt: skip
_BY_OP: Final = {
    "IS_GREATEST": "greatest", "IS_LEAST": "least",
    "IS_XMLCONCAT": "xmlconcat", "IS_XMLELEMENT": "xmlelement", "IS_XMLFOREST": "xmlforest", "IS_XMLPARSE": "xmlparse",
    "IS_XMLPI": "xmlpi", "IS_XMLROOT": "xmlroot",
    "JSON_EXISTS_OP": "json_exists", "JSON_QUERY_OP": "json_query", "JSON_VALUE_OP": "json_value",
    "SVFOP_CURRENT_DATE": "current_date", "SVFOP_CURRENT_TIME": "current_time", "SVFOP_CURRENT_TIME_N": "current_time",
    "SVFOP_CURRENT_TIMESTAMP": "current_timestamp", "SVFOP_CURRENT_TIMESTAMP_N": "current_timestamp",
    "SVFOP_LOCALTIME": "localtime", "SVFOP_LOCALTIME_N": "localtime", "SVFOP_LOCALTIMESTAMP": "localtimestamp",
    "SVFOP_LOCALTIMESTAMP_N": "localtimestamp", "SVFOP_CURRENT_ROLE": "current_role",
    "SVFOP_CURRENT_USER": "current_user", "SVFOP_USER": "user", "SVFOP_SESSION_USER": "session_user",
    "SVFOP_CURRENT_CATALOG": "current_catalog", "SVFOP_CURRENT_SCHEMA": "current_schema",
}  # fmt: skip


def is_star(node: Node) -> bool:
    """Whether a target stands for several columns: `*`, `t.*`, `(x).*`."""
    for kind, inner in node.items():
        if kind == "ColumnRef":
            return "A_Star" in inner["fields"][-1]
        if kind == "A_Indirection":
            return "A_Star" in inner["indirection"][-1]
    return False


def of(node: Node) -> str:
    """The name of an output column with this expression."""
    return _figure(node)[0] or NAMELESS


def _figure(node: Node) -> tuple[str, bool]:
    """The name, and whether it is a good one: a cast's type or a CASE gives way to what is inside."""
    for kind, inner in node.items():
        if kind in {"ColumnRef", "A_Indirection"}:
            names = strings(inner["fields" if kind == "ColumnRef" else "indirection"])
            if names:
                return names[-1], True
            return _figure(inner["arg"]) if kind == "A_Indirection" else ("", False)
        if kind == "FuncCall":
            return strings(inner["funcname"])[-1], True
        if kind == "A_Expr" and inner["kind"] == "AEXPR_NULLIF":
            return "nullif", True
        if kind == "TypeCast":
            name, is_good = _figure(inner["arg"])
            if is_good:
                return name, True
            names = strings(inner["typeName"].get("names", []))
            return (names[-1], False) if names else (name, is_good)
        if kind == "CollateClause":
            return _figure(inner["arg"])
        if kind == "CaseExpr":
            name, is_good = _figure(inner.get("defresult", {}))
            return (name, True) if is_good else ("case", False)
        if kind == "SubLink":
            return _figure_link(inner)
        if kind in {"MinMaxExpr", "XmlExpr", "JsonFuncExpr", "SQLValueFunction"}:
            return _BY_OP.get(inner["op"], ""), True
        if kind in _FIXED:
            return _FIXED[kind], True
    return "", False


def _figure_link(link: Node) -> tuple[str, bool]:
    kind = link["subLinkType"]
    if kind == "EXISTS_SUBLINK":
        return "exists", True
    if kind == "ARRAY_SUBLINK":
        return "array", True
    select = link["subselect"].get("SelectStmt", {})
    while kind == "EXPR_SUBLINK":
        if "larg" in select:
            select = select["larg"]
            continue
        if "valuesLists" in select:
            return "column1", True
        if "targetList" in select:
            target = select["targetList"][0]["ResTarget"]
            if "name" in target:
                return target["name"], True
            if is_star(target["val"]):
                raise Unresolved("The name of a column is that of another one behind a *; name it with AS.")
            return of(target["val"]), True
        break
    return "", False
