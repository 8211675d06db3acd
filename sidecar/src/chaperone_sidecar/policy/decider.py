"""The one place where the gateway learns what policy says.

Theory of operation: `remembered` looks for the same question among the decisions of the revision in force; `decide`
asks OPA through opa-python-client, over a socket in a volume that only OPA and this gateway mount: on a port of
loopback anybody in the pod could listen in OPA's place while it restarts, and answer Allow. OPA holds the bundle that
the runtime put there, and its answer carries the revision that made it. No answer, a late answer or a malformed answer
is Deny.

Facts that change from one moment to the next travel with each question (the minute, how often rules were used) or are
looked for when an answer says that it depends on them (an estimate of rows). An answer says how long it stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import msgspec

from chaperone_sidecar.command import Command, Effect
from chaperone_sidecar.decision import Action, Circumstances, Decision, Would
from chaperone_sidecar.errors import PolicyUnavailable
from chaperone_sidecar.policy.cache import ALWAYS, DecisionCache
from chaperone_sidecar.policy.client import OpaClient
from chaperone_sidecar.policy.question import asked
from chaperone_sidecar.policy.repeats import Repeats, Use
from chaperone_sidecar.user import User

ASK_TIMEOUT_S: Final = 1.5  # OPA's p99 is a few ms; past this it is down, and down means deny
MAX_ASKS: Final = 32  # questions under way at once; OPA has one core at best, more would only queue there
FIRST_LOAD_S: Final = 60.0  # OPA starts after the gateway: questions of the first moments wait for its first bundle
STRICT: Final = {"strict-builtin-errors": True}  # an error in a policy's own Rego is no answer, and denies
MAX_TRIES: Final = 8  # a rule's last uses may be taken by others between question and answer
# A planner runs functions to see what they give, so asking it for an estimate would run them before policy allows it.
_RUNS_CODE: Final = frozenset({Effect.EXECUTE_CODE, Effect.EXTERNAL_IO, Effect.UNKNOWN})
POLL_S: Final = 0.2  # how often `wait_for_revision` looks whether OPA has loaded a bundle


class Answer(msgspec.Struct, frozen=True):
    """What OPA says; see `decision` in the engine."""

    action: Action
    policy: str
    rule: str
    message: str
    revision: str
    would: Would | None = None
    lasts: Literal["minute", "never"] | None = None
    counts: tuple[Use, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def decision(self) -> Decision:
        """What the session is told."""
        return Decision(self.action, self.policy, self.rule, self.message, self.revision, would=self.would)


type Estimate = Callable[[], Awaitable[int | None]]
"""Asks the backend how many rows a command will reach; None when it does not say."""


class Decider:
    """Decisions of one identity.

    Args:
        identity: name of the AgentIdentity; part of every question.
        opa: the Unix socket at which OPA listens.
        wall_s, now_s: the clocks: Unix seconds, by which windows of time go; and a monotonic one.
    """

    def __init__(
        self,
        identity: str,
        opa: Path,
        wall_s: Callable[[], float] = time.time,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._client = OpaClient(opa, ASK_TIMEOUT_S, MAX_ASKS)
        self._cache = DecisionCache(wall_s=wall_s)
        self._repeats = Repeats(now_s)
        self._slots = asyncio.Semaphore(MAX_ASKS)
        self._loaded = asyncio.Event()

    async def start(self) -> None:
        """Open the client's session; nothing is sent yet."""
        await self._client._init_session()

    async def stop(self) -> None:
        """Close the connections to OPA."""
        await self._client.close_connection()

    def remembered(self, target: str, command: Command, user: User | None = None) -> Decision | None:
        """The decision that the same question met before under the revision in force."""
        return self._cache.find(target, command, user)

    async def decide(
        self, target: str, protocol: str, command: Command, estimate: Estimate | None = None, *,
        is_approved: bool = False, user: User | None = None,
    ) -> Decision:  # fmt: skip
        """Ask OPA; any fault on the way is a Deny that names itself. Never raises but on cancellation.

        Args:
            target: where the command goes.
            protocol: what is spoken there.
            command: what is asked about.
            estimate: asked when policy depends on how many rows are reached; without one, that is not known.
            is_approved: people have allowed the command, and it runs now; one that needs them counts only then.
            user: on whose behalf, where that is known.
        """
        minute = self._cache.minute()
        try:
            await self._wait_for_first_bundle()
            question = self._question(target, protocol, command, minute, user)
            answer = await self._answer(target, question, command, estimate, is_approved=is_approved)
        except PolicyUnavailable as error:
            return Decision(Action.DENY, "", "policy-unavailable", str(error), "")
        decision = answer.decision
        if answer.lasts is not None:
            decision = msgspec.structs.replace(decision, circumstances=_circumstances(question, answer))
        if answer.lasts != "never":
            self._cache.keep(target, command, decision, minute if answer.lasts == "minute" else ALWAYS, user)
        return decision

    async def revision(self) -> str:
        """The revision of the bundle that OPA has loaded, "" while there is none.

        Raises:
            PolicyUnavailable: OPA does not answer.
        """
        found = await self._query({}, "revision")
        return found if isinstance(found, str) else ""

    async def wait_for_revision(self, revision: str, timeout_s: float) -> bool:
        """Wait until OPA answers with that revision, then forget decisions of older ones."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        if await self.revision() == revision:
                            self._cache.clear(revision)
                            self._loaded.set()
                            return True
                    except PolicyUnavailable:
                        pass  # OPA starts after the gateway: not answering yet is the usual case here
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return False

    async def _wait_for_first_bundle(self) -> None:
        try:
            async with asyncio.timeout(FIRST_LOAD_S):
                await self._loaded.wait()
        except TimeoutError as error:
            raise PolicyUnavailable("OPA has no policy yet; look at the chaperone-opa container.") from error

    def _question(
        self, target: str, protocol: str, command: Command, minute: int, user: User | None
    ) -> dict[str, object]:
        return {
            "identity": self._identity,
            "target": target,
            "protocol": protocol,
            **asked(command.facts),
            "minute": minute,
        } | ({"user": user.asked()} if user is not None else {})

    async def _answer(
        self, target: str, question: dict[str, object], command: Command, estimate: Estimate | None, *,
        is_approved: bool,
    ) -> Answer:  # fmt: skip
        if any(access.effect in _RUNS_CODE for access in command.facts.accesses):
            estimate = None
        for _ in range(MAX_TRIES):
            question["repeats"] = self._repeats.of(target)
            answer = await self._ask(question)
            if "rows" in answer.needs and estimate is not None:
                # What is only prepared reaches nothing, and has no parameters yet; it is asked about when it runs.
                question["rows"] = 0 if command.is_preparing else await estimate()
                estimate = None
                if question["rows"] is not None:
                    answer = await self._ask(question)
            # What is only prepared, or waits for people, is counted when it runs.
            waits = answer.action is Action.REQUIRE_APPROVAL and not is_approved
            if not answer.counts or command.is_preparing or waits or self._repeats.take(target, answer.counts):
                return answer
        raise PolicyUnavailable("A rule that may be used only so often is used by too many at once; try again.")

    async def _ask(self, question: dict[str, object]) -> Answer:
        async with self._slots:
            found = await self._query(question, "decision")
        try:
            return msgspec.convert(found, Answer)
        except msgspec.ValidationError as error:
            raise PolicyUnavailable("OPA gave no usable decision; look at the chaperone-opa container.") from error

    async def _query(self, question: dict[str, object], rule: str) -> object:
        try:
            answer = await self._client.query_rule(question, "chaperone", rule, STRICT)
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:  # JSON may nest too deep
            raise PolicyUnavailable("OPA does not answer; look at the chaperone-opa container.") from error
        return answer.get("result") if isinstance(answer, dict) else None


def _circumstances(question: Mapping[str, Any], answer: Answer) -> Circumstances:
    uses = tuple(sorted(question["repeats"].items())) if answer.lasts == "never" else ()
    return Circumstances(question["minute"], question.get("rows"), uses)
