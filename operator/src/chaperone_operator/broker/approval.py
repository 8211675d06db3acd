"""The calls about approvals: a gateway asks, waits, uses once, or takes back.

Which approval a rule asks for is read from the namespace's snapshot, never from the gateway. Every question is about
requests of the same pod and identity alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_operator.approval import Person, Request, State
from chaperone_operator.broker import ticket
from chaperone_operator.broker.deadline import Deadlines
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.ledger import Ledger
from chaperone_operator.broker.peer import Peer
from chaperone_operator.broker.snapshots import Snapshot, Snapshots
from chaperone_operator.broker.ticket import Wanted
from chaperone_operator.kube import Object

MAX_PENDING: Final = {"pod": 5, "identity": 20, "namespace": 100}
"""Requests that may wait for people at once: past this nobody reads what is approved."""
MAX_WAIT_S: Final = 30.0
CATCH_UP_S: Final = 2.0  # a gateway may have heard of a new policy from another replica
NAME_TRIES: Final = 8  # requests for one command that were made and ended without this replica's knowing
WRITE_TRIES: Final = 5

type Tell = Callable[[Request], None]


class Shown(msgspec.Struct, frozen=True):
    """What a gateway is told of its request.

    Attributes:
        approvals, needed, denials: votes that count.
        wait_s: how long the rule lets the gateway hold its connection.
        message: for the agent; who denied, and why.
    """

    name: str
    state: State
    approvals: int
    needed: int
    denials: int
    expires_at_unix: int
    wait_s: int
    message: str


class Use(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/approvals/<name>/use`."""

    binding: str
    revision: str


