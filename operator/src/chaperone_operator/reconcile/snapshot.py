"""Which snapshot of a namespace should be stored. Pure; the compiler decides what is in it.

An identity that was deleted while pods of it still run stays in the snapshot as a suspended one: its gateways hear that
everything is taken away, where "no such identity" would leave them at what they know.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from chaperone_operator.admission.names import IDENTITY_LABEL
from chaperone_operator.compile import Problem, Snapshot, compile_namespace, revoke
from chaperone_operator.compile.revoke import DELETED
from chaperone_operator.compile.vocabulary import GROUP, VERSION
from chaperone_operator.kube import Object

PREFIX: Final = "snapshot-"
LABEL: Final = "chaperone.dev/snapshot"
REVISION: Final = "chaperone.dev/revision"
SNAPSHOT_UNREADABLE: Final = "SnapshotUnreadable"  # nothing of what is stored could be taken back


class Declared(msgspec.Struct, frozen=True):
    """Everything that the snapshot of one namespace is made from.

    Attributes:
        labels: of the Namespace.
        alive: names of identities for which pods were injected that have not ended.
    """

    namespace: str
    labels: Mapping[str, str]
    identities: Sequence[Object]
    targets: Sequence[Object]
    policies: Sequence[Object]
    cluster_policies: Sequence[Object]
    alive: frozenset[str] = frozenset()


class Outcome(msgspec.Struct, frozen=True):
    """What is to be stored.

    Attributes:
        data: `binaryData`; None when nothing can be stored.
        is_latest: whether it was made from everything that is declared now, or is the last good one less what was
            withdrawn since.
    """

    data: Mapping[str, str] | None
    revision: str
    is_latest: bool
    problems: tuple[Problem, ...]


def outcome(declared: Declared, stored: Mapping[str, str] | None, system_namespace: str) -> Outcome:
    """The snapshot that follows from what is declared and what is stored.

    Args:
        declared: all objects.
        stored: `binaryData` of the namespace's ConfigMap, None when there is none.
        system_namespace: where Chaperone runs.
    """
    latest = _compiled(declared, declared.identities, system_namespace)
    if latest.is_usable:
        ghosts = _ghosts(declared, stored or {})
        if ghosts:
            with_ghosts = _compiled(declared, [*declared.identities, *ghosts], system_namespace)
            latest = with_ghosts if with_ghosts.is_usable else latest
        return Outcome(latest.binary_data(), latest.revision, True, latest.problems)
    if stored is None:
        return Outcome(None, "", False, latest.problems)
    try:
        last = revoke(
            stored,
            declared.namespace,
            declared.identities,
            declared.targets,
            namespace_labels=declared.labels,
        )
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError):
        message = "The stored snapshot cannot be read, so nothing of it was withdrawn; correct the policies first."
        unreadable = Problem("Namespace", "", declared.namespace, SNAPSHOT_UNREADABLE, message)
        return Outcome(None, "", False, (*latest.problems, unreadable))
    return Outcome(last.binary_data(), last.revision, False, latest.problems)


def config_map(namespace: str, found: Outcome, version: str = "") -> Object:
    """The ConfigMap that carries a snapshot, to be written over that resourceVersion alone where one is named."""
    return {
        "metadata": {
            "name": f"{PREFIX}{namespace}",
            "labels": {LABEL: "true"},
            "annotations": {REVISION: found.revision},
            **({"resourceVersion": version} if version else {}),
        },
        "binaryData": dict(found.data or {}),
    }


def _compiled(declared: Declared, identities: Sequence[Object], system_namespace: str) -> Snapshot:
    return compile_namespace(
        declared.namespace,
        identities,
        declared.targets,
        declared.policies,
        declared.cluster_policies,
        namespace_labels=declared.labels,
        system_namespace=system_namespace,
    )


def _ghosts(declared: Declared, stored: Mapping[str, str]) -> list[Object]:
    """Identities of the last snapshot that are gone while their pods live, as suspended ones."""
    present = {item["metadata"]["name"] for item in declared.identities}
    try:
        last: dict[str, dict[str, Any]] = msgspec.json.decode(
            base64.b64decode(stored.get("gateway.json", ""), validate=True) or b"{}"
        )
        return [
            _ghost(declared.namespace, name, last[name]["identity"])
            for name in sorted(last.keys() - present)
            if name in declared.alive
        ]
    except (binascii.Error, msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return []  # the stored snapshot is about to be replaced by one without them: the broker then knows none


def _ghost(namespace: str, name: str, was: Mapping[str, Any]) -> Object:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "AgentIdentity",
        "metadata": {"name": name, "namespace": namespace, "uid": was["uid"], "generation": was["generation"]},
        "spec": {
            "selector": {"matchLabels": {IDENTITY_LABEL: name}},
            "owner": {key: value for key, value in was["owner"].items() if value} or {"name": name},
            "team": was.get("team", ""),
            "purpose": was.get("purpose", ""),
            "suspended": True,
            "suspension": {"reason": DELETED.reason},
        },
    }
