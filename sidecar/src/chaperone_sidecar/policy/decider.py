"""The one place where the gateway learns what policy says.

Theory of operation: `remembered` looks for the same question among the decisions of the revision in force; `decide`
asks OPA over loopback through opa-python-client. OPA holds the bundle that the runtime put there, and its answer
carries the revision that made it. No answer, a late answer or a malformed answer is Deny.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec
from opa_client.opa_async import AsyncOpaClient

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.errors import PolicyUnavailable
from chaperone_sidecar.policy.cache import DecisionCache

OPA_HOST: Final = "127.0.0.1"
OPA_PORT: Final = 8181
ASK_TIMEOUT_S: Final = 1.5  # OPA's p99 is a few ms; past this it is down, and down means deny
MAX_ASKS: Final = 32  # questions under way at once; OPA has one core at best, more would only queue there
FIRST_LOAD_S: Final = 20.0  # OPA starts after the gateway: questions of the first moments wait for its first bundle
POLL_S: Final = 0.2  # how often `wait_for_revision` looks whether OPA has loaded a bundle

type AddressInfo = tuple[Any, ...]
type SocketFactory = Callable[[AddressInfo], socket.socket]


class OpaClient(AsyncOpaClient):  # type: ignore[misc]
    """opa-python-client whose sockets are made by us: inside a pod they carry the mark that opens OPA's port."""

    def __init__(self, port: int, socket_factory: SocketFactory | None) -> None:
        super().__init__(host=OPA_HOST, port=port, retries=0, timeout=ASK_TIMEOUT_S)
        self._socket_factory = socket_factory

    async def _init_session(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_ASKS, socket_factory=self._socket_factory),
            timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S),
        )


class Decider:
    """Decisions of one identity.

    Args:
        identity: name of the AgentIdentity; part of every question.
        port: OPA's port on loopback.
        socket_factory: makes marked sockets inside a pod; None outside.
    """

    def __init__(
        self,
        identity: str,
        port: int = OPA_PORT,
        socket_factory: SocketFactory | None = None,
    ) -> None:
        self._identity = identity
        self._client = OpaClient(port, socket_factory)
        self._cache = DecisionCache()
        self._slots = asyncio.Semaphore(MAX_ASKS)
        self._loaded = asyncio.Event()

    async def start(self) -> None:
        """Open the client's session; nothing is sent yet."""
        await self._client._init_session()

    async def stop(self) -> None:
        """Close the connections to OPA."""
        await self._client.close_connection()

    def remembered(self, target: str, command: Command) -> Decision | None:
        """The decision that the same question met before under the revision in force."""
        return self._cache.find(target, command)

    async def decide(self, target: str, protocol: str, command: Command) -> Decision:
        """Ask OPA; any fault on the way is a Deny that names itself. Never raises but on cancellation."""
        try:
            async with self._slots:
                await self._wait_for_first_bundle()
                decision = await self._ask(target, protocol, command)
        except PolicyUnavailable as error:
            return Decision(Action.DENY, "", "policy-unavailable", str(error), "")
        self._cache.keep(target, command, decision)
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

    async def _ask(self, target: str, protocol: str, command: Command) -> Decision:
        facts = command.facts
        question: dict[str, object] = {
            "identity": self._identity,
            "target": target,
            "protocol": protocol,
            "resolution": facts.resolution.value,
            "accesses": [{"effect": access.effect.value, "object": access.object} for access in facts.accesses],
        }
        found = await self._query(question, "decision")
        try:
            return msgspec.convert(found, Decision)
        except msgspec.ValidationError as error:
            raise PolicyUnavailable("OPA gave no usable decision; look at the chaperone-opa container.") from error

    async def _query(self, question: dict[str, object], rule: str) -> object:
        try:
            answer = await self._client.query_rule(question, "chaperone", rule)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PolicyUnavailable("OPA does not answer; look at the chaperone-opa container.") from error
        return answer.get("result") if isinstance(answer, dict) else None
