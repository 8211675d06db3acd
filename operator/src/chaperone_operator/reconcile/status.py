"""What the status of each kind says, from what was compiled and what runs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from chaperone_operator.compile.model import Suspension
from chaperone_operator.compile.problem import Problem
from chaperone_operator.reconcile.condition import Condition
from chaperone_operator.reconcile.coverage import ADVICE, POD_SECURITY, Coverage
from chaperone_operator.reconcile.snapshot import SNAPSHOT_UNREADABLE

MAX_NAMES: Final = 50  # uncovered pods named in a status; the count is whole
MAX_TOLD: Final = 5  # of them told with a reason in the message
READY: Final = "Ready"
COVERED: Final = "Covered"


class InForce(msgspec.Struct, frozen=True):
    """What a namespace's gateways work with.

    Attributes:
        revision: stored for the broker; "" when there is none.
        is_latest: whether it was made from everything that is declared now.
        problems: of all objects that the namespace depends on.
    """

    revision: str
    is_latest: bool
    problems: tuple[Problem, ...] = ()

    @property
    def blocking(self) -> tuple[Problem, ...]:
        """The problems that keep the latest from being in force."""
        return tuple(one for one in self.problems if one.is_blocking)


def own(problems: Iterable[Problem], kind: str, namespace: str, name: str) -> list[Problem]:
    """The problems of one object, blocking ones first."""
    mine = [one for one in problems if (one.kind, one.namespace, one.name) == (kind, namespace, name)]
    return sorted(set(mine), key=lambda one: (not one.is_blocking, one))


def ready(kind: str, namespace: str, name: str, force: InForce) -> Condition:
    """`Ready` of an identity or policy of a namespace."""
    mine = own(force.problems, kind, namespace, name)
    if mine and mine[0].is_blocking:
        kept = f" Revision {force.revision} stays in force." if force.revision else ""
        return Condition(READY, False, mine[0].reason, _text(mine) + kept)
    if not force.is_latest:
        others = [one for one in force.blocking if (one.kind, one.namespace, one.name) != (kind, namespace, name)]
        kept = f"revision {force.revision} stays in force" if force.revision else "nothing is in force"
        cause = f"{others[0].kind} {others[0].name}: {others[0].message}" if others else "the snapshot was not stored."
        return Condition(
            READY, False, "NamespaceDoesNotCompile", f"Not in force, {kept}, until this is put right: {cause}"
        )
    return Condition(READY, True, "InForce", " ".join([f"Revision {force.revision} is in force.", _text(mine)]).strip())


def shared_ready(mine: Sequence[Problem]) -> Condition:
    """`Ready` of an object that belongs to no namespace, from all problems that any namespace has with it."""
    found = sorted(set(mine), key=lambda one: (not one.is_blocking, one))
    if found and found[0].is_blocking:
        return Condition(READY, False, found[0].reason, _text(found))
    return Condition(READY, True, "Accepted", _text(found))


def identity_conditions(
    namespace: str, name: str, force: InForce, found: Coverage, pod_security: str, *, is_suspended: bool,
    change: Suspension,
) -> list[Condition]:  # fmt: skip
    """Conditions of an AgentIdentity; `change` is who suspended or resumed it last."""
    is_ready = ready("AgentIdentity", namespace, name, force)
    if is_suspended and not any(one.reason == SNAPSHOT_UNREADABLE for one in force.problems):
        also = "" if is_ready.is_true else f" {is_ready.message}"
        told = f"Every access is taken away: suspended {_change(change)}.{also}"
        is_ready = Condition(READY, False, "Suspended", told)
    elif is_ready.is_true and change.by:
        is_ready = Condition(READY, True, is_ready.reason, f"{is_ready.message} Resumed {_change(change)}.")
    if pod_security:
        why = (
            f"Namespace {namespace} enforces Pod Security {pod_security}, which refuses the capabilities of fence and "
            f"gateway, so no pod of this agent can start. Label the namespace {POD_SECURITY}=privileged; "
            "Chaperone's own admission refuses what an agent may not have."
        )
        refused = Condition(READY, False, "PodSecurityRefuses", why)
        return [is_ready if not is_ready.is_true else refused, Condition(COVERED, False, "PodSecurityRefuses", why)]
    return [is_ready, _covered(found)]


def _change(change: Suspension) -> str:
    why = f": {change.reason}" if change.reason else ", without a reason"
    return f"by {change.by or 'somebody'} at {change.at or 'an unknown time'}{why}"


def pods(found: Coverage) -> dict[str, Any]:
    """`status.pods` of an AgentIdentity."""
    names = [name for name, _ in found.uncovered[:MAX_NAMES]]
    return {
        "covered": found.covered,
        "uncovered": len(found.uncovered),
        "uncoveredNames": names,
        "cut": found.cut,
        "inForce": found.in_force,
        "behind": found.covered - found.in_force,
    }


def _covered(found: Coverage) -> Condition:
    if found.uncovered:
        told = " ".join(f"{name}: {ADVICE[why]}." for name, why in found.uncovered[:MAX_TOLD])
        more = f" And {len(found.uncovered) - MAX_TOLD} more." if len(found.uncovered) > MAX_TOLD else ""
        return Condition(COVERED, False, str(found.uncovered[0][1]), f"{told}{more}")
    if not found.covered:
        return Condition(COVERED, True, "NoPods", "No pod of this agent runs.")
    return Condition(COVERED, True, "AllPods", f"All {found.covered} pods are held by a gateway.")


def _text(problems: Iterable[Problem]) -> str:
    return " ".join(dict.fromkeys(one.message for one in problems))
