"""Commands that wait for people, and what became of that, as moments of `chaperone follow`.

They are told by ApprovalRequests: the log has a command only once it is decided. A watch of these begins with all that
there are, as often as it begins, so what was told is kept here, and nothing is told twice. Their times are whole
seconds: a wait is told at the end of its second, after the session in which it began, an answer at the beginning,
before the command that it lets go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from chaperone_cli.moments import brief
from chaperone_cli.stream_watch import Change
from chaperone_cli.timeline import Moment
from chaperone_evidence.errors import Malformed

MAX_KEPT: Final = 20_000  # requests whose state is remembered; the broker keeps 500 that have ended in a namespace
_ORDER: Final = {"Pending": 0, "Approved": 1, "Used": 2, "Denied": 3, "Expired": 3, "Cancelled": 3}
_TOLD: Final = {  # by what it was before; that an approval was used is told by its command
    "Pending": frozenset({"Approved", "Used", "Denied", "Expired", "Cancelled"}),
    "Approved": frozenset({"Expired", "Cancelled"}),
}


class Waits:
    """What was told of which request.

    Args:
        identity, session: whose requests alone are told; "" for all.
        from_start: tell of requests that had ended before the first was heard of, too.
    """

    def __init__(self, identity: str, session: str, *, from_start: bool) -> None:
        self._identity = identity
        self._session = session
        self._from_start = from_start
        self._told: dict[str, str] = {}  # states by uid

    def moments(self, change: Change) -> list[Moment]:
        """What a change of a request says; nothing where that was told, or is nothing new to people.

        Raises:
            Malformed: it is no ApprovalRequest.
        """
        if change.value is None:
            return []
        try:
            return list(self._moments(change.value, is_gone=change.is_gone))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, IndexError) as error:
            raise Malformed("An object of the watch is no ApprovalRequest.") from error

    def _moments(self, value: dict[str, Any], *, is_gone: bool) -> Iterator[Moment]:
        spec, uid = value["spec"], value["metadata"]["uid"]
        if self._identity not in ("", spec["requester"]["identity"]) or self._session not in ("", spec["session"]):
            return
        status = value.get("status", {})
        state = status.get("state", "Pending")
        before = self._told.get(uid)
        if is_gone:
            self._told.pop(uid, None)
            if before in ("Pending", "Approved") and state == before:
                yield _answer(value, "Deleted", status)
            return
        if before is not None and _ORDER[state] <= _ORDER[before]:
            return
        self._keep(uid, state)
        if before is None and (self._from_start or state == "Pending"):
            yield _wait(value)
            before = "Pending"
        if state in _TOLD.get(before or "", ()):
            yield _answer(value, state, status)

    def _keep(self, uid: str, state: str) -> None:
        self._told[uid] = state
        if len(self._told) > MAX_KEPT:
            del self._told[next(iter(self._told))]


def _wait(value: dict[str, Any]) -> Moment:
    spec, name = value["spec"], value["metadata"]["name"]
    objects = [one["object"] for one in spec["accesses"] if one.get("object")]
    text = brief({"command": spec["text"], "kind": spec["kind"], "objects": objects}, spec["protocol"])
    terms, policy = spec["approval"], spec["policy"].removeprefix(f"{value['metadata']['namespace']}/")
    who = f"{terms['count']} of {', '.join(terms['groups'])}"
    told = f"waits as {name} for {who} by {policy}/{spec['rule']}, held up to {terms['waitSeconds']} s"
    return _moment(value, "wait", _end_of(spec["createdAt"]), ((">", text), ("?", told)))


def _answer(value: dict[str, Any], state: str, status: dict[str, Any]) -> Moment:
    asked, name = _end_of(value["spec"]["createdAt"]), value["metadata"]["name"]
    answered = [_beginning_of(one["lastTransitionTime"]) for one in status.get("conditions", ())]
    message = f", {status['message']}" if status.get("message") else ""
    at = max(asked, *answered) if answered else asked
    return _moment(value, f"wait {state}", at, (("?", f"{name}: {state}{message}"),), is_refused=state != "Approved")


def _moment(
    value: dict[str, Any], key: str, at: str, lines: tuple[tuple[str, str], ...], *, is_refused: bool = False
) -> Moment:
    spec = value["spec"]
    who = f"{value['metadata']['namespace']}/{spec['requester']['identity']}"
    return Moment(
        (key, value["metadata"]["uid"]), at, key != "wait", who, spec["target"], spec["protocol"], lines,
        is_refused=is_refused, is_whole_second=True,
    )  # fmt: skip


def _beginning_of(second: str) -> str:
    return datetime.fromisoformat(second).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _end_of(second: str) -> str:
    found = datetime.fromisoformat(second) + timedelta(microseconds=999_999)
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")
