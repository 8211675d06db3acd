"""What `chaperone follow` tells of a request for approval, and that it tells it once however often it hears of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chaperone_cli.stream_watch import APPROVALS, Change
from chaperone_cli.waits import MAX_KEPT, Waits
from chaperone_evidence.errors import Malformed

SPEC: dict[str, Any] = {
    "requester": {"identity": "billing"}, "session": "s1", "target": "orders-db", "protocol": "MCP",
    "kind": "tools/call", "text": "POST /mcp\nContent-Type: application/json\n\n{}", "policy": "agents/billing",
    "rule": "close", "createdAt": "2026-11-27T10:00:05Z",
    "accesses": [{"effect": "execute_code", "object": "tool:close"}, {"effect": "session", "object": "path:/mcp"}],
    "approval": {"groups": ["leads"], "count": 1, "waitSeconds": 45},
}  # fmt: skip
WAITS = ["> POST /mcp tools/call tool:close {}", "? waits as apr-1 for 1 of leads by billing/close, held up to 45 s"]


def change(state: str, *, at: str = "2026-11-27T10:00:09Z", is_gone: bool = False, uid: str = "u1") -> Change:
    status = {"state": state, "message": f"{state} it is", "conditions": [{"lastTransitionTime": at}]}
    metadata = {"name": "apr-1", "namespace": "agents", "uid": uid}
    value = {"metadata": metadata, "spec": copy.deepcopy(SPEC), "status": {} if state == "Pending" else status}
    return Change(APPROVALS, "1", value, is_new=not is_gone, is_gone=is_gone)


def told(waits: Waits, *changes: Change) -> list[str]:
    return [f"{sign} {text}" for one in changes for moment in waits.moments(one) for sign, text in moment.lines]


@pytest.mark.parametrize(
    ("states", "answers"),
    [
        (("Approved", "Used"), ["? apr-1: Approved, Approved it is"]),
        (("Approved", "Expired"), ["? apr-1: Approved, Approved it is", "? apr-1: Expired, Expired it is"]),
        (("Used",), ["? apr-1: Used, Used it is"]),  # the watch was away in between
        (("Denied",), ["? apr-1: Denied, Denied it is"]),
        (("Cancelled",), ["? apr-1: Cancelled, Cancelled it is"]),
    ],
)
def test_each_answer_is_told_once_though_the_watch_begins_anew(states: tuple[str, ...], answers: list[str]) -> None:
    waits = Waits("", "", from_start=False)
    heard = [change("Pending")]
    for state in states:
        heard += [heard[-1], change(state)]
    assert told(waits, *heard, heard[-1]) == [*WAITS, *answers]


def test_what_had_ended_before_is_told_only_from_the_start() -> None:
    assert told(Waits("", "", from_start=False), change("Denied")) == []
    assert told(Waits("", "", from_start=True), change("Denied")) == [*WAITS, "? apr-1: Denied, Denied it is"]


def test_others_are_not_told() -> None:
    assert told(Waits("another", "", from_start=True), change("Pending")) == []
    assert told(Waits("", "s2", from_start=True), change("Pending")) == []
    assert told(Waits("billing", "s1", from_start=True), change("Pending")) == WAITS


def test_a_request_that_somebody_deletes_waits_no_more() -> None:
    waits = Waits("", "", from_start=False)
    gone = told(waits, change("Pending"), change("Pending", is_gone=True))
    assert gone == [*WAITS, "? apr-1: Deleted"]
    assert told(waits, change("Denied", uid="u2"), change("Denied", uid="u2", is_gone=True)) == []


def test_a_wait_stands_after_its_session_and_an_answer_before_its_command_and_never_before_the_wait() -> None:
    for at, wanted in (("2026-11-27T10:00:09Z", "10:00:09.000000Z"), ("2026-11-27T10:00:05Z", "10:00:05.999999Z")):
        waits = Waits("", "", from_start=False)
        (wait,), (answer,) = waits.moments(change("Pending")), waits.moments(change("Approved", at=at))
        assert wait.at == "2026-11-27T10:00:05.999999Z"
        assert answer.at == f"2026-11-27T{wanted}"
        assert (answer.is_end, answer.is_refused, answer.is_whole_second) == (True, False, True)


def test_no_more_is_remembered_than_is_allowed() -> None:
    waits = Waits("", "", from_start=False)
    for number in range(MAX_KEPT + 1):
        waits.moments(change("Denied", uid=str(number)))
    assert len(waits._told) == MAX_KEPT


def test_what_is_no_request_is_said_so() -> None:
    with pytest.raises(Malformed):
        Waits("", "", from_start=False).moments(Change(APPROVALS, "1", {"spec": {}}, is_new=True))
    assert Waits("", "", from_start=False).moments(Change(APPROVALS, "1", None, is_new=False)) == []
