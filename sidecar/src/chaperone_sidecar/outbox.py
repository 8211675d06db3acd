"""What a client is to hear, in order, and not before the records that it tells of are as sure as the identity asks.

With records that are sure once written nothing waits here. Otherwise bytes are held until the newest record that their
session owes is synced; the backend is not read from meanwhile, so at most one delivery is held.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from chaperone_sidecar.errors import SpoolFull
from chaperone_sidecar.link import Link
from chaperone_sidecar.recording.recorder import Recorder

type Part = bytes | bytearray | memoryview


class Outbox:
    """The way to one client.

    Args:
        link: the client.
        recorder: whose records are told of.
        is_whole: whether what was written so far ends where a last word may be said.
        on_held: told when something begins to wait, and when nothing does any more.
        on_failed: told that the records cannot be kept.
    """

    def __init__(
        self,
        link: Link,
        recorder: Recorder,
        is_whole: Callable[[], bool],
        on_held: Callable[[], None],
        on_failed: Callable[[SpoolFull], None],
    ) -> None:
        self._link = link
        self._recorder = recorder
        self._is_whole = is_whole
        self._on_held = on_held
        self._on_failed = on_failed
        self._held: deque[tuple[int, Part, bool]] = deque()
        self._release: asyncio.Task[None] | None = None
        self._told_whole = True
        self._is_closing = False
        self.owed_seq = -1
        """The newest record that the client may hear of from now on; set by the driver."""

    @property
    def is_holding(self) -> bool:
        """Whether something waits."""
        return bool(self._held)

    def write(self, data: Part) -> None:
        """Send bytes, at once or when their records are sure."""
        assurance = self._recorder.assurance
        if assurance is None and not self._held:
            self._link.write(data)
            return
        is_whole = self._is_whole()
        if not self._held and (assurance is None or assurance.synced_seq >= self.owed_seq):
            self._told_whole = is_whole
            self._link.write(data)
            return
        self._held.append((self.owed_seq, data, is_whole))
        if self._release is None:
            self._release = asyncio.get_running_loop().create_task(self._release_all())
            self._on_held()

    def break_off(self, last: bytes) -> None:
        """Drop what waits, for its records are not kept, and say a last word where one can be said."""
        self._held.clear()
        if self._recorder.assurance is not None and self._told_whole:
            self._link.write(last)

    def close(self) -> None:
        """Close the link once nothing waits any more."""
        self._is_closing = True
        if not self._held:
            self._link.close()

    async def _release_all(self) -> None:
        while self._held:
            seq, data, is_whole = self._held[0]
            assurance = self._recorder.assurance
            try:
                if assurance is not None:
                    await assurance.told(seq)
            except SpoolFull as error:
                self._release = None
                self._on_failed(error)
                self._held.clear()
                if self._is_closing:
                    self._link.close()
                return
            if self._held:  # it was not broken off meanwhile
                self._held.popleft()
                self._told_whole = is_whole
                self._link.write(data)
        self._release = None
        self._on_held()
        if self._is_closing:
            self._link.close()
