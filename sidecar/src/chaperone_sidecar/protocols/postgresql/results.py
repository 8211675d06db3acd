"""The masks on what one database's sessions show: rows, COPY data, server texts, and the texts in records.

A row is masked by the plan of its statement and the shape that the backend announced. Where the two disagree (another
number of columns, a column from elsewhere than the lineage says) nothing is shown: the catalog that the plan was made
with is not the one that the statement ran on.

Where the backend names a table for each column, that is enough. Of views and expressions it says nothing, and their
relations may have become others while the statement was on its way or waited for a lock. So before the first row is
shown the catalog is asked whether they are what the plan was made with. At that time the statement has its locks:
what is there then is what it runs on, and a change before was committed, or a change after leaves another mark.

Loading this module loads RE2, so a gateway without masks does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from chaperone_sidecar.effects import Offload
from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.methods import strictest_class
from chaperone_sidecar.masking.rule import OPAQUE, ColumnClass
from chaperone_sidecar.protocols.postgresql import messages, textmask
from chaperone_sidecar.protocols.postgresql.copyform import copy_form
from chaperone_sidecar.protocols.postgresql.copymask import CopyMask
from chaperone_sidecar.protocols.postgresql.flight import Step
from chaperone_sidecar.protocols.postgresql.kind import Types
from chaperone_sidecar.protocols.postgresql.plan import UNPLANNED, Plan, Planner
from chaperone_sidecar.protocols.postgresql.reading import Catalog
from chaperone_sidecar.protocols.postgresql.rowmask import RowMask, is_heavy
from chaperone_sidecar.protocols.postgresql.schema import VIEWS, NotLookedUp, Relation, Type
from chaperone_sidecar.protocols.postgresql.shape import Shape
from chaperone_sidecar.protocols.postgresql.shown import Shown

type Reads[T] = Generator[Offload, Any, T]

MAX_ROW_BYTES: Final = 16 << 20  # a row is masked as a whole, so it is kept as a whole; each session may hold one
MAX_TYPE_ROUNDS: Final = 8  # an array of composites of domains: each round may name further types
_USERS_OID: Final = 16384  # the first that the server gives to what its users make (FirstNormalObjectId)
_EMPTY: Final = Shape(messages.frame(messages.ROW_DESCRIPTION, bytes(2)))
_TEXT: Final = (0,)

_NOT_DESCRIBED: Final = "rows came whose columns are not described; describe the statement before it is executed."
_DISAGREES: Final = "the result is not what the catalog let expect; the schema has changed meanwhile. Try again."
_UNCONFIRMED: Final = "the database's catalog cannot be read now, so what the statement ran on is not known. Try again."
_NO_TYPE: Final = "the database does not say what type a column has."
_UNPLANNED: Final = "the statement returns rows of which is not known where they come from."


class Results:
    """The masks of one identity at one database.

    Args:
        masker: the masks of policy.
        planner: the same, for columns by their names.
        catalog: names tables and types by their numbers.
        has_columns: columns are masked as a whole.
    """

    def __init__(self, masker: Masker, planner: Planner, catalog: Catalog) -> None:
        self._masker = masker
        self._planner = planner
        self._catalog = catalog
        self._workers = ThreadPoolExecutor(1, "masking")  # long values take a while; the event loop must not
        self.max_row_bytes = MAX_ROW_BYTES
        self.shown = Shown(masker, catalog.schema)

    # --- results ----------------------------------------------------------------------------------------------------

    def described(self, step: Step, raw: bytes) -> Reads[None]:
        """The backend describes the columns of a statement."""
        shape = Shape(raw)
        if step.kind == "query":
            is_first, step.described = step.described < step.endings, step.endings
            planned = is_first and step.endings < len(step.plans)  # a rule of the table's owner may add results
            plan = step.plans[step.endings] if planned else UNPLANNED
            yield from self._confirm(plan, shape)
            step.mask = yield from self._of_rows(plan, shape)
        elif step.answer is not None:
            step.answer.shape = shape

    def described_as_empty(self, step: Step) -> None:
        """The backend says that a statement has no columns."""
        if step.answer is not None:
            step.answer.shape = _EMPTY

    def of_execute(self, step: Step) -> Reads[RowMask]:
        """The mask for the rows of an Execute.

        Raises:
            Unmaskable: nobody has described them, or what they come from is not what it was.
        """
        answer = step.answer
        if answer is None or answer.shape is None:
            raise Unmaskable(_NOT_DESCRIBED)
        yield from self._confirm(answer.plan, answer.shape)
        found = answer.masks.get(step.formats)
        if found is None:
            found = yield from self._of_rows(answer.plan, answer.shape.with_formats(step.formats or _TEXT))
            answer.masks[step.formats] = found
        return found

    def of_nothing(self, step: Step) -> Reads[None]:
        """An Execute has given no row, which may be shown only where rows might be.

        Raises:
            Unmaskable: what they would have come from is not what it was.
        """
        if step.answer is not None and step.answer.shape is not None and step.answer.shape.fields:
            yield from self._confirm(step.answer.plan, step.answer.shape)

    def of_copy(self, step: Step, raw: bytes) -> Reads[CopyMask]:
        """The mask for the data of a COPY TO STDOUT.

        Raises:
            Unmaskable: the COPY is not known, or has a form in which values cannot be told from signs.
        """
        if step.answer is not None:
            plan = step.answer.plan
        else:
            plan = step.plans[step.endings] if step.endings < len(step.plans) else UNPLANNED
        if plan.copy is None:
            raise Unmaskable(_UNPLANNED)
        yield from self._confirm(plan, None)
        form = copy_form(plan.copy.get("options", []))
        count = int.from_bytes(raw[6:8], "big")
        classes: list[ColumnClass | None] = list(plan.classes or ())
        if self._masker.has_columns and plan.classes is None:
            classes = self._unmaskable([None] * count, range(count), _UNPLANNED)
        oids = self._types_of(plan)
        oids = oids if oids is not None and len(oids) == count else None
        types = self._types()
        return (
            yield from self._looked_up(
                lambda: CopyMask(self._masker, raw, form, classes, types, oids, self._planner.unmaskable)
            )
        )

    def _types_of(self, plan: Plan) -> list[int] | None:
        """The types of the columns of a COPY, as far as they are a table's as they stand."""
        found = [
            self._type_of(plan, origins) if is_direct else 0
            for origins, is_direct in zip(plan.origins, plan.direct, strict=True)
        ]
        return found or None

    def _type_of(self, plan: Plan, origins: frozenset[str]) -> int:
        for origin in origins:
            table, _, name = origin.rpartition(".")
            relation = plan.known.get(table)
            for column in relation.columns if relation is not None else ():
                if column.name == name:
                    return column.type
        return 0

    def rows(self, mask: RowMask | CopyMask, data: bytes) -> Reads[bytes | memoryview]:
        """Mask a run of whole frames."""
        for _ in range(MAX_TYPE_ROUNDS):
            try:
                return (yield from self._masked(mask, data))
            except NotLookedUp as missing:
                if isinstance(mask, CopyMask) or not (yield from self._learn_type(missing)):
                    break
        raise Unmaskable(_NO_TYPE)

    def _masked(self, mask: RowMask | CopyMask, data: bytes) -> Reads[bytes | memoryview]:
        if not is_heavy(data):
            return mask.rows(data)
        masked: bytes | memoryview = yield Offload(lambda: self._workers.submit(mask.rows, data))
        return masked

    def _confirm(self, plan: Plan, shape: Shape | None) -> Reads[None]:
        """Make sure that the relations of a plan are what it was made with, now that its statement holds them.

        Raises:
            Unmaskable: they are not, or the catalog cannot be asked.
        """
        if self._planner.unmaskable == "Allow" or not plan.known or (shape is not None and _is_evident(plan, shape)):
            return
        found: Mapping[str, str] | None = yield Offload(lambda: self._catalog.marks(plan.known))
        if found is None:
            raise Unmaskable(_UNCONFIRMED)
        if any(found.get(name) != (known.mark if known is not None else None) for name, known in plan.known.items()):
            self._catalog.invalidate()  # whoever tries again learns what is there now
            raise Unmaskable(_DISAGREES)

    def classified(self, step: Step) -> tuple[int, ...]:
        """The columns of the present rows that are masked as a whole."""
        return step.mask.classified if isinstance(step.mask, RowMask) else ()

    def finish(self, step: Step) -> bytes:
        """What is left of a COPY's data."""
        return step.mask.finish() if isinstance(step.mask, CopyMask) else b""

    def too_long(self) -> Unmaskable:
        """A row that is too long to be kept."""
        return Unmaskable(f"a row has more than {self.max_row_bytes >> 20} MiB and cannot be looked at as a whole.")

    def _of_rows(self, plan: Plan, shape: Shape) -> Reads[RowMask]:
        classes, types = self._classes(plan, shape), self._types()
        return (
            yield from self._looked_up(lambda: RowMask(self._masker, shape, classes, types, self._planner.unmaskable))
        )

    def _looked_up[M](self, make: Callable[[], M]) -> Reads[M]:
        """What `make` gives once the types that it asks for are known."""
        for _ in range(MAX_TYPE_ROUNDS):
            try:
                return make()
            except NotLookedUp as missing:
                if not (yield from self._learn_type(missing)):
                    break
        raise Unmaskable(_NO_TYPE)

    def _learn_type(self, missing: NotLookedUp) -> Reads[bool]:
        oid = int(missing.name.removeprefix("type "))
        found: bool = yield Offload(lambda: self._catalog.learn_types([oid]))
        return found

    def _types(self) -> Types:
        """The database's types, for one mask: what it has met stays known, however long its rows take."""
        met: dict[int, Type | None] = {}

        def find(oid: int) -> Type | None:
            if oid not in met:
                met[oid] = self._catalog.schema.type(oid)
            return met[oid]

        return find

    def _classes(self, plan: Plan, shape: Shape) -> list[ColumnClass | None]:
        """How each column is masked, after a look at where the backend says that it comes from."""
        nothing: list[ColumnClass | None] = [None] * len(shape.fields)
        if not self._masker.has_columns:
            return nothing
        if plan.classes is None:
            if plan.is_tableless:
                return nothing
            return self._unmaskable(nothing, range(len(nothing)), _UNPLANNED)
        if len(plan.classes) != len(shape.fields):
            raise Unmaskable(_DISAGREES)
        classes = list(plan.classes)
        for index, column in enumerate(shape.fields):
            if column.table < _USERS_OID or column.number <= 0:
                continue
            name = _name(plan, column.table, column.number)
            if name is None or name not in plan.origins[index]:
                self._unmaskable(classes, [index], _DISAGREES)
            elif (known := self._planner.column_class(name)) is not None:
                found = classes[index]
                classes[index] = known if found is None else strictest_class([found, known])
        return classes

    def _unmaskable(
        self, classes: list[ColumnClass | None], indexes: range | list[int], why: str
    ) -> list[ColumnClass | None]:
        if self._planner.unmaskable == "Deny":
            raise Unmaskable(why)
        if self._planner.unmaskable == "Redact":
            for index in indexes:
                classes[index] = OPAQUE
        return classes

    # --- texts ------------------------------------------------------------------------------------------------------

    def text(self, raw: bytes) -> bytes:
        """Mask an ErrorResponse, NoticeResponse, NotificationResponse or ParameterStatus."""
        kind = raw[0]
        if kind == messages.NOTIFICATION_RESPONSE:
            return textmask.mask_notification(raw, self._masker, self._planner.unmaskable)
        if kind == messages.PARAMETER_STATUS:
            return textmask.mask_parameter_status(raw, self._masker)
        return textmask.mask_error(raw, self._masker)


def _relation(plan: Plan, oid: int) -> Relation | None:
    return next((one for one in plan.known.values() if one is not None and one.oid == oid), None)


def _name(plan: Plan, table: int, number: int) -> str | None:
    relation = _relation(plan, table)
    if relation is None:
        return None
    return next((f"{relation.name}.{column.name}" for column in relation.columns if column.number == number), None)


def _is_evident(plan: Plan, shape: Shape) -> bool:
    """Whether the backend says of each column of which table's columns it is."""
    tables = [_relation(plan, column.table) if column.number > 0 else None for column in shape.fields]
    return all(table is not None and table.kind not in VIEWS for table in tables)
