"""Which text a name stands for at the backend: prepared statements and portals of one session.

A name is what the gateway decided on and records, so it must never disagree with the backend. A `Parse` that the
backend skips after an error leaves the older statement under the same name; therefore a name changed in one segment
may be used in a later one only after the backend has answered the first (`is_settled`), and skipped changes are taken
back. What is not known any more is not there: the client hears that the name does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from chaperone_sidecar.decision import Decision
from chaperone_sidecar.protocols.postgresql.classify import Classified
from chaperone_sidecar.protocols.postgresql.plan import Plan

if TYPE_CHECKING:  # they load RE2, which a gateway without masks does not carry
    from chaperone_sidecar.protocols.postgresql.rowmask import RowMask
    from chaperone_sidecar.protocols.postgresql.shape import Shape

MAX_NAMES: Final = 4096  # prepared statements or portals of one session; drivers keep a few hundred at most
NAME_BYTES: Final = 63  # the server tells names apart by so many bytes (NAMEDATALEN - 1) and ignores the rest
_CLIPPED_BYTES: Final = 60  # a name in SQL from here on may have been cut in front of a letter of several bytes


class Answer(msgspec.Struct, gc=False, eq=False):
    """The result of a prepared statement, where results are masked.

    `shape` is what the backend said of its columns, None until then; `asked_segment` the segment in which it was asked.
    `masks` are those of its rows, by the formats that Bind asks for. `types` are the OIDs of its parameters' types, as
    far as the client or the backend said them.
    """

    plan: Plan
    shape: Shape | None = None
    asked_segment: int = -1
    masks: dict[tuple[int, ...], RowMask] = {}
    types: tuple[int, ...] = ()


class Statement(msgspec.Struct, gc=False, eq=False):
    """A prepared statement as the client wrote it, with what it means as of `generation` of the catalog."""

    text: bytes
    classified: Classified
    generation: int
    answer: Answer | None = None
    types: tuple[int, ...] = ()  # of its parameters, as Parse says them
    description: bytes = b""  # the RowDescription, where results are recorded and the backend has said it


class Portal(msgspec.Struct, gc=False, eq=False):
    """A statement with its parameters.

    `fetched` is the result of a FETCH: the server reads it whole when the portal is executed first, and hands out the
    rest of it later, whatever the cursor's name stands for then. `approved` is what people allowed, if they were asked:
    it is one command, however often it is resumed. `is_admitted`: it was asked for at Bind, and counted there against
    the limits. `is_begun`: it was executed before, and another Execute goes on with it.
    """

    statement: Statement
    params: bytes
    fetched: Answer | None = None
    approved: Decision | None = None
    is_admitted: bool = False
    is_begun: bool = False


class Change[T](msgspec.Struct, frozen=True, gc=False):
    """A name's change that is on its way to the backend; `value` None means closed."""

    name: bytes
    value: T | None
    segment: int


class _Name[T](msgspec.Struct, gc=False, eq=False):
    """What a name stands for at the backend, and its changes that are under way, oldest first."""

    known: T | None = None
    changes: list[Change[T]] = []


class Names[T]:
    """Names of one kind (statements, or portals) and what they stand for.

    Theory of operation. The backend makes changes in the order in which they were sent, or skips them, so a name is
    what was confirmed last and a queue of what was not answered yet. SQL may give a name another meaning at any
    place between them. From the moment such a text is sent, nothing that was sent before it tells anything: the queue
    is dropped with the rest, and a change that is in no queue is not looked at when its answer comes.
    """

    def __init__(self) -> None:
        self._names: dict[bytes, _Name[T]] = {}

    @property
    def is_full(self) -> bool:
        """Whether another name would pass the bound."""
        return len(self._names) >= MAX_NAMES

    def send(self, name: bytes, value: T | None, segment: int) -> Change[T]:
        """The client sent a change of this name in `segment`."""
        change = Change(name[:NAME_BYTES], value, segment)
        self._names.setdefault(change.name, _Name()).changes.append(change)
        return change

    def find(self, name: bytes) -> T | None:
        """What the name stands for, if everything sent so far succeeds."""
        found = self._names.get(name[:NAME_BYTES])
        if found is None:
            return None
        return found.changes[-1].value if found.changes else found.known

    def is_settled(self, name: bytes, segment: int) -> bool:
        """Whether `find` can be trusted in `segment`: changed in it, or in one that the backend has answered."""
        found = self._names.get(name[:NAME_BYTES])
        return found is None or not found.changes or found.changes[-1].segment == segment

    def confirm(self, change: Change[T]) -> None:
        """The backend has made this change."""
        found = self._answered(change)
        if found is not None:
            found.known = change.value
            self._tidy(change.name, found)

    def take_back(self, change: Change[T]) -> None:
        """The backend skipped this change: the name stands for what it stood for before."""
        found = self._answered(change)
        if found is not None:
            self._tidy(change.name, found)

    def forget(self, name: str) -> None:
        """A statement goes upstream that may give this name another meaning, or all names where it is empty."""
        key = name.encode()
        if not key or len(key) >= _CLIPPED_BYTES:
            self.clear()
            return
        self.drop(key)

    def drop(self, name: bytes) -> None:
        """What the name stands for is not known any more."""
        self._names.pop(name[:NAME_BYTES], None)

    def keep(self, is_kept: Callable[[T], bool]) -> None:
        """Forget the names of which a value, as known or under way, is not to be kept."""
        for name, found in tuple(self._names.items()):
            values = (found.known, *(change.value for change in found.changes))
            if any(value is not None and not is_kept(value) for value in values):
                del self._names[name]

    def clear(self) -> None:
        """A statement goes upstream that drops all names behind the protocol's back (DISCARD ALL, COMMIT, …)."""
        self._names.clear()

    def _answered(self, change: Change[T]) -> _Name[T] | None:
        """The name of a change that the backend has answered, unless it was forgotten since the change was sent."""
        found = self._names.get(change.name)
        for place, one in enumerate(found.changes if found is not None else ()):
            if one is change and found is not None:
                del found.changes[place]
                return found
        return None

    def _tidy(self, name: bytes, found: _Name[T]) -> None:
        if found.known is None and not found.changes:
            del self._names[name]
