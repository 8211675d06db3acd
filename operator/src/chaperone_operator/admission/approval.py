"""Judging ApprovalRequests: the broker makes and moves them, people add votes, and who voted is never typed. Pure.

`stamp` writes into a new vote who the API server says its sender is, when it came, and which of the sender's groups
count; whatever stood there is overwritten. `judge` looks at what would be stored, after all other webhooks, and trusts
nothing of it: it compares the stamp with the sender again.
"""

from __future__ import annotations

from typing import Final

from chaperone_operator import approval
from chaperone_operator.admission.inject import Json
from chaperone_operator.admission.protect import Violation
from chaperone_operator.admission.review import Answer, Request, User
from chaperone_operator.approval import State
from chaperone_operator.compile.vocabulary import GROUP

PLURAL: Final = "approvalrequests"
MAX_STAMP_AGE_S: Final = 60.0  # between the two webhooks; replicas' clocks may differ


def is_ours(request: Request) -> bool:
    """Whether a request is about an ApprovalRequest."""
    return request.resource.get("group") == GROUP and request.resource.get("resource") == PLURAL


def stamp(request: Request, broker: str, now_unix: float) -> Answer:
    """Sign a person's new vote with the person's name, and refuse at once what could not be stored.

    Args:
        request: UPDATE of the status.
        broker: the broker's user, who does not vote.
        now_unix: seconds since 1970, of the wall clock.
    """
    if request.user_info.username == broker:
        return Answer()
    before, votes = len(_votes(request.old)), _votes(request.pod)
    if len(votes) != before + 1 or not isinstance(votes[-1], dict):
        return _not_a_vote()
    stamped = _stamped(votes[-1], request, now_unix)
    status = {**(request.pod.get("status") or {}), "votes": [*votes[:-1], stamped]}
    if refused := _vote(request, status, now_unix):
        return Answer(refused)
    return Answer(patch=({"op": "replace", "path": f"/status/votes/{before}", "value": stamped},))


def judge(request: Request, broker: str, now_unix: float) -> Answer:
    """Judge a creation or update of an ApprovalRequest or its status, as it would be stored."""
    is_broker = request.user_info.username == broker
    if request.operation == "CREATE":
        return Answer() if is_broker else _refusal("broker-only", "Approval requests are made by the broker alone.")
    if not request.sub_resource:
        return Answer() if is_broker else Answer(_kept(request))
    if is_broker:
        return Answer(_moved(request))
    return Answer(_vote(request, request.pod.get("status") or {}, now_unix))


def _kept(request: Request) -> tuple[Violation, ...]:
    """What others may not change outside the status; finalizers and owners may come and go."""
    old, new = request.old.get("metadata") or {}, request.pod.get("metadata") or {}
    same = [request.old.get("spec") == request.pod.get("spec")]
    same += [old.get(key) == new.get(key) for key in ("labels", "annotations")]
    if all(same):
        return ()
    return (Violation("broker-only", "Approval requests never change; vote by kubectl chaperone approve or deny."),)


def _moved(request: Request) -> tuple[Violation, ...]:
    """What even the broker may not: alter votes, or approve what the votes do not approve."""
    if _votes(request.old) != _votes(request.pod):
        return (Violation("votes-are-peoples", "The broker does not vote, and changes no vote."),)
    try:
        item = approval.read(request.pod)
    except ValueError as error:
        return (_unreadable(error),)
    was = (request.old.get("status") or {}).get("state")
    if item.status.state == State.APPROVED != was and item.tally().outcome != State.APPROVED:
        return (Violation("no-quorum", f"The votes ({item.tally()}) do not approve this request."),)
    return ()


def _vote(request: Request, status: Json, now_unix: float) -> tuple[Violation, ...]:
    """What is wrong with a status that a person sends: it must be the old one and one more vote of that person."""
    before, votes = _votes(request.old), status.get("votes") or []
    both = (status, request.old.get("status") or {})
    rest, old_rest = ({key: value for key, value in one.items() if key != "votes"} for one in both)
    if len(votes) != len(before) + 1 or votes[:-1] != before or rest != old_rest:
        return _not_a_vote().violations
    try:
        item = approval.read({**request.old, "status": {**status, "votes": votes}})
    except ValueError as error:
        return (_unreadable(error),)
    if item.status.state != State.PENDING:
        return (Violation("decided", f"This request is {item.status.state} already; there is nothing to vote on."),)
    if now_unix >= item.spec.expires_at.timestamp():
        return (Violation("expired", f"This request expired at {item.spec.expires_at:%H:%M:%S} UTC."),)
    user, vote, terms = request.user_info, item.status.votes[-1], item.spec.approval
    if approval.is_excluded(user.username, item.spec.excluded):
        return (Violation("own-request", f"The command is {user.username}'s own; somebody else has to vote."),)
    if not _counting(user, terms.groups):
        groups = ", ".join(terms.groups)
        return (Violation("not-an-approver", f"{user.username} is in none of the groups that approve: {groups}."),)
    if any(one.by.username == user.username for one in item.status.votes[:-1]):
        return (Violation("voted", f"{user.username} has voted already; a vote counts once and stays."),)
    if terms.reason == "Required" and not vote.reason.strip():
        return (Violation("reason", f"Rule {item.spec.rule} asks for a reason; add --reason."),)
    age_s = abs(now_unix - vote.at.timestamp())
    is_own = (vote.by.username, vote.by.uid) == (user.username, user.uid)
    if not is_own or list(vote.groups) != _counting(user, terms.groups) or age_s > MAX_STAMP_AGE_S:
        return (Violation("forged-vote", "by, groups and at of a vote are Chaperone's to write; leave them out."),)
    return ()


def _stamped(vote: Json, request: Request, now_unix: float) -> Json:
    user = request.user_info
    terms = (request.old.get("spec") or {}).get("approval") or {}
    by = {"username": user.username} | ({"uid": user.uid} if user.uid else {})
    typed = {key: vote[key] for key in ("decision", "reason") if key in vote}
    groups = _counting(user, tuple(terms.get("groups") or ()))
    return typed | {"by": by, "groups": groups, "at": approval.timestamp(now_unix)}


def _counting(user: User, groups: tuple[str, ...]) -> list[str]:
    """The user's groups whose votes count."""
    return sorted(set(user.groups) & set(groups))


def _votes(item: Json) -> list[Json]:
    found = (item.get("status") or {}).get("votes")
    return found if isinstance(found, list) else []


def _unreadable(error: ValueError) -> Violation:
    return Violation("unreadable", f"A vote is {{decision: Approve or Deny, reason: …}}: {error}.")


def _not_a_vote() -> Answer:
    return _refusal("one-vote", "People add exactly one vote to status.votes and change nothing else.")


def _refusal(rule: str, message: str) -> Answer:
    return Answer((Violation(rule, message),))
