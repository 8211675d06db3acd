"""Work that is done elsewhere than on the event loop, within its limit of time."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Final

from chaperone_sidecar.effects import Offload
from chaperone_sidecar.errors import ChaperoneError

OFFLOAD_TIMEOUT_S: Final = 10.0  # the worst text of 1 MiB took 1.3 s to be parsed


async def worked_off(effect: Offload, timeout_s: float = OFFLOAD_TIMEOUT_S) -> object:
    """What the work of an `Offload` gives.

    Raises:
        ChaperoneError: not in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            work = effect.work()
            return await (asyncio.wrap_future(work) if isinstance(work, Future) else work)
    except TimeoutError as error:
        raise ChaperoneError("The statement took too long to be understood.") from error
