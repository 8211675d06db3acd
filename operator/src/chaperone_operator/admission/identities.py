"""Which AgentIdentity selects a pod, answered from this replica's own mirror, so that every replica can admit pods.

Before the first whole list nothing is known, and whoever asks is told so. An identity that cannot be read selects
nothing that could be named; it is reported with its namespace, where no pod may start until it is put right.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from chaperone_operator.admission.inject import Agent
from chaperone_operator.compile.model import IdentitySpec, decode
from chaperone_operator.compile.selector import LabelSelector
from chaperone_operator.kube import AGENT_IDENTITIES, Client, Object
from chaperone_operator.mirror import Key, Mirror


class NotKnown(Exception):
    """It cannot be said which identities select a pod; the text says why and what to do."""


class _Readable(msgspec.Struct, frozen=True):
    selector: LabelSelector
    agent: Agent


class Identities:
    """The AgentIdentities of the cluster by namespace; current while `run` runs."""

    def __init__(self, client: Client) -> None:
        self.mirror = Mirror(client, AGENT_IDENTITIES, on_change=self._changed)
        self._by_namespace: dict[str, dict[str, _Readable | None]] = {}

    async def run(self) -> None:
        """Follow the API server until cancelled."""
        await self.mirror.run()

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> tuple[Agent, ...]:
        """The agents as which a pod with these labels would run, by name; more than one is a conflict.

        Raises:
            NotKnown: before the first list, or when an identity of the namespace cannot be read.
        """
        if not self.mirror.synced.is_set():
            raise NotKnown("The AgentIdentities have not been read yet; try again in a few seconds.")
        found = []
        for name, readable in sorted(self._by_namespace.get(namespace, {}).items()):
            if readable is None:
                raise NotKnown(f"AgentIdentity {namespace}/{name} cannot be read; see its status, mend or delete it.")
            if readable.selector.admits(labels):
                found.append(readable.agent)
        return tuple(found)

    def _changed(self, key: Key) -> None:
        namespace, name = key
        item = self.mirror.objects.get(key)
        if item is not None:
            self._by_namespace.setdefault(namespace, {})[name] = _read(item)
        elif namespace in self._by_namespace:
            self._by_namespace[namespace].pop(name, None)
            if not self._by_namespace[namespace]:
                del self._by_namespace[namespace]


def _read(item: Object) -> _Readable | None:
    identity, _ = decode(item, IdentitySpec)
    if identity is None:
        return None
    return _Readable(identity.spec.selector, Agent(identity.name, identity.spec.ingress.ports))
