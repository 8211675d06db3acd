"""Approvals as broker and admission both see them: settings, requests, votes, and which votes count. Pure.

A request is Pending until its votes, its expiry, a change of policy or its client end that. Approved is not the end:
the command may then be used once. Every other state is final; the CRD holds the same table.

    Pending ──► Approved ──► Used
       │           ├──────► Expired, Cancelled
       └──────► Denied, Expired, Cancelled
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

BROKER: Final = "chaperone-broker"
"""Service account that alone makes requests and moves their state."""

type Reason = Literal["Required", "Optional"]
type Object = dict[str, Any]


class State(StrEnum):
    """Where a request stands."""

    PENDING = "Pending"
    APPROVED = "Approved"
    DENIED = "Denied"
    EXPIRED = "Expired"
    USED = "Used"
    CANCELLED = "Cancelled"


OPEN: Final = frozenset({State.PENDING, State.APPROVED})
"""States in which something can still become of a request."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The approval that one rule asks for, as the snapshot says it.

    Attributes:
        groups: votes of their members count.
        count: different people who have to approve.
        deny_count: different people who have to deny; that ends it whoever else approved.
        wait_s: how long the gateway holds the connection.
        valid_s: how long a request lives, from its making to its use.
        reason: whether a vote has to say why.
        self_approval: whether the owner of the identity, whoever created the pod and the agent's user may vote.
    """

    groups: tuple[str, ...]
    count: int
    deny_count: int
    wait_s: int
    valid_s: int
    reason: Reason
    self_approval: bool


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the parts of an ApprovalRequest."""


class Person(Part, frozen=True):
    """Who is accountable for an identity."""

    name: str
    email: str = ""


class Delegator(Part, frozen=True):
    """The person on whose behalf an agent acts."""

    subject: str
    issuer: str
    email: str = ""


class Requester(Part, frozen=True):
    """Who asks."""

    identity: str
    pod: str
    service_account: str
    owner: Person
    pod_uid: str = msgspec.field(name="podUID")
    workload: str = ""
    created_by: str = ""
    on_behalf_of: Delegator | None = None


class Access(Part, frozen=True, omit_defaults=True):
    """One effect on one object; `through` what leads to it."""

    effect: str
    object: str
    through: str = ""


class Terms(Part, frozen=True):
    """`spec.approval`: the rule's settings at the time of the request."""

    groups: tuple[str, ...]
    count: int
    deny_count: int
    wait_seconds: int
    valid_for_seconds: int
    reason: Reason
    self_approval: bool


class Spec(Part, frozen=True):
    """`ApprovalRequest.spec`."""

    requester: Requester
    session: str
    target: str
    protocol: str
    kind: str
    text: str
    binding: str
    accesses: tuple[Access, ...]
    effects: tuple[str, ...]
    policy: str
    rule: str
    revision: str
    approval: Terms
    created_at: datetime
    expires_at: datetime
    shape: str
    estimated_rows: int | None = None
    excluded: tuple[str, ...] = ()


class Voter(Part, frozen=True):
    """The user of the admission request that brought a vote."""

    username: str
    uid: str = ""


class Vote(Part, frozen=True):
    """One vote; all but decision and reason was written by admission."""

    decision: Literal["Approve", "Deny"]
    by: Voter
    groups: tuple[str, ...]
    at: datetime
    reason: str = ""


class Status(Part, frozen=True):
    """`ApprovalRequest.status`."""

    state: State = State.PENDING
    votes: tuple[Vote, ...] = ()
    tally: str = ""
    message: str = ""
    conditions: tuple[Object, ...] = ()


class Metadata(Part, frozen=True):
    """The part of `metadata` that is looked at."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    creation_timestamp: datetime


class Request(Part, frozen=True):
    """An ApprovalRequest."""

    metadata: Metadata
    spec: Spec
    status: Status = Status()

    @property
    def is_open(self) -> bool:
        """Whether something can still become of it."""
        return self.status.state in OPEN

    def tally(self) -> Tally:
        """The votes that count."""
        return count(self.status.votes, self.spec)


class Tally(msgspec.Struct, frozen=True):
    """How many different people approve and deny, and how many have to."""

    approvals: int
    denials: int
    needed: int
    enough_denials: int

    @property
    def outcome(self) -> State:
        """What the votes decide; a quorum of denials goes before one of approvals."""
        if self.denials >= self.enough_denials:
            return State.DENIED
        return State.APPROVED if self.approvals >= self.needed else State.PENDING

    def __str__(self) -> str:
        return f"{self.approvals}/{self.needed}"


def read(item: Object) -> Request:
    """A request as the API server has it.

    Raises:
        ValueError: it has another shape.
    """
    try:
        return msgspec.convert(item, Request)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def count(votes: Iterable[Vote], spec: Spec) -> Tally:
    """Count each person once, by the first vote, and only who is of a group that approves and is not excluded.

    Admission has checked all this already; that it is checked again costs nothing and holds should admission be gone.
    """
    decisions: dict[str, str] = {}
    for vote in votes:
        if set(vote.groups) & set(spec.approval.groups) and not is_excluded(vote.by.username, spec.excluded):
            decisions.setdefault(vote.by.username, vote.decision)
    told = list(decisions.values())
    return Tally(told.count("Approve"), told.count("Deny"), spec.approval.count, spec.approval.deny_count)


def excluded(requester: Requester, namespace: str, *, self_approval: bool) -> tuple[str, ...]:
    """Users who may not vote on a request: its service account and, unless they may, those whose command it is.

    These are the owner, who created the pod, and on whose behalf the agent acts. That person is known by what the
    issuer says; the API server says the same, but for a prefix, where people log in there by the same claim.
    """
    found = [f"system:serviceaccount:{namespace}:{requester.service_account}"]
    if not self_approval:
        found += [requester.created_by, requester.owner.email, requester.owner.name]
        if (user := requester.on_behalf_of) is not None:
            found += [user.subject, user.email]
    return tuple(dict.fromkeys(name.strip() for name in found if name.strip()))


def is_excluded(username: str, names: Iterable[str]) -> bool:
    """Whether a user is one of those; log-in by OIDC often puts a prefix that ends in `:`, `#` or `/` before a name."""
    user = username.casefold()
    return any(user == name or user.endswith((f":{name}", f"#{name}", f"/{name}")) for name in map(str.casefold, names))


def timestamp(at_unix: float) -> str:
    """A time as the API writes it."""
    return f"{datetime.fromtimestamp(int(at_unix), UTC):%Y-%m-%dT%H:%M:%SZ}"


def broker_user(system_namespace: str) -> str:
    """The name of the broker's user."""
    return f"system:serviceaccount:{system_namespace}:{BROKER}"
