"""What texts mean at one database: classified, resolved against its catalog, and with the plan of their masks.

A `Reader` serves all sessions of one target and database. What it found is kept for as long as the catalog stands by
it (`generation`); a text that is not kept costs a parse, a question to the catalog for names that are new to it, and,
where columns are masked, a second parse for the lineage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from chaperone_sidecar.command import Access, Effect, Facts, Resolution
from chaperone_sidecar.effects import Offload
from chaperone_sidecar.protocols.postgresql import grammar, lineage
from chaperone_sidecar.protocols.postgresql.classify import (
    Classified,
    ClassifyCache,
    classify,
    classify_apart,
    parse_apart,
)
from chaperone_sidecar.protocols.postgresql.grammar import INLINE_BYTES, ParseError
from chaperone_sidecar.protocols.postgresql.lineage import Lineage
from chaperone_sidecar.protocols.postgresql.plan import Plan, Planner
from chaperone_sidecar.protocols.postgresql.resolution import names as relations_of
from chaperone_sidecar.protocols.postgresql.resolution import resolve
from chaperone_sidecar.protocols.postgresql.schema import NotLookedUp, Schema, Watched

if TYPE_CHECKING:  # it loads RE2, which a gateway without masks does not carry
    from chaperone_sidecar.protocols.postgresql.results import Results

type Reads[T] = Generator[Offload, Any, T]

MAX_ROUNDS: Final = (
    8  # questions to the catalog for one text: a view of views needs none of its own, `learn` follows them
)
MAX_FORGOTTEN: Final = 8  # times that other sessions (DDL, what people allowed) make what one has just learnt forgotten

MAX_NAMES_AT_ONCE: Final = 400  # of one text, beside the one that was missing; a look-up takes 500

_NO_CATALOG: Final = "The database's catalog cannot be read now, so it is not known which columns the statement shows."
_NOT_RESOLVED: Final = (
    "The database's catalog cannot be read now, so what lies behind the names of the statement is not known. Try again."
)
_UNSETTLED: Final = (
    "This transaction has changed the schema, so which columns the statement shows is not known; commit first."
)
_UNREAD: Final = "The statement was not understood, so which columns it shows is not known."
# Effects behind which there may be rows or values that no table of the text names.
_HIDING: Final = frozenset({Effect.EXECUTE_CODE, Effect.EXTERNAL_IO, Effect.UNKNOWN, Effect.SCHEMA})
# Effects on rows alone.
_DATA: Final = frozenset(
    {Effect.READ, Effect.CREATE, Effect.MODIFY, Effect.DELETE, Effect.BULK_READ, Effect.BULK_WRITE}
)
# What changes the schema, or may. A function that the database's owner made is taken not to: it would cost each call
# all that is known, and what it did is seen when the catalog is asked again.
_CHANGING: Final = frozenset({Effect.SCHEMA, Effect.DESTROY, Effect.PRIVILEGE, Effect.EXTERNAL_IO, Effect.UNKNOWN})
# The server's own that are effects of another kind: they wait, and lock.
_HARMLESS: Final = ("pg_catalog.pg_sleep", "pg_catalog.pg_advisory_", "pg_catalog.pg_try_advisory_")


class Catalog(Protocol):
    """What the reader needs of a database's catalog."""

    @property
    def generation(self) -> int:
        """Another number as soon as something known may be outdated."""
        ...

    @property
    def schema(self) -> Schema:
        """What is known."""
        ...

    def join(self) -> None:
        """A session has begun there."""
        ...

    def leave(self) -> None:
        """A session has ended there."""
        ...

    async def learn(self, names: Collection[str]) -> bool:
        """Look the relations up, with what they need; False when the database cannot be asked."""
        ...

    async def learn_types(self, oids: Collection[int]) -> bool:
        """Look types up."""
        ...

    async def marks(self, names: Collection[str]) -> Mapping[str, str] | None:
        """The marks of relations as they are now; None when the database cannot be asked."""
        ...

    def invalidate(self) -> None:
        """Something has changed there."""
        ...


