"""What becomes of requests without their gateway's doing: votes, time and policy decide, and old ones are deleted.

Every replica runs this on the same requests. Each write names the version that it was decided on, so whoever comes
second is refused and finds the work done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Final

import msgspec

from chaperone_operator.approval import Request, State
from chaperone_operator.broker.approval import Tell
from chaperone_operator.broker.deadline import Deadlines
from chaperone_operator.broker.ledger import Ledger
from chaperone_operator.broker.snapshots import Snapshots
from chaperone_operator.kube import ApiError

PERIOD_S: Final = 1.0  # how late an expiry may be noticed; its use is refused to the second
TIDY_PERIOD_S: Final = 60.0
RETENTION_S: Final = 7 * 24 * 3600.0  # for people who look; the lasting record is the evidence
MAX_KEPT: Final = 500  # ended requests of a namespace; an agent in a loop must not fill etcd

_log = logging.getLogger(__name__)


class Verdict(msgspec.Struct, frozen=True):
    """What a request becomes, and why."""

    state: State
    reason: str
    message: str


class Verdicts:
    """Follows all requests while `run` runs.

    Args:
        ledger, snapshots: must be running.
        deadlines: when requests end.
        retention_s: how long ended requests are kept.
        tell: told each request that this replica moved; must not block.
    """

    def __init__(
        self,
        ledger: Ledger,
        snapshots: Snapshots,
        deadlines: Deadlines,
        retention_s: float = RETENTION_S,
        tell: Tell = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._snapshots = snapshots
        self._deadlines = deadlines
        self._retention_s = retention_s
        self._tell = tell

    async def run(self) -> None:
        """Decide until cancelled; faults are logged and tried again in the next round."""
        await self._ledger.synced.wait()
        await self._snapshots.synced.wait()  # or every policy would look deleted
        loop = asyncio.get_running_loop()
        tidied = -TIDY_PERIOD_S
        while True:
            self._ledger.changed.clear()
            await self._settle()
            if loop.time() - tidied >= min(TIDY_PERIOD_S, self._retention_s):
                tidied = loop.time()
                await self._tidy()
            try:
                async with asyncio.timeout(PERIOD_S):
                    await self._ledger.changed.wait()
            except TimeoutError:
                pass

    async def _settle(self) -> None:
        for request in list(self._ledger.open()):
            try:
                await self._one(request)
            except (ApiError, ValueError) as error:
                _log.warning("%s/%s: %s", request.metadata.namespace, request.metadata.name, error)

    async def _one(self, request: Request) -> None:
        now = self._deadlines.now()
        verdict = await self._policy(request) or judge(request, is_over=self._deadlines.is_over(request))
        if verdict is not None:
            moved = await self._ledger.move(request, verdict.state, verdict.reason, verdict.message, now)
            if moved is not None:
                _log.info("%s/%s: %s", moved.metadata.namespace, moved.metadata.name, verdict.reason)
                self._tell(moved)
        elif request.status.tally != str(request.tally()):
            await self._ledger.move(request, request.status.state, "", "", now)

    async def _policy(self, request: Request) -> Verdict | None:
        namespace, revision = request.metadata.namespace, request.spec.revision
        if self._snapshots.revision(namespace) == revision:
            return None
        # This replica may be behind the one that made the request, so the API server is asked before it is taken back.
        if await self._snapshots.stored_revision(namespace) == revision:
            return None
        return Verdict(State.CANCELLED, "PolicyChanged", "The policy changed since it was asked; the agent asks anew.")

    async def _tidy(self) -> None:
        """Delete requests that ended long ago, and the oldest of too many."""
        self._deadlines.keep(request.metadata.uid for request in self._ledger.open())
        ended: defaultdict[str, list[Request]] = defaultdict(list)
        for request in self._ledger.all():
            if not request.is_open:
                ended[request.metadata.namespace].append(request)
        for requests in ended.values():
            requests.sort(key=lambda one: one.metadata.creation_timestamp, reverse=True)
            for index, request in enumerate(requests):
                age_s = self._deadlines.now() - request.spec.expires_at.timestamp()
                if index >= MAX_KEPT or age_s > self._retention_s:
                    try:
                        await self._ledger.delete(request)
                    except ApiError as error:
                        _log.warning("%s was not deleted: %s", request.metadata.name, error)


def judge(request: Request, *, is_over: bool) -> Verdict | None:
    """What time and votes make of an open request; None while they leave it as it is. Time goes before votes."""
    if is_over:
        return Verdict(State.EXPIRED, "Expired", "Nobody used it in time; the agent asks anew.")
    if request.status.state != State.PENDING:
        return None
    tally = request.tally()
    if tally.outcome == State.DENIED:
        return Verdict(State.DENIED, "Denied", _told(request, "Deny", "Denied"))
    if tally.outcome == State.APPROVED:
        return Verdict(State.APPROVED, "Approved", _told(request, "Approve", "Approved"))
    return None


def _told(request: Request, decision: str, verb: str) -> str:
    votes = [vote for vote in request.status.votes if vote.decision == decision]
    return f"{verb} by " + "; ".join(vote.by.username + (f" ({vote.reason})" if vote.reason else "") for vote in votes)
