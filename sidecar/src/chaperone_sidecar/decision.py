"""What policy says of a command."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

CANCELLED: Final = "cancelled"  # the rule of a command that its client gave up while people were asked


class Action(StrEnum):
    """The three answers of policy."""

    ALLOW = "Allow"
    DENY = "Deny"
    REQUIRE_APPROVAL = "RequireApproval"


class Would(msgspec.Struct, frozen=True, gc=False):
    """What the answer would be if the policies that are only observed were in force."""

    action: Action
    policy: str
    rule: str


class Circumstances(msgspec.Struct, frozen=True, gc=False):
    """What an answer depended on beside the command: the minute that was asked about, an estimate, and uses by rule."""

    minute: int
    rows: int | None = None
    uses: tuple[tuple[str, int], ...] = ()


class Decision(msgspec.Struct, frozen=True, gc=False):
    """One answer, with the rule and the revision that made it."""

    action: Action
    policy: str  # "namespace/name", "name" of a cluster policy, or "" when no rule covered the command
    rule: str
    message: str
    revision: str
    hint: str = ""  # what to do now, where that is more than asking for the rule to be changed
    approval: str = ""  # the request by which people allowed it, where policy wanted that
    would: Would | None = None  # absent where it would be the same action
    circumstances: Circumstances | None = None  # absent where it depended on none


def changed_meanwhile(held: Decision, fresh: Decision) -> Decision:
    """The answer to an approved command that is no longer what people approved; `fresh` is what policy says now."""
    why = f": {fresh.message}" if fresh.action is Action.DENY and fresh.message else "."
    return Decision(
        Action.DENY,
        held.policy,
        held.rule,
        f'policy or the backend has changed since request "{held.approval}" was made{why}',
        held.revision,
        "Nothing was executed, and the approval is spent. Send the command anew.",
    )
