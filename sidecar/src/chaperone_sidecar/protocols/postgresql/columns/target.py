"""What one expression of a list stands for: a column, or all columns of something where it ends with a star."""

from __future__ import annotations

from chaperone_sidecar.protocols.postgresql.columns import name as names
from chaperone_sidecar.protocols.postgresql.columns.scope import Scope
from chaperone_sidecar.protocols.postgresql.columns.trace import Node, Trace, Unresolved
from chaperone_sidecar.protocols.postgresql.columns.value import Item, Value, derived
from chaperone_sidecar.protocols.postgresql.relations import strings
from chaperone_sidecar.protocols.postgresql.schema import Relation


def expanded(trace: Trace, node: Node, scope: Scope) -> list[Item]:
    """The columns that an expression of a list stands for: several for a star."""
    if not names.is_star(node):
        return [Item(names.NAMELESS, trace.expression(node, scope))]
    if "ColumnRef" in node:
        path = strings(node["ColumnRef"]["fields"])
        if not path:
            entries = [entry for entry in scope.entries if entry.has_columns]
            return [item for entry in entries for item in _all(trace, entry.source.columns, entry.source.open)]
        source = scope.source(path[-1], path[-2] if len(path) > 1 else "")
        if source is None:
            raise Unresolved("A * stands for the columns of something that FROM does not have.")
        return _all(trace, source.columns, source.open)
    value = trace.expression(node, scope)
    if value.fields is not None:
        return _all(trace, value.fields, None)
    names_of_type = fields_of_type(trace, value.type)
    if not names_of_type:
        raise Unresolved("A * stands for the fields of a type that is not known here; name them.")
    return _all(trace, tuple(Item(name, _piece(value)) for name in names_of_type), None)


def _all(trace: Trace, columns: tuple[Item, ...], unknown: Value | None) -> list[Item]:
    if unknown is not None:
        raise Unresolved("A * stands for columns that are not known here; name them.")
    trace.spend(len(columns))
    return list(columns)


def _piece(value: Value) -> Value:
    return derived([value], is_pure=value.is_pure, growth=value.growth)


def fields_of_type(trace: Trace, oid: int) -> list[str]:
    """The names of the columns of a composite type; none for one that is not known."""
    found = trace.schema.type(oid) if trace.schema.has_type(oid) else None
    relation: Relation | None = trace.schema.relation_by_oid(found.relation) if found is not None else None
    return [column.name for column in relation.columns] if relation is not None else []
