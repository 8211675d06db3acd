"""Erases what is due, hour by hour, in transactions so small that gateways do not notice."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from chaperone_collector.errors import StoreBusy
from chaperone_collector.store import Store

log = logging.getLogger(__name__)

PERIOD_S: Final = 3600.0
PAUSE_S: Final = 0.05  # between two transactions; a group of writes takes a few milliseconds
AGAIN_S: Final = 5.0  # until readers have let go of the write-ahead log


async def erase_what_is_due(store: Store, minimum_days: int) -> int:
    """Erase all that is due, and empty the write-ahead log of it; returns how many texts went.

    Raises:
        StoreBusy: the rest has to wait. StoreUnusable: the store has failed.
    """
    gone = 0
    while True:
        step = await store.write(lambda tx: tx.erase(minimum_days))
        gone += len(step.commits)
        if step.is_last:
            break
        await asyncio.sleep(PAUSE_S)
    while True:
        if await store.forget():
            return gone
        await asyncio.sleep(AGAIN_S)


async def keep_retention(store: Store, minimum_days: int, period_s: float = PERIOD_S) -> None:
    """Do so again and again, until cancelled."""
    while True:
        try:
            gone = await erase_what_is_due(store, minimum_days)
        except StoreBusy as error:
            log.warning("texts that are due were not erased: %s", error)
        else:
            if gone:
                log.info("%d texts were erased", gone)
        await asyncio.sleep(period_s)
