"""`chaperone suspend` and `resume`: the kill switch, for one agent or for many at once.

What will be cut is shown before it is; each patch holds only for the identity that was shown (its uid is tested), and
who pulled the switch is for the API server to say. Afterwards it is told how many gateways have confirmed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import click
import msgspec

from chaperone_cli.kubectl import EVERYWHERE, CannotAsk, Cluster, ask, place
from chaperone_cli.say import printable, say

AT_ONCE: Final = 8  # patches; a kubectl each
CONFIRM_S: Final = 15.0  # gateways confirm within two seconds, the count follows within another
POLL_S: Final = 0.5
_RESOURCE: Final = "agentidentities.v1alpha1.chaperone.dev"

type Verb = Literal["suspend", "resume"]


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the parts of an AgentIdentity."""


class _Owner(_Part, frozen=True):
    name: str


class _Change(_Part, frozen=True):
    by: str = ""
    at: str = ""
    reason: str = ""


class _Spec(_Part, frozen=True):
    owner: _Owner
    suspended: bool = False
    suspension: _Change = _Change()


class _Pods(_Part, frozen=True):
    covered: int = 0
    uncovered: int = 0
    cut: int = 0


class _Condition(_Part, frozen=True):
    type: str
    reason: str = ""


class _Status(_Part, frozen=True):
    observed_generation: int = 0
    conditions: tuple[_Condition, ...] = ()
    pods: _Pods = _Pods()


class _Metadata(_Part, frozen=True):
    name: str
    namespace: str
    uid: str
    generation: int = 0


class _Identity(_Part, frozen=True):
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    @property
    def name(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def is_confirmed(self) -> bool:
        """Whether the operator has seen this suspension, and every covered pod's gateway has taken it in."""
        seen = self.status.observed_generation == self.metadata.generation
        is_told = any(one.type == "Ready" and one.reason == "Suspended" for one in self.status.conditions)
        return seen and is_told and self.status.pods.cut >= self.status.pods.covered


class _List(_Part, frozen=True):
    items: tuple[_Identity, ...]


class Wanted(msgspec.Struct, frozen=True):
    """Which identities are meant: by name, by label, or both; `namespace` may be `EVERYWHERE`."""

    namespace: str
    names: tuple[str, ...] = ()
    selector: str = ""


def switch(cluster: Cluster, verb: Verb, wanted: Wanted, reason: str, *, is_sure: bool) -> int:
    """Show, ask, switch, and tell who confirmed; returns the exit status.

    0 done and, for a suspension, confirmed by every gateway; 1 refused or not confirmed; 2 not done.
    """
    try:
        where = ("-A",) if wanted.namespace == EVERYWHERE else ("-n", place(cluster, wanted.namespace))
        found = [one for one in _meant(cluster, where, wanted) if one.spec.suspended != (verb == "suspend")]
        if not found:
            say(f"{verb}: nothing to do; every identity that is meant is {_done(verb)} already")
            return 0
        for line in _table(found):
            say(line)
        if not is_sure and not click.confirm(f"{verb.capitalize()} {_count(found)}?", default=False):
            say(f"not {_done(verb)}")
            return 2
        with ThreadPoolExecutor(AT_ONCE) as pool:
            problems = list(pool.map(lambda one: _patch(cluster, one, verb, reason), found))
        for problem in filter(None, problems):
            say(f"{verb}: FAILED: {problem}", err=True)
        switched = [one for one, problem in zip(found, problems, strict=True) if not problem]
        for one in switched:
            say(f"{one.name}: {_done(verb)}")
        is_confirmed = verb == "resume" or _confirm(cluster, where, switched)
    except (CannotAsk, msgspec.DecodeError) as error:
        say(f"{verb}: FAILED: {error}", err=True)
        return 1
    except click.Abort:
        say(f"not {_done(verb)}")
        return 2
    return 0 if is_confirmed and len(switched) == len(found) else 1


def _meant(cluster: Cluster, where: tuple[str, ...], wanted: Wanted) -> list[_Identity]:
    selector = ("-l", wanted.selector) if wanted.selector else ()
    answer = ask(cluster, "get", _RESOURCE, *where, *selector, "-o", "json")
    found = msgspec.json.decode(answer, type=_List).items
    missing = set(wanted.names) - {one.metadata.name for one in found}
    if missing:
        raise CannotAsk(f"There is no AgentIdentity {', '.join(sorted(missing))} here.")
    if not found:
        raise CannotAsk("No AgentIdentity has these labels.")
    return [one for one in found if not wanted.names or one.metadata.name in wanted.names]


def _patch(cluster: Cluster, identity: _Identity, verb: Verb, reason: str) -> str:
    """Why it was refused, "" when it was not."""
    # The stamp of the last change goes with the patch, so that a reason like the last one counts as new.
    change = {"reason": reason, "by": None, "at": None}
    spec = {"suspended": verb == "suspend", "suspension": change}
    body = json.dumps({"metadata": {"uid": identity.metadata.uid}, "spec": spec})
    name, namespace = identity.metadata.name, identity.metadata.namespace
    try:
        ask(cluster, "patch", _RESOURCE, name, "-n", namespace, "--type=merge", "-p", body, "-o", "name")
    except CannotAsk as error:
        return f"{identity.name}: {error}"
    return ""


def _confirm(cluster: Cluster, where: tuple[str, ...], suspended: list[_Identity]) -> bool:
    """Wait until the gateways of all have confirmed, and tell it."""
    began = time.monotonic()
    waiting = {one.metadata.uid for one in suspended}
    while True:
        answer = ask(cluster, "get", _RESOURCE, *where, "-o", "json")
        now = [one for one in msgspec.json.decode(answer, type=_List).items if one.metadata.uid in waiting]
        passed_s = time.monotonic() - began
        for one in now:
            if one.is_confirmed or passed_s >= CONFIRM_S:
                pods = one.status.pods
                say(f"{one.name}: {pods.cut} of {pods.covered} gateways confirmed after {passed_s:.1f} s")
                if pods.uncovered:
                    say(f"{one.name}: {pods.uncovered} pods are not covered by a gateway; delete them")
            if one.is_confirmed:
                waiting.discard(one.metadata.uid)
        if not waiting or passed_s >= CONFIRM_S:
            break
        time.sleep(POLL_S)
    if waiting:
        say("suspend: not confirmed by all; a gateway that hears nothing keeps its sessions: delete its pod", err=True)
    return not waiting


def _table(found: list[_Identity]) -> Iterator[str]:
    rows = [["IDENTITY", "OWNER", "GATEWAYS", "UNCOVERED", "LAST CHANGE"]]
    for one in found:
        pods, change = one.status.pods, one.spec.suspension
        last = f"{change.at} by {change.by}: {change.reason or 'no reason given'}" if change.by else "-"
        rows.append([one.name, one.spec.owner.name, str(pods.covered), str(pods.uncovered), last])
    widths = [max(len(printable(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _count(found: list[_Identity]) -> str:
    gateways = sum(one.status.pods.covered for one in found)
    return f"{len(found)} AgentIdentit{'y' if len(found) == 1 else 'ies'} with {gateways} gateways"


def _done(verb: Verb) -> str:
    return "suspended" if verb == "suspend" else "resumed"
