"""What a PostgreSQL client hears from the gateway itself: refusals and failures as native errors (54.8).

Every text names the rule and the next step. Texts are cut, freed of NUL, and never quote a backend.
"""

from __future__ import annotations

from typing import Final

from chaperone_sidecar.command import Access, Command
from chaperone_sidecar.decision import CANCELLED, Decision
from chaperone_sidecar.errors import (
    BrokerUnavailable,
    ChaperoneError,
    LeaseRefused,
    LimitReached,
    PolicyUnavailable,
    ProtocolError,
    SpoolFailed,
    SpoolFull,
    Suspended,
    Unmaskable,
    Unwitnessed,
    UpstreamUnavailable,
    UserRefused,
)
from chaperone_sidecar.limits.reached import RULE_PREFIX, Name, Reached
from chaperone_sidecar.protocols.postgresql import messages

INSUFFICIENT_PRIVILEGE: Final = "42501"
DISK_FULL: Final = "53100"
IO_ERROR: Final = "58030"
SYSTEM_ERROR: Final = "58000"
PROTOCOL_VIOLATION: Final = "08P01"
INVALID_STATEMENT_NAME: Final = "26000"
INVALID_CURSOR_NAME: Final = "34000"
TOO_COMPLEX: Final = "54000"
LIMIT_EXCEEDED: Final = "53400"  # configuration_limit_exceeded
QUERY_CANCELED: Final = "57014"  # what the server says of a cancel, and when its statement_timeout has passed
LIMIT_CODES: Final[dict[Name, str]] = {
    "connections": "53300",  # too_many_connections
    "commandDuration": QUERY_CANCELED,
}
INTERNAL: Final = "XX000"
INVALID_AUTHORIZATION: Final = "28000"

MAX_FIELD_CHARACTERS: Final = 2000  # an error is read by people and models; longer helps neither
MAX_NAMED_ACCESSES: Final = 5

FAILED_HINT: Final = "Nothing was executed. The pod has to be replaced; tell the platform team."
UNWITNESSED_HINT: Final = "Nothing was executed; try again. If it stays so, tell the platform team."
UNMASKABLE_HINT: Final = (
    "Ask for the columns by their names and in the text format, or have the policy's unmaskable set to Redact or Allow."
)
USER_HINT: Final = "Connect with the person's token as the password (PGPASSWORD, or the driver's password callback)."
_DONE: Final = {
    True: "The database had completed the command by then.",
    False: "The database cancelled the command.",
    None: "The database cancelled the command or had completed it by then.",
}
_ONLY_PROTOCOL: Final = "Chaperone knows only what was prepared through the protocol and not changed by SQL since."
AUTHENTICATION_OK: Final = messages.frame(messages.AUTHENTICATION, b"\x00\x00\x00\x00")
CLEARTEXT_PASSWORD: Final = messages.frame(messages.AUTHENTICATION, b"\x00\x00\x00\x03")  # 54.2.1


def error(code: str, message: str, *, detail: str = "", hint: str = "", severity: str = "ERROR") -> bytes:
    """An ErrorResponse."""
    fields = (("S", severity), ("V", severity), ("C", code), ("M", message), ("D", detail), ("H", hint))
    body = b"".join(f"{key}{_clean(text)}\0".encode() for key, text in fields if text)
    return messages.frame(messages.ERROR_RESPONSE, body + b"\x00")


def refusal(decision: Decision, command: Command) -> bytes:
    """The error of a command that policy does not let pass."""
    if command.facts.why_unknown and decision.rule == "uncovered":
        message = f"refused by Chaperone: {command.facts.why_unknown}"
    else:
        message = f"refused by Chaperone: {decision.message or 'policy denies this command.'}"
    rule = f'rule "{decision.rule}"' + (f' of policy "{decision.policy}"' if decision.policy else "")
    revision = f" (policy revision {decision.revision})" if decision.revision else ""
    detail = f"{rule}{revision}; the command would {_effects(command.facts.accesses)}."
    hint = decision.hint or "Ask the owner of the policy to allow it, or change the command. The refusal is recorded."
    if decision.rule == CANCELLED:
        code = QUERY_CANCELED
    else:
        code = LIMIT_EXCEEDED if decision.rule.startswith(RULE_PREFIX) else INSUFFICIENT_PRIVILEGE
    return error(code, message, detail=detail, hint=hint)


def cut(reached: Reached | Unmaskable, *, is_complete: bool | None) -> bytes:
    """The error that ends the answer of a command which passed a limit, or could not be masked, on the way.

    Args:
        reached: why.
        is_complete: whether the database had completed the command; None where that is not said.
    """
    done = _DONE[is_complete]
    if isinstance(reached, Unmaskable):
        return error(INSUFFICIENT_PRIVILEGE, f"cut by Chaperone: {reached}", detail=done, hint=UNMASKABLE_HINT)
    return error(
        LIMIT_CODES.get(reached.name, LIMIT_EXCEEDED),
        f"cut by Chaperone: {reached.message}",
        detail=f"{reached.whose}. {done}",
        hint=reached.hint,
    )


