"""What SELECT, INSERT, UPDATE, DELETE, MERGE and the expressions in them count as."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql import functions, relations
from chaperone_sidecar.protocols.postgresql.extent import narrow
from chaperone_sidecar.protocols.postgresql.walk import MAX_NAMES, Node, Part, Scope, Walk, handles

# The fields of each statement that are walked as they are; the others have a line of code below.
SELECT_PARTS: Final = (
    "targetList",
    "fromClause",
    "whereClause",
    "valuesLists",
    "sortClause",
    "limitCount",
    "limitOffset",
    "groupClause",
    "havingClause",
    "windowClause",
    "distinctClause",
)
INSERT_PARTS: Final = ("cols", "selectStmt")
UPDATE_PARTS: Final = ("targetList", "whereClause", "fromClause")
DELETE_PARTS: Final = ("usingClause", "whereClause")
MERGE_PARTS: Final = ("sourceRelation", "joinCondition", "mergeWhenClauses")
RETURNING_PARTS: Final = ("exprs",)
ON_CONFLICT_PARTS: Final = ("infer", "targetList", "whereClause")

_MERGE_EFFECTS: Final = {
    "CMD_UPDATE": Effect.MODIFY,
    "CMD_INSERT": Effect.CREATE,
    "CMD_DELETE": Effect.DELETE,
    "CMD_NOTHING": None,
}
_NAMED_OPERATORS: Final = frozenset({"AEXPR_OP", "AEXPR_OP_ANY", "AEXPR_OP_ALL"})
_SAMPLING_METHODS: Final = frozenset({"system", "bernoulli"})


@handles("SelectStmt")
def _select(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    parts = [node[key] for key in SELECT_PARTS if key in node]
    narrow(walk, node, "fromClause")
    if "larg" in node:
        parts += ({"SelectStmt": node["larg"]}, {"SelectStmt": node["rarg"]})
    if "lockingClause" in node:
        _lock_rows(walk, node, scope)
    if "intoClause" in node:
        into(walk, node["intoClause"])
    return _within(walk, node, parts, scope)


@handles("InsertStmt")
def _insert(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    target = walk.resolve(node["relation"])
    walk.write(Effect.CREATE, target)
    parts = [node[key] for key in INSERT_PARTS if key in node]
    conflict = node.get("onConflictClause")
    if conflict is not None:
        if conflict["action"] not in {"ONCONFLICT_NOTHING", "ONCONFLICT_UPDATE"}:
            walk.unknown(f"ON CONFLICT with {conflict['action']} is not known to this gateway; rewrite it.")
        if conflict["action"] == "ONCONFLICT_UPDATE":
            walk.write(Effect.MODIFY, target)
        if any(_is_of_target(column) for column in _columns([conflict.get("targetList"), conflict.get("whereClause")])):
            walk.read(target)
        parts += (conflict[key] for key in ON_CONFLICT_PARTS if key in conflict)
    parts += _returning(walk, node, target)
    return _within(walk, node, parts, scope)


@handles("UpdateStmt")
def _update(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    target = walk.resolve(node["relation"])
    is_filtered = narrow(walk, node, "fromClause")
    walk.write(Effect.MODIFY, target, is_filtered=is_filtered)
    _every_row(walk, node, target)
    parts = [node[key] for key in UPDATE_PARTS if key in node]
    if "whereClause" in node or "fromClause" in node or _has_columns(node["targetList"]):
        walk.read(target, is_filtered=is_filtered)
    parts += _returning(walk, node, target, is_filtered=is_filtered)
    return _within(walk, node, parts, scope)


@handles("DeleteStmt")
def _delete(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    target = walk.resolve(node["relation"])
    is_filtered = narrow(walk, node, "usingClause")
    walk.write(Effect.DELETE, target, is_filtered=is_filtered)
    _every_row(walk, node, target)
    parts = [node[key] for key in DELETE_PARTS if key in node]
    if parts:
        walk.read(target, is_filtered=is_filtered)
    parts += _returning(walk, node, target, is_filtered=is_filtered)
    return _within(walk, node, parts, scope)


@handles("MergeStmt")
def _merge(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    target = walk.resolve(node["relation"])
    walk.read(target)  # the join condition compares its rows
    for clause in node["mergeWhenClauses"]:
        kind = clause["MergeWhenClause"]["commandType"]
        if kind not in _MERGE_EFFECTS:
            walk.unknown(f"A branch of MERGE does {kind}, which this gateway doesn't know; rewrite it.")
        elif (effect := _MERGE_EFFECTS[kind]) is not None:
            walk.write(effect, target)
    parts = [node[key] for key in MERGE_PARTS if key in node]
    parts += _returning(walk, node, target)
    return _within(walk, node, parts, scope)


def into(walk: Walk, clause: Node) -> None:
    """Note the table that SELECT INTO or CREATE TABLE AS makes."""
    new_relation(walk, clause["rel"])
    if "viewQuery" in clause:
        walk.unknown("The statement contains viewQuery, which this gateway doesn't know; rewrite it.")


def new_relation(walk: Walk, node: Node) -> None:
    """Note a relation that is made; a temporary one changes what later names mean."""
    if node.get("relpersistence") == "t":
        walk.add(Effect.SCHEMA, f"pg_temp.{node['relname']}")
        walk.unknown("A temporary object can stand before another of its name; use a table of a permanent schema.")
        return
    # Made in the first schema of the search path, never in pg_catalog, whatever the name looks like.
    walk.add(Effect.SCHEMA, relations.join(node.get("schemaname", "public"), node["relname"]))


def _within(walk: Walk, node: Node, parts: list[Any], scope: Scope) -> list[Any] | None:
    """Continue with the parts: here if the statement has no WITH, else in the scope that its WITH makes."""
    clause = node.get("withClause")
    if clause is None:
        return parts
    queries = clause["ctes"]
    names = [query["CommonTableExpr"]["ctename"] for query in queries]
    walk.names += len(names)
    if walk.names > MAX_NAMES:
        walk.unknown(f"The statement has more than {MAX_NAMES} WITH queries; split it.")
        return None
    if clause.get("recursive"):
        scope = scope.union(names)
        walk.later(queries, scope)
    else:
        for query, name in zip(queries, names, strict=True):
            walk.later(query, scope)
            scope = scope | {name}
    walk.later(parts, scope)
    return None


def _returning(walk: Walk, node: Node, target: tuple[str, ...], *, is_filtered: bool = False) -> list[Any]:
    clause = node.get("returningClause")
    if clause is None:
        return []
    walk.read(target, is_filtered=is_filtered)
    return [clause[key] for key in RETURNING_PARTS if key in clause]


def _every_row(walk: Walk, node: Node, target: tuple[str, ...]) -> None:
    """Note that a modification reaches every row: no WHERE, or one that looks at no column."""
    where = node.get("whereClause")
    if where is None or not ("CurrentOfExpr" in where or _has_columns(where)):
        walk.write(Effect.BULK_WRITE, target)


def _has_columns(part: Part) -> bool:
    return next(_columns(part), None) is not None


def _columns(part: Part) -> Iterator[Node]:
    """The column references in a part of the tree, those of sub-selects included."""
    stack: list[Any] = [part]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key == "ColumnRef":
                    yield inner
                elif isinstance(inner, dict | list):
                    stack.append(inner)


def _is_of_target(column: Node) -> bool:
    """Whether a column in ON CONFLICT may be the stored row's, not the proposed one's."""
    fields = column["fields"]
    return len(fields) < 2 or fields[0].get("String", {}).get("sval") != "excluded"


def _lock_rows(walk: Walk, node: Node, scope: Scope) -> None:
    """FOR UPDATE and its like lock rows: `modify` on the named relations, else on all that FROM reaches."""
    named: dict[str, Node] = {}
    stack = list(node.get("fromClause", ()))
    while stack:
        item = stack.pop()
        if "RangeVar" in item:
            table = item["RangeVar"]
            named[table["alias"]["aliasname"] if "alias" in table else table["relname"]] = table
        elif "JoinExpr" in item and "alias" not in item["JoinExpr"]:
            stack += (item["JoinExpr"]["larg"], item["JoinExpr"]["rarg"])
    own = node.get("withClause", {}).get("ctes", ())
    scope = scope.union(query["CommonTableExpr"]["ctename"] for query in own)
    for clause in node["lockingClause"]:
        locked = [target["RangeVar"]["relname"] for target in clause["LockingClause"].get("lockedRels", ())]
        if locked and all(name in named for name in locked):
            for name in locked:
                table = named[name]
                if "schemaname" in table or table["relname"] not in scope:
                    walk.write(Effect.MODIFY, walk.resolve(table), is_filtered=id(table) in walk.narrowed)
        else:
            reached = Walk()
            reached.later(node.get("fromClause"), scope)
            reached.run()
            for access in reached.found:
                if access.effect in {Effect.READ, Effect.READ_SENSITIVE}:
                    walk.write(Effect.MODIFY, (access.object,))


# --- what FROM and expressions reach --------------------------------------------------------------------------------


@handles("RangeVar", "pktable", "identitySequence")
def _range_var(walk: Walk, node: Node, scope: Scope) -> None:
    if "schemaname" in node or node["relname"] not in scope:
        walk.read(walk.resolve(node), is_filtered=id(node) in walk.narrowed)


@handles("relation")
def _relation(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    if "relname" in node:  # LIKE and VACUUM hold the relation itself
        walk.read(walk.resolve(node))
        return None
    return [node]  # TABLESAMPLE holds a node


@handles("RangeTableSample")
def _table_sample(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    method = relations.strings(node["method"])
    if method[-1] not in _SAMPLING_METHODS or (len(method) > 1 and method[-2] != "pg_catalog"):
        walk.add(Effect.EXECUTE_CODE, relations.join(method[-2] if len(method) > 1 else "public", method[-1]))
    return [node["relation"], node.get("args"), node.get("repeatable")]


@handles("FuncCall", "funccall")
def _call(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    arguments = node.get("args", [])
    try:
        for access in functions.call(relations.strings(node["funcname"]), arguments):
            walk.note(access)
    except relations.Ambiguous as error:
        walk.unknown(str(error))
    return [arguments, node.get("agg_order"), node.get("agg_filter"), node.get("over")]


@handles("ColumnRef")
def _column(walk: Walk, node: Node, scope: Scope) -> None:
    if len(node["fields"]) > 1:
        _attribute(walk, node["fields"][-1])


@handles("A_Indirection")
def _indirection(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    for step in node["indirection"]:
        _attribute(walk, step)
    return [node["arg"], node["indirection"]]


def _attribute(walk: Walk, step: Node) -> None:
    """Note a function that is called as if it were a column: `('/etc/passwd').pg_read_file`."""
    try:
        for access in functions.attribute(step["String"]["sval"]) if "String" in step else ():
            walk.found[access] = None
    except relations.Ambiguous as error:
        walk.unknown(str(error))


@handles("A_Expr")
def _operator(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    if len(node["name"]) > 1 or node["kind"] in _NAMED_OPERATORS:  # the others are words: IN, LIKE, BETWEEN
        _use_operator(walk, node["name"])
    return [node.get("lexpr"), node.get("rexpr")]


@handles("SubLink")
def _sub_link(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    if "operName" in node:
        _use_operator(walk, node["operName"])
    return [node.get("testexpr"), node["subselect"]]


@handles("SortBy")
def _sort_by(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    if "useOp" in node:
        _use_operator(walk, node["useOp"])
    return [node["node"]]


def _use_operator(walk: Walk, name: list[Node]) -> None:
    """Note an operator that is not the server's own: it runs a function that the text does not show."""
    parts = relations.strings(name)
    if len(parts) > 1:
        if parts[-2] != "pg_catalog":
            walk.add(Effect.EXECUTE_CODE, f"{parts[-2]}.{parts[-1]}")
    elif parts[-1] not in relations.CATALOG.operators:
        walk.add(Effect.EXECUTE_CODE, f"public.{parts[-1]}")
