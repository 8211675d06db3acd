"""What the aggregated API shows, commands and sessions, as events.

The API shows a command with its outcome as one object and does not show links, so these events have no
`attestation_list`: the proof of a session is fetched with its bundle. The text of a command is left out.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from chaperone_evidence.errors import Malformed
from chaperone_evidence.ocsf.command import command_event, session_event
from chaperone_evidence.ocsf.event import Agent, Command, Event, Session
from chaperone_evidence.traceparent import Trace, of_application, of_statement

_PROTOCOL: Final = "chaperone.dev/protocol"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Said(msgspec.Struct, frozen=True):
    """One thing that happened: the same id whenever it is said again."""

    uid: str
    event: Event
    trace: Trace | None


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the parts of an object."""


class _Metadata(_Part, frozen=True):
    namespace: str
    labels: dict[str, str] = {}


class _CommandSpec(_Part, frozen=True):
    stream: str
    seq: int
    session: str
    identity: str
    target: str
    kind: str = ""
    decision: str = ""
    effects: tuple[str, ...] = ()
    policy: str = ""
    rule: str = ""
    revision: str = ""
    command: str = ""


class _CommandStatus(_Part, frozen=True):
    status: str
    decided_at: datetime
    code: str = ""
    rows: int = 0
    bytes: int = 0
    duration_microseconds: int = 0


class _CommandObject(_Part, frozen=True):
    metadata: _Metadata
    spec: _CommandSpec
    status: _CommandStatus


class _SessionSpec(_Part, frozen=True):
    stream: str
    identity: str
    target: str
    protocol: str = ""
    owner: str = ""
    pod: str = ""
    pod_uid: str = msgspec.field(default="", name="podUID")
    user: str = ""
    database: str = ""
    application: str = ""
    client: str = ""
    delegated: dict[str, str] = {}


class _SessionStatus(_Part, frozen=True):
    started_at: datetime
    ended_at: datetime | None = None
    reason: str = ""
    commands: int = 0
    denied: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class _SessionMetadata(_Metadata, frozen=True):
    name: str = ""


class _SessionObject(_Part, frozen=True):
    metadata: _SessionMetadata
    spec: _SessionSpec
    status: _SessionStatus


def of_command(value: dict[str, Any]) -> Said:
    """A Command as it is now: decided only, or with its outcome.

    Raises:
        Malformed: it is no Command of this API.
    """
    found = _convert(value, _CommandObject)
    spec, status = found.spec, found.status
    agent = Agent(identity=spec.identity, namespace=found.metadata.namespace)
    session = Session(uid=spec.session, target=spec.target, protocol=found.metadata.labels.get(_PROTOCOL, ""))
    shown = value["spec"]
    more = {key: shown.get(key) for key in ("objects", "approval", "subject", "resolution", "sha256", "masked")}
    trace = of_statement(spec.command) if spec.command else None
    command = Command(
        target=spec.target, kind=spec.kind, effects=spec.effects, decision=spec.decision, policy=spec.policy,
        rule=spec.rule, revision=spec.revision, trace=trace,
        more={**more, "in_transaction": shown.get("inTransaction"), "size_bytes": shown.get("sizeBytes")},
    )  # fmt: skip
    at_us, uid = _micros(status.decided_at), f"{spec.stream}/{spec.seq}"
    place: dict[str, Any] = {"stream": spec.stream, "seq": spec.seq}
    if status.status == "Pending" or (status.status == "Refused" and spec.decision != "Allow"):
        return Said(uid, command_event(agent, session, command, at_us, uid, unmapped=place), trace)
    uid = f"{uid}/outcome"
    counts = {"rows": status.rows, "bytes": status.bytes, "duration_us": status.duration_microseconds}
    event = command_event(
        agent, session, command, at_us + status.duration_microseconds, uid, status=status.status.lower(),
        code=status.code, unmapped=place | counts,
    )  # fmt: skip
    return Said(uid, event, trace)


def of_session(value: dict[str, Any]) -> tuple[Said, Said | None]:
    """A Session's beginning, and its end once it has ended.

    Raises:
        Malformed: it is no Session of this API.
    """
    found = _convert(value, _SessionObject)
    spec, status, name = found.spec, found.status, found.metadata.name
    agent = Agent(
        identity=spec.identity, namespace=found.metadata.namespace, owner=spec.owner, pod=spec.pod, pod_uid=spec.pod_uid
    )
    session = Session(
        uid=name, target=spec.target, protocol=spec.protocol, client=spec.client, user=spec.user,
        database=spec.database, application=spec.application, trace=of_application(spec.application),
    )  # fmt: skip
    began, place = f"{spec.stream}/{name}/open", {"stream": spec.stream, "delegated": spec.delegated}
    started = session_event(agent, session, _micros(status.started_at), began, is_end=False, unmapped=place)
    if status.ended_at is None:
        return Said(began, started, session.trace), None
    ended = f"{spec.stream}/{name}/close"
    counts = {key: getattr(status, key) for key in ("commands", "denied", "bytes_in", "bytes_out")}
    stopped = session_event(
        agent, session, _micros(status.ended_at), ended, is_end=True, detail=status.reason, unmapped=place | counts
    )  # fmt: skip
    return Said(began, started, session.trace), Said(ended, stopped, session.trace)


def _convert[T](value: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Malformed(f"The API shows an object of another form: {error}.") from error


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
