"""A limit of policy that was reached: what it is called in records, and what people are told."""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from chaperone_sidecar.config import Limit
from chaperone_sidecar.decision import Action, Decision

type Name = Literal["connections", "commandsPerMinute", "rowsPerCommand", "bytesPerSession", "commandDuration"]

RULE_PREFIX: Final = "limit:"  # no rule of a policy has a colon in its name

_MESSAGES: Final[dict[Name, str]] = {
    "connections": "this pod has as many connections to the target open as it may have: {max}.",
    "commandsPerMinute": "this pod ran as many commands at the target within a minute as it may run: {max}.",
    "rowsPerCommand": "the result has more rows than a command may return ({max}); it was cut.",
    "bytesPerSession": "the session would move more bytes than it may ({max}).",
    "commandDuration": "the command ran longer than it may ({seconds} s); it was cancelled.",
}
_HINTS: Final[dict[Name, str]] = {
    "connections": "Close a connection, or share connections with a pool of at most {max}.",
    "commandsPerMinute": "Try again in {retry} s, or do more with one command.",
    "rowsPerCommand": "Ask for less: with a condition, an aggregate, or LIMIT {max}.",
    "bytesPerSession": "Ask for less, or open a new session.",
    "commandDuration": "Ask for less, or have the statement made faster.",
}


class Reached(msgspec.Struct, frozen=True, gc=False):
    """One limit that was reached; `retry_s` is how long until there is room again, where that is known."""

    name: Name
    limit: Limit
    retry_s: float = 0.0

    @property
    def rule(self) -> str:
        """How records name it, in the place of a rule or of a code."""
        return RULE_PREFIX + self.name

    @property
    def message(self) -> str:
        """What happened, in one sentence."""
        return _MESSAGES[self.name].format(max=self.limit.max, seconds=f"{self.limit.max / 1000:g}")

    @property
    def hint(self) -> str:
        """What to do now."""
        return _HINTS[self.name].format(max=self.limit.max, retry=max(1, math.ceil(self.retry_s)))

    @property
    def whose(self) -> str:
        """Where the limit is written."""
        return f'limits.{self.name} of policy "{self.limit.policy}"'

    def decision(self, revision: str) -> Decision:
        """The refusal of a command for which there is no room."""
        return Decision(Action.DENY, self.limit.policy, self.rule, self.message, revision, self.hint)
