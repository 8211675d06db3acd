"""How far a statement reaches by its own words: whether a WHERE narrows what it names, and the number of its LIMIT.

What is here is about honest statements: `WHERE id > -1` is a condition. How many rows a statement really reaches only
the database can estimate.
"""

from __future__ import annotations

from typing import Any, Final

from chaperone_sidecar.command import Access, Effect, Extent
from chaperone_sidecar.protocols.postgresql.walk import Node, Walk

MAX_DEPTH: Final = 50  # of AND, OR and NOT in each other; a deeper condition counts as none

_READS: Final = frozenset({Effect.READ, Effect.READ_SENSITIVE})
_NONE: Final = Extent()


def narrow(walk: Walk, node: Node, source: str) -> bool:
    """Note which relations of FROM or USING the statement's WHERE narrows; returns whether it narrows anything."""
    where = node.get("whereClause")
    if where is None or not ("CurrentOfExpr" in where or _narrows(where, MAX_DEPTH)):
        return False
    stack = list(node.get(source, ()))
    while stack:
        item = stack.pop()
        if "RangeVar" in item:
            walk.narrowed.add(id(item["RangeVar"]))
        elif "JoinExpr" in item:
            stack += (item["JoinExpr"]["larg"], item["JoinExpr"]["rarg"])
    return True


def extents(walk: Walk, tree: Node) -> dict[Access, Extent]:
    """The extents of a walked statement's accesses."""
    limit = _limit(tree.get("SelectStmt"))
    found = dict.fromkeys(walk.found, _NONE)
    if limit is None and not walk.filtered:
        return found
    for access in found:
        most = limit if access.effect in _READS and access.object else None
        found[access] = Extent(access in walk.filtered, most)
    return found


def widest(one: Extent, other: Extent) -> Extent:
    """What can be said of two accesses together."""
    limit = None if one.limit is None or other.limit is None else max(one.limit, other.limit)
    return Extent(one.has_where and other.has_where, limit)


def _limit(select: Node | None) -> int | None:
    """The number of a LIMIT; None where it is none, or says not all (WITH TIES)."""
    if select is None or select.get("limitOption") != "LIMIT_OPTION_COUNT":
        return None
    constant: Node = select.get("limitCount", {}).get("A_Const", {})
    if "ival" not in constant:
        return None
    number: int = constant["ival"].get("ival", 0)
    return number if number >= 0 else None


def _narrows(part: Any, depth: int, *, is_negated: bool = False) -> bool:  # noqa: ANN401 - a node of any kind
    """Whether a condition can be false by what a row holds."""
    if depth == 0 or not isinstance(part, dict):
        return False
    ((kind, node),) = part.items()
    if kind == "BoolExpr":
        inner = node["args"]
        if node["boolop"] == "NOT_EXPR":
            return _narrows(inner[0], depth - 1, is_negated=not is_negated)
        each = (_narrows(one, depth - 1, is_negated=is_negated) for one in inner)
        return any(each) if (node["boolop"] == "AND_EXPR") != is_negated else all(each)
    if kind == "NullTest":  # what must not be null is never null in most columns
        return (node["nulltesttype"] == "IS_NULL") != is_negated and _has_columns(node["arg"])
    if kind == "SubLink":
        if node["subLinkType"] == "EXISTS_SUBLINK":
            query = node["subselect"].get("SelectStmt", {})
            return _narrows(query.get("whereClause"), depth - 1)
        return _has_columns(node.get("testexpr"))
    if kind == "A_Expr" and _is_same(node.get("lexpr"), node.get("rexpr")):
        return False
    return _has_columns(part)


def _is_same(one: Any, other: Any) -> bool:  # noqa: ANN401 - a node of any kind, or none
    """Whether both may be the same column: equal names, as far as both say them."""
    if not isinstance(one, dict) or not isinstance(other, dict) or "ColumnRef" not in one or "ColumnRef" not in other:
        return False
    left, right = one["ColumnRef"]["fields"], other["ColumnRef"]["fields"]
    shared = min(len(left), len(right))
    return bool(left[-shared:] == right[-shared:])


def _has_columns(part: Any) -> bool:  # noqa: ANN401 - a part of the tree
    """Whether the part looks at a column of this query; what a sub-select looks at is its own matter."""
    stack = [part]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            if "ColumnRef" in value:
                return True
            stack.extend(inner for key, inner in value.items() if key != "subselect")
    return False
