"""Approval: where a command waits for a human.

Holding is not built yet; the stage exists so that a decision of RequireApproval ends in a refusal and never in a pass.
"""

from __future__ import annotations

from chaperone_sidecar.decision import Action, Decision


def resolve_hold(decision: Decision) -> Decision:
    """What stands after the wait: nobody can approve yet, so Deny."""
    return Decision(
        Action.DENY,
        decision.policy,
        decision.rule,
        decision.message or "The rule asks for an approval, which is not supported yet.",
        decision.revision,
    )
