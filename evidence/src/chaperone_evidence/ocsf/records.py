"""The records of one stream as events, one event a record.

`attestation_list` holds the record's link in the stream's hash chain. What is hashed is the record, not the event, and
`serialization` says so; the event holds the record's bytes in `raw_data`, so the link can be computed from the event
alone, with the link that `prev_event` names (`chain.next_link`). A head of the stream is no event; the one after it
names its link.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from chaperone_evidence import canonical, entry, merkle, record
from chaperone_evidence.chain import LINK_SCHEME
from chaperone_evidence.ocsf.command import command_event, session_event
from chaperone_evidence.ocsf.event import (
    FAILURE,
    HIGH,
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
    agent_user,
    event,
    filled,
    hostname,
    ip,
    product,
    source,
)
from chaperone_evidence.traceparent import Trace, of_application

MAX_OPEN: Final = 1_000_000  # intents that wait for their outcome, and sessions that are open; `stream` refuses more


class Place(msgspec.Struct, frozen=True):
    """Where a record stands; all hashes are bytes."""

    stream: str
    seq: int
    before: bytes  # the link of the entry before it
    link: bytes
    leaf: bytes  # its hash as a leaf of the log
    header: bytes  # the record's canonical bytes


class Records:
    """Turns the records of one stream into events; memory is bounded by its open sessions and commands."""

    def __init__(self) -> None:
        self._agent = Agent(identity="", namespace="")
        self._vkey = ""
        self._sessions: dict[str, Session] = {}
        self._commands: dict[int, Command] = {}

    def event(self, found: record.Known | record.Unknown, place: Place, trace: Trace | None = None) -> Event:
        """The event of a record.

        Args:
            found: the record; they come in order, and were verified.
            place: where it stands.
            trace: what the statement's comment names, of an intent.
        """
        if isinstance(found, record.StreamOpen):
            self._agent = Agent(
                identity=found.identity, namespace=found.namespace, identity_uid=found.identity_uid,
                owner=found.owner, pod=found.pod, pod_uid=found.pod_uid, cluster=found.cluster,
            )  # fmt: skip
            self._vkey = found.vkey
        made = self._made(found, f"{place.stream}/{place.seq}", place.header, trace)
        kind = found.type if isinstance(found, record.Unknown) else str(type(found).__struct_config__.tag)
        made["metadata"] |= {
            "sequence": place.seq, "log_name": place.stream, "event_code": kind,
            "profiles": [*made["metadata"].get("profiles", []), "record_integrity"],
        }  # fmt: skip
        made["unmapped"] = {**made.get("unmapped", {}), "leaf_hash": place.leaf.hex()}
        return made | {
            "raw_data": place.header.decode(), "raw_data_size": len(place.header),
            "attestation_list": [self._attestation(place)],
        }  # fmt: skip

    def trace_of(self, session: str) -> Trace | None:
        """The trace that an open session belongs to."""
        known = self._sessions.get(session)
        return None if known is None else known.trace

    def _attestation(self, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {
            "uid": f"{place.stream}/{place.seq}", "authority_uid": self._vkey, "chain_uid": place.stream,
            "fingerprint": _fingerprint(place.link),
        }  # fmt: skip
        if place.seq:
            found["prev_event"] = {
                "uid": f"{place.stream}/{place.seq - 1}", "fingerprint": _fingerprint(place.before)
            }  # fmt: skip
        return filled(found)

    def _made(self, found: record.Known | record.Unknown, uid: str, header: bytes, trace: Trace | None) -> Event:
        match found:
            case record.StreamOpen() | record.StreamClose():
                return self._process(found, uid)
            case record.SessionOpen():
                return self._open(found, uid)
            case record.SessionClose():
                return self._close(found, uid)
            case record.CommandIntent():
                return self._intent(found, uid, trace)
            case record.CommandOutcome():
                return self._outcome(found, uid)
            case record.RecordingChunk():
                return self._chunk(found, uid)
            case record.ApprovalRequest() | record.ApprovalOutcome():
                return self._approval(found, uid)
            case record.IdentitySuspension():
                return self._suspension(found, uid)
            case record.EgressDenied():
                return self._egress(found, uid)
            case record.DnsDenied():
                return self._dns(found, uid)
            case record.Unknown():
                other = Activity(Class.BASE_EVENT, OTHER, found.type or "Other")
                return event(other, _time_us(header), uid, agent=self._agent, message=f"a record of type {found.type}")

    def _chunk(self, found: record.RecordingChunk, uid: str) -> Event:
        said = msgspec.to_builtins(found)
        keys = ("session", "command", "number", "frames", "first_us", "last_us", "codec", "body")
        return event(
            Activity(Class.BASE_EVENT, OTHER, "Recording"), found.wall_us, uid, agent=self._agent,
            message=f"what the client of session {found.session} is shown, part {found.number}",
            unmapped={key: said.get(key) for key in keys},
        )  # fmt: skip

    def _process(self, found: record.StreamOpen | record.StreamClose, uid: str) -> Event:
        is_open = isinstance(found, record.StreamOpen)
        activity = Activity(Class.APPLICATION_LIFECYCLE, *((3, "Start") if is_open else (4, "Stop")))
        said = msgspec.to_builtins(found)
        keys = ("node", "service_account", "durability", "revision", "previous", "previous_link", "vkey", "reason")
        return event(
            activity, found.wall_us, uid, agent=self._agent, status_id=SUCCESS,
            message=f"the gateway of {self._agent.namespace}/{self._agent.pod} {'starts' if is_open else 'stops'}",
            app=product(said.get("gateway_version", "")), unmapped={key: said.get(key) for key in keys},
        )  # fmt: skip

    def _open(self, found: record.SessionOpen, uid: str) -> Event:
        session = Session(
            uid=found.session, target=found.target, protocol=found.protocol, client=found.client,
            upstream=found.upstream, user=found.user, database=found.database, application=found.application,
            trace=of_application(found.application),
        )  # fmt: skip
        if len(self._sessions) < MAX_OPEN:
            self._sessions[found.session] = session
        who = {} if isinstance(found.delegated, msgspec.UnsetType) else msgspec.to_builtins(found.delegated)
        return session_event(
            self._agent, session, found.wall_us, uid, is_end=False, unmapped={"delegated": filled(who)}
        )  # fmt: skip

    def _close(self, found: record.SessionClose, uid: str) -> Event:
        session = self._sessions.pop(found.session, Session(uid=found.session))
        counts = {key: getattr(found, key) for key in ("commands", "denied", "bytes_in", "bytes_out")}
        return session_event(
            self._agent, session, found.wall_us, uid, is_end=True, detail=found.reason, unmapped=counts
        )  # fmt: skip

    def _intent(self, found: record.CommandIntent, uid: str, trace: Trace | None) -> Event:
        said = msgspec.to_builtins(found)
        keys = (
            "command", "accesses", "resolution", "approval", "would", "would_policy", "would_rule", "in_transaction",
            "is_masked", "sha256", "size_bytes", "body", "params", "subject",
        )  # fmt: skip
        command = Command(
            target=found.target, kind=found.kind, decision=found.decision, policy=found.policy, rule=found.rule,
            revision=found.revision, effects=tuple(dict.fromkeys(one.effect for one in found.accesses)), trace=trace,
            more={key: said.get(key) for key in keys},
        )  # fmt: skip
        if found.decision == "Allow" and len(self._commands) < MAX_OPEN:
            self._commands[found.seq] = command
        return command_event(self._agent, self._session(found.session, found.target), command, found.wall_us, uid)

    def _outcome(self, found: record.CommandOutcome, uid: str) -> Event:
        command = self._commands.pop(found.ref, None) or Command(target="", kind="", effects=(), decision="Allow")
        counts = {key: getattr(found, key) for key in ("command", "ref", "rows", "bytes", "duration_us")}
        return command_event(
            self._agent, self._session(found.session, command.target), command, found.wall_us, uid,
            status=found.status, code=found.code, unmapped=counts,
        )  # fmt: skip

    def _session(self, session: str, target: str) -> Session:
        return self._sessions.get(session) or Session(uid=session, target=target)

    def _approval(self, found: record.ApprovalRequest | record.ApprovalOutcome, uid: str) -> Event:
        said = msgspec.to_builtins(found)
        is_request = isinstance(found, record.ApprovalRequest)
        activity = Activity(Class.ENTITY_MANAGEMENT, *((1, "Create") if is_request else (3, "Update")))
        keys = ("target", "binding", "policy", "rule", "revision", "accesses", "subject", "state")
        session = self._session(found.session, said.get("target", ""))
        state = said.get("state", "asked")
        return event(
            activity, found.wall_us, uid, agent=self._agent, trace=session.trace,
            message=f"{self._agent.identity}: approval {found.approval}: {state}", actor=actor(self._agent, session),
            entity={"name": found.approval or "unknown", "type_id": OTHER, "type": "ApprovalRequest"},
            status_detail=said.get("message"), unmapped={key: said.get(key) for key in keys},
        )  # fmt: skip

    def _suspension(self, found: record.IdentitySuspension, uid: str) -> Event:
        known = {"Suspended": (12, "Suspend"), "Resumed": (13, "Resume")}
        activity = Activity(Class.ENTITY_MANAGEMENT, *known.get(found.state, (OTHER, found.state or "Other")))
        agent = agent_user(self._agent)
        return event(
            activity, found.wall_us, uid, agent=self._agent, severity=HIGH, status_id=SUCCESS,
            message=f"{self._agent.identity}: {found.state}", actor={"user": {"name": found.by}} if found.by else None,
            entity={"name": agent["name"], "type_id": 2, "type": "User", "user": agent}, status_detail=found.reason,
            unmapped={"by": found.by, "at": found.at, "revision": found.revision, "sessions": found.sessions},
        )  # fmt: skip

    def _egress(self, found: record.EgressDenied, uid: str) -> Event:
        port = found.port if 0 <= found.port <= 65535 else None
        to = {"ip": ip(found.address)} if ip(found.address) else {"name": found.address or "unknown"}
        return event(
            Activity(Class.NETWORK_ACTIVITY, 5, "Refuse"), found.wall_us, uid, agent=self._agent, severity=LOW,
            message=f"{self._agent.identity}: {found.address} refused", src_endpoint=source(self._agent),
            dst_endpoint=filled({**to, "port": port}), action_id=2, disposition_id=2,
            connection_info=filled({"direction_id": 2, "protocol_name": found.network}), status_id=FAILURE,
            status_detail=found.reason, count=max(found.count, 1),
            unmapped={"address": found.address, "port": found.port},
        )  # fmt: skip

    def _dns(self, found: record.DnsDenied, uid: str) -> Event:
        name = hostname(found.name)
        return event(
            Activity(Class.DNS_ACTIVITY, 1, "Query"), found.wall_us, uid, agent=self._agent, severity=LOW,
            message=f"{self._agent.identity}: no target has the name that was asked for",
            src_endpoint=source(self._agent), query=filled({"hostname": name, "type": found.qtype}) if name else None,
            action_id=2, disposition_id=2, status_id=FAILURE, count=max(found.count, 1),
            unmapped={"name": found.name, "qtype": found.qtype},
        )  # fmt: skip


def _time_us(header: bytes) -> int:
    """When a record of an unknown type was written: every record says so."""
    wall_us = canonical.decode(header).get("wall_us")
    return wall_us if isinstance(wall_us, int) else 0


def _fingerprint(link: bytes) -> dict[str, Any]:
    return {
        "algorithm_id": 3, "algorithm": "SHA-256", "encoding_id": 1, "encoding": "Hex", "serialization_id": OTHER,
        "serialization": LINK_SCHEME, "value": link.hex(),
    }  # fmt: skip


def place_of(stream: str, seq: int, before: bytes, data: bytes) -> Place:
    """The place of an entry, given as its bytes; `before` is the link of the one before it.

    Raises:
        Malformed: it is no entry.
    """
    _, link, header = entry.split(data)
    return Place(stream, seq, before, link, merkle.leaf_hash(data), header)
