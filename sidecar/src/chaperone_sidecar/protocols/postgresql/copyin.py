"""COPY FROM STDIN: what a client sends after it means something else, and only the backend's answer says whether.

A client may send the data, and even Sync, before it knows whether the COPY began (libpq sends Execute and Sync at
once). So what follows such a statement waits until the backend asks for data or is done. Inside a COPY the server
ignores Sync and Flush, so neither is sent there.

Spec: PostgreSQL 18, 54.2.6 "COPY Operations".
"""

from __future__ import annotations

from typing import Final

from chaperone_sidecar.effects import Effects, ToUpstream, Wait
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.protocols.postgresql import messages
from chaperone_sidecar.protocols.postgresql.codec import Frame
from chaperone_sidecar.protocols.postgresql.flight import Step
from chaperone_sidecar.protocols.postgresql.namespace import Namespace
from chaperone_sidecar.protocols.postgresql.upstream_side import UpstreamSide

MESSAGES: Final = frozenset({messages.COPY_DATA, messages.COPY_DONE, messages.COPY_FAIL})


class CopyIn:
    """See the module. `step` was sent and is perhaps a COPY; what follows waits for its answer."""

    def __init__(self, upstream: UpstreamSide, names: Namespace, meter: Meter) -> None:
        self._upstream = upstream
        self._names = names
        self._meter = meter
        self.step: Step | None = None
        self.held_syncs = 0  # came inside a COPY, where the server ignores them

    @property
    def owes_sync(self) -> bool:
        """Whether a Sync that was held back is not inside a COPY after all: it failed before it read on."""
        return self.held_syncs > 0 and (self.step is None or self.step.is_over)

    def takes(self, frame: Frame) -> Effects[bool]:
        """Treat a message as part of the COPY, if there is one.

        Raises:
            ProtocolError: side=client; it must not come inside a COPY.
        """
        step, upstream = self.step, self._upstream
        if step is None:
            return False
        if step.cut is not None and frame.type in MESSAGES:
            return True  # late: its COPY was ended here, or will be as soon as it begins
        while not step.is_over and upstream.copy_receipt is None:  # a cut that comes first ends the COPY again
            yield Wait(lambda: step.is_over or upstream.copy_receipt is not None)
        receipt = upstream.copy_receipt
        if step.is_over or receipt is None:
            self.step = None
            if step.is_unread and step.endings:
                self._names.clear()
            return False
        if frame.type in MESSAGES:
            self.held_syncs = 0  # the server would have read them before this
        if frame.type == messages.COPY_DATA:
            reached = self._meter.take(0, len(frame.raw))
            if reached is not None:
                yield from upstream.cut(reached)
            else:
                yield ToUpstream(frame.raw, receipt)
        elif frame.type in MESSAGES:
            upstream.copy_receipt = None
            # The answer to an Execute is held back until Flush or Sync, and the next message waits for it.
            yield ToUpstream(frame.raw + messages.FLUSH_FRAME, receipt)
        elif frame.type == messages.SYNC:
            self.held_syncs += 1
        elif frame.type == messages.TERMINATE:
            return False
        elif frame.type != messages.FLUSH:
            raise ProtocolError(f"A message of type {chr(frame.type)!r} came inside COPY FROM STDIN; end it first.")
        return True
