"""Which pods of an AgentIdentity are held by a gateway, and why the others are not. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from chaperone_operator.admission.names import CONTAINERS, GATEWAY, IDENTITY_LABEL, INJECTED_ANNOTATION
from chaperone_operator.compile.model import IdentitySpec, decode
from chaperone_operator.compile.selector import LabelSelector

ENROLLED: Final = "chaperone.dev/GatewayEnrolled"
"""Condition that the broker puts on a pod whose gateway it has admitted."""
CUT: Final = "chaperone.dev/SessionsCut"
"""Condition that the broker puts on a pod whose gateway has taken a suspension in; its message is the time of that."""
IN_FORCE: Final = "chaperone.dev/PolicyInForce"
"""Condition that the broker puts on a pod; its message is the revision that the gateway says it has in force."""
POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
_REFUSING: Final = frozenset({"baseline", "restricted"})


class Why(StrEnum):
    """Why a pod is not covered."""

    EXISTED_BEFORE = "ExistedBefore"
    NOT_INJECTED = "NotInjected"
    ANOTHER_IDENTITY = "AnotherIdentity"
    TWO_IDENTITIES = "TwoIdentities"
    NOT_ENROLLED = "NotEnrolled"


ADVICE: Final = {
    Why.EXISTED_BEFORE: "older than the identity; delete the pod, and it is made anew with a gateway",
    Why.NOT_INJECTED: "younger than the identity and without a gateway: the selector changed since, or admission was "
    "passed by; delete the pod, and watch that its successor is covered",
    Why.ANOTHER_IDENTITY: "injected for another identity; delete the pod, and it is made anew",
    Why.TWO_IDENTITIES: "selected by more than one identity; change selectors or labels so that one selects it",
    Why.NOT_ENROLLED: "runs, but the broker never admitted its gateway; look at its log, and delete the pod",
}


class Pod(msgspec.Struct, frozen=True):
    """What coverage asks of a pod.

    Attributes:
        created: as the API says it, RFC 3339 in UTC, so that texts compare like times.
        identity: for whom it was injected, "" for nobody.
        is_running: at least one ordinary container has started.
        cut_at: time of the last suspension that its gateway has taken in, "" for none.
        revision: what its gateway says it has in force, "" for nothing.
        enrolled_at: when the broker admitted its gateway, "" for never.
        end_reason: of a pod that is over: its phase, or a word that says more.
        exit_code: of its gateway, once that has ended.
        finished_at: when that was.
    """

    namespace: str
    name: str
    uid: str
    created: str
    labels: Mapping[str, str]
    identity: str
    is_running: bool
    is_enrolled: bool
    is_over: bool
    cut_at: str = ""
    revision: str = ""
    enrolled_at: str = ""
    end_reason: str = ""
    exit_code: int | None = None
    finished_at: str = ""


class Coverage(msgspec.Struct, frozen=True):
    """The pods of one identity.

    Attributes:
        uncovered: by name, in order.
        cut: those whose gateways have taken the present suspension in.
        in_force: those whose gateways say that they have the present revision in force.
    """

    covered: int
    uncovered: tuple[tuple[str, Why], ...]
    cut: int = 0
    in_force: int = 0


class Subject(msgspec.Struct, frozen=True):
    """An identity as coverage sees it."""

    name: str
    created: str
    selector: LabelSelector


def digest(pod: Mapping[str, Any]) -> Pod:
    """The part of a pod that is kept in memory."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    first = [one.get("name") for one in spec.get("initContainers") or ()][: len(CONTAINERS)]
    is_injected = tuple(first) == CONTAINERS and INJECTED_ANNOTATION in annotations
    enrolled: Mapping[str, Any] = next(
        (one for one in status.get("conditions") or () if (one.get("type"), one.get("status")) == (ENROLLED, "True")),
        {},
    )
    gateway = _terminated(status)
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created=metadata.get("creationTimestamp", ""),
        labels=dict(labels),
        identity=labels.get(IDENTITY_LABEL, "") if is_injected else "",
        is_running=status.get("phase") == "Running",
        is_enrolled=bool(enrolled),
        is_over=status.get("phase") in {"Succeeded", "Failed"},
        cut_at=_message(status, CUT),
        revision=_message(status, IN_FORCE),
        enrolled_at=enrolled.get("lastTransitionTime") or "",
        end_reason=status.get("reason") or status.get("phase") or "",
        exit_code=gateway.get("exitCode"),
        finished_at=gateway.get("finishedAt") or "",
    )


def subject(item: Mapping[str, Any]) -> Subject | None:
    """An AgentIdentity as coverage sees it; None where its spec cannot be read."""
    identity, _ = decode(item, IdentitySpec)
    if identity is None:
        return None
    return Subject(identity.name, item["metadata"].get("creationTimestamp", ""), identity.spec.selector)


def who(subjects: Sequence[Subject], pod: Pod) -> tuple[str, Why | None] | None:
    """Whose pod it is, and why it is not covered; None for one that is nobody's.

    An identity that is gone still has the pods that were injected for it.
    """
    if pod.identity:
        return pod.identity, _unenrolled(pod)
    selecting = [one for one in subjects if one.selector.admits(pod.labels)]
    return (selecting[0].name, _why(selecting[0], selecting[1:], pod)) if selecting else None


def coverage(
    identity: Subject, others: Sequence[Subject], pods: Iterable[Pod], suspended_at: str = "", revision: str = ""
) -> Coverage:
    """Judge the pods of a namespace for one of its identities; pods that have ended count for nothing.

    Args:
        identity: whose pods.
        others: the other identities of the namespace.
        pods: all pods of the namespace.
        suspended_at: time of the suspension, "" when there is none.
        revision: of the policy that pods should have in force, "" when there is none.
    """
    covered = cut = in_force = 0
    uncovered = []
    for pod in pods:
        is_selected = identity.selector.admits(pod.labels)
        if pod.is_over or not (is_selected or pod.identity == identity.name):
            continue
        why = _why(identity, others, pod)
        if why is None:
            covered += 1
            cut += bool(suspended_at) and pod.cut_at == suspended_at
            in_force += bool(revision) and pod.revision == revision
        else:
            uncovered.append((pod.name, why))
    return Coverage(covered, tuple(sorted(uncovered)), cut, in_force)


def pod_security(labels: Mapping[str, str]) -> str:
    """The Pod Security level of a namespace, when it is one that refuses fence and gateway; else ""."""
    level = labels.get(POD_SECURITY, "")
    return level if level in _REFUSING else ""


def _message(status: Mapping[str, Any], kind: str) -> str:
    """What a condition of a pod says, "" when it has none of that type."""
    found: str = next((one.get("message", "") for one in status.get("conditions") or () if one.get("type") == kind), "")
    return found


def _terminated(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the gateway of a pod ended; empty while it has not."""
    statuses = status.get("initContainerStatuses") or ()
    found: Mapping[str, Any] = next((one.get("state") or {} for one in statuses if one.get("name") == GATEWAY), {})
    return found.get("terminated") or {}


def _unenrolled(pod: Pod) -> Why | None:
    return Why.NOT_ENROLLED if pod.is_running and not pod.is_enrolled else None


def _why(identity: Subject, others: Sequence[Subject], pod: Pod) -> Why | None:
    if pod.identity == identity.name:
        return _unenrolled(pod)
    if pod.identity:
        return Why.ANOTHER_IDENTITY
    if any(other.selector.admits(pod.labels) for other in others):
        return Why.TWO_IDENTITIES
    return Why.EXISTED_BEFORE if pod.created <= identity.created else Why.NOT_INJECTED
