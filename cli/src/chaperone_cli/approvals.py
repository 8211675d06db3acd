"""`chaperone approvals`, `approve` and `deny`: what waits for people, shown whole before anybody votes on it.

A vote is a patch of the request's status that holds only if the request is still the one that was shown: its uid and
the hash of its command are tested in the same patch. Who votes is for the API server to say.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, Literal

import click
import msgspec

from chaperone_cli.kubectl import EVERYWHERE, CannotAsk, Cluster, ask, place
from chaperone_cli.say import printable, say

REDRAW_S: Final = 2.0
MAX_CELL: Final = 60  # characters of the command's first line in the list
OPEN: Final = frozenset({"Pending", "Approved"})
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
_RESOURCE: Final = "approvalrequests.v1alpha1.chaperone.dev"

type Decision = Literal["Approve", "Deny"]


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the parts of an ApprovalRequest."""


class _Owner(_Part, frozen=True):
    name: str
    email: str = ""


class _Delegator(_Part, frozen=True):
    subject: str
    issuer: str
    email: str = ""


class _Requester(_Part, frozen=True):
    identity: str
    pod: str
    owner: _Owner
    workload: str = ""
    created_by: str = ""
    on_behalf_of: _Delegator | None = None


class _Access(_Part, frozen=True):
    effect: str
    object: str
    through: str = ""


class _Terms(_Part, frozen=True):
    groups: tuple[str, ...]
    count: int
    reason: str


class _Spec(_Part, frozen=True):
    requester: _Requester
    session: str
    target: str
    protocol: str
    kind: str
    text: str
    binding: str
    accesses: tuple[_Access, ...]
    effects: tuple[str, ...]
    policy: str
    rule: str
    revision: str
    approval: _Terms
    expires_at: datetime
    shape: str
    estimated_rows: int | None = None


class _Voter(_Part, frozen=True):
    username: str


class _Vote(_Part, frozen=True):
    decision: str
    by: _Voter
    reason: str = ""


class _Status(_Part, frozen=True):
    state: str = "Pending"
    tally: str = ""
    message: str = ""
    votes: tuple[_Vote, ...] = ()


class _Metadata(_Part, frozen=True):
    name: str
    namespace: str
    uid: str
    creation_timestamp: datetime


class _Request(_Part, frozen=True):
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()


class _List(_Part, frozen=True):
    items: tuple[_Request, ...]


def show(cluster: Cluster, namespace: str, *, has_ended: bool, is_watching: bool) -> int:
    """Print the requests, once or again and again; returns the exit status."""
    try:
        where = ("-A",) if namespace == EVERYWHERE else ("-n", place(cluster, namespace))
        while True:
            answer = ask(cluster, "get", _RESOURCE, *where, "-o", "json")
            lines = list(_table(msgspec.json.decode(answer, type=_List).items, has_ended, namespace == EVERYWHERE))
            if is_watching:
                click.clear()
            for line in lines:
                say(line)
            if not is_watching:
                return 0
            time.sleep(REDRAW_S)
    except KeyboardInterrupt:
        return 0
    except (CannotAsk, msgspec.DecodeError) as error:
        say(f"approvals: FAILED: {error}", err=True)
        return 1


def vote(cluster: Cluster, name: str, namespace: str, decision: Decision, reason: str, *, is_sure: bool) -> int:
    """Show a request, ask, and vote on it; returns the exit status: 0 voted, 1 refused, 2 not voted."""
    verb = decision.lower()
    try:
        where, name = place(cluster, namespace), _named(name)
        answer = ask(cluster, "get", _RESOURCE, name, "-n", where, "-o", "json")
        request = msgspec.json.decode(answer, type=_Request)
        for line in _whole(request):
            say(line)
        if not is_sure and not click.confirm(f"{decision} this command?", default=False):
            say("not voted")
            return 2
        patch = json.dumps(_patch(request, decision, reason))
        options = ("--subresource=status", "--type=json", "-p", patch, "-o", "name")
        ask(cluster, "patch", _RESOURCE, name, "-n", where, *options)
    except (CannotAsk, msgspec.DecodeError) as error:
        say(f"{verb}: FAILED: {error}", err=True)
        return 1
    except click.Abort:
        say("not voted")
        return 2
    say(f"{verb}: your vote on {name} is given")
    return 0


