"""What opens the backend of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from chaperone_sidecar.config import Target
from chaperone_sidecar.effects import Opened, OpenUpstream
from chaperone_sidecar.errors import Suspended
from chaperone_sidecar.link import Link


class Connector(Protocol):
    """Opens backends for sessions; one per protocol."""

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """Connect `link` and log in; returns what the session learns (its receipt is replaced), early bytes, address.

        Raises:
            UpstreamUnavailable: with a text for the client.
        """
        ...

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """Cancel what the session with this key runs; silent when there is none."""
        ...

    def on_cancel(self, opened: Opened, interrupt: Callable[[], bool]) -> None:
        """Ask `interrupt` first when the session with this key is to be cancelled; true means that this was all."""
        ...

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """The session is over; its key cancels nothing any more. What it still runs is cancelled when that is said."""
        ...


class Closed:
    """The `Connector` of a suspended agent: every session hears in its own protocol why none is opened."""

    def __init__(self, why: Suspended) -> None:
        self._why = why

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """Nothing is opened."""
        raise self._why

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """There is nothing to cancel."""

    def on_cancel(self, opened: Opened, interrupt: Callable[[], bool]) -> None:
        """Nothing was opened."""

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """Nothing was opened."""
