"""What a session is to the driver, whatever protocol it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from chaperone_sidecar.effects import Effects, Intent
from chaperone_sidecar.limits.reached import Reached

if TYPE_CHECKING:
    from chaperone_sidecar.recording.results import ResultLog


class Session(Protocol):
    """What a protocol's package gives the driver."""

    def from_client(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the client."""
        ...

    def from_upstream(self, data: bytes) -> Effects[None]:
        """Take plain bytes from the backend."""
        ...

    def cut(self, reached: Reached) -> Effects[None]:
        """End the running command with an error that names the limit."""
        ...

    def running(self) -> object | None:
        """The command that the backend works on now: the same object for as long as it is the same command."""
        ...

    def abandoned(self) -> list[Intent]:
        """Intents that owe an outcome when the connection is gone."""
        ...

    def fatal(self, error: Exception) -> bytes:
        """The native last word."""
        ...

    def record(self, log: ResultLog) -> None:
        """Say to the log what the client is shown from now on."""
        ...

    def show(self, data: bytes | bytearray | memoryview) -> None:
        """The client is about to get this; raises `SpoolFull`."""
        ...