def _named(name: str) -> str:
    if not _NAME.match(name):
        raise CannotAsk(f'"{name}" is not the name of an approval request; see chaperone approvals.')
    return name


def _patch(request: _Request, decision: Decision, reason: str) -> list[dict[str, Any]]:
    given = {"decision": decision} | ({"reason": reason} if reason else {})
    return [
        {"op": "test", "path": "/metadata/uid", "value": request.metadata.uid},
        {"op": "test", "path": "/spec/binding", "value": request.spec.binding},
        {"op": "add", "path": "/status/votes/-", "value": given},
    ]


def _table(requests: tuple[_Request, ...], has_ended: bool, has_namespaces: bool) -> Iterator[str]:
    shown = [one for one in requests if has_ended or one.status.state in OPEN]
    if not shown:
        yield "No command waits for an approval."
        return
    alike = Counter((one.spec.requester.identity, one.spec.shape) for one in shown)
    now = datetime.now(UTC)
    shown.sort(key=lambda one: (one.spec.requester.identity, one.spec.shape, one.metadata.creation_timestamp))
    rows = [["NAMESPACE", "NAME", "AGE", "LEFT", "STATE", "VOTES", "IDENTITY", "TARGET", "EFFECTS", "ALIKE", "COMMAND"]]
    rows += [
        [
            one.metadata.namespace,
            one.metadata.name,
            _span((now - one.metadata.creation_timestamp).total_seconds()),
            _span((one.spec.expires_at - now).total_seconds()) if one.status.state in OPEN else "-",
            one.status.state,
            one.status.tally or f"0/{one.spec.approval.count}",
            one.spec.requester.identity,
            one.spec.target,
            ",".join(one.spec.effects),
            str(alike[one.spec.requester.identity, one.spec.shape]),
            _first_line(one.spec.text),
        ]
        for one in shown
    ]
    if not has_namespaces:
        rows = [row[1:] for row in rows]
    widths = [max(len(printable(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _whole(request: _Request) -> Iterator[str]:
    """Everything that a vote is about. Texts were chosen by an agent: each line of them is marked as its."""
    spec, who, status = request.spec, request.spec.requester, request.status
    left = (spec.expires_at - datetime.now(UTC)).total_seconds()
    yield f"request:   {request.metadata.namespace}/{request.metadata.name} ({status.state}, {_span(left)} left)"
    yield f"identity:  {who.identity}, owner {who.owner.name}{f' <{who.owner.email}>' if who.owner.email else ''}"
    if (person := who.on_behalf_of) is not None:
        mail = f" <{person.email}>" if person.email else ""
        yield f"for:       {person.subject}{mail}, as {person.issuer} says"
    of = f" of {who.workload}" if who.workload else ""
    yield f"pod:       {who.pod}{of}, created by {who.created_by or 'unknown'}"
    yield f"session:   {spec.session}"
    yield f"target:    {spec.target} ({spec.protocol})"
    for access in spec.accesses:
        through = f", reached through {access.through}" if access.through else ""
        yield f"effect:    {access.effect} {access.object or '(no object)'}{through}"
    yield f"rows:      {'not estimated' if spec.estimated_rows is None else f'about {spec.estimated_rows} (estimate)'}"
    yield f"rule:      {spec.rule} of {spec.policy}, revision {spec.revision}"
    asked = ", reason required" if spec.approval.reason == "Required" else ""
    yield f"approvers: {spec.approval.count} of {', '.join(spec.approval.groups)}{asked}"
    for one in status.votes:
        yield f"vote:      {one.decision} by {one.by.username}{f' ({one.reason})' if one.reason else ''}"
    yield f"binding:   {spec.binding}"
    yield f"command:   ({spec.kind}, masked values stay masked)"
    for line in spec.text.split("\n"):
        yield f"  | {line}"


def _first_line(text: str) -> str:
    line, _, rest = text.strip().partition("\n")
    return line if len(line) <= MAX_CELL and not rest else f"{line[:MAX_CELL]}…"


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, letter in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if whole >= 2 * size:
            return f"{whole // size}{letter}"
    return f"{whole}s"
