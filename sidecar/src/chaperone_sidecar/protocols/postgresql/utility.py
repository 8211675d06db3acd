"""What the session's own statements count as: transactions, settings, cursors, COPY, EXPLAIN, prepared statements."""

from __future__ import annotations

from typing import Any, Final

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.postgresql import functions, relations, settings
from chaperone_sidecar.protocols.postgresql.walk import Node, Scope, Walk, handles

_CURSOR_OPT_HOLD: Final = 0x20  # nodes/parsenodes.h

_TRANSACTION: Final = {
    "TRANS_STMT_BEGIN": "begin",
    "TRANS_STMT_START": "begin",
    "TRANS_STMT_COMMIT": "commit",
    "TRANS_STMT_ROLLBACK": "rollback",
    "TRANS_STMT_SAVEPOINT": "savepoint",
    "TRANS_STMT_RELEASE": "release",
    "TRANS_STMT_ROLLBACK_TO": "rollback_to",
}
_TWO_PHASE: Final = frozenset({"TRANS_STMT_PREPARE", "TRANS_STMT_COMMIT_PREPARED", "TRANS_STMT_ROLLBACK_PREPARED"})
# What EXPLAIN alone makes of the effects of the statement it plans: rows are neither written nor handed out. Functions
# stay, since the planner runs those it may fold into constants.
_WRITES: Final = frozenset({Effect.CREATE, Effect.MODIFY, Effect.DELETE})
_IN_BULK: Final = frozenset({Effect.BULK_READ, Effect.BULK_WRITE})


@handles("TransactionStmt")
def _transaction(walk: Walk, node: Node, scope: Scope) -> None:
    kind = node["kind"]
    if kind in _TRANSACTION:
        walk.add(Effect.TRANSACTION, f"transaction:{_TRANSACTION[kind]}")
    elif kind in _TWO_PHASE:  # outlives the session and keeps its locks
        walk.add(Effect.MAINTAIN, f"transaction:{node['gid']}")
    else:
        walk.unknown(f"The transaction statement {kind} is not known to this gateway; use BEGIN and COMMIT.")


@handles("ConstraintsSetStmt")
def _set_constraints(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.TRANSACTION, "transaction:constraints")


@handles("VariableSetStmt")
def _set(walk: Walk, node: Node, scope: Scope) -> None:
    kind = node["kind"]
    if kind == "VAR_SET_MULTI":  # SET TRANSACTION, SET SESSION CHARACTERISTICS, SET TRANSACTION SNAPSHOT
        walk.add(Effect.TRANSACTION, "transaction:characteristics")
    elif kind == "VAR_RESET_ALL":
        walk.add(Effect.SESSION, "setting:all")
    elif kind in {"VAR_RESET", "VAR_SET_DEFAULT"}:
        walk.found[settings.reset(node["name"])] = None
    elif kind == "VAR_SET_VALUE":
        walk.found[settings.set_value(node["name"], _single_value(node.get("args", [])))] = None
    elif kind == "VAR_SET_CURRENT":
        walk.found[settings.set_value(node["name"], None)] = None
    else:
        walk.unknown(f"SET with {kind} is not known to this gateway; use SET name TO value.")


def _single_value(values: list[Node]) -> str | None:
    # Sad path: `SET row_security = 1` pins as `on` does and is refused. Texts that differ in an integer alone share an
    # entry of the cache, so no fact may look at one: `= 0` would be taken for it.
    return functions.literal(values[0]) if len(values) == 1 else None


@handles("VariableShowStmt")
def _show(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.READ, "")


@handles("ListenStmt", "UnlistenStmt", "NotifyStmt")
def _channel(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.SESSION, f"channel:{node.get('conditionname', 'all')}")


@handles("DiscardStmt")
def _discard(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.SESSION, f"discard:{node.get('target', 'DISCARD_ALL').removeprefix('DISCARD_').lower()}")


# --- statements round another statement -----------------------------------------------------------------------------


@handles("ExplainStmt")
def _explain(walk: Walk, node: Node, scope: Scope) -> None:
    planned = Walk()
    planned.statement(node["query"])
    options = {option["DefElem"]["defname"] for option in node.get("options", ())}
    # Sad path: ANALYZE with an argument is taken as given, though it may say false.
    for access in planned.found if "analyze" in options else map(_planned, planned.found):
        if access is not None:
            walk.found[access] = None
    walk.include(planned)