def unrecorded(problem: SpoolFull | Unwitnessed) -> bytes:
    """The error of a command that could not be recorded as surely as the identity asks."""
    if isinstance(problem, Unwitnessed):
        return error(SYSTEM_ERROR, f"refused by Chaperone: {problem}", hint=UNWITNESSED_HINT)
    if isinstance(problem, SpoolFailed):
        return error(IO_ERROR, f"refused by Chaperone: {problem}", hint=FAILED_HINT)
    return error(
        DISK_FULL,
        "refused by Chaperone: the command cannot be recorded, because the gateway's spool is full.",
        hint="The collector has not taken records for a while; tell the platform team. Nothing was executed.",
    )


def unknown_statement(name: bytes) -> bytes:
    """The error of a Bind that names a statement which this session has not prepared through the protocol."""
    shown = f'prepared statement "{name.decode("utf-8", "replace")}"' if name else "unnamed prepared statement"
    return error(INVALID_STATEMENT_NAME, f"{shown} does not exist", detail=_ONLY_PROTOCOL, hint="Prepare it again.")


def unknown_portal(name: bytes) -> bytes:
    """The error of an Execute that names a portal which this session has not bound through the protocol."""
    shown = name.decode("utf-8", "replace")
    hint = "Bind it again; a cursor made by DECLARE is read with FETCH."
    return error(INVALID_CURSOR_NAME, f'portal "{shown}" does not exist', detail=_ONLY_PROTOCOL, hint=hint)


def too_many_names(what: str) -> bytes:
    """The error of a session that keeps too many names."""
    return error(TOO_COMPLEX, f"refused by Chaperone: this session keeps too many {what}.", hint="Close some of them.")


def fatal(problem: Exception) -> bytes:
    """The last word before a connection is closed."""
    if isinstance(problem, UpstreamUnavailable):
        code = problem.code
    elif isinstance(problem, LimitReached):
        reached = problem.reached
        code = LIMIT_CODES.get(reached.name, LIMIT_EXCEEDED)
        message = f"refused by Chaperone: {reached.message}"
        return error(code, message, detail=f"{reached.whose}.", hint=reached.hint, severity="FATAL")
    elif isinstance(problem, Unwitnessed):
        return error(SYSTEM_ERROR, f"refused by Chaperone: {problem}", hint=UNWITNESSED_HINT, severity="FATAL")
    elif isinstance(problem, SpoolFailed):
        return error(IO_ERROR, f"refused by Chaperone: {problem}", hint=FAILED_HINT, severity="FATAL")
    elif isinstance(problem, SpoolFull):
        return error(DISK_FULL, f"refused by Chaperone: {problem}", severity="FATAL")
    elif isinstance(problem, UserRefused):
        return error(INVALID_AUTHORIZATION, f"refused by Chaperone: {problem}", hint=USER_HINT, severity="FATAL")
    elif isinstance(problem, Unmaskable | Suspended):
        code = INSUFFICIENT_PRIVILEGE
    elif isinstance(problem, ProtocolError):
        code = PROTOCOL_VIOLATION
    elif isinstance(problem, LeaseRefused | BrokerUnavailable | PolicyUnavailable):
        code = INVALID_AUTHORIZATION
    else:
        code = INTERNAL
    text = str(problem) if isinstance(problem, ChaperoneError) else "The gateway failed; the session is closed."
    return error(code, f"Chaperone: {text}", severity="FATAL")


def ready_for_query(status: int) -> bytes:
    """A ReadyForQuery."""
    return messages.frame(messages.READY_FOR_QUERY, bytes((status,)))


def welcome(parameters: tuple[tuple[str, str], ...], process_id: int, secret: bytes) -> bytes:
    """What a client hears after its log-in, which asks for no password."""
    statuses = b"".join(
        messages.frame(messages.PARAMETER_STATUS, f"{name}\0{value}\0".encode()) for name, value in parameters
    )
    key = messages.frame(messages.BACKEND_KEY_DATA, process_id.to_bytes(4, "big") + secret)
    return AUTHENTICATION_OK + statuses + key + ready_for_query(messages.IDLE)


def negotiate_version(minor: int, unknown_options: tuple[str, ...]) -> bytes:
    """A NegotiateProtocolVersion down to 3.`minor`; clients and servers put the major version there, too."""
    body = (3 << 16 | minor).to_bytes(4, "big") + len(unknown_options).to_bytes(4, "big")
    return messages.frame(
        messages.NEGOTIATE_PROTOCOL_VERSION, body + b"".join(f"{name}\0".encode() for name in unknown_options)
    )


def _effects(accesses: tuple[Access, ...]) -> str:
    shown = [_effect(access) for access in accesses[:MAX_NAMED_ACCESSES]]
    more = len(accesses) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _effect(access: Access) -> str:
    reached = f" (reached through {access.through})" if access.through else ""
    return f"{access.effect} {access.object}".strip() + reached


def _clean(text: str) -> str:
    return text[:MAX_FIELD_CHARACTERS].replace("\0", "").encode("utf-8", "replace").decode()
