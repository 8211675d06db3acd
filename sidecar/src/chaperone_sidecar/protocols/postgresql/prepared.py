"""Which text a name stands for at the backend: prepared statements and portals of one session.

A name is what the gateway decided on and records, so it must never disagree with the backend. A `Parse` that the
backend skips after an error leaves the older statement under the same name; therefore a name changed in one segment
may be used in a later one only after the backend has answered the first (`is_settled`), and skipped changes are taken
back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

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


class Portal(msgspec.Struct, frozen=True, gc=False):
    """A statement with its parameters."""

    statement: Statement
    params: bytes


class Change[T](msgspec.Struct, frozen=True, gc=False):
    """A name's change that is on its way to the backend; `value` None means closed."""

    name: bytes
    value: T | None
    segment: int


class Names[T]:
    """Names of one kind (statements, or portals) and what they stand for."""

    def __init__(self) -> None:
        self._sent: dict[bytes, Change[T]] = {}
        self._known: dict[bytes, T] = {}

    @property
    def is_full(self) -> bool:
        """Whether another name would pass the bound."""
        return len(self._sent) >= MAX_NAMES

    def send(self, name: bytes, value: T | None, segment: int) -> Change[T]:
        """The client sent a change of this name in `segment`."""
        change = Change(name[:NAME_BYTES], value, segment)
        self._sent[change.name] = change
        return change

    def find(self, name: bytes) -> T | None:
        """What the name stands for, if everything sent so far succeeds."""
        change = self._sent.get(name[:NAME_BYTES])
        return change.value if change is not None else None

    def is_settled(self, name: bytes, segment: int, answered_segment: int) -> bool:
        """Whether `find` can be trusted in `segment`: changed in it, or in one that the backend has answered."""
        change = self._sent.get(name[:NAME_BYTES])
        return change is None or change.segment == segment or change.segment <= answered_segment

    def confirm(self, change: Change[T]) -> None:
        """The backend has made this change."""
        if change.value is not None:
            self._known[change.name] = change.value
            return
        self._known.pop(change.name, None)
        if self._sent.get(change.name) is change:
            del self._sent[change.name]

    def take_back(self, change: Change[T]) -> None:
        """The backend skipped this change: the name stands for what it stood for before."""
        if self._sent.get(change.name) is not change:
            return
        known = self._known.get(change.name)
        if known is None:
            del self._sent[change.name]
        else:
            self._sent[change.name] = Change(change.name, known, change.segment)

    def forget(self, name: str) -> None:
        """A statement goes upstream that may give this name another meaning, or all names where it is empty."""
        key = name.encode()
        if not key or len(key) >= _CLIPPED_BYTES:
            self.clear()
            return
        self.drop(key)

    def drop(self, name: bytes) -> None:
        """What the name stands for is not known any more."""
        self._sent.pop(name, None)
        self._known.pop(name, None)

    def keep(self, is_kept: Callable[[T], bool]) -> None:
        """Forget the names whose value, as sent or as known, is not to be kept."""
        for name, change in tuple(self._sent.items()):
            if change.value is not None and not is_kept(change.value):
                self.drop(name)

    def clear(self) -> None:
        """A statement goes upstream that drops all names behind the protocol's back (DISCARD ALL, COMMIT, …)."""
        self._sent.clear()
        self._known.clear()
