"""How an SSH client hears no: text on stderr, an exit status, the reason of a channel that is not opened."""

from __future__ import annotations

from typing import Final

import asyncssh

from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.errors import ChaperoneError, CommandRefused
from chaperone_sidecar.limits.reached import Reached

REFUSED_STATUS: Final = 126  # "cannot execute", as shells say it
FAILED_STATUS: Final = 255  # what ssh itself exits with when the connection fails
NOT_COVERED: Final = "not-covered"
UNMASKABLE: Final = "unmaskable"
UNCOVERED: Final = "uncovered"  # what the engine says where no rule speaks of a command


def not_covered(what: str) -> Decision:
    """The refusal of what this gateway does for nobody."""
    return Decision(Action.DENY, "", NOT_COVERED, what, "")


def unmaskable(what: str) -> Decision:
    """The refusal of an answer that cannot be masked where policy masks."""
    return Decision(Action.DENY, "", UNMASKABLE, what, "")


def sentence(error: Exception, why: str = "") -> str:
    """One line for people: which rule says no and what to do, or what failed; `why` of a command not understood."""
    if not isinstance(error, CommandRefused):
        return f"chaperone: {error}" if isinstance(error, ChaperoneError) else "chaperone: the gateway failed."
    decision = error.decision
    who = f' by rule "{decision.rule}"' if decision.rule and decision.rule != UNCOVERED else ""
    whose = f' of policy "{decision.policy}"' if decision.policy else ""
    return " ".join(filter(None, (f"chaperone: refused{who}{whose}:", decision.message, decision.hint, why)))


def sftp_code(error: Exception) -> str:
    """What an outcome calls an operation that a target's SFTP did not do."""
    return f"sftp {error.code}" if isinstance(error, asyncssh.SFTPError) else "lost"


def limit(reached: Reached) -> str:
    """The same for a limit that ends a command."""
    return f"chaperone: {reached.message} {reached.hint} ({reached.whose})"


def line(text: str) -> bytes:
    """A line for a terminal or not: the return does no harm to the latter."""
    return "".join(character if character.isprintable() else "?" for character in text).encode() + b"\r\n"


WAITING: Final = line("chaperone: this waits for a decision; people may have to approve it first.")
