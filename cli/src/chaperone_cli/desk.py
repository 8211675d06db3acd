"""The desk of `chaperone dev`: requests for approval as files, which a person decides by making a file beside each.

`NAME.json` says what is asked; `touch NAME.approve` or `touch NAME.deny` decides it. There are no groups and no quorum
here: whoever can write in the directory is the one who decides.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from chaperone_sidecar.approval.desk import Request, State, Ticket
from chaperone_sidecar.errors import ApprovalUnavailable

POLL_S: Final = 0.1
NAME_DIGITS: Final = 12
MAX_KEPT: Final = 1000  # requests of one run


class Settings(msgspec.Struct, frozen=True):
    """How long a rule lets a command wait, and a ticket last."""

    wait_s: int
    valid_s: int


class _Kept(msgspec.Struct):
    request: Request
    ticket: Ticket


class FileDesk:
    """See `chaperone_sidecar.approval.desk.Desk`.

    Args:
        directory: of the files; made when the first request comes.
        settings: of each rule that asks for approval, by `policy/rule`.
        tell: says a line to the person at the terminal.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Settings], tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._settings = settings
        self._tell = tell
        self._kept: dict[str, _Kept] = {}

    async def ask(self, request: Request) -> Ticket:
        """Keep a request, or find the one for the same command that is still good for something."""
        settings = self._settings.get(f"{request.policy}/{request.rule}")
        if settings is None:
            raise ApprovalUnavailable(f'rule "{request.rule}" of policy "{request.policy}" asks for no approval.')
        for kept in self._kept.values():
            if (kept.request.binding, kept.request.revision) == (request.binding, request.revision):
                found = self._look(kept)
                if found.state in (State.PENDING, State.APPROVED):
                    return found
        if len(self._kept) >= MAX_KEPT:
            raise ApprovalUnavailable(f"{MAX_KEPT} approvals were asked for in this run; start anew.")
        name = self._name(request)
        ticket = Ticket(name, State.PENDING, settings.wait_s, int(time.time()) + settings.valid_s)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = self._directory / f"{name}.json"
        unfinished = place.with_suffix(".new")  # whoever looks for requests sees whole ones only
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(request), indent=2) + b"\n")
        unfinished.replace(place)
        self._kept[name] = _Kept(request, ticket)
        self._tell("approval wanted:")
        for line in request.text.split("\n"):
            self._tell(f"  | {line}")
        self._tell(f"touch {place.with_suffix('.approve')}  (or .deny)")
        return ticket

    async def follow(self, name: str, wait_s: int) -> Ticket:
        """Wait until a person has decided, or for `wait_s` seconds."""
        kept = self._find(name)
        until = time.monotonic() + wait_s
        while (found := self._look(kept)).state is State.PENDING and time.monotonic() < until:  # noqa: ASYNC110 - a person acts
            await asyncio.sleep(POLL_S)
        return found

    async def use(self, name: str, request: Request) -> Ticket:
        """Give the approval out, once."""
        kept = self._find(name)
        found = self._look(kept)
        if found.state is not State.APPROVED or kept.request.binding != request.binding:
            raise ApprovalUnavailable(f'request "{name}" is {found.state}; ask anew.')
        kept.ticket = msgspec.structs.replace(found, state=State.USED)
        return kept.ticket

    async def withdraw(self, name: str) -> Ticket:
        """Nobody waits any more; what a person does to its files then decides nothing."""
        kept = self._find(name)
        found = self._look(kept)
        if found.state in (State.PENDING, State.APPROVED):
            kept.ticket = msgspec.structs.replace(found, state=State.CANCELLED, message="nobody waits for it any more.")
            self._tell(f"{name} is not wanted any more")
        return kept.ticket

    def _find(self, name: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is None:
            raise ApprovalUnavailable(f'there is no request "{name}".')
        return kept

    def _look(self, kept: _Kept) -> Ticket:
        ticket = kept.ticket
        if ticket.state in (State.PENDING, State.APPROVED) and time.time() >= ticket.expires_at_unix:
            kept.ticket = msgspec.structs.replace(ticket, state=State.EXPIRED, message="nobody used it in time.")
        elif ticket.state is State.PENDING:
            for suffix, state in ((".deny", State.DENIED), (".approve", State.APPROVED)):
                if (self._directory / (ticket.name + suffix)).exists():
                    message = f"{state} by who made {ticket.name}{suffix}"
                    kept.ticket = msgspec.structs.replace(ticket, state=state, message=message)
                    break
        return kept.ticket

    def _name(self, request: Request) -> str:
        """A name that follows from the command, so that scripts can tell what they decide."""
        digest = hashlib.sha256(f"{request.binding} {len(self._kept)}".encode()).hexdigest()
        return f"apr-{digest[:NAME_DIGITS]}"
