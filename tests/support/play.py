"""A PostgreSQL session without sockets, spool and policy: bytes in, what it asked for out."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Generator
from typing import Any

from chaperone_sidecar.config import Limit, Limits
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import (
    Admit,
    Ask,
    CancelUpstream,
    Conclude,
    Intend,
    Intent,
    Offload,
    Opened,
    OpenUpstream,
    Receipt,
    SessionEffect,
    ToClient,
    ToUpstream,
)
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.reading import Reader
from chaperone_sidecar.protocols.postgresql.schema import Schema
from chaperone_sidecar.protocols.postgresql.session import Session

ALLOW = Decision(Action.ALLOW, "agents/billing", "read", "", "r1")


class Nothing:
    """The catalog of a database that cannot be asked."""

    generation = 0
    schema = Schema()

    def join(self) -> None:
        pass

    def leave(self) -> None:
        pass

    async def learn(self, names: Collection[str]) -> bool:
        return False

    async def learn_types(self, oids: Collection[int]) -> bool:
        return False

    async def marks(self, names: Collection[str]) -> None:
        return None

    def invalidate(self) -> None:
        pass


class Play:
    """A session and all that it asked for."""

    def __init__(self, **limits: Limit) -> None:
        reader = Reader(Nothing())
        self.session = Session(lambda _: reader, Meter(Quota(Limits(**limits))))
        self.to_client = self.to_upstream = b""
        self.concluded: list[Conclude] = []
        self.cancels = 0
        self.client(m.encode_startup((("user", "agent"),)))
        self.to_client = self.to_upstream = b""

    def client(self, data: bytes) -> None:
        self._run(self.session.from_client(data))

    def upstream(self, data: bytes) -> None:
        self._run(self.session.from_upstream(data))

    def expire(self) -> None:
        self._run(self.session.cut(Reached("commandDuration", Limit(1000, "agents/billing"))))

    def _run(self, generator: Generator[SessionEffect, Any, None]) -> None:
        answer: object = None
        try:
            while True:
                answer = self._do(generator.send(answer))
        except StopIteration:
            pass

    def _do(self, effect: SessionEffect) -> object:
        match effect:
            case Ask():
                return ALLOW
            case Admit():
                return effect.decision
            case Intend():
                return Intent("c", Receipt(1), 0)
            case Conclude():
                self.concluded.append(effect)
            case Offload():
                return asyncio.run(effect.work())  # type: ignore[arg-type]
            case ToClient():
                self.to_client += bytes(effect.data)
            case ToUpstream():
                self.to_upstream += bytes(effect.data)
            case CancelUpstream():
                self.cancels += 1
            case OpenUpstream():
                return Opened(Receipt(0), (), 7, b"key!")
            case _:
                return self.otherwise(effect)
        return None

    def otherwise(self, effect: SessionEffect) -> object:
        """What the usual dialogue doesn't ask for."""
        raise AssertionError(effect)

    def messages(self) -> str:
        """The types of all messages that the client got, none of them in part."""
        found, data = "", self.to_client
        while data:
            size = 1 + int.from_bytes(data[1:5], "big")
            assert len(data) >= size, "a message is cut"
            found, data = found + chr(data[0]), data[size:]
        return found
