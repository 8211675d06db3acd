"""Judging changes of `suspended` of AgentIdentities: who suspends or resumes an agent is never typed. Pure.

`stamp` writes into `spec.suspension` who the API server says changed it, and when; without a change it puts back what
stood there. `judge` looks at what would be stored, after all other webhooks, and compares again. Who may resume is
judged by the API server itself, in the ValidatingAdmissionPolicy `chaperone-suspension`, because it alone can say who
has a right.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from chaperone_operator import approval
from chaperone_operator.admission.inject import Json
from chaperone_operator.admission.protect import Violation
from chaperone_operator.admission.review import Answer, Request
from chaperone_operator.compile.vocabulary import GROUP

PLURAL: Final = "agentidentities"
MAX_STAMP_AGE_S: Final = 60.0  # between the two webhooks; replicas' clocks may differ
_STAMPED: Final = frozenset({"suspended", "suspension"})


def is_ours(request: Request) -> bool:
    """Whether a request is about an AgentIdentity."""
    return request.resource.get("group") == GROUP and request.resource.get("resource") == PLURAL


def is_switch(request: Request) -> bool:
    """Whether an update changes nothing of an AgentIdentity's spec but whether it is suspended."""
    old, new = ({key: value for key, value in _spec(one).items() if key not in _STAMPED} for one in _both(request))
    return is_ours(request) and request.operation == "UPDATE" and old == new


def stamp(request: Request, now_unix: float) -> Answer:
    """Write who suspends or resumes, and when; put back what people may not change.

    Args:
        request: CREATE or UPDATE of an AgentIdentity.
        now_unix: seconds since 1970, of the wall clock.
    """
    given = _spec(request.pod).get("suspension")
    wanted = _stamped(request, now_unix) if _is_changed(request) else _spec(request.old).get("suspension")
    if given == wanted or not isinstance(request.pod.get("spec"), dict):
        return Answer()
    if wanted is None:
        return Answer(patch=({"op": "remove", "path": "/spec/suspension"},))
    return Answer(patch=({"op": "add", "path": "/spec/suspension", "value": wanted},))


def judge(request: Request, now_unix: float) -> Answer:
    """Refuse a stamp that is not the sender's own, and one without a change."""
    given = _spec(request.pod).get("suspension")
    if _is_changed(request):
        stamped = given if isinstance(given, dict) else {}
        is_own = stamped.get("by") == request.user_info.username
        is_sound = is_own and abs(now_unix - _seconds(stamped.get("at"))) <= MAX_STAMP_AGE_S
    else:
        is_sound = given == _spec(request.old).get("suspension")
    if is_sound:
        return Answer()
    message = "by and at of spec.suspension are Chaperone's to write, and change with spec.suspended; leave them out."
    return Answer((Violation("forged-suspension", message),))


def _stamped(request: Request, now_unix: float) -> Json:
    old, new = (_spec(one).get("suspension") for one in _both(request))
    # The reason of the last change, which a writer leaves in place, is no reason of this one.
    reason = new.get("reason") if isinstance(new, dict) and new != old else None
    stamped = {"by": request.user_info.username, "at": approval.timestamp(now_unix)}
    return stamped | ({"reason": reason} if reason else {})


def _is_changed(request: Request) -> bool:
    old, new = (_spec(one).get("suspended", False) is not False for one in _both(request))
    return old != new


def _both(request: Request) -> tuple[Json, Json]:
    return request.old, request.pod


def _spec(item: Json) -> Json:
    spec = item.get("spec")
    return spec if isinstance(spec, dict) else {}


def _seconds(at: object) -> float:
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return 0.0