class Reader:
    """Reads the texts of one database's sessions.

    Args:
        catalog: of the database.
        planner: makes plans; None where nothing is masked.
        results: the masks on what sessions show; None where nothing is masked.
        has_columns: columns are masked as a whole, so lineage has to be known.
    """

    def __init__(
        self,
        catalog: Catalog,
        planner: Planner | None = None,
        results: Results | None = None,
        *,
        has_columns: bool = False,
    ) -> None:
        self.catalog = catalog
        self.planner = planner
        self.results = results
        self._has_columns = planner is not None and has_columns
        # ORDER BY 1 and ORDER BY 2 have another lineage, so texts that differ in integers are kept apart.
        self._cache = ClassifyCache(is_exact=self._has_columns)
        self._generation = catalog.generation

    @property
    def generation(self) -> int:
        """What was read stands for as long as this is the same number."""
        return self.catalog.generation

    def find(self, text: bytes) -> Classified | None:
        """What the text was read as, if that is still kept and true."""
        if self.catalog.generation != self._generation:
            self._generation = self.catalog.generation
            self._cache.clear()
        return self._cache.find(text)

    def read(self, text: bytes) -> Reads[Classified]:
        """Read a text and keep what it means."""
        generation = self.catalog.generation
        classified, is_known = yield from self._resolved(text)
        if self._has_columns:
            concealed = msgspec.structs.replace(classified, conceals=True)  # until it is known to need none
            classified = yield from self._planned(text, concealed, is_known=is_known)
        elif self.planner is not None and any(statement.kind == "copy_out" for statement in classified.statements):
            traced = yield from self._trace(text, lambda _tree, _schema: Lineage())
            classified = msgspec.structs.replace(classified, plans=traced[0] if traced is not None else ())
        if self.find(text) is None and generation == self.catalog.generation and is_known:
            self._cache.keep(text, classified)
        return classified

    def read_unsettled(self, text: bytes) -> Reads[Classified]:
        """Read a text inside a transaction that has changed the schema, where the catalog is no witness."""
        classified, _ = yield from self._resolved(text)
        facts, names = classified.facts, relations_of(classified.facts)
        if facts.resolution is Resolution.CATALOG:  # what was before is looked through; what is now was not seen
            facts = msgspec.structs.replace(facts, resolution=Resolution.SYNTACTIC)
        why = self._said(_UNSETTLED) if self._has_columns and (names or _hides(classified)) else ""
        return msgspec.structs.replace(classified, facts=facts, unmaskable=why, conceals=self._has_columns)

    def _resolved(self, text: bytes) -> Reads[tuple[Classified, bool]]:
        """What the text does, and to what, and whether the catalog could be asked for its names."""
        classified: Classified
        if len(text) <= INLINE_BYTES:
            classified = classify(text)
        else:
            classified = yield Offload(lambda: classify_apart(text))
        is_known = yield from self._learn(relations_of(classified.facts))
        facts = resolve(classified.facts, self.catalog.schema) if is_known else _unresolved(classified.facts)
        if facts is not classified.facts:
            classified = msgspec.structs.replace(classified, facts=facts)
        return classified, is_known

    def _learn(self, names: Collection[str]) -> Reads[bool]:
        for _ in range(MAX_FORGOTTEN):
            missing = [name for name in names if not self.catalog.schema.has(name)]
            if not missing:
                return True
            generation = self.catalog.generation
            found: bool = yield Offload(partial(self.catalog.learn, missing))
            if found or generation == self.catalog.generation:
                return found
        return False

    def _planned(self, text: bytes, classified: Classified, *, is_known: bool) -> Reads[Classified]:
        """Add the plans, and what classified columns decide."""
        planner, replace = self.planner, msgspec.structs.replace
        if planner is None:
            return classified
        if not classified.statements:
            return replace(classified, unmaskable=self._said(_UNREAD)) if classified.is_unread else classified
        names = relations_of(classified.facts)
        if not is_known:
            return (
                replace(classified, unmaskable=self._said(_NO_CATALOG)) if names or _hides(classified) else classified
            )
        named = dict.fromkeys(access.object for access in classified.facts.accesses if "." in access.object)
        traced = yield from self._trace(text, lineage.trace, tuple(named))
        if traced is None:
            return replace(classified, unmaskable=self._said(_NO_CATALOG))
        plans, lineages = traced
        facts = _with(classified.facts, planner.decided(lineages))
        why = next((why for one in lineages if (why := planner.why_not(one))), "")
        return replace(
            classified, facts=facts, plans=plans, unmaskable=why, conceals=self._conceals(classified.facts, lineages)
        )

    def _trace(
        self, text: bytes, trace: Callable[[dict[str, Any], Schema], Lineage], named: tuple[str, ...] = ()
    ) -> Reads[tuple[tuple[Plan, ...], list[Lineage]] | None]:
        """Plans and lineages of the text's statements; None when the catalog cannot say what is needed.

        `named` are objects of the text: where one is missing (the server's own), all of them are asked for at once.
        """
        planner = self.planner

        def work(trees: list[dict[str, Any]]) -> tuple[tuple[Plan, ...], list[Lineage]]:
            lineages, plans = [], []
            for tree in trees:
                schema = Watched(self.catalog.schema)
                lineages.append(trace(tree["stmt"], schema))
                if planner is not None:
                    plans.append(planner.plan(tree["stmt"], lineages[-1], schema.known))
            return tuple(plans), lineages

        for _ in range(MAX_ROUNDS):
            try:
                if len(text) <= INLINE_BYTES:
                    return work(grammar.parse(text))
                found: tuple[tuple[Plan, ...], list[Lineage]] | str | None
                found = yield Offload(lambda: parse_apart(text, lambda trees: _or_name(work, trees)))
                if not isinstance(found, str):
                    return found
                name = found
            except NotLookedUp as missing:
                name = missing.name
            except ParseError:
                return None
            if not (yield from self._learn((name, *named[:MAX_NAMES_AT_ONCE]))):
                return None
        return None

    def _conceals(self, facts: Facts, lineages: list[Lineage]) -> bool:
        """Whether literals of the text may be values of classified columns.

        They are none where the text does nothing but read and write relations, and all of these are known and have no
        such column. What calls code, sets something or touches no relation conceals: its literals may be anything.
        """
        planner = self.planner
        if planner is None or any(planner.is_masked(one.deciding) for one in lineages):
            return True
        return any(
            access.effect not in _DATA or self._may_have_masked_column(access.object) for access in facts.accesses
        )

    def _may_have_masked_column(self, name: str) -> bool:
        planner, schema = self.planner, self.catalog.schema
        relation = schema.relation(name) if schema.has(name) else None
        if relation is None or planner is None:
            return True
        return planner.is_masked(f"{name}.{column.name}" for column in relation.columns)

    def _said(self, why: str) -> str:
        return "" if self.planner is None or self.planner.unmaskable == "Allow" else why


