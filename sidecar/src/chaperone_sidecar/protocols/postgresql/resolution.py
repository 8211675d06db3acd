"""Facts completed by what is known of the database: which names are relations there, and what lies behind them.

A view shows rows of other relations, a table holds the rows of those that inherit from it, a partition is a part of its
parent. `resolve` adds these as *implied* accesses: no rule has to allow them, and one that denies them counts. It reads
a `Schema` and asks nobody; what was not looked up stays as it was written. CLASSIFY.md says what leads where.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from chaperone_sidecar.command import Access, Effect, Facts, Resolution
from chaperone_sidecar.protocols.postgresql import grammar, relations
from chaperone_sidecar.protocols.postgresql.grammar import ParseError
from chaperone_sidecar.protocols.postgresql.lookup import MAX_NAMES
from chaperone_sidecar.protocols.postgresql.relations import Ambiguous, is_sensitive, is_system
from chaperone_sidecar.protocols.postgresql.schema import VIEWS, NotLookedUp, Relation, Schema

MAX_IMPLIED: Final = 200  # more is no view that somebody understands, and each one is looked at by every rule

_READS: Final = frozenset({Effect.READ, Effect.READ_SENSITIVE, Effect.BULK_READ})
_CHANGES: Final = frozenset({Effect.CREATE, Effect.MODIFY, Effect.DELETE, Effect.BULK_WRITE})
_DATA: Final = _READS | _CHANGES
_FOLLOWED: Final = _DATA | {Effect.DESTROY}
_DEFINES: Final = frozenset({Effect.SCHEMA, Effect.DESTROY})  # what is known may not hold when the text has run half

_TOO_MUCH: Final = (
    "Views or inheritance lead the statement to more relations than can be followed, or to one whose name no rule can "
    "hold; name the tables that are meant, or ask for a view of fewer of them."
)
_TOO_MANY: Final = f"The statement names more than {MAX_NAMES} relations; split it."

type _Key = tuple[Effect, str]


def names(facts: Facts) -> tuple[str, ...]:
    """The names that `resolve` needs to be looked up: relations, but for the server's own."""
    return tuple(
        dict.fromkeys(
            access.object
            for access in facts.accesses
            if access.effect in _FOLLOWED and _is_relation(access.object) and not is_system(access.object)
        )
    )


def resolve(facts: Facts, schema: Schema) -> Facts:
    """The classifier's facts with implied accesses, and `catalog` as resolution where every name was found.

    The same object where nothing changes. A name that was not looked up is not followed, and leaves the resolution as
    it is. Never raises.
    """
    wanted = names(facts)
    if len(wanted) > MAX_NAMES:
        return _unknown(facts, (), _TOO_MANY)
    search = _Search(facts, schema)
    implied = tuple(sorted(search.implied.values(), key=lambda access: (_ORDER[access.effect], access.object)))
    if search.is_cut:
        return _unknown(facts, implied, _TOO_MUCH)
    resolution = facts.resolution
    if resolution is Resolution.SYNTACTIC and _is_found(facts, schema):
        resolution = Resolution.CATALOG
    if not implied and resolution is facts.resolution:
        return facts
    return msgspec.structs.replace(facts, accesses=facts.accesses + implied, resolution=resolution)


_ORDER: Final = {effect: place for place, effect in enumerate(Effect)}


def _unknown(facts: Facts, implied: tuple[Access, ...], why: str) -> Facts:
    unknown = Access(Effect.UNKNOWN)
    more = () if unknown in facts.accesses else (unknown,)
    return msgspec.structs.replace(
        facts,
        accesses=facts.accesses + implied + more,
        resolution=Resolution.UNRESOLVED,
        why_unknown=facts.why_unknown or why,
    )


def _is_relation(name: str) -> bool:
    return "." in name and ":" not in name  # with a colon it is a thing of another kind (`setting:a.b`, `file:/a.b`)


def _is_found(facts: Facts, schema: Schema) -> bool:
    if any(access.effect in _DEFINES for access in facts.accesses):
        return False
    named = {access.object for access in facts.accesses if access.effect in _DATA and _is_relation(access.object)}
    return bool(named) and all(_exists(name, schema) for name in named)


def _exists(name: str, schema: Schema) -> bool:
    if name.startswith("pg_catalog."):
        return name.removeprefix("pg_catalog.") in relations.CATALOG.relations
    if is_system(name):
        return True
    return schema.has(name) and schema.relation(name) is not None


class _Search:
    """What lies behind the accesses of some facts."""

    def __init__(self, facts: Facts, schema: Schema) -> None:
        self._schema = schema
        self.implied: dict[_Key, Access] = {}
        self.is_cut = False
        self._alone = facts.alone
        self._named = {(access.effect, access.object) for access in facts.accesses}
        for access in facts.accesses:
            name = access.object
            if access.effect in _FOLLOWED and _is_relation(name) and not is_system(name) and schema.has(name):
                self._follow(access.effect, name)

    def _follow(self, effect: Effect, root: str) -> None:
        # COPY and INSERT give rows to the table that they name, UPDATE and DELETE reach its children.
        is_changing = bool({(Effect.MODIFY, root), (Effect.DELETE, root)} & self._named)
        has_reach = effect is not Effect.CREATE and (effect is not Effect.BULK_WRITE or is_changing)
        waiting: deque[_Key] = deque([(effect, root)])
        is_alone = root in self._alone
        again: set[_Key] = set()
        while waiting:
            for key in self._behind(*waiting.popleft(), has_reach=has_reach, is_alone=is_alone):
                if key in self.implied or key in again:
                    continue
                if key in self._named:  # followed for itself, if all of it was meant there
                    if key[1] in self._alone:
                        again.add(key)
                        waiting.append(key)
                    continue
                if len(self.implied) >= MAX_IMPLIED:
                    self.is_cut = True
                    return
                self.implied[key] = Access(*key, through=root)
                waiting.append(key)
            is_alone = False

    def _behind(self, effect: Effect, name: str, *, has_reach: bool, is_alone: bool) -> Iterator[_Key]:
        """What one more step leads to; `is_alone`: not to what inherits from it."""
        found = self._relation(name)
        if found is None:
            return
        if found.kind not in VIEWS:
            if not is_alone and (has_reach or effect in _READS):
                yield from ((effect, child) for child in found.children)
            if found.parent:
                yield effect, found.parent
        elif effect in _READS:
            yield from (_reading(effect, one) for one in found.reads)
        elif effect in _CHANGES:
            written = _written(found) if found.kind == "v" else ()
            yield from ((effect, one) for one in written)
            yield from (_reading(Effect.READ, one) for one in found.reads if one not in written)

    def _relation(self, name: str) -> Relation | None:
        if is_system(name):  # what its views read is the server's own, too
            return None
        try:
            return self._schema.relation(name)
        except NotLookedUp:
            self.is_cut = True
            return None


def _reading(effect: Effect, name: str) -> _Key:
    if effect is Effect.BULK_READ:
        return effect, name
    return (Effect.READ_SENSITIVE if is_sensitive(name) else Effect.READ), name


def _written(view: Relation) -> tuple[str, ...]:
    """The relation that writing the view writes, if the server does it without triggers: the one and only in its FROM.

    All that the view reads, where its query cannot be read.
    """
    try:
        select = grammar.parse(view.definition.encode())[0]["stmt"]["SelectStmt"]
        (one,) = select.get("fromClause", ())
        return relations.relation(one["RangeVar"]) if "RangeVar" in one else ()
    except ValueError:  # FROM has none, or more than one
        return ()
    except (ParseError, Ambiguous, LookupError, TypeError, AttributeError):
        return view.reads
