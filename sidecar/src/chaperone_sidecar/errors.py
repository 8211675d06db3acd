"""Errors of the gateway, on one screen.

ChaperoneError
├── ProtocolError(side)        a peer broke the protocol; `side` says which
├── Unmaskable                 a mask cannot be kept, so the answer is not given; the text is fit for the client
├── CommandRefused(decision)   policy does not let a command pass, and that is recorded
├── SpoolFull                  the record cannot be kept, so the command must not run
│   └── SpoolFailed            its disk failed: nothing is recorded any more, so nothing runs
├── Unwitnessed                no checkpoint of the log covers a command's record; the text is fit for the client
├── UpstreamUnavailable(code)  the backend cannot be reached or refused us; the text is fit for the client
├── LimitReached(reached)      a limit of policy ends or prevents the session
├── Suspended                  a person has taken every access of the agent away; the text says who
├── UserRefused                nobody is known on whose behalf the agent acts; the text is fit for the client
├── LeaseRefused               the broker gives no credential for this target
├── PolicyUnavailable          no decision can be had; it means deny
├── BrokerUnavailable          the broker cannot be reached
│   └── PolicyUntrusted        what it gave as policy is not what the operator signed for this agent
├── ApprovalUnavailable        nobody can be asked, or an approval cannot be used; the text is fit for the client
├── FenceBroken                a probe left the pod; the gateway must not be ready
└── ConfigError                configuration that cannot be used
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chaperone_sidecar.decision import Decision
    from chaperone_sidecar.limits.reached import Reached


class ChaperoneError(Exception):
    """Base of all errors of the gateway; its text is one sentence for people, without secrets."""


class ProtocolError(ChaperoneError):
    """A peer sent what the protocol does not admit."""

    def __init__(self, message: str, side: Literal["client", "upstream"] = "client") -> None:
        super().__init__(message)
        self.side = side


class Unmaskable(ChaperoneError):
    """What policy says to mask cannot be told from the rest of an answer; the text names it and the next step."""

    rule = "unmaskable"  # how records and refusals name it


class CommandRefused(ChaperoneError):
    """A command must not run; the protocol tells its client so in its own words, from the decision."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.message or "policy denies this command.")
        self.decision = decision


class SpoolFull(ChaperoneError):
    """The spool has no room for another record."""


class SpoolFailed(SpoolFull):
    """What the spool holds cannot be relied on; the text says what failed."""


class Unwitnessed(ChaperoneError):
    """The identity asks for records that the collector's log has signed, and this one is not; the text says why."""


class UpstreamUnavailable(ChaperoneError):
    """The backend cannot be used; `code` is the SQLSTATE or its like for the client."""

    def __init__(self, message: str, code: str = "08006") -> None:
        super().__init__(message)
        self.code = code


class LimitReached(ChaperoneError):
    """A limit of policy leaves no room, and the session cannot be kept in step otherwise."""

    def __init__(self, reached: Reached) -> None:
        super().__init__(reached.message)
        self.reached = reached


class Suspended(ChaperoneError):
    """The kill switch: nothing may be opened, and what is open ends."""


class UserRefused(ChaperoneError):
    """The token that should say on whose behalf the agent acts is missing, wrong, cannot be checked, or has ended."""


class LeaseRefused(ChaperoneError):
    """The broker gave no credential, or takes one back.

    Attributes:
        is_final: policy or the broker's ledger says no, so a session that has one must not keep it.
        is_unanswered: the broker did not say anything; what it gave before stands.
    """

    def __init__(self, message: str, *, is_final: bool = False, is_unanswered: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.is_unanswered = is_unanswered


class PolicyUnavailable(ChaperoneError):
    """OPA gave no usable answer."""


class BrokerUnavailable(ChaperoneError):
    """The broker gave no usable answer."""


class PolicyUntrusted(BrokerUnavailable):
    """Policy without the operator's signature, altered, another's, or older than what was seen; the text says which."""


class ApprovalUnavailable(ChaperoneError):
    """A request for approval cannot be kept, seen or used.

    `is_unanswered` says that whoever keeps it did not say so: it may be seen later.
    """

    def __init__(self, message: str, *, is_unanswered: bool = False) -> None:
        super().__init__(message)
        self.is_unanswered = is_unanswered


class FenceBroken(ChaperoneError):
    """A packet without the mark could leave the pod."""


class ConfigError(ChaperoneError):
    """Configuration that the gateway cannot work with."""
