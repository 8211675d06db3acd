"""INSERT, UPDATE, DELETE, MERGE: what RETURNING shows, which rows are met, and what is written where.

A value that is written under another name can be read back by it, so its origins decide, but for a column that is set
to itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.protocols.postgresql.columns.scope import Entry, Scope, Source
from chaperone_sidecar.protocols.postgresql.columns.selection import targets, with_queries
from chaperone_sidecar.protocols.postgresql.columns.source import relation_source, sources
from chaperone_sidecar.protocols.postgresql.columns.target import expanded
from chaperone_sidecar.protocols.postgresql.columns.trace import Node, Queries, Trace, Unresolved, rows
from chaperone_sidecar.protocols.postgresql.columns.value import OPAQUE, Item, Value, derived
from chaperone_sidecar.protocols.postgresql.relations import strings

_NO_QUERIES: Final[Queries] = {}  # the target of a modification never is a WITH query


@rows("InsertStmt")
def _insert(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
    queries, target = _opened(trace, node, queries, outer)
    names = [column["ResTarget"]["name"] for column in node.get("cols", ())]
    for column in node.get("cols", ()):
        _indices(trace, column["ResTarget"], Scope((), outer))
    if not names:
        names = [item.name for item in target.columns]
    written: dict[str, Value] = {}
    select = node.get("selectStmt")
    if select is not None:
        found = trace.rows(select, queries, outer)
        for place, item in enumerate(found):
            trace.decide(item.value)
            if place < len(names):
                written[names[place]] = item.value
    if "onConflictClause" in node:
        _conflict(trace, node["onConflictClause"], target, written, outer)
    return _returning(trace, node, Scope([Entry(target)], outer), target)


def _conflict(trace: Trace, node: Node, target: Source, written: dict[str, Value], outer: Scope | None) -> None:
    """ON CONFLICT: that there is a conflict tells that there is such a row."""
    # EXCLUDED is what was to be inserted; of a column that is not named, the default that its owner gave it.
    excluded = Source("excluded", tuple(Item(c.name, written.get(c.name, c.value)) for c in target.columns))
    if target.open is not None:
        excluded.open = OPAQUE
    alone = Scope([Entry(target)], outer)
    both = Scope([Entry(target), Entry(excluded, has_columns=False)], outer)
    infer = node.get("infer", {})
    for element in infer.get("indexElems", ()):
        inner = element["IndexElem"]
        found = target.find(inner["name"]) if "name" in inner else trace.expression(inner["expr"], alone)
        trace.decide(found if found is not None else OPAQUE)
    if "whereClause" in infer:
        trace.decide(trace.expression(infer["whereClause"], alone))
    if "indexElems" not in infer:
        # By a constraint's name, or by any: all that is inserted may be what it compares.
        trace.decide(*(c.value for c in target.columns if c.name in written))
    if "whereClause" in node:
        trace.decide(trace.expression(node["whereClause"], both))
    _assign(trace, node.get("targetList", []), both, target, excluded=excluded)


@rows("UpdateStmt")
def _update(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
    queries, target = _opened(trace, node, queries, outer)
    scope = _met(trace, node, target, queries, outer)
    _assign(trace, node["targetList"], scope, target)
    return _returning(trace, node, scope, target)


@rows("DeleteStmt")
def _delete(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
    queries, target = _opened(trace, node, queries, outer)
    scope = _met(trace, node, target, queries, outer)
    return _returning(trace, node, scope, target)


@rows("MergeStmt")
def _merge(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Item, ...]:
    queries, target = _opened(trace, node, queries, outer)
    source = sources(trace, [node["sourceRelation"]], queries, outer)
    scope = Scope([*source.entries, Entry(target)], outer)  # RETURNING * has the source's columns first
    trace.decide(trace.expression(node["joinCondition"], scope))
    for clause in node["mergeWhenClauses"]:
        branch = clause["MergeWhenClause"]
        if "condition" in branch:
            trace.decide(trace.expression(branch["condition"], scope))
        if branch["commandType"] == "CMD_UPDATE":
            _assign(trace, branch["targetList"], scope, target)
        elif branch["commandType"] == "CMD_INSERT":
            for cell in branch.get("values", ()):
                trace.decide(*(item.value for item in expanded(trace, cell, scope)))
            for column in branch.get("targetList", ()):
                _indices(trace, column["ResTarget"], scope)
        elif branch["commandType"] not in {"CMD_DELETE", "CMD_NOTHING"}:
            raise Unresolved(f"A branch of MERGE does {branch['commandType']}, which has no lineage here; rewrite it.")
    return _returning(trace, node, scope, target)


def _opened(trace: Trace, node: Node, queries: Queries, outer: Scope | None) -> tuple[Queries, Source]:
    """The WITH queries that a modification sees, and its target."""
    trace.queries = with_queries(trace, node, queries, outer)
    target = _target(trace, node["relation"])
    if trace.is_measured:  # how much is logged of a change tells how much of the old row was the same
        trace.decide(target.as_row())
    return trace.queries, target


def _target(trace: Trace, node: Node) -> Source:
    """The relation that is modified, with values of its own: those of a second look at it are other rows'."""
    found = relation_source(trace, node, _NO_QUERIES)
    columns = tuple(Item(item.name, msgspec.structs.replace(item.value)) for item in found.columns)
    return Source(found.name, columns, qualified=found.qualified, is_table=True, unknown=found.open)


