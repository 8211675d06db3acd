"""How a client of HTTP hears no: a problem (RFC 9457), and for gRPC a status in trailers alone."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.errors import (
    ChaperoneError,
    CommandRefused,
    LimitReached,
    ProtocolError,
    Suspended,
    Unmaskable,
    UpstreamUnavailable,
    UserRefused,
)
from chaperone_sidecar.limits.reached import RULE_PREFIX
from chaperone_sidecar.protocols.http import grpc
from chaperone_sidecar.protocols.http.messages import Fields

CONTENT_TYPE: Final = "application/problem+json"
UNCOVERED: Final = "uncovered"
PERMISSION_DENIED, UNAUTHENTICATED, UNAVAILABLE, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 7, 16, 14, 3, 8
_GRPC: Final = {
    400: INVALID_ARGUMENT, 401: UNAUTHENTICATED, 403: PERMISSION_DENIED, 421: INVALID_ARGUMENT, 429: RESOURCE_EXHAUSTED,
}  # fmt: skip
_COMMANDS_PER_MINUTE: Final = "commandsPerMinute"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is told instead of an answer."""

    status: int
    detail: str
    title: str = ""
    rule: str = ""
    policy: str = ""
    hint: str = ""
    approval: str = ""
    revision: str = ""

    def encode(self) -> bytes:
        """As `application/problem+json`."""
        named: dict[str, Any] = msgspec.to_builtins(self)
        return msgspec.json.encode({"type": "about:blank", "title": HTTPStatus(self.status).phrase} | named)

    @property
    def fields(self) -> Fields:
        """Of the answer."""
        return (("Content-Type", CONTENT_TYPE), ("Cache-Control", "no-store"))

    @property
    def grpc(self) -> Fields:
        """The fields of an answer that is nothing but its trailers (gRPC over HTTP/2, "Responses")."""
        return (("content-type", grpc.CONTENT_TYPE), *self.grpc_trailers)

    @property
    def grpc_trailers(self) -> Fields:
        """The trailers that end an answer of gRPC which has begun."""
        told = grpc.told(" ".join(part for part in (self.detail, self.hint) if part))
        return ((grpc.STATUS, str(_GRPC.get(self.status, UNAVAILABLE))), (grpc.MESSAGE, told))


def refusal(decision: Decision, command: Command | None = None) -> Problem:
    """Policy says no, or a limit."""
    message = decision.message or "policy denies this request."
    if command is not None and command.facts.why_unknown and decision.rule == UNCOVERED:
        message = command.facts.why_unknown
    is_rate = decision.rule == RULE_PREFIX + _COMMANDS_PER_MINUTE
    by = f' by rule "{decision.rule}"' if decision.rule else ""
    by += f' of policy "{decision.policy}"' if decision.policy else ""
    return Problem(
        429 if is_rate else 403, f"refused by Chaperone{by}: {message}", rule=decision.rule, policy=decision.policy,
        hint=decision.hint, approval=decision.approval, revision=decision.revision,
    )  # fmt: skip


def failure(error: ChaperoneError) -> Problem:
    """Something went wrong, here or at the target."""
    text = f"refused by Chaperone: {error}"
    match error:
        case CommandRefused():
            return refusal(error.decision)
        case LimitReached():
            return refusal(error.reached.decision(""))
        case Misdirected():
            return Problem(421, text, rule="misdirected")
        case ProtocolError() if error.side == "client":
            return Problem(400, text, rule="malformed")
        case UserRefused():
            return Problem(401, text)
        case Suspended():
            return Problem(403, text, rule="suspended")
        case Unmaskable():
            return Problem(403, text, rule=error.rule, hint="Ask for JSON or text, or have unmaskable set to Allow.")
        case ProtocolError() | UpstreamUnavailable():
            return Problem(502, f"Chaperone: {error}")
        case _:
            return Problem(503, f"Chaperone: {error}")


class Misdirected(ProtocolError):
    """The request is for another host than the connection."""