class Approvals:
    """Requests of gateways.

    Args:
        ledger: of the cluster's requests.
        snapshots: policy.
        deadlines: when requests end.
        tell: told each request that this replica made or moved; must not block.
    """

    def __init__(self, ledger: Ledger, snapshots: Snapshots, deadlines: Deadlines, tell: Tell = lambda _: None) -> None:
        self._ledger = ledger
        self._snapshots = snapshots
        self._deadlines = deadlines
        self._tell = tell

    async def ask(self, peer: Peer, pod: Object, wanted: Wanted) -> Shown:
        """Make a request, or give the one that is open for the same command of this pod under this revision.

        Raises:
            Refused: 403 when the rule asks for none or the revision is another, 429 when too many wait.
            ApiError: the API server does not answer.
        """
        self._check_synced()
        snapshot = await self._snapshot(peer, wanted.revision)
        settings = snapshot.approvals.get(f"{wanted.policy}/{wanted.rule}")
        if settings is None:
            raise Refused(
                403, "No approval", f"Rule {wanted.rule} of policy {wanted.policy} asks for no approval; ask again."
            )
        described = snapshot.described(peer.identity)
        protocol = next((one.protocol for one in described.targets if one.name == wanted.target), "")
        if not protocol:
            raise Refused(
                403,
                "No such target",
                f"AgentIdentity {peer.identity} has no AccessTarget {wanted.target}; see its policies.",
            )
        owner = Person(described.identity.owner.name, described.identity.owner.email)
        who = ticket.requester(peer, pod, owner, settings)
        identified = ticket.key(peer, wanted)
        for request in self._ledger.open(peer.namespace):
            if ticket.key_of(request.spec) == identified and not self._deadlines.is_over(request):
                return _shown(request)
        self._check_pending(peer)
        before = ""
        while (ended := self._ledger.seen(peer.namespace, ticket.name(identified, before))) and not ended.is_open:
            before = ended.metadata.uid
        for _ in range(NAME_TRIES):
            name = ticket.name(identified, before)
            body = ticket.build(wanted, who, peer.namespace, protocol, settings, name, self._deadlines.now())
            made = await self._ledger.make(body, peer.namespace)
            if made is not None:
                self._deadlines.is_over(made)  # its time begins
                self._tell(made)
                return _shown(made)
            stored = await self._ledger.stored(peer.namespace, name)
            if stored.is_open and not self._deadlines.is_over(stored):
                return _shown(stored)
            before = stored.metadata.uid
        raise Refused(429, "Asked too often", "This command was asked for too often; wait.", retry_after_s=60)

    async def show(self, peer: Peer, name: str, wait_s: float) -> Shown:
        """A request, as soon as it is decided or after `wait_s`.

        Raises:
            Refused: 404. ApiError: the API server does not answer.
        """
        self._check_synced()
        request = self._own(peer, await self._ledger.known(peer.namespace, name))
        if wait_s > 0 and request.status.state == State.PENDING:
            request = await self._ledger.settled(request, min(wait_s, MAX_WAIT_S))
        return _shown(request)

    async def use(self, peer: Peer, name: str, use: Use) -> Shown:
        """Spend an approval; this succeeds once.

        Raises:
            Refused: 403 for another command or what policy no longer grants, 404, 409 when it is not approved or is
                used already, 410 when it is over. ApiError: the API server does not answer.
        """
        self._check_synced()
        for _ in range(WRITE_TRIES):
            request = self._own(peer, await self._ledger.stored(peer.namespace, name))
            snapshot = await self._snapshot(peer, use.revision)
            self._check_usable(request, use, snapshot)
            moved = await self._ledger.move(
                request, State.USED, "Used", "The command was released once.", self._deadlines.now()
            )
            if moved is not None:
                self._tell(moved)
                return _shown(moved)
        raise Refused(503, "Try again", "The request changes too often.", retry_after_s=1)

    async def cancel(self, peer: Peer, name: str) -> Shown:
        """Take a request back, because nobody waits for it any more; one that is decided stays as it is.

        Raises:
            Refused: 404. ApiError: the API server does not answer.
        """
        for _ in range(WRITE_TRIES):
            request = self._own(peer, await self._ledger.stored(peer.namespace, name))
            if not request.is_open:
                return _shown(request)
            moved = await self._ledger.move(
                request, State.CANCELLED, "ClientGone", "The agent no longer waits for it.", self._deadlines.now()
            )
            if moved is not None:
                self._tell(moved)
                return _shown(moved)
        raise Refused(503, "Try again", "The request changes too often.", retry_after_s=1)

    def _check_synced(self) -> None:
        if not self._ledger.synced.is_set():
            raise Refused(503, "Starting", "The broker has not read the approval requests yet; call again.", 1)

    async def _snapshot(self, peer: Peer, revision: str) -> Snapshot:
        snapshot = self._snapshots.of(peer.namespace)
        if snapshot.revision != revision:
            snapshot = await self._snapshots.wait(peer.namespace, snapshot.revision, CATCH_UP_S) or snapshot
        if snapshot.revision != revision:
            raise Refused(
                403,
                "Policy changed",
                f"Revision {revision} is not in force; decide under {snapshot.revision} and ask anew.",
            )
        return snapshot

    def _check_pending(self, peer: Peer) -> None:
        counts = dict.fromkeys(MAX_PENDING, 0)
        for request in self._ledger.open(peer.namespace):
            if request.status.state == State.PENDING:
                who = request.spec.requester
                counts["namespace"] += 1
                counts["identity"] += who.identity == peer.identity
                counts["pod"] += who.pod_uid == peer.pod_uid
        for what, most in MAX_PENDING.items():
            if counts[what] >= most:
                raise Refused(
                    429,
                    "Too many requests wait",
                    f"{counts[what]} approval requests of this {what} wait for people already, which is the most; "
                    "wait until some are decided.",
                    retry_after_s=10,
                )

    def _own(self, peer: Peer, request: Request) -> Request:
        who = request.spec.requester
        if (who.identity, who.pod_uid) != (peer.identity, peer.pod_uid):
            # As if there were none: another's requests are none of its business.
            raise Refused(404, "No such request", f"This pod has no approval request {request.metadata.name}.")
        return request

    def _check_usable(self, request: Request, use: Use, snapshot: Snapshot) -> None:
        state, spec, name = request.status.state, request.spec, request.metadata.name
        if use.binding != spec.binding:
            raise Refused(403, "Another command", f"{name} is for another command, other parameters or another target.")
        if use.revision != spec.revision or f"{spec.policy}/{spec.rule}" not in snapshot.approvals:
            raise Refused(403, "Policy changed", f"{name} was asked for under revision {spec.revision}; ask anew.")
        identity = request.spec.requester.identity
        if not snapshot.names_target(identity, spec.target):
            raise Refused(403, "Not granted", f"AgentIdentity {identity} may not use {spec.target} any more.")
        if state == State.USED:
            raise Refused(409, "Already used", f"{name} was used; an approval counts once.")
        if state == State.DENIED:
            raise Refused(403, "Denied", _shown(request).message)
        if state in {State.EXPIRED, State.CANCELLED} or self._deadlines.is_over(request):
            raise Refused(410, "Over", f"{name} is {state} and can no longer be used; ask anew.")
        if state != State.APPROVED or request.tally().outcome != State.APPROVED:
            raise Refused(409, "Not approved", f"{name} is {state}: {request.tally()} approvals.")


def _shown(request: Request) -> Shown:
    tally = request.tally()
    return Shown(
        name=request.metadata.name,
        state=request.status.state,
        approvals=tally.approvals,
        needed=tally.needed,
        denials=tally.denials,
        expires_at_unix=int(request.spec.expires_at.timestamp()),
        wait_s=request.spec.approval.wait_seconds,
        message=request.status.message,
    )
