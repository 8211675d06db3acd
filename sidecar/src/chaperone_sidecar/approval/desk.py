"""The interface to those who keep requests for approval; the broker does, and `chaperone dev` for one process."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from chaperone_sidecar.command import Access
from chaperone_sidecar.user import User


class State(StrEnum):
    """What became of a request."""

    PENDING = "Pending"
    APPROVED = "Approved"
    DENIED = "Denied"
    EXPIRED = "Expired"
    USED = "Used"
    CANCELLED = "Cancelled"


class Request(msgspec.Struct, frozen=True):
    """One command that needs approval, as people may see it, and what their word will be bound to."""

    session: str
    target: str
    protocol: str
    kind: str
    text: str  # masked, whole: nobody can approve what is not shown
    binding: str
    shape: str  # the same for commands that do the same to the same objects
    accesses: tuple[Access, ...]
    policy: str
    rule: str
    revision: str
    estimated_rows: int | None = None
    user: User | None = None  # on whose behalf


class Ticket(msgspec.Struct, frozen=True):
    """A request that is kept, as it stands.

    `wait_s` is how long policy lets the connection wait in all, `expires_at_unix` when the ticket ends; `message` says
    who decided, and why.
    """

    name: str
    state: State
    wait_s: int
    expires_at_unix: int
    message: str = ""


class Desk(Protocol):
    """Keeps requests, lets people decide them, and gives each approval out once."""

    async def ask(self, request: Request) -> Ticket:
        """Keep a request; one for the same binding that is undecided, or approved and unused, is found again.

        Raises:
            ApprovalUnavailable: it cannot be kept; the text is fit for the client.
        """
        ...

    async def follow(self, name: str, wait_s: int) -> Ticket:
        """The request as it stands when it is decided, or after `wait_s` seconds.

        Raises:
            ApprovalUnavailable: it cannot be seen; where `is_unanswered`, not now.
        """
        ...

    async def use(self, name: str, request: Request) -> Ticket:
        """Take the approval for this command. It is given out once, to one caller.

        Raises:
            ApprovalUnavailable: it was taken, has run out, or is for something else.
        """
        ...

    async def withdraw(self, name: str) -> Ticket:
        """Nobody waits for the request any more; one that has ended stays as it is.

        Raises:
            ApprovalUnavailable: it cannot be told; where `is_unanswered`, not now.
        """
        ...
