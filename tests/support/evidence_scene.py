"""An agent's two sessions at a collector, and kubectl to ask for them."""

from __future__ import annotations

import asyncio
from typing import Any

from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import record

APPROVAL = "apr-aaaaaaaaaaaaaaaaaaaa"
BASE = "/apis/evidence.chaperone.dev/v1alpha1"
PERSON = record.Delegated("https://login.example.com", "user-7", "user-7@example.com")


class Scene:
    """An identity of its own with two sessions: three commands on orders-db, one refused; one open on ledger-db."""

    def __init__(self, ca: Authority, identity: str, namespace: str = "agents") -> None:
        self.identity = identity
        self.pod = Pod(ca, namespace=namespace, identity=identity, pod=f"{identity}-0", pod_uid=f"uid-{identity}")
        self.stream = Stream(self.pod)
        self.stream.head()
        self.closed = self.stream.open_session(delegated=PERSON)
        self.stream.conclude(
            self.closed, self.stream.intend(self.closed, "SELECT *\n\tFROM orders", subject="user-7"), rows=7
        )
        self.stream.intend(self.closed, "DROP TABLE orders", decision="Deny", rule="never")
        self.stream.conclude(self.closed, self.stream.intend(self.closed, "SELECT 2", approval=APPROVAL), "error", 0)
        self.stream.close_session(self.closed, 3, 1)
        self.open = self.stream.open_session("ledger-db", "MySQL")
        self.stream.intend(self.open, "SELECT 3")
        self.stream.head()

    async def ship(self, api: EvidenceApi) -> Scene:
        """Send everything."""
        async with Sender(api.collector, self.pod) as sender:
            await sender.ship(self.stream)
        return self


async def kubectl(api: EvidenceApi, *arguments: str, **more: Any) -> str:
    return await asyncio.to_thread(api.kubectl, *arguments, **more)


async def names(api: EvidenceApi, *arguments: str) -> list[str]:
    text = await kubectl(api, "get", *arguments, "-o", "name")
    return [line.split("/")[1] for line in text.split()]
