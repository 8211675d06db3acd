"""Objects of the cluster as rows of tables. Pure; what an object does not say is an empty cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from chaperone_cli.report.tables import APPROVALS, COLUMNS
from chaperone_evidence import record

_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
CONTROLS: Final = {
    "AccessPolicy": "accesspolicies", "ClusterAccessPolicy": "clusteraccesspolicies", "AccessTarget": "accesstargets",
}  # fmt: skip
CLUSTERED: Final = frozenset({"ClusterAccessPolicy", "AccessTarget"})

type Object = dict[str, Any]
type Cells = dict[str, object]


def part(value: Any, *path: str) -> Any:  # noqa: ANN401 - JSON of others
    """What stands at a path of objects; None where there is nothing of the kind."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def listed(value: Any) -> list[Any]:  # noqa: ANN401 - JSON of others
    """A list, or nothing."""
    return value if isinstance(value, list) else []


def log_index(name: str) -> int:
    """The place in the log that a name such as `c-…` says; -1 for none."""
    index = 0
    for digit in name[2:]:
        if digit not in _DIGITS:
            return -1
        index = index << 5 | _DIGITS.index(digit)
    return index if len(name) == 15 and index < 1 << 63 else -1


def identity(one: Object) -> Cells:
    """An AgentIdentity."""
    spec, owner = part(one, "spec"), part(one, "spec", "owner")
    return {
        **_named(one), "owner": part(owner, "name"), "owner_email": part(owner, "email"),
        "purpose": part(spec, "purpose"), "created_at": part(one, "metadata", "creationTimestamp"),
        "generation": part(one, "metadata", "generation"), "suspended": part(spec, "suspended") is True,
        "suspended_by": part(spec, "suspension", "by"), "ready": _condition(one, "Ready"),
        "covered": _condition(one, "Covered"), "has_owner": bool(part(owner, "name")),
    }  # fmt: skip


def control(one: Object, kind: str) -> Cells:
    """A policy or a target, with what the API server kept of its changes."""
    metadata, spec = part(one, "metadata"), part(one, "spec")
    fields = [
        field for field in listed(part(metadata, "managedFields"))
        if isinstance(field, dict) and not field.get("subresource")
    ]  # fmt: skip
    last = max(fields, key=lambda field: str(field.get("time", "")), default={})
    rules = [f"{part(rule, 'name')}: {part(rule, 'action')}" for rule in listed(part(spec, "rules"))]
    if kind == "AccessTarget":
        rules = [f"{part(spec, 'protocol')}, TLS {part(spec, 'tls', 'mode') or 'by default'}"]
        rules += [f"classified {part(group, 'class')}" for group in listed(part(spec, "classified"))]
    return {
        **_named(one), "kind": kind, "generation": part(metadata, "generation"),
        "mode": "" if kind == "AccessTarget" else part(spec, "mode") or "Enforce",
        "created_at": part(metadata, "creationTimestamp"), "changed_at": last.get("time"),
        "changed_with": last.get("manager"), "ready": _condition(one, "Ready"), "detail": rules,
    }  # fmt: skip


def coverage(one: Object, named: str) -> Cells:
    """A pod: what the collector judges of it, and what populations say."""
    status = part(one, "status")
    return {
        "namespace": part(one, "metadata", "namespace"), "pod": part(one, "spec", "pod"),
        "uid": part(one, "metadata", "name"), "identity": part(one, "spec", "identity"), "named": named,
        **{
            column: part(status, field)
            for column, field in (
                ("state", "state"), ("reason", "reason"), ("stream", "stream"), ("streams", "streams"),
                ("last_seq", "lastSeq"), ("last_seen", "lastSeen"), ("expected_since", "expectedSince"),
                ("ended_at", "endedAt"), ("exit_code", "exitCode"),
            )
        },
        "gaps": len(listed(part(status, "gaps"))),
    }  # fmt: skip


def gaps(one: Object) -> Iterator[Cells]:
    """The times of which nothing is proved for a pod."""
    for gap in listed(part(one, "status", "gaps")):
        yield {
            "namespace": part(one, "metadata", "namespace"), "pod": part(one, "spec", "pod"),
            "uid": part(one, "metadata", "name"), "identity": part(one, "spec", "identity"),
            "state": part(gap, "state"), "from": part(gap, "from"), "until": part(gap, "until"),
        }  # fmt: skip


def session(one: Object, counted: int, total: str) -> Cells:
    """A session; `total` says whether its own count is that of the commands listed."""
    spec, status = part(one, "spec"), part(one, "status")
    return {
        "name": part(one, "metadata", "name"), "namespace": part(one, "metadata", "namespace"),
        **{name: part(spec, name) for name in ("identity", "owner", "target", "protocol", "user", "database", "pod",
                                               "stream")},
        "pod_uid": part(spec, "podUID"), "subject": part(spec, "delegated", "subject"),
        "state": part(status, "state"), "started_at": part(status, "startedAt"), "ended_at": part(status, "endedAt"),
        "commands": part(status, "commands"), "denied": part(status, "denied"), "bytes_out": part(status, "bytesOut"),
        "has_findings": bool(part(status, "findings")), "has_chain_breaks": bool(part(status, "chainBreaks")),
        "counted": counted, "total": total, "role": part(spec, "role"),
    }  # fmt: skip


