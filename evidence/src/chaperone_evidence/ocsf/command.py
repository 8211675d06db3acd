"""Commands and sessions as events, whether they were read off records or off the aggregated API."""

from __future__ import annotations

from typing import Any, Final

from chaperone_evidence.ocsf.event import (
    FAILURE,
    INFORMATIONAL,
    LOW,
    OTHER,
    SUCCESS,
    Activity,
    Agent,
    Class,
    Command,
    Event,
    Session,
    actor,
    destination,
    event,
    filled,
    is_relational,
    source,
)

# The first effect of a command that stands here says what it does; what stands higher weighs more.
_DATASTORE: Final = {
    "destroy": (7, "Delete"), "delete": (7, "Delete"), "bulk_write": (5, "Write"), "modify": (2, "Update"),
    "create": (6, "Create"), "bulk_read": (4, "Query"), "read_sensitive": (1, "Read"), "read": (1, "Read"),
}  # fmt: skip
_API: Final = {
    "destroy": (4, "Delete"), "delete": (4, "Delete"), "bulk_write": (3, "Update"), "modify": (3, "Update"),
    "create": (1, "Create"), "bulk_read": (2, "Read"), "read_sensitive": (2, "Read"), "read": (2, "Read"),
}  # fmt: skip
_NAMED_OTHERWISE: Final = frozenset(
    {"schema", "privilege", "execute_code", "external_io", "tunnel", "session", "transaction", "maintain"}
)
_STATUS: Final = {"ok": SUCCESS, "error": FAILURE, "refused": FAILURE, "aborted": FAILURE}


def command_event(
    agent: Agent, session: Session, command: Command, time_us: int, uid: str, *, status: str = "", code: str = "",
    unmapped: dict[str, Any] | None = None, **more: Any,  # noqa: ANN401 - JSON
) -> Event:  # fmt: skip
    """A command: before it has an outcome (`status` is empty), or with it."""
    is_allowed = command.decision == "Allow"
    status_id, said = _status(command, status)
    attributes: dict[str, Any] = {
        "actor": actor(agent, session), "src_endpoint": source(agent, session.client),
        "dst_endpoint": destination(session), "action_id": 1 if is_allowed else 2,
        "disposition_id": 1 if is_allowed else 2, "status_id": status_id, "status_detail": said, "status_code": code,
        "authorizations": [filled({"decision": command.decision, "policy": _policy(command)})],
        "policy": _policy(command),
    }  # fmt: skip
    if is_relational(session.protocol):
        database = {"name": session.database or command.target or "unknown", "type_id": 1, "type": "Relational"}
        attributes |= {"database": database, "type_id": 1, "type": "Database"}
    else:
        service = {"name": command.target or "unknown"}
        attributes["api"] = filled({"operation": command.kind or "unknown", "service": service})
    return event(
        _activity(session.protocol, command.effects), time_us, uid, agent=agent,
        message=f"{agent.identity}: {', '.join(command.effects) or 'nothing'} on {command.target}: {command.decision}",
        severity=INFORMATIONAL if is_allowed else LOW, trace=command.trace or session.trace,
        unmapped={
            "target": command.target, "protocol": session.protocol, "kind": command.kind, "rule": command.rule,
            "effects": list(command.effects), **command.more, **(unmapped or {}),
        },
        **attributes, **more,
    )  # fmt: skip


def session_event(
    agent: Agent, session: Session, time_us: int, uid: str, *, is_end: bool, detail: str = "",
    unmapped: dict[str, Any] | None = None, **more: Any,  # noqa: ANN401 - JSON
) -> Event:  # fmt: skip
    """A session's beginning, or its end."""
    activity = Activity(Class.AUTHENTICATION, 2, "Logoff") if is_end else Activity(Class.AUTHENTICATION, 1, "Logon")
    return event(
        activity, time_us, uid, agent=agent, trace=session.trace,
        message=f"{agent.identity}: {'left' if is_end else 'came to'} {session.target}",
        user={"name": session.user or agent.identity or "unknown"}, actor=actor(agent, session),
        session=filled({"uid": session.uid}), service={"name": session.target or "unknown"},
        src_endpoint=source(agent, session.client), dst_endpoint=destination(session), status_id=SUCCESS,
        status_detail=detail,
        unmapped={"protocol": session.protocol, "database": session.database, **(unmapped or {})}, **more,
    )  # fmt: skip


def _activity(protocol: str, effects: tuple[str, ...]) -> Activity:
    cls, table = (
        (Class.DATASTORE_ACTIVITY, _DATASTORE) if is_relational(protocol) else (Class.API_ACTIVITY, _API)
    )  # fmt: skip
    if not effects or "unknown" in effects:
        return Activity(cls, 0, "Unknown")
    for effect, (uid, name) in table.items():
        if effect in effects:
            return Activity(cls, uid, name)
    named = [effect for effect in effects if effect in _NAMED_OTHERWISE]
    return Activity(cls, OTHER, ", ".join(dict.fromkeys(named)) or "Other")


def _status(command: Command, status: str) -> tuple[int | None, str]:
    if status:
        return _STATUS.get(status, OTHER), status
    return (None, "") if command.decision == "Allow" else (FAILURE, "refused")


def _policy(command: Command) -> dict[str, Any]:
    if not command.policy:
        return {}
    return filled({"name": command.policy, "version": command.revision, "is_applied": True})
