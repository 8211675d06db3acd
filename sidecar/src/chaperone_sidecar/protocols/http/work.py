"""A request that is being answered: what is known of it, its body, and how its client is told of a problem."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from chaperone_sidecar.effects import Intent
from chaperone_sidecar.errors import ChaperoneError, LimitReached, Unmaskable
from chaperone_sidecar.protocols.http import grpc
from chaperone_sidecar.protocols.http.answers import Problem
from chaperone_sidecar.protocols.http.classify import MAX_BODY_BYTES, Asked
from chaperone_sidecar.protocols.http.exchange import Exchange
from chaperone_sidecar.protocols.http.messages import value
from chaperone_sidecar.protocols.http.tunnel import Tunnel


class Work:
    """A request that is being answered."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.intent: Intent | None = None
        self.asked: Asked | None = None
        self.tunnel: Tunnel | None = None
        self.body: bytes | None = None
        self.stopped: ChaperoneError | None = None
        self.on_intent: Callable[[], object] = lambda: None
        self._deadline: asyncio.TimerHandle | None = None

    def limit(self, after_s: float, task: asyncio.Task[None], why: ChaperoneError) -> None:
        """End it when it has taken so long from now on."""
        self._deadline = asyncio.get_running_loop().call_later(after_s, self.stop, task, why)

    def forget_limit(self) -> None:
        """It is over: a timer that went on would keep the request's body until then."""
        if self._deadline is not None:
            self._deadline.cancel()

    def stop(self, task: asyncio.Task[None], why: ChaperoneError) -> None:
        """End it."""
        if self.stopped is None:
            self.stopped = why
            task.cancel()


async def tell(exchange: Exchange, problem: Problem, message: bytes) -> None:
    """Answer with a problem, in the dialect's words where it has some; raises as `Exchange.start`."""
    if message:
        await exchange.start(200, (("Content-Type", "application/json"), ("Cache-Control", "no-store")), len(message))
        await exchange.send(message)
        await exchange.finish()
        return
    if value(exchange.head.fields, "content-type").startswith("application/grpc"):
        await exchange.start(200, problem.grpc, 0)
        await exchange.finish()
        return
    body = problem.encode()
    await exchange.start(problem.status, problem.fields, len(body))
    if exchange.head.method != "HEAD":
        await exchange.send(body)
    await exchange.finish()


async def read(exchange: Exchange, settle_s: float | None) -> tuple[bytes | None, AsyncIterator[bytes]]:
    """A body that is short enough to be decided by, and comes in time, or None and all its pieces."""
    parts, size = [], 0
    if exchange.size_bytes is None or exchange.size_bytes <= MAX_BODY_BYTES:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settle_s):
                async for data in exchange.pieces():
                    parts.append(data)
                    size += len(data)
                    if size > MAX_BODY_BYTES:
                        break
        if exchange.is_whole:
            return b"".join(parts), exchange.pieces()

    async def whole() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        async for data in exchange.pieces():
            yield data

    return None, whole()


def is_call(exchange: Exchange) -> bool:
    """Whether it is a call of gRPC, in the HTTP that carries those."""
    return exchange.version == "HTTP/2" and grpc.is_grpc(value(exchange.head.fields, "content-type"))


def code_of(error: ChaperoneError) -> str:
    """The code of an outcome."""
    if isinstance(error, LimitReached):
        return error.reached.rule
    if isinstance(error, Unmaskable):
        return error.rule
    return getattr(error, "code", "") or type(error).__name__
