"""What becomes of a statement's result: how each of its columns is masked, and whether the statement may run at all.

A plan is made when a text is read, from its lineage and the masks in force, and is followed when the rows come. What
lineage cannot resolve is *unmaskable*: by the policy's word the statement is refused (the default), the column is
nulled as a whole, or it is shown as far as detectors let it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.masking.methods import strictest_class
from chaperone_sidecar.masking.rule import OPAQUE, ColumnClass, Unmaskable
from chaperone_sidecar.protocols.postgresql.lineage import Lineage, Output
from chaperone_sidecar.protocols.postgresql.relations import TELLING, is_system
from chaperone_sidecar.protocols.postgresql.schema import Relation

if TYPE_CHECKING:  # it loads RE2, which a gateway without masks does not carry
    from chaperone_sidecar.masking.mask import Masker

# Statements whose rows do not derive from any table, whatever they are called with.
_TABLELESS: Final = frozenset({"VariableShowStmt"})
_HOLD: Final = 0x20  # CURSOR_OPT_HOLD of the grammar's version
# Samples of other tables' values and other people's statements: sensitive wherever a column is.
_SAMPLES: Final = frozenset(f"{relation}.{column}" for relation, told in TELLING.items() for column in told)
SAMPLE: Final = ColumnClass("sample", "Null")


class Plan(msgspec.Struct, frozen=True, gc=False):
    """The plan of one statement.

    `classes` says how each output column is masked, None that no number of columns is known; then rows may come only
    where `is_tableless`. `origins` are the base columns of each output, for comparison with what the server says, and
    `direct` whether it is the value of one as it stands. The cursor that the statement makes outlives its transaction
    where `is_held`; `copy` is the tree of a COPY. `known` are the relations that the plan was made with, the server's
    own left out, and None for a name that was absent: the plan is true as long as they are what they were.
    """

    classes: tuple[ColumnClass | None, ...] | None = None
    origins: tuple[frozenset[str], ...] = ()
    direct: tuple[bool, ...] = ()
    is_tableless: bool = False
    is_held: bool = False
    copy: dict[str, Any] | None = None
    known: dict[str, Relation | None] = {}


UNPLANNED: Final = Plan()
"""Nothing is known of the rows: whoever gets some must treat them as unmaskable."""


class Planner:
    """Makes plans with the masks of one identity at one target."""

    def __init__(self, masker: Masker, unmaskable: Unmaskable) -> None:
        self._masker = masker
        self.unmaskable = unmaskable

    def column_class(self, column: str, *, is_derived: bool = False) -> ColumnClass | None:
        """How a base column is masked, the server's samples of values included."""
        if column.startswith("pg_catalog.") and column in _SAMPLES:
            return SAMPLE
        return self._masker.column_class(column, is_derived=is_derived)

    def is_masked(self, columns: Iterable[str]) -> bool:
        """Whether any of the base columns is masked as a whole."""
        return any(self.column_class(column) is not None for column in columns)

    def plan(self, tree: dict[str, Any], lineage: Lineage, known: dict[str, Relation | None]) -> Plan:
        """The plan of one statement, whose lineage was traced through the `known` relations."""
        ((kind, node),) = tree.items()
        if kind == "FetchStmt":
            return UNPLANNED  # what the cursor shows was planned when it was declared
        outputs = lineage.outputs
        return Plan(
            classes=None if outputs is None else tuple(self._class(output) for output in outputs),
            origins=() if outputs is None else tuple(output.origins for output in outputs),
            is_tableless=kind in _TABLELESS,
            direct=() if outputs is None else tuple(output.is_direct for output in outputs),
            is_held=kind == "DeclareCursorStmt" and bool(node.get("options", 0) & _HOLD),
            copy=node if kind == "CopyStmt" else None,
            known={name: relation for name, relation in known.items() if not is_system(name)},
        )

    def why_not(self, lineage: Lineage) -> str:
        """Why a statement of this lineage must not run, or "" if it may."""
        if self.unmaskable == "Allow":
            return ""
        if lineage.is_opaque:
            return lineage.why or "What the statement reads cannot be told."
        if self.unmaskable == "Deny" and any(output.is_opaque for output in lineage.outputs or ()):
            return lineage.why or "Where a column of the result comes from cannot be told."
        return ""

    def decided(self, lineages: Sequence[Lineage]) -> tuple[Access, ...]:
        """Classified columns that decide something: each is an effect of its own, which policy has to grant."""
        columns = {column for lineage in lineages for column in lineage.deciding if self.column_class(column)}
        return tuple(Access(Effect.READ_SENSITIVE, column) for column in sorted(columns))

    def _class(self, output: Output) -> ColumnClass | None:
        found = [
            known
            for origin in output.origins
            if (known := self.column_class(origin, is_derived=not output.is_direct)) is not None
        ]
        if output.is_opaque and self.unmaskable != "Allow":
            found.append(OPAQUE)
        return strictest_class(found) if found else None
