"""KILL QUERY and the next statement: a kill reaches the statement that ran when it was asked for, or none.

A server ends whatever runs when a kill arrives there, which is later: on a connection of its own. So the gateway sends
none while nothing runs, and a session whose statement was to be killed sends nothing more until it is known how that
went; then a statement of the gateway's own takes what the server may still hold against the connection.
"""

from __future__ import annotations

from asyncio import Event
from collections.abc import Callable

from chaperone_sidecar.errors import UpstreamUnavailable


class Kills:
    """Those of one session's statements."""

    def __init__(self) -> None:
        self.running: Callable[[], object | None] = lambda: None
        """The statement that can be ended now."""
        self.are_due = False
        """Whether `settled` must be awaited before anything is sent."""
        self._under_way = 0
        self._over = Event()
        self._is_lost = False

    def begin(self) -> None:
        """A kill is about to be sent."""
        self.are_due = True
        self._under_way += 1
        self._over.clear()

    def end(self, *, is_lost: bool) -> None:
        """The server has answered it; `is_lost`: it was sent, and nobody knows whether it arrived."""
        self._is_lost |= is_lost
        self._under_way -= 1
        if not self._under_way:
            self._over.set()

    async def settled(self) -> None:
        """Wait until all that were sent are answered.

        Raises:
            UpstreamUnavailable: one may arrive yet.
        """
        await self._over.wait()
        self.are_due = False
        if self._is_lost:
            raise UpstreamUnavailable("The database did not answer a KILL QUERY of this session; connect again.")
