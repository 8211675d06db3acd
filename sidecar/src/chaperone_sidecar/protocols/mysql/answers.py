"""What a MySQL client hears from the gateway itself, as ERR packets.

Clients keep 512 bytes of a message, so each names the rule and the next step within that, and never quotes a server.
"""

from __future__ import annotations

from typing import Final

from chaperone_sidecar.command import Access, Command
from chaperone_sidecar.decision import CANCELLED, Action, Decision
from chaperone_sidecar.errors import (
    BrokerUnavailable,
    ChaperoneError,
    LeaseRefused,
    LimitReached,
    PolicyUnavailable,
    ProtocolError,
    SpoolFull,
    Suspended,
    Unmaskable,
    Unwitnessed,
    UpstreamUnavailable,
    UserRefused,
)
from chaperone_sidecar.limits.reached import RULE_PREFIX, Reached
from chaperone_sidecar.protocols.mysql.messages import Err

MAX_MESSAGE_BYTES: Final = 500
_MAX_WHY: Final = 260
_MAX_HINT: Final = 130

REFUSED: Final = (1142, "42000")  # ER_TABLEACCESS_DENIED_ERROR
_LIMIT: Final = (1226, "42000")  # ER_USER_LIMIT_REACHED
_TOO_MANY: Final = (1040, "08004")  # ER_CON_COUNT_ERROR
_TIMEOUT: Final = (3024, "HY000")  # ER_QUERY_TIMEOUT
_INTERRUPTED: Final = (1317, "70100")  # ER_QUERY_INTERRUPTED
_DISK_FULL: Final = (1021, "HY000")
_UNKNOWN: Final = (1105, "HY000")
_NETWORK: Final = (1158, "08S01")  # ER_NET_READ_ERROR
_MALFORMED: Final = (1835, "HY000")  # ER_MALFORMED_PACKET
_ACCESS_DENIED: Final = (1045, "28000")
_UNKNOWN_STATEMENT: Final = (1243, "HY000")
_NO_CURSOR: Final = (1421, "HY000")  # ER_STMT_HAS_NO_OPEN_CURSOR
_UNKNOWN_THREAD: Final = (1094, "HY000")
_TOO_LARGE: Final = (1153, "08S01")
_TOO_MANY_STATEMENTS: Final = (1461, "42000")

UNMASKABLE_HINT: Final = "Ask for the columns by their names in a plain SELECT, or for other columns."
USER_HINT: Final = "Connect with the person's token as the password, by mysql_clear_password."


def error(code: tuple[int, str], message: str) -> Err:
    """An ERR packet."""
    text = message.replace("\0", "").encode("utf-8", "replace")[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore")
    return Err(code[0], code[1], text)


def refusal(decision: Decision, command: Command) -> Err:
    """The error of a command that policy does not let pass."""
    if command.facts.why_unknown and decision.rule == "uncovered":
        why = command.facts.why_unknown
    else:
        why = decision.message or f"policy denies this command ({_effects(command.facts.accesses)})."
    rule = f'rule "{decision.rule}"' + (f' of policy "{decision.policy}"' if decision.policy else "")
    hint = decision.hint or "Ask the policy's owner to allow it, or change the command."
    code = _LIMIT if decision.rule.startswith(RULE_PREFIX) else REFUSED
    return error(
        _INTERRUPTED if decision.rule == CANCELLED else code,
        f"refused by Chaperone: {_cut(why, _MAX_WHY)} [{rule}] {_cut(hint, _MAX_HINT)}",
    )


def superseded(decision: Decision) -> Decision:
    """The refusal of more rows of a cursor that was opened by another revision of policy than this one."""
    return Decision(
        Action.DENY, decision.policy, decision.rule,
        "policy has changed since the cursor was opened, and asks people now.", decision.revision,
        "Execute the statement anew: it then waits for approval.",
    )  # fmt: skip


def unmaskable(why: str, decision: Decision) -> Decision:
    """The refusal of a command whose masks cannot be kept."""
    return Decision(Action.DENY, "", "unmaskable", why, decision.revision, UNMASKABLE_HINT)


def cut(reached: Reached | Unmaskable) -> Err:
    """The error that ends the answer of a command which passed a limit, or could not be masked, on the way."""
    if isinstance(reached, Unmaskable):
        return error(REFUSED, f'cut by Chaperone: {_cut(str(reached), _MAX_WHY)} [rule "unmaskable"] {UNMASKABLE_HINT}')
    code = _TIMEOUT if reached.name == "commandDuration" else _LIMIT
    return error(code, f"cut by Chaperone: {reached.message} [{reached.whose}] {reached.hint}")


def unrecorded(problem: SpoolFull | Unwitnessed) -> Err:
    """The error of a command that could not be recorded as surely as the identity asks."""
    code = _UNKNOWN if isinstance(problem, Unwitnessed) else _DISK_FULL
    return error(
        code, f"refused by Chaperone: {_cut(str(problem), _MAX_WHY)} Nothing was executed; tell the platform team."
    )


def unknown_statement() -> Err:
    """The error of a command that names a prepared statement which this session does not have."""
    return error(_UNKNOWN_STATEMENT, "Unknown prepared statement handler; prepare it again.")


def no_cursor() -> Err:
    """The error of a fetch from a statement that has no cursor open."""
    return error(_NO_CURSOR, "The statement has no open cursor.")


def too_many_statements() -> Err:
    """The error of a session that keeps too many prepared statements."""
    return error(
        _TOO_MANY_STATEMENTS, "refused by Chaperone: this session keeps too many prepared statements; close some."
    )


def too_large() -> Err:
    """The error of a prepared statement that was sent more data than is kept for it."""
    return error(_TOO_LARGE, "refused by Chaperone: more long data was sent than is passed on; send less at once.")


def unknown_thread(number: int) -> Err:
    """The error of a KILL QUERY that names none of this pod's sessions."""
    return error(_UNKNOWN_THREAD, f"Unknown thread id: {number}; only sessions of this pod can be named.")


def fatal(problem: Exception) -> Err:
    """The last word before a connection is closed."""
    text = str(problem) if isinstance(problem, ChaperoneError) else "The gateway failed; the session is closed."
    if isinstance(problem, LimitReached):
        reached = problem.reached
        code = _TOO_MANY if reached.name == "connections" else _LIMIT
        return error(code, f"refused by Chaperone: {reached.message} [{reached.whose}] {reached.hint}")
    if isinstance(problem, UserRefused):
        return error(_ACCESS_DENIED, f"refused by Chaperone: {_cut(text, _MAX_WHY)} {USER_HINT}")
    if isinstance(problem, UpstreamUnavailable):
        code = _ACCESS_DENIED if problem.code == "28000" else _NETWORK
    elif isinstance(problem, SpoolFull):
        code = _DISK_FULL
    elif isinstance(problem, Unmaskable | Suspended):
        code = REFUSED
    elif isinstance(problem, ProtocolError):
        code = _MALFORMED
    elif isinstance(problem, LeaseRefused | BrokerUnavailable | PolicyUnavailable):
        code = _ACCESS_DENIED
    else:
        code = _UNKNOWN
    return error(code, f"Chaperone: {text}")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _effects(accesses: tuple[Access, ...]) -> str:
    shown = [f"{one.effect} {one.object}".strip() for one in accesses[:3]]
    return ", ".join(shown) + (f" and {len(accesses) - 3} more" if len(accesses) > 3 else "")