def changes_schema(facts: Facts) -> bool:
    """Whether the command may make the catalog another one; asked for each command, and nearly all only read."""
    for access in facts.accesses:
        effect = access.effect
        if effect is Effect.READ:
            continue
        if effect in _CHANGING or (effect is Effect.EXECUTE_CODE and access.object.startswith("language:")):
            return True
    return False


def runs_code(facts: Facts) -> bool:
    """Whether the command runs code that its text does not show, and that may change what names stand for."""
    return any(
        access.effect in (Effect.EXECUTE_CODE, Effect.UNKNOWN) and not access.object.startswith(_HARMLESS)
        for access in facts.accesses
    )


def _hides(classified: Classified) -> bool:
    return any(access.effect in _HIDING for access in classified.facts.accesses)


def _with(facts: Facts, more: tuple[Access, ...]) -> Facts:
    if not more:
        return facts
    return msgspec.structs.replace(facts, accesses=tuple(dict.fromkeys((*facts.accesses, *more))))


def _unresolved(facts: Facts) -> Facts:
    """Facts whose names nobody could look behind: a denied table may be there."""
    accesses = tuple(dict.fromkeys((*facts.accesses, Access(Effect.UNKNOWN))))
    return Facts(accesses, Resolution.UNRESOLVED, facts.why_unknown or _NOT_RESOLVED)


def _or_name(work: Any, trees: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - what `work` gives
    """What `work` gives, or the name that it misses: an exception of the thread would be taken for a parse error."""
    try:
        return work(trees)
    except NotLookedUp as missing:
        return missing.name
