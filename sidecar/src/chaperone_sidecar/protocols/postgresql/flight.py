"""What is on its way to the backend and not yet answered.

The backend answers strictly in order, so a queue of steps says what each answer belongs to. A step that carries an
intent owes an outcome; the frame that ends it is given to the client only after that outcome is recorded.

A refused command travels as *poison*: a statement that cannot be parsed takes its place, so that the backend aborts its
implicit or explicit transaction and skips what follows exactly as it would have done had it refused the command itself;
its error is replaced by ours. Client and backend then agree on the state without this gateway imitating it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from chaperone_sidecar.effects import Intent
from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.postgresql.plan import Plan
from chaperone_sidecar.protocols.postgresql.prepared import Answer, Change, Portal, Statement

if TYPE_CHECKING:  # they load RE2, which a gateway without masks does not carry
    from chaperone_sidecar.protocols.postgresql.copymask import CopyMask
    from chaperone_sidecar.protocols.postgresql.rowmask import RowMask

type StepKind = Literal["query", "parse", "bind", "describe", "execute", "close", "sync", "poison"]

MAX_STEPS: Final = 10_000  # a client that pipelines more waits; each step costs about 200 bytes here

POISON_STATEMENT: Final = b"chaperone_refused"  # a syntax error in every version; legible in the backend's log
# A Parse without a name would drop the client's unnamed statement before it fails; one with a name keeps nothing.
POISON_NAME: Final = b"chaperone_refused"


class Step(msgspec.Struct, gc=False, eq=False):
    """One message on its way, and what its answer will need."""

    kind: StepKind
    segment: int
    intent: Intent | None = None
    statement: Change[Statement] | None = None  # what a parse or a close of a statement changes
    portal: Change[Portal] | None = None  # what a bind or a close of a portal changes
    refusal: bytes = b""  # the error that the client gets in place of the poison's
    cut: Reached | Unmaskable | None = None  # why it was ended here: what still comes of its answer is dropped
    rows: int = 0
    size_bytes: int = 0
    endings: int = 0  # statements of it that the backend has run to their end
    is_unread: bool = False  # its text was not parsed, so which names it changes is not known
    code: str = ""
    recorded: Statement | None = None  # whose columns are described, where results are recorded
    is_over: bool = False  # answered to its end, or skipped by the backend
    # Only where results are masked:
    plans: tuple[Plan, ...] = ()  # of the statements of a simple query, in order
    described: int = -1  # the last of them that the backend has described
    cursors: tuple[Change[Plan], ...] = ()  # that it declares
    answer: Answer | None = None  # of the statement that is described or executed
    formats: tuple[int, ...] = ()  # of the columns, as the client asked in Bind; also where they are recorded
    mask: RowMask | CopyMask | None = None  # of the rows that come now
    is_hidden: bool = False  # the gateway's own question: the client hears no answer


class Flight:
    """The queue of steps; a segment is what lies between two points where the backend reports ready."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self.segment = 0
        self.is_skipping = False
        """Whether the client's messages are swallowed until its Sync, because it hears or heard of an error."""

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def is_full(self) -> bool:
        """Whether the client has to wait for answers before it may send more."""
        return len(self._steps) >= MAX_STEPS

    def add(self, step: Step) -> None:
        """Note a message that goes upstream now."""
        self._steps.append(step)
        if step.kind in ("query", "sync"):
            self.segment += 1

    def first(self) -> Step | None:
        """The step that the next answer belongs to."""
        return self._steps[0] if self._steps else None

    def running(self) -> Step | None:
        """The command that the backend works on now: it holds back the answers to what only prepares it."""
        for step in self._steps:
            if step.kind in ("query", "execute") and not step.refusal:
                return step
        return None

    def finish(self) -> Step:
        """The first step is answered."""
        step = self._steps.popleft()
        step.is_over = True
        return step

    def skip_to_sync(self) -> list[Step]:
        """The backend failed: drop what it skips, up to the message that makes it ready again."""
        skipped = []
        while self._steps and self._steps[0].kind not in ("query", "sync"):
            step = self._steps.popleft()
            step.is_over = True
            skipped.append(step)
        return skipped

    def abandon(self) -> list[Step]:
        """The connection is gone: everything that was on its way."""
        left = list(self._steps)
        self._steps.clear()
        return left
