"""Approvals: what a rule may say of who approves and for how long, and the settings as the broker is told them.

A gateway is trusted less than the snapshot, so the broker takes these from the member `approvals.json` of the
namespace's snapshot: a JSON object of `policy/rule` (as decisions report both) → `Settings`. Nothing is defaulted to
something looser than what the author wrote: one approver, one denial is enough, the agent's own people do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from chaperone_operator.approval import Settings
from chaperone_operator.compile.limits import duration_ms
from chaperone_operator.compile.model import Approval

MAX_COUNT: Final = 10  # people; past this nobody decides within the time
MAX_GROUPS: Final = 20
MAX_GROUP: Final = 256  # characters
MAX_WAIT_S: Final = 300  # tool calls of agents die after a minute or two, idle connections not much later
MAX_VALID_S: Final = 24 * 3600  # an approval that is older was given for another situation
OPEN_GROUPS: Final = frozenset({"system:authenticated", "system:unauthenticated", "system:serviceaccounts"})
"""Groups in which agents themselves are, or everybody is; so are those of the service accounts of a namespace."""


def problems(approval: Approval) -> Iterator[tuple[str, str]]:
    """What is wrong with an approval: a reason, and a message that begins with the field."""
    if not approval.groups:
        yield "NoApprover", "approval.groups: empty, so nobody could approve; name a group."
    if len(approval.groups) > MAX_GROUPS:
        yield "BadApproval", f"approval.groups: more than {MAX_GROUPS}."
    for group in approval.groups:
        if group in OPEN_GROUPS or group.startswith("system:serviceaccounts:"):
            yield "OpenGroup", f"approval.groups: agents themselves may be in {group}; name a group of people."
        if not group.strip() or len(group) > MAX_GROUP:
            yield "BadApproval", f"approval.groups: {group!r} is not from 1 to {MAX_GROUP} characters."
    for field, value in (("count", approval.count), ("denyCount", approval.deny_count)):
        if not 1 <= value <= MAX_COUNT:
            yield "BadApproval", f"approval.{field}: {value} is not from 1 to {MAX_COUNT}."
    wait_s, valid_s = _seconds(approval.wait), _seconds(approval.valid_for)
    for field, text, found, most in (
        ("wait", approval.wait, wait_s, MAX_WAIT_S),
        ("validFor", approval.valid_for, valid_s, MAX_VALID_S),
    ):
        if found is None or found > most:
            yield "BadApproval", f"approval.{field}: {text!r} is not a duration such as 45s of at most {most} s."
    if wait_s is not None and valid_s is not None and wait_s > valid_s:
        yield "BadApproval", "approval.validFor: shorter than approval.wait; nothing could be used after it."


def in_force(stated: Iterable[tuple[str, str, Approval]]) -> dict[str, Settings]:
    """The member `approvals.json` of a snapshot.

    Args:
        stated: policy (as reported: `namespace/name`, or `name` of a cluster policy), rule, and its approval without
            problems, of each rule with action RequireApproval.

    Raises:
        ValueError: an approval has problems; the caller has to look first.
    """
    return dict(sorted((f"{policy}/{rule}", _settings(approval)) for policy, rule, approval in stated))


def _settings(approval: Approval) -> Settings:
    if found := next(problems(approval), None):
        raise ValueError(found[1])
    told: dict[str, Any] = msgspec.structs.asdict(approval)
    wait_s, valid_s = _seconds(told.pop("wait")), _seconds(told.pop("valid_for"))
    groups = tuple(sorted(set(told.pop("groups"))))
    return Settings(groups=groups, wait_s=wait_s or 0, valid_s=valid_s or 0, **told)


def _seconds(text: str) -> int | None:
    found = duration_ms(text)
    return None if found is None else found // 1000
