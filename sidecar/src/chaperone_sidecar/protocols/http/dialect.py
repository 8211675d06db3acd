"""What a protocol that travels in HTTP makes of requests and answers; plain HTTP makes nothing of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.protocols.http import classify
from chaperone_sidecar.protocols.http.answers import Problem
from chaperone_sidecar.protocols.http.classify import Asked

HTTP_2: Final = "h2"
HTTP_1_1: Final = "http/1.1"
type Judge = Callable[[Command], Awaitable[Decision]]
"""Asks policy about a command that nobody sent."""


class Dialect(Protocol):
    """See the module."""

    reads_answers: bool  # whether `shown` changes anything
    alpn: tuple[str, ...]  # the forms of HTTP that are offered

    def classify(self, asked: Asked, body: bytes | None, secret: str) -> Command:
        """As `classify.classify`."""
        ...

    def forbidden(self, command: Command) -> str:
        """Why a command must not run whatever policy says, "" otherwise."""
        ...

    def refusal(self, asked: Asked | None, body: bytes | None, problem: Problem) -> bytes:
        """How the client hears no, as JSON with status 200; b"" where it is a problem of HTTP."""
        ...

    def events(self, asked: Asked, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The events of an answer, each whole, and what else its client is to hear there."""
        ...

    async def shown(self, raw: bytes, judge: Judge) -> bytes:
        """A message (JSON) of the target as the client may see it; raises Unmaskable."""
        ...


class Plain:
    """HTTP itself."""

    reads_answers = False
    alpn: tuple[str, ...] = (HTTP_2, HTTP_1_1)

    def classify(self, asked: Asked, body: bytes | None, secret: str) -> Command:
        """See `Dialect`."""
        return classify.classify(asked, body, secret)

    def forbidden(self, command: Command) -> str:
        """See `Dialect`."""
        return f"{command.kind} is not let through, whatever policy says." if command.kind in classify.NEVER else ""

    def refusal(self, asked: Asked | None, body: bytes | None, problem: Problem) -> bytes:
        """See `Dialect`."""
        return b""

    def events(self, asked: Asked, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """See `Dialect`."""
        return events

    async def shown(self, raw: bytes, judge: Judge) -> bytes:
        """See `Dialect`."""
        return raw
