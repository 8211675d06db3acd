"""Which votes count, when a request ends, and who may not vote: pure, with clocks that jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from fix_approvals import LEADS, request

from chaperone_operator.approval import Delegator, Person, Request, Requester, State, excluded, is_excluded, read
from chaperone_operator.broker.deadline import Deadlines
from chaperone_operator.broker.verdict import judge

CREATED = 1_767_225_600  # 2026-01-01T00:00:00Z


def vote(user: str, decision: str = "Approve", *groups: str) -> dict[str, Any]:
    told = {"decision": decision, "by": {"username": user}, "at": "2026-01-01T00:00:01Z"}
    return told | {"groups": list(groups or (LEADS,))}


def asked(*votes: dict[str, Any], state: str = "Pending", count: int = 1, deny_count: int = 1) -> Request:
    item = request("apr-1", expiresAt="2026-01-01T00:10:00Z")
    item["spec"]["approval"] |= {"count": count, "denyCount": deny_count}
    item["metadata"] |= {
        "namespace": "agents", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return read(item | {"status": {"state": state, "votes": list(votes)}})


@pytest.mark.parametrize(
    ("votes", "count", "deny_count", "state"),
    [
        ([], 1, 1, State.PENDING),
        ([vote("a")], 1, 1, State.APPROVED),
        ([vote("a")], 2, 1, State.PENDING),
        ([vote("a"), vote("a")], 2, 1, State.PENDING),
        ([vote("a"), vote("b")], 2, 1, State.APPROVED),
        ([vote("a"), vote("b", "Deny")], 1, 1, State.DENIED),
        ([vote("a", "Deny"), vote("b")], 1, 2, State.APPROVED),
        ([vote("a", "Deny"), vote("a", "Deny")], 1, 2, State.PENDING),
        ([vote("a", "Deny"), vote("b", "Deny"), vote("c"), vote("d")], 2, 2, State.DENIED),
        ([vote("a", "Approve", "staff")], 1, 1, State.PENDING),
        ([vote("creator")], 1, 1, State.PENDING),
        ([vote("oidc:creator")], 1, 1, State.PENDING),
        ([vote("system:serviceaccount:agents:agent")], 1, 1, State.PENDING),
        ([vote("creator", "Deny")], 1, 1, State.PENDING),
    ],
)
def test_votes_decide(votes: list[dict[str, Any]], count: int, deny_count: int, state: State) -> None:
    verdict = judge(asked(*votes, count=count, deny_count=deny_count), is_over=False)
    assert (verdict.state if verdict else State.PENDING) == state


def test_votes_that_are_counted_too_late_do_not_count() -> None:
    verdict = judge(asked(vote("a")), is_over=True)
    assert verdict is not None
    assert verdict.state == State.EXPIRED


def test_approved_request_is_not_decided_again() -> None:
    assert judge(asked(vote("a"), vote("b", "Deny"), state="Approved"), is_over=False) is None
    verdict = judge(asked(vote("a"), state="Approved"), is_over=True)
    assert verdict is not None
    assert verdict.state == State.EXPIRED


@pytest.mark.parametrize(
    ("user", "is_so"),
    [
        ("alice@example.com", True), ("Alice@Example.com", True), ("oidc:alice@example.com", True),
        ("https://issuer.example/#alice@example.com", True), ("malice@example.com", False), ("bob@example.com", False),
        ("alice@example.com.evil", False), ("", False),
    ],
)  # fmt: skip
def test_prefixes_of_logins_do_not_hide_a_person(user: str, is_so: bool) -> None:
    assert is_excluded(user, ["alice@example.com"]) == is_so


def test_own_people_are_excluded_unless_they_may_and_the_account_always() -> None:
    who = Requester("billing", "p", "agent", Person("Alice", "alice@example.com"), "u", created_by="bob")
    account = "system:serviceaccount:agents:agent"
    assert excluded(who, "agents", self_approval=False) == (account, "bob", "alice@example.com", "Alice")
    assert excluded(who, "agents", self_approval=True) == (account,)
    acting = msgspec.structs.replace(who, on_behalf_of=Delegator("user-7", "https://issuer", "alice@example.com"))
    assert excluded(acting, "agents", self_approval=False) == (account, "bob", "alice@example.com", "Alice", "user-7")
    assert excluded(acting, "agents", self_approval=True) == (account,)


@dataclass
class Clocks:
    """A wall clock that may jump, and a monotonic one that may not."""

    wall: float = CREATED
    monotonic: float = 5000.0

    def deadlines(self) -> Deadlines:
        return Deadlines(lambda: self.wall, lambda: self.monotonic)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_request_ends_at_its_time() -> None:
    clocks = Clocks()
    deadlines, one = clocks.deadlines(), asked()
    clocks.passes(599)
    assert not deadlines.is_over(one)
    clocks.passes(1)
    assert deadlines.is_over(one)


def test_clock_that_jumps_back_gives_no_more_time() -> None:
    clocks = Clocks()
    deadlines, one = clocks.deadlines(), asked()
    assert not deadlines.is_over(one)
    clocks.passes(300)
    clocks.wall -= 86_400
    assert not deadlines.is_over(one)
    clocks.passes(300)
    assert deadlines.is_over(one)


def test_clock_that_stood_back_at_the_first_look_gives_the_whole_time_at_most() -> None:
    clocks = Clocks(wall=CREATED - 86_400)
    deadlines, one = clocks.deadlines(), asked()
    assert not deadlines.is_over(one)
    clocks.passes(599)
    assert not deadlines.is_over(one)
    clocks.passes(1)
    assert deadlines.is_over(one)


def test_clock_that_jumps_forward_ends_it_early() -> None:
    clocks = Clocks()
    deadlines, one = clocks.deadlines(), asked()
    assert not deadlines.is_over(one)
    clocks.wall += 3600
    assert deadlines.is_over(one)


def test_forgotten_requests_take_no_memory_and_kept_ones_their_time() -> None:
    clocks = Clocks()
    deadlines, one = clocks.deadlines(), asked()
    assert not deadlines.is_over(one)
    clocks.passes(300)
    deadlines.keep(["u"])
    clocks.wall -= 86_400
    clocks.passes(300)
    assert deadlines.is_over(one)
