"""Discovery and OpenAPI: fixed documents that need no storage, so that a busy log never slows everybody's kubectl."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from chaperone_collector.api.status import GROUP, VERSION

_GROUP_VERSION: Final = f"{GROUP}/{VERSION}"
_STRING: Final = {"type": "string"}
_BOOLEAN: Final = {"type": "boolean"}
_INTEGER: Final = {"type": "integer", "format": "int64"}
_STRINGS: Final = {"type": "array", "items": {"type": "string"}}


def _field(base: dict[str, Any], description: str) -> dict[str, Any]:
    return {**base, "description": description}


_SESSION: Final[dict[str, Any]] = {
    "spec": {
        "identity": _field(_STRING, "The AgentIdentity that the pod runs as."),
        "owner": _field(_STRING, "The human who answers for it."),
        "target": _field(_STRING, "The AccessTarget that was connected to."),
        "protocol": _field(_STRING, "The protocol that was spoken."),
        "pod": _field(_STRING, "The agent's pod."),
        "podUID": _field(_STRING, "The pod's uid, as in the gateway's certificate."),
        "node": _field(_STRING, "The node that the pod ran on."),
        "serviceAccount": _field(_STRING, "The pod's service account."),
        "user": _field(_STRING, "The user that the client named; the backend's is the credential's."),
        "database": _field(_STRING, "The database that the client named."),
        "application": _field(_STRING, "What the client called itself."),
        "role": _field(_STRING, "The user of the back end that the gateway logged in as."),
        "client": _field(_STRING, "The client's address in the pod."),
        "delegated": {
            "type": "object",
            "description": "On whose behalf the agent acted, as the issuer's token said.",
            "properties": {
                "issuer": _field(_STRING, "Whose token it was."),
                "subject": _field(_STRING, "The person."),
                "email": _field(_STRING, "Their address, where the token had one."),
            },
        },
        "stream": _field(_STRING, "The stream of records that holds the session."),
    },
    "status": {
        "state": _field(_STRING, "Open, Closed, or Lost: its gateway ended, restarted or fell silent."),
        "startedAt": _field(_STRING, "By the gateway's clock."),
        "endedAt": _field(_STRING, "By the gateway's clock."),
        "reason": _field(_STRING, "Why it ended."),
        "commands": _field(_INTEGER, "Commands recorded."),
        "denied": _field(_INTEGER, "Commands that were not allowed."),
        "bytesIn": _field(_INTEGER, "Bytes from the client."),
        "bytesOut": _field(_INTEGER, "Bytes to the client."),
        "lastSeq": _field(_INTEGER, "The newest record of the stream."),
        "recorded": _field({"type": "boolean"}, "Whether what the client was shown is kept: sessions/recording."),
        "findings": _field(_INTEGER, "Records of the stream that were stored although something is wrong with them."),
        "chainBreaks": _field(_INTEGER, "Batches refused because they would have broken the stream's chain."),
    },
}
_COMMAND: Final[dict[str, Any]] = {
    "spec": {
        "session": _field(_STRING, "The session that the command belongs to."),
        "identity": _field(_STRING, "The AgentIdentity that sent it."),
        "target": _field(_STRING, "The AccessTarget that it was for."),
        "kind": _field(_STRING, "What the protocol calls it."),
        "effects": _field(_STRINGS, "What it does."),
        "objects": _field(_STRINGS, "What it does it to."),
        "resolution": _field(_STRING, "How effects and objects were found."),
        "decision": _field(_STRING, "Allow, Deny or RequireApproval."),
        "policy": _field(_STRING, "The policy that decided."),
        "rule": _field(_STRING, "The rule that decided."),
        "approval": _field(_STRING, "The ApprovalRequest that was spent on it."),
        "subject": _field(_STRING, "On whose behalf; the session says more."),
        "revision": _field(_STRING, "The revision of all policies at that time."),
        "sha256": _field(_STRING, "SHA-256 of the text as it is kept."),
        "masked": _field({"type": "boolean"}, "Text and parameters as kept lack values that masks hide."),
        "sizeBytes": _field(_INTEGER, "Length of that text."),
        "command": _field(_STRING, "The text, when it was kept and is not longer than 16 KiB."),
        "inTransaction": _field({"type": "boolean"}, "Whether a transaction was open."),
        "statements": _field(_INTEGER, "That the back end counts when it runs them; 0: none, -1: not known."),
        "stream": _field(_STRING, "The stream that holds the command."),
        "seq": _field(_INTEGER, "The number of its record in the stream."),
    },
    "status": {
        "status": _field(_STRING, "Pending, Ok, Error, Refused or Aborted."),
        "code": _field(_STRING, "The backend's code for an error, or the limit that cut the command."),
        "decidedAt": _field(_STRING, "By the gateway's clock."),
        "rows": _field(_INTEGER, "Rows of the result."),
        "bytes": _field(_INTEGER, "Bytes of the result."),
        "durationMicroseconds": _field(_INTEGER, "From decision to end."),
        "erased": _field(_BOOLEAN, "True: the text was erased, as a certificate in the log states."),
    },
}
_READ: Final[dict[str, Any]] = {
    "spec": {
        "user": _field(_STRING, "Who read, as the API server knows them."),
        "groups": _field(_STRINGS, "The groups that the API server named, as many as have room in the record."),
        "verb": _field(_STRING, "get, list or watch."),
        "resource": _field(_STRING, "What was read."),
        "name": _field(_STRING, "The object that was named, if one was."),
        "query": _field(_STRING, "Selectors and the like, as they were sent."),
        "given": _field(_INTEGER, "Objects in the answer; a watch's are not counted."),
        "readAt": _field(_STRING, "By the collector's clock."),
    },
}
_CHECKPOINT: Final[dict[str, Any]] = {
    "spec": {
        "origin": _field(_STRING, "The log's name."),
        "size": _field(_INTEGER, "How many entries are signed."),
        "root": _field(_STRING, "The root of the Merkle tree over them (RFC 6962), base64."),
        "note": _field(_STRING, "The signed checkpoint (C2SP tlog-checkpoint)."),
    },
    "status": {
        "signedAt": _field(_STRING, "By the collector's clock."),
        "signers": _field(_STRINGS, "The names of the keys that have signed."),
    },
}


_POPULATION: Final[dict[str, Any]] = {
    "spec": {
        "epoch": _field(_INTEGER, "Grows by one in each namespace."),
        "previous": _field(_STRING, "SHA-256 of the note of the epoch before, base64; zeros in the first."),
        "note": _field(_STRING, "What the operator has signed: each pod that has a stream, has none, or has ended."),
        "key": _field(_STRING, "When posted: the key that verifies the note. The first is the one from then on."),
        "salt": _field(_STRING, "Base64; SHA-256 of a prefix, this and the note is what the entry in the log holds."),
    },
    "status": {
        "index": _field(_INTEGER, "Of its entry in the log."),
        "hash": _field(_STRING, "SHA-256 of the note, base64: the next one names it."),
        "commit": _field(_STRING, "What its entry in the log holds of the note, base64."),
        "pods": _field(_INTEGER, "That were there."),
        "receivedAt": _field(_STRING, "By the collector's clock."),
    },
}
_REVISION: Final[dict[str, Any]] = {
    "spec": {
        "revision": _field(_STRING, "As commands name it: 16 hex digits."),
        "serial": _field(_INTEGER, "Grows with each that comes into force in the namespace; the object's name."),
        "bundle": _field(_STRING, "When posted: what OPA works with, base64."),
        "gateway": _field(_STRING, "When posted: the configuration of each identity's gateways, base64."),
        "notes": _field(_STRING, "When posted: the operator's signed note for each identity, base64."),
        "key": _field(_STRING, "When posted: the key that verifies the notes. The first is the one from then on."),
    },
    "status": {
        "index": _field(_INTEGER, "Of its entry in the log."),
        "identities": _field(_INTEGER, "That it configures."),
        "bundleSHA256": _field(_STRING, "Of the bundle, hex; each note names it."),
        "commits": {
            "type": "object", "description": "What its entry in the log holds of each file, base64.",
            "additionalProperties": {"type": "string"},
        },
        "receivedAt": _field(_STRING, "By the collector's clock."),
    },
}  # fmt: skip
_COVERAGE: Final[dict[str, Any]] = {
    "spec": {
        "pod": _field(_STRING, "The pod; the object's name is its uid."),
        "identity": _field(_STRING, "The AgentIdentity that it runs as, or that selects it."),
    },
    "status": {
        "state": _field(
            _STRING, "Covered, Missing, Uncovered, Silent, Lost, Ended, Truncated, Forked or Unknown; judged when read."
        ),
        "reason": _field(_STRING, "Why, in one word."),
        "stream": _field(_STRING, "The newest stream of the pod."),
        "streams": _field(_INTEGER, "How many it has; the newest hundred count."),
        "lastSeq": _field(_INTEGER, "The newest record of the stream."),
        "lastSeen": _field(_STRING, "When that came, by the collector's clock."),
        "expectedSince": _field(_STRING, "From when on there has to be a stream, by the collector's clock."),
        "endedAt": _field(_STRING, "When the pod ended, by the operator."),
        "exitCode": _field(_INTEGER, "Of the gateway, where it is known."),
        "gaps": {
            "type": "array",
            "description": "Times of which nothing proves what was done.",
            "items": {
                "type": "object",
                "properties": {
                    "state": _field(_STRING, "What it was."),
                    "from": _field(_STRING, "The last that is proved."),
                    "until": _field(_STRING, "Absent while it lasts."),
                },
            },
        },
    },
}

_PODS: Final = ("covered", "ended", "missing", "uncovered", "silent", "lost", "truncated", "forked", "unknown")
_REPORT: Final[dict[str, Any]] = {
    "spec": {
        "kind": _field(_STRING, "Daily or Monthly."),
        "period": _field(_STRING, "The day or month, as 2026-11-26 or 2026-11, in UTC by the collector's clock."),
        "first": _field(_INTEGER, "The first entry of the log that it is about."),
        "end": _field(_INTEGER, "The entry before which these end."),
        "size": _field(_INTEGER, "Entries of the log at the checkpoint that it rests on."),
        "root": _field(_STRING, "The root over them, base64."),
        "report": _field(_STRING, "The report as it was made and hashed: canonical JSON. Never made anew."),
        "salt": _field(_STRING, "Base64; SHA-256 of a prefix, this and the report is what the entry in the log holds."),
    },
    "status": {
        "index": _field(_INTEGER, "Of its entry in the log."),
        "sha256": _field(_STRING, "Of the report, hex, as the entry holds it."),
        "commit": _field(_STRING, "What its entry in the log holds of salt and report, base64."),
        "madeAt": _field(_STRING, "By the collector's clock; whether pods are heard was judged then."),
        "rows": _field(_INTEGER, "Entries that it is about."),
        "exceptions": _field(_INTEGER, "Findings, chain breaks, pods that are not heard, times without proof."),
        "altered": _field(_BOOLEAN, "True: what is stored is not what the log holds, so it is not shown."),
        "namespaces": {
            "type": "array",
            "description": "What is in the report, by namespace; the empty name is what belongs to none.",
            "items": {
                "type": "object",
                "properties": {
                    "name": _field(_STRING, "The namespace."),
                    "sessions": _field(_INTEGER, "Sessions that began."),
                    "commands": _field(_INTEGER, "Commands, of which the next three are parts."),
                    "denied": _field(_INTEGER, "Refused by policy."),
                    "held": _field(_INTEGER, "Held for people and not released on their connection."),
                    "approved": _field(_INTEGER, "Released by people."),
                    "identities": _field(_INTEGER, "AgentIdentities with commands."),
                    "reads": _field(_INTEGER, "Reads of evidence."),
                    "findings": _field(_INTEGER, "Records that say what cannot be."),
                    "chainBreaks": _field(_INTEGER, "Tries to break the chain of a stream."),
                    "gaps": _field(_INTEGER, "Times of the period of which nothing proves what was done."),
                    "pods": {
                        "type": "object",
                        "description": "Pods that were there in the period, by the state of their coverage.",
                        "properties": {name: _field(_INTEGER, "How many.") for name in _PODS},
                    },
                },
            },
        },
    },
}


class Served(msgspec.Struct, frozen=True):
    """A resource, as discovery tells of it."""

    resource: str
    kind: str
    description: str
    schema: dict[str, Any]
    verbs: tuple[str, ...] = ("get", "list", "watch")
    parts: tuple[str, ...] = ()
    is_namespaced: bool = True


_SERVED: Final = (
    Served(
        "sessions", "Session", "A connection of an agent to a target, read off the tamper-evident log.", _SESSION,
        parts=("proof", "recording"),
    ),
    Served(
        "commands", "Command", "One command of an agent: what was asked, decided, and what came of it.", _COMMAND
    ),
    Served("reads", "Read", "Somebody read evidence; recorded before the answer was given.", _READ),
    Served(
        "checkpoints", "Checkpoint", "What the log has signed: so many entries, under that root.", _CHECKPOINT,
        verbs=("get", "list"), parts=("checkpoint", "entries", "policy", "tile"), is_namespaced=False,
    ),
    Served(
        "populations", "Population", "The operator's signed word on which pods of a namespace have to have a stream.",
        _POPULATION, verbs=("create", "get", "list"), parts=("proof",),
    ),
    Served(
        "policyrevisions", "PolicyRevision", "What decided from some time on, as the operator signed it.", _REVISION,
        verbs=("create", "get", "list"), parts=("proof",),
    ),
    Served(
        "coverages", "Coverage", "Whether a pod that has to be recorded is.", _COVERAGE, verbs=("get", "list")
    ),
    Served(
        "evidencereports", "EvidenceReport", "What the log held of a day or month, stated in it when that was over.",
        _REPORT, is_namespaced=False,
    ),
)  # fmt: skip


def document(path: str) -> bytes | dict[str, Any] | None:
    """What is answered at a path without looking at any evidence; None for other paths."""
    match path.rstrip("/"):
        case "/apis":
            return group_list()
        case "/openapi/v2":
            return _V2
        case "/openapi/v3":
            return openapi_v3_index()
        case other if other == f"/apis/{GROUP}":
            return group()
        case other if other == f"/apis/{_GROUP_VERSION}":
            return resources()
        case other if other == f"/openapi/v3/apis/{_GROUP_VERSION}":
            return _V3
    return None


def group_list() -> dict[str, Any]:
    """`/apis`."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}


