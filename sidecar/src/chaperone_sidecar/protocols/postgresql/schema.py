"""What is known of one database's relations and types: data that was looked up there, and nothing that looks.

Names are `schema.name`, as the classifier writes objects. A name that was looked up and not found is known to be
absent; one that was not looked up raises `NotLookedUp`, so that nobody takes the one for the other.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

# pg_class.relkind, less indexes, sequences and TOAST: what a query can read columns of.
type RelationKind = Literal["r", "p", "v", "m", "f", "c"]

VIEWS: Final = frozenset({"v", "m"})


class NotLookedUp(Exception):
    """The database was not asked for this yet; `name` is what has to be asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was not looked up")
        self.name = name


class Column(msgspec.Struct, frozen=True, gc=False):
    """A column of a relation; `number` is `pg_attribute.attnum`, `type` the OID of its type."""

    name: str
    number: int
    type: int


class Relation(msgspec.Struct, frozen=True, gc=False):
    """A table, view, materialised view, foreign table, or composite type.

    `definition` is the query of a view or materialised view with every name qualified but those of pg_catalog, "" where
    it is too long to be kept or could not be had: then nothing can be said of the view's columns. `reads` are the
    relations in that query, at any depth, known without the text. `children` are the relations that inherit from it and
    are no partitions of it, less temporary ones; `parent` is the partitioned table of which it is a partition.
    `parents` are all that it inherits from or is a partition of, theirs included: its rows are theirs too. `mark` is
    another text once the relation's name, columns, rule or place in a hierarchy were changed, even if changed back.
    """

    oid: int
    name: str
    kind: RelationKind
    columns: tuple[Column, ...]
    definition: str = ""
    children: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    parent: str = ""
    parents: tuple[str, ...] = ()
    mark: str = ""


class Type(msgspec.Struct, frozen=True, gc=False):
    """A type; `kind` is `pg_type.typtype`, `name` is `schema.name`.

    `element` is the type of an array's elements, a multirange's ranges, a range's bounds, a domain's base. `relation`
    is the OID of the relation whose rows a composite type describes; `is_array` whether it is a true array.
    """

    oid: int
    name: str
    kind: Literal["b", "c", "d", "e", "m", "p", "r"]
    element: int = 0
    relation: int = 0
    is_array: bool = False


class Schema:
    """What was looked up in one database so far; bounded by whoever fills it."""

    def __init__(self) -> None:
        self._relations: dict[str, Relation | None] = {}
        self._by_oid: dict[int, Relation] = {}
        self._types: dict[int, Type | None] = {}

    def relation(self, name: str) -> Relation | None:
        """The relation of that name, None where there is none.

        Raises:
            NotLookedUp: nobody asked for it yet.
        """
        try:
            return self._relations[name]
        except KeyError:
            raise NotLookedUp(name) from None

    def relation_by_oid(self, oid: int) -> Relation | None:
        """The relation with that OID, if it was looked up by its name."""
        return self._by_oid.get(oid)

    def type(self, oid: int) -> Type | None:
        """The type with that OID, None where there is none.

        Raises:
            NotLookedUp: nobody asked for it yet.
        """
        try:
            return self._types[oid]
        except KeyError:
            raise NotLookedUp(f"type {oid}") from None

    def has(self, name: str) -> bool:
        """Whether the name was looked up, with whatever result."""
        return name in self._relations

    def add(self, name: str, relation: Relation | None) -> None:
        """The database was asked for a relation of that name."""
        self._relations[name] = relation
        if relation is not None:
            self._by_oid[relation.oid] = relation

    def add_type(self, oid: int, found: Type | None) -> None:
        """The database was asked for a type."""
        self._types[oid] = found

    def has_type(self, oid: int) -> bool:
        """Whether the type was looked up, with whatever result."""
        return oid in self._types

    def __len__(self) -> int:
        return len(self._relations) + len(self._types)

    def clear(self) -> None:
        """Forget everything: something in the database may have changed."""
        self._relations.clear()
        self._by_oid.clear()
        self._types.clear()


class Watched(Schema):
    """A schema as it stands, and what was asked of it: `known` is what the relations were taken for."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._relations = schema._relations
        self._by_oid = schema._by_oid
        self._types = schema._types
        self.known: dict[str, Relation | None] = {}

    def relation(self, name: str) -> Relation | None:
        """See `Schema.relation`."""
        found = self.known[name] = super().relation(name)
        return found

    def relation_by_oid(self, oid: int) -> Relation | None:
        """See `Schema.relation_by_oid`."""
        found = super().relation_by_oid(oid)
        if found is not None:
            self.known[found.name] = found
        return found
