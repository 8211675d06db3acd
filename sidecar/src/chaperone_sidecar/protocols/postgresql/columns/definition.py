"""Statements without rows of their own: which of them show, copy or rename what a column holds.

What is in none of the tables is not resolved: it may run code or give a column another name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chaperone_sidecar.protocols.postgresql.columns.scope import Entry, Scope, Source
from chaperone_sidecar.protocols.postgresql.columns.source import relation_source
from chaperone_sidecar.protocols.postgresql.columns.trace import Node, Trace
from chaperone_sidecar.protocols.postgresql.columns.value import OPAQUE
from chaperone_sidecar.protocols.postgresql.relations import strings, words

# They neither show a value nor give one another name.
HARMLESS: Final = words(
    """TransactionStmt VariableSetStmt VariableShowStmt DiscardStmt ListenStmt NotifyStmt UnlistenStmt DeallocateStmt
    ClosePortalStmt FetchStmt LockStmt CheckPointStmt VacuumStmt ReindexStmt ConstraintsSetStmt
    TruncateStmt DropStmt CommentStmt GrantStmt GrantRoleStmt CreateRoleStmt AlterRoleStmt AlterRoleSetStmt
    DropRoleStmt CreateSeqStmt AlterSeqStmt CreateEnumStmt AlterEnumStmt RefreshMatViewStmt CreatedbStmt DropdbStmt
    AlterDatabaseStmt AlterDatabaseSetStmt AlterSystemStmt AlterOwnerStmt AlterDefaultPrivilegesStmt SecLabelStmt"""
)
_ALTERATIONS: Final = words(
    """AT_DropColumn AT_DropNotNull AT_ColumnDefault AT_SetStatistics AT_SetStorage AT_DropConstraint AT_ChangeOwner
    AT_EnableRowSecurity AT_DisableRowSecurity AT_ForceRowSecurity AT_NoForceRowSecurity AT_SetRelOptions
    AT_ResetRelOptions AT_ClusterOn AT_DropCluster AT_SetLogged AT_SetUnLogged AT_ReplicaIdentity"""
)


def define(trace: Trace, kind: str, node: Node) -> None:
    """Note what a statement without rows decides by, or that it is not resolved."""
    if kind in HARMLESS:
        return
    if kind == "CreateSchemaStmt" and "schemaElts" not in node:
        return
    if kind == "CreateStmt" and not any(key in node for key in ("inhRelations", "partbound", "ofTypename")):
        if not any("TableLikeClause" in element for element in node.get("tableElts", ())):
            _keys(trace, node.get("tableElts", ()))
            return
    elif kind == "ClusterStmt" and "relation" in node:  # rows come in the order in which they lie
        trace.decide(relation_source(trace, node["relation"], {}).as_row())
        return
    elif kind == "IndexStmt":
        _index(trace, node)
        return
    elif kind in {"CreatePolicyStmt", "AlterPolicyStmt"}:
        scope = Scope([Entry(relation_source(trace, node["table"], {}))])
        trace.decide(*trace.expressions([node[key] for key in ("qual", "with_check") if key in node], scope))
        return
    elif kind == "RenameStmt" and "relation" in node:
        _rename(trace, node)
        return
    elif kind == "AlterTableStmt":
        commands = [command["AlterTableCmd"] for command in node["cmds"]]
        if all(command["subtype"] in _ALTERATIONS or _adds_plainly(command) for command in commands):
            return
    trace.unresolved(f"What {kind} shows, copies or renames is not known here.")


def _index(trace: Trace, node: Node) -> None:
    """An index fails on what it cannot hold, or on what is there twice."""
    source = relation_source(trace, node["relation"], {})
    scope = Scope([Entry(source)])
    for element in [*node.get("indexParams", ()), *node.get("indexIncludingParams", ())]:
        inner = element["IndexElem"]
        found = source.find(inner["name"]) if "name" in inner else trace.expression(inner["expr"], scope)
        trace.decide(found if found is not None else OPAQUE)
    if "whereClause" in node:
        trace.decide(trace.expression(node["whereClause"], scope))


def _keys(trace: Trace, elements: Iterable[Node]) -> None:
    """A foreign key tells of each row that is inserted whether the other table has its value."""
    constraints = [
        inner["Constraint"]
        for element in elements
        for inner in (element["ColumnDef"].get("constraints", ()) if "ColumnDef" in element else [element])
    ]
    for constraint in constraints:
        if constraint["contype"] == "CONSTR_FOREIGN":
            source = relation_source(trace, constraint["pktable"], {})
            named = strings(constraint.get("pk_attrs", []))
            found = [source.find(name) or OPAQUE for name in named] or [source.as_row()]
            trace.decide(*found)


def _rename(trace: Trace, node: Node) -> None:
    """Under another name no rule would know the column."""
    source: Source = relation_source(trace, node["relation"], {})
    if node["renameType"] == "OBJECT_COLUMN":
        trace.decide(source.find(node["subname"]) or OPAQUE)
    else:
        trace.decide(source.as_row())


def _adds_plainly(command: Node) -> bool:
    """Whether ADD COLUMN adds one that holds nothing of the others."""
    if command["subtype"] != "AT_AddColumn":
        return False
    constraints = [inner["Constraint"] for inner in command["def"]["ColumnDef"].get("constraints", ())]
    return all(
        inner["contype"] in {"CONSTR_NULL", "CONSTR_NOTNULL"}
        or (inner["contype"] == "CONSTR_DEFAULT" and "A_Const" in inner["raw_expr"])
        for inner in constraints
    )