def group() -> dict[str, Any]:
    """`/apis/<group>`."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group()}


def resources() -> dict[str, Any]:
    """`/apis/<group>/<version>`."""
    return {
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": _GROUP_VERSION,
        "resources": [
            entry
            for one in _SERVED
            for entry in (
                {
                    "name": one.resource, "singularName": one.kind.lower(), "namespaced": one.is_namespaced,
                    "kind": one.kind, "verbs": list(one.verbs),
                },
                *(
                    {
                        "name": f"{one.resource}/{part}", "singularName": "", "namespaced": one.is_namespaced,
                        "kind": one.kind, "verbs": ["get"],
                    }
                    for part in one.parts
                ),
            )
        ],
    }  # fmt: skip


def openapi_v3_index() -> dict[str, Any]:
    """`/openapi/v3`."""
    return {"paths": {f"apis/{_GROUP_VERSION}": {"serverRelativeURL": f"/openapi/v3/apis/{_GROUP_VERSION}"}}}


def _group() -> dict[str, Any]:
    version = {"groupVersion": _GROUP_VERSION, "version": VERSION}
    return {"name": GROUP, "versions": [version], "preferredVersion": version}


def _schemas(prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in _SERVED:
        kind = one.kind
        name = _name(kind)
        version_kind = [{"group": GROUP, "version": VERSION, "kind": kind}]
        found[name] = {
            "type": "object", "description": one.description,
            "properties": {
                "apiVersion": _STRING, "kind": _STRING, "metadata": {"type": "object"},
                **{part: {"type": "object", "properties": fields} for part, fields in one.schema.items()},
            },
            "x-kubernetes-group-version-kind": version_kind,
        }  # fmt: skip
        found[name + "List"] = {
            "type": "object", "description": f"A list of {kind}.", "required": ["items"],
            "properties": {
                "apiVersion": _STRING, "kind": _STRING, "metadata": {"type": "object"},
                "items": {"type": "array", "items": {"$ref": prefix + name}},
            },
            "x-kubernetes-group-version-kind": [{"group": GROUP, "version": VERSION, "kind": kind + "List"}],
        }  # fmt: skip
    return found


def _name(kind: str) -> str:
    return f"dev.chaperone.evidence.{VERSION}.{kind}"


def _paths(prefix: str, *, is_v3: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in _SERVED:
        resource, kind = one.resource, one.kind
        base = f"/apis/{_GROUP_VERSION}"
        placed = f"{base}/namespaces/{{namespace}}/{resource}" if one.is_namespaced else f"{base}/{resource}"
        for path, action, shown in dict.fromkeys((
            (f"{base}/{resource}", "list", kind + "List"), (placed, "list", kind + "List"),
            (placed + "/{name}", "get", kind),
        )):  # fmt: skip
            reference = {"$ref": prefix + _name(shown)}
            answer = {"content": {"application/json": {"schema": reference}}} if is_v3 else {"schema": reference}
            operation = {
                "operationId": f"{action}{'Namespaced' if 'namespaces' in path else ''}{kind}",
                "description": f"{action} {resource}",
                "responses": {"200": {"description": "OK", **answer}},
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": kind},
            }
            found[path] = {"get": operation, "parameters": _parameters(path, is_v3=is_v3)}
        for part in one.parts if one.is_namespaced else ():
            path = f"{placed}/{{name}}/{part}"
            operation = {
                "operationId": f"getNamespaced{kind}{part.capitalize()}", "description": f"get {resource}/{part}",
                "responses": {"200": {"description": "OK"}}, "x-kubernetes-action": "get",
            }  # fmt: skip
            found[path] = {"get": operation, "parameters": _parameters(path, is_v3=is_v3)}
    return found


def _parameters(path: str, *, is_v3: bool) -> list[dict[str, Any]]:
    kind: dict[str, Any] = {"schema": _STRING} if is_v3 else _STRING
    names = [name for name in ("namespace", "name") if f"{{{name}}}" in path]
    return [{"name": name, "in": "path", "required": True, **kind} for name in names]


_INFO: Final = {"title": "Chaperone evidence", "version": VERSION}
_V2: Final = msgspec.json.encode(
    {
        "swagger": "2.0", "info": _INFO, "paths": _paths("#/definitions/", is_v3=False),
        "definitions": _schemas("#/definitions/"),
    }
)  # fmt: skip
_V3: Final = msgspec.json.encode(
    {
        "openapi": "3.0.0", "info": _INFO, "paths": _paths("#/components/schemas/", is_v3=True),
        "components": {"schemas": _schemas("#/components/schemas/")},
    }
)  # fmt: skip