def _met(trace: Trace, node: Node, target: Source, queries: Queries, outer: Scope | None) -> Scope:
    """The scope of UPDATE and DELETE: the target is seen with the other items, but not by LATERAL ones among them."""
    found = sources(trace, node.get("fromClause") or node.get("usingClause") or [], queries, outer)
    scope = Scope([Entry(target), *found.entries], outer)
    if "whereClause" in node:
        trace.decide(trace.expression(node["whereClause"], scope))
    return scope


def _assign(trace: Trace, nodes: list[Node], scope: Scope, target: Source, *, excluded: Source | None = None) -> None:
    """SET: what is written decides, unless it is what stood there, or what was to be inserted there anyway."""
    several: list[Value] = []
    for node in nodes:
        assigned = node["ResTarget"]
        _indices(trace, assigned, scope)
        value = assigned["val"]
        if "MultiAssignRef" in value:
            part = value["MultiAssignRef"]
            if part["colno"] == 1:
                several = _several(trace, part["source"], scope, part["ncolumns"])
            found = several[part["colno"] - 1]
        else:
            found = trace.expression(value, scope)
        name = assigned["name"]
        same = target.index.get(name)
        proposed = None if excluded is None else excluded.index.get(name)
        if "indirection" in assigned or not (found is same or (proposed is not None and found is proposed)):
            trace.decide(found)


def _several(trace: Trace, node: Node, scope: Scope, count: int) -> list[Value]:
    """The values of `(a, b) = …`."""
    value = trace.expression(node, scope)
    if value.fields is not None and len(value.fields) == count:
        return [item.value for item in value.fields]
    return [derived([value])] * count


def _indices(trace: Trace, assigned: Node, scope: Scope) -> None:
    for step in assigned.get("indirection", ()):
        bounds = [step["A_Indices"][key] for key in ("lidx", "uidx") if key in step.get("A_Indices", {})]
        trace.decide(*trace.expressions(bounds, scope))


def _returning(trace: Trace, node: Node, scope: Scope, target: Source) -> tuple[Item, ...]:
    """RETURNING sees the rows as they are now, and under `old` and `new` what they were and are."""
    clause = node.get("returningClause")
    if clause is None:
        return ()
    names = {"RETURNING_OPTION_OLD": "old", "RETURNING_OPTION_NEW": "new"}
    for option in clause.get("options", ()):
        names[option["ReturningOption"]["option"]] = option["ReturningOption"]["value"]
    taken = {entry.source.name for entry in scope.entries if entry.has_name}
    both = [
        Entry(Source(name, target.columns, is_table=True, unknown=target.open), has_columns=False)
        for name in names.values()
        if name not in taken
    ]
    return targets(trace, clause["exprs"], Scope([*scope.entries, *both], scope.parent))


def copied_in(trace: Trace, node: Node) -> None:
    """COPY … FROM … WHERE: looks at the new rows only, but defaults and generated columns are its owner's."""
    target = _target(trace, node["relation"])
    if "whereClause" in node:
        trace.decide(trace.expression(node["whereClause"], Scope([Entry(target)])))


def copied_out(trace: Trace, node: Node) -> tuple[Item, ...]:
    """COPY … TO: the columns named, or all."""
    target = _target(trace, node["relation"])
    if target.open is not None:
        raise Unresolved("COPY names a relation that is not known here.")
    named = strings(node.get("attlist", []))
    if not named:
        return target.columns
    return tuple(Item(name, target.find(name) or OPAQUE) for name in named)
