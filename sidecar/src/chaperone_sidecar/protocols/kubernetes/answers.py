"""How a Kubernetes client hears no: a `Status`, as the API server writes it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

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
from chaperone_sidecar.protocols.kubernetes.request import Request

_REASONS: Final = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    406: "NotAcceptable", 413: "RequestEntityTooLarge", 415: "UnsupportedMediaType", 429: "TooManyRequests",
    500: "InternalError", 502: "BadGateway", 503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip


def status(code: int, message: str, request: Request | None = None) -> bytes:
    """A failure, as JSON."""
    details: dict[str, Any] = {}
    if request is not None and request.resource:
        wanted = {"name": request.name, "group": request.group, "kind": request.resource}
        details = {key: value for key, value in wanted.items() if value}
    return msgspec.json.encode(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS.get(code, "InternalError"),
            "details": details,
            "code": code,
        }
    )


def refusal(decision: Decision, request: Request | None = None) -> bytes:
    """Policy says no: 403, with the rule and what to do."""
    return status(403, refused(decision, request), request)


def refused(decision: Decision, request: Request | None = None) -> str:
    """The sentence of a refusal, as the API server words its own."""
    what = "the request"
    if request is not None and request.resource:
        named = f' "{request.name}"' if request.name else ""
        what = f"{request.qualified}{named}"
    by = "no rule allows it"
    if decision.rule:
        by = f'rule "{decision.rule}"' + (f' of policy "{decision.policy}"' if decision.policy else "")
    verb = f"cannot {request.verb}: " if request is not None and request.verb else ""
    text = f"{what} is forbidden: Chaperone: {verb}{by}"
    if decision.message:
        text += f": {decision.message}"
    return f"{text} {decision.hint}".rstrip() if decision.hint else text


def code(error: ChaperoneError) -> int:
    """The HTTP status of what is no refusal of policy."""
    match error:
        case ProtocolError():
            return 502 if error.side == "upstream" else 400
        case UserRefused():
            return 401
        case LimitReached() | Suspended() | Unmaskable() | CommandRefused():
            return 403
        case UpstreamUnavailable() if error.code.isdigit() and 400 <= int(error.code) < 600:
            return int(error.code)
        case _:
            return 503
