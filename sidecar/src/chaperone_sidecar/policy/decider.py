"""The one place where the gateway learns what policy says.

Theory of operation: `remembered` looks for the same question among the decisions of the revision in force; `decide`
asks OPA through opa-python-client, over a socket in a volume that only OPA and this gateway mount: on a port of
loopback anybody in the pod could listen in OPA's place while it restarts, and answer Allow. OPA holds the bundle that
the runtime put there, and its answer carries the revision that made it. No answer, a late answer or a malformed answer
is Deny.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from opa_client.opa_async import AsyncOpaClient

from chaperone_sidecar.command import Access, Command
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.errors import PolicyUnavailable
from chaperone_sidecar.policy.cache import DecisionCache

OPA_HOST: Final = "opa"  # for the Host header; the connection is to the socket
ASK_TIMEOUT_S: Final = 1.5  # OPA's p99 is a few ms; past this it is down, and down means deny
MAX_ASKS: Final = 32  # questions under way at once; OPA has one core at best, more would only queue there
FIRST_LOAD_S: Final = 60.0  # OPA starts after the gateway: questions of the first moments wait for its first bundle
POLL_S: Final = 0.2  # how often `wait_for_revision` looks whether OPA has loaded a bundle


class OpaClient(AsyncOpaClient):  # type: ignore[misc]
    """opa-python-client over a Unix socket, which its constructor has no way to ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__(host=OPA_HOST, retries=0, timeout=ASK_TIMEOUT_S)
        self._path = path

    async def _init_session(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._path), limit=MAX_ASKS),
            timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S),
        )


class Decider:
    """Decisions of one identity.

    Args:
        identity: name of the AgentIdentity; part of every question.
        opa: the Unix socket at which OPA listens.
    """

    def __init__(self, identity: str, opa: Path) -> None:
        self._identity = identity
        self._client = OpaClient(opa)
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
            "accesses": [_asked(access) for access in facts.accesses],
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


def _asked(access: Access) -> dict[str, str]:
    asked = {"effect": access.effect.value, "object": access.object}
    return asked | {"through": access.through} if access.through else asked
