"""What all events have in common: classification, metadata, the agent, the policy, and how values are fitted.

Evidence holds what agents and back ends chose, so nothing goes into an attribute with a form (an address, a port, a
name of a host) that does not have it; it then stands under `unmapped`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

import msgspec

from chaperone_evidence.traceparent import Trace

VERSION: Final = "1.9.0"

type Event = dict[str, Any]

INFORMATIONAL: Final = 1
LOW: Final = 2
HIGH: Final = 4
SUCCESS: Final = 1
FAILURE: Final = 2
OTHER: Final = 99

_HOSTNAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([-A-Za-z0-9_]{0,62}\.?)*\Z")
_RELATIONAL: Final = frozenset({"PostgreSQL", "MySQL"})


class Class(IntEnum):
    """The classes that are used, by `class_uid`."""

    BASE_EVENT = 0
    AUTHENTICATION = 3002
    ENTITY_MANAGEMENT = 3004
    NETWORK_ACTIVITY = 4001
    DNS_ACTIVITY = 4003
    APPLICATION_LIFECYCLE = 6002
    API_ACTIVITY = 6003
    DATASTORE_ACTIVITY = 6005


class Activity(msgspec.Struct, frozen=True):
    """A class, and one of its activities with its caption."""

    cls: Class
    uid: int
    name: str


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """Who acts: the agent, its pod and the accountable person."""

    identity: str
    namespace: str
    identity_uid: str = ""
    owner: str = ""
    pod: str = ""
    pod_uid: str = ""
    cluster: str = ""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A client's connection to a back end."""

    uid: str
    target: str = ""
    protocol: str = ""
    client: str = ""
    upstream: str = ""
    user: str = ""
    database: str = ""
    application: str = ""
    trace: Trace | None = None


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent wanted done, and what policy said; without its text."""

    target: str
    kind: str
    effects: tuple[str, ...]
    decision: str
    policy: str = ""
    rule: str = ""
    revision: str = ""
    more: dict[str, Any] = {}
    trace: Trace | None = None


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that say something: nothing empty, but zero and false."""
    return {name: value for name, value in values.items() if value is not None and value not in ("", {}, [], ())}


def event(
    activity: Activity,
    time_us: int,
    uid: str,
    *,
    agent: Agent | None,
    message: str,
    severity: int = INFORMATIONAL,
    trace: Trace | None = None,
    metadata: Mapping[str, Any] | None = None,
    unmapped: Mapping[str, Any] | None = None,
    **attributes: Any,  # noqa: ANN401 - JSON
) -> Event:
    """Put an event together; empty attributes are left out.

    Args:
        activity: its class and activity.
        time_us: microseconds since 1970.
        uid: the event's id; the same whenever the same is said again.
        agent: who acts; None where that is not known.
        message: one line for people.
        severity: `severity_id`.
        trace: what it belongs to.
        metadata: more of the metadata.
        unmapped: what the schema has no attribute for.
        attributes: those of the class.
    """
    said = filled(attributes)
    if agent is not None:
        if activity.cls is not Class.BASE_EVENT:
            said["ai_agent"] = _ai_agent(agent)
        unmapped = {"namespace": agent.namespace, "cluster": agent.cluster, **(unmapped or {})}
    if trace is not None:
        unmapped = {**(unmapped or {}), "traceparent": trace.header}
        if activity.cls is Class.API_ACTIVITY:
            said["trace"] = {"uid": trace.trace_id, "flags": ["sampled"] if trace.is_sampled else ["not sampled"]}
    return {
        "class_uid": int(activity.cls), "category_uid": activity.cls // 1000, "activity_id": activity.uid,
        "activity_name": activity.name, "type_uid": activity.cls * 100 + activity.uid, "time": time_us // 1000,
        "severity_id": severity, "message": message,
        "metadata": filled({
            "version": VERSION, "uid": uid, "product": product(), "profiles": _profiles(said),
            "correlation_uid": trace.trace_id if trace else "", **(metadata or {}),
        }),
        **said, **filled({"unmapped": filled(unmapped or {})}),
    }  # fmt: skip


def product(version: str = "") -> dict[str, Any]:
    """This product."""
    return filled({"name": "Chaperone", "vendor_name": "Chaperone", "version": version})


def actor(agent: Agent, session: Session | None = None) -> dict[str, Any]:
    """The agent as the one who acts, in its session."""
    found: dict[str, Any] = {"user": agent_user(agent)}
    if session is not None:
        found["session"] = filled({"uid": session.uid})
        found["app_name"] = session.application
    return filled(found)


def agent_user(agent: Agent) -> dict[str, Any]:
    """The agent's identity as a user."""
    return filled({"name": agent.identity or "unknown", "uid": agent.identity_uid, "type_id": 4, "type": "Service"})


def source(agent: Agent, client: str = "") -> dict[str, Any]:
    """Where the agent runs; `client` is its address and port."""
    owner = {"name": agent.owner} if agent.owner else {}
    place = filled({"name": agent.pod or agent.identity or "unknown", "instance_uid": agent.pod_uid, "owner": owner})
    return {**place, **address(client)}


def destination(session: Session) -> dict[str, Any]:
    """The target of a session, and its address."""
    return {"svc_name": session.target or "unknown", **address(session.upstream)}


def address(text: str) -> dict[str, Any]:
    """`ip` and `port` of "address:port"; nothing of what does not have that form."""
    host, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    found = ip(host.removeprefix("[").removesuffix("]"))
    return {"ip": found, "port": number} if found and 0 <= number <= 65535 else {}


def ip(text: str) -> str:
    """An address in its one form; empty when it is none."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found).partition("%")[0]


def hostname(text: str) -> str:
    """The name of a host; empty when it is none."""
    name = text.removesuffix(".")
    return name if _HOSTNAME.match(name) else ""


def is_relational(protocol: str) -> bool:
    """Whether a protocol's commands are those of a relational database."""
    return protocol in _RELATIONAL


def _profiles(said: Mapping[str, Any]) -> list[str]:
    """The profiles whose attributes an event has."""
    of = {
        "ai_agent": "ai_operation", "attestation_list": "record_integrity", "action_id": "security_control",
        "trace": "trace",
    }  # fmt: skip
    return [profile for attribute, profile in of.items() if attribute in said]


def _ai_agent(agent: Agent) -> dict[str, Any]:
    """The agent; its model is not known to a gateway."""
    uid = agent.identity_uid or f"{agent.namespace}/{agent.identity}"
    return filled({"name": agent.identity or "unknown", "uid": uid, "instance_uid": agent.pod_uid})
