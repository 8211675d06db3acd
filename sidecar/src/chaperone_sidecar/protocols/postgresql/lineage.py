"""Where the columns of a result come from, and which columns decide what comes.

`trace` walks one statement's tree with the database's schema at hand. It says for each output column which base
columns it derives from, and which columns decide: which rows there are, in which order, whether a fault is raised, or
what is written elsewhere. It knows nothing of masks: who asks compares the columns with those that are classified.
What it cannot resolve is opaque, never absent.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from chaperone_sidecar.protocols.postgresql.columns.definition import define
from chaperone_sidecar.protocols.postgresql.columns.modification import copied_in, copied_out
from chaperone_sidecar.protocols.postgresql.columns.trace import Trace, Unresolved
from chaperone_sidecar.protocols.postgresql.columns.value import EMPTY, Item
from chaperone_sidecar.protocols.postgresql.relations import Ambiguous, words
from chaperone_sidecar.protocols.postgresql.schema import Schema

type Node = dict[str, Any]


class Output(msgspec.Struct, frozen=True, gc=False):
    """One column of a result.

    `origins` are base columns as `schema.table.column`; `is_direct` that it is the value of one column as it stands
    (its origins then are the names of that column: a view's, the table's, those of tables that inherit);
    `is_opaque` that it may hold what no origin names (the result of a function that is not known, …). `name` is the
    column's name as the server gives it.
    """

    origins: frozenset[str] = frozenset()
    is_direct: bool = False
    is_opaque: bool = False
    name: str = ""


class Lineage(msgspec.Struct, frozen=True, gc=False):
    """What `trace` found.

    `outputs` is None where the statement returns no rows that derive from its text (SHOW, FETCH, BEGIN); `deciding`
    are base columns. `is_opaque`: something besides the outputs is not resolved (what decides, or what is written);
    `why` says in one sentence what the first unresolved thing was.
    """

    outputs: tuple[Output, ...] | None = None
    deciding: frozenset[str] = frozenset()
    is_opaque: bool = False
    why: str = ""


_ROWS: Final = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
# Options of EXPLAIN with which nothing runs; with all others it may count and measure what it has run.
_ESTIMATES: Final = words("costs format generic_plan settings summary verbose")
_CODE: Final = frozenset({"ExecuteStmt", "CallStmt", "DoStmt"})
_MALFORMED: Final = (KeyError, TypeError, IndexError, AttributeError, ValueError, StopIteration)


def trace(statement: Node, schema: Schema) -> Lineage:
    """The lineage of one statement (the `stmt` of a `RawStmt`). Never raises but `NotLookedUp`."""
    state = Trace(schema)
    outputs: tuple[Output, ...] | None = None
    try:
        found = _statement(state, statement)
        if found is not None:
            outputs = tuple(_output(item) for item in found)
            if any(output.is_opaque for output in outputs):
                state.explain("A column of the result holds what no rule can name.")
    except (Unresolved, Ambiguous) as error:
        state.depth_of_views = 0
        state.unresolved(str(error))
    except RecursionError:
        state.depth_of_views = 0
        state.unresolved("The statement nests too deep to say where its columns come from; split it.")
    except _MALFORMED:
        # A tree that is built otherwise than is known here: a newer grammar's.
        state.depth_of_views = 0
        state.unresolved("The statement is built in a way that has no lineage here; rewrite it.")
    return Lineage(outputs, frozenset(state.deciding), state.is_opaque, state.why)


def _output(item: Item) -> Output:
    value = item.value
    return Output(value.origins, value.is_direct, value.is_opaque, item.name)


def _statement(state: Trace, statement: Node) -> tuple[Item, ...] | None:
    """The columns of what a statement answers; None if it answers no rows of its own."""
    ((kind, node),) = statement.items()
    if kind in _ROWS:
        columns = state.rows(statement, {}, None)
        has_rows = kind == "SelectStmt" or "returningClause" in node
        return columns if has_rows else None
    if kind in {"DeclareCursorStmt", "PrepareStmt"}:
        return _statement(state, node["query"])
    if kind in {"CreateTableAsStmt", "ViewStmt"}:  # under that name no rule would know the columns
        columns = _statement(state, node["query"]) or ()
        state.decide(*(item.value for item in columns))
        return columns
    if kind == "ExplainStmt":
        options = {option["DefElem"]["defname"] for option in node.get("options", ())}
        state.is_measured = not options <= _ESTIMATES
        _statement(state, node["query"])
        return (Item("QUERY PLAN", EMPTY),)
    if kind == "CopyStmt":
        if node.get("is_from"):
            copied_in(state, node)
            return None
        copied = _statement(state, node["query"]) if "query" in node else copied_out(state, node)
        if any(option["DefElem"]["defname"] == "encoding" for option in node.get("options", ())):
            state.decide(*(item.value for item in copied or ()))  # it fails on letters that the encoding lacks
        return copied
    if kind in _CODE:
        state.unresolved("What the statement runs is in another text.")
    else:
        define(state, kind, node)
    return None