def command(one: Object) -> Cells:
    """A command, without its text: that stands in the bundles of sampled sessions alone."""
    spec, status = part(one, "spec"), part(one, "status")
    name = str(part(one, "metadata", "name"))
    found: Cells = {
        "name": name, "index": log_index(name), "namespace": part(one, "metadata", "namespace"),
        **{field: part(spec, field) for field in ("session", "identity", "target", "kind", "effects", "objects",
                                                  "decision", "policy", "rule", "revision", "approval", "subject",
                                                  "sha256", "stream", "seq")},
        "masked": part(spec, "masked") is True, "size_bytes": part(spec, "sizeBytes"),
        **{field: part(status, field) for field in ("status", "rows", "bytes")},
        "decided_at": part(status, "decidedAt"), "code": part(status, "code"), "statements": part(spec, "statements"),
        "in_transaction": part(spec, "inTransaction") is True, "duration_us": part(status, "durationMicroseconds"),
    }  # fmt: skip
    return found | {"class": class_of(str(found["decision"]), bool(found["approval"]))}


def class_of(decision: str, has_approval: bool) -> str:
    """By what a command is sampled."""
    if decision != "Allow":
        return "refused"
    return "approved" if has_approval else "allowed"


def of_record(said: record.CommandIntent) -> Cells:
    """What a record of a bundle says of a command, in the columns of the table."""
    return {
        "session": said.session, "target": said.target, "kind": said.kind, "decision": said.decision,
        "policy": said.policy, "rule": said.rule, "revision": said.revision, "approval": said.approval,
        "subject": said.subject, "sha256": said.sha256, "size_bytes": said.size_bytes, "masked": said.is_masked,
        "statements": said.statements, "in_transaction": said.in_transaction,
        "effects": list(dict.fromkeys(one.effect for one in said.accesses)),
        "objects": list(dict.fromkeys(one.object for one in said.accesses if one.object)),
    }  # fmt: skip


def approval(one: Object, commands: int) -> Cells:
    """An ApprovalRequest with its votes, and whether somebody voted on what is their own."""
    spec, status, who = part(one, "spec"), part(one, "status"), part(one, "spec", "requester")
    votes = listed(part(status, "votes"))
    approved = [str(part(vote, "by", "username")) for vote in votes if part(vote, "decision") == "Approve"]
    behalf = part(who, "onBehalfOf")
    own = {part(who, "createdBy"), part(who, "owner", "email"), part(behalf, "subject"), part(behalf, "email")}
    return {
        **{name: part(one, "metadata", name) for name in ("name", "namespace")}, "identity": part(who, "identity"),
        "owner": part(who, "owner", "email") or part(who, "owner", "name"), "created_by": part(who, "createdBy"),
        "on_behalf_of": part(behalf, "subject"),
        **{name: part(spec, name) for name in ("target", "session", "effects", "policy", "rule", "revision",
                                               "binding")},
        "state": part(status, "state"), "approved_by": approved,
        "denied_by": [str(part(vote, "by", "username")) for vote in votes if part(vote, "decision") == "Deny"],
        "reasons": [str(part(vote, "reason")) for vote in votes if part(vote, "reason")],
        "created_at": part(spec, "createdAt"), "used_at": part(status, "usedAt"),
        "self_approved": any(name in own | {*map(str, listed(part(spec, "excluded")))} for name in approved),
        "commands": commands,
    }  # fmt: skip


def gone(namespace: str, name: str, commands: int) -> Cells:
    """An ApprovalRequest that records name and the cluster does not have (any more)."""
    return dict.fromkeys(COLUMNS[APPROVALS], "") | {
        "namespace": namespace, "name": name, "state": "Gone", "commands": commands,
    }  # fmt: skip


def read(one: Object) -> Cells:
    """A read of evidence."""
    spec, name = part(one, "spec"), str(part(one, "metadata", "name"))
    return {
        "name": name, "index": log_index(name), "read_at": part(spec, "readAt"), "object": part(spec, "name"),
        "namespace": part(one, "metadata", "namespace"),
        **{field: part(spec, field) for field in ("user", "groups", "verb", "resource", "given", "query")},
    }  # fmt: skip


def _named(one: Object) -> Cells:
    return {name: part(one, "metadata", name) for name in ("namespace", "name", "uid")}


def _condition(one: Object, kind: str) -> str:
    for condition in listed(part(one, "status", "conditions")):
        if part(condition, "type") == kind:
            return str(part(condition, "status"))
    return "Unknown"
