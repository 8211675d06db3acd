"""Who suspended an agent is written by admission, whatever was typed."""

from __future__ import annotations

from typing import Any

import pytest

from chaperone_operator.admission.review import Request, User
from chaperone_operator.admission.suspension import judge, stamp

NOW = 1_767_225_600.0
AT = "2026-01-01T00:00:00Z"
ALICE = {"by": "alice", "at": AT}
OLD = {"by": "bob", "at": "2025-01-01T00:00:00Z", "reason": "old"}


def request(new: dict[str, Any], old: dict[str, Any] | None = None) -> Request:
    return Request(
        "uid", "CREATE" if old is None else "UPDATE",
        {"group": "chaperone.dev", "version": "v1alpha1", "resource": "agentidentities"},
        user_info=User("alice"), object={"spec": new}, old_object=None if old is None else {"spec": old},
    )  # fmt: skip


def stamped(new: dict[str, Any], old: dict[str, Any] | None = None) -> Any:
    """What is stored of `suspension`; it must pass the second webhook, and a second run must change nothing."""
    kept = dict(new)
    for change in stamp(request(new, old), NOW).patch:
        assert change["path"] == "/spec/suspension"
        kept.pop("suspension", None)
        kept |= {"suspension": change["value"]} if change["op"] == "add" else {}
    assert not stamp(request(kept, old), NOW + 5).patch or kept.get("suspension", {}).get("by") == "alice"
    assert not judge(request(kept, old), NOW + 5).violations
    return kept.get("suspension")


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ({"suspended": True}, {}, ALICE),
        ({"suspended": True}, None, ALICE),
        ({"suspended": True, "suspension": {"reason": "odd"}}, {}, ALICE | {"reason": "odd"}),
        ({"suspended": True, "suspension": {"by": "boss", "at": "x", "reason": "odd"}}, {}, ALICE | {"reason": "odd"}),
        ({"suspended": False, "suspension": OLD}, {"suspended": True, "suspension": OLD}, ALICE),
        ({"suspension": OLD}, {"suspended": True, "suspension": OLD}, ALICE),
        ({"suspended": True, "suspension": ALICE}, {"suspended": True, "suspension": OLD}, OLD),
        ({"suspended": True}, {"suspended": True, "suspension": OLD}, OLD),
        ({"suspension": ALICE}, {}, None),
        ({"suspension": ALICE}, None, None),
        ({}, {}, None),
    ],
)  # fmt: skip
def test_a_change_bears_its_senders_name_and_nothing_else_changes_it(new: Any, old: Any, expected: Any) -> None:
    assert stamped(new, old) == expected


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"suspended": True}, {}),
        ({"suspended": True, "suspension": ALICE | {"by": "boss"}}, {}),
        ({"suspended": True, "suspension": ALICE | {"at": "2025-01-01T00:00:00Z"}}, {}),
        ({"suspended": True, "suspension": ALICE | {"at": "soon"}}, {}),
        ({"suspended": True, "suspension": ALICE}, {"suspended": True, "suspension": OLD}),
        ({"suspended": True}, {"suspended": True, "suspension": OLD}),
        ({"suspension": ALICE}, {}),
    ],
)  # fmt: skip
def test_what_passed_by_the_first_webhook_does_not_pass_the_second(new: Any, old: Any) -> None:
    (found,) = judge(request(new, old), NOW).violations
    assert found.rule == "forged-suspension"
