"""One side of a session: its generator is run to its end for each delivery of bytes.

A side that has to wait is paused together with its transport, and what still arrives is kept for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from chaperone_sidecar.effects import Effects, Hold, SessionEffect
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.link import Link

if TYPE_CHECKING:
    from chaperone_sidecar.driver import Driver

MAX_PENDING_BYTES: Final = 4 << 20  # arrived while its direction waits; the transport is paused, so one read at most
MAX_HELD_BYTES: Final = 256 << 10  # read behind a command that waits for people, so that a client that goes is noticed


class Direction:
    """See the module. `link` is paused while the generator waits."""

    def __init__(self, driver: Driver, start: Callable[[bytes], Effects[None]]) -> None:
        self._driver = driver
        self._start = start
        self._pending = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.link: Link | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether its generator waits for an answer."""
        return self._task is not None

    def deliver(self, data: bytes) -> None:
        """Take bytes, now or when the generator has what it waits for."""
        if self._task is not None:
            self._pending += data
            if self.link is not None and len(self._pending) > MAX_HELD_BYTES:
                self.link.pause(True)
            if len(self._pending) > MAX_PENDING_BYTES:
                self._driver.fail(ChaperoneError("More arrived than can be kept while the session waits."))
            return
        self._run(self._start(data), None)

    def run(self, generator: Effects[None]) -> None:
        """Run something else on this side; it must not be waiting."""
        self._run(generator, None)

    def _run(self, generator: Effects[None], answer: object) -> None:
        driver = self._driver
        try:
            effect = generator.send(answer)
            while True:
                try:
                    found = driver.execute(effect)
                except ChaperoneError as error:
                    effect = generator.throw(error)
                    continue
                if type(found) is CoroutineType:  # an instance check of an abstract class costs a microsecond
                    driver.commit()
                    if driver.is_over:  # what the client was to be shown could not be recorded
                        found.close()
                        return
                    if self.link is not None:
                        # While people think, a client may go: who does not read from it does not see that.
                        self.link.pause(type(effect) is not Hold or driver.is_choked(self.link))
                    self._task = driver.spawn(self._resume(generator, found))
                    return
                effect = generator.send(found)
        except StopIteration:
            driver.commit()
        except ChaperoneError as error:
            driver.fail(error)

    async def _resume(self, generator: Effects[None], awaited: Coroutine[Any, Any, object]) -> None:
        try:
            answer = await awaited
        except ChaperoneError as error:
            self._task = None
            self._throw(generator, error)
        else:
            self._task = None
            self._run(generator, answer)
        if self._task is None and not self._driver.is_over:
            if self._pending:
                waiting, self._pending = bytes(self._pending), bytearray()
                self.deliver(waiting)
            if self._task is None and self.link is not None:
                self.link.pause(self._driver.is_choked(self.link))

    def _throw(self, generator: Effects[None], error: ChaperoneError) -> None:
        try:
            effect = generator.throw(error)
        except StopIteration:
            self._driver.commit()
        except ChaperoneError as other:
            self._driver.fail(other)
        else:
            self._run(_resumed(generator, effect), None)


def _resumed(generator: Effects[None], effect: SessionEffect) -> Effects[None]:
    """The rest of a generator whose next effect is already known."""
    while True:
        try:
            answer = yield effect
        except ChaperoneError as error:
            effect = generator.throw(error)
            continue
        try:
            effect = generator.send(answer)
        except StopIteration:
            return
