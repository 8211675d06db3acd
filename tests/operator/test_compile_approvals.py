"""What a rule may say of its approval, and what the broker is told of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chaperone_operator.approval import Settings
from chaperone_operator.compile.approvals import in_force, problems
from chaperone_operator.compile.model import Approval

GROUPS = {"groups": ["billing-leads"]}


def approval(**fields: Any) -> Approval:
    return msgspec.convert(GROUPS | fields, Approval)


def test_what_is_not_said_is_the_strictest() -> None:
    assert in_force([("agents/billing", "fix", approval())]) == {
        "agents/billing/fix": Settings(("billing-leads",), 1, 1, 45, 600, "Optional", self_approval=False)
    }


def test_everything_that_is_said_reaches_the_broker() -> None:
    said = approval(
        groups=["b", "a", "b"], count=2, denyCount=3, wait="1m", validFor="2h", reason="Required", selfApproval=True
    )
    found = in_force([("guardrail", "ddl", said)])
    assert found == {"guardrail/ddl": Settings(("a", "b"), 2, 3, 60, 7200, "Required", self_approval=True)}
    assert msgspec.convert(msgspec.to_builtins(found), dict[str, Settings]) == found


def test_the_same_rules_in_any_order_are_the_same_bytes() -> None:
    rules = [("agents/b", "y", approval()), ("agents/a", "x", approval(count=2)), ("g", "z", approval())]
    assert msgspec.json.encode(in_force(rules)) == msgspec.json.encode(in_force(reversed(rules)))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"groups": []}, "approval.groups: empty, so nobody could approve"),
        ({"groups": ["system:authenticated"]}, "agents themselves may be in system:authenticated"),
        ({"groups": ["system:serviceaccounts"]}, "agents themselves may be in"),
        ({"groups": ["leads", "system:serviceaccounts:agents"]}, "agents themselves may be in"),
        ({"groups": [" "]}, "is not from 1 to 256 characters"),
        ({"groups": ["x" * 257]}, "is not from 1 to 256 characters"),
        ({"groups": [f"g{number}" for number in range(21)]}, "approval.groups: more than 20"),
        ({"count": 0}, "approval.count: 0 is not from 1 to 10"),
        ({"count": 11}, "approval.count: 11"),
        ({"denyCount": -1}, "approval.denyCount: -1"),
        ({"wait": "45"}, "approval.wait: '45' is not a duration"),
        ({"wait": "6m"}, "of at most 300 s"),
        ({"validFor": "0s"}, "approval.validFor: '0s'"),
        ({"validFor": "25h"}, "approval.validFor: '25h'"),
        ({"wait": "2m", "validFor": "1m"}, "approval.validFor: shorter than approval.wait"),
    ],
)
def test_what_nobody_could_approve_or_everybody_is_a_problem(fields: dict[str, Any], why: str) -> None:
    found = list(problems(approval(**fields)))
    assert any(why in message for _, message in found), found
    with pytest.raises(ValueError, match="approval"):
        in_force([("agents/billing", "fix", approval(**fields))])


@pytest.mark.parametrize("fields", [{"group": ["x"]}, {"reason": "Maybe"}, {"count": "1"}, {"selfApproval": "no"}])
def test_what_has_another_shape_is_not_read(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        approval(**fields)


def test_sound_approvals_have_no_problems() -> None:
    assert list(problems(approval(wait="5m", validFor="24h", count=10, denyCount=10))) == []
