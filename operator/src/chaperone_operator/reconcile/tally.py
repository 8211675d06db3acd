"""What the status of policies and identities says of use: how often each rule fired, and what an identity did last.

The collector counts what gateways record and serves the counters by its API; here they are asked for, now and then, by
the holder of the Lease, and written where something changed. These fields have a manager of their own, so that the
reconciling loop and this one never write each other's.

Counters go by name: a rule that is renamed begins at 0, and a policy that is made anew under an old name goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from chaperone_operator.kube import (
    ACCESS_POLICIES,
    AGENT_IDENTITIES,
    CLUSTER_ACCESS_POLICIES,
    TALLIES,
    ApiError,
    Client,
    Object,
    Resource,
)
from chaperone_operator.reconcile.condition import is_current
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.world import World

MANAGER: Final = "chaperone-operator-tally"
PERIOD_S: Final = 30.0  # between two looks: a policy in use is written no more often
WHOLE_EVERY: Final = 120  # looks: everything is asked for again, should the collector's log have been replaced
MAX_RULES: Final = 201  # shown: as many as a policy may have, and its Rego
OWN: Final = "rego"  # what decides in the name of a policy's own Rego

_log = logging.getLogger(__name__)


class Used(msgspec.Struct, frozen=True):
    """How often, and when last by the gateway's clock ("": never)."""

    count: int = 0
    last: str = ""

    def __add__(self, other: Used) -> Used:
        return Used(self.count + other.count, max(self.last, other.last))


NEVER: Final = Used()

type What = Literal["Rule", "Would", "Identity"]


class Counter(msgspec.Struct, frozen=True):
    """One counter, as the collector serves it."""

    what: What
    namespace: str  # of the agents, by their gateways' certificates
    name: str  # of the policy as it is reported, `namespace/name` or `name`; or of the identity
    rule: str
    action: str
    count: int
    last: str


class Tallies:
    """The counters that are known."""

    def __init__(self) -> None:
        self._used: dict[tuple[What, str, str], dict[tuple[str, str], Used]] = {}
        self._cluster: dict[tuple[What, str], set[str]] = {}  # what and policy of the cluster → namespaces

    def take(self, one: Counter) -> None:
        """A counter, as it stands."""
        used = self._used.setdefault((one.what, one.namespace, one.name), {})
        used[one.rule, one.action] = Used(one.count, one.last)
        if one.what != "Identity" and "/" not in one.name:
            self._cluster.setdefault((one.what, one.name), set()).add(one.namespace)

    def rules(self, what: What, namespace: str, name: str) -> dict[str, Used]:
        """By rule, what a policy did; `namespace` "" for one of the cluster, and then of all namespaces together."""
        namespaces: Iterable[str] = [namespace] if namespace else self._cluster.get((what, name), ())
        reported = f"{namespace}/{name}" if namespace else name
        found: dict[str, Used] = {}
        for one in namespaces:
            for (rule, _), used in self._used.get((what, one, reported), {}).items():
                found[rule] = found.get(rule, NEVER) + used
        return found

    def identity(self, namespace: str, name: str) -> tuple[Used, int]:
        """What an identity did, and how many of its commands were not allowed."""
        found = self._used.get(("Identity", namespace, name), {})
        denied = sum(used.count for (_, action), used in found.items() if action != "Allow")
        return sum(found.values(), NEVER), denied


def policy_status(tallies: Tallies, policy: Object) -> dict[str, Any]:
    """What the status of a policy says of use: each rule, those that never fired too."""
    metadata, spec = policy["metadata"], policy.get("spec") or {}
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    fired, would = tallies.rules("Rule", namespace, name), tallies.rules("Would", namespace, name)
    names = [rule["name"] for rule in spec.get("rules") or ()] + ([OWN] if spec.get("rego") else [])
    rules = [_rule(one, fired.get(one, NEVER), would.get(one, NEVER)) for one in names[:MAX_RULES]]
    return {
        "rules": rules,
        "fired": sum(one["fired"] for one in rules),
        "neverFired": sum(not one["fired"] and not one.get("would") for one in rules),
    }


def identity_status(tallies: Tallies, identity: Object) -> dict[str, Any]:
    """What the status of an identity says of use."""
    used, denied = tallies.identity(identity["metadata"]["namespace"], identity["metadata"]["name"])
    return {"denials": denied, **({"lastActivity": used.last} if used.last else {})}


def _rule(name: str, fired: Used, would: Used) -> dict[str, Any]:
    return {
        "name": name,
        "fired": fired.count,
        **({"lastFired": fired.last} if fired.count else {}),
        **({"would": would.count, "lastWould": would.last} if would.count else {}),
    }


class Tallying:
    """Asks and writes, while `run` runs.

    Args:
        world: must be filled before `run`.
        period_s: between two looks.
    """

    def __init__(self, client: Client, world: World, leadership: Leadership, period_s: float = PERIOD_S) -> None:
        self._client = client
        self._world = world
        self._leadership = leadership
        self._period_s = period_s

    async def run(self) -> None:
        """Look until cancelled; faults are logged and the next look begins anew."""
        while True:
            await self._leadership.acquired()
            tallies, since, count, told = Tallies(), "", 0, ""
            while self._leadership.is_held:
                if count % WHOLE_EVERY == 0:
                    tallies, since = Tallies(), ""
                count += 1
                try:
                    since = await self._look(tallies, since)
                    told = ""
                except ApiError as error:
                    count = 0
                    if told != str(error):  # a collector that is not installed says so each time
                        told = str(error)
                        _log.warning("counters of rules: %s Again every %.0f s.", error, self._period_s)
                await asyncio.sleep(self._period_s)

    async def _look(self, tallies: Tallies, since: str) -> str:
        found = await self._client.list(TALLIES, changed_since=since)
        try:
            for one in msgspec.convert(found.items, tuple[Counter, ...]):
                tallies.take(one)
        except msgspec.ValidationError as error:
            raise ApiError(f"The collector's counters cannot be read ({error}).") from error
        for resource in (ACCESS_POLICIES, CLUSTER_ACCESS_POLICIES):
            for item in self._world.all(resource):
                await self._write(resource, item, policy_status(tallies, item))
        for item in self._world.all(AGENT_IDENTITIES):
            await self._write(AGENT_IDENTITIES, item, identity_status(tallies, item))
        return found.resource_version

    async def _write(self, resource: Resource, item: Object, wanted: dict[str, Any]) -> None:
        if is_current(wanted, item.get("status") or {}) or not self._leadership.is_held:
            return
        metadata = item["metadata"]
        body: Object = {"metadata": {"uid": metadata["uid"]}, "status": wanted}  # the uid: never a namesake's status
        try:
            written = await self._client.apply(
                resource, metadata["name"], body, manager=MANAGER, namespace=metadata.get("namespace", ""),
                subresource="status",
            )  # fmt: skip
        except ApiError as error:
            if error.status != 404 and error.reason != "Conflict":  # else it went, or a namesake came
                _log.warning("status of %s %s: %s", resource.kind, metadata["name"], error)
            return
        self._world.take(resource, written, is_gone=False)