def _planned(access: Access) -> Access | None:
    if access.effect in _WRITES:
        return Access(Effect.READ, access.object)
    return None if access.effect in _IN_BULK else access


@handles("PrepareStmt")
def _prepare(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.SESSION, f"prepared:{node['name']}")
    return [node["query"]]


@handles("ExecuteStmt")
def _execute(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.EXECUTE_CODE, f"prepared:{node['name']}")  # what it does isn't in this text
    return [node.get("params")]


@handles("DeallocateStmt")
def _deallocate(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.SESSION, f"prepared:{node.get('name', 'all')}")


@handles("DeclareCursorStmt")
def _declare(walk: Walk, node: Node, scope: Scope) -> None:
    _rows_of(walk, node["query"], is_bulk=bool(node.get("options", 0) & _CURSOR_OPT_HOLD))


@handles("FetchStmt", "ClosePortalStmt")
def _cursor(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.READ, "")  # its query was decided at DECLARE


def _rows_of(walk: Walk, query: Node, *, is_bulk: bool) -> None:
    rows = Walk()
    rows.statement(query)
    walk.found.update(rows.found)
    walk.include(rows)
    if is_bulk:
        walk.add(
            Effect.BULK_READ,
            *(access.object for access in rows.found if access.effect in {Effect.READ, Effect.READ_SENSITIVE}),
        )


@handles("CopyStmt")
def _copy(walk: Walk, node: Node, scope: Scope) -> list[Any] | None:
    if "filename" in node or node.get("is_program"):
        program = "program" if node.get("is_program") else "file"
        walk.add(Effect.EXTERNAL_IO, f"{program}:{node.get('filename', '')}")
    if "query" in node:
        _rows_of(walk, node["query"], is_bulk=True)
        return None
    table = walk.resolve(node["relation"])
    if node.get("is_from"):
        walk.write(Effect.CREATE, table)
        walk.add(Effect.BULK_WRITE, *table)
        return [node.get("whereClause")]
    walk.read(table)
    walk.add(Effect.BULK_READ, *table)
    return None


# --- running code ---------------------------------------------------------------------------------------------------


@handles("DoStmt")
def _do(walk: Walk, node: Node, scope: Scope) -> None:
    language = "plpgsql"
    for option in node["args"]:
        if option["DefElem"]["defname"] == "language":
            language = option["DefElem"]["arg"]["String"]["sval"]
    walk.add(Effect.EXECUTE_CODE, f"language:{language}")


@handles("CallStmt")
def _call(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    name = relations.strings(node["funccall"]["funcname"])
    walk.add(Effect.EXECUTE_CODE, relations.join(name[-2] if len(name) > 1 else "public", name[-1]))
    return [node["funccall"].get("args")]


@handles("LoadStmt")
def _load(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.EXECUTE_CODE, f"library:{node['filename']}")


# --- upkeep ---------------------------------------------------------------------------------------------------------


@handles("VacuumStmt")
def _vacuum(walk: Walk, node: Node, scope: Scope) -> None:
    for table in node.get("rels", ()):
        walk.add(Effect.MAINTAIN, *walk.resolve(table["VacuumRelation"]["relation"]))
    if "rels" not in node:
        walk.add(Effect.MAINTAIN, "database:current")


@handles("ClusterStmt", "ReindexStmt", "RefreshMatViewStmt")
def _maintain(walk: Walk, node: Node, scope: Scope) -> None:
    if "relation" in node:
        walk.add(Effect.MAINTAIN, *walk.resolve(node["relation"]))
    elif node.get("kind") == "REINDEX_OBJECT_SCHEMA":
        walk.add(Effect.MAINTAIN, f"schema:{node['name']}")
    else:
        walk.add(Effect.MAINTAIN, f"database:{node.get('name', 'current')}")


@handles("LockStmt")
def _lock(walk: Walk, node: Node, scope: Scope) -> None:
    for table in node["relations"]:
        walk.add(Effect.MAINTAIN, *walk.resolve(table["RangeVar"]))


@handles("CheckPointStmt")
def _checkpoint(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.MAINTAIN, "server:checkpoint")
